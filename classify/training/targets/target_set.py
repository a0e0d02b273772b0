"""Training sets of heads whose labels are not one class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan
from classify.heads.targets.registry import TargetHeadSpec
from classify.kinds import MULTI
from classify.solvers import lbfgs, neighbours
from classify.solvers.gram import PrincipalBasis
from classify.solvers.gram_cache import compute_fold_bases
from featurize.cache.reader import FeatureCache


@dataclass(frozen=True, eq=False)
class TargetSet:
    """The rows, labels and folds that a head is trained on.

    Attributes
    ----------
    kind : str
        ``multi``, ``number`` or ``grade``.
    rows : FeatureRows
        n rows.
    values : float64 array of shape (n, T)
        As in `classify.data.targets.task.TargetTask`; NaN for a label that is not known.
    n_grades : int, or None
        Number of grades; None for other kinds.
    fold_plan : FoldPlan
    cache : FeatureCache, or None
        The cache of the rows. Without it nothing is stored.
    layers : sequence of str
        Names of the rows' layers.
    save_stats : bool
        Whether statistics of the features are stored next to the cache.
    find_neighbours : callable
        `classify.solvers.neighbours.find_neighbours`, or one that stores its result.
    loss_tol : float
        As in `classify.solvers.selection.select_param`, for heads whose param is chosen along a
        path.
    """

    kind: str
    rows: FeatureRows
    values: np.ndarray
    n_grades: int | None
    fold_plan: FoldPlan
    cache: FeatureCache | None = None
    layers: Sequence[str] = ()
    save_stats: bool = True
    find_neighbours: Callable[[FeatureRows, FoldPlan], list[np.ndarray]] = (
        neighbours.find_neighbours
    )
    loss_tol: float = 0.0

    @property
    def final_indices(self) -> np.ndarray:
        """Positions that the final head is trained on."""
        return self.fold_plan.final_indices

    @property
    def targets(self) -> np.ndarray:
        """What a regression learns: float64 (n, T). Of several labels 1 and -1, else `values`."""
        return self.values * 2 - 1 if self.kind == MULTI else self.values

    @property
    def filled_targets(self) -> np.ndarray:
        """`targets` with the mean of the known ones in place of those that are not known."""
        targets = self.targets
        if not np.isnan(targets).any():
            return targets
        return np.where(np.isnan(targets), np.nanmean(targets, axis=0), targets)

    def compute_bases(self) -> list[PrincipalBasis]:
        """Compute, or load, the principal basis of each fold's training rows and of the final rows.

        Returns
        -------
        list of PrincipalBasis

        Raises
        ------
        CallError
            If the features are too wide.
        """
        return compute_fold_bases(
            self.cache, self.layers, self.rows, self.fold_plan, save_stats=self.save_stats
        )

    def check_memory(self, spec: TargetHeadSpec) -> None:
        """Refuse heads that would need more memory than solvers may take.

        Parameters
        ----------
        spec : TargetHeadSpec

        Raises
        ------
        CallError
            If the solver cannot hold so many labels and columns.
        """
        n_outputs = self.values.shape[1] if self.n_grades is None else self.n_grades
        if spec.name in ("softmax", "linear-svm", "ordinal"):
            lbfgs.check_solver_memory(n_outputs, self.rows.dim, min(len(self.rows), self.rows.dim))

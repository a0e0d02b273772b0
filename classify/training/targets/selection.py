"""Select the param of a head for labels that are not one class, by held-out loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from scipy.special import log_softmax

from classify.data.features import FeatureRows
from classify.errors import CallError
from classify.heads.models import LinearModel, SklearnModel
from classify.heads.targets.models import EstimatorModel
from classify.heads.targets.registry import (
    KNN,
    LINEAR_SVM,
    ORDINAL,
    TargetHeadSpec,
)
from classify.kinds import GRADE, MULTI
from classify.solvers.selection import SelectedParam, select_param
from classify.training.targets.target_set import TargetSet
from classify.training.train import GRID_EDGE
from classify.training.training_set import MAX_IN_MEMORY_BYTES, fits_in_memory

Model = LinearModel | EstimatorModel | SklearnModel


@dataclass(frozen=True, eq=False)
class TrainedTargets:
    """A trained head, and the selection of its param.

    Attributes
    ----------
    model : LinearModel, EstimatorModel or SklearnModel
        From features to outputs: one for each label; one for a number or a grade, or one for each
        of the grades in `grades`.
    settings : dict of str to float
        The selected params by name.
    held_out : int array of shape (m,)
        Positions of the validated rows.
    outputs : float array of shape (m, T), or None
        Outputs for them, each from the fold that was not trained on it: as of `model`, but log
        probabilities of all grades where the model has `cutpoints`. None where nothing could be
        held out.
    loss : float
        Held-out loss of the selected param, to compare preparations by; infinite without one.
    cutpoints : float64 array of shape (G - 1,), or None
        Grades: a grade is as many as there are cutpoints below the model's one output. None where
        grades are learnt as numbers, whose cutpoints are the halves, or as classes.
    grades : int array of shape (K,), or None
        Grades learnt as classes: the grade of each output.
    notices : list of str
        Messages for the user.
    """

    model: Model
    settings: dict[str, float]
    held_out: np.ndarray
    outputs: np.ndarray | None
    loss: float
    cutpoints: np.ndarray | None = None
    grades: np.ndarray | None = None
    notices: list[str] = field(default_factory=list)


def select_by_loss(target_set: TargetSet, spec: TargetHeadSpec, points: Any) -> SelectedParam:
    """Select the param of a path by the mean loss of held-out rows.

    Parameters
    ----------
    target_set : TargetSet
    spec : TargetHeadSpec
    points : iterable of PathPoint
        From strong to weak regularisation.

    Returns
    -------
    SelectedParam
    """
    truth = target_set.values[target_set.fold_plan.held_out]
    loss = partial(_compute_loss, target_set.kind, spec.name)
    return select_param(points, truth, spec.name, loss, target_set.loss_tol)


def _compute_loss(kind: str, head: str, outputs: np.ndarray, truth: np.ndarray) -> float:
    """Compute the mean loss: log loss or squared hinge of labels and grades, else squared error."""
    outputs = outputs.astype(np.float64)
    if kind == MULTI:
        if head == KNN:  # means of 1 and -1
            return float(np.nanmean((outputs - (truth * 2 - 1)) ** 2))
        wrong = np.where(truth > 0, -outputs, outputs)
        losses = np.maximum(0, 1 + wrong) ** 2 if head == LINEAR_SVM else np.logaddexp(0, wrong)
        return float(np.nanmean(np.where(np.isnan(truth), np.nan, losses)))
    if kind == GRADE and head == ORDINAL:
        log_proba = log_softmax(outputs, axis=1)
        return float(-log_proba[np.arange(len(truth)), truth[:, 0].astype(np.intp)].mean())
    return float(((outputs - truth) ** 2).mean())


def pick_middle(grid: Sequence[float]) -> float:
    """Return the param of a head that nothing was held out for.

    Parameters
    ----------
    grid : sequence of float

    Returns
    -------
    float
        The middle of the grid.
    """
    return grid[len(grid) // 2]


def note_edge(spec: TargetHeadSpec, best: int) -> list[str]:
    """Note where the last param of a grid was the best.

    Parameters
    ----------
    spec : TargetHeadSpec
    best : int
        Position in the grid.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    if len(spec.grid) > 1 and best == len(spec.grid) - 1:
        return [f"{spec.param_name} = {spec.grid[best]:g} {GRID_EDGE}"]
    return []


def note_selected(spec: TargetHeadSpec, selected: SelectedParam) -> list[str]:
    """Note what a user should know of a selection.

    Parameters
    ----------
    spec : TargetHeadSpec
    selected : SelectedParam

    Returns
    -------
    list of str
        Params that did not converge, and the end of the grid.
    """
    notices = []
    if selected.unconverged:
        notices.append(f"{len(selected.unconverged)} settings left out: a fit did not converge")
    if selected.is_at_grid_edge:
        notices.append(f"{spec.param_name} = {selected.param:g} {GRID_EDGE}")
    return notices


def check_size(spec: TargetHeadSpec, rows: FeatureRows) -> None:
    """Refuse features that a head would have to copy, and that are too large for it.

    Parameters
    ----------
    spec : TargetHeadSpec
    rows : FeatureRows

    Raises
    ------
    CallError
        If they are over 1 GB.
    """
    if not fits_in_memory(rows.nbytes):
        raise CallError(
            f"{spec.name} needs a copy of all features, and {len(rows):,} rows of {rows.dim:,} are "
            f"over {MAX_IN_MEMORY_BYTES >> 30} GB; use ridge"
        )

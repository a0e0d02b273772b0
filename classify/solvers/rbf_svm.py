"""Support vectors of the exact radial basis kernel, by scikit-learn's `SVC` (libsvm)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics import euclidean_distances
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC, LinearSVC

from classify.data.features import FeatureRows
from classify.data.folds import Folds
from classify.heads.models import LinearModel, SklearnModel, expand_to_all_classes, to_two_columns
from classify.heads.registry import ClassWeight
from classify.solvers.selection import PathPoint
from classify.solvers.sklearn_heads import fit_and_scale, fit_converged

MAX_LANDMARKS = 1000  # twice as many were no better on CIFAR-10, and five times as slow to map

MAX_SCALING_ROWS = 20_000  # rows whose statistics scale the features

MAX_EXACT_ROWS = (
    10_000  # of which all similarities are held at once: 800 MB, and as much beside them
)
MAX_EXACT_CLASSES = 100  # there is a machine for every two of them
MAX_SVC_ITER = 1_000_000  # of one machine; what takes more does not converge


def compute_gamma_scale(X: np.ndarray) -> float:
    """What scikit-learn calls gamma = ``scale``: 1 / (D times the variance), of scaled features."""
    variance = float(X.var(dtype=np.float64))
    return 1 / (X.shape[1] * variance) if variance > 0 else 1.0


def cross_val_paths(
    grid: Sequence[float | None],
    gamma_factors: Sequence[float],
    X: np.ndarray,
    y: np.ndarray,
    folds: Folds,
    n_classes: int,
    class_weight: ClassWeight,
    *,
    global_scale: bool = False,
) -> list[list[PathPoint]]:
    """The held-out scores of every C with every width of the kernel.

    Distances are computed once for a fold and serve all of its machines. Folds come one by one,
    because the similarities of one are all that should lie in memory.

    Parameters
    ----------
    grid : sequence of float
        Values of C.
    widths : sequence of float
        Values of gamma, as multiples of `compute_gamma_scale`.
    X : float32 array of shape (n, D)
    y : int array of shape (n,)
    folds : sequence of (train, held out)
        Positions.
    n_classes : int
    weight : dict of int to float, or None
        The class weight.
    global_scale : bool
        As in `classify.scaling.fit_and_scale`.

    Returns
    -------
    list of lists of Step
        For each width one for each C; scores in the order of the folds.
    """
    scores: list[list[list[np.ndarray]]] = [[[] for _ in grid] for _ in gamma_factors]
    converged = np.ones((len(gamma_factors), len(grid)), bool)
    for train, held in folds:
        scaler, Z = fit_and_scale(X[train], global_scale=global_scale)
        gamma = compute_gamma_scale(Z)
        Z = Z.astype(np.float64)
        within = euclidean_distances(Z, squared=True)
        across = euclidean_distances(scaler.transform(X[held]).astype(np.float64), Z, squared=True)
        similar, other = np.empty_like(within), np.empty_like(across)
        for i, times in enumerate(gamma_factors):
            for distances, found in ((within, similar), (across, other)):
                np.exp(np.multiply(distances, -times * gamma, out=found), out=found)
            for j, C in enumerate(grid):
                model = _make_svc(C, class_weight, kernel="precomputed")
                converged[i, j] &= fit_converged(model, similar, y[train])
                decided = to_two_columns(model.decision_function(other))
                scores[i][j].append(expand_to_all_classes(decided, model.classes_, n_classes))
    return [
        [
            PathPoint(C, np.concatenate(scores[i][j]), bool(converged[i, j]))
            for j, C in enumerate(grid)
        ]
        for i in range(len(gamma_factors))
    ]


def fit_exact_svm(
    C: float | None,
    gamma_factor: float,
    X: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    class_weight: ClassWeight,
    *,
    global_scale: bool = False,
) -> tuple[SklearnModel, float, bool]:
    """Fit once.

    Parameters
    ----------
    C : float
    times : float
        Gamma, as a multiple of `compute_gamma_scale`.
    X : float32 array of shape (n, D)
        Scaled in place: give a copy.
    y : int array of shape (n,)
    n_classes : int
    weight : dict of int to float, or None
    global_scale : bool

    Returns
    -------
    SklearnModel
    float
        Gamma, as scikit-learn has it.
    bool
        Whether it converged.
    """
    scaler, Z = fit_and_scale(X, global_scale=global_scale)
    gamma = gamma_factor * compute_gamma_scale(Z)
    model = _make_svc(C, class_weight, gamma=gamma)
    fine = fit_converged(model, Z, y)
    pipeline = Pipeline([("scale", scaler), ("classify", model)])
    return SklearnModel(pipeline, X.shape[1], n_classes), gamma, fine


def _make_svc(C: float | None, class_weight: ClassWeight, **kernel: object) -> SVC:
    # With ties broken, what it predicts is the greatest of its scores.
    return SVC(
        C=C or 1.0, class_weight=class_weight, max_iter=MAX_SVC_ITER, break_ties=True, **kernel
    )


@dataclass(frozen=True, eq=False)
class KernelRows(FeatureRows):
    """Rows seen through a kernel map, block by block: D is the number of landmarks."""

    kernel: Any = None

    @property
    def dim(self) -> int:
        """How many landmarks there are."""
        return len(self.kernel[-1].components_)

    def subset(self, positions: np.ndarray) -> "KernelRows":
        """Some of them."""
        return replace(self, rows=self.rows[positions])

    def to_array(self) -> np.ndarray:
        """A copy of them all."""
        return np.concatenate([block for _, block in self.iter_blocks()])

    def iter_blocks(self, n_outputs: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of similarities, float32 (m, D)."""
        for where, block in FeatureRows(self.parts, self.rows, self.is_root_l2).iter_blocks(
            max(n_outputs, self.dim)
        ):
            # float64 inside: the map divides by numbers down to 1e-6.
            yield where, self.kernel.transform(block.astype(np.float64)).astype(np.float32)


def fit_rbf_map(rows: FeatureRows, gamma_factor: float, seed: int = 0) -> Pipeline:
    """A radial basis kernel on scaled features, approximated by some of the rows.

    Williams & Seeger (2001), "Using the Nystroem method to speed up kernel machines", NIPS.

    Parameters
    ----------
    rows : FeatureRows
        Training rows; landmarks and statistics come from at most `MAX_SCALING_ROWS` of them.
    gamma_factor : float
        Gamma, as a multiple of `classify.solvers.rbf_svm.compute_gamma_scale`.

    Returns
    -------
    Pipeline
        Fitted; from (n, D) to (n, at most `MAX_LANDMARKS`).
    """
    some = np.random.default_rng(seed).permutation(len(rows))[:MAX_SCALING_ROWS]
    X = rows.subset(np.sort(some)).to_array().astype(np.float64)
    scaler, Z = fit_and_scale(X, global_scale=rows.is_root_l2)
    count = min(MAX_LANDMARKS, len(Z))
    kernel = Nystroem(
        gamma=gamma_factor * compute_gamma_scale(Z), n_components=count, random_state=seed
    ).fit(Z)
    return make_pipeline(scaler, kernel)


def to_sklearn_model(kernel: Pipeline, linear: LinearModel, n_classes: int) -> SklearnModel:
    """A kernel and what was learnt on it as one scikit-learn pipeline."""
    weights = linear.coef / linear.scale
    shift = linear.intercept - weights @ linear.mean
    if n_classes == 2:
        weights, shift = weights[1:] - weights[:1], shift[1:] - shift[:1]
    svm = LinearSVC()
    svm.classes_, svm.coef_, svm.intercept_ = np.arange(n_classes), weights, shift
    svm.n_features_in_ = weights.shape[1]
    steps = [*kernel.steps, ("svm", svm)]
    return SklearnModel(Pipeline(steps), kernel.n_features_in_, n_classes)

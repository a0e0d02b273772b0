"""Support vectors of the exact radial basis kernel, by scikit-learn's `SVC` (libsvm)."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import euclidean_distances
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from classify.solvers.selection import PathPoint
from classify.solvers.sklearn_heads import fit_converged
from classify.heads.registry import ClassWeight
from classify.scaling import fit_and_scale
from classify.heads.models import SklearnModel, expand_to_all_classes, to_two_columns
from classify.data.splits import Folds

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
    Fitted
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

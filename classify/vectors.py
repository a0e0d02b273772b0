"""Support vectors of the exact radial basis kernel, by scikit-learn's `SVC` (libsvm)."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import euclidean_distances
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from classify.choice import Step
from classify.delegated import converges
from classify.heads import ClassWeight
from classify.scaling import scaled
from classify.scorers import Fitted, spread, two_columns
from classify.splits import Folds

MOST_ROWS = 10_000  # of which all similarities are held at once: 800 MB, and as much beside them
MOST_CLASSES = 100  # there is a machine for every two of them
MAX_STEPS = 1_000_000  # of one machine; what takes more does not converge


def width(X: np.ndarray) -> float:
    """What scikit-learn calls gamma = ``scale``: 1 / (D times the variance), of scaled features."""
    variance = float(X.var(dtype=np.float64))
    return 1 / (X.shape[1] * variance) if variance > 0 else 1.0


def held_out(
    grid: Sequence[float | None],
    widths: Sequence[float],
    X: np.ndarray,
    y: np.ndarray,
    folds: Folds,
    n_classes: int,
    weight: ClassWeight,
    *,
    whole: bool = False,
) -> list[list[Step]]:
    """The held-out scores of every C with every width of the kernel.

    Distances are computed once for a fold and serve all of its machines. Folds come one by one,
    because the similarities of one are all that should lie in memory.

    Parameters
    ----------
    grid : sequence of float
        Values of C.
    widths : sequence of float
        Values of gamma, as multiples of `width`.
    X : float32 array of shape (n, D)
    y : int array of shape (n,)
    folds : sequence of (train, held out)
        Positions.
    n_classes : int
    weight : dict of int to float, or None
        The class weight.
    whole : bool
        As in `classify.scaling.scaled`.

    Returns
    -------
    list of lists of Step
        For each width one for each C; scores in the order of the folds.
    """
    scores: list[list[list[np.ndarray]]] = [[[] for _ in grid] for _ in widths]
    converged = np.ones((len(widths), len(grid)), bool)
    for train, held in folds:
        scaler, Z = scaled(X[train], whole=whole)
        gamma = width(Z)
        Z = Z.astype(np.float64)
        within = euclidean_distances(Z, squared=True)
        across = euclidean_distances(scaler.transform(X[held]).astype(np.float64), Z, squared=True)
        similar, other = np.empty_like(within), np.empty_like(across)
        for i, times in enumerate(widths):
            for distances, found in ((within, similar), (across, other)):
                np.exp(np.multiply(distances, -times * gamma, out=found), out=found)
            for j, C in enumerate(grid):
                model = _machine(C, weight, kernel="precomputed")
                converged[i, j] &= converges(model, similar, y[train])
                decided = two_columns(model.decision_function(other))
                scores[i][j].append(spread(decided, model.classes_, n_classes))
    return [
        [Step(C, np.concatenate(scores[i][j]), bool(converged[i, j])) for j, C in enumerate(grid)]
        for i in range(len(widths))
    ]


def fit(
    C: float | None,
    times: float,
    X: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    weight: ClassWeight,
    *,
    whole: bool = False,
) -> tuple[Fitted, float, bool]:
    """Fit once.

    Parameters
    ----------
    C : float
    times : float
        Gamma, as a multiple of `width`.
    X : float32 array of shape (n, D)
        Scaled in place: give a copy.
    y : int array of shape (n,)
    n_classes : int
    weight : dict of int to float, or None
    whole : bool

    Returns
    -------
    Fitted
    float
        Gamma, as scikit-learn has it.
    bool
        Whether it converged.
    """
    scaler, Z = scaled(X, whole=whole)
    gamma = times * width(Z)
    model = _machine(C, weight, gamma=gamma)
    fine = converges(model, Z, y)
    pipeline = Pipeline([("scale", scaler), ("classify", model)])
    return Fitted(pipeline, X.shape[1], n_classes), gamma, fine


def _machine(C: float | None, weight: ClassWeight, **kernel: object) -> SVC:
    # With ties broken, what it predicts is the greatest of its scores.
    return SVC(C=C or 1.0, class_weight=weight, max_iter=MAX_STEPS, break_ties=True, **kernel)

"""SVMs with an RBF kernel: exact, by scikit-learn's `SVC` (libsvm), or by a Nystroem map."""

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

MAX_EXACT_ROWS = 10_000  # their distances and their kernel matrix take 800 MB each

MAX_EXACT_CLASSES = 100  # an SVM is fitted for every pair of classes

MAX_SVC_ITER = 1_000_000  # of one pair; a fit that takes more does not converge


def compute_gamma_scale(X: np.ndarray) -> float:
    """Compute the gamma of scikit-learn's ``scale``: 1 / (D times the variance).

    Parameters
    ----------
    X : float array of shape (n, D)
        Scaled features.

    Returns
    -------
    float
        1 if the variance is 0.
    """
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
    """Compute held-out decision values of every C with every gamma.

    Distances are computed once per fold for all its SVMs. Folds are processed one by one, so that
    only one kernel matrix is in memory.

    Parameters
    ----------
    grid : sequence of float
        Values of C.
    gamma_factors : sequence of float
        Values of gamma, as multiples of `compute_gamma_scale`.
    X : float32 array of shape (n, D)
        Prepared features.
    y : int array of shape (n,)
        Class numbers below `n_classes`.
    folds : sequence of (train, held out)
        Positions among the n rows.
    n_classes : int
        K.
    class_weight : dict of int to float, or None
        Weights by class number.
    global_scale : bool, default False
        As in `classify.solvers.sklearn_heads.fit_and_scale`.

    Returns
    -------
    list of lists of PathPoint
        For each gamma a list with a point for each C; decision values in the order of the folds.
    """
    values: list[list[list[np.ndarray]]] = [[[] for _ in grid] for _ in gamma_factors]
    converged = np.ones((len(gamma_factors), len(grid)), bool)
    for train, held_out in folds:
        scaler, Z = fit_and_scale(X[train], global_scale=global_scale)
        gamma = compute_gamma_scale(Z)
        Z = Z.astype(np.float64)
        train_distances = euclidean_distances(Z, squared=True)
        held_out_distances = euclidean_distances(
            scaler.transform(X[held_out]).astype(np.float64), Z, squared=True
        )
        train_kernel, held_out_kernel = (
            np.empty_like(train_distances),
            np.empty_like(held_out_distances),
        )
        for i, gamma_factor in enumerate(gamma_factors):
            for distances, kernel in (
                (train_distances, train_kernel),
                (held_out_distances, held_out_kernel),
            ):
                np.exp(np.multiply(distances, -gamma_factor * gamma, out=kernel), out=kernel)
            for j, C in enumerate(grid):
                model = _make_svc(C, class_weight, kernel="precomputed")
                converged[i, j] &= fit_converged(model, train_kernel, y[train])
                fold_values = to_two_columns(model.decision_function(held_out_kernel))
                values[i][j].append(expand_to_all_classes(fold_values, model.classes_, n_classes))
    return [
        [
            PathPoint(C, np.concatenate(values[i][j]), bool(converged[i, j]))
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
    """Fit an SVM with the exact RBF kernel.

    Parameters
    ----------
    C : float, or None
        Inverse strength of the penalty; None is 1.
    gamma_factor : float
        Gamma, as a multiple of `compute_gamma_scale`.
    X : float32 array of shape (n, D)
        Scaled in place: give a copy.
    y : int array of shape (n,)
        Class numbers below `n_classes`.
    n_classes : int
        K.
    class_weight : dict of int to float, or None
        Weights by class number.
    global_scale : bool, default False
        As in `classify.solvers.sklearn_heads.fit_and_scale`.

    Returns
    -------
    SklearnModel
        The scaler and the SVM.
    float
        Gamma as scikit-learn takes it.
    bool
        Whether the fit converged.
    """
    scaler, Z = fit_and_scale(X, global_scale=global_scale)
    gamma = gamma_factor * compute_gamma_scale(Z)
    model = _make_svc(C, class_weight, gamma=gamma)
    converged = fit_converged(model, Z, y)
    pipeline = Pipeline([("scale", scaler), ("classify", model)])
    return SklearnModel(pipeline, X.shape[1], n_classes), gamma, converged


def _make_svc(C: float | None, class_weight: ClassWeight, **kernel: object) -> SVC:
    # With ties broken, the prediction is the class with the largest decision value.
    return SVC(
        C=C or 1.0, class_weight=class_weight, max_iter=MAX_SVC_ITER, break_ties=True, **kernel
    )


@dataclass(frozen=True, eq=False)
class KernelRows(FeatureRows):
    """Rows mapped by a Nystroem kernel map, block by block.

    Attributes
    ----------
    kernel : Pipeline
        As `fit_rbf_map` returns it.
    """

    kernel: Any = None

    @property
    def dim(self) -> int:
        """Number of landmarks."""
        return len(self.kernel[-1].components_)

    def subset(self, positions: np.ndarray) -> "KernelRows":
        """Select rows.

        Parameters
        ----------
        positions : int array of shape (m,)
            Positions among the rows.

        Returns
        -------
        KernelRows
            m rows.
        """
        return replace(self, rows=self.rows[positions])

    def to_array(self) -> np.ndarray:
        """Compute the kernel map of all rows.

        Returns
        -------
        float32 array of shape (n, D)
            D is the number of landmarks.
        """
        return np.concatenate([block for _, block in self.iter_blocks()])

    def iter_blocks(self, n_outputs: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield blocks of mapped rows.

        Parameters
        ----------
        n_outputs : int, default 0
            Number of values computed from each row, which limits the size of a block.

        Yields
        ------
        slice
            Positions of the block among the rows.
        float32 array of shape (m, D)
            D is the number of landmarks.
        """
        for positions, block in FeatureRows(self.parts, self.rows, self.is_root_l2).iter_blocks(
            max(n_outputs, self.dim)
        ):
            # float64 inside: the map divides by numbers down to 1e-6.
            yield positions, self.kernel.transform(block.astype(np.float64)).astype(np.float32)


def fit_rbf_map(rows: FeatureRows, gamma_factor: float, seed: int = 0) -> Pipeline:
    """Fit a Nystroem approximation of an RBF kernel on scaled features.

    Williams & Seeger (2001), "Using the Nystroem method to speed up kernel machines", NIPS.

    Parameters
    ----------
    rows : FeatureRows
        Training rows; landmarks and statistics come from at most `MAX_SCALING_ROWS` of them.
    gamma_factor : float
        Gamma, as a multiple of `compute_gamma_scale`.
    seed : int, default 0
        Seed of the draw of landmarks.

    Returns
    -------
    Pipeline
        Fitted; maps (n, D) to (n, at most `MAX_LANDMARKS`).
    """
    sample = np.random.default_rng(seed).permutation(len(rows))[:MAX_SCALING_ROWS]
    X = rows.subset(np.sort(sample)).to_array().astype(np.float64)
    scaler, Z = fit_and_scale(X, global_scale=rows.is_root_l2)
    count = min(MAX_LANDMARKS, len(Z))
    kernel = Nystroem(
        gamma=gamma_factor * compute_gamma_scale(Z), n_components=count, random_state=seed
    ).fit(Z)
    return make_pipeline(scaler, kernel)


def to_sklearn_model(kernel: Pipeline, linear: LinearModel, n_classes: int) -> SklearnModel:
    """Join a kernel map and a linear model into one scikit-learn pipeline.

    Parameters
    ----------
    kernel : Pipeline
        As `fit_rbf_map` returns it.
    linear : LinearModel
        Fitted on mapped rows.
    n_classes : int
        K.

    Returns
    -------
    SklearnModel
        It takes features before the map.
    """
    coef = linear.coef / linear.scale
    intercept = linear.intercept - coef @ linear.mean
    if n_classes == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    svm = LinearSVC()
    svm.classes_, svm.coef_, svm.intercept_ = np.arange(n_classes), coef, intercept
    svm.n_features_in_ = coef.shape[1]
    steps = [*kernel.steps, ("svm", svm)]
    return SklearnModel(Pipeline(steps), kernel.n_features_in_, n_classes)

"""Closed-form heads: ridge, LDA and nearest class mean, from class sums and a principal basis."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan
from classify.errors import CallError
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE
from classify.heads.models import LinearModel
from classify.solvers.gram import MAX_SOLVER_BYTES, PrincipalBasis, sum_parts
from classify.solvers.selection import PathPoint

MAX_VALUE_COLUMNS = 512  # of decision values for several params in one matrix product
MAX_VALUES_IN_MEMORY = 16_000_000  # decision values, 64 MB


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums of the features of each class, for each of P parts of some rows.

    Attributes
    ----------
    count : float64 array of shape (P, K)
        Number of rows of each class, or the sum of their weights.
    total : float64 array of shape (P, K, D)
        Weighted sum of their features.
    """

    count: np.ndarray
    total: np.ndarray

    def sum_without(self, exclude: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Sum over all parts, or over all but one, without subtraction.

        Parameters
        ----------
        exclude : int, optional
            Part to leave out.

        Returns
        -------
        count : float64 array of shape (K,)
            Number of rows of each class, or the sum of their weights.
        total : float64 array of shape (K, D)
            Weighted sum of their features.
        """
        return sum_parts(self.count, exclude), sum_parts(self.total, exclude)


@dataclass(frozen=True, eq=False)
class FoldClassSums(ClassSums):
    """Class sums of each fold's training rows, then of the final rows, for folds without parts."""

    def sum_without(self, exclude: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of a fold's training rows, or of the final rows.

        Parameters
        ----------
        exclude : int, optional
            Number of the fold.

        Returns
        -------
        count : float64 array of shape (K,)
            As in `ClassSums.sum_without`.
        total : float64 array of shape (K, D)
            As in `ClassSums.sum_without`.
        """
        index = -1 if exclude is None else exclude
        return self.count[index], self.total[index]


def sum_classes_for_folds(
    rows: FeatureRows,
    y: np.ndarray,
    n_classes: int,
    fold_plan: FoldPlan,
    weights: np.ndarray | None = None,
) -> ClassSums:
    """Sum the features of each class for all training sets of a fold plan.

    Parameters
    ----------
    rows, y, n_classes, weights
        As in `sum_classes`.
    fold_plan : FoldPlan
        Folds of these rows.

    Returns
    -------
    ClassSums
        ``sum_without(i)`` gives the sums of fold i's training rows.

    Raises
    ------
    CallError
        If the sums would not fit into memory.
    """
    if fold_plan.train_indices is None:
        n_parts = int(fold_plan.part.max()) + 1
        return sum_classes(rows, y, n_classes, fold_plan.part, n_parts, weights)
    fold_sums = [
        sum_classes(rows.subset(train), y[train], n_classes, weights=_take_weights(weights, train))
        for train in [*fold_plan.train_indices, fold_plan.final_indices]
    ]
    return FoldClassSums(
        np.concatenate([sums.count for sums in fold_sums]),
        np.concatenate([sums.total for sums in fold_sums]),
    )


def _take_weights(weights: np.ndarray | None, positions: np.ndarray) -> np.ndarray | None:
    return None if weights is None else weights[positions]


def sum_classes(
    rows: FeatureRows,
    y: np.ndarray,
    n_classes: int,
    part: np.ndarray | None = None,
    n_parts: int = 1,
    weights: np.ndarray | None = None,
) -> ClassSums:
    """Sum the features of each class in each of P parts, in one pass.

    Parameters
    ----------
    rows : FeatureRows
        n rows.
    y : int array of shape (n,)
        Class numbers below `n_classes`; -1 for a row to leave out.
    n_classes : int
        K.
    part : int array of shape (n,), optional
        Part of each row, from 0; a single part if not given.
    n_parts : int, default 1
        P.
    weights : float array of shape (n,), optional
        Weight of each row; 1 if not given.

    Returns
    -------
    ClassSums
        The sums of each part.

    Raises
    ------
    CallError
        If the sums would not fit into memory.
    """
    needed = 8 * (n_parts + 2) * n_classes * rows.dim
    if needed > MAX_SOLVER_BYTES:
        raise CallError(
            f"{n_classes:,} classes of {rows.dim:,} columns are too many for ridge, lda and ncm: "
            f"their sums would need {needed:,} bytes; use fewer layers, or a pool that is not "
            "`none`"
        )
    n_cells = n_parts * n_classes
    count, total = np.zeros(n_cells), np.zeros((n_cells, rows.dim))
    cell = np.where(y < 0, -1, (0 if part is None else part.astype(np.intp) * n_classes) + y)
    for positions, block in rows.iter_blocks():
        labelled = np.flatnonzero(cell[positions] >= 0)
        used_cells, cell_index = np.unique(cell[positions][labelled], return_inverse=True)
        row_weights = np.ones(len(labelled)) if weights is None else weights[positions][labelled]
        # Sparse, as each row belongs to one class of one part.
        membership = csr_array(
            (row_weights, (cell_index, labelled)), shape=(len(used_cells), len(block))
        )
        total[used_cells] += membership @ block.astype(np.float64)
        count[used_cells] += membership.sum(axis=1)
    return ClassSums(count.reshape(n_parts, n_classes), total.reshape(n_parts, n_classes, rows.dim))


def fit_closed_form(
    head_name: str,
    basis: PrincipalBasis,
    sums: tuple[np.ndarray, np.ndarray],
    params: Sequence[float | None],
    class_weights: np.ndarray | None = None,
) -> list[LinearModel]:
    """Fit one head for several params.

    Parameters
    ----------
    head_name : str
        ``ridge``: least squares to targets of 1 and -1, with `params` the alpha of scikit-learn's
        `RidgeClassifier`. ``lda``: linear discriminants with the pooled covariance S shrunk to
        (1 - g) S + g tr(S)/D I, `params` being g: Friedman (1989), "Regularized discriminant
        analysis", JASA 84. ``ncm``: the nearest class mean, without a param.
    basis : PrincipalBasis
        Basis of the training rows.
    sums : float64 arrays of shape (K,) and (K, D)
        Number of training rows of each class, and the sum of their features.
    params : sequence of float, or of None
        Values of the param.
    class_weights : float array of shape (K,), optional
        Factors of the priors of ``lda``. For ``ridge`` the basis and the sums are weighted instead.

    Returns
    -------
    list of LinearModel
        A model for each of `params`.
    """
    count, total = sums
    present = count > 0
    means = total - count[:, None] * basis.mean
    means /= np.maximum(count, 1e-300)[:, None]
    means /= basis.scale
    projected_means = basis.vectors.T @ means.T  # (R, K)
    share = count / basis.count
    models = []
    for param in params:
        if head_name == "ridge":
            coef = 2 * projected_means * count / (basis.values + param)[:, None]
            intercept = 2 * share - 1
        elif head_name == "lda":
            prior = share if class_weights is None else share * class_weights
            prior = prior / prior.sum()
            coef = _solve_discriminants(basis, projected_means, share, float(param or 0))
            intercept = -0.5 * (projected_means * coef).sum(axis=0) + np.log(
                np.maximum(prior, 1e-300)
            )
        else:
            coef, intercept = projected_means, -0.5 * (projected_means**2).sum(axis=0)
        if head_name != "ridge":
            intercept = np.where(present, intercept, UNSEEN_CLASS_SCORE)
        weights = (basis.vectors @ coef).T
        models.append(LinearModel(basis.mean, basis.scale, weights, intercept))
    return models


def _solve_discriminants(
    basis: PrincipalBasis, projected_means: np.ndarray, share: np.ndarray, shrinkage: float
) -> np.ndarray:
    """Multiply the class means by the inverse of the shrunk pooled covariance: (R, K).

    The pooled covariance is the total covariance, which is diagonal here, minus that of the K class
    means. With fewer classes than directions the system is K by K, by Woodbury's identity; else it
    is R by R. If no class has two different images the pooled covariance is zero, and the result is
    the nearest class mean.
    """
    dim = len(basis.mean)
    between = projected_means * np.sqrt(share)  # (R, K)
    total_variance = basis.values.sum() / basis.count
    trace = (total_variance - (between**2).sum()) / dim
    if trace * dim <= 1e-9 * total_variance:  # one image per class: the rest is rounding
        return projected_means
    retained = 1 - shrinkage
    diagonal = retained * basis.values / basis.count + shrinkage * max(trace, 1e-12)
    if retained > 0 and len(share) > len(diagonal):
        pooled = np.diag(diagonal) - retained * between @ between.T
        return np.asarray(np.linalg.solve(pooled, projected_means))
    direct = projected_means / diagonal[:, None]
    if retained == 0:
        return np.asarray(direct)
    scaled_between = between / diagonal[:, None]
    system = np.eye(len(share)) / retained - between.T @ scaled_between
    return np.asarray(direct + scaled_between @ np.linalg.solve(system, between.T @ direct))


def cross_val_path(
    head_name: str,
    grid: Sequence[float | None],
    rows: FeatureRows,
    folds: Sequence[tuple[PrincipalBasis, np.ndarray]],
    sums: ClassSums,
    class_weights: np.ndarray | None = None,
) -> Iterator[PathPoint]:
    """Compute held-out decision values along a grid, for several params in one pass.

    Parameters
    ----------
    head_name, grid, class_weights
        As in `fit_closed_form`; `grid` has the params.
    rows : FeatureRows
        n rows.
    folds : sequence of (PrincipalBasis, int array)
        Basis of the training rows, and positions of the held-out rows.
    sums : ClassSums
        ``sum_without(i)`` gives the sums of fold i's training rows.

    Yields
    ------
    PathPoint
        Decision values in the order of the folds.
    """
    n_classes = sums.count.shape[1]
    n_held_out = sum(len(held_out) for _, held_out in folds)

    def compute_held_out(params: Sequence[float | None]) -> np.ndarray:
        """Compute decision values for several params: float32 (n_params, n_held_out, K)."""
        values = np.empty((len(params), n_held_out, n_classes), np.float32)
        begin = 0
        for i, (basis, held_out) in enumerate(folds):
            models = fit_closed_form(head_name, basis, sums.sum_without(i), params, class_weights)
            stacked = LinearModel(
                basis.mean,
                basis.scale,
                np.concatenate([model.coef for model in models]),
                np.concatenate([model.intercept for model in models]),
            )
            for positions, block in rows.subset(held_out).iter_blocks(n_classes * len(params)):
                block_values = stacked.decision_values(block, np.float32)
                block_values = block_values.reshape(len(block), len(params), n_classes)
                values[:, begin + positions.start : begin + positions.stop] = block_values.swapaxes(
                    0, 1
                )
            begin += len(held_out)
        return values

    def make_point(param: float | None) -> PathPoint:
        def recompute() -> np.ndarray:
            return np.asarray(compute_held_out([param])[0])

        return PathPoint(param, recompute(), recompute=recompute)

    size = max(1, min(MAX_VALUE_COLUMNS, MAX_VALUES_IN_MEMORY // max(n_held_out, 1)) // n_classes)
    if size == 1:  # too many to hold for several params: those of the selected one are recomputed
        yield from map(make_point, grid)
        return
    for start in range(0, len(grid), size):
        params = grid[start : start + size]
        yield from (PathPoint(*pair) for pair in zip(params, compute_held_out(params), strict=True))

"""Heads with a closed form: ridge, LDA and nearest class mean, from class sums and a spectrum."""

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

MAX_VALUE_COLUMNS = 512  # of scores at once: settings side by side make one product of matrices
MAX_VALUES_IN_MEMORY = 16_000_000  # held at once, 64 MB


@dataclass(frozen=True, eq=False)
class ClassSums:
    """All that a task adds to label-free statistics, for each of P parts of some rows.

    Attributes
    ----------
    count : float64 array of shape (P, K)
        Rows of each class, or the sum of their weights.
    total : float64 array of shape (P, K, D)
        The sum of their features.
    """

    count: np.ndarray
    total: np.ndarray

    def sum_without(self, exclude: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Count (K,) and total (K, D) of all parts but one, or of all: nothing is subtracted."""
        return sum_parts(self.count, exclude), sum_parts(self.total, exclude)


@dataclass(frozen=True, eq=False)
class FoldClassSums(ClassSums):
    """The same where folds are not those of parts: of each fold's training rows, then of all."""

    def sum_without(self, exclude: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Count (K,) and total (K, D) of what one fold trains on, or of all rows."""
        which = -1 if exclude is None else exclude
        return self.count[which], self.total[which]


def sum_classes_for_folds(
    rows: FeatureRows,
    y: np.ndarray,
    n_classes: int,
    fold_plan: FoldPlan,
    weights: np.ndarray | None = None,
) -> ClassSums:
    """The class sums that folds ask for: arguments as in `sum_classes`."""
    if fold_plan.train_indices is None:
        n_parts = int(fold_plan.part.max()) + 1
        return sum_classes(rows, y, n_classes, fold_plan.part, n_parts, weights)
    each = [
        sum_classes(rows.subset(some), y[some], n_classes, weights=_take_weights(weights, some))
        for some in [*fold_plan.train_indices, fold_plan.final_indices]
    ]
    return FoldClassSums(
        np.concatenate([sums.count for sums in each]), np.concatenate([sums.total for sums in each])
    )


def _take_weights(weights: np.ndarray | None, some: np.ndarray) -> np.ndarray | None:
    return None if weights is None else weights[some]


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
        n of them.
    y : int array of shape (n,)
        -1 for a row of no class.
    n_classes : int
    part : int array of shape (n,), optional
        All one if not given.
    n_parts : int
    weights : float array of shape (n,), optional

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
    cells = n_parts * n_classes
    count, total = np.zeros(cells), np.zeros((cells, rows.dim))
    cell = np.where(y < 0, -1, (0 if part is None else part.astype(np.intp) * n_classes) + y)
    for where, block in rows.iter_blocks():
        learnt = np.flatnonzero(cell[where] >= 0)
        used, at = np.unique(cell[where][learnt], return_inverse=True)
        each = np.ones(len(learnt)) if weights is None else weights[where][learnt]
        # As many numbers as rows, where a dense matrix would have as many as rows times classes.
        share = csr_array((each, (at, learnt)), shape=(len(used), len(block)))
        total[used] += share @ block.astype(np.float64)
        count[used] += share.sum(axis=1)
    return ClassSums(count.reshape(n_parts, n_classes), total.reshape(n_parts, n_classes, rows.dim))


def fit_closed_form(
    head_name: str,
    basis: PrincipalBasis,
    sums: tuple[np.ndarray, np.ndarray],
    params: Sequence[float | None],
    class_weights: np.ndarray | None = None,
) -> list[LinearModel]:
    """Solve one head for several settings.

    Parameters
    ----------
    kind : str
        ``ridge``: least squares to targets of 1 and -1, with `params` the alpha of scikit-learn's
        `RidgeClassifier`. ``lda``: linear discriminants with the pooled covariance S shrunk to
        (1 - g) S + g tr(S)/D I, `params` being g: Friedman (1989), "Regularized discriminant
        analysis", JASA 84. ``ncm``: the nearest class mean; no setting.
    spectrum : PrincipalBasis
        Of the training rows.
    sums : float64 arrays of shape (K,) and (K, D)
        How many of the same rows each class has, and the sum of their features.
    params : sequence of float
    class_weights : float array of shape (K,), optional
        How much likelier than its share each class is to ``lda``. For ``ridge`` the weights of
        spectrum and sums say so.
    """
    count, total = sums
    present = count > 0
    means = total - count[:, None] * basis.mean
    means /= np.maximum(count, 1e-300)[:, None]
    means /= basis.scale
    within = basis.vectors.T @ means.T  # (R, K): class means along the principal directions
    share = count / basis.count
    found = []
    for setting in params:
        if head_name == "ridge":
            coef = 2 * within * count / (basis.values + setting)[:, None]
            intercept = 2 * share - 1
        elif head_name == "lda":
            prior = share if class_weights is None else share * class_weights
            prior = prior / prior.sum()
            coef = _solve_discriminants(basis, within, share, float(setting or 0))
            intercept = -0.5 * (within * coef).sum(axis=0) + np.log(np.maximum(prior, 1e-300))
        else:
            coef, intercept = within, -0.5 * (within**2).sum(axis=0)
        if head_name != "ridge":
            intercept = np.where(present, intercept, UNSEEN_CLASS_SCORE)
        weights = (basis.vectors @ coef).T
        found.append(LinearModel(basis.mean, basis.scale, weights, intercept))
    return found


def _solve_discriminants(
    basis: PrincipalBasis, within: np.ndarray, share: np.ndarray, shrinkage: float
) -> np.ndarray:
    """The shrunk pooled covariance's inverse times the class means, (R, K).

    The pooled covariance is the total one, diagonal here, less the K class means' own. Of fewer
    classes than directions it is a system of K by K, by Woodbury's identity; else one of R by R.
    Where no class has two different images it is nothing, and the nearest class mean is left.
    """
    dim = len(basis.mean)
    between = within * np.sqrt(share)  # (R, K)
    whole = basis.values.sum() / basis.count
    trace = (whole - (between**2).sum()) / dim
    if trace * dim <= 1e-9 * whole:  # one image of each class: only rounding tells them apart
        return within
    keep = 1 - shrinkage
    diagonal = keep * basis.values / basis.count + shrinkage * max(trace, 1e-12)
    if keep > 0 and len(share) > len(diagonal):
        pooled = np.diag(diagonal) - keep * between @ between.T
        return np.asarray(np.linalg.solve(pooled, within))
    straight = within / diagonal[:, None]
    if keep == 0:
        return np.asarray(straight)
    leaning = between / diagonal[:, None]
    small = np.eye(len(share)) / keep - between.T @ leaning
    return np.asarray(straight + leaning @ np.linalg.solve(small, between.T @ straight))


def cross_val_path(
    head_name: str,
    grid: Sequence[float | None],
    rows: FeatureRows,
    folds: Sequence[tuple[PrincipalBasis, np.ndarray]],
    sums: ClassSums,
    class_weights: np.ndarray | None = None,
) -> Iterator[PathPoint]:
    """Walk a grid: the held-out scores of every fold, several settings in one pass over them.

    Parameters
    ----------
    head_name, grid, class_weights
        As in `fit_closed_form`.
    rows : FeatureRows
        n of them.
    folds : sequence of (PrincipalBasis, int array)
        Of what is trained on, and the positions of what is held out.
    sums : ClassSums
        Fold i is trained on all but part i.

    Yields
    ------
    PathPoint
        Scores in the order of the folds.
    """
    n_classes = sums.count.shape[1]
    n_held = sum(len(held) for _, held in folds)

    def scored(settings: Sequence[float | None]) -> np.ndarray:
        """Of several settings: float32 (number of settings, n_held, K)."""
        scores = np.empty((len(settings), n_held, n_classes), np.float32)
        begin = 0
        for i, (spectrum, held) in enumerate(folds):
            models = fit_closed_form(
                head_name, spectrum, sums.sum_without(i), settings, class_weights
            )
            side_by_side = LinearModel(
                spectrum.mean,
                spectrum.scale,
                np.concatenate([model.coef for model in models]),
                np.concatenate([model.intercept for model in models]),
            )
            for where, block in rows.subset(held).iter_blocks(n_classes * len(settings)):
                found = side_by_side.decision_values(block, np.float32)
                found = found.reshape(len(block), len(settings), n_classes)
                scores[:, begin + where.start : begin + where.stop] = found.swapaxes(0, 1)
            begin += len(held)
        return scores

    def alone(setting: float | None) -> PathPoint:
        def again() -> np.ndarray:
            return np.asarray(scored([setting])[0])

        return PathPoint(setting, again(), recompute=again)

    size = max(1, min(MAX_VALUE_COLUMNS, MAX_VALUES_IN_MEMORY // max(n_held, 1)) // n_classes)
    if size == 1:  # too many to be held for several settings: those of the chosen one come again
        yield from map(alone, grid)
        return
    for start in range(0, len(grid), size):
        settings = grid[start : start + size]
        yield from (PathPoint(*pair) for pair in zip(settings, scored(settings), strict=True))

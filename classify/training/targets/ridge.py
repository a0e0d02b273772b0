"""Ridge regression of any number of targets at once, with its whole path of alphas."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan
from classify.errors import CallError
from classify.heads.models import LinearModel
from classify.solvers.gram import MAX_SOLVER_BYTES, PrincipalBasis, sum_parts

MAX_EXACT_TARGETS = 16
"""Targets up to which products are of float64. Of more, those of a block are of float32, which
changes coefficients in the sixth digit and takes half the time."""


@dataclass(frozen=True, eq=False)
class TargetSums:
    """Sums of targets, and of features times targets, for each of P parts of some rows.

    Attributes
    ----------
    count : float64 array of shape (P,)
        Number of rows.
    y : float64 array of shape (P, T)
        Sum of each target.
    xy : float64 array of shape (P, T, D)
        Sum of the features times each target.
    """

    count: np.ndarray
    y: np.ndarray
    xy: np.ndarray

    @classmethod
    def from_rows(
        cls, rows: FeatureRows, Y: np.ndarray, part: np.ndarray | None = None, n_parts: int = 1
    ) -> "TargetSums":
        """Compute the sums in one pass.

        Parameters
        ----------
        rows : FeatureRows
            n rows.
        Y : float64 array of shape (n, T)
        part : int array of shape (n,), optional
            Part of each row, from 0; a single part if not given.
        n_parts : int, default 1
            P.

        Returns
        -------
        TargetSums

        Raises
        ------
        CallError
            If the sums would not fit into memory.
        """
        n_targets = Y.shape[1]
        needed = 8 * (n_parts + 2) * n_targets * rows.dim
        if needed > MAX_SOLVER_BYTES:
            raise CallError(
                f"{n_targets:,} labels of {rows.dim:,} columns are too many for ridge: their sums "
                f"would need {needed:,} bytes; use fewer layers, or a pool that is not `none`"
            )
        part = np.zeros(len(rows), np.intp) if part is None else part
        is_exact = n_targets <= MAX_EXACT_TARGETS
        y, xy = np.zeros((n_parts, n_targets)), np.zeros((n_parts, n_targets, rows.dim))
        for positions, block in rows.iter_blocks(n_targets):
            for p in np.unique(part[positions]):
                in_part = part[positions] == p
                targets, x = Y[positions][in_part], block[in_part]
                y[p] += targets.sum(axis=0)
                if is_exact:
                    xy[p] += targets.T @ x.astype(np.float64)
                else:
                    xy[p] += targets.astype(np.float32).T @ x
        return cls(np.bincount(part, minlength=n_parts)[:n_parts].astype(float), y, xy)

    def sum_without(self, exclude: int | None = None) -> tuple[float, np.ndarray, np.ndarray]:
        """Sum over all parts, or over all but one, without subtraction.

        Parameters
        ----------
        exclude : int, optional
            Part to leave out.

        Returns
        -------
        count : float
        y : float64 array of shape (T,)
        xy : float64 array of shape (T, D)
        """
        count, y, xy = (sum_parts(array, exclude) for array in (self.count, self.y, self.xy))
        return float(count), y, xy


@dataclass(frozen=True, eq=False)
class RidgeFamily:
    """The ridge regressions of some training rows, for any alpha.

    What depends on alpha alone is solved in the principal basis of the features. So the held-out
    error of an alpha costs R x R operations, however many targets and rows there are.

    Attributes
    ----------
    basis : PrincipalBasis
        Of the training rows.
    mean : float64 array of shape (T,)
        Means of the targets.
    projected : float64 array of shape (R, T)
        Products of the features with the centred targets, along each direction.
    """

    basis: PrincipalBasis
    mean: np.ndarray
    projected: np.ndarray

    @classmethod
    def from_sums(
        cls, basis: PrincipalBasis, sums: tuple[float, np.ndarray, np.ndarray]
    ) -> "RidgeFamily":
        """Make the family of the rows whose sums and basis are given.

        Parameters
        ----------
        basis : PrincipalBasis
        sums : (float, float64 array of shape (T,), float64 array of shape (T, D))
            As `TargetSums.sum_without` returns them.

        Returns
        -------
        RidgeFamily
        """
        count, y, xy = sums
        centred = (xy - y[:, None] * basis.mean) / basis.scale
        return cls(basis, y / count, basis.vectors.T @ centred.T)

    def fit(self, alpha: float) -> LinearModel:
        """Fit the regressions of one alpha.

        Parameters
        ----------
        alpha : float

        Returns
        -------
        LinearModel
            With T outputs.
        """
        coef = self.projected / (self.basis.values + alpha)[:, None]
        basis = self.basis
        return LinearModel(basis.mean, basis.scale, (basis.vectors @ coef).T, self.mean)

    def compute_errors(
        self, rows: FeatureRows, Y: np.ndarray, alphas: Sequence[float], weight: np.ndarray
    ) -> np.ndarray:
        """Compute the squared error on other rows for every alpha.

        Parameters
        ----------
        rows : FeatureRows
            m rows.
        Y : float64 array of shape (m, T)
            Their targets.
        alphas : sequence of float
        weight : float64 array of shape (T,)
            Weight of each target.

        Returns
        -------
        float64 array of shape (number of alphas,)
            Weighted sums over rows and targets.
        """
        basis, targets = self.basis, Y - self.mean
        directions = (basis.vectors / basis.scale[:, None]).astype(np.float32)
        n_directions, mean = directions.shape[1], basis.mean.astype(np.float32)
        gram, cross = np.zeros((n_directions, n_directions)), np.zeros_like(self.projected)
        for positions, block in rows.iter_blocks(Y.shape[1]):
            Z = (block - mean) @ directions
            gram += Z.T @ Z
            cross += Z.T @ targets[positions].astype(np.float32)
        squares = float((targets**2).sum(axis=0) @ weight)
        products = (self.projected * weight) @ self.projected.T * gram
        linear = (self.projected * cross) @ weight
        shrunk = [1 / (basis.values + alpha) for alpha in alphas]
        return np.array([squares - 2 * s @ linear + s @ products @ s for s in shrunk])


def weigh_targets(Y: np.ndarray) -> np.ndarray:
    """Weigh targets by the inverse of their variance.

    Parameters
    ----------
    Y : float64 array of shape (n, T)

    Returns
    -------
    float64 array of shape (T,)
        0 for a target that does not vary.
    """
    variance = Y.var(axis=0)
    weight: np.ndarray = np.divide(1, variance, out=np.zeros_like(variance), where=variance > 1e-12)
    return weight


class RidgePath:
    """Ridge regressions of T targets on some rows, for every fold and any alpha.

    The objective is that of scikit-learn's `Ridge` on scaled features: the squared error plus alpha
    times the squared length of the coefficients, with an intercept that is not penalised (A. E.
    Hoerl and R. W. Kennard, 1970, "Ridge Regression", Technometrics 12).

    Parameters
    ----------
    rows : FeatureRows
        n rows.
    Y : float64 array of shape (n, T)
        Targets, all known.
    fold_plan : FoldPlan
        Folds of these rows.
    bases : sequence of PrincipalBasis
        One for each fold, and last one for the final rows.
    """

    def __init__(
        self,
        rows: FeatureRows,
        Y: np.ndarray,
        fold_plan: FoldPlan,
        bases: Sequence[PrincipalBasis],
    ) -> None:
        self._rows, self._targets, self._fold_plan = rows, Y, fold_plan
        folds = range(len(fold_plan.val_indices))
        if fold_plan.train_indices is None:
            sums = TargetSums.from_rows(rows, Y, fold_plan.part, int(fold_plan.part.max()) + 1)
            parts = [sums.sum_without(i) for i in folds]
            parts.append(sums.sum_without(0 if fold_plan.has_val_split else None))
        else:
            parts = [
                TargetSums.from_rows(rows.subset(train), Y[train]).sum_without()
                for train in [*fold_plan.train_indices, fold_plan.final_indices]
            ]
        self._families = [
            RidgeFamily.from_sums(basis, part) for basis, part in zip(bases, parts, strict=True)
        ]

    def compute_errors(self, alphas: Sequence[float]) -> np.ndarray:
        """Compute the held-out squared error of every alpha, each target in units of its variance.

        Parameters
        ----------
        alphas : sequence of float

        Returns
        -------
        float64 array of shape (number of alphas,)
            Sums over held-out rows and targets; targets that do not vary are left out.
        """
        weight, errors = weigh_targets(self._targets), np.zeros(len(alphas))
        for family, held_out in zip(self._families[:-1], self._fold_plan.val_indices, strict=True):
            errors += family.compute_errors(
                self._rows.subset(held_out), self._targets[held_out], alphas, weight
            )
        return errors

    def fit_folds(self, alpha: float) -> list[LinearModel]:
        """Fit the training rows of every fold.

        Parameters
        ----------
        alpha : float

        Returns
        -------
        list of LinearModel
            With T outputs each.
        """
        return [family.fit(alpha) for family in self._families[:-1]]

    def fit_final(self, alpha: float) -> LinearModel:
        """Fit the final rows.

        Parameters
        ----------
        alpha : float

        Returns
        -------
        LinearModel
            With T outputs.
        """
        return self._families[-1].fit(alpha)


def compute_held_out(
    models: Sequence[LinearModel], rows: FeatureRows, fold_plan: FoldPlan
) -> np.ndarray:
    """Compute the outputs for held-out rows, each by the model that was not trained on it.

    Parameters
    ----------
    models : sequence of LinearModel
        One for each fold.
    rows : FeatureRows
        n rows.
    fold_plan : FoldPlan
        Folds of these rows.

    Returns
    -------
    float32 array of shape (m, T)
        In the order of `FoldPlan.held_out`.
    """
    n_targets = len(models[0].intercept)
    values, begin = np.empty((len(fold_plan.held_out), n_targets), np.float32), 0
    for model, held_out in zip(models, fold_plan.val_indices, strict=True):
        for _, block in rows.subset(held_out).iter_blocks(n_targets):
            values[begin : begin + len(block)] = model.decision_values(block, np.float32)
            begin += len(block)
    return values


def merge_outputs(models: Sequence[LinearModel], columns: Sequence[np.ndarray]) -> LinearModel:
    """Merge models of different targets, each on features scaled in its own way, into one.

    Parameters
    ----------
    models : sequence of LinearModel
    columns : sequence of int arrays
        The targets of each model; all of 0 to T - 1 once.

    Returns
    -------
    LinearModel
        With T outputs, on features scaled as by the first.
    """
    first, n_targets = models[0], sum(map(len, columns))
    coef, intercept = np.empty((n_targets, first.dim)), np.empty(n_targets)
    for model, chosen in zip(models, columns, strict=True):
        weights = model.coef / model.scale
        coef[chosen] = weights * first.scale
        intercept[chosen] = model.intercept + weights @ (first.mean - model.mean)
    return LinearModel(first.mean, first.scale, coef, intercept)

"""Gram statistics of features: all that ridge, LDA and class means need besides class sums.

They do not depend on labels. One pass over the rows gives their count, sum and Gram matrix, part by
part. The statistics without one part are the sum of the others, so folds cost no further pass.
Nothing is ever subtracted, so an excluded row does not change a digit of the rest.
"""

from dataclasses import dataclass

import numpy as np

from classify.data.features import FeatureRows
from classify.errors import CallError

SCALE_COLUMNS, SCALE_GLOBAL, SCALE_NONE = "columns", "whole", "none"

MIN_EIGENVALUE_RATIO = 1e-10  # of the largest eigenvalue; directions below are rounding errors

MAX_SOLVER_BYTES = 4 << 30
ORIGIN_SAMPLE_ROWS = 255  # rows whose median is the origin


@dataclass(frozen=True, eq=False)
class GramStats:
    """Count, sum and Gram matrix of each of P parts of some rows.

    Attributes
    ----------
    origin : float64 array of shape (D,)
        Subtracted from the features first, as features with a mean far from zero and a small
        spread would lose digits in their squares.
    count : float64 array of shape (P,)
        Sum of the weights.
    total : float64 array of shape (P, D)
        Weighted sum of the features, less the origin.
    gram : float64 array of shape (P, D, D)
        Weighted Gram matrix of the features, less the origin.
    """

    origin: np.ndarray
    count: np.ndarray
    total: np.ndarray
    gram: np.ndarray

    @classmethod
    def from_rows(
        cls,
        rows: FeatureRows,
        part: np.ndarray | None = None,
        n_parts: int = 1,
        weights: np.ndarray | None = None,
    ) -> "GramStats":
        """Compute the statistics in one pass, in memory that does not grow with the rows.

        Parameters
        ----------
        rows : FeatureRows
            n rows.
        part : int array of shape (n,), optional
            Part of each row, from 0; a single part if not given.
        n_parts : int, default 1
            P.
        weights : float array of shape (n,), optional
            Weight of each row; 1 if not given.

        Returns
        -------
        GramStats
            The statistics of each part.

        Raises
        ------
        CallError
            If the features are too wide for their Gram matrices to fit into memory.
        """
        width = rows.dim
        part = np.zeros(len(rows), np.intp) if part is None else part
        if 8 * n_parts * width**2 > MAX_SOLVER_BYTES:
            raise CallError(
                f"features of {width:,} columns are too wide for ridge and lda on {len(rows):,} "
                "images; use another head, fewer layers, or a pool that is not `none`"
            )
        sample = np.linspace(0, len(rows) - 1, min(ORIGIN_SAMPLE_ROWS, len(rows))).astype(np.intp)
        # A median, because a single outlier hardly changes it.
        origin = np.median(rows.subset(sample).to_array(), axis=0).astype(np.float64)
        count, total = np.zeros(n_parts), np.zeros((n_parts, width))
        gram = np.zeros((n_parts, width, width))
        for positions, block in rows.iter_blocks():
            for p in np.unique(part[positions]):
                in_part = part[positions] == p
                x = block[in_part] - origin
                w = np.ones(len(x)) if weights is None else weights[positions][in_part]
                scaled = x if weights is None else x * w[:, None]
                count[p] += w.sum()
                total[p] += w @ x
                gram[p] += scaled.T @ x
        return cls(origin, count, total, gram)

    def compute_centred(self, exclude: int | None = None) -> tuple[float, np.ndarray, np.ndarray]:
        """Compute the statistics of all parts together, or of all but one, about their mean.

        Parameters
        ----------
        exclude : int, optional
            Part to leave out.

        Returns
        -------
        count : float
            Sum of the weights.
        mean : float64 array of shape (D,)
            Weighted mean of the features.
        gram : float64 array of shape (D, D)
            Gram matrix of the centred features.
        """
        count, total, gram = (
            sum_parts(array, exclude) for array in (self.count, self.total, self.gram)
        )
        mean = total / count
        gram -= count * np.outer(mean, mean)
        return float(count), self.origin + mean, gram


def sum_parts(array: np.ndarray, exclude: int | None) -> np.ndarray:
    """Sum an array over its parts, without subtraction.

    Parameters
    ----------
    array : float64 array of shape (P, ...)
        An entry for each part.
    exclude : int, or None
        Part to leave out.

    Returns
    -------
    float64 array of shape (...)
        Sum over the other parts.
    """
    total = np.zeros(array.shape[1:])
    for p, entry in enumerate(array):
        if p != exclude:
            total += entry
    return total


@dataclass(frozen=True, eq=False)
class PrincipalBasis:
    """The eigenvectors of the Gram matrix of scaled training features.

    Attributes
    ----------
    count : float
        Number of rows, or the sum of their weights.
    mean, scale : float64 arrays of shape (D,)
        Subtracted from the features, and their divisor. With standardisation, the scale of a
        constant column is 1, as in scikit-learn. For rows prepared by root-l2 all scales are one
        number, the root of the columns' mean variance.
    vectors : float64 array of shape (D, R)
        Eigenvectors as columns. R is at most D and at most the number of rows.
    values : float64 array of shape (R,)
        Eigenvalues, positive and ascending.
    """

    count: float
    mean: np.ndarray
    scale: np.ndarray
    vectors: np.ndarray
    values: np.ndarray

    @classmethod
    def from_gram(
        cls, count: float, mean: np.ndarray, gram: np.ndarray, scaling: str = SCALE_COLUMNS
    ) -> "PrincipalBasis":
        """Compute the basis from Gram statistics.

        Parameters
        ----------
        count : float
            Number of rows, or the sum of their weights.
        mean : float64 array of shape (D,)
            Mean of the features.
        gram : float64 array of shape (D, D)
            Gram matrix of the centred features.
        scaling : str, default "columns"
            ``columns``: divide each column by its standard deviation. ``whole``: divide all by one
            number, see `PrincipalBasis`. ``none``: do not scale.

        Returns
        -------
        PrincipalBasis
            Directions with eigenvalues that are not rounding errors.
        """
        scale = _compute_scale(np.diagonal(gram) / count, mean, scaling)
        values, vectors = np.linalg.eigh(gram / np.outer(scale, scale))
        is_positive = values > MIN_EIGENVALUE_RATIO * max(values[-1], 1e-300)
        return cls(count, mean, scale, _to_c_order(vectors[:, is_positive]), values[is_positive])

    @classmethod
    def from_rows(cls, rows: FeatureRows, weights: np.ndarray | None = None) -> "PrincipalBasis":
        """Compute the basis of few rows from their n x n products, without a D x D matrix.

        Parameters
        ----------
        rows : FeatureRows
            n rows, fewer than columns.
        weights : float array of shape (n,), optional
            Weight of each row; 1 if not given.

        Returns
        -------
        PrincipalBasis
            As `from_gram` gives it, but for rounding.
        """
        x = rows.to_array().astype(np.float64)
        w = np.ones(len(x)) if weights is None else weights
        count = float(w.sum())
        mean = w @ x / count
        x -= mean
        scale = _compute_scale(w @ x**2 / count, mean, choose_scaling(rows))
        x *= np.sqrt(w)[:, None]
        x /= scale
        values, left = np.linalg.eigh(x @ x.T)
        is_positive = values > MIN_EIGENVALUE_RATIO * max(values[-1], 1e-300)
        values, left = values[is_positive], left[:, is_positive]
        return cls(count, mean, scale, _to_c_order(x.T @ (left / np.sqrt(values))), values)


def choose_scaling(rows: FeatureRows) -> str:
    """Choose the scaling of rows.

    Parameters
    ----------
    rows : FeatureRows
        The rows to scale.

    Returns
    -------
    str
        ``whole`` for rows prepared by root-l2, else ``columns``.
    """
    return SCALE_GLOBAL if rows.is_root_l2 else SCALE_COLUMNS


def _to_c_order(vectors: np.ndarray) -> np.ndarray:
    # The order in a file. BLAS rounds differently for another order, and a head must not depend on
    # whether its basis was loaded or computed.
    return np.ascontiguousarray(vectors)


def _compute_scale(variance: np.ndarray, mean: np.ndarray, scaling: str) -> np.ndarray:
    if scaling == SCALE_NONE:
        return np.ones(len(mean))
    if scaling == SCALE_GLOBAL:
        return np.full(len(mean), np.sqrt(variance.mean()) or 1)
    # A column is constant if its variance is a rounding error of float64. A column of a billion
    # float32 values, of which one differs in the last digit, is not constant.
    constant = variance <= 1e-24 * np.maximum(mean**2, 1e-12)
    return np.sqrt(np.where(constant, 1.0, variance))

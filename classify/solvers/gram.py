"""Label-free statistics: all that ridge, LDA and class means need to know of features.

One pass over the rows gives their count, sum and Gram matrix, part by part. Without one part they
are the sum of the others, so folds cost no further pass. Nothing is ever subtracted: a row that
is left out moves no digit of what remains.
"""

from dataclasses import dataclass

import numpy as np

from classify.data.features import FeatureRows
from classify.errors import CallError

SCALE_COLUMNS, SCALE_GLOBAL, SCALE_NONE = "columns", "whole", "none"

MIN_EIGENVALUE_RATIO = 1e-10  # of the greatest eigenvalue: below this a direction is rounding

MAX_SOLVER_BYTES = 4 << 30
ORIGIN_SAMPLE_ROWS = 255  # rows whose median the features are taken from


@dataclass(frozen=True, eq=False)
class GramStats:
    """Count, sum and Gram matrix of each of P parts of some rows.

    Attributes
    ----------
    origin : float64 array of shape (D,)
        Is subtracted from the features first: of numbers far from zero beside their spread, the
        squares would hold little of the spread.
    count : float64 array of shape (P,)
        The sum of the weights.
    total : float64 array of shape (P, D)
    gram : float64 array of shape (P, D, D)
        About the origin.
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
        """Gather them in one pass, in memory that does not grow with the rows.

        Parameters
        ----------
        rows : FeatureRows
            n of them.
        part : int array of shape (n,), optional
            Which part each row belongs to, from 0; all to one if not given.
        n_parts : int
            P.
        weights : float array of shape (n,), optional
            1 each if not given.

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
        some = np.linspace(0, len(rows) - 1, min(ORIGIN_SAMPLE_ROWS, len(rows))).astype(np.intp)
        origin = np.median(rows.subset(some).to_array(), axis=0).astype(
            np.float64
        )  # no one row moves it
        count, total = np.zeros(n_parts), np.zeros((n_parts, width))
        gram = np.zeros((n_parts, width, width))
        for where, block in rows.iter_blocks():
            for p in np.unique(part[where]):
                mine = part[where] == p
                x = block[mine] - origin
                w = np.ones(len(x)) if weights is None else weights[where][mine]
                scaled = x if weights is None else x * w[:, None]
                count[p] += w.sum()
                total[p] += w @ x
                gram[p] += scaled.T @ x
        return cls(origin, count, total, gram)

    def compute_centred(self, exclude: int | None = None) -> tuple[float, np.ndarray, np.ndarray]:
        """Count, mean (D,) and centred Gram matrix (D, D) of all parts but one, or of all."""
        count, total, gram = (
            sum_parts(array, exclude) for array in (self.count, self.total, self.gram)
        )
        mean = total / count
        gram -= count * np.outer(mean, mean)
        return float(count), self.origin + mean, gram


def sum_parts(array: np.ndarray, exclude: int | None) -> np.ndarray:
    """The sum of parts (P, ...) but one, or of all: (...)."""
    found = np.zeros(array.shape[1:])
    for p, each in enumerate(array):
        if p != exclude:
            found += each
    return found


@dataclass(frozen=True, eq=False)
class PrincipalBasis:
    """The eigenvectors of the Gram matrix of scaled training features.

    Attributes
    ----------
    count : float
        Rows, or the sum of their weights.
    mean, scale : float64 arrays of shape (D,)
        What is subtracted and divided by. Of standardised columns the scale of one that is
        constant is 1, as with scikit-learn; of rows that are prepared otherwise it is one number,
        the root of the columns' mean variance.
    vectors : float64 array of shape (D, R)
        R is at most D and at most the number of rows.
    values : float64 array of shape (R,)
        Positive. Ascending.
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
        """From a count, a mean (D,) and a centred Gram matrix (D, D).

        The scaling is that of ``columns``, each by its own deviation, of the features as a
        ``whole``, by one number, or ``none``.
        """
        scale = _compute_scale(np.diagonal(gram) / count, mean, scaling)
        values, vectors = np.linalg.eigh(gram / np.outer(scale, scale))
        real = values > MIN_EIGENVALUE_RATIO * max(values[-1], 1e-300)
        return cls(count, mean, scale, _to_c_order(vectors[:, real]), values[real])

    @classmethod
    def from_rows(cls, rows: FeatureRows, weights: np.ndarray | None = None) -> "PrincipalBasis":
        """From fewer rows than columns, by way of their n x n products: never D x D.

        Parameters
        ----------
        rows : FeatureRows
        weights : float array of shape (n,), optional
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
        real = values > MIN_EIGENVALUE_RATIO * max(values[-1], 1e-300)
        values, left = values[real], left[:, real]
        return cls(count, mean, scale, _to_c_order(x.T @ (left / np.sqrt(values))), values)


def choose_scaling(rows: FeatureRows) -> str:
    """How rows are scaled: by one number where root-l2 has prepared them, else column by column."""
    return SCALE_GLOBAL if rows.is_root_l2 else SCALE_COLUMNS


def _to_c_order(vectors: np.ndarray) -> np.ndarray:
    # As they lie in a file: BLAS rounds otherwise where they lie otherwise, and a head trained on
    # what was kept shall be the one that was trained at once.
    return np.ascontiguousarray(vectors)


def _compute_scale(variance: np.ndarray, mean: np.ndarray, scaling: str) -> np.ndarray:
    if scaling == SCALE_NONE:
        return np.ones(len(mean))
    if scaling == SCALE_GLOBAL:
        return np.full(len(mean), np.sqrt(variance.mean()) or 1)
    # A column counts as constant where its variance is what rounding in float64 leaves of a
    # constant. One float32 that differs from a billion others in its last digit makes it no such.
    constant = variance <= 1e-24 * np.maximum(mean**2, 1e-12)
    return np.sqrt(np.where(constant, 1.0, variance))

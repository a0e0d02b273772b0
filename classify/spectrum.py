"""Scaled features by their principal directions: every ridge value is one division then."""

from dataclasses import dataclass

import numpy as np

from classify.data.features import FeatureRows

SCALE_COLUMNS, SCALE_GLOBAL, SCALE_NONE = "columns", "whole", "none"
MIN_EIGENVALUE_RATIO = 1e-10  # of the greatest eigenvalue: below this a direction is rounding


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
        scale = _compute_scale(
            w @ x**2 / count, mean, SCALE_GLOBAL if rows.is_root_l2 else SCALE_COLUMNS
        )
        x *= np.sqrt(w)[:, None]
        x /= scale
        values, left = np.linalg.eigh(x @ x.T)
        real = values > MIN_EIGENVALUE_RATIO * max(values[-1], 1e-300)
        values, left = values[real], left[:, real]
        return cls(count, mean, scale, _to_c_order(x.T @ (left / np.sqrt(values))), values)


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

"""What turns features into scores: arrays, or a scikit-learn pipeline.

What a head says is computed in float64, whatever the features are: then a row's scores depend
neither on its neighbours nor on the kernel that BLAS chooses for this processor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from classify.errors import CallError
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE

SMOOTHING_ATTR = "smoothing_"  # how much neighbours' counts are smoothed; heads of before lack it
NOT_FINITE_MESSAGE = (
    "the scores are not finite numbers: either the features are not, or the head's are too large; "
    "check the cache with `featurize verify`, or train the head again"
)
MAX_CHUNK_VALUES = 1 << 17  # numbers worked on at a time: they stay in the cache of a core


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A linear function of standardised features.

    Attributes
    ----------
    mean, scale : float arrays of shape (D,)
        Standardisation, by training statistics.
    coef : float array of shape (K, D)
        On standardised features.
    intercept : float array of shape (K,)
    """

    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    def __post_init__(self) -> None:
        _check_arrays(self)

    def decision_values(self, X: np.ndarray, dtype: type = np.float64) -> np.ndarray:
        """Scores of (n, D) features: float32 (n, K).

        Parameters
        ----------
        X : float array of shape (n, D)
        dtype : type
            Of the numbers multiplied; ``np.float32`` is three times as quick, and enough to choose.

        Raises
        ------
        CallError
            If the scores are not finite.
        """
        # The scale goes into the weights; the mean does not: of what is far from zero beside its
        # spread, little would be left after the product.
        weights = _unscale_weights(self.coef, self.scale)
        centre: np.ndarray = self.mean.astype(dtype)
        shift = (self.intercept - (self.mean - centre) @ weights).astype(dtype)
        weights = weights.astype(dtype)
        return _map_chunks(lambda x: (x - centre) @ weights + shift, X, len(shift))


@dataclass(frozen=True, eq=False)
class MLPModel:
    """One hidden layer of rectified units between standardised features and scores.

    Attributes
    ----------
    mean, scale : float arrays of shape (D,)
    hidden : float array of shape (H, D)
    bias : float array of shape (H,)
    coef : float array of shape (K, H)
    intercept : float array of shape (K,)
    """

    mean: np.ndarray
    scale: np.ndarray
    hidden: np.ndarray
    bias: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    def __post_init__(self) -> None:
        _check_arrays(self)

    def decision_values(self, X: np.ndarray) -> np.ndarray:
        """Scores of (n, D) features: float32 (n, K).

        Raises
        ------
        CallError
            If they are not finite.
        """
        mean, into = self.mean.astype(np.float64), _unscale_weights(self.hidden, self.scale)
        out = self.coef.T.astype(np.float64)

        def through(x: np.ndarray) -> np.ndarray:
            inside = np.maximum((x - mean) @ into + self.bias, 0)
            return np.asarray(inside @ out + self.intercept)

        return _map_chunks(through, X, max(len(self.bias), len(self.intercept)))


@dataclass(frozen=True, eq=False)
class SklearnModel:
    """A fitted scikit-learn classifier on raw features.

    Attributes
    ----------
    model : estimator
        Its ``classes_`` are positions in the K classes.
    dim, n_classes : int
    offset : float array of shape (K,), or None
        What is added to the scores that the model gives.
    """

    estimator: Any
    dim: int
    n_classes: int
    offset: np.ndarray | None = None

    @property
    def probabilistic(self) -> bool:
        """Whether it knows probabilities, and its scores are their logarithms."""
        return hasattr(self.estimator, "predict_proba")

    def decision_values(self, X: np.ndarray) -> np.ndarray:
        """Logarithms of probabilities where it has those, decision values else, and the offset.

        Returns
        -------
        float32 array of shape (n, K)

        Raises
        ------
        CallError
            If the features are not finite.
        """
        if not np.isfinite(X).all():
            raise CallError(NOT_FINITE_MESSAGE)
        if any(hasattr(step, "normalization_") for _, step in getattr(self.estimator, "steps", ())):
            X = X.astype(np.float64)  # a kernel map divides by numbers down to 1e-6
        if self.probabilistic:
            proba = np.asarray(self.estimator.predict_proba(X), np.float64)
            last = self.estimator[-1] if hasattr(self.estimator, "steps") else self.estimator
            if hasattr(last, SMOOTHING_ATTR):
                proba = smooth_shares(proba, last.n_neighbors, getattr(last, SMOOTHING_ATTR))
            found = np.log(np.maximum(proba, 1e-12))
        elif hasattr(self.estimator, "decision_function"):
            found = to_two_columns(np.asarray(self.estimator.decision_function(X)))
        else:
            found = (self.estimator.predict(X)[:, None] == self.estimator.classes_) * 1.0
        if not np.isfinite(found).all():
            raise CallError(NOT_FINITE_MESSAGE)
        if self.offset is not None:
            found = found + self.offset[self.estimator.classes_]
        return expand_to_all_classes(found, self.estimator.classes_, self.n_classes)


def add_offset(
    scorer: "LinearModel | SklearnModel", offset: np.ndarray
) -> "LinearModel | SklearnModel":
    """The same with numbers (K,) added to its scores, but to those of classes it does not know."""
    if isinstance(scorer, LinearModel):
        return replace(scorer, intercept=scorer.intercept + offset)
    return replace(scorer, offset=offset)


def _check_arrays(scorer: "LinearModel | MLPModel") -> None:
    """Refuse arrays that no training gives: CallError."""
    for name, array in vars(scorer).items():
        if not np.isfinite(array).all():
            raise CallError(f"{name} is not finite")
    # The least that float32 holds without losing digits.
    if not (scorer.scale >= np.finfo(np.float32).tiny).all():
        raise CallError("scale is not positive everywhere, or too small to divide by")


def _unscale_weights(coef: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.asarray((coef.astype(np.float64) / scale).T)


def _map_chunks(
    function: Callable[[np.ndarray], np.ndarray], X: np.ndarray, width: int
) -> np.ndarray:
    """A function of rows (m, D), no more than (m, `width`) inside, as float32 for all rows."""
    X = np.asarray(X)
    size = max(64, MAX_CHUNK_VALUES // max(X.shape[1], width, 1))
    parts = []
    for start in range(0, max(len(X), 1), size):
        # What is too large becomes infinite, and is refused below.
        with np.errstate(over="ignore", invalid="ignore"):
            parts.append(function(X[start : start + size]).astype(np.float32))
        if not np.isfinite(parts[-1]).all():
            raise CallError(NOT_FINITE_MESSAGE)
    return np.concatenate(parts)


def smooth_shares(shares: np.ndarray, k: int, pseudo_count: float) -> np.ndarray:
    """Shares (n, K) of k neighbours with some more added, which are shared by all classes alike."""
    return np.asarray((shares * k + pseudo_count / shares.shape[1]) / (k + pseudo_count))


def to_two_columns(decision: np.ndarray) -> np.ndarray:
    """scikit-learn's one column for two classes as two, the same distance apart."""
    if decision.ndim == 2 and decision.shape[1] > 1:
        return decision
    half = decision.reshape(len(decision)) / 2
    return np.stack([-half, half], axis=1)


def expand_to_all_classes(
    decision_values: np.ndarray, known: np.ndarray, n_classes: int
) -> np.ndarray:
    """Columns for all classes; those of classes a model does not know can never win."""
    if len(known) == n_classes:
        return decision_values.astype(np.float32, copy=False)
    found = np.full((len(decision_values), n_classes), UNSEEN_CLASS_SCORE, np.float32)
    found[:, known] = decision_values
    return found

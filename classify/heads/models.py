"""Models from features to decision values: arrays, or a scikit-learn pipeline.

Decision values are computed in float64 whatever the type of the features. So those of a row depend
neither on its neighbours in the block nor on the kernel that BLAS chooses for this processor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from classify.errors import CallError
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE

SMOOTHING_ATTR = "smoothing_"  # smoothing of neighbour counts; older heads lack it
NOT_FINITE_MESSAGE = (
    "the scores are not finite numbers: either the features are not, or the head's are too large; "
    "check the cache with `featurize verify`, or train the head again"
)
MAX_CHUNK_VALUES = 1 << 17  # numbers in a chunk, which stays in the cache of a core


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A linear function of standardised features.

    Attributes
    ----------
    mean, scale : float arrays of shape (D,)
        Standardisation by statistics of the training rows.
    coef : float array of shape (K, D)
        Coefficients of standardised features.
    intercept : float array of shape (K,)
        Constant of each class.
    """

    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    @property
    def dim(self) -> int:
        """Number of features D."""
        return len(self.mean)

    def __post_init__(self) -> None:
        _check_arrays(self)

    def decision_values(self, X: np.ndarray, dtype: type = np.float64) -> np.ndarray:
        """Compute decision values.

        Parameters
        ----------
        X : float array of shape (n, D)
            Prepared features.
        dtype : type, default np.float64
            Type of the computation. ``np.float32`` is three times as fast and exact enough to
            select a param.

        Returns
        -------
        float32 array of shape (n, K)
            A column for each class.

        Raises
        ------
        CallError
            If decision values are not finite.
        """
        # The scale goes into the weights. The mean does not: features with a mean far from zero
        # and a small spread would lose their digits in the product.
        weights = _unscale_weights(self.coef, self.scale)
        mean: np.ndarray = self.mean.astype(dtype)
        shift = (self.intercept - (self.mean - mean) @ weights).astype(dtype)
        weights = weights.astype(dtype)
        return _map_chunks(lambda x: (x - mean) @ weights + shift, X, len(shift))


@dataclass(frozen=True, eq=False)
class MLPModel:
    """A perceptron with one hidden layer of ReLU units on standardised features.

    Attributes
    ----------
    mean, scale : float arrays of shape (D,)
        Standardisation by statistics of the training rows.
    hidden : float array of shape (H, D)
        Weights of the hidden layer.
    bias : float array of shape (H,)
        Biases of the hidden layer.
    coef : float array of shape (K, H)
        Weights of the output layer.
    intercept : float array of shape (K,)
        Biases of the output layer.
    """

    mean: np.ndarray
    scale: np.ndarray
    hidden: np.ndarray
    bias: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    @property
    def dim(self) -> int:
        """Number of features D."""
        return len(self.mean)

    def __post_init__(self) -> None:
        _check_arrays(self)

    def decision_values(self, X: np.ndarray) -> np.ndarray:
        """Compute decision values.

        Parameters
        ----------
        X : float array of shape (n, D)
            Prepared features.

        Returns
        -------
        float32 array of shape (n, K)
            A column for each class.

        Raises
        ------
        CallError
            If decision values are not finite.
        """
        mean, hidden = self.mean.astype(np.float64), _unscale_weights(self.hidden, self.scale)
        coef = self.coef.T.astype(np.float64)

        def forward(x: np.ndarray) -> np.ndarray:
            activations = np.maximum((x - mean) @ hidden + self.bias, 0)
            return np.asarray(activations @ coef + self.intercept)

        return _map_chunks(forward, X, max(len(self.bias), len(self.intercept)))


@dataclass(frozen=True, eq=False)
class SklearnModel:
    """A fitted scikit-learn classifier on raw features.

    Attributes
    ----------
    estimator : classifier
        Its ``classes_`` are positions in the K classes.
    dim, n_classes : int
        D and K.
    offset : float array of shape (K,), or None
        Added to the decision values of the classifier.
    """

    estimator: Any
    dim: int
    n_classes: int
    offset: np.ndarray | None = None

    @property
    def probabilistic(self) -> bool:
        """Whether it has probabilities; decision values then are their logarithms."""
        return hasattr(self.estimator, "predict_proba")

    def decision_values(self, X: np.ndarray) -> np.ndarray:
        """Compute decision values: log probabilities where the classifier has probabilities.

        Parameters
        ----------
        X : float array of shape (n, D)
            Prepared features.

        Returns
        -------
        float32 array of shape (n, K)
            The offset is included. Classes that the classifier was not trained on have
            `UNSEEN_CLASS_SCORE`.

        Raises
        ------
        CallError
            If features or decision values are not finite.
        """
        if not np.isfinite(X).all():
            raise CallError(NOT_FINITE_MESSAGE)
        if any(hasattr(step, "normalization_") for _, step in getattr(self.estimator, "steps", ())):
            X = X.astype(np.float64)  # a Nystroem map divides by numbers down to 1e-6
        if self.probabilistic:
            proba = np.asarray(self.estimator.predict_proba(X), np.float64)
            last = self.estimator[-1] if hasattr(self.estimator, "steps") else self.estimator
            if hasattr(last, SMOOTHING_ATTR):
                proba = smooth_shares(proba, last.n_neighbors, getattr(last, SMOOTHING_ATTR))
            values = np.log(np.maximum(proba, 1e-12))
        elif hasattr(self.estimator, "decision_function"):
            values = to_two_columns(np.asarray(self.estimator.decision_function(X)))
        else:
            values = (self.estimator.predict(X)[:, None] == self.estimator.classes_) * 1.0
        if not np.isfinite(values).all():
            raise CallError(NOT_FINITE_MESSAGE)
        if self.offset is not None:
            values = values + self.offset[self.estimator.classes_]
        return expand_to_all_classes(values, self.estimator.classes_, self.n_classes)


def add_offset(
    scorer: "LinearModel | SklearnModel", offset: np.ndarray
) -> "LinearModel | SklearnModel":
    """Add a constant to the decision values of each class.

    Parameters
    ----------
    scorer : LinearModel or SklearnModel
        The model; it stays as it is.
    offset : float array of shape (K,)
        Not added to classes that a scikit-learn classifier was not trained on.

    Returns
    -------
    LinearModel or SklearnModel
        A copy with the offset.
    """
    if isinstance(scorer, LinearModel):
        return replace(scorer, intercept=scorer.intercept + offset)
    return replace(scorer, offset=offset)


def _check_arrays(scorer: "LinearModel | MLPModel") -> None:
    """Raise CallError for arrays that training cannot give."""
    for name, array in vars(scorer).items():
        if not np.isfinite(array).all():
            raise CallError(f"{name} is not finite")
    # The smallest number that float32 holds with all its digits.
    if not (scorer.scale >= np.finfo(np.float32).tiny).all():
        raise CallError("scale is not positive everywhere, or too small to divide by")


def _unscale_weights(coef: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.asarray((coef.astype(np.float64) / scale).T)


def _map_chunks(
    function: Callable[[np.ndarray], np.ndarray], X: np.ndarray, width: int
) -> np.ndarray:
    """Apply a function to chunks of rows; `width` is that of its widest intermediate array."""
    X = np.asarray(X)
    size = max(64, MAX_CHUNK_VALUES // max(X.shape[1], width, 1))
    chunks = []
    for start in range(0, max(len(X), 1), size):
        # Overflow gives infinity, which is refused below.
        with np.errstate(over="ignore", invalid="ignore"):
            chunks.append(function(X[start : start + size]).astype(np.float32))
        if not np.isfinite(chunks[-1]).all():
            raise CallError(NOT_FINITE_MESSAGE)
    return np.concatenate(chunks)


def smooth_shares(shares: np.ndarray, k: int, pseudo_count: float) -> np.ndarray:
    """Smooth class shares among neighbours by pseudo-counts (additive smoothing).

    Parameters
    ----------
    shares : float array of shape (n, K)
        Share of each class among the neighbours of a row.
    k : int
        Number of neighbours.
    pseudo_count : float
        Number of neighbours to add, divided equally among the K classes.

    Returns
    -------
    float array of shape (n, K)
        Each row sums to 1.
    """
    return np.asarray((shares * k + pseudo_count / shares.shape[1]) / (k + pseudo_count))


def to_two_columns(decision: np.ndarray) -> np.ndarray:
    """Convert scikit-learn's single column for two classes to two columns.

    Parameters
    ----------
    decision : float array of shape (n,), (n, 1) or (n, K)
        Output of ``decision_function``.

    Returns
    -------
    float array of shape (n, K)
        For two classes, the second column minus the first is the given decision value.
    """
    if decision.ndim == 2 and decision.shape[1] > 1:
        return decision
    half = decision.reshape(len(decision)) / 2
    return np.stack([-half, half], axis=1)


def expand_to_all_classes(
    decision_values: np.ndarray, known: np.ndarray, n_classes: int
) -> np.ndarray:
    """Add columns for the classes that a model was not trained on.

    Parameters
    ----------
    decision_values : float array of shape (n, m)
        A column for each known class.
    known : int array of shape (m,)
        Positions of these classes among the K.
    n_classes : int
        K.

    Returns
    -------
    float32 array of shape (n, K)
        Columns of unknown classes have `UNSEEN_CLASS_SCORE` and are never predicted.
    """
    if len(known) == n_classes:
        return decision_values.astype(np.float32, copy=False)
    expanded = np.full((len(decision_values), n_classes), UNSEEN_CLASS_SCORE, np.float32)
    expanded[:, known] = decision_values
    return expanded

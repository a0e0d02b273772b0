"""What turns features into scores: arrays, or a scikit-learn pipeline."""

from dataclasses import dataclass
from typing import Any

import numpy as np

ABSENT = -1e4  # the score of a class that a model was not trained on


@dataclass(frozen=True, eq=False)
class Linear:
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

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Scores of (n, D) features: float32 (n, K)."""
        # Standardisation goes into the weights: no copy of the features is made.
        weights = (self.coef / self.scale).astype(np.float32)
        shift = self.intercept - (self.coef / self.scale) @ self.mean
        found: np.ndarray = X @ weights.T
        found += shift.astype(np.float32)
        return found


@dataclass(frozen=True, eq=False)
class Perceptron:
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

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Scores of (n, D) features: float32 (n, K)."""
        inside = Linear(self.mean, self.scale, self.hidden, self.bias).scores(X)
        np.maximum(inside, 0, out=inside)
        found: np.ndarray = inside @ self.coef.T.astype(np.float32)
        found += self.intercept.astype(np.float32)
        return found


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted scikit-learn classifier on raw features.

    Attributes
    ----------
    model : estimator
        Its ``classes_`` are positions in the K classes.
    dim, n_classes : int
    """

    model: Any
    dim: int
    n_classes: int

    @property
    def probabilistic(self) -> bool:
        """Whether it knows probabilities, and its scores are their logarithms."""
        return hasattr(self.model, "predict_proba")

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Logarithms of probabilities where it has those, decision values else: (n, K)."""
        if self.probabilistic:
            proba = np.asarray(self.model.predict_proba(X), np.float64)
            found = np.log(np.maximum(proba, 1e-12))
        elif hasattr(self.model, "decision_function"):
            found = two_columns(np.asarray(self.model.decision_function(X)))
        else:
            found = (self.model.predict(X)[:, None] == self.model.classes_) * 1.0
        return spread(found, self.model.classes_, self.n_classes)


def two_columns(decision: np.ndarray) -> np.ndarray:
    """scikit-learn's one column for two classes as two, the same distance apart."""
    if decision.ndim == 2 and decision.shape[1] > 1:
        return decision
    half = decision.reshape(len(decision)) / 2
    return np.stack([-half, half], axis=1)


def spread(scores: np.ndarray, known: np.ndarray, n_classes: int) -> np.ndarray:
    """Columns for all classes; those of classes a model does not know can never win."""
    if len(known) == n_classes:
        return scores.astype(np.float32, copy=False)
    found = np.full((len(scores), n_classes), ABSENT, np.float32)
    found[:, known] = scores
    return found

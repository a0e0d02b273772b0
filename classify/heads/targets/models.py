"""Estimators of scikit-learn as models from features to outputs, one for each target."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from classify.errors import CallError
from classify.heads.models import NOT_FINITE_MESSAGE

MIN_PROBABILITY = 1e-6  # of an estimator's own, so that log odds are finite


@dataclass(frozen=True, eq=False)
class EstimatorModel:
    """A fitted estimator of scikit-learn with T outputs.

    Attributes
    ----------
    estimator : Pipeline
        A regressor, or a classifier of T labels.
    dim, n_outputs : int
        D and T.
    """

    estimator: Any
    dim: int
    n_outputs: int

    def decision_values(self, X: np.ndarray) -> np.ndarray:
        """Compute the outputs.

        Parameters
        ----------
        X : float array of shape (n, D)
            Prepared features.

        Returns
        -------
        float32 array of shape (n, T)
            A regressor's predictions; of a classifier log odds, where it has probabilities.

        Raises
        ------
        CallError
            If features or outputs are not finite.
        """
        if not np.isfinite(X).all():
            raise CallError(NOT_FINITE_MESSAGE)
        if any(hasattr(step, "normalization_") for _, step in self.estimator.steps):
            X = X.astype(np.float64)  # a Nystroem map divides by numbers down to 1e-6
        values = self._compute_log_odds(X) if is_classifier(self.estimator) else None
        if values is None:
            values = np.asarray(self.estimator.predict(X), np.float64)
        values = values.reshape(len(X), self.n_outputs)
        if not np.isfinite(values).all():
            raise CallError(NOT_FINITE_MESSAGE)
        return values.astype(np.float32)

    def _compute_log_odds(self, X: np.ndarray) -> np.ndarray:
        if hasattr(self.estimator, "predict_proba"):
            proba = self.estimator.predict_proba(X)
            if isinstance(proba, list):  # of each label, for without and with it
                proba = np.stack([_take_positive(columns) for columns in proba], axis=1)
            proba = np.clip(np.asarray(proba, np.float64), MIN_PROBABILITY, 1 - MIN_PROBABILITY)
            return np.asarray(np.log(proba) - np.log1p(-proba))
        if hasattr(self.estimator, "decision_function"):
            return np.asarray(self.estimator.decision_function(X), np.float64)
        return np.asarray(self.estimator.predict(X), np.float64) * 2 - 1


def _take_positive(columns: np.ndarray) -> np.ndarray:
    """Return the probabilities of 1; scikit-learn gives one column where all rows were alike."""
    return columns[:, 1] if columns.shape[1] == 2 else np.zeros(len(columns))

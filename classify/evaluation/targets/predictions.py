"""Predictions of several labels, numbers or grades on held-out images."""

from dataclasses import dataclass

import numpy as np

from classify.kinds import MULTI

MIN_PROBABILITY = 1e-15  # so that a loss is finite


@dataclass(frozen=True, eq=False)
class TargetPredictions:
    """One head's predictions on n images it was not trained on.

    Attributes
    ----------
    kind : str
        ``multi``, ``number`` or ``grade``.
    rows : int64 array of shape (n,)
        Rows of the cache.
    truth : float64 array of shape (n, T)
        Several labels: 1, 0, or NaN where it is not known. Else the number, or the position of the
        grade; T is 1.
    values : float64 array of shape (n, T)
        Several labels: probabilities. Else the predicted number or position.
    thresholds : float64 array of shape (T,), or None
        Several labels: the probability from which a label is predicted.
    """

    kind: str
    rows: np.ndarray
    truth: np.ndarray
    values: np.ndarray
    thresholds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def predicted(self) -> np.ndarray:
        """Several labels: bool array of shape (n, T), which are predicted. Else `values`."""
        if self.kind != MULTI:
            return self.values
        return np.asarray(self.values >= (0.5 if self.thresholds is None else self.thresholds))

    @property
    def losses(self) -> np.ndarray:
        """Loss of each image: float64 array of shape (n,).

        Several labels: the mean log loss of those that are known. Else the absolute error.
        """
        if self.kind != MULTI:
            return np.asarray(np.abs(self.values - self.truth)[:, 0])
        right = np.where(self.truth == 1, self.values, 1 - self.values)
        losses = -np.log(np.maximum(right, MIN_PROBABILITY))
        known = ~np.isnan(self.truth)
        total = np.where(known, losses, 0).sum(axis=1)
        return np.asarray(total / np.maximum(known.sum(axis=1), 1))

"""What a head said of some images: a few numbers for each, enough for every score and chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, eq=False)
class HeldOutPredictions:
    """One head's answers on n images it was not trained on.

    Class numbers are positions in the task's list of classes. Two probabilities an image are kept
    and not all K, so that a million images with a thousand classes fit.

    Attributes
    ----------
    rows : int64 array of shape (n,)
        Rows of the cache.
    truth, predicted : int64 arrays of shape (n,)
        Class numbers; a truth of a class that the head never saw is kept.
    confidence : float32 array of shape (n,)
        The head's own probability of the predicted class; NaN where a head has scores only.
    loss : float32 array of shape (n,)
        Minus the logarithm of its own probability of the true class, at most 100; or NaN.
    calibrated_confidence, calibrated_loss : float32 arrays of shape (n,)
        The same after calibration, which gives every head probabilities.
    """

    rows: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    calibrated_confidence: np.ndarray
    calibrated_loss: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["HeldOutPredictions"]) -> "HeldOutPredictions":
        """One after the other: at least one."""
        return cls(*(np.concatenate([vars(part)[f.name] for part in parts]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def calibrated_log_loss(self) -> float:
        """The mean of `calibrated_loss`; infinite where there are no images."""
        return float(self.calibrated_loss.mean()) if len(self) else math.inf

    @property
    def correct(self) -> np.ndarray:
        """Which are right: bool array of shape (n,)."""
        return np.asarray(self.predicted == self.truth)

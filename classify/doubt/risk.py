"""Risk and coverage: how accurate a head is on the images that it is surest of."""

from dataclasses import dataclass

import numpy as np

MAX_POINTS = 50


@dataclass(frozen=True)
class RiskCurve:
    """Accuracy on the most confident images, by their share.

    Y. Geifman and R. El-Yaniv (2017), "Selective Classification for Deep Neural Networks", NeurIPS.

    Attributes
    ----------
    share : tuple of float
        Shares of the images, ascending to 1.
    accuracy : tuple of float
        Accuracy on so many of the most confident ones.
    area : float
        Mean error over all shares: the area under the risk-coverage curve. Lower is better.
    """

    share: tuple[float, ...]
    accuracy: tuple[float, ...]
    area: float


def measure_risk(confidence: np.ndarray, correct: np.ndarray) -> RiskCurve | None:
    """Measure accuracy by the share of images that are not left open.

    Parameters
    ----------
    confidence : float array of shape (n,)
    correct : bool array of shape (n,)

    Returns
    -------
    RiskCurve, or None
        Of at most 50 points. Images of equal confidence are taken or left together. None without
        images, or without confidences.
    """
    if not len(confidence) or np.isnan(confidence).any():
        return None
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    accuracy = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    # Between two ends the images of one confidence come in no order.
    every = np.interp(np.arange(len(order)), ends, accuracy[ends])
    chosen = ends[np.unique(np.linspace(0, len(ends) - 1, MAX_POINTS).astype(int))]
    return RiskCurve(
        tuple(((chosen + 1) / len(order)).round(4).tolist()),
        tuple(accuracy[chosen].round(4).tolist()),
        float(1 - every.mean()),
    )

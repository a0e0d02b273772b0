"""What doubt is worth: measured on images that decided nothing."""

from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import softmax

from classify.doubt.novelty import Novelty
from classify.doubt.risk import measure_risk
from classify.evaluation.metrics import estimate_proportion
from classify.evaluation.predictions import MAX_LOG_LOSS, HeldOutPredictions


def measure_sets(
    threshold: float, predictions: HeldOutPredictions, set_sizes: np.ndarray, unit: np.ndarray
) -> dict[str, Any]:
    """Measure prediction sets on images.

    Parameters
    ----------
    threshold : float
        The probability from which a class belongs to a set.
    predictions : HeldOutPredictions
        Of n images.
    set_sizes : int array of shape (n,)
    unit : int array of shape (n,)
        Images with the same number belong together.

    Returns
    -------
    dict
        ``realised``, the share of sets that hold the truth, and ``realised_ci``; the mean
        ``set_size``; the shares of ``single`` and ``empty`` sets.
    """
    loss = predictions.calibrated_loss.astype(np.float64)
    # A class that the head does not know has the greatest loss, and is in no set.
    is_covered = (np.exp(-loss) >= threshold) & (loss < MAX_LOG_LOSS)
    realised, interval = estimate_proportion(is_covered, unit)
    return {
        "realised": realised,
        "realised_ci": list(interval),
        "set_size": float(set_sizes.mean()),
        "single": float((set_sizes == 1).mean()),
        "empty": float((set_sizes == 0).mean()),
    }


def measure_unknown(is_unknown: np.ndarray, unit: np.ndarray) -> dict[str, Any]:
    """Measure false alarms on images of known classes.

    Parameters
    ----------
    is_unknown : bool array of shape (n,)
    unit : int array of shape (n,)

    Returns
    -------
    dict
        ``unknown``, the share that is taken for unknown, and ``unknown_ci``.
    """
    share, interval = estimate_proportion(is_unknown, unit)
    return {"unknown": share, "unknown_ci": list(interval)}


def measure_selective_accuracy(predictions: HeldOutPredictions) -> dict[str, Any] | None:
    """Measure accuracy on the images that a head is surest of.

    Parameters
    ----------
    predictions : HeldOutPredictions

    Returns
    -------
    dict, or None
        The fields of a `classify.doubt.risk.RiskCurve`; None without confidences.
    """
    curve = measure_risk(predictions.calibrated_confidence, predictions.correct)
    if curve is None:
        return None
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(curve).items()}


def list_missing_doubt(
    n_held_out: int, has_sets: bool, has_novelty: bool, coverage: float
) -> list[str]:
    """Say what of its doubt a head does not know, and why.

    Parameters
    ----------
    n_held_out : int
        Number of images that were held out.
    has_sets, has_novelty : bool
    coverage : float
        The share that was asked for.

    Returns
    -------
    list of str
        Notices; none where the head knows both.
    """
    if not n_held_out:
        return ["nothing was held out, so it has no prediction sets and cannot tell strangers"]
    few = f"{n_held_out:,} held-out images, with groups counted as one, are too few"
    notices = []
    if not has_sets:
        notices.append(f"no prediction sets: {few} for a coverage of {coverage:g}")
    if not has_novelty:
        notices.append(f"it cannot tell strangers: {few}, or its features too wide")
    return notices


class DoubtCollector:
    """Collects the doubt of a head on test images, block by block.

    Parameters
    ----------
    threshold : float, or None
        As in `measure_sets`; None measures no sets.
    novelty : Novelty, or None
    temperature : float, or None
        Divisor of the decision values.
    """

    def __init__(
        self, threshold: float | None, novelty: Novelty | None, temperature: float | None
    ) -> None:
        self._threshold, self._novelty = threshold, novelty
        self._temperature = temperature or 1.0
        self._sizes, self._unknown = list[np.ndarray](), list[np.ndarray]()

    def add(self, features: np.ndarray, decision_values: np.ndarray) -> None:
        """Add a block of images.

        Parameters
        ----------
        features : float array of shape (n, D)
            Prepared.
        decision_values : float array of shape (n, K)
        """
        if self._threshold is None and self._novelty is None:
            return
        proba = softmax(decision_values.astype(np.float64) / self._temperature, axis=1)
        if self._threshold is not None:
            self._sizes.append((proba >= self._threshold).sum(axis=1))
        if self._novelty is not None:
            self._unknown.append(self._novelty.scores(features, proba) > self._novelty.threshold)

    def measure(self, predictions: HeldOutPredictions, unit: np.ndarray) -> dict[str, Any]:
        """Measure all that was added.

        Parameters
        ----------
        predictions : HeldOutPredictions
            Of the same images in the same order.
        unit : int array of shape (n,)

        Returns
        -------
        dict
            As `measure_sets` and `measure_unknown` give it where there is what they measure, and
            ``risk``.
        """
        found: dict[str, Any] = {}
        if self._threshold is not None:
            found |= measure_sets(self._threshold, predictions, np.concatenate(self._sizes), unit)
        if self._unknown:
            found |= measure_unknown(np.concatenate(self._unknown), unit)
        return found | {"risk": measure_selective_accuracy(predictions)}

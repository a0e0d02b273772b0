"""How good a head's answers are: scores with intervals, and two heads on the same images.

No interval here covers the training: another draw of training images would give another head. They
say how much a number would change with other test images, the head being as it is.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from classify.errors import CallError
from classify.evaluation.bootstrap import (
    MAX_BINS,
    MetricSums,
    bootstrap_means,
    bootstrap_weights,
    equal_mass_bins,
    null_calibration_error,
    renumber_units,
)
from classify.evaluation.predictions import HeldOutPredictions

MAX_DRAWS = 20_000_000  # images drawn in all: beyond it there are fewer resamples
MIN_RESAMPLES = 200  # resamples
Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """Scores on some images, each with its 95 % interval; None for what cannot be said.

    The intervals leave out the variance of training.

    Attributes
    ----------
    accuracy : float, or None
        With the interval of `estimate_proportion`. None, like the others, where there are no
        images.
    balanced_accuracy : float, or None
        Mean over classes of the share of their images that is found (recall).
    macro_f1 : float, or None
        Mean over classes of the harmonic mean of precision and recall. Classes without any image
        enter neither mean.
    log_loss : float, or None
        Mean of minus the natural logarithm of the truth's probability, each at most 100; of the
        head's own probabilities. None where it has scores only.
    calibration_error : float, or None
        How far the head's own confidence is from its accuracy, see `calibration_error`.
    log_loss_scaled, calibration_error_scaled : float, or None
        The same after calibration.
    """

    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    balanced_accuracy: float | None = None
    balanced_accuracy_ci: Interval | None = None
    macro_f1: float | None = None
    macro_f1_ci: Interval | None = None
    log_loss: float | None = None
    log_loss_ci: Interval | None = None
    calibration_error: float | None = None
    calibration_error_ci: Interval | None = None
    log_loss_scaled: float | None = None
    log_loss_scaled_ci: Interval | None = None
    calibration_error_scaled: float | None = None
    calibration_error_scaled_ci: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as a flat dict of what JSON knows: numbers, lists of two, and None."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def estimate_proportion(
    correct: np.ndarray, unit: np.ndarray | None = None, seed: int = 0
) -> tuple[float, Interval]:
    """How many of some answers are right, with a 95 % interval.

    Wilson's where every image stands alone. Else it is that of
    `classify.evaluation.bootstrap.bootstrap_means`, for which whole units are drawn again: images
    of one unit are right or wrong together.

    Parameters
    ----------
    correct : bool array of shape (n,)
        At least one.
    unit : int array of shape (n,), optional
    seed : int
    """
    unit = renumber_units(unit)
    if unit is None:
        return float(correct.mean()), wilson_interval(int(correct.sum()), len(correct))
    (found,) = bootstrap_means(correct[:, None], unit, (0, 1), seed)
    return found.value, (found.low, found.high)


def compute_metrics(
    predictions: HeldOutPredictions,
    n_classes: int,
    unit: np.ndarray | None = None,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Metrics:
    """Score a head's answers.

    The accuracy's interval is that of `estimate_proportion`. The others are of a bootstrap over
    units (B. Efron, 1979, "Bootstrap methods: another look at the jackknife", Annals of Statistics
    7): the 2.5th and 97.5th percentile of the metric over units drawn again. At most 20 million
    images are drawn, so that of more than 20,000 there are fewer resamples, though never under 200.

    For the calibration error these percentiles are mirrored at the estimate, and the lower end is 0
    where a perfectly calibrated head would be as far off by chance.

    Parameters
    ----------
    outcomes : HeldOutPredictions
        n of them.
    n_classes : int
        Of the task.
    unit : int array of shape (n,), optional
        Images with the same number are right or wrong together; each stands alone if not given.
    seed : int
    n_resamples : int

    Raises
    ------
    CallError
        If a class number is not below `n_classes`.
    """
    n = len(predictions)
    if not n:
        return Metrics()
    if max(predictions.truth.max(), predictions.predicted.max()) >= n_classes:
        raise CallError(f"class numbers are to be below {n_classes}, the number of classes")
    unit = renumber_units(unit)
    n_resamples = min(n_resamples, max(MIN_RESAMPLES, MAX_DRAWS // n))
    parts = MetricSums.from_predictions(predictions)
    (found,) = parts.compute(np.ones((1, n)))
    drawn = np.concatenate(
        [parts.compute(w) for w in bootstrap_weights(n, n_resamples, seed, unit)]
    )
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    # Drawing anew moves every bin away from the diagonal once more, so that resamples lie above
    # the estimate by about as much as the estimate above the truth: mirrored, they lie around it.
    # Measured with true errors of 0, 0.10 and 0.22 on 100, 1,000 and 5,000 images: these intervals
    # hold the truth in 90 to 99 % of draws, the plain percentiles in 0 to 96 %.
    for i, spread in parts.null_stds.items():
        low[i], high[i] = 2 * found[i] - high[i], max(found[i], 2 * found[i] - low[i])
        if found[i] <= null_calibration_error(spread, seed):
            low[i] = 0
    low, high = np.maximum(low, 0), np.maximum(high, 0)
    values: dict[str, Any] = {}
    for name, value, *ends in zip(parts.names, found, low, high, strict=True):
        values |= {name: float(value), f"{name}_ci": (float(ends[0]), float(ends[1]))}
    accuracy, interval = estimate_proportion(predictions.correct, unit, seed)
    return Metrics(accuracy=accuracy, accuracy_ci=interval, **values)


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """The points of a reliability diagram: one for each bin with images, by confidence.

    Attributes
    ----------
    confidence, accuracy : float64 arrays of shape (b,)
        Means over the bin's images.
    count : int array of shape (b,)
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability_curve(
    predictions: HeldOutPredictions, calibrated: bool, max_bins: int = MAX_BINS
) -> ReliabilityCurve:
    """How right a head is where it is so sure, in bins of about equally many images.

    Parameters
    ----------
    calibrated : bool
        Whether to take the probabilities after calibration, or the head's own.
    max_bins : int
        Bins; fewer where they would hold under 10 images. None where there are no probabilities.
    """
    confidence = predictions.calibrated_confidence if calibrated else predictions.confidence
    if not len(predictions) or np.isnan(confidence).any():
        return ReliabilityCurve(np.zeros(0), np.zeros(0), np.zeros(0, np.intp))
    which = equal_mass_bins(confidence, max_bins)
    count = np.bincount(which)
    some = np.flatnonzero(count)
    sure = np.bincount(which, confidence)[some] / count[some]
    right = np.bincount(which, predictions.correct)[some] / count[some]
    return ReliabilityCurve(sure, right, count[some])


def calibration_error(predictions: HeldOutPredictions, calibrated: bool) -> float | None:
    """Expected calibration error: the mean gap between confidence and accuracy, bin by bin.

    Guo et al. (2017), "On Calibration of Modern Neural Networks", ICML, with bins of equally many
    images as in Nixon et al. (2019), "Measuring Calibration in Deep Learning". 15 bins, fewer for
    under 150 images.

    It is biased upwards: chance moves every bin off the diagonal, and a perfectly calibrated head
    does not score 0 but about 0.8 sqrt(bins p (1 - p) / n); 0.04 for 1,000 images and an accuracy
    p of 0.8, 0.012 for 10,000. Compare it only between heads on the same images.

    Returns
    -------
    float, or None
        From 0 to 1; None where there are no images or no probabilities.
    """
    found = reliability_curve(predictions, calibrated)
    if not len(found.count):
        return None
    return float(np.average(np.abs(found.confidence - found.accuracy), weights=found.count))


def compute_confusion_matrix(predictions: HeldOutPredictions, n_classes: int) -> np.ndarray:
    """How often each class is taken for each: int array (K, K), truths in rows."""
    cells = predictions.truth * n_classes + predictions.predicted
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def wilson_interval(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval for a share, good for small n and near 0 and 1.

    E. B. Wilson (1927), "Probable inference, the law of succession, and statistical
    inference", Journal of the American Statistical Association 22, 209-212.

    Parameters
    ----------
    correct, n : int
        So many of so many.
    level : float
        Between 0 and 1.

    Returns
    -------
    low, high : float

    Raises
    ------
    CallError
        If `correct` is not from 0 to `n`, `n` is not positive or `level` not between 0 and 1.
    """
    if not (0 <= correct <= n and n > 0 and 0 < level < 1):
        raise CallError(f"no interval for {correct} of {n} at level {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, shrink = correct / n, 1 + z * z / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 at the ends, whatever rounding does.
    low = 0.0 if correct == 0 else (centre - half) / shrink
    high = 1.0 if correct == n else (centre + half) / shrink
    return low, high

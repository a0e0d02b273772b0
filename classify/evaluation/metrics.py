"""Metrics of a head's predictions, with intervals.

No interval here covers the training: another draw of training images would give another head. The
intervals show how much a metric would change with other test images, for the same head.
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

MAX_DRAWS = 20_000_000  # images drawn in all; more images get fewer resamples
MIN_RESAMPLES = 200
Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """Metrics on some images, each with its 95 % interval; None where undefined.

    The intervals leave out the variance of training.

    Attributes
    ----------
    accuracy : float, or None
        With the interval of `estimate_proportion`. None, like the others, where there are no
        images.
    balanced_accuracy : float, or None
        Mean over classes of the recall: the share of a class's images that is predicted correctly.
    macro_f1 : float, or None
        Mean over classes of the harmonic mean of precision and recall. Classes without an image
        count in neither mean.
    log_loss : float, or None
        Mean of minus the natural logarithm of the truth's probability, each at most 100; of the
        head's own probabilities. None where it gives decision values only.
    calibration_error : float, or None
        The mean gap between the head's own confidence and its accuracy, see `calibration_error`.
    log_loss_scaled, calibration_error_scaled : float, or None
        The same after calibration.
    accuracy_ci, and so on : (float, float), or None
        Lower and upper end of the interval of each metric.
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
        """Return the metrics as a flat dict of JSON values.

        Returns
        -------
        dict of str to object
            Numbers, lists of two for intervals, and None.
        """
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def estimate_proportion(
    correct: np.ndarray, unit: np.ndarray | None = None, seed: int = 0
) -> tuple[float, Interval]:
    """Estimate the share of correct predictions, with a 95 % interval.

    Wilson's interval where every image is its own unit. Otherwise that of
    `classify.evaluation.bootstrap.bootstrap_means`, which resamples whole units: images of one unit
    are correct or wrong together.

    Parameters
    ----------
    correct : bool array of shape (n,)
        At least one.
    unit : int array of shape (n,), optional
        Each image is its own unit if not given.
    seed : int

    Returns
    -------
    value : float
    interval : (float, float)
    """
    unit = renumber_units(unit)
    if unit is None:
        return float(correct.mean()), wilson_interval(int(correct.sum()), len(correct))
    (estimate,) = bootstrap_means(correct[:, None], unit, (0, 1), seed)
    return estimate.value, (estimate.low, estimate.high)


def compute_metrics(
    predictions: HeldOutPredictions,
    n_classes: int,
    unit: np.ndarray | None = None,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Metrics:
    """Compute the metrics of a head's predictions.

    The accuracy's interval is that of `estimate_proportion`. The others are of a bootstrap over
    units (B. Efron, 1979, "Bootstrap methods: another look at the jackknife", Annals of Statistics
    7): the 2.5th and 97.5th percentile of the metric over resampled units. At most 20 million
    images are drawn, so above 20,000 images there are fewer resamples, but never under 200.

    For the calibration error these percentiles are mirrored at the estimate, and the lower end is 0
    where a perfectly calibrated head would reach the same error by chance.

    Parameters
    ----------
    predictions : HeldOutPredictions
        Of n images.
    n_classes : int
        Of the task.
    unit : int array of shape (n,), optional
        Images with the same number are correct or wrong together. Each image is its own unit if not
        given.
    seed : int
    n_resamples : int

    Returns
    -------
    Metrics
        All None where there are no images.

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
    metric_sums = MetricSums.from_predictions(predictions)
    (estimates,) = metric_sums.compute(np.ones((1, n)))
    resampled = np.concatenate(
        [metric_sums.compute(weights) for weights in bootstrap_weights(n, n_resamples, seed, unit)]
    )
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    # Resampling moves every bin further from the diagonal. So resamples lie above the estimate by
    # about as much as the estimate lies above the truth; mirrored, they lie around the truth.
    # Measured with true errors of 0, 0.10 and 0.22 on 100, 1,000 and 5,000 images: these intervals
    # contain the truth in 90 to 99 % of draws, the plain percentiles in 0 to 96 %.
    for i, null_std in metric_sums.null_stds.items():
        low[i], high[i] = 2 * estimates[i] - high[i], max(estimates[i], 2 * estimates[i] - low[i])
        if estimates[i] <= null_calibration_error(null_std, seed):
            low[i] = 0
    low, high = np.maximum(low, 0), np.maximum(high, 0)
    values: dict[str, Any] = {}
    for name, value, *interval_ends in zip(metric_sums.names, estimates, low, high, strict=True):
        values |= {
            name: float(value),
            f"{name}_ci": (float(interval_ends[0]), float(interval_ends[1])),
        }
    accuracy, interval = estimate_proportion(predictions.correct, unit, seed)
    return Metrics(accuracy=accuracy, accuracy_ci=interval, **values)


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """The points of a reliability diagram, one for each bin with images, by rising confidence.

    Attributes
    ----------
    confidence, accuracy : float64 arrays of shape (b,)
        Means over the bin's images.
    count : int array of shape (b,)
        Images in the bin.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability_curve(
    predictions: HeldOutPredictions, calibrated: bool, max_bins: int = MAX_BINS
) -> ReliabilityCurve:
    """Compute a head's accuracy by confidence, in bins of about equally many images.

    Parameters
    ----------
    predictions : HeldOutPredictions
    calibrated : bool
        Whether to use the probabilities after calibration, or the head's own.
    max_bins : int
        Number of bins; fewer where they would hold under 10 images.

    Returns
    -------
    ReliabilityCurve
        Empty where there are no images or no probabilities.
    """
    confidence = predictions.calibrated_confidence if calibrated else predictions.confidence
    if not len(predictions) or np.isnan(confidence).any():
        return ReliabilityCurve(np.zeros(0), np.zeros(0), np.zeros(0, np.intp))
    bins = equal_mass_bins(confidence, max_bins)
    count = np.bincount(bins)
    filled = np.flatnonzero(count)
    mean_confidence = np.bincount(bins, confidence)[filled] / count[filled]
    accuracy = np.bincount(bins, predictions.correct)[filled] / count[filled]
    return ReliabilityCurve(mean_confidence, accuracy, count[filled])


def calibration_error(predictions: HeldOutPredictions, calibrated: bool) -> float | None:
    """Compute the expected calibration error: the mean gap of confidence and accuracy over bins.

    Guo et al. (2017), "On Calibration of Modern Neural Networks", ICML, with bins of equally many
    images as in Nixon et al. (2019), "Measuring Calibration in Deep Learning". 15 bins, fewer for
    under 150 images.

    It is biased upwards: chance moves every bin off the diagonal, so a perfectly calibrated head
    does not reach 0 but about 0.8 sqrt(bins p (1 - p) / n); 0.04 for 1,000 images and an accuracy
    p of 0.8, 0.012 for 10,000. Compare it only between heads on the same images.

    Parameters
    ----------
    predictions : HeldOutPredictions
    calibrated : bool
        Whether to use the probabilities after calibration, or the head's own.

    Returns
    -------
    float, or None
        From 0 to 1; None where there are no images or no probabilities.
    """
    curve = reliability_curve(predictions, calibrated)
    if not len(curve.count):
        return None
    return float(np.average(np.abs(curve.confidence - curve.accuracy), weights=curve.count))


def compute_confusion_matrix(predictions: HeldOutPredictions, n_classes: int) -> np.ndarray:
    """Count how often each class is predicted as each.

    Parameters
    ----------
    predictions : HeldOutPredictions
    n_classes : int
        K.

    Returns
    -------
    int array of shape (K, K)
        Truths in rows, predictions in columns.
    """
    cells = predictions.truth * n_classes + predictions.predicted
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def wilson_interval(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval for a share, which is accurate for small n and near 0 and 1.

    E. B. Wilson (1927), "Probable inference, the law of succession, and statistical
    inference", Journal of the American Statistical Association 22, 209-212.

    Parameters
    ----------
    correct : int
        Number of successes.
    n : int
        Number of trials.
    level : float
        Confidence level, between 0 and 1.

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
    half_width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 at the ends, despite rounding.
    low = 0.0 if correct == 0 else (centre - half_width) / shrink
    high = 1.0 if correct == n else (centre + half_width) / shrink
    return low, high

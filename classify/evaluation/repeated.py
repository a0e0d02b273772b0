"""Means over several draws of training images, with intervals that cover those draws.

Draws from one set of images share most of their training images. So their metrics vary less than
those of new sets would; the intervals allow for that.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from classify.evaluation.bootstrap import Estimate, estimate_cluster_variance


@dataclass(frozen=True)
class RepeatedMean:
    """The mean of a metric, or of a difference of metrics, over several draws.

    Attributes
    ----------
    estimate : Estimate
        With its 95 % interval.
    p_value : float
        Probability of a mean at least this far from 0 by chance; of use for a difference.
    """

    estimate: Estimate
    p_value: float


def average_over_splits(values: np.ndarray, overlap: float, step: float = 0.0) -> RepeatedMean:
    """Average over random splits of one set of images, with the corrected resampled t interval.

    C. Nadeau and Y. Bengio (2003), "Inference for the generalization error", Machine Learning 52,
    239-281: of J splits the variance of the mean is taken as (1/J + `overlap`) s², where s² is the
    variance between the splits. For repeated folds it is the same, over all folds of all draws (R.
    R. Bouckaert and E. Frank, 2004, "Evaluating the replicability of significance tests for
    comparing learning algorithms", PAKDD). It covers the draw of training and of test images.

    Parameters
    ----------
    values : float array of shape (J,)
        The metric of each split, two or more.
    overlap : float
        Test images for each training image: 0.25 where a fifth is held out.
    step : float
        By how much one test image changes the metric. It bounds the variance from below: splits
        that all agree count as if one image of one split differed.

    Returns
    -------
    RepeatedMean
    """
    variance, freedom = _estimate_between_variance(values, overlap, step)
    return _make_t_interval(float(values.mean()), variance, freedom)


def average_over_draws(values: np.ndarray, unit: np.ndarray, overlap: float) -> RepeatedMean:
    """Average over several draws of training images, all tested on the same images.

    Training images and test images are drawn independently, so the variance is the sum of two: that
    between the draws, as in `average_over_splits`, and that of the draw of test images, from each
    image's mean over the draws. Their interaction is counted in both, so the interval is slightly
    too wide. The degrees of freedom are combined after F. E. Satterthwaite (1946), "An approximate
    distribution of estimates of variance components", Biometrics Bulletin 2.

    Parameters
    ----------
    values : array of shape (J, n)
        A number for each of two or more draws and each test image: correct or not, or a difference.
    unit : int array of shape (n,)
        Test images with the same number are drawn together.
    overlap : float
        Images drawn for each image that stays in the pool. Draws that take most of a pool have most
        images in common. If a metric were the mean of a number over the images drawn, this would be
        the ratio of its variance between pools to that between draws.

    Returns
    -------
    RepeatedMean
    """
    _, unit = np.unique(unit, return_inverse=True)
    values = values.astype(float)
    draw_variance, draw_freedom = _estimate_between_variance(
        values.mean(axis=1), overlap, 1 / values.shape[1]
    )
    test_variance, test_freedom = estimate_cluster_variance(values.mean(axis=0), unit)
    freedom = (draw_variance + test_variance) ** 2 / (
        draw_variance**2 / draw_freedom + test_variance**2 / test_freedom
    )
    return _make_t_interval(float(values.mean()), draw_variance + test_variance, freedom)


def _estimate_between_variance(
    values: np.ndarray, overlap: float, step: float
) -> tuple[float, int]:
    count = len(values)
    return (1 / count + overlap) * max(float(values.var(ddof=1)), step**2 / count), count - 1


def _make_t_interval(mean: float, variance: float, freedom: float) -> RepeatedMean:
    standard_error = variance**0.5
    half = float(t.ppf(0.975, freedom)) * standard_error
    p_value = (
        2 * float(t.sf(abs(mean) / standard_error, freedom)) if standard_error else float(mean == 0)
    )
    return RepeatedMean(Estimate(mean, mean - half, mean + half), p_value)

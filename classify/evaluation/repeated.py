"""Scores over several draws of training images: means with intervals that cover those draws.

Between draws of one set of images most of the training images are the same, and so the scores are
more alike than those of new sets would be. What is here allows for that.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from classify.evaluation.bootstrap import Estimate, estimate_cluster_variance


@dataclass(frozen=True)
class RepeatedMean:
    """The mean of a score, or of a difference of scores, over several draws.

    Attributes
    ----------
    estimate : Estimate
        With its 95 % interval.
    p_value : float
        How often chance alone would bring the mean so far from 0; of use for a difference.
    """

    estimate: Estimate
    p_value: float


def average_over_splits(values: np.ndarray, overlap: float, step: float = 0.0) -> RepeatedMean:
    """The mean over random splits of one set of images, with the corrected resampled t interval.

    C. Nadeau and Y. Bengio (2003), "Inference for the generalization error", Machine Learning 52,
    239-281: of J splits the variance of the mean is taken as (1/J + `overlap`) s², where s² is the
    variance between the splits. For folds drawn anew it is the same, over all folds of all draws
    (R. R. Bouckaert and E. Frank, 2004, "Evaluating the replicability of significance tests for
    comparing learning algorithms", PAKDD). It covers the draw of training and of test images.

    Parameters
    ----------
    values : float array of shape (J,)
        The score of each split, two or more.
    overlap : float
        Test images for each training image: 0.25 where a fifth is held out.
    step : float
        By how much one test image moves the score. Splits that all agree are not taken for
        certainty, but as if one image of one split had been otherwise.
    """
    variance, freedom = _estimate_between_variance(values, overlap, step)
    return _make_t_interval(float(values.mean()), variance, freedom)


def average_over_draws(values: np.ndarray, unit: np.ndarray, overlap: float) -> RepeatedMean:
    """The mean over several draws of training images, all tested on the same images.

    Training images and test images are drawn apart from each other, so that the variance is the sum
    of two: that between the draws, taken as in `average_over_splits`, and that of the draw of test
    images, taken from each image's mean over the draws. What is left, the part of both together, is
    counted in either: the interval is rather too wide. Degrees of freedom are put together as by F.
    E. Satterthwaite (1946), "An approximate distribution of estimates of variance components",
    Biometrics Bulletin 2.

    Parameters
    ----------
    values : array of shape (J, n)
        A number for each of two or more draws and each test image: right or not, or a difference.
    unit : int array of shape (n,)
        Test images with the same number are drawn together.
    again : float
        Images drawn for each that is left in the pool they are drawn from: draws that take most of
        a pool have most of their images in common. Were a score the mean of a number over the
        images drawn, its variance between pools would be just so many times that between draws.
    """
    _, unit = np.unique(unit, return_inverse=True)
    values = values.astype(float)
    between, draws = _estimate_between_variance(values.mean(axis=1), overlap, 1 / values.shape[1])
    tested, units = estimate_cluster_variance(values.mean(axis=0), unit)
    freedom = (between + tested) ** 2 / (between**2 / draws + tested**2 / units)
    return _make_t_interval(float(values.mean()), between + tested, freedom)


def _estimate_between_variance(
    values: np.ndarray, overlap: float, step: float
) -> tuple[float, int]:
    count = len(values)
    return (1 / count + overlap) * max(float(values.var(ddof=1)), step**2 / count), count - 1


def _make_t_interval(mean: float, variance: float, freedom: float) -> RepeatedMean:
    error = variance**0.5
    half = float(t.ppf(0.975, freedom)) * error
    p_value = 2 * float(t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return RepeatedMean(Estimate(mean, mean - half, mean + half), p_value)

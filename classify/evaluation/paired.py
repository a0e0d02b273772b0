"""Compare two heads on the same images: paired differences, and correction for many comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from classify.errors import CallError
from classify.evaluation.bootstrap import estimate_cluster_mean, renumber_units, sign_flip_test
from classify.evaluation.metrics import Interval, wilson_interval
from classify.evaluation.predictions import HeldOutPredictions


@dataclass(frozen=True)
class Difference:
    """The difference in accuracy of two heads on the same images, the first less the second.

    Attributes
    ----------
    value : float
    low, high : float
        95 % interval. It leaves out the variance of training.
    p_value : float
        Probability of a difference at least this large if the heads were equally accurate.
    distinguishable : bool
        Whether the p-value is below 0.05.
    """

    value: float
    low: float
    high: float
    p_value: float
    distinguishable: bool


def compare_paired(
    a: HeldOutPredictions, b: HeldOutPredictions, unit: np.ndarray | None = None, *, seed: int = 0
) -> Difference:
    """Compare the accuracy of two heads, image by image.

    The interval is method 10 of R. G. Newcombe (1998), "Improved confidence intervals for the
    difference between binomial proportions based on paired data", Statistics in Medicine 17,
    2635-2650: Wilson's intervals of both accuracies, combined with their correlation. It is valid
    for few images and where the heads never disagree. The test is McNemar's in its exact form: a
    binomial test on the images that exactly one of the two predicts correctly (Q. McNemar, 1947).

    Where images belong together, the interval is that of
    `classify.evaluation.bootstrap.estimate_cluster_mean`, and the test is
    `classify.evaluation.bootstrap.sign_flip_test`. The heads are then distinguishable if also the
    interval excludes 0.

    Both leave out the variance of training: two trainings of one kind of head on other draws of
    training images may differ by more.

    Parameters
    ----------
    a, b : HeldOutPredictions
        Of the same rows, in any order.
    unit : int array of shape (n,), optional
        For each row of `a`. Each image is its own unit if not given.
    seed : int
        For the draws of `sign_flip_test`.

    Returns
    -------
    Difference

    Raises
    ------
    CallError
        If the rows differ or there are none, or the truths differ.
    """
    order_a, order_b = np.argsort(a.rows, kind="stable"), np.argsort(b.rows, kind="stable")
    same_rows = np.array_equal(a.rows[order_a], b.rows[order_b])
    if not len(a) or not same_rows or not np.array_equal(a.truth[order_a], b.truth[order_b]):
        raise CallError("two heads are compared on the same rows with the same truths, one or more")
    unit = None if unit is None else unit[order_a]
    return compare_correctness(a.correct[order_a], b.correct[order_b], unit, seed=seed)


def compare_correctness(
    correct_a: np.ndarray, correct_b: np.ndarray, unit: np.ndarray | None = None, *, seed: int = 0
) -> Difference:
    """Compare two heads as `compare_paired` does, given which predictions are correct.

    Parameters
    ----------
    correct_a, correct_b : bool arrays of shape (n,)
        For the same images in the same order; n > 0.
    unit : int array of shape (n,), optional
        Each image is its own unit if not given.
    seed : int
        For the draws of `sign_flip_test`.

    Returns
    -------
    Difference
    """
    n, unit = len(correct_a), renumber_units(unit)
    if unit is not None:
        difference = correct_a.astype(float) - correct_b
        estimate = estimate_cluster_mean(difference, unit)
        p_value = sign_flip_test(difference, unit, seed)
        distinguishable = p_value < 0.05 and not estimate.low <= 0 <= estimate.high
        return Difference(estimate.value, estimate.low, estimate.high, p_value, distinguishable)
    both, only_a = int((correct_a & correct_b).sum()), int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    low, high = _newcombe_interval(both, only_a, only_b, n - both - only_a - only_b)
    n_discordant = only_a + only_b
    p_value = float(binomtest(only_a, n_discordant).pvalue) if n_discordant else 1.0
    return Difference((only_a - only_b) / n, low, high, p_value, p_value < 0.05)


def apply_holm_correction(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Decide which of several tests are significant together.

    The chance of one wrong decision or more in the whole family is at most `level`. S. Holm (1979),
    "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
    65-70.

    Parameters
    ----------
    p_values : sequence of float
    level : float

    Returns
    -------
    list of bool
        Whether each test is significant.
    """
    significant = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - rank) >= level:
            break
        significant[i] = True
    return significant


def _newcombe_interval(both: int, only_a: int, only_b: int, neither: int) -> Interval:
    n = both + only_a + only_b + neither
    n_correct = (both + only_a, both + only_b)
    share_a, share_b = n_correct[0] / n, n_correct[1] / n
    (low_a, high_a), (low_b, high_b) = (
        wilson_interval(n_correct[0], n),
        wilson_interval(n_correct[1], n),
    )
    margins = n_correct[0] * (n - n_correct[0]) * n_correct[1] * (n - n_correct[1])
    covariance = float(both * neither - only_a * only_b)
    if covariance > 0:  # Newcombe's correction for continuity
        covariance = max(covariance - n / 2, 0)
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def half_width(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    value = share_a - share_b
    return (
        value - half_width(share_a - low_a, high_b - share_b),
        value + half_width(high_a - share_a, share_b - low_b),
    )

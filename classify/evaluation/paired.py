"""Two heads on the same images: paired differences, and correction for many comparisons."""

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
        How often chance alone would part two equal heads so far.
    distinguishable : bool
        Whether that is below 0.05.
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
    2635-2650: Wilson's intervals of both, put together with their correlation. It holds for few
    images and where the heads never disagree. What decides is McNemar's test in its exact form: a
    binomial test on the images that just one of the two has right (Q. McNemar, 1947).

    Where images belong together, the interval is
    `classify.evaluation.bootstrap.estimate_cluster_mean`, and
    `classify.evaluation.bootstrap.sign_flip_test` decides together with it.

    Both leave out the variance of training: two trainings of one kind of head on other draws of
    training images may differ by more.

    Parameters
    ----------
    a, b : HeldOutPredictions
        Of the same rows, in any order.
    unit : int array of shape (n,), optional
        For each row of `a`; each image stands alone if not given.
    seed : int
        For units.

    Raises
    ------
    CallError
        If the rows differ or are none, or their truths differ.
    """
    first, second = np.argsort(a.rows, kind="stable"), np.argsort(b.rows, kind="stable")
    same = np.array_equal(a.rows[first], b.rows[second])
    if not len(a) or not same or not np.array_equal(a.truth[first], b.truth[second]):
        raise CallError("two heads are compared on the same rows with the same truths, one or more")
    unit = None if unit is None else unit[first]
    return compare_correctness(a.correct[first], b.correct[second], unit, seed=seed)


def compare_correctness(
    correct_a: np.ndarray, correct_b: np.ndarray, unit: np.ndarray | None = None, *, seed: int = 0
) -> Difference:
    """`compare_paired`, from which predictions are right alone: bool arrays of shape (n,)."""
    n, unit = len(correct_a), renumber_units(unit)
    if unit is not None:
        difference = correct_a.astype(float) - correct_b
        found, p_value = (
            estimate_cluster_mean(difference, unit),
            sign_flip_test(difference, unit, seed),
        )
        told = p_value < 0.05 and not found.low <= 0 <= found.high
        return Difference(found.value, found.low, found.high, p_value, told)
    both, only_a = int((correct_a & correct_b).sum()), int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    low, high = _newcombe_interval(both, only_a, only_b, n - both - only_a - only_b)
    apart = only_a + only_b
    p_value = float(binomtest(only_a, apart).pvalue) if apart else 1.0
    return Difference((only_a - only_b) / n, low, high, p_value, p_value < 0.05)


def apply_holm_correction(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several tests are significant together: at most one wrong in 20 such families.

    S. Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 6, 65-70.
    """
    found = [False] * len(p_values)
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - place) >= level:
            break
        found[i] = True
    return found


def _newcombe_interval(both: int, only_a: int, only_b: int, neither: int) -> Interval:
    n = both + only_a + only_b + neither
    rights = (both + only_a, both + only_b)
    share_a, share_b = rights[0] / n, rights[1] / n
    (low_a, high_a), (low_b, high_b) = wilson_interval(rights[0], n), wilson_interval(rights[1], n)
    margins = rights[0] * (n - rights[0]) * rights[1] * (n - rights[1])
    cross = float(both * neither - only_a * only_b)
    if cross > 0:  # Newcombe's correction for continuity
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def side(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    value = share_a - share_b
    return (
        value - side(share_a - low_a, high_b - share_b),
        value + side(high_a - share_a, share_b - low_b),
    )

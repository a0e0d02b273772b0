"""The bootstrap behind the scores: images drawn anew, and what every score is then."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import t

from classify.evaluation.predictions import HeldOutPredictions, renumber

MAX_BINS = 15
MIN_PER_BIN = 10  # images in a bin: there are fewer bins where they would hold less
MAX_BLOCK_WEIGHTS = 1_000_000  # weights of images in memory at a time


def bootstrap_weights(
    n: int, n_resamples: int, seed: int, unit: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """How often each image is drawn: float64 (m, n), m resamples at a time.

    With units, numbers from 0 of shape (n,), whole units are drawn, as many as there are.
    """
    rng = np.random.default_rng(seed)
    step, count = max(1, MAX_BLOCK_WEIGHTS // n), n if unit is None else int(unit.max()) + 1
    for start in range(0, n_resamples, step):
        some = min(step, n_resamples - start)
        drawn = rng.integers(0, count, (some, count)) + count * np.arange(some)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=some * count).reshape(some, count)
        yield (weights if unit is None else weights[:, unit]).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """A measured number and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | list[float]]:
        """``value`` and ``ci``."""
        return {"value": self.value, "ci": [self.low, self.high]}


def bootstrap_means(
    columns: np.ndarray, unit: np.ndarray, ends: tuple[float, float], seed: int
) -> list[Estimate]:
    """Means over images with intervals for which whole units are drawn anew.

    A cluster bootstrap (A. C. Davison and D. V. Hinkley, 1997, "Bootstrap Methods and their
    Application", section 3.8): images of one unit, say of one patient, are right or wrong together,
    and are worth less than as many others. Two units are made up, one at either end of the scale,
    so that a few images that all agree are not taken for certainty: of m agreeing units the
    interval reaches about 3 / m to the other side, as the rule of three has it.

    Parameters
    ----------
    columns : array of shape (n, K)
        K numbers for each image; all columns see the same draws.
    unit : int array of shape (n,)
        A number for each group; for each image where there are no groups.
    ends : (float, float)
        Least and greatest value of the numbers: 0 and 1 of a share, -1 and 1 of a difference.
    seed : int

    Returns
    -------
    list of K Estimate
        It holds for the heads and choices as they are: the variance of training is left out.
    """
    _, unit = np.unique(unit, return_inverse=True)
    n, m = len(unit), int(unit.max()) + 1
    sums = np.stack([np.bincount(unit, column, m) for column in columns.T.astype(float)], axis=1)
    sums = np.concatenate([sums, np.full((2, sums.shape[1]), n / m) * np.array([ends]).T])
    count = np.append(np.bincount(unit, minlength=m), [n / m, n / m])
    drawn = np.concatenate(
        [w @ sums / (w @ count)[:, None] for w in bootstrap_weights(m + 2, 1000, seed)]
    )
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    mean = columns.mean(axis=0, dtype=float)
    low, high = np.minimum(low, mean), np.maximum(high, mean)
    return [Estimate(*map(float, ends)) for ends in zip(mean, low, high, strict=True)]


def estimate_cluster_mean(numbers: np.ndarray, unit: np.ndarray) -> Estimate:
    """A mean over images of whole units, with the t interval of a cluster sample.

    W. G. Cochran (1977), "Sampling Techniques", chapter 9A: the ratio estimate of clusters of
    unequal size, its variance from what their sums are off. Two units are made up of which one
    image is off by 1 to either side, so that units that all agree are not taken for certainty.

    Parameters
    ----------
    numbers : float array of shape (n,)
    unit : int array of shape (n,)
        From 0, m of them.
    """
    mean, (variance, freedom) = float(numbers.mean()), estimate_cluster_variance(numbers, unit)
    half = float(t.ppf(0.975, freedom) * np.sqrt(variance))
    return Estimate(mean, mean - half, mean + half)


def estimate_cluster_variance(numbers: np.ndarray, unit: np.ndarray) -> tuple[float, int]:
    """The variance of the mean that `estimate_cluster_mean` takes, and its degrees of freedom."""
    total, size = np.bincount(unit, numbers), np.bincount(unit)
    m = len(size)
    off = np.append(total - numbers.mean() * size, [1, -1])
    return float((m + 2) / (m + 1) * (off**2).sum() / len(numbers) ** 2), m + 1


def sign_flip_test(difference: np.ndarray, unit: np.ndarray, seed: int) -> float:
    """How often chance alone would part two equal heads so far: a p-value.

    Were the heads equal, either could have given either's answers on each unit: the sum of the
    differences is held against that with the signs of whole units turned (R. A. Fisher, 1935, "The
    Design of Experiments", section 21). Where every image stands alone this is McNemar's exact
    test. Up to 12 units all signs are gone through, else 10,000 draws of them.

    Parameters
    ----------
    difference : float array of shape (n,)
        1, 0 or -1 for each image.
    unit : int array of shape (n,)
        From 0.
    seed : int
    """
    net = np.bincount(unit, difference)
    net = net[net != 0]
    if not len(net):
        return 1.0
    if len(net) <= 12:
        signs = (np.arange(2 ** len(net))[:, None] >> np.arange(len(net)) & 1) * 2 - 1
        return float((np.abs(signs @ net) >= abs(net.sum())).mean())
    rng, more, draws = np.random.default_rng(seed), 0, 10_000
    step = max(1, MAX_BLOCK_WEIGHTS // len(net))
    for start in range(0, draws, step):
        signs = rng.integers(0, 2, (min(step, draws - start), len(net))) * 2 - 1
        more += int((np.abs(signs @ net) >= abs(net.sum())).sum())
    return (more + 1) / (draws + 1)


def null_calibration_error(null_std: np.ndarray, seed: int) -> float:
    """The calibration error that a perfectly calibrated head exceeds once in 40 draws.

    Consistency resampling (J. Bröcker and L. A. Smith, 2007, "Increasing the reliability of
    reliability diagrams", Weather and Forecasting 22), with a normal gap in each bin.
    """
    gaps = np.random.default_rng(seed).normal(size=(2000, len(null_std))) * null_std
    return float(np.quantile(np.abs(gaps).sum(axis=1), 0.975))


def equal_mass_bins(confidence: np.ndarray, max_bins: int = MAX_BINS) -> np.ndarray:
    """Bins of about equally many images by confidence: int array of shape (n,).

    There are `max_bins`, or fewer where they would hold under 10 images. Equal confidences share a
    bin, so that the order of the images does not matter.
    """
    count = max(1, min(max_bins, len(confidence) // MIN_PER_BIN))
    ordered = np.sort(confidence)
    edges = ordered[np.arange(1, count) * len(ordered) // count]
    return np.searchsorted(edges, confidence, side="right")


@dataclass(frozen=True, eq=False)
class MetricSums:
    """Scores as functions of sums over images, so that a resample is a product of matrices.

    Attributes
    ----------
    names : list of str
        The scores that can be said.
    n_present : int
        P, the classes with images.
    sums : sparse float64 array of shape (M, n)
        What each image adds to the M sums: hits, images and guesses of each of the P classes, then
        for each kind of probabilities the losses and the gaps of each bin.
    spreads : dict of int to float64 array of shape (15,)
        By position in `names`, for each calibration error: the standard deviation of the bins'
        gaps if the head were perfectly calibrated.
    """

    names: list[str]
    n_present: int
    sums: csr_array
    null_stds: dict[int, np.ndarray]

    @classmethod
    def from_predictions(cls, predictions: HeldOutPredictions) -> "MetricSums":
        """Prepare a head's answers, one or more."""
        n, everyone = len(predictions), np.arange(len(predictions), dtype=np.int32)
        present, truth = np.unique(predictions.truth, return_inverse=True)
        predicted = renumber(predictions.predicted, present)
        one = np.ones(n)
        # Which row of the sums, for which images, and with what value.
        entries = [(truth, predictions.correct, one), (truth + len(present), one > 0, one)]
        entries.append((predicted + 2 * len(present), predicted >= 0, one))
        names, height = ["balanced_accuracy", "macro_f1"], 3 * len(present)
        spreads: dict[int, np.ndarray] = {}
        for ending, confidence, loss in (
            ("", predictions.confidence, predictions.loss),
            ("_scaled", predictions.calibrated_confidence, predictions.calibrated_loss),
        ):
            if np.isnan(loss).any() or np.isnan(confidence).any():
                continue
            names += [f"log_loss{ending}", f"calibration_error{ending}"]
            entries.append((np.full(n, height), one > 0, loss.astype(float)))
            sure, which = confidence.astype(float), equal_mass_bins(confidence)
            entries.append((height + 1 + which, one > 0, sure - predictions.correct))
            spreads[len(names) - 1] = np.sqrt(np.bincount(which, sure * (1 - sure), MAX_BINS)) / n
            height += 1 + MAX_BINS
        rows = np.concatenate([row[enters].astype(np.int32) for row, enters, _ in entries])
        columns = np.concatenate([everyone[enters] for _, enters, _ in entries])
        values = np.concatenate([value[enters] for _, enters, value in entries])
        return cls(names, len(present), csr_array((values, (rows, columns)), (height, n)), spreads)

    def compute(self, weights: np.ndarray) -> np.ndarray:
        """From weights (m, n) to scores (m, number of names)."""
        sums, total = (self.sums @ weights.T).T, weights.sum(axis=1)
        p = self.n_present
        hits, images, guesses = sums[:, :p], sums[:, p : 2 * p], sums[:, 2 * p : 3 * p]
        there = images > 0
        counted = there.sum(axis=1)
        recall = np.divide(hits, images, out=np.zeros_like(hits), where=there)
        f1 = np.divide(2 * hits, images + guesses, out=np.zeros_like(hits), where=there)
        found = [recall.sum(axis=1) / counted, f1.sum(axis=1) / counted]
        for start in range(3 * p, sums.shape[1], 1 + MAX_BINS):
            found.append(sums[:, start] / total)
            gaps = np.abs(sums[:, start + 1 : start + 1 + MAX_BINS])
            found.append(gaps.sum(axis=1) / total)
        return np.stack(found, axis=1)


def renumber_units(unit: np.ndarray | None) -> np.ndarray | None:
    """Units numbered from 0; None where every image stands alone."""
    if unit is None:
        return None
    found, which = np.unique(unit, return_inverse=True)
    return None if len(found) == len(unit) else which

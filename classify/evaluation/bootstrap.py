"""The bootstrap behind the metrics: images are resampled, and every metric is computed again."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import t

from classify.evaluation.predictions import HeldOutPredictions, renumber

MAX_BINS = 15
MIN_PER_BIN = 10  # images in a bin; with fewer images there are fewer bins
MAX_BLOCK_WEIGHTS = 1_000_000  # weights in memory at a time
ROUNDING = 1e-10  # differences of sums, for their size, that are none


def bootstrap_weights(
    n: int, n_resamples: int, seed: int, unit: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Draw bootstrap resamples, and yield how often each image is drawn.

    Parameters
    ----------
    n : int
        Number of images.
    n_resamples : int
    seed : int
    unit : int array of shape (n,), optional
        From 0. Whole units are drawn, as many as there are. Images are drawn if not given.

    Yields
    ------
    float64 array of shape (m, n)
        Counts of m resamples; blocks of at most 1 million numbers.
    """
    rng = np.random.default_rng(seed)
    block_size, count = max(1, MAX_BLOCK_WEIGHTS // n), n if unit is None else int(unit.max()) + 1
    for start in range(0, n_resamples, block_size):
        size = min(block_size, n_resamples - start)
        drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield (weights if unit is None else weights[:, unit]).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """A measured number and its 95 % interval.

    Attributes
    ----------
    value : float
    low, high : float
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | list[float]]:
        """Return the number as ``value`` and its interval as ``ci``.

        Returns
        -------
        dict
        """
        return {"value": self.value, "ci": [self.low, self.high]}


def bootstrap_means(
    columns: np.ndarray, unit: np.ndarray, ends: tuple[float, float], seed: int
) -> list[Estimate]:
    """Estimate means over images, with intervals for which whole units are resampled.

    A cluster bootstrap (A. C. Davison and D. V. Hinkley, 1997, "Bootstrap Methods and their
    Application", section 3.8): images of one unit, for example of one patient, are correct or wrong
    together, and carry less information than as many independent images. Two artificial units are
    added, one at either end of the scale, so that the interval of a few units that agree is not
    empty: for m agreeing units it reaches about 3 / m to the other side, as in the rule of three.

    Parameters
    ----------
    columns : array of shape (n, K)
        K numbers for each image; all columns use the same resamples.
    unit : int array of shape (n,)
        The unit of each image.
    ends : (float, float)
        Least and greatest possible number: 0 and 1 for a share, -1 and 1 for a difference.
    seed : int

    Returns
    -------
    list of K Estimate
        Valid for the heads as they are: the variance of training is left out.
    """
    _, unit = np.unique(unit, return_inverse=True)
    n, n_units = len(unit), int(unit.max()) + 1
    sums = np.stack(
        [np.bincount(unit, column, n_units) for column in columns.T.astype(float)], axis=1
    )
    sums = np.concatenate([sums, np.full((2, sums.shape[1]), n / n_units) * np.array([ends]).T])
    sizes = np.append(np.bincount(unit, minlength=n_units), [n / n_units, n / n_units])
    means = np.concatenate(
        [
            weights @ sums / (weights @ sizes)[:, None]
            for weights in bootstrap_weights(n_units + 2, 1000, seed)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    mean = columns.mean(axis=0, dtype=float)
    low, high = np.minimum(low, mean), np.maximum(high, mean)
    return [Estimate(*map(float, ends)) for ends in zip(mean, low, high, strict=True)]


def estimate_cluster_mean(numbers: np.ndarray, unit: np.ndarray) -> Estimate:
    """Estimate a mean over images of whole units, with the t interval of a cluster sample.

    W. G. Cochran (1977), "Sampling Techniques", chapter 9A: the ratio estimate for clusters of
    unequal size, with a variance from the residuals of their sums. Two artificial units with
    residuals 1 and -1 are added, so that the interval is not empty where all units agree.

    Parameters
    ----------
    numbers : float array of shape (n,)
    unit : int array of shape (n,)
        From 0.

    Returns
    -------
    Estimate
    """
    mean, (variance, freedom) = float(numbers.mean()), estimate_cluster_variance(numbers, unit)
    half_width = float(t.ppf(0.975, freedom) * np.sqrt(variance))
    return Estimate(mean, mean - half_width, mean + half_width)


def estimate_cluster_variance(numbers: np.ndarray, unit: np.ndarray) -> tuple[float, int]:
    """Estimate the variance of the mean in `estimate_cluster_mean`.

    Parameters
    ----------
    numbers : float array of shape (n,)
    unit : int array of shape (n,)
        From 0.

    Returns
    -------
    variance : float
    freedom : int
        Degrees of freedom: the number of units plus 1.
    """
    sums, sizes = np.bincount(unit, numbers), np.bincount(unit)
    n_units = len(sizes)
    residuals = np.append(sums - numbers.mean() * sizes, [1, -1])
    return float(
        (n_units + 2) / (n_units + 1) * (residuals**2).sum() / len(numbers) ** 2
    ), n_units + 1


def sign_flip_test(difference: np.ndarray, unit: np.ndarray, seed: int) -> float:
    """Test whether two heads are equally accurate, with units whole.

    If the heads were equal, their predictions on a unit could be exchanged. So the sum of the
    differences is compared with its distribution under random signs of whole units (R. A. Fisher,
    1935, "The Design of Experiments", section 21). Where every image is its own unit this is
    McNemar's exact test. For up to 12 units with a difference all signs are enumerated, otherwise
    10,000 are drawn.

    Parameters
    ----------
    difference : float array of shape (n,)
        For each image: 1, 0 or -1, or a difference of losses.
    unit : int array of shape (n,)
        From 0.
    seed : int

    Returns
    -------
    float
        The p-value.
    """
    unit_sums = np.bincount(unit, difference)
    rounding = ROUNDING * np.abs(unit_sums).sum()
    unit_sums = unit_sums[np.abs(unit_sums) > rounding]
    observed = abs(unit_sums.sum()) - rounding  # sums as large but for rounding count as extreme
    if not len(unit_sums):
        return 1.0
    if len(unit_sums) <= 12:
        signs = (np.arange(2 ** len(unit_sums))[:, None] >> np.arange(len(unit_sums)) & 1) * 2 - 1
        return float((np.abs(signs @ unit_sums) >= observed).mean())
    rng, n_extreme, n_draws = np.random.default_rng(seed), 0, 10_000
    block_size = max(1, MAX_BLOCK_WEIGHTS // len(unit_sums))
    for start in range(0, n_draws, block_size):
        signs = rng.integers(0, 2, (min(block_size, n_draws - start), len(unit_sums))) * 2 - 1
        n_extreme += int((np.abs(signs @ unit_sums) >= observed).sum())
    return (n_extreme + 1) / (n_draws + 1)


def null_calibration_error(null_std: np.ndarray, seed: int) -> float:
    """Return the calibration error that a perfectly calibrated head exceeds once in 40 draws.

    Consistency resampling (J. Bröcker and L. A. Smith, 2007, "Increasing the reliability of
    reliability diagrams", Weather and Forecasting 22), with a normal gap in each bin.

    Parameters
    ----------
    null_std : float array of shape (b,)
        Standard deviation of each bin's share of the error, under perfect calibration.
    seed : int

    Returns
    -------
    float
    """
    gaps = np.random.default_rng(seed).normal(size=(2000, len(null_std))) * null_std
    return float(np.quantile(np.abs(gaps).sum(axis=1), 0.975))


def equal_mass_bins(confidence: np.ndarray, max_bins: int = MAX_BINS) -> np.ndarray:
    """Bin images by confidence, with about equally many images in each bin.

    Equal confidences share a bin, so the order of the images does not matter.

    Parameters
    ----------
    confidence : float array of shape (n,)
    max_bins : int
        Number of bins; fewer where they would hold under 10 images.

    Returns
    -------
    int array of shape (n,)
        The bin of each image, from 0 by rising confidence.
    """
    n_bins = max(1, min(max_bins, len(confidence) // MIN_PER_BIN))
    sorted_confidence = np.sort(confidence)
    edges = sorted_confidence[np.arange(1, n_bins) * len(sorted_confidence) // n_bins]
    return np.searchsorted(edges, confidence, side="right")


@dataclass(frozen=True, eq=False)
class MetricSums:
    """Metrics as functions of sums over images, so that resampling is a product of matrices.

    Attributes
    ----------
    names : list of str
        The metrics that can be computed.
    n_present : int
        P, the number of classes with images.
    sums : sparse float64 array of shape (M, n)
        What each image adds to the M sums: hits, images and predictions of each of the P classes;
        then the loss, and the gap of each bin, for each kind of probabilities.
    null_stds : dict of int to float64 array of shape (15,)
        By position in `names`, for each calibration error: the standard deviation of the bins' gaps
        if the head were perfectly calibrated.
    """

    names: list[str]
    n_present: int
    sums: csr_array
    null_stds: dict[int, np.ndarray]

    @classmethod
    def from_predictions(cls, predictions: HeldOutPredictions) -> "MetricSums":
        """Prepare the sums of a head's predictions.

        Parameters
        ----------
        predictions : HeldOutPredictions
            Of one image or more.

        Returns
        -------
        MetricSums
            Without metrics of probabilities that the head does not give.
        """
        n, positions = len(predictions), np.arange(len(predictions), dtype=np.int32)
        present, truth = np.unique(predictions.truth, return_inverse=True)
        predicted = renumber(predictions.predicted, present)
        ones = np.ones(n)
        # Row of the sums, mask of the images that enter it, and their values.
        entries = [(truth, predictions.correct, ones), (truth + len(present), ones > 0, ones)]
        entries.append((predicted + 2 * len(present), predicted >= 0, ones))
        names, n_sums = ["balanced_accuracy", "macro_f1"], 3 * len(present)
        null_stds: dict[int, np.ndarray] = {}
        for suffix, confidence, loss in (
            ("", predictions.confidence, predictions.loss),
            ("_scaled", predictions.calibrated_confidence, predictions.calibrated_loss),
        ):
            if np.isnan(loss).any() or np.isnan(confidence).any():
                continue
            names += [f"log_loss{suffix}", f"calibration_error{suffix}"]
            entries.append((np.full(n, n_sums), ones > 0, loss.astype(float)))
            confidence64, bins = confidence.astype(float), equal_mass_bins(confidence)
            entries.append((n_sums + 1 + bins, ones > 0, confidence64 - predictions.correct))
            null_stds[len(names) - 1] = (
                np.sqrt(np.bincount(bins, confidence64 * (1 - confidence64), MAX_BINS)) / n
            )
            n_sums += 1 + MAX_BINS
        rows = np.concatenate(
            [sum_rows[is_counted].astype(np.int32) for sum_rows, is_counted, _ in entries]
        )
        columns = np.concatenate([positions[is_counted] for _, is_counted, _ in entries])
        values = np.concatenate([value[is_counted] for _, is_counted, value in entries])
        return cls(
            names, len(present), csr_array((values, (rows, columns)), (n_sums, n)), null_stds
        )

    def compute(self, weights: np.ndarray) -> np.ndarray:
        """Compute the metrics of weighted images.

        Parameters
        ----------
        weights : float array of shape (m, n)
            How often each image counts, in m resamples.

        Returns
        -------
        float64 array of shape (m, number of names)
        """
        sums, total = (self.sums @ weights.T).T, weights.sum(axis=1)
        n_present = self.n_present
        hits, images, guesses = (
            sums[:, :n_present],
            sums[:, n_present : 2 * n_present],
            sums[:, 2 * n_present : 3 * n_present],
        )
        is_present = images > 0
        n_counted = is_present.sum(axis=1)
        recall = np.divide(hits, images, out=np.zeros_like(hits), where=is_present)
        f1 = np.divide(2 * hits, images + guesses, out=np.zeros_like(hits), where=is_present)
        columns = [recall.sum(axis=1) / n_counted, f1.sum(axis=1) / n_counted]
        for start in range(3 * n_present, sums.shape[1], 1 + MAX_BINS):
            columns.append(sums[:, start] / total)
            gaps = np.abs(sums[:, start + 1 : start + 1 + MAX_BINS])
            columns.append(gaps.sum(axis=1) / total)
        return np.stack(columns, axis=1)


def renumber_units(unit: np.ndarray | None) -> np.ndarray | None:
    """Renumber units from 0.

    Parameters
    ----------
    unit : int array of shape (n,), or None

    Returns
    -------
    int array of shape (n,), or None
        None where every image is its own unit.
    """
    if unit is None:
        return None
    numbers, renumbered = np.unique(unit, return_inverse=True)
    return None if len(numbers) == len(unit) else renumbered

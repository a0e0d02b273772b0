"""Metrics of several labels, numbers and grades over weighted images, many resamples at once.

Images are sorted once. A resample only changes how often each of them counts, so every metric is a
few cumulative sums of these counts. The values are those of scikit-learn's functions.
"""

from collections.abc import Callable, Sequence

import numpy as np

from classify.evaluation.targets.predictions import TargetPredictions
from classify.kinds import GRADE, MULTI

MAX_BLOCK_VALUES = 1_000_000  # of one sorted column over several resamples: 4 MB, which caches hold


def count_values(predictions: TargetPredictions) -> int:
    """Count the values that one resample goes through.

    Parameters
    ----------
    predictions : TargetPredictions

    Returns
    -------
    int
    """
    return max(1, predictions.values.size)


def resample_metrics(
    predictions: TargetPredictions,
    n_grades: int | None,
    weights: np.ndarray,
    names: Sequence[str],
) -> dict[str, np.ndarray]:
    """Compute metrics of weighted images.

    Parameters
    ----------
    predictions : TargetPredictions
        Of n images.
    n_grades : int, or None
    weights : float64 array of shape (m, n)
        How often each image counts, in m resamples.
    names : sequence of str
        As in `classify.evaluation.targets.metrics.METRICS`.

    Returns
    -------
    dict of str to float64 array of shape (m,)
        NaN where a metric is undefined.
    """
    if predictions.kind == MULTI:
        return _measure_labels(predictions, weights, names)
    if predictions.kind == GRADE:
        return _measure_grades(predictions, int(n_grades or 1), weights, names)
    return _measure_numbers(predictions, weights, names)


def _measure_labels(
    predictions: TargetPredictions, weights: np.ndarray, names: Sequence[str]
) -> dict[str, np.ndarray]:
    truth, values = predictions.truth, predictions.values
    known, has_label = ~np.isnan(truth), truth == 1
    predicted = predictions.predicted & known
    measures: dict[str, Callable[[], np.ndarray]] = {
        "macro_average_precision": lambda: _mean_of_defined(
            resample_label_precision(predictions, weights)
        ),
        "macro_f1": lambda: _mean_of_defined(resample_label_f1(predictions, weights)),
    }
    if "micro_average_precision" in names:
        image, label = np.nonzero(known)
        measures["micro_average_precision"] = lambda: _average_precision(
            values[image, label], has_label[image, label], _transpose(weights), image
        )
    if "micro_f1" in names:
        hits = (predicted & has_label).sum(axis=1).astype(float)
        total = (predicted.astype(float) + has_label).sum(axis=1)
        measures["micro_f1"] = lambda: _divide(weights @ (2 * hits), weights @ total)
    if "subset_accuracy" in names:
        is_right = ((predicted == has_label) | ~known).all(axis=1).astype(float)
        measures["subset_accuracy"] = lambda: _divide(weights @ is_right, weights.sum(axis=1))
    if "coverage_error" in names:
        lowest = np.where(has_label, values, np.inf).min(axis=1)
        depth = ((values >= lowest[:, None]) & known).sum(axis=1) * has_label.any(axis=1)
        measures["coverage_error"] = lambda: _divide(
            weights @ depth.astype(float), weights.sum(axis=1)
        )
    return {name: measures[name]() for name in names}


def resample_label_precision(predictions: TargetPredictions, weights: np.ndarray) -> np.ndarray:
    """Compute the average precision of every label over weighted images.

    Parameters
    ----------
    predictions : TargetPredictions
        Of several labels.
    weights : float64 array of shape (m, n)

    Returns
    -------
    float64 array of shape (m, T)
        NaN for a label that no image has.
    """
    known, has_label = ~np.isnan(predictions.truth), predictions.truth == 1
    transposed = _transpose(weights)
    columns = []
    for k in range(known.shape[1]):
        image = np.flatnonzero(known[:, k])
        columns.append(
            _average_precision(predictions.values[image, k], has_label[image, k], transposed, image)
        )
    return np.stack(columns, axis=1)


def resample_label_f1(predictions: TargetPredictions, weights: np.ndarray) -> np.ndarray:
    """Compute the F1 of every label over weighted images.

    Parameters
    ----------
    predictions : TargetPredictions
        Of several labels.
    weights : float64 array of shape (m, n)

    Returns
    -------
    float64 array of shape (m, T)
        NaN for a label that no image has.
    """
    has_label = predictions.truth == 1
    predicted = predictions.predicted & ~np.isnan(predictions.truth)
    hits = weights @ (predicted & has_label).astype(float)
    positives = weights @ has_label.astype(float)
    total = weights @ predicted.astype(float) + positives
    f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return np.where(positives > 0, f1, np.nan)


def _transpose(weights: np.ndarray) -> np.ndarray:
    """Return how often each image counts, one image a row: whole numbers, exact in float32."""
    return np.ascontiguousarray(weights.T, np.float32)


def _average_precision(
    scores: np.ndarray, has_label: np.ndarray, weights: np.ndarray, image: np.ndarray
) -> np.ndarray:
    """Compute average precision of k scores under m weightings: float64 (m,).

    `image` says which row of the weights (n, m) is that of each score. Precision is needed only
    where images with the label are, so images between two such scores are summed at once.
    """
    n_draws = weights.shape[1]
    if not has_label.any():
        return np.full(n_draws, np.nan)
    order = np.argsort(-scores, kind="stable")
    positive, image = has_label[order], image[order]
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of equal scores
    ends = np.unique(ends[np.searchsorted(ends, np.flatnonzero(positive))])
    starts = np.concatenate([[0], ends[:-1] + 1])
    hit_segment = np.searchsorted(ends, np.flatnonzero(positive))
    hit_starts = np.flatnonzero(np.diff(hit_segment, prepend=-1))
    result = np.empty(n_draws)
    size = max(1, MAX_BLOCK_VALUES // len(scores))
    for start in range(0, n_draws, size):
        block = weights[:, start : start + size]
        drawn = block[image[: ends[-1] + 1]]
        count = np.cumsum(np.add.reduceat(drawn, starts, axis=0), axis=0, dtype=np.float64)
        gained = np.add.reduceat(block[image[positive]], hit_starts, axis=0).astype(np.float64)
        hits = np.cumsum(gained, axis=0)
        precision = np.divide(hits, count, out=np.zeros_like(hits), where=count > 0)
        result[start : start + size] = _divide((gained * precision).sum(axis=0), hits[-1])
    return result


def _measure_grades(
    predictions: TargetPredictions, n_grades: int, weights: np.ndarray, names: Sequence[str]
) -> dict[str, np.ndarray]:
    truth = predictions.truth[:, 0].astype(np.intp)
    predicted = predictions.values[:, 0].astype(np.intp)
    total = weights.sum(axis=1)
    distance = np.abs(truth - predicted).astype(float)
    measures: dict[str, Callable[[], np.ndarray]] = {
        "mae": lambda: _divide(weights @ distance, total),
        "accuracy": lambda: _divide(weights @ (distance == 0).astype(float), total),
    }
    if "quadratic_kappa" in names:
        grades = np.arange(n_grades)
        true_counts = weights @ (truth[:, None] == grades).astype(float)
        predicted_counts = weights @ (predicted[:, None] == grades).astype(float)
        penalty = (grades[:, None] - grades) ** 2
        expected = ((true_counts @ penalty) * predicted_counts).sum(axis=1) / np.maximum(total, 1)
        observed = weights @ distance**2
        measures["quadratic_kappa"] = lambda: 1 - _divide(observed, expected)
    return {name: measures[name]() for name in names}


def _measure_numbers(
    predictions: TargetPredictions, weights: np.ndarray, names: Sequence[str]
) -> dict[str, np.ndarray]:
    truth, predicted = predictions.truth[:, 0], predictions.values[:, 0]
    total, error = weights.sum(axis=1), predicted - truth
    centred = truth - truth.mean()
    measures: dict[str, Callable[[], np.ndarray]] = {
        "mae": lambda: _divide(weights @ np.abs(error), total),
        "rmse": lambda: np.sqrt(_divide(weights @ error**2, total)),
        "r2": lambda: 1 - _divide(
            weights @ error**2, weights @ centred**2 - (weights @ centred) ** 2 / total
        ),
        "spearman": lambda: _correlate(
            weights, _rank(truth, weights), _rank(predicted, weights)
        ),
    }  # fmt: skip
    return {name: measures[name]() for name in names}


def _rank(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank numbers that count several times, equal ones by their mean rank: float64 (m, n)."""
    distinct, group = np.unique(numbers, return_inverse=True)
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(len(distinct)), side="right") - 1
    upper = np.cumsum(weights[:, order], axis=1)[:, ends]
    lower = np.concatenate([np.zeros((len(weights), 1)), upper[:, :-1]], axis=1)
    return np.asarray(((upper + lower) / 2)[:, group])


def _correlate(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1, keepdims=True)
    a = a - (weights * a).sum(axis=1, keepdims=True) / total
    b = b - (weights * b).sum(axis=1, keepdims=True) / total
    covariance = (weights * a * b).sum(axis=1)
    variance = (weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1)
    return _divide(covariance, np.sqrt(variance))


def _mean_of_defined(columns: np.ndarray) -> np.ndarray:
    is_defined = ~np.isnan(columns)
    return _divide(
        np.where(is_defined, columns, 0).sum(axis=1), is_defined.sum(axis=1).astype(float)
    )


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    quotient: np.ndarray = np.divide(a, b, out=np.full(len(a), np.nan), where=b > 1e-12)
    return quotient

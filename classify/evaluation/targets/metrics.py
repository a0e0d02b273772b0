"""Metrics of several labels, numbers and grades, with intervals.

As in `classify.evaluation.metrics`, no interval covers the training.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from classify.evaluation.bootstrap import (
    bootstrap_weights,
    estimate_cluster_mean,
    renumber_units,
    sign_flip_test,
)
from classify.evaluation.paired import Difference
from classify.evaluation.targets.predictions import TargetPredictions
from classify.evaluation.targets.resampled import (
    count_values,
    resample_label_f1,
    resample_label_precision,
    resample_metrics,
)
from classify.kinds import GRADE, MULTI, NUMBER

METRICS = {
    MULTI: (
        "macro_average_precision",
        "micro_average_precision",
        "macro_f1",
        "micro_f1",
        "subset_accuracy",
        "coverage_error",
    ),
    NUMBER: ("mae", "rmse", "r2", "spearman"),
    GRADE: ("quadratic_kappa", "mae", "accuracy"),
}
"""The metrics of each kind; the names are those of scikit-learn, where it has them."""
PRIMARY = {kind: names[0] for kind, names in METRICS.items()}
"""The metric that heads are ranked by, if none is asked for."""
LOWER_IS_BETTER = ("mae", "rmse", "coverage_error")
MAX_DRAWS = 100_000_000  # values drawn in all; more of them get fewer resamples
MIN_RESAMPLES = 200


def compute_target_metric(
    name: str,
    truth: np.ndarray,
    values: np.ndarray,
    thresholds: np.ndarray | None = None,
    n_grades: int | None = None,
) -> float | None:
    """Compute one metric.

    Parameters
    ----------
    name : str
        One of `METRICS` of the kind.
    truth, values, thresholds
        As in `TargetPredictions`.
    n_grades : int, optional
        Number of grades; needed for their metrics.

    Returns
    -------
    float, or None
        None where it is undefined.
    """
    if not len(truth):
        return None
    kind = next(kind for kind in METRICS if _is_of_kind(kind, name, n_grades))
    predictions = TargetPredictions(kind, np.arange(len(truth)), truth, values, thresholds)
    found = resample_metrics(predictions, n_grades, np.ones((1, len(truth))), (name,))[name][0]
    return None if np.isnan(found) else float(found)


def _is_of_kind(kind: str, name: str, n_grades: int | None) -> bool:
    return name in METRICS[kind] and (kind == GRADE) == (n_grades is not None)


def compute_target_metrics(
    predictions: TargetPredictions,
    n_grades: int | None = None,
    unit: np.ndarray | None = None,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a head's predictions, each with a 95 % interval.

    The intervals are of a bootstrap over units (B. Efron, 1979): the 2.5th and 97.5th percentile of
    the metric over resampled units. Where many values would be drawn there are fewer resamples, but
    never under 200.

    Parameters
    ----------
    predictions : TargetPredictions
        Of n images.
    n_grades : int, optional
        Number of grades; needed for their metrics.
    unit : int array of shape (n,), optional
        Images with the same number are drawn together. Each image is its own unit if not given.
    seed : int
    n_resamples : int
    names : sequence of str, optional
        The metrics; all of the kind if not given.

    Returns
    -------
    dict of str to float, list of two or None
        For each metric its value, and its interval as ``NAME_ci``; None where it is undefined.
    """
    names = METRICS[predictions.kind] if names is None else names
    described: dict[str, Any] = {}
    if not len(predictions):
        return {key: None for name in names for key in (name, f"{name}_ci")}
    point, draws = _resample(predictions, n_grades, unit, seed, n_resamples, names)
    for name in names:
        value, drawn = point[name], draws[name][~np.isnan(draws[name])]
        is_defined = not np.isnan(value) and len(drawn) > 0
        interval = np.quantile(drawn, [0.025, 0.975]) if is_defined else None
        described[name] = float(value) if is_defined else None
        described[f"{name}_ci"] = None if interval is None else [float(end) for end in interval]
    return described


def _resample(
    predictions: TargetPredictions,
    n_grades: int | None,
    unit: np.ndarray | None,
    seed: int,
    n_resamples: int,
    names: Sequence[str],
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return each metric's value, and its values over resampled units."""
    n, unit = len(predictions), renumber_units(unit)
    n_resamples = min(n_resamples, max(MIN_RESAMPLES, MAX_DRAWS // count_values(predictions)))
    point = resample_metrics(predictions, n_grades, np.ones((1, n)), names)
    blocks = [
        resample_metrics(predictions, n_grades, weights, names)
        for weights in bootstrap_weights(n, n_resamples, seed, unit)
    ]
    return {name: float(point[name][0]) for name in names}, {
        name: np.concatenate([block[name] for block in blocks]) for name in names
    }


def compute_label_scores(
    predictions: TargetPredictions,
    names: Sequence[str],
    unit: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compute the metrics of every label by itself.

    Parameters
    ----------
    predictions : TargetPredictions
        Of several labels.
    names : sequence of str
        Names of the T labels.
    unit, seed
        As in `compute_target_metrics`.

    Returns
    -------
    dict of str to dict
        By label: ``n`` images of which it is known, ``positives`` among them, ``threshold``, and
        ``average_precision``, ``f1``, ``precision`` and ``recall``, the first two with ``_ci``;
        None where undefined.
    """
    unit, n = renumber_units(unit), len(predictions)
    draws = list(bootstrap_weights(n, MIN_RESAMPLES, seed, unit))
    known, has_label = ~np.isnan(predictions.truth), predictions.truth == 1
    predicted, thresholds = predictions.predicted & known, predictions.thresholds
    scores: dict[str, dict[str, Any]] = {
        name: {
            "n": int(known[:, k].sum()),
            "positives": int(has_label[:, k].sum()),
            "threshold": 0.5 if thresholds is None else float(thresholds[k]),
            "precision": _share(has_label[predicted[:, k], k]),
            "recall": _share(predicted[has_label[:, k], k]),
        }
        for k, name in enumerate(names)
    }
    for key, measure in (
        ("average_precision", resample_label_precision),
        ("f1", resample_label_f1),
    ):
        values = measure(predictions, np.ones((1, n)))[0]
        drawn = np.concatenate([measure(predictions, weights) for weights in draws])
        for k, name in enumerate(names):
            defined = drawn[~np.isnan(drawn[:, k]), k]
            is_defined = len(defined) > 0 and not np.isnan(values[k])
            ends = np.quantile(defined, [0.025, 0.975]).tolist() if is_defined else None
            scores[name] |= {key: float(values[k]) if is_defined else None, f"{key}_ci": ends}
    return scores


def _share(column: np.ndarray) -> float | None:
    return float(column.mean()) if len(column) else None


def compare_target_paired(
    a: TargetPredictions,
    b: TargetPredictions,
    metric: str,
    n_grades: int | None = None,
    unit: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> Difference:
    """Compare two heads on the same images, the first less the second.

    A paired bootstrap: both are measured on the same resampled units. Of the mean absolute error
    the interval is that of `estimate_cluster_mean` and the test is `sign_flip_test`.

    Parameters
    ----------
    a, b : TargetPredictions
        Of the same rows in the same order.
    metric : str
    n_grades : int, optional
    unit : int array of shape (n,), optional
    seed : int

    Returns
    -------
    Difference
    """
    if metric == "mae":
        difference = a.losses - b.losses
        numbers = renumber_units(unit)
        numbers = np.arange(len(difference)) if numbers is None else numbers
        scale = float(np.abs(difference).max()) or 1.0  # the artificial units are of 1 and -1
        estimate = estimate_cluster_mean(difference / scale, numbers)
        low, high = estimate.low * scale, estimate.high * scale
        p_value = sign_flip_test(difference, numbers, seed)
        return Difference(
            float(difference.mean()), low, high, p_value, p_value < 0.05 and not low <= 0 <= high
        )
    point_a, draws_a = _resample(a, n_grades, unit, seed, 1000, (metric,))
    point_b, draws_b = _resample(b, n_grades, unit, seed, 1000, (metric,))
    drawn = draws_a[metric] - draws_b[metric]
    drawn = drawn[~np.isnan(drawn)]
    value = point_a[metric] - point_b[metric]
    if not len(drawn) or np.isnan(value):
        return Difference(0.0, -1.0, 1.0, 1.0, False)
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * (int(tail) + 1) / (len(drawn) + 1))
    return Difference(value, float(low), float(high), p_value, p_value < 0.05)


def choose_thresholds(truth: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Choose for each label the threshold with the highest F1.

    Parameters
    ----------
    truth : float array of shape (m, T)
        1, 0, or NaN where it is not known.
    values : float array of shape (m, T)
        Probabilities for images that the head was not trained on.

    Returns
    -------
    float64 array of shape (T,)
        Midpoints between neighbouring probabilities; of equally good ones the nearest to 0.5, and
        0.5 for a label without an image that has it.
    """
    thresholds = np.full(truth.shape[1], 0.5)
    for k in range(truth.shape[1]):
        known = ~np.isnan(truth[:, k])
        order = np.argsort(-values[known, k], kind="stable")
        sorted_values, has_label = values[known, k][order], truth[known, k][order] == 1
        if not has_label.any():
            continue
        is_last = np.append(np.diff(sorted_values) != 0, True)
        hits, count = np.cumsum(has_label)[is_last], np.flatnonzero(is_last) + 1
        f1 = 2 * hits / (count + has_label.sum())
        edges = sorted_values[is_last]
        midpoints = np.append((edges[:-1] + edges[1:]) / 2, edges[-1] / 2)
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        thresholds[k] = midpoints[best[np.argmin(np.abs(midpoints[best] - 0.5))]]
    return thresholds


def constant_predictions(
    kind: str, train_truth: np.ndarray, rows: np.ndarray, truth: np.ndarray
) -> TargetPredictions:
    """Predict without looking at any image.

    Parameters
    ----------
    kind : str
        ``multi``, ``number`` or ``grade``.
    train_truth : float64 array of shape (m, T)
        Of the training images.
    rows : int array of shape (n,)
        Of the images to predict.
    truth : float64 array of shape (n, T)
        Their labels.

    Returns
    -------
    TargetPredictions
        The frequency of each label, the mean number, or the most frequent grade.
    """
    if kind == GRADE:
        grades, counts = np.unique(train_truth[:, 0], return_counts=True)
        guess = grades[[int(np.argmax(counts))]]
    else:
        known = ~np.isnan(train_truth)
        total = np.where(known, train_truth, 0).sum(axis=0)
        guess = total / np.maximum(known.sum(axis=0), 1)
    values = np.tile(guess.astype(np.float64), (len(rows), 1))
    return TargetPredictions(kind, np.asarray(rows, np.int64), truth, values)


def count_grade_confusions(predictions: TargetPredictions, n_grades: int) -> np.ndarray:
    """Count how often each grade is predicted as each.

    Parameters
    ----------
    predictions : TargetPredictions
        Of grades.
    n_grades : int
        G.

    Returns
    -------
    int array of shape (G, G)
        Truths in rows, predictions in columns.
    """
    pairs = np.stack([predictions.truth[:, 0], predictions.values[:, 0]]).astype(np.intp)
    cells = pairs[0] * n_grades + pairs[1]
    return np.bincount(cells, minlength=n_grades**2).reshape(n_grades, n_grades)

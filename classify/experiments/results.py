"""Store a head's record and predictions next to the cache, so that no fit is repeated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from classify.data.tasks import Task
from classify.doubt.conformal import DEFAULT_COVERAGE
from classify.evaluation.predictions import HeldOutPredictions
from classify.evaluation.selection_metric import ACCURACY, SelectionMetric
from classify.heads.record import CACHE_FIELDS, HeadResult
from classify.labels.folders import TEST
from classify.store import compute_digest, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache

RESULT_VERSION = 4
"""Raise it when a computed number changes; stored results of older versions are then ignored."""
HEAD_REVISIONS = {"lda": 1}
"""The same for single heads: those that are trained otherwise than when they were first kept."""
# Fields of a record that are not numbers.
NON_NUMERIC_FIELDS = {
    "task",
    "head",
    "layer",
    "prepare",
    "metric",
    "classes",
    "class_weight",
}


@dataclass(frozen=True)
class FitOptions:
    """Options of one fit.

    Attributes
    ----------
    seed : int
    class_weight, prepare : str, or None
        As in `classify.fit`.
    metric : SelectionMetric
        Metric that selects the param and the layers.
    coverage : float
        Share of new images whose class the prediction sets shall hold.
    """

    seed: int = 0
    class_weight: str | None = None
    prepare: str | None = None
    metric: SelectionMetric = ACCURACY
    coverage: float = DEFAULT_COVERAGE


@dataclass(frozen=True, eq=False)
class FitResult:
    """Record and predictions of one head on one task.

    Attributes
    ----------
    record : HeadResult
    validation, test : HeldOutPredictions, or None
        Predictions by row; None where there are no such images.
    notices : tuple of str
        Notices for the user about the training.
    """

    record: HeadResult
    validation: HeldOutPredictions | None
    test: HeldOutPredictions | None
    notices: tuple[str, ...]

    @property
    def validation_loss(self) -> float:
        """Mean calibrated log loss on held-out images; infinite where there are none."""
        return math.inf if self.validation is None else self.validation.calibrated_log_loss


def result_key(
    cache: FeatureCache,
    task: Task,
    head: str,
    layers: Sequence[str],
    options: FitOptions,
) -> str:
    """Return a digest of all that determines a result: features, labels, split and head.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    head : str
    layers : sequence of str
    options : FitOptions

    Returns
    -------
    str
        Key for `save_result` and `load_result`.
    """
    fingerprints = [cache.layer(name).fingerprint for name in layers]
    metric_key = [options.metric.name, sorted(options.metric.costs.items())]
    key_parts: list[object] = [RESULT_VERSION, fingerprints, list(layers), head, options.seed]
    if head in HEAD_REVISIONS:
        key_parts.append(HEAD_REVISIONS[head])
    key_parts += [options.class_weight, options.prepare, metric_key, task.name, task.classes]
    if options.coverage != DEFAULT_COVERAGE:  # results of releases without coverage stay valid
        key_parts.append(options.coverage)
    image_hashes = cache.column("sha256", task.rows)
    return compute_digest(
        key_parts, image_hashes, task.rows, task.y, task.units, task.split.astype("S5")
    )


def save_result(cache: FeatureCache, key: str, result: FitResult) -> None:
    """Store a result next to the cache.

    Parameters
    ----------
    cache : FeatureCache
    key : str
        From `result_key`.
    result : FitResult
    """
    arrays: dict[str, np.ndarray] = {}
    for split in ("validation", "test"):
        predictions = getattr(result, split)
        if predictions is not None:
            arrays |= {
                f"{split}.{f.name}": getattr(predictions, f.name)
                for f in fields(HeldOutPredictions)
            }
    # What several caches add to a record depends on the comparison, and is not stored.
    record = {k: v for k, v in asdict(result.record).items() if k not in CACHE_FIELDS}
    metadata = {"record": record, "notices": list(result.notices)}
    save_artifact(cache, "result", key, arrays, metadata)


def load_result(
    cache: FeatureCache, key: str, task: Task, head: str, layers: Sequence[str]
) -> FitResult | None:
    """Load a stored result.

    Parameters
    ----------
    cache : FeatureCache
    key : str
        From `result_key`.
    task : Task
    head : str
    layers : sequence of str
        What the result must belong to.

    Returns
    -------
    FitResult or None
        None if there is none, or its content is invalid or does not fit the task.
    """
    artifact = load_artifact(cache, "result", key)
    if artifact is None:
        return None
    try:
        record: dict[str, Any] = dict(artifact.metadata["record"])
        if not all(_is_numeric(record[name]) for name in record.keys() - NON_NUMERIC_FIELDS):
            return None
        if not record.keys().isdisjoint(CACHE_FIELDS):
            return None
        for name in ("accuracy_ci", "validation_ci"):
            record[name] = None if record[name] is None else tuple(record[name])
        record["scores"] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in record["scores"].items()
        }
        result = FitResult(
            HeadResult(**record),
            _read_predictions(artifact.arrays, "validation"),
            _read_predictions(artifact.arrays, "test"),
            tuple(map(str, artifact.metadata["notices"])),
        )
        return result if _is_result_of(result, task, head, layers) else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _read_predictions(arrays: Mapping[str, np.ndarray], name: str) -> HeldOutPredictions | None:
    if f"{name}.rows" not in arrays:
        return None
    return HeldOutPredictions(
        **{f.name: arrays[f"{name}.{f.name}"] for f in fields(HeldOutPredictions)}
    )


def _is_numeric(value: object) -> bool:
    """Return whether a value is None, a finite number, or a list or dict of these."""
    if isinstance(value, (list, dict)):
        return all(map(_is_numeric, value.values() if isinstance(value, dict) else value))
    return value is None or (isinstance(value, (int, float)) and bool(np.isfinite(value)))


def _is_result_of(result: FitResult, task: Task, head: str, layers: Sequence[str]) -> bool:
    """Return whether a result, read from an untrusted file, fits this head and task."""
    record, test = result.record, task.split == TEST
    if (record.task, record.head, record.layer) != (task.name, head, "+".join(layers)):
        return False
    if not set(record.classes) <= set(task.classes) or record.n_test != test.sum():
        return False
    if result.test is not None and len(result.test) != record.n_test:
        return False
    return _are_predictions_of(
        record.validation, result.validation, task, ~test
    ) and _are_predictions_of(record.accuracy, result.test, task, test)


def _are_predictions_of(
    accuracy: float | None, predictions: HeldOutPredictions | None, task: Task, in_split: np.ndarray
) -> bool:
    """Return whether predictions are of images of this split and have this accuracy."""
    if accuracy is None or predictions is None:
        return accuracy is None and predictions is None
    positions = np.searchsorted(task.rows, predictions.rows)
    integer_columns = (predictions.rows, predictions.truth, predictions.predicted)
    return bool(
        all(column.shape == (len(predictions),) for column in vars(predictions).values())
        and all(column.dtype == np.int64 for column in integer_columns)
        and np.array_equal(task.rows.take(positions, mode="clip"), predictions.rows)
        and np.array_equal(task.y.take(positions, mode="clip"), predictions.truth)
        and in_split.take(positions, mode="clip").all()
        and np.isin(predictions.predicted, np.arange(len(task.classes))).all()
        and accuracy == predictions.correct.mean()
    )

"""A trained head's record and its answers, kept beside the cache so that no fit is done twice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from classify.data.folder_labels import TEST
from classify.data.tasks import Task
from classify.evaluation.predictions import HeldOutPredictions
from classify.evaluation.selection_metric import ACCURACY, SelectionMetric
from classify.heads.record import HeadResult
from classify.store import compute_digest, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache

RESULT_VERSION = 3
"""To be raised with every change of a number: results of older versions are not found then."""
# Of a record; the rest are numbers.
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
    """What was asked of the training of a head: see `classify.fit`."""

    seed: int = 0
    class_weight: str | None = None
    prepare: str | None = None
    metric: SelectionMetric = ACCURACY


@dataclass(frozen=True, eq=False)
class FitResult:
    """How one head did on one task.

    Attributes
    ----------
    record : HeadResult
    validation, test : HeldOutPredictions, or None
        Its answers, by row; None where there are no such images.
    notices : tuple of str
        What a user should know of the training.
    """

    record: HeadResult
    validation: HeldOutPredictions | None
    test: HeldOutPredictions | None
    notices: tuple[str, ...]

    @property
    def validation_loss(self) -> float:
        """The mean calibrated log loss on held-out images; infinite where there are none."""
        return math.inf if self.validation is None else self.validation.calibrated_log_loss


def result_key(
    cache: FeatureCache,
    task: Task,
    head: str,
    layers: Sequence[str],
    options: FitOptions,
) -> str:
    """A digest of everything that decides a result: features, labels, split and head."""
    prints = [cache.layer(name).fingerprint for name in layers]
    metric = [options.metric.name, sorted(options.metric.costs.items())]
    about: list[object] = [RESULT_VERSION, prints, list(layers), head, options.seed]
    about += [options.class_weight, options.prepare, metric, task.name, task.classes]
    contents = cache.column("sha256")[task.rows]
    return compute_digest(about, contents, task.rows, task.y, task.units, task.split.astype("S5"))


def save_result(cache: FeatureCache, key: str, result: FitResult) -> None:
    """Write a result beside the cache."""
    arrays: dict[str, np.ndarray] = {}
    for part in ("validation", "test"):
        outcomes = getattr(result, part)
        if outcomes is not None:
            arrays |= {
                f"{part}.{f.name}": getattr(outcomes, f.name) for f in fields(HeldOutPredictions)
            }
    about = {"record": asdict(result.record), "notices": list(result.notices)}
    save_artifact(cache, "result", key, arrays, about)


def load_result(
    cache: FeatureCache, key: str, task: Task, head: str, layers: Sequence[str]
) -> FitResult | None:
    """Read a result back; None if there is none, or none that can be what `result_key` named so."""
    kept = load_artifact(cache, "result", key)
    if kept is None:
        return None
    try:
        told: dict[str, Any] = dict(kept.metadata["record"])
        if not all(_is_numeric(told[name]) for name in told.keys() - NON_NUMERIC_FIELDS):
            return None
        for name in ("accuracy_ci", "validation_ci"):
            told[name] = None if told[name] is None else tuple(told[name])
        told["scores"] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in told["scores"].items()
        }
        result = FitResult(
            HeadResult(**told),
            _read_predictions(kept.arrays, "validation"),
            _read_predictions(kept.arrays, "test"),
            tuple(map(str, kept.metadata["notices"])),
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
    """Whether it is None, a finite number, or some of them."""
    if isinstance(value, (list, dict)):
        return all(map(_is_numeric, value.values() if isinstance(value, dict) else value))
    return value is None or (isinstance(value, (int, float)) and bool(np.isfinite(value)))


def _is_result_of(result: FitResult, task: Task, head: str, layers: Sequence[str]) -> bool:
    """Whether record and answers are of this head and task, and agree: the file may be anyone's."""
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
    accuracy: float | None, predictions: HeldOutPredictions | None, task: Task, among: np.ndarray
) -> bool:
    """Whether these are answers on some of a task's images, and that share of them is right."""
    if accuracy is None or predictions is None:
        return accuracy is None and predictions is None
    at = np.searchsorted(task.rows, predictions.rows)
    whole = (predictions.rows, predictions.truth, predictions.predicted)
    return bool(
        all(column.shape == (len(predictions),) for column in vars(predictions).values())
        and all(column.dtype == np.int64 for column in whole)
        and np.array_equal(task.rows.take(at, mode="clip"), predictions.rows)
        and np.array_equal(task.y.take(at, mode="clip"), predictions.truth)
        and among.take(at, mode="clip").all()
        and np.isin(predictions.predicted, np.arange(len(task.classes))).all()
        and accuracy == predictions.correct.mean()
    )

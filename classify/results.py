"""A trained head's record and its answers, kept beside the cache so that no fit is done twice."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from classify.kept import digest, keep, recall
from classify.labels import TEST
from classify.metrics import ACCURACY, Metric
from classify.outcomes import Outcomes
from classify.records import Record
from classify.tasks import Task
from featurize.cache import FeatureCache

VERSION = 3
"""To be raised with every change of a number: results of older versions are not found then."""
# Of a record; the rest are numbers.
WORDS = {
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
    metric: Metric = ACCURACY


@dataclass(frozen=True, eq=False)
class Result:
    """How one head did on one task.

    Attributes
    ----------
    record : Record
    validation, test : Outcomes, or None
        Its answers, by row; None where there are no such images.
    notices : tuple of str
        What a user should know of the training.
    """

    record: Record
    validation: Outcomes | None
    test: Outcomes | None
    notices: tuple[str, ...]


def key_of(
    cache: FeatureCache,
    task: Task,
    head: str,
    layers: Sequence[str],
    options: FitOptions,
) -> str:
    """A digest of everything that decides a result: features, labels, split and head."""
    prints = [cache.layer(name).fingerprint for name in layers]
    metric = [options.metric.name, sorted(options.metric.costs.items())]
    about: list[object] = [VERSION, prints, list(layers), head, options.seed]
    about += [options.class_weight, options.prepare, metric, task.name, task.classes]
    contents = cache.column("sha256")[task.rows]
    return digest(about, contents, task.rows, task.y, task.units, task.split.astype("S5"))


def keep_result(cache: FeatureCache, key: str, result: Result) -> None:
    """Write a result beside the cache."""
    arrays: dict[str, np.ndarray] = {}
    for part in ("validation", "test"):
        outcomes = getattr(result, part)
        if outcomes is not None:
            arrays |= {f"{part}.{f.name}": getattr(outcomes, f.name) for f in fields(Outcomes)}
    about = {"record": asdict(result.record), "notices": list(result.notices)}
    keep(cache, "result", key, arrays, about)


def recall_result(
    cache: FeatureCache, key: str, task: Task, head: str, layers: Sequence[str]
) -> Result | None:
    """Read a result back; None if there is none, or none that can be what `key_of` named so."""
    kept = recall(cache, "result", key)
    if kept is None:
        return None
    try:
        told: dict[str, Any] = dict(kept.about["record"])
        if not all(_is_number(told[name]) for name in told.keys() - WORDS):
            return None
        for name in ("accuracy_ci", "validation_ci"):
            told[name] = None if told[name] is None else tuple(told[name])
        told["scores"] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in told["scores"].items()
        }
        result = Result(
            Record(**told),
            _outcomes(kept.arrays, "validation"),
            _outcomes(kept.arrays, "test"),
            tuple(map(str, kept.about["notices"])),
        )
        return result if _fits(result, task, head, layers) else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _outcomes(arrays: Mapping[str, np.ndarray], part: str) -> Outcomes | None:
    if f"{part}.rows" not in arrays:
        return None
    return Outcomes(**{f.name: arrays[f"{part}.{f.name}"] for f in fields(Outcomes)})


def _is_number(value: object) -> bool:
    """Whether it is None, a finite number, or some of them."""
    if isinstance(value, (list, dict)):
        return all(map(_is_number, value.values() if isinstance(value, dict) else value))
    return value is None or (isinstance(value, (int, float)) and bool(np.isfinite(value)))


def _fits(result: Result, task: Task, head: str, layers: Sequence[str]) -> bool:
    """Whether record and answers are of this head and task, and agree: the file may be anyone's."""
    record, test = result.record, task.split == TEST
    if (record.task, record.head, record.layer) != (task.name, head, "+".join(layers)):
        return False
    if not set(record.classes) <= set(task.classes) or record.n_test != test.sum():
        return False
    if result.test is not None and len(result.test) != record.n_test:
        return False
    return _agrees(record.validation, result.validation, task, ~test) and _agrees(
        record.accuracy, result.test, task, test
    )


def _agrees(share: float | None, answers: Outcomes | None, task: Task, among: np.ndarray) -> bool:
    """Whether these are answers on some of a task's images, and that share of them is right."""
    if share is None or answers is None:
        return share is None and answers is None
    at = np.searchsorted(task.rows, answers.rows)
    whole = (answers.rows, answers.truth, answers.predicted)
    return bool(
        all(column.shape == (len(answers),) for column in vars(answers).values())
        and all(column.dtype == np.int64 for column in whole)
        and np.array_equal(task.rows.take(at, mode="clip"), answers.rows)
        and np.array_equal(task.y.take(at, mode="clip"), answers.truth)
        and among.take(at, mode="clip").all()
        and np.isin(answers.predicted, np.arange(len(task.classes))).all()
        and share == answers.correct.mean()
    )

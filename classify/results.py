"""A trained head's record and its answers, kept beside the cache so that no fit is done twice."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from classify.kept import digest, keep, recall
from classify.outcomes import Outcomes
from classify.records import Record
from classify.tasks import Task
from featurize.cache import FeatureCache

VERSION = 1
"""To be raised with every change of a number: results of older versions are not found then."""


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
    seed: int,
    class_weight: str | None,
) -> str:
    """A digest of everything that decides a result: features, labels, split and head."""
    prints = [cache.layer(name).fingerprint for name in layers]
    about = [VERSION, prints, list(layers), head, seed, class_weight, task.name, task.classes]
    contents = cache.column("sha256")[task.rows]
    groups = np.zeros(0, np.int64) if task.groups is None else task.groups
    return digest(about, contents, task.rows, task.y, groups, task.split.astype("S5"))


def keep_result(cache: FeatureCache, key: str, result: Result) -> None:
    """Write a result beside the cache."""
    arrays: dict[str, np.ndarray] = {}
    for part in ("validation", "test"):
        outcomes = getattr(result, part)
        if outcomes is not None:
            arrays |= {f"{part}.{f.name}": getattr(outcomes, f.name) for f in fields(Outcomes)}
    about = {"record": asdict(result.record), "notices": list(result.notices)}
    keep(cache, "result", key, arrays, about)


def recall_result(cache: FeatureCache, key: str) -> Result | None:
    """Read a result back; None if there is none, or none that can be read."""
    kept = recall(cache, "result", key)
    if kept is None:
        return None
    try:
        told: dict[str, Any] = dict(kept.about["record"])
        for name in ("accuracy_ci", "validation_ci"):
            told[name] = None if told[name] is None else tuple(told[name])
        told["scores"] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in told["scores"].items()
        }
        return Result(
            Record(**told),
            _outcomes(kept.arrays, "validation"),
            _outcomes(kept.arrays, "test"),
            tuple(kept.about["notices"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _outcomes(arrays: Mapping[str, np.ndarray], part: str) -> Outcomes | None:
    if f"{part}.rows" not in arrays:
        return None
    return Outcomes(**{f.name: arrays[f"{part}.{f.name}"] for f in fields(Outcomes)})

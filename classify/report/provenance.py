"""Where everything in a report comes from."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from classify.data.folder_labels import TEST, TRAIN, VAL
from classify.experiments.compare import Comparison
from featurize.cache.reader import FeatureCache

REPORTED_PACKAGES = (
    "headgraft",
    "numpy",
    "scipy",
    "scikit-learn",
    "h5py",
    "joblib",
    "pillow",
    "bokeh",
)
Facts = list[tuple[str, str]]


def collect_provenance(
    cache: FeatureCache,
    comparison: Comparison,
    *,
    command: str | None,
    sources: Mapping[str, str],
    seed: int | None,
) -> dict[str, Facts]:
    """Names and values under headings, all of them text.

    Parameters
    ----------
    command : str, optional
        What was typed.
    sources : mapping of str to str
        Where each task's labels come from.
    seed : int, optional
        Of the held-out images and the folds.
    """
    trained = len(comparison.results) - comparison.n_reused
    made: Facts = [
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("command", command or "called from Python"),
        ("heads", f"{trained:,} trained, {comparison.n_reused:,} found beside the cache"),
    ]
    if seed is not None:
        made.append(("seed", f"{seed} (held-out images and folds)"))
    weights = {record.class_weight for record in comparison.records} - {None}
    made.append(("class weight", ", ".join(sorted(map(str, weights))) or "none"))
    return {
        "This report": made,
        "Feature cache": _describe_cache(cache),
        "Backbone": _describe_backbone(cache),
        "Packages": [(name, _find_version(name)) for name in REPORTED_PACKAGES]
        + [("Python", f"{platform.python_version()} on {platform.system()}")],
    } | {
        f"Task {task.name}": _describe_task(task, sources.get(task.name))
        for task in comparison.tasks
    }


def _describe_cache(cache: FeatureCache) -> Facts:
    count = cache.counts
    return [
        ("file", str(cache.path)),
        ("format", f"headgraft-feature-cache {cache.format_version}"),
        ("made by", cache.created_by),
        ("made from", cache.root),
        ("rows", f"{count['ok']:,} ok, {count['failed']:,} failed, {count['pending']:,} pending"),
    ]


def _describe_backbone(cache: FeatureCache) -> Facts:
    made = cache.extractor
    return [
        ("backbone", made.backbone),
        ("weights", made.weights),
        ("weights digest", f"sha256 {made.weights_sha256}"),
        ("precision", made.precision),
        *(
            (f"preprocessing: {name}", _format_value(value))
            for name, value in made.preprocess.items()
        ),
        *(
            (f"environment: {name}", _format_value(value))
            for name, value in made.environment.items()
        ),
    ]


def _describe_task(task: Any, source: str | None) -> Facts:
    parts = [f"{int((task.split == part).sum()):,} {part}" for part in (TRAIN, VAL, TEST)]
    smallest = int(np.bincount(task.y, minlength=len(task.classes)).min())
    found = [("labels", source)] if source else []
    return [
        *found,
        ("classes", f"{len(task.classes):,}, the smallest with {smallest:,} images"),
        ("split", ", ".join(parts)),
        ("groups", "none" if task.groups is None else f"{len(np.unique(task.groups)):,}"),
    ]


def _format_value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"

"""Provenance of a report: cache, backbone, packages and tasks."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from classify.data.sets.cache_set import list_caches
from classify.data.targets.task import TargetTask
from classify.experiments.compare import Comparison
from classify.experiments.targets.compare import TargetComparison
from classify.labels.folders import TEST, TRAIN, VAL
from featurize.cache.reader import FeatureCache
from featurize.text import list_first

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
    comparison: Comparison | TargetComparison,
    *,
    command: str | None,
    sources: Mapping[str, str],
    seed: int | None,
) -> dict[str, Facts]:
    """Collect names and values under headings, all as text.

    Parameters
    ----------
    cache : FeatureCache
    comparison : Comparison or TargetComparison
    command : str or None
        The command line; None if called from Python.
    sources : mapping of str to str
        By task name, where its labels come from.
    seed : int or None
        Seed of the held-out images and the folds.

    Returns
    -------
    dict of str to list of (str, str)
        By heading.
    """
    plural = "s" if comparison.caches else ""
    n_untrained = sum(record.n_train == 0 for record in comparison.records)
    n_trained = len(comparison.results) - comparison.n_reused - n_untrained
    report_facts: Facts = [
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("command", command or "called from Python"),
        ("heads", f"{n_trained:,} trained, {comparison.n_reused:,} found beside the cache{plural}"),
    ]
    if seed is not None:
        report_facts.append(("seed", f"{seed} (held-out images and folds)"))
    if isinstance(comparison, Comparison):
        weights = {record.class_weight for record in comparison.records} - {None}
        report_facts.append(("class weight", ", ".join(sorted(map(str, weights))) or "none"))
    return {
        "This report": report_facts,
        **_describe_caches(cache),
        "Packages": [(name, _find_version(name)) for name in REPORTED_PACKAGES]
        + [("Python", f"{platform.python_version()} on {platform.system()}")],
    } | {
        f"Task {task.name}": _describe_task(task, sources.get(task.name))
        for task in comparison.tasks
    }


def _describe_caches(cache: FeatureCache) -> dict[str, Facts]:
    """Describe each cache and its backbone; with their names where there are several."""
    sections: dict[str, Facts] = {}
    for name, each in list_caches(cache).items():
        suffix = f" {name}" if name else ""
        sections[f"Feature cache{suffix}"] = _describe_cache(each)
        sections[f"Backbone{suffix}"] = _describe_backbone(each)
    return sections


def _describe_cache(cache: FeatureCache) -> Facts:
    counts = cache.counts
    return [
        ("file", str(cache.path)),
        ("format", f"headgraft-feature-cache {cache.format_version}"),
        ("made by", cache.created_by),
        ("made from", cache.root),
        (
            "rows",
            f"{counts['ok']:,} ok, {counts['failed']:,} failed, {counts['pending']:,} pending",
        ),
    ]


def _describe_backbone(cache: FeatureCache) -> Facts:
    extractor = cache.extractor
    return [
        ("backbone", extractor.backbone),
        ("weights", extractor.weights),
        ("weights digest", f"sha256 {extractor.weights_sha256}"),
        ("precision", extractor.precision),
        *(
            (f"preprocessing: {name}", _format_value(value))
            for name, value in extractor.preprocess.items()
        ),
        *(
            (f"environment: {name}", _format_value(value))
            for name, value in extractor.environment.items()
        ),
    ]


def _describe_task(task: Any, source: str | None) -> Facts:
    split_counts = [f"{int((task.split == part).sum()):,} {part}" for part in (TRAIN, VAL, TEST)]
    if isinstance(task, TargetTask):
        kind = ("kind", f"{task.kind}: {list_first(list(task.names))}")
    else:
        smallest = int(np.bincount(task.y, minlength=len(task.classes)).min())
        kind = ("classes", f"{len(task.classes):,}, the smallest with {smallest:,} images")
    label_facts = [("labels", source)] if source else []
    return [
        *label_facts,
        kind,
        ("split", ", ".join(split_counts)),
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

"""Cuts a cache file into a cache of parts, as a run would have made it."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurize import FeatureCache
from featurize.cache.builder import allocate_cache
from featurize.cache.format import FAILED, MARKED
from featurize.cache.parts.index import PartRange, PartsIndex, write_index
from featurize.cache.writer import CacheWriter
from featurize.extraction.completion.label_table import label_table_path
from featurize.sources.listing import Container, ImagePlaces


def cut_cache(path: Path, folder: Path, starts: Sequence[int]) -> Path:
    """Make a folder of parts of a cache file; each part begins at one of some rows.

    Rows keep their status, places and labels. The first start is 0.
    """
    cache = FeatureCache(path)
    folder.mkdir()
    parts = []
    for number, start in enumerate(starts):
        stop = [*starts, cache.n_rows][number + 1]
        part = PartRange(f"part-{number:05d}.h5", cache.paths[start] if start else "")
        _copy_rows(cache, folder / part.file, np.arange(start, stop))
        _copy_labels(path, folder / part.file, cache.paths[start:stop])
        parts.append(part)
    fingerprints = {name: info.fingerprint for name, info in cache.layers.items()}
    write_index(
        folder, PartsIndex(tuple(parts), int(max(np.diff([*starts, cache.n_rows]))), fingerprints)
    )
    return folder


def _copy_rows(cache: FeatureCache, target: Path, rows: np.ndarray) -> None:
    sizes, stamps = cache.column("size", rows), cache.column("mtime_ns", rows)
    allocate_cache(
        target,
        cache.extractor,
        list(cache.layers.values()),
        cache.paths_of(rows),
        sizes,
        stamps,
        root=cache.root,
        include=cache.include,
        exclude=cache.exclude,
        source=cache.source or None,
        places=_select_places(cache, rows),
    )
    status, sha256 = cache.column("status", rows), cache.column("sha256", rows)
    with CacheWriter(target) as writer:
        done = np.flatnonzero(status == MARKED)
        if len(done):
            features = {name: cache.stored(name, rows[done]) for name in cache.layers}
            writer.fill(done, features, sha256[done], sizes[done], stamps[done])
        failed = np.flatnonzero(status == FAILED)
        if len(failed):
            reasons = cache.column("reason", rows[failed])
            writer.record_failures(failed, reasons, sha256[failed], sizes[failed], stamps[failed])


def _select_places(cache: FeatureCache, rows: np.ndarray) -> ImagePlaces | None:
    if not cache.containers:
        return None
    used, container_of = np.unique(cache.column("container", rows), return_inverse=True)
    records = [cache.containers[number] for number in used]
    containers = [Container(record.name, record.size, record.stamp) for record in records]
    return ImagePlaces(containers, container_of, cache.column("offset", rows))


def _copy_labels(path: Path, target: Path, keys: Sequence[str]) -> None:
    table = label_table_path(path)
    if not table.exists():
        return
    with table.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    with label_table_path(target).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(line for line in lines if line[0] in set(keys))])

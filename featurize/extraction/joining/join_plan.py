"""What a join makes: the rows of all parts in order, and what a cache records of their source."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurize.cache.format import Extractor, LayerInfo, compute_place_check
from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import INDEX_NAME, PartsIndex
from featurize.cache.reader import FeatureCache
from featurize.errors import CacheBusyError, CacheFormatError, FingerprintMismatchError
from featurize.extraction.completion.known_images import COLUMNS_KEY
from featurize.progress import Progress, Step
from featurize.sources.listing import Container, ImagePlaces
from featurize.text import format_count, list_first, to_printable


@dataclass(frozen=True)
class JoinPlan:
    """The cache that a join makes of P parts with N rows in all.

    Attributes
    ----------
    files : list of Path
        The parts, in the order of their ranges.
    starts : list of int
        Row at which each part begins, and N: P + 1 numbers.
    extractor : Extractor
    layers : dict of str to LayerInfo
        By dataset name, shallowest first.
    paths : list of str
        N keys, ascending.
    sizes, stamps : int64 arrays of shape (N,)
        As the parts have them.
    status : uint8 array of shape (N,)
    root : str
    include, exclude : tuple of str
    source : dict of str to object
        Empty for a folder.
    places : ImagePlaces, or None
    """

    files: list[Path]
    starts: list[int]
    extractor: Extractor
    layers: Mapping[str, LayerInfo]
    paths: list[str]
    sizes: np.ndarray
    stamps: np.ndarray
    status: np.ndarray
    root: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    source: Mapping[str, Any]
    places: ImagePlaces | None


@contextmanager
def hold_part(path: Path) -> Iterator[FeatureCache]:
    """Open a part, and keep runs from writing to it.

    Parameters
    ----------
    path : Path

    Yields
    ------
    FeatureCache

    Raises
    ------
    CacheBusyError
        If another process writes to it.
    CacheFormatError, CacheUnreachableError, FileNotFoundError
        If it cannot be opened.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(WriteLock(path))
        except CacheBusyError as error:
            raise CacheBusyError(
                f"another process is writing to {path}; join the parts when it has ended"
            ) from error
        yield FeatureCache(path)


def check_parts_exist(folder: Path, index: PartsIndex) -> None:
    """Check that every part of an index has a file.

    Parameters
    ----------
    folder : Path
    index : PartsIndex

    Raises
    ------
    CacheFormatError
        If one is missing; it is named.
    """
    missing = [part.file for part in index.parts if not (folder / part.file).exists()]
    if missing:
        raise CacheFormatError(
            f"{folder} is not complete: {INDEX_NAME} names {format_count(len(missing), 'part')} "
            f"without a file: {list_first(missing)}. `featurize run` with -o {folder}/ makes "
            "what is missing"
        )


def plan_join(folder: Path, index: PartsIndex, report: Callable[[Progress], None]) -> JoinPlan:
    """Read what all parts hold but their features, and check that they belong together.

    Parameters
    ----------
    folder : Path
        The cache of parts.
    index : PartsIndex
    report : callable
        Called with a `Progress` often.

    Returns
    -------
    JoinPlan

    Raises
    ------
    CacheFormatError
        If a part has an image out of its range, or cannot be opened.
    FingerprintMismatchError
        If parts were made by different networks, or have different layers.
    CacheBusyError
        If another process writes to a part.
    """
    collected = _CollectedParts()
    limits = [part.first for part in index.parts[1:]]
    for number, part in enumerate(index.parts):
        report(Step("reading parts", number, len(index.parts)))
        with hold_part(folder / part.file) as cache:
            _check_range(cache, part.first, limits[number] if number < len(limits) else None)
            collected.add(cache)
    report(Step("reading parts", len(index.parts), len(index.parts)))
    return collected.conclude(index)


def _check_range(cache: FeatureCache, first: str, limit: str | None) -> None:
    lowest, highest = cache.paths[0], cache.paths[-1]
    if lowest < first or (limit is not None and highest >= limit):
        out = lowest if lowest < first else highest
        raise CacheFormatError(
            f"{cache.path} has {to_printable(out)}, which is not in its range of {INDEX_NAME}. "
            "Was it put there by hand?"
        )


class _CollectedParts:
    """What was read of the parts so far."""

    def __init__(self) -> None:
        self._first: FeatureCache | None = None
        self._files: list[Path] = []
        self._paths: list[str] = []
        self._starts = [0]
        self._columns: dict[str, list[np.ndarray]] = {"size": [], "mtime_ns": [], "status": []}
        self._told: set[str] = set()  # names of what the source says of its images
        self._containers: dict[str, Container] = {}
        self._container_of: list[np.ndarray] = []  # by order of appearance
        self._offsets: list[np.ndarray] = []

    def add(self, cache: FeatureCache) -> None:
        """Take in a part.

        Raises
        ------
        FingerprintMismatchError
            If it does not belong to the parts before.
        """
        if self._first is None:
            self._first = cache
        _check_same_network(cache, self._first)
        self._files.append(cache.path)
        self._paths += cache.paths
        self._starts.append(len(self._paths))
        for name, values in self._columns.items():
            values.append(cache.column(name))
        told = cache.source.get(COLUMNS_KEY)
        self._told |= set(told) if isinstance(told, list) else set()
        if cache.containers:
            self._add_places(cache)

    def _add_places(self, cache: FeatureCache) -> None:
        container_of, offsets = cache.column("container"), cache.column("offset")
        stamps = self._columns["mtime_ns"][-1]
        is_placed = (container_of >= 0) & (container_of < len(cache.containers))
        if not is_placed.all():
            return  # without places everything works, slower
        groups = ImagePlaces([*cache.containers], container_of, offsets).group_rows()
        for record, rows in zip(cache.containers, groups, strict=True):
            is_intact = compute_place_check(stamps[rows], offsets[rows]) == record.check
            container = Container(record.name, record.size, record.stamp if is_intact else 0)
            if self._containers.setdefault(record.name, container) != container:
                # It was listed at different times: the next run opens it again.
                self._containers[record.name] = replace(container, stamp=0)
        number_of = {name: number for number, name in enumerate(self._containers)}
        numbers = np.array([number_of[record.name] for record in cache.containers], np.int32)
        self._container_of.append(numbers[container_of])
        self._offsets.append(offsets)

    def conclude(self, index: PartsIndex) -> JoinPlan:
        """Put together what was read; parts that had nothing to do may have earlier globs."""
        first = self._first
        assert first is not None  # an index has at least one part
        source = {key: value for key, value in first.source.items() if key != COLUMNS_KEY}
        if self._told:
            source[COLUMNS_KEY] = sorted(self._told)
        columns = {name: np.concatenate(values) for name, values in self._columns.items()}
        return JoinPlan(
            self._files,
            self._starts,
            first.extractor,
            first.layers,
            self._paths,
            columns["size"],
            columns["mtime_ns"],
            columns["status"],
            first.root,
            index.include,
            index.exclude,
            source,
            self._join_places(),
        )

    def _join_places(self) -> ImagePlaces | None:
        if len(self._container_of) < len(self._files):
            return None
        names: Sequence[str] = sorted(self._containers)
        new_number = {name: number for number, name in enumerate(names)}
        numbers = np.array([new_number[name] for name in self._containers], np.int32)
        return ImagePlaces(
            [self._containers[name] for name in names],
            numbers[np.concatenate(self._container_of)],
            np.concatenate(self._offsets),
        )


def _check_same_network(cache: FeatureCache, first: FeatureCache) -> None:
    differences = cache.extractor.differences(first.extractor)
    if differences:
        name, (own, other) = next(iter(differences.items()))
        raise FingerprintMismatchError(
            f"{cache.path} and {first.path} are not parts of one cache: they were made with "
            f"{name} {to_printable(own)} and {to_printable(other)}"
        )
    if cache.layers != first.layers:
        raise FingerprintMismatchError(
            f"{cache.path} has the layers {', '.join(cache.layers)}, and {first.path} has "
            f"{', '.join(first.layers)}, or they are stored differently. `featurize run` with "
            f"-o {first.path.parent} and --layers completes all parts"
        )

"""What a join makes: the rows of all parts in order, and what a cache records of their source."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurize.cache.format import Extractor, LayerInfo, compute_place_check
from featurize.cache.lock import WriteLock
from featurize.cache.reader import FeatureCache
from featurize.errors import CacheBusyError
from featurize.extraction.completion.known_images import COLUMNS_KEY
from featurize.progress import Progress, Step
from featurize.sources.listing import Container, ImagePlaces


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


def plan_join(whole: FeatureCache, report: Callable[[Progress], None]) -> JoinPlan:
    """Read what all parts hold but their features.

    Parameters
    ----------
    whole : FeatureCache
        Of the parts; opening it has shown that they belong together.
    report : callable
        Called with a `Progress` often.

    Returns
    -------
    JoinPlan

    Raises
    ------
    CacheFormatError
        If the keys of the parts are out of order.
    CacheBusyError
        If another process writes to a part.
    CacheReplacedError
        If a part was changed since `whole` was opened.
    """
    collected = _CollectedParts()
    for number, file in enumerate(whole.files):
        report(Step("reading parts", number, len(whole.files)))
        with hold_part(file) as part:
            collected.add(part)
    report(Step("reading parts", len(whole.files), len(whole.files)))
    return collected.conclude(whole)


class _CollectedParts:
    """What the parts say of their source, of those that were read so far."""

    def __init__(self) -> None:
        self._starts = [0]
        self._told: set[str] = set()  # names of what the source says of its images
        self._containers: dict[str, Container] = {}
        self._container_of: list[np.ndarray] = []  # by order of appearance
        self._offsets: list[np.ndarray] = []

    def add(self, part: FeatureCache) -> None:
        """Take in a part."""
        self._starts.append(self._starts[-1] + part.n_rows)
        told = part.source.get(COLUMNS_KEY)
        self._told |= set(told) if isinstance(told, list) else set()
        if part.containers:
            self._add_places(part)

    def _add_places(self, cache: FeatureCache) -> None:
        container_of, offsets = cache.column("container"), cache.column("offset")
        stamps = cache.column("mtime_ns")
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

    def conclude(self, whole: FeatureCache) -> JoinPlan:
        """Put together what was read; parts that had nothing to do may have earlier globs."""
        index = whole.index
        assert index is not None  # it is of parts
        source = {key: value for key, value in whole.source.items() if key != COLUMNS_KEY}
        if self._told:
            source[COLUMNS_KEY] = sorted(self._told)
        return JoinPlan(
            list(whole.files),
            self._starts,
            whole.extractor,
            whole.layers,
            whole.paths,
            whole.column("size"),
            whole.column("mtime_ns"),
            whole.column("status"),
            whole.root,
            index.include,
            index.exclude,
            source,
            self._join_places(),
        )

    def _join_places(self) -> ImagePlaces | None:
        if len(self._container_of) < len(self._starts) - 1:
            return None
        names: Sequence[str] = sorted(self._containers)
        new_number = {name: number for number, name in enumerate(names)}
        numbers = np.array([new_number[name] for name in self._containers], np.int32)
        return ImagePlaces(
            [self._containers[name] for name in names],
            numbers[np.concatenate(self._container_of)],
            np.concatenate(self._offsets),
        )

"""Complete a cache: its pending rows in place; new layers, new or removed images by growing it.

The grown cache is made beside the old one as ``C.h5.part``, a cache of the same format.
It takes over what is known, computes the rest, and replaces the old one when it is whole;
until then the old one stays as it is. A kill leaves the part, and the next run goes on with it.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurize.cache.builder import allocate_cache, estimate_cache_bytes
from featurize.cache.format import FAILED, MARKED, PENDING, Extractor, LayerInfo
from featurize.cache.integrity import is_damaged
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.errors import CacheBusyError, CacheFormatError
from featurize.extraction.changes import ListingDiff, RetryPolicy, find_pending_rows
from featurize.extraction.dry_run import suggest_fast_decoding
from featurize.extraction.setup import ExtractionSetup
from featurize.files import replace_durably
from featurize.pipeline.content_index import ContentIndex
from featurize.pipeline.in_flight import in_flight_path
from featurize.pipeline.pipeline import process_rows
from featurize.pipeline.prefetch import ExtractionJob
from featurize.pipeline.stats import RunStats
from featurize.sources.folder import ImageListing

_REMOVE_ADVICE = "It stands where the cache grows; remove it"
COPY_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class ReusedRows:
    """Rows of the grown cache whose features the old one has.

    Attributes
    ----------
    rows : int array
        In the grown cache, ascending.
    old_rows : int array
        The same images in the old one.
    """

    rows: np.ndarray
    old_rows: np.ndarray


def partial_path(path: Path) -> Path:
    """Where a cache grows until it is whole."""
    return path.with_name(path.name + ".part")


def _old_partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".part.old")


class CacheCompletion:
    """Completes one cache, in place or by growing it.

    Parameters
    ----------
    cache : FeatureCache
    diff : ListingDiff
        What has changed between it and `listing`.
    listing : ImageListing
    setup : ExtractionSetup
        Its options name the layers that the cache has in the end.
    retry : RetryPolicy
    stats : RunStats
        Counts what is done.
    report, say : callable
        Receive `stats` often, and a sentence about each choice made.
    """

    def __init__(
        self,
        cache: FeatureCache,
        diff: ListingDiff,
        listing: ImageListing,
        setup: ExtractionSetup,
        retry: RetryPolicy,
        stats: RunStats,
        report: Callable[[RunStats], None],
        say: Callable[[str], None],
    ) -> None:
        self.cache, self.diff, self.listing, self.setup = cache, diff, listing, setup
        self.retry, self.stats, self.report, self.say = retry, stats, report, say

    def run(self) -> None:
        """Bring every listed image and every layer into the cache."""
        layers, stored = self.setup.resolved.layers, list(self.cache.layers.values())
        if set(layers) != {(info.layer, info.pool) for info in stored}:
            self._grow(self.setup.describe_layers(layers))
        elif not self.diff.has_same_paths:
            self._grow(stored)
        else:
            part = partial_path(self.cache.path)
            if part.exists():
                self.say(
                    f"{part} is left from a run that was adding to the cache; "
                    "run that again to finish it, or remove it"
                )
            self._complete_in_place(stored)

    def _complete_in_place(self, layers: list[LayerInfo]) -> None:
        """Finish the rows of the cache in place."""
        todo = find_pending_rows(self.cache, self.diff.unchanged, self.retry)
        self.stats.total += len(todo.recheck) + len(todo.compute)
        if self.stats.total:
            with CacheWriter(self.cache.path) as into:
                self._recheck_rows(todo.recheck, todo.compute, layers, into, [])
                contents = build_content_index(into, [], todo.compute, self.retry)
                self._process_rows(todo.compute, layers, into, contents)

    def _grow(self, layers: list[LayerInfo]) -> None:
        """Make the grown cache beside the old one, then put it in its place."""
        cache = self.cache
        older = open_partial(cache, layers, self.listing, say=self.say)
        with CacheWriter(partial_path(cache.path)) as into:
            known = copy_unchanged(cache, into, self.diff, self.listing, self.retry)
            pending, stale = into.status == PENDING, find_stale_rows(into, self.listing)
            self.stats.total += int(pending.sum()) + len(stale)
            self._recheck_rows(stale, np.flatnonzero(pending), layers, into, older)
            contents = build_content_index(into, older, np.flatnonzero(pending), self.retry)
            if len(known.rows):
                recorded = np.zeros((len(pending), 32), np.uint8)
                recorded[known.rows] = cache.column("sha256")[known.old_rows]
                missing = [info for info in layers if info.name not in cache.layers]
                changed = self._process_rows(
                    known.rows, missing, into, contents, recorded=recorded, new_layers_only=True
                )
                self.stats.total += len(changed)
                pending[known.rows] = False
                pending[changed] = True
            self._process_rows(np.flatnonzero(pending), layers, into, contents)
        replace_original(cache)

    def _recheck_rows(
        self,
        rows: np.ndarray,
        pending_rows: np.ndarray,
        layers: list[LayerInfo],
        into: CacheWriter,
        older: list[FeatureCache],
    ) -> None:
        """Read finished rows again, before others: what they hold is at hand for those then."""
        if len(rows):
            recorded = np.zeros((len(into.status), 32), np.uint8)
            recorded[rows] = into.read_rows("images/sha256", rows)
            but = np.concatenate([rows, pending_rows])
            contents = build_content_index(into, older, but, self.retry)
            self._process_rows(rows, layers, into, contents, recorded=recorded)

    def _process_rows(
        self,
        rows: np.ndarray,
        layers: list[LayerInfo],
        into: CacheWriter,
        content_index: ContentIndex,
        *,
        recorded: np.ndarray | None = None,
        new_layers_only: bool = False,
    ) -> list[int]:
        if not len(rows):
            return []
        task = ExtractionJob(
            self.listing,
            rows,
            self.cache.extractor.preprocess,
            [info.name for info in layers],
            self.setup.make_engine_selector(layers),
            in_flight_path(self.cache.path),
            recorded,
            new_layers_only,
        )
        changed = process_rows(task, into, content_index, self.stats, self.report)
        if self.stats.bottleneck == "decode" and task.preprocess.decode == "exact":
            self.stats.hint = suggest_fast_decoding(self.listing, task.preprocess)
        return changed


def open_if_exists(path: Path, advice: str) -> FeatureCache | None:
    """Open a cache, where there is a file; what is no cache is refused, with advice."""
    if not path.exists():
        return None
    try:
        return FeatureCache(path)
    except CacheFormatError as error:
        raise CacheFormatError(f"{error}. {advice}") from error


def allocate_for_listing(
    path: Path, extractor: Extractor, layers: list[LayerInfo], listing: ImageListing
) -> None:
    """Put an empty cache of all listed images at `path`: `builder.allocate_cache`."""
    allocate_cache(
        path,
        extractor,
        layers,
        listing.paths,
        listing.sizes,
        listing.mtimes_ns,
        root=str(listing.root.resolve()),
        include=listing.include,
        exclude=listing.exclude,
    )


def open_partial(
    cache: FeatureCache,
    layers: list[LayerInfo],
    listing: ImageListing,
    say: Callable[[str], None] = lambda _: None,
) -> list[FeatureCache]:
    """Lay the part out, or find the one that an earlier run left.

    Returns
    -------
    list of FeatureCache
        Older caches that have all the layers wanted, to take contents from.
    """
    part, aside = partial_path(cache.path), _old_partial_path(cache.path)
    found = open_if_exists(part, _REMOVE_ADVICE)
    fits = found is not None and (
        found.paths == listing.paths and list(found.layers.values()) == layers
    )
    if fits:
        say(f"going on with {part}")
    else:
        if found is not None:  # begun for another collection or other layers: still a source
            os.replace(part, aside)
        needed = estimate_cache_bytes(layers, len(listing.paths))
        say(f"{part} takes {needed / 1e6:,.1f} MB beside the cache until it replaces it")
        allocate_for_listing(part, cache.extractor, layers, listing)
    older = [cache, open_if_exists(aside, _REMOVE_ADVICE)]
    wanted = {info.name: info.fingerprint for info in layers}
    return [
        source
        for source in older
        if source is not None
        and all(n in source.layers and source.layers[n].fingerprint == f for n, f in wanted.items())
    ]


def copy_unchanged(
    cache: FeatureCache,
    into: CacheWriter,
    diff: ListingDiff,
    listing: ImageListing,
    retry: RetryPolicy,
) -> ReusedRows:
    """Copy what the old cache knows of unchanged images.

    Rows are marked where that makes them whole. Where the grown cache has new layers, they stay
    pending and are returned.
    """
    status, reason, sha256 = cache.status, cache.column("reason"), cache.column("sha256")
    old = diff.old_row
    again = retry.select_failures(cache) | retry.rehash
    known = diff.unchanged & (into.status == PENDING) & ~again[old]
    failed = np.flatnonzero(known & (status[old] == FAILED))
    if len(failed):
        at = old[failed]
        stat = listing.sizes[failed], listing.mtimes_ns[failed]
        into.record_failures(failed, reason[at], sha256[at], *stat)
    whole = set(into.layout.layers) == set(cache.layers)
    if not whole:  # they are read for the new layers, and their hashes compared
        known |= diff.maybe_unchanged & (into.status == PENDING) & ~again[old]
    rows = np.flatnonzero(known & (status[old] == MARKED))
    row_bytes = sum(info.dim * 4 for info in cache.layers.values())
    step = max(1, COPY_CHUNK_BYTES // row_bytes)
    sound = np.ones(len(rows), bool)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        at = old[some]
        features = {name: cache.stored(name, at) for name in cache.layers}
        sums = {name: cache.checksums(name, at) for name in cache.layers}
        good = ~np.any([is_damaged(sums[n], sha256[at], features[n]) for n in features], axis=0)
        sound[start : start + step] = good
        some, at = some[good], at[good]
        features = {name: values[good] for name, values in features.items()}
        sums = {name: values[good] for name, values in sums.items()}
        if whole:
            stat = listing.sizes[some], listing.mtimes_ns[some]
            into.fill(some, features, sha256[at], *stat, sums)
            into.flush()
        else:
            into.write_partial(some, features, sha256[at], sums)
    into.flush()
    rows = rows[sound]  # what was damaged on disk is computed again
    return ReusedRows(rows[:0], rows[:0]) if whole else ReusedRows(rows, old[rows])


def build_content_index(
    into: CacheWriter, older: list[FeatureCache], excluded_rows: np.ndarray, retry: RetryPolicy
) -> ContentIndex:
    """What is at hand: finished rows of the cache being written, and of older ones.

    Failures that are to be tried again are not.
    """
    contents = ContentIndex()
    finished = into.status != PENDING
    finished[excluded_rows] = False
    sha256 = into.read_rows("images/sha256", np.arange(len(finished)))
    contents.add_current_rows(sha256, np.flatnonzero(finished))
    for cache in older:
        contents.add_older_cache(cache, excluded=retry.select_failures(cache))
    return contents


def find_stale_rows(into: CacheWriter, listing: ImageListing) -> np.ndarray:
    """Finished rows of a part whose image may have changed since an earlier run did them."""
    every = np.arange(len(listing.paths))
    same = into.read_rows("images/size", every) == listing.sizes
    same &= into.read_rows("images/mtime_ns", every) == listing.mtimes_ns
    return np.flatnonzero((into.status != PENDING) & ~same)


def replace_original(cache: FeatureCache) -> None:
    """Put the grown cache in the old one's place.

    Raises
    ------
    CacheBusyError
        If somebody did so meanwhile: a host whose locks do not reach this one.
    """
    try:
        replace_durably(partial_path(cache.path), cache.path)
    except FileNotFoundError as error:
        raise CacheBusyError(
            f"{partial_path(cache.path)} is gone: another process, perhaps on another host, has "
            f"been adding to {cache.path} at the same time. Nothing is lost; once it has ended, "
            "run this again"
        ) from error
    with suppress(FileNotFoundError):
        os.unlink(_old_partial_path(cache.path))

"""Grow a cache: new layers, new, renamed or removed images.

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

from featurize.cache import writer
from featurize.cache.checksums import compute_checksums, is_damaged, is_unchecked
from featurize.cache.content_index import ContentIndex
from featurize.cache.format import FAILED, MARKED, PENDING, LayerInfo
from featurize.cache.lock import WriteLock
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.errors import CacheBusyError, FeaturizeError, OutputError
from featurize.extraction.changes import ListingDiff, RetryPolicy
from featurize.sources.folder import ImageListing

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


def open_partial(
    cache: FeatureCache,
    layers: list[LayerInfo],
    listing: ImageListing,
    *,
    created_by: str,
    say: Callable[[str], None],
) -> list[FeatureCache]:
    """Lay the part out, or find the one that an earlier run left.

    Returns
    -------
    list of FeatureCache
        Older caches that have all the layers wanted, to take contents from.
    """
    part, aside = partial_path(cache.path), _old_partial_path(cache.path)
    found = _open_if_exists(part)
    fits = found is not None and (
        found.paths == listing.paths and list(found.layers.values()) == layers
    )
    if fits:
        say(f"going on with {part}")
    else:
        if found is not None:  # begun for another collection or other layers: still a source
            os.replace(part, aside)
        needed = writer.estimate_cache_bytes(layers, len(listing.paths))
        say(f"{part} takes {needed / 1e6:,.1f} MB beside the cache until it replaces it")
        writer.allocate_cache(
            part,
            cache.extractor,
            layers,
            listing.paths,
            listing.sizes,
            listing.mtimes_ns,
            root=str(listing.root.resolve()),
            include=listing.include,
            exclude=listing.exclude,
            created_by=created_by,
        )
    older = [cache, _open_if_exists(aside)]
    wanted = {info.name: info.fingerprint for info in layers}
    return [
        source
        for source in older
        if source is not None
        and all(n in source.layers and source.layers[n].fingerprint == f for n, f in wanted.items())
    ]


def _open_if_exists(path: Path) -> FeatureCache | None:
    if not path.exists():
        return None
    try:
        return FeatureCache(path)
    except FeaturizeError as error:
        raise type(error)(f"{error}. It stands where the cache grows; remove it") from error


def add_checksums(path: Path, *, created_by: str) -> None:
    """Give every finished row a checksum of its numbers as they stand, where it has none.

    A cache of format 1.0 has no place for them: it is written anew beside the old one.

    Raises
    ------
    CacheBusy, DiskFull, OutputError
    FeaturizeError
        If a growth of this cache was begun and not finished.
    """
    with WriteLock(path) as lock:
        lock.require_held()
        cache = FeatureCache(path)
        if not cache.unchecked_rows:
            return
        if cache.has_checksums:
            with CacheWriter(path) as into:
                _write_missing_checksums(into)
            return
        part = partial_path(path)
        if part.exists():
            raise OutputError(
                f"{part} is left from a run that was adding to the cache; run that again to "
                "finish it, or remove it"
            )
        stat = cache.column("size"), cache.column("mtime_ns")
        listing = ImageListing(
            Path(cache.root),
            cache.paths,
            *stat,
            skipped=[],
            include=tuple(cache.include),
            exclude=tuple(cache.exclude),
        )
        open_partial(
            cache, list(cache.layers.values()), listing, created_by=created_by, say=_ignore_message
        )
        every = np.arange(cache.n_rows)
        same = ListingDiff(every, np.ones(len(every), bool), np.zeros(len(every), bool), 0)
        with CacheWriter(part) as into:
            copy_unchanged(cache, into, same, listing, RetryPolicy(transient=False))
            _write_missing_checksums(into)
        replace_original(cache)


def _ignore_message(_: str) -> None:
    pass


def _write_missing_checksums(into: CacheWriter) -> None:
    marked = np.flatnonzero(into.status == MARKED)
    for name, info in into.layout.layers.items():
        step = max(1, COPY_CHUNK_BYTES // (4 * info.dim))
        for start in range(0, len(marked), step):
            rows = marked[start : start + step]
            sha256, stored = (
                into.read_rows("images/sha256", rows),
                into.read_rows(f"checksums/{name}", rows),
            )
            missing = is_unchecked(stored, sha256)
            rows, sha256 = rows[missing], sha256[missing]
            sums = compute_checksums(sha256, into.read_rows(f"features/{name}", rows))
            into.write_checksums(rows, name, sums)


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
    CacheBusy
        If somebody did so meanwhile: a host whose locks do not reach this one.
    """
    try:
        writer.replace_durably(partial_path(cache.path), cache.path)
    except FileNotFoundError as error:
        raise CacheBusyError(
            f"{partial_path(cache.path)} is gone: another process, perhaps on another host, has been "
            f"adding to {cache.path} at the same time. Nothing is lost; once it has ended, run "
            "this again"
        ) from error
    with suppress(FileNotFoundError):
        os.unlink(_old_partial_path(cache.path))

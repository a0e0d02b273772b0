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

from featurize import writer
from featurize.cache import FeatureCache
from featurize.checksums import are_damaged, are_missing, checksums_of
from featurize.contents import Contents
from featurize.errors import CacheBusy, FeaturizeError, OutputError
from featurize.images import Listing
from featurize.layout import FAILED, MARKED, PENDING, LayerInfo
from featurize.lock import Lock
from featurize.plan import Comparison, Retry
from featurize.writer import CacheWriter

COPY_BYTES = 64 << 20


@dataclass(frozen=True)
class Takeover:
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


def part_of(path: Path) -> Path:
    """Where a cache grows until it is whole."""
    return path.with_name(path.name + ".part")


def _set_aside(path: Path) -> Path:
    return path.with_name(path.name + ".part.old")


def open_part(
    cache: FeatureCache,
    layers: list[LayerInfo],
    listing: Listing,
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
    part, aside = part_of(cache.path), _set_aside(cache.path)
    found = _opened(part)
    fits = found is not None and (
        found.paths == listing.paths and list(found.layers.values()) == layers
    )
    if fits:
        say(f"going on with {part}")
    else:
        if found is not None:  # begun for another collection or other layers: still a source
            os.replace(part, aside)
        needed = writer.bytes_needed(layers, len(listing.paths))
        say(f"{part} takes {needed / 1e6:,.1f} MB beside the cache until it replaces it")
        writer.allocate(
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
    older = [cache, _opened(aside)]
    wanted = {info.name: info.fingerprint for info in layers}
    return [
        source
        for source in older
        if source is not None
        and all(n in source.layers and source.layers[n].fingerprint == f for n, f in wanted.items())
    ]


def _opened(path: Path) -> FeatureCache | None:
    if not path.exists():
        return None
    try:
        return FeatureCache(path)
    except FeaturizeError as error:
        raise type(error)(f"{error}. It stands where the cache grows; remove it") from error


def fill_checksums(path: Path, *, created_by: str) -> None:
    """Give every finished row a checksum of its numbers as they stand, where it has none.

    A cache of format 1.0 has no place for them: it is written anew beside the old one.

    Raises
    ------
    CacheBusy, DiskFull, OutputError
    FeaturizeError
        If a growth of this cache was begun and not finished.
    """
    with Lock(path) as lock:
        lock.require()
        cache = FeatureCache(path)
        if not cache.unchecked_rows:
            return
        if cache.has_checksums:
            with CacheWriter(path) as into:
                _add_checksums(into)
            return
        part = part_of(path)
        if part.exists():
            raise OutputError(
                f"{part} is left from a run that was adding to the cache; run that again to "
                "finish it, or remove it"
            )
        stat = cache.column("size"), cache.column("mtime_ns")
        listing = Listing(
            Path(cache.root),
            cache.paths,
            *stat,
            passed_over=[],
            include=tuple(cache.include),
            exclude=tuple(cache.exclude),
        )
        open_part(cache, list(cache.layers.values()), listing, created_by=created_by, say=_nothing)
        every = np.arange(cache.n_rows)
        same = Comparison(every, np.ones(len(every), bool), np.zeros(len(every), bool), 0)
        with CacheWriter(part) as into:
            take_over(cache, into, same, listing, Retry(transient=False))
            _add_checksums(into)
        finish(cache)


def _nothing(_: str) -> None:
    pass


def _add_checksums(into: CacheWriter) -> None:
    marked = np.flatnonzero(into.status == MARKED)
    for name, info in into.layout.layers.items():
        step = max(1, COPY_BYTES // (4 * info.dim))
        for start in range(0, len(marked), step):
            rows = marked[start : start + step]
            sha256, stored = into.rows("images/sha256", rows), into.rows(f"checksums/{name}", rows)
            missing = are_missing(stored, sha256)
            rows, sha256 = rows[missing], sha256[missing]
            sums = checksums_of(sha256, into.rows(f"features/{name}", rows))
            into.put_checksums(rows, name, sums)


def take_over(
    cache: FeatureCache, into: CacheWriter, found: Comparison, listing: Listing, retry: Retry
) -> Takeover:
    """Copy what the old cache knows of unchanged images.

    Rows are marked where that makes them whole. Where the grown cache has new layers, they stay
    pending and are returned.
    """
    status, reason, sha256 = cache.status, cache.column("reason"), cache.column("sha256")
    old = found.old_row
    again = retry.failures(cache) | retry.rehash
    known = found.unchanged & (into.status == PENDING) & ~again[old]
    failed = np.flatnonzero(known & (status[old] == FAILED))
    if len(failed):
        at = old[failed]
        stat = listing.sizes[failed], listing.mtimes_ns[failed]
        into.fail(failed, reason[at], sha256[at], *stat)
    whole = set(into.layout.layers) == set(cache.layers)
    if not whole:  # they are read for the new layers, and their hashes compared
        known |= found.young & (into.status == PENDING) & ~again[old]
    rows = np.flatnonzero(known & (status[old] == MARKED))
    row_bytes = sum(info.dim * 4 for info in cache.layers.values())
    step = max(1, COPY_BYTES // row_bytes)
    sound = np.ones(len(rows), bool)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        at = old[some]
        features = {name: cache.stored(name, at) for name in cache.layers}
        sums = {name: cache.checksums(name, at) for name in cache.layers}
        good = ~np.any([are_damaged(sums[n], sha256[at], features[n]) for n in features], axis=0)
        sound[start : start + step] = good
        some, at = some[good], at[good]
        features = {name: values[good] for name, values in features.items()}
        sums = {name: values[good] for name, values in sums.items()}
        if whole:
            stat = listing.sizes[some], listing.mtimes_ns[some]
            into.fill(some, features, sha256[at], *stat, sums)
            into.flush()
        else:
            into.preset(some, features, sha256[at], sums)
    into.flush()
    rows = rows[sound]  # what was damaged on disk is computed again
    return Takeover(rows[:0], rows[:0]) if whole else Takeover(rows, old[rows])


def contents_of(
    into: CacheWriter, older: list[FeatureCache], except_rows: np.ndarray, retry: Retry
) -> Contents:
    """What is at hand: finished rows of the cache being written, and of older ones.

    Failures that are to be tried again are not.
    """
    contents = Contents()
    finished = into.status != PENDING
    finished[except_rows] = False
    sha256 = into.rows("images/sha256", np.arange(len(finished)))
    contents.add_here(sha256, np.flatnonzero(finished))
    for cache in older:
        contents.add_older(cache, but=retry.failures(cache))
    return contents


def stale(into: CacheWriter, listing: Listing) -> np.ndarray:
    """Finished rows of a part whose image may have changed since an earlier run did them."""
    every = np.arange(len(listing.paths))
    same = into.rows("images/size", every) == listing.sizes
    same &= into.rows("images/mtime_ns", every) == listing.mtimes_ns
    return np.flatnonzero((into.status != PENDING) & ~same)


def finish(cache: FeatureCache) -> None:
    """Put the grown cache in the old one's place.

    Raises
    ------
    CacheBusy
        If somebody did so meanwhile: a host whose locks do not reach this one.
    """
    try:
        writer.replace(part_of(cache.path), cache.path)
    except FileNotFoundError as error:
        raise CacheBusy(
            f"{part_of(cache.path)} is gone: another process, perhaps on another host, has been "
            f"adding to {cache.path} at the same time. Nothing is lost; once it has ended, run "
            "this again"
        ) from error
    with suppress(FileNotFoundError):
        os.unlink(_set_aside(cache.path))

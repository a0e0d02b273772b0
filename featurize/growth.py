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
from featurize.contents import Contents
from featurize.errors import FeaturizeError
from featurize.images import Listing
from featurize.layout import FAILED, MARKED, PENDING, LayerInfo
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
    rows = np.flatnonzero(known & (status[old] == MARKED))
    whole = set(into.layout.layers) == set(cache.layers)
    row_bytes = sum(info.dim * 4 for info in cache.layers.values())
    step = max(1, COPY_BYTES // row_bytes)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        at = old[some]
        features = {name: cache.mapped(name)[at] for name in cache.layers}
        if whole:
            into.fill(some, features, sha256[at], listing.sizes[some], listing.mtimes_ns[some])
            into.flush()
        else:
            into.preset(some, features)
    into.flush()
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
    """Finished rows of a part whose image changed since an earlier run did them: bool (N,)."""
    every = np.arange(len(listing.paths))
    same = into.rows("images/size", every) == listing.sizes
    same &= into.rows("images/mtime_ns", every) == listing.mtimes_ns
    return np.asarray((into.status != PENDING) & ~same)


def finish(cache: FeatureCache) -> None:
    """Put the grown cache in the old one's place."""
    writer.replace(part_of(cache.path), cache.path)
    with suppress(FileNotFoundError):
        os.unlink(_set_aside(cache.path))

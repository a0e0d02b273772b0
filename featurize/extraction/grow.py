"""Complete a cache: pending rows in place; new layers, new or removed images by growing it.

A cache grows in a partial cache ``C.h5.part`` of the same format. Known features are copied from
the old cache, which does not change until the finished partial cache replaces it. If a run is
killed, the next one continues with the partial cache.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from featurize.cache.builder import allocate_cache, estimate_cache_bytes
from featurize.cache.format import PENDING, Extractor, LayerInfo
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.errors import CacheBusyError, CacheFormatError
from featurize.extraction.changes import (
    ListingDiff,
    RetryPolicy,
    copy_unchanged,
    find_pending_rows,
)
from featurize.extraction.dry_run import suggest_fast_decoding
from featurize.extraction.setup import ExtractionSetup
from featurize.files import replace_durably
from featurize.pipeline.content_index import ContentIndex
from featurize.pipeline.in_flight import in_flight_path
from featurize.pipeline.pipeline import process_rows
from featurize.pipeline.prefetch import ExtractionJob
from featurize.pipeline.stats import RunStats
from featurize.progress import ignore
from featurize.sources.listing import ImageListing

_REMOVE_ADVICE = "It stands where the cache grows; remove it"


def partial_path(path: Path) -> Path:
    """Return the path of the partial cache.

    Parameters
    ----------
    path : Path
        The cache.

    Returns
    -------
    Path
        ``C.h5.part``.
    """
    return path.with_name(path.name + ".part")


def _old_partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".part.old")


class CacheCompletion:
    """Completes one cache, in place or by growing it.

    Pending rows are computed in place. For new layers, or new or removed images, a grown cache is
    written next to the old one and replaces it.

    Parameters
    ----------
    cache : FeatureCache
    diff : ListingDiff
        Of `listing` and `cache`.
    listing : ImageListing
    setup : ExtractionSetup
        Its options name the layers of the completed cache.
    retry : RetryPolicy
    stats : RunStats
        Updated in place.
    report : callable
        Called with `stats` often.
    say : callable
        Called with a sentence about each choice made.
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
        """Compute every missing row and layer.

        Raises
        ------
        BackboneError, EngineError
            If the network cannot be loaded or run.
        CacheBusyError, DiskFullError, OutputError
            If another process replaced the partial cache, or rows cannot be written.
        """
        layers, cached_layers = self.setup.layers, list(self.cache.layers.values())
        if set(layers) != {(info.layer, info.pool) for info in cached_layers}:
            self._grow(self.setup.describe_layers(layers))
        elif not self.diff.has_same_paths:
            self._grow(cached_layers)
        else:
            partial = partial_path(self.cache.path)
            if partial.exists():
                self.say(
                    f"{partial} is left from a run that was adding to the cache; "
                    "run that again to finish it, or remove it"
                )
            self._complete_in_place(cached_layers)

    def _complete_in_place(self, layers: list[LayerInfo]) -> None:
        """Compute the pending rows of the cache in its file."""
        pending = find_pending_rows(self.cache, self.diff.unchanged, self.retry)
        self.stats.total += len(pending.recheck) + len(pending.compute)
        if self.stats.total:
            with CacheWriter(self.cache.path) as writer:
                self._recheck_rows(pending.recheck, pending.compute, layers, writer, [])
                content_index = _build_content_index(writer, [], pending.compute, self.retry)
                self._process_rows(pending.compute, layers, writer, content_index)

    def _grow(self, layers: list[LayerInfo]) -> None:
        """Write the grown cache next to the old one, then replace the old one."""
        cache = self.cache
        older_caches = open_partial(cache, layers, self.listing, say=self.say)
        with CacheWriter(partial_path(cache.path)) as writer:
            reused = copy_unchanged(cache, writer, self.diff, self.listing, self.retry)
            is_pending, stale_rows = (
                writer.status == PENDING,
                _find_stale_rows(writer, self.listing),
            )
            self.stats.total += int(is_pending.sum()) + len(stale_rows)
            self._recheck_rows(stale_rows, np.flatnonzero(is_pending), layers, writer, older_caches)
            content_index = _build_content_index(
                writer, older_caches, np.flatnonzero(is_pending), self.retry
            )
            if len(reused.rows):
                recorded_sha256 = np.zeros((len(is_pending), 32), np.uint8)
                recorded_sha256[reused.rows] = cache.column("sha256")[reused.old_rows]
                new_layers = [info for info in layers if info.name not in cache.layers]
                changed_rows = self._process_rows(
                    reused.rows,
                    new_layers,
                    writer,
                    content_index,
                    recorded_sha256=recorded_sha256,
                    new_layers_only=True,
                )
                self.stats.total += len(changed_rows)
                is_pending[reused.rows] = False
                is_pending[changed_rows] = True
            self._process_rows(np.flatnonzero(is_pending), layers, writer, content_index)
        replace_original(cache)

    def _recheck_rows(
        self,
        rows: np.ndarray,
        pending_rows: np.ndarray,
        layers: list[LayerInfo],
        writer: CacheWriter,
        older_caches: list[FeatureCache],
    ) -> None:
        """Hash finished rows' files first, so that other rows can copy their features."""
        if len(rows):
            recorded_sha256 = np.zeros((len(writer.status), 32), np.uint8)
            recorded_sha256[rows] = writer.read_rows("images/sha256", rows)
            excluded_rows = np.concatenate([rows, pending_rows])
            content_index = _build_content_index(writer, older_caches, excluded_rows, self.retry)
            self._process_rows(rows, layers, writer, content_index, recorded_sha256=recorded_sha256)

    def _process_rows(
        self,
        rows: np.ndarray,
        layers: list[LayerInfo],
        writer: CacheWriter,
        content_index: ContentIndex,
        *,
        recorded_sha256: np.ndarray | None = None,
        new_layers_only: bool = False,
    ) -> list[int]:
        if not len(rows):
            return []
        job = ExtractionJob(
            self.listing,
            rows,
            self.cache.extractor.preprocess,
            [info.name for info in layers],
            self.setup.make_engine_selector(layers),
            in_flight_path(self.cache.path),
            recorded_sha256,
            new_layers_only,
        )
        changed_rows = process_rows(job, writer, content_index, self.stats, self.report)
        if self.stats.bottleneck == "decode" and job.preprocess.decode == "exact":
            self.stats.hint = suggest_fast_decoding(self.listing, job.preprocess)
        return changed_rows


def open_if_exists(path: Path, advice: str) -> FeatureCache | None:
    """Open a cache if the file exists.

    Parameters
    ----------
    path : Path
    advice : str
        What to do about a file that is not a cache; appended to the message.

    Returns
    -------
    FeatureCache or None

    Raises
    ------
    CacheFormatError
        If the file is not a cache.
    """
    if not path.exists():
        return None
    try:
        return FeatureCache(path)
    except CacheFormatError as error:
        raise CacheFormatError(f"{error}. {advice}") from error


def allocate_for_listing(
    path: Path, extractor: Extractor, layers: list[LayerInfo], listing: ImageListing
) -> None:
    """Write an empty cache of all listed images; see `builder.allocate_cache`.

    Parameters
    ----------
    path : Path
    extractor : Extractor
    layers : list of LayerInfo
        Shallowest first.
    listing : ImageListing

    Raises
    ------
    DiskFullError, OutputError
        If the file cannot be written.
    """
    allocate_cache(
        path,
        extractor,
        layers,
        listing.paths,
        listing.sizes,
        listing.stamps,
        root=_resolve_root(listing.root),
        include=listing.include,
        exclude=listing.exclude,
    )


def _resolve_root(root: str) -> str:
    """Return where images are, independently of the working folder."""
    return root if "://" in root else str(Path(root).resolve())


def open_partial(
    cache: FeatureCache,
    layers: list[LayerInfo],
    listing: ImageListing,
    say: Callable[[str], None] = ignore,
) -> list[FeatureCache]:
    """Allocate the partial cache, or continue with the one that an earlier run left.

    Parameters
    ----------
    cache : FeatureCache
        The old cache.
    layers : list of LayerInfo
        Of the grown cache, shallowest first.
    listing : ImageListing
        The images of the grown cache.
    say : callable
        Called with a sentence about each choice made.

    Returns
    -------
    list of FeatureCache
        Older caches that have all of `layers`, to copy rows from.

    Raises
    ------
    CacheFormatError
        If the file at `partial_path` is not a cache.
    DiskFullError, OutputError
        If the partial cache cannot be allocated.
    """
    partial, old_partial = partial_path(cache.path), _old_partial_path(cache.path)
    earlier = open_if_exists(partial, _REMOVE_ADVICE)
    fits = earlier is not None and (
        earlier.paths == listing.paths and list(earlier.layers.values()) == layers
    )
    if fits:
        say(f"going on with {partial}")
    else:
        if earlier is not None:  # for other images or layers; its rows can still be copied
            partial.replace(old_partial)
        needed = estimate_cache_bytes(layers, len(listing.paths))
        say(f"{partial} takes {needed / 1e6:,.1f} MB beside the cache until it replaces it")
        allocate_for_listing(partial, cache.extractor, layers, listing)
    sources = [cache, open_if_exists(old_partial, _REMOVE_ADVICE)]
    fingerprints = {info.name: info.fingerprint for info in layers}
    return [
        source
        for source in sources
        if source is not None
        and all(
            name in source.layers and source.layers[name].fingerprint == fingerprint
            for name, fingerprint in fingerprints.items()
        )
    ]


def replace_original(cache: FeatureCache) -> None:
    """Replace the old cache by the finished partial cache.

    Parameters
    ----------
    cache : FeatureCache
        The old cache.

    Raises
    ------
    CacheBusyError
        If the partial cache is gone, because a process on a host that does not share locks has
        put it in place.
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
        _old_partial_path(cache.path).unlink()


def _build_content_index(
    writer: CacheWriter,
    older_caches: list[FeatureCache],
    excluded_rows: np.ndarray,
    retry: RetryPolicy,
) -> ContentIndex:
    """Index the finished rows of the cache being written and of older caches.

    Failed rows of older caches that are to be tried again are left out.
    """
    content_index = ContentIndex()
    is_finished = writer.status != PENDING
    is_finished[excluded_rows] = False
    sha256 = writer.read_rows("images/sha256", np.arange(len(is_finished)))
    content_index.add_current_rows(sha256, np.flatnonzero(is_finished))
    for cache in older_caches:
        content_index.add_older_cache(cache, excluded=retry.select_failures(cache))
    return content_index


def _find_stale_rows(writer: CacheWriter, listing: ImageListing) -> np.ndarray:
    """Find finished rows of a partial cache whose image may have changed since."""
    all_rows = np.arange(len(listing.paths))
    is_same = writer.read_rows("images/size", all_rows) == listing.sizes
    is_same &= writer.read_rows("images/mtime_ns", all_rows) == listing.stamps
    return np.flatnonzero((writer.status != PENDING) & ~is_same)

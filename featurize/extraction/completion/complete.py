"""Complete a cache: pending rows in place; new layers, new or removed images by growing it.

A cache grows in a partial cache ``C.h5.part`` of the same format. Known features are copied from
the old cache, which does not change until the finished partial cache replaces it. If a run is
killed, the next one continues with the partial cache.
"""

from collections.abc import Callable

import numpy as np

from featurize.cache.format import PENDING, LayerInfo, list_container_records
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.extraction.cluster.session import ClusterSession
from featurize.extraction.completion.changes import (
    ListingDiff,
    RetryPolicy,
    copy_unchanged,
    diff_listing,
    find_pending_rows,
)
from featurize.extraction.completion.partial_cache import (
    open_partial,
    partial_path,
    replace_original,
)
from featurize.extraction.completion.speed_hints import suggest_decode_mode, suggest_precision
from featurize.extraction.setup import ExtractionSetup
from featurize.images.preprocess import Preprocess
from featurize.pipeline.content_index import ContentIndex
from featurize.pipeline.in_flight import in_flight_path
from featurize.pipeline.pipeline import process_rows
from featurize.pipeline.prefetch import ExtractionJob
from featurize.pipeline.stats import RunStats
from featurize.sources.listing import UNKNOWN_SIZE, ImageListing

MAX_MOVED_SHARE = 0.01  # of the rows; where more have moved to other rows, the cache grows

MIN_HINT_SECONDS = 20.0  # of the network; a shorter run needs no advice


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
    session : ClusterSession, optional
        Where rows are computed; default in this process.
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
        session: ClusterSession | None = None,
    ) -> None:
        self.session = session
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
        places, stats = self.listing.places, self.stats
        n_before, total_before = stats.done, stats.total
        n_pending = len(pending.recheck) + len(pending.compute)
        stats.total += n_pending
        if not n_pending:
            self._record_places()
            return
        recheck = pending.recheck
        if places is not None and len(recheck) > MAX_MOVED_SHARE * self.cache.n_rows:
            changed = self._find_changed_rows(recheck, layers)
            if changed is None:
                stats.total = total_before + stats.done - n_before
                self.diff = diff_listing(self.listing, self.cache)
                self._grow(layers)
                return
            recheck = changed
        with CacheWriter(self.cache.path) as writer:
            self._recheck_rows(recheck, pending.compute, layers, writer, [])
            content_index = _build_content_index(writer, [], pending.compute, self.retry)
            self._process_rows(pending.compute, layers, writer, content_index)
        self._record_places()

    def _record_places(self) -> None:
        """Record in which containers the images lie, once every row was looked at."""
        places = self.listing.places
        if places is None or not self._has_moved_containers():
            return
        with CacheWriter(self.cache.path) as writer:
            writer.write_places(places, self.listing.stamps)

    def _has_moved_containers(self) -> bool:
        places = self.listing.places
        return places is not None and self.cache.containers != list_container_records(
            places, self.listing.stamps
        )

    def _find_changed_rows(self, rows: np.ndarray, layers: list[LayerInfo]) -> np.ndarray | None:
        """Hash the images of many rows first; return those that changed.

        Rows of a table are known by their numbers. Where one is put in or they are sorted, content
        moves from row to row, and would be overwritten before it is found. So None is returned
        where much has moved: then the cache is to grow, which finds all of it.
        """
        recorded_sha256 = self.cache.column("sha256")
        with CacheWriter(self.cache.path) as writer:
            digests = self._process_rows(
                rows,
                layers,
                writer,
                ContentIndex(),
                recorded_sha256=recorded_sha256,
                returns_changed=True,
            )
        changed = np.array(sorted(digests), np.intp)
        known = {row.tobytes() for row in recorded_sha256[changed]}
        n_moved = sum(digest in known for digest in digests.values())
        return None if n_moved > MAX_MOVED_SHARE * self.cache.n_rows else changed

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
                recorded_sha256[reused.rows] = cache.column("sha256", reused.old_rows)
                new_layers = [info for info in layers if info.name not in cache.layers]
                changed_rows = self._process_rows(
                    reused.rows,
                    new_layers,
                    writer,
                    content_index,
                    recorded_sha256=recorded_sha256,
                    returns_changed=True,
                    computes_unchanged=True,
                )
                is_pending[reused.rows] = False
                is_pending[list(changed_rows)] = True
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
        returns_changed: bool = False,
        computes_unchanged: bool = False,
    ) -> dict[int, bytes]:
        if not len(rows):
            return {}
        job = ExtractionJob(
            self.listing,
            rows,
            self.cache.extractor.preprocess,
            [info.name for info in layers],
            self.setup.make_engine_selector(layers),
            in_flight_path(self.cache.path),
            recorded_sha256,
            returns_changed,
            computes_unchanged,
        )
        changed_rows = self._dispatch_rows(job, layers, writer, content_index)
        if self.stats.hint is None:
            self.stats.hint = self._suggest_faster(job.preprocess)
        return changed_rows

    def _suggest_faster(self, preprocess: Preprocess) -> str | None:
        """Look for an option that would speed this run up; None if there is nothing to look at."""
        if self.stats.bottleneck == "decode" and preprocess.decode == "exact":
            return suggest_decode_mode(self.listing, preprocess)
        is_long = self.stats.stage_seconds["run"] > MIN_HINT_SECONDS
        if self.stats.bottleneck == "run" and is_long and self.session is None:
            return suggest_precision(self.setup.device, self.cache.extractor.precision)
        return None

    def _dispatch_rows(
        self,
        job: ExtractionJob,
        layers: list[LayerInfo],
        writer: CacheWriter,
        content_index: ContentIndex,
    ) -> dict[int, bytes]:
        if self.session is None:
            return process_rows(job, writer, content_index, self.stats, self.report)
        from featurize.extraction.cluster.process_rows import process_rows as process_on_cluster

        return process_on_cluster(
            job,
            writer,
            content_index,
            self.stats,
            self.report,
            session=self.session,
            backbone=self.setup.backbone,
            network=self.setup.plan_network(layers),
            say=self.say,
        )


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
    sizes, stamps = (writer.read_rows(f"images/{name}", all_rows) for name in ("size", "mtime_ns"))
    is_same = (stamps == listing.stamps) & (stamps != 0)
    is_same &= (listing.sizes == UNKNOWN_SIZE) | (sizes == listing.sizes)
    return np.flatnonzero((writer.status != PENDING) & ~is_same)

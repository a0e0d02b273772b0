"""Write and mark rows in a thread, behind the network."""

import queue
import threading
import time

import numpy as np

from featurize.cache.format import FAILED, PENDING
from featurize.cache.writer import SYNC_INTERVAL_SECONDS, CacheWriter
from featurize.images import reasons
from featurize.pipeline.content_index import StoredRow
from featurize.pipeline.prefetch import ExtractionJob, PrefetchedImage
from featurize.pipeline.stats import RunStats
from featurize.system import signals


class BackgroundWriter:
    """Writes rows in a thread, in the order in which they are put.

    Parameters
    ----------
    job : ExtractionJob
    writer : CacheWriter
        Used by the thread only, until it ends.
    stats : RunStats
        Updated in place.
    """

    def __init__(self, job: ExtractionJob, writer: CacheWriter, stats: RunStats) -> None:
        self.job, self.writer, self.stats = job, writer, stats
        self._queue: queue.Queue[tuple[list[PrefetchedImage], list[np.ndarray] | None] | None] = (
            queue.Queue(maxsize=4)
        )
        self._error: BaseException | None = None
        # Images that wait for the row whose features they copy.
        self._pending_copies: list[tuple[PrefetchedImage, int]] = []
        # A row of the job may still be marked for an earlier version of its image.
        self._is_unwritten = np.zeros(len(job.listing.paths), bool)
        self._is_unwritten[job.rows] = True
        self._thread = threading.Thread(target=self._write_loop, name="write", daemon=True)
        self._thread.start()

    def put(self, items: list[PrefetchedImage], features: list[np.ndarray] | None) -> None:
        """Queue rows for writing; block while the queue is full.

        Parameters
        ----------
        items : list of PrefetchedImage
            n images.
        features : list of float32 arrays of shape (n, D), or None
            One per layer of the job. None for images that were not run.

        Raises
        ------
        BaseException
            Any error that the thread met.
        """
        with self.stats.time_waiting("output"):
            self._queue.put((items, features))
        self._raise_pending_error()

    def close(self) -> None:
        """Wait until all rows are written and marked.

        Raises
        ------
        BaseException
            Any error that the thread met.
        """
        self._queue.put(None)
        self._thread.join()
        self._raise_pending_error()

    def drain(self) -> None:
        """Write the queued rows after an error or an interrupt."""
        if self._thread.is_alive():
            with signals.delay_exit(f"the disk to take what is ready for {self.writer.path}"):
                self._queue.put(None)
                self._thread.join()

    def _raise_pending_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write_loop(self) -> None:
        while (queued := self._get_next()) is not None:
            if self._error is not None:
                continue  # empty the queue, so that `put` never blocks for ever
            start = time.perf_counter()
            try:
                if queued:
                    self._write(*queued)
                if self.writer.flush_if_due():
                    self._copy_duplicates()
            except BaseException as error:  # raised again in the main thread
                self._error = error
            self.stats.stage_seconds["write"] += time.perf_counter() - start
        if self._error is None:
            try:
                self._flush_all()
            except BaseException as error:
                self._error = error

    def _get_next(
        self,
    ) -> "tuple[()] | tuple[list[PrefetchedImage], list[np.ndarray] | None] | None":
        """Get the next queued rows; an empty tuple after `SYNC_INTERVAL_SECONDS` without any."""
        try:
            return self._queue.get(timeout=SYNC_INTERVAL_SECONDS)
        except queue.Empty:
            return ()

    def _write(self, items: list[PrefetchedImage], features: list[np.ndarray] | None) -> None:
        self._is_unwritten[[item.row for item in items]] = False
        if features is not None:
            self._write_features(items, features)
        else:
            for item in items:
                self._write_item(item)
        self.stats.done += len(items)

    def _write_features(self, items: list[PrefetchedImage], features: list[np.ndarray]) -> None:
        stored_features, is_finite = [], np.ones(len(items), bool)
        for name, values in zip(self.job.layers, features, strict=True):
            with np.errstate(over="ignore"):  # float16 may overflow to infinity, checked below
                stored_features.append(values.astype(self.writer.layout.layers[name].dtype))
            is_finite &= np.isfinite(stored_features[-1]).all(axis=1)
        finite_items = np.flatnonzero(is_finite)
        if len(finite_items):
            rows, image_columns = _to_columns([items[k] for k in finite_items])
            features_by_name = dict(
                zip(
                    self.job.layers,
                    (values[finite_items] for values in stored_features),
                    strict=True,
                )
            )
            self.writer.fill(rows, features_by_name, *image_columns)
            self.stats.computed += len(rows)
        for k in np.flatnonzero(~is_finite):
            self._write_failure(items[k], reasons.NOT_FINITE)

    def _write_item(self, item: PrefetchedImage) -> None:
        rows, image_columns = _to_columns([item])
        if item.is_unchanged:
            self.writer.update_stat(rows, *image_columns[1:])
        elif item.reason != reasons.OK:
            self._write_failure(item, item.reason)
        elif isinstance(item.copy_of, StoredRow):
            if item.copy_of.reason != reasons.OK:
                self._write_failure(item, item.copy_of.reason)
            else:
                layers = self.writer.layout.layers
                features = {name: item.copy_of.features(name) for name in layers}
                checksums = {name: item.copy_of.checksums(name) for name in layers}
                self.writer.fill(rows, features, *image_columns, checksums)
        elif item.copy_of is not None:
            self._pending_copies.append((item, item.copy_of))

    def _flush_all(self) -> None:
        self.writer.flush()
        self._copy_duplicates()
        self.writer.flush()

    def _copy_duplicates(self) -> None:
        """Copy the features of duplicate images whose source row is finished."""
        pending_copies = self._pending_copies
        self._pending_copies = []
        for item, source_row in pending_copies:
            if self._is_unwritten[source_row] or self.writer.status[source_row] == PENDING:
                self._pending_copies.append((item, source_row))
                continue
            rows, image_columns = _to_columns([item])
            source_rows = np.array([source_row])
            if self.writer.status[source_row] == FAILED:
                self._write_failure(
                    item, int(self.writer.read_rows("images/reason", source_rows)[0])
                )
            else:
                layers = self.writer.layout.layers
                features = {
                    name: self.writer.read_rows(f"features/{name}", source_rows) for name in layers
                }
                checksums = {
                    name: self.writer.read_rows(f"checksums/{name}", source_rows) for name in layers
                }
                self.writer.fill(rows, features, *image_columns, checksums)

    def _write_failure(self, item: PrefetchedImage, reason: int) -> None:
        rows, image_columns = _to_columns([item])
        self.writer.record_failures(rows, np.array([reason], np.uint8), *image_columns)


def _to_columns(
    items: list[PrefetchedImage],
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the rows of images, and their hashes (n, 32), sizes and stamps, for the writer."""
    digests = np.frombuffer(b"".join(item.digest for item in items), np.uint8)
    sizes = np.array([item.size for item in items], np.int64)
    stamps = np.array([item.stamp for item in items], np.int64)
    return np.array([item.row for item in items]), (digests.reshape(-1, 32), sizes, stamps)

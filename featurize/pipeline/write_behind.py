"""Rows behind the network: written in a thread of its own, and marked."""

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
    """Writes rows in a thread of its own, in the order they come."""

    def __init__(self, job: ExtractionJob, writer: CacheWriter, stats: RunStats) -> None:
        self.job, self.writer, self.stats = job, writer, stats
        self._queue: queue.Queue[tuple[list[PrefetchedImage], list[np.ndarray] | None] | None] = (
            queue.Queue(maxsize=4)
        )
        self._error: BaseException | None = None
        self._pending_copies: list[
            tuple[PrefetchedImage, int]
        ] = []  # rows waiting for the row they repeat
        # A row to be done may be marked still, from when its image was another one.
        self._is_unwritten = np.zeros(len(job.listing.paths), bool)
        self._is_unwritten[job.rows] = True
        self._thread = threading.Thread(target=self._write_loop, name="write", daemon=True)
        self._thread.start()

    def put(self, items: list[PrefetchedImage], features: list[np.ndarray] | None) -> None:
        """Hand rows over; waits where the disk is behind. Raises what the thread met."""
        with self.stats.time_waiting("output"):
            self._queue.put((items, features))
        self._raise_pending_error()

    def close(self) -> None:
        """Wait until all is written and marked."""
        self._queue.put(None)
        self._thread.join()
        self._raise_pending_error()

    def drain(self) -> None:
        """Let the thread finish what it was given, after an error or an interrupt."""
        if self._thread.is_alive():
            with signals.delay_exit(f"the disk to take what is ready for {self.writer.path}"):
                self._queue.put(None)
                self._thread.join()

    def _raise_pending_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write_loop(self) -> None:
        while (given := self._get_next()) is not None:
            if self._error is not None:
                continue  # empty the queue, so that nobody waits for ever
            start = time.perf_counter()
            try:
                if given:
                    self._write(*given)
                if self.writer.flush_if_due():
                    self._copy_duplicates()
            except BaseException as error:  # carried over to the main thread
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
        """What comes next; nothing where for a second nothing did: then it is time to mark."""
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
        stored, finite = [], np.ones(len(items), bool)
        for name, values in zip(self.job.layers, features, strict=True):
            with np.errstate(over="ignore"):  # float16 overflows to infinity, found here
                stored.append(values.astype(self.writer.layout.layers[name].dtype))
            finite &= np.isfinite(stored[-1]).all(axis=1)
        good = np.flatnonzero(finite)
        if len(good):
            rows, about = _to_columns([items[k] for k in good])
            named = dict(zip(self.job.layers, (values[good] for values in stored), strict=True))
            self.writer.fill(rows, named, *about)
            self.stats.computed += len(rows)
        for k in np.flatnonzero(~finite):
            self._write_failure(items[k], reasons.NOT_FINITE)

    def _write_item(self, item: PrefetchedImage) -> None:
        rows, about = _to_columns([item])
        if item.is_unchanged:
            self.writer.update_stat(rows, *about[1:])
        elif item.reason != reasons.OK:
            self._write_failure(item, item.reason)
        elif isinstance(item.copy_of, StoredRow):
            if item.copy_of.reason != reasons.OK:
                self._write_failure(item, item.copy_of.reason)
            else:
                layers = self.writer.layout.layers
                features = {name: item.copy_of.features(name) for name in layers}
                sums = {name: item.copy_of.checksums(name) for name in layers}
                self.writer.fill(rows, features, *about, sums)
        elif item.copy_of is not None:
            self._pending_copies.append((item, item.copy_of))

    def _flush_all(self) -> None:
        self.writer.flush()
        self._copy_duplicates()
        self.writer.flush()

    def _copy_duplicates(self) -> None:
        """Rows whose image repeats another's take that row's features once it is marked."""
        waiting = self._pending_copies
        self._pending_copies = []
        for item, source in waiting:
            if self._is_unwritten[source] or self.writer.status[source] == PENDING:
                self._pending_copies.append((item, source))
                continue
            rows, about = _to_columns([item])
            original = np.array([source])
            if self.writer.status[source] == FAILED:
                self._write_failure(item, int(self.writer.read_rows("images/reason", original)[0]))
            else:
                layers = self.writer.layout.layers
                found = {
                    name: self.writer.read_rows(f"features/{name}", original) for name in layers
                }
                sums = {
                    name: self.writer.read_rows(f"checksums/{name}", original) for name in layers
                }
                self.writer.fill(rows, found, *about, sums)

    def _write_failure(self, item: PrefetchedImage, reason: int) -> None:
        rows, about = _to_columns([item])
        self.writer.record_failures(rows, np.array([reason], np.uint8), *about)


def _to_columns(
    items: list[PrefetchedImage],
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of some images; their hashes (n, 32), sizes and times, as the writer takes them."""
    digests = np.frombuffer(b"".join(item.digest for item in items), np.uint8)
    sizes = np.array([item.size for item in items], np.int64)
    times = np.array([item.mtime_ns for item in items], np.int64)
    return np.array([item.row for item in items]), (digests.reshape(-1, 32), sizes, times)

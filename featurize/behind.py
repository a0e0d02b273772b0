"""Rows behind the network: written in a thread of its own, and marked."""

import queue
import threading
import time

import numpy as np

from featurize import images, signals
from featurize.ahead import Prepared, Task
from featurize.contents import Older
from featurize.layout import FAILED, PENDING
from featurize.measure import Measure
from featurize.writer import SYNC_SECONDS, CacheWriter


class WriteBehind:
    """Writes rows in a thread of its own, in the order they come."""

    def __init__(self, task: Task, writer: CacheWriter, measure: Measure) -> None:
        self.task, self.writer, self.measure = task, writer, measure
        self._queue: queue.Queue[tuple[list[Prepared], list[np.ndarray] | None] | None] = (
            queue.Queue(maxsize=4)
        )
        self._error: BaseException | None = None
        self._copies: list[tuple[Prepared, int]] = []  # rows waiting for the row they repeat
        # A row to be done may be marked still, from when its image was another one.
        self._to_come = np.zeros(len(task.listing.paths), bool)
        self._to_come[task.rows] = True
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)
        self._thread.start()

    def put(self, items: list[Prepared], features: list[np.ndarray] | None) -> None:
        """Hand rows over; waits where the disk is behind. Raises what the thread met."""
        with self.measure.waiting("output"):
            self._queue.put((items, features))
        self._raise()

    def close(self) -> None:
        """Wait until all is written and marked."""
        self._queue.put(None)
        self._thread.join()
        self._raise()

    def abandon(self) -> None:
        """Let the thread finish what it was given, after an error or an interrupt."""
        if self._thread.is_alive():
            with signals.unhurried(f"the disk to take what is ready for {self.writer.path}"):
                self._queue.put(None)
                self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (given := self._next()) is not None:
            if self._error is not None:
                continue  # empty the queue, so that nobody waits for ever
            start = time.perf_counter()
            try:
                if given:
                    self._write(*given)
                if self.writer.flush_if_due():
                    self._copy_repeats()
            except BaseException as error:  # carried over to the main thread
                self._error = error
            self.measure.seconds["write"] += time.perf_counter() - start
        if self._error is None:
            try:
                self._mark()
            except BaseException as error:
                self._error = error

    def _next(self) -> "tuple[()] | tuple[list[Prepared], list[np.ndarray] | None] | None":
        """What comes next; nothing where for a second nothing did: then it is time to mark."""
        try:
            return self._queue.get(timeout=SYNC_SECONDS)
        except queue.Empty:
            return ()

    def _write(self, items: list[Prepared], features: list[np.ndarray] | None) -> None:
        self._to_come[[item.row for item in items]] = False
        if features is not None:
            self._fill(items, features)
        else:
            for item in items:
                self._settle(item)
        self.measure.done += len(items)

    def _fill(self, items: list[Prepared], features: list[np.ndarray]) -> None:
        stored, finite = [], np.ones(len(items), bool)
        for name, values in zip(self.task.layers, features, strict=True):
            with np.errstate(over="ignore"):  # float16 overflows to infinity, found here
                stored.append(values.astype(self.writer.layout.layers[name].dtype))
            finite &= np.isfinite(stored[-1]).all(axis=1)
        good = np.flatnonzero(finite)
        if len(good):
            rows, about = _columns([items[k] for k in good])
            named = dict(zip(self.task.layers, (values[good] for values in stored), strict=True))
            self.writer.fill(rows, named, *about)
            self.measure.computed += len(rows)
        for k in np.flatnonzero(~finite):
            self._fail(items[k], images.NOT_FINITE)

    def _settle(self, item: Prepared) -> None:
        rows, about = _columns([item])
        if item.same:
            self.writer.touch(rows, *about[1:])
        elif item.reason != images.OK:
            self._fail(item, item.reason)
        elif isinstance(item.found, Older):
            if item.found.reason != images.OK:
                self._fail(item, item.found.reason)
            else:
                layers = self.writer.layout.layers
                features = {name: item.found.features(name) for name in layers}
                sums = {name: item.found.checksums(name) for name in layers}
                self.writer.fill(rows, features, *about, sums)
        elif item.found is not None:
            self._copies.append((item, item.found))

    def _mark(self) -> None:
        self.writer.flush()
        self._copy_repeats()
        self.writer.flush()

    def _copy_repeats(self) -> None:
        """Rows whose image repeats another's take that row's features once it is marked."""
        waiting = self._copies
        self._copies = []
        for item, source in waiting:
            if self._to_come[source] or self.writer.status[source] == PENDING:
                self._copies.append((item, source))
                continue
            rows, about = _columns([item])
            original = np.array([source])
            if self.writer.status[source] == FAILED:
                self._fail(item, int(self.writer.rows("images/reason", original)[0]))
            else:
                layers = self.writer.layout.layers
                found = {name: self.writer.rows(f"features/{name}", original) for name in layers}
                sums = {name: self.writer.rows(f"checksums/{name}", original) for name in layers}
                self.writer.fill(rows, found, *about, sums)

    def _fail(self, item: Prepared, reason: int) -> None:
        rows, about = _columns([item])
        self.writer.fail(rows, np.array([reason], np.uint8), *about)


def _columns(
    items: list[Prepared],
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of some images; their hashes (n, 32), sizes and times, as the writer takes them."""
    digests = np.frombuffer(b"".join(item.digest for item in items), np.uint8)
    sizes = np.array([item.size for item in items], np.int64)
    times = np.array([item.mtime_ns for item in items], np.int64)
    return np.array([item.row for item in items]), (digests.reshape(-1, 32), sizes, times)

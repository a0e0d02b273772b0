"""Images to rows: decode ahead in threads, batch, run, write behind."""

import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from featurize import images
from featurize.batches import Batches
from featurize.contents import Contents, Older
from featurize.decoders import Decoders
from featurize.engines.choice import Choice
from featurize.errors import ImageUnreadable
from featurize.layout import FAILED, PENDING
from featurize.measure import Measure
from featurize.writer import CacheWriter

BATCHES_AHEAD = 2


@dataclass
class Task:
    """What one pass over some rows needs to know.

    Attributes
    ----------
    listing : Listing
    rows : int array
        Rows to do, ascending.
    recipe : dict
        Preprocessing.
    layers : list of str
        Dataset names the engine computes, in its order.
    choice : callable
        Makes the choice of an engine, when the first image is there.
    recorded : uint8 array of shape (N, 32), optional
        Hashes of finished rows whose file may hold the same bytes still; zeros elsewhere. Where
        it does, the row is kept.
    new_layers_only : bool
        The rows' other layers are in place already, of images with the recorded hashes. A file
        with other bytes is not computed but returned by `pump`.
    """

    listing: images.Listing
    rows: np.ndarray
    recipe: dict[str, object]
    layers: list[str]
    choice: Callable[[], Choice]
    recorded: np.ndarray | None = None
    new_layers_only: bool = False


@dataclass
class _Prepared:
    row: int
    digest: bytes = bytes(32)
    pixels: np.ndarray | None = None
    reason: int = images.OK
    same: bool = False
    changed: bool = False
    found: int | Older | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


def pump(
    task: Task,
    writer: CacheWriter,
    contents: Contents,
    measure: Measure,
    report: Callable[[Measure], None],
) -> list[int]:
    """Bring the rows of a task into the cache.

    Memory is bounded by a few batches, whatever the number of rows. On an interrupt what
    has been computed is written and marked before the interrupt goes on.

    Returns
    -------
    list of int
        Rows whose file has other bytes than `Task.recorded` says, where that matters.
    """
    # What Pillow thinks of odd files is no news: they are read, or fail with a reason.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _pump(task, writer, contents, measure, report)


def _pump(
    task: Task,
    writer: CacheWriter,
    contents: Contents,
    measure: Measure,
    report: Callable[[Measure], None],
) -> list[int]:
    changed: list[int] = []
    ahead = _Ahead(task, contents, measure)
    behind = _WriteBehind(task, writer, measure)
    try:
        batch: list[_Prepared] = []
        batches: Batches | None = None
        left = len(task.rows)
        for item in ahead:
            left -= 1
            if item.changed:
                changed.append(item.row)
            elif item.pixels is None:
                behind.put([item], None)
            else:
                batch.append(item)
                if batches is None:
                    batches = Batches(task.choice())
                    ahead.decoders.consider(batches.engine.device, measure.workers, left)
                if len(batch) >= batches.size:
                    _run(batches, batch, behind, measure)
                    batch = []
                    if batches.improve(left):
                        measure.restart()
                ahead.batch_size = batches.size
            report(measure)
        if batches is not None and batch:
            _run(batches, batch, behind, measure)
        behind.close()
        report(measure)
    finally:
        ahead.stop()
        behind.abandon()
    return changed


def _run(
    batches: Batches, batch: list[_Prepared], behind: "_WriteBehind", measure: Measure
) -> None:
    features = batches.run(np.stack([item.pixels for item in batch if item.pixels is not None]))
    measure.ran(len(batch), batches.seconds)
    measure.engine, measure.engine_why = batches.engine.name, batches.why
    for item in batch:
        item.pixels = None
    behind.put(batch, features)


class _Ahead:
    """Reads and decodes a bounded number of images ahead; they come out in order."""

    def __init__(self, task: Task, contents: Contents, measure: Measure) -> None:
        self.task, self.contents, self.measure = task, contents, measure
        self.batch_size = 32  # until the engine is open and says its own
        self.decoders = Decoders(task.recipe)
        self._pool = ThreadPoolExecutor(measure.workers, thread_name_prefix="decode")

    def __iter__(self) -> Iterator[_Prepared]:
        rows = iter(self.task.rows.tolist())
        waiting: deque[Future[_Prepared]] = deque()
        while True:
            room = BATCHES_AHEAD * self.batch_size + self.measure.workers - len(waiting)
            for row in islice(rows, max(room, 0)):
                waiting.append(self._pool.submit(self._prepare, row))
            if not waiting:
                return
            with self.measure.waiting("input"):
                item = waiting.popleft().result()
            self.measure.seconds["read"] += item.read_seconds
            self.measure.seconds["decode"] += item.decode_seconds
            yield item

    def stop(self) -> None:
        """End the threads, without starting on what still waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.decoders.close()

    def _prepare(self, row: int) -> _Prepared:
        """Read, hash and decode one image: what the threads do."""
        task, item = self.task, _Prepared(row)
        start = time.perf_counter()
        try:
            data = images.read(task.listing.place(row)).data
            item.digest = images.digest(data)
            item.read_seconds = time.perf_counter() - start
            recorded = b"" if task.recorded is None else task.recorded[row].tobytes()
            if task.new_layers_only:
                item.changed = recorded != item.digest
                if item.changed:
                    return item
            elif recorded == item.digest:
                item.same = True
                return item
            item.found = self.contents.claim(item.digest, row)
            if item.found is None:
                start = time.perf_counter()
                item.pixels = self.decoders.decode(data)
                item.decode_seconds = time.perf_counter() - start
        except ImageUnreadable as error:
            item.reason = error.reason
        return item


class _WriteBehind:
    """Writes rows in a thread of its own, in the order they come."""

    def __init__(self, task: Task, writer: CacheWriter, measure: Measure) -> None:
        self.task, self.writer, self.measure = task, writer, measure
        self._queue: queue.Queue[tuple[list[_Prepared], list[np.ndarray] | None] | None] = (
            queue.Queue(maxsize=4)
        )
        self._error: BaseException | None = None
        self._copies: list[tuple[int, int]] = []  # rows waiting for the row they repeat
        # A row to be done may be marked still, from when its image was another one.
        self._to_come = np.zeros(len(task.listing.paths), bool)
        self._to_come[task.rows] = True
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)
        self._thread.start()

    def put(self, items: list[_Prepared], features: list[np.ndarray] | None) -> None:
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
            self._queue.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (given := self._queue.get()) is not None:
            if self._error is not None:
                continue  # empty the queue, so that nobody waits for ever
            start = time.perf_counter()
            try:
                self._write(*given)
            except BaseException as error:  # carried over to the main thread
                self._error = error
            self.measure.seconds["write"] += time.perf_counter() - start
        if self._error is None:
            try:
                self._mark()
            except BaseException as error:
                self._error = error

    def _write(self, items: list[_Prepared], features: list[np.ndarray] | None) -> None:
        self._to_come[[item.row for item in items]] = False
        if features is not None:
            self._fill(items, features)
        else:
            for item in items:
                self._settle(item)
        self.measure.done += len(items)
        if self.writer.flush_if_due():
            self._copy_repeats()

    def _fill(self, items: list[_Prepared], features: list[np.ndarray]) -> None:
        stored, finite = [], np.ones(len(items), bool)
        for name, values in zip(self.task.layers, features, strict=True):
            with np.errstate(over="ignore"):  # float16 overflows to infinity, found here
                stored.append(values.astype(self.writer.layout.layers[name].dtype))
            finite &= np.isfinite(stored[-1]).all(axis=1)
        good = np.flatnonzero(finite)
        if len(good):
            rows, digests = self._rows([items[k] for k in good])
            named = dict(zip(self.task.layers, (values[good] for values in stored), strict=True))
            self.writer.fill(rows, named, digests, *self._stat(rows))
            self.measure.computed += len(rows)
        for k in np.flatnonzero(~finite):
            self._fail(items[k], images.NOT_FINITE)

    def _settle(self, item: _Prepared) -> None:
        row = np.array([item.row])
        if item.same:
            self.writer.touch(row, *self._stat(row))
        elif item.reason != images.OK:
            self._fail(item, item.reason)
        elif isinstance(item.found, Older):
            if item.found.reason != images.OK:
                self._fail(item, item.found.reason)
            else:
                digest = np.frombuffer(item.digest, np.uint8).reshape(1, 32)
                layers = self.writer.layout.layers
                features = {name: item.found.features(name) for name in layers}
                self.writer.fill(row, features, digest, *self._stat(row))
        elif item.found is not None:
            self._copies.append((item.row, item.found))

    def _mark(self) -> None:
        self.writer.flush()
        self._copy_repeats()
        self.writer.flush()

    def _copy_repeats(self) -> None:
        """Rows whose image repeats another's take that row's features once it is marked."""
        waiting = self._copies
        self._copies = []
        for row, source in waiting:
            if self._to_come[source] or self.writer.status[source] == PENDING:
                self._copies.append((row, source))
                continue
            target, original = np.array([row]), np.array([source])
            digest = self.writer.rows("images/sha256", original)
            if self.writer.status[source] == FAILED:
                reason = self.writer.rows("images/reason", original)
                self.writer.fail(target, reason, digest, *self._stat(target))
            else:
                layers = self.writer.layout.layers
                found = {name: self.writer.rows(f"features/{name}", original) for name in layers}
                self.writer.fill(target, found, digest, *self._stat(target))

    def _fail(self, item: _Prepared, reason: int) -> None:
        row, digests = self._rows([item])
        self.writer.fail(row, np.array([reason], np.uint8), digests, *self._stat(row))

    def _rows(self, items: list[_Prepared]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array([item.row for item in items])
        digests = np.frombuffer(b"".join(item.digest for item in items), np.uint8)
        return rows, digests.reshape(-1, 32)

    def _stat(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.task.listing.sizes[rows], self.task.listing.mtimes_ns[rows]

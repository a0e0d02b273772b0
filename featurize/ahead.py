"""Images ahead of the network: read, hashed and decoded in threads, a bounded number of them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from featurize import images
from featurize.contents import Contents, Older
from featurize.decoders import Decoders, decode_alone
from featurize.engines.choice import Choice
from featurize.errors import ImageUnreadable
from featurize.ledger import Ledger
from featurize.measure import Measure

BATCHES_AHEAD = 2
PAUSE = 1.0  # seconds without an image, after which a batch is run as it is


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
    ledger : Path
        Where to note which images are being decoded.
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
    ledger: Path
    recorded: np.ndarray | None = None
    new_layers_only: bool = False


@dataclass
class Prepared:
    """One image on its way: read, hashed and decoded, or known, or with the reason why not."""

    row: int
    size: int  # as it was read; as it was listed, where it could not be
    mtime_ns: int
    digest: bytes = bytes(32)
    pixels: np.ndarray | None = None
    reason: int = images.OK
    same: bool = False
    changed: bool = False
    found: int | Older | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


class DecodeAhead:
    """Reads and decodes a bounded number of images ahead; they come out as they are ready.

    So one image that takes long holds up nobody. Threads rather than a pool of the standard
    library: the interpreter waits for those of a pool before it ends, however long one takes.
    """

    def __init__(self, task: Task, contents: Contents, measure: Measure) -> None:
        self.task, self.contents, self.measure = task, contents, measure
        self.batch_size = 32  # until the engine is open and says its own
        self.decoders = Decoders(task.recipe)
        self._rows: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Prepared | BaseException] = queue.SimpleQueue()
        self._ledger = Ledger(task.ledger, measure.workers)
        self._alone = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(place,), name="decode", daemon=True)
            for place in range(min(measure.workers, len(task.rows)))
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[Prepared | None]:
        """Images as they are ready; None where for a moment none is."""
        rows, in_work = iter(self.task.rows.tolist()), 0
        while True:
            room = BATCHES_AHEAD * self.batch_size + self.measure.workers - in_work
            for row in islice(rows, max(room, 0)):
                self._rows.put(row)
                in_work += 1
            if not in_work:
                return
            with self.measure.waiting("input"):
                try:
                    item = self._ready.get(timeout=PAUSE)
                except queue.Empty:
                    item = None
            if item is None:
                yield None
                continue
            in_work -= 1
            if isinstance(item, BaseException):
                raise item
            self.measure.seconds["read"] += item.read_seconds
            self.measure.seconds["decode"] += item.decode_seconds
            yield item

    def finish(self) -> None:
        """Let the threads end; they have nothing left to do."""
        for _ in self._threads:
            self._rows.put(None)
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Start on nothing more, and wait for nothing that is being decoded."""
        while not self._rows.empty():
            self._rows.get()
        for _ in self._threads:
            self._rows.put(None)
        self.decoders.close()
        self._ledger.close()

    def _work(self, place: int) -> None:
        while (row := self._rows.get()) is not None:
            try:
                self._ready.put(self._prepare(row, place))
            except BaseException as error:  # carried over to the main thread
                self._ready.put(error)

    def _prepare(self, row: int, place: int) -> Prepared:
        """Read, hash and decode one image: what the threads do."""
        task, listing = self.task, self.task.listing
        item = Prepared(row, int(listing.sizes[row]), int(listing.mtimes_ns[row]))
        start = time.perf_counter()
        try:
            data, item.size, item.mtime_ns = images.read(listing.place(row))
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
                item.pixels = self._decode(data, item.digest, place)
                item.decode_seconds = time.perf_counter() - start
        except ImageUnreadable as error:
            item.reason = error.reason
        return item

    def _decode(self, data: bytes, digest: bytes, place: int) -> np.ndarray:
        if self._ledger.is_suspect(digest):
            with self._alone:
                try:
                    return decode_alone(data, self.task.recipe)
                finally:
                    self._ledger.acquit(digest)
        self._ledger.begin(place, digest)
        try:
            return self.decoders.decode(data)
        finally:
            self._ledger.end(place)

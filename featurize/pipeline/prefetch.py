"""Images ahead of the network: read, hashed and decoded in threads, a bounded number of them."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from featurize.engines.auto import EngineSelector
from featurize.errors import ImageUnreadableError
from featurize.files import hash_bytes
from featurize.images import reading, reasons
from featurize.images.preprocess import Preprocess
from featurize.images.workers import DecoderPool, decode_in_process
from featurize.pipeline.content_index import ContentIndex, StoredRow
from featurize.pipeline.in_flight import InFlightLog
from featurize.pipeline.stats import RunStats
from featurize.sources import folder

MAX_BATCHES_AHEAD = 2
MAX_WAIT_SECONDS = 1.0  # seconds without an image, after which a batch is run as it is


@dataclass
class ExtractionJob:
    """What one pass over some rows needs to know.

    Attributes
    ----------
    listing : ImageListing
    rows : int array
        Rows to do, ascending.
    preprocess : Preprocess
    layers : list of str
        Dataset names the engine computes, in its order.
    engine_selector : EngineSelector
        Opens the engine when the first image is there.
    in_flight_path : Path
        Where to note which images are being decoded.
    recorded_sha256 : uint8 array of shape (N, 32), optional
        Hashes of finished rows whose file may hold the same bytes still; zeros elsewhere. Where
        it does, the row is kept.
    new_layers_only : bool
        The rows' other layers are in place already, of images with the recorded hashes. A file
        with other bytes is not computed but returned by `process_rows`.
    """

    listing: folder.ImageListing
    rows: np.ndarray
    preprocess: Preprocess
    layers: list[str]
    engine_selector: EngineSelector
    in_flight_path: Path
    recorded_sha256: np.ndarray | None = None
    new_layers_only: bool = False


@dataclass
class PrefetchedImage:
    """One image on its way: read, hashed and decoded, or known, or with the reason why not."""

    row: int
    size: int  # as it was read; as it was listed, where it could not be
    mtime_ns: int
    digest: bytes = bytes(32)
    pixels: np.ndarray | None = None
    reason: int = reasons.OK
    is_unchanged: bool = False
    is_changed: bool = False
    copy_of: int | StoredRow | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


class Prefetcher:
    """Reads and decodes a bounded number of images ahead; they come out as they are ready.

    So one image that takes long holds up nobody. Threads rather than a pool of the standard
    library: the interpreter waits for those of a pool before it ends, however long one takes.
    """

    def __init__(self, job: ExtractionJob, content_index: ContentIndex, stats: RunStats) -> None:
        self.job, self.content_index, self.stats = job, content_index, stats
        self.batch_size = 32  # until the engine is open and says its own
        self.decoders = DecoderPool(job.preprocess)
        self._row_queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ready_queue: queue.SimpleQueue[PrefetchedImage | BaseException] = queue.SimpleQueue()
        self._in_flight = InFlightLog(job.in_flight_path, stats.workers)
        self._suspect_lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._decode_loop, args=(place,), name="decode", daemon=True)
            for place in range(min(stats.workers, len(job.rows)))
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[PrefetchedImage | None]:
        """Images as they are ready; None where for a moment none is."""
        rows, in_work = iter(self.job.rows.tolist()), 0
        while True:
            room = MAX_BATCHES_AHEAD * self.batch_size + self.stats.workers - in_work
            for row in islice(rows, max(room, 0)):
                self._row_queue.put(row)
                in_work += 1
            if not in_work:
                return
            with self.stats.time_waiting("input"):
                try:
                    item = self._ready_queue.get(timeout=MAX_WAIT_SECONDS)
                except queue.Empty:
                    item = None
            if item is None:
                yield None
                continue
            in_work -= 1
            if isinstance(item, BaseException):
                raise item
            self.stats.stage_seconds["read"] += item.read_seconds
            self.stats.stage_seconds["decode"] += item.decode_seconds
            yield item

    def finish(self) -> None:
        """Let the threads end; they have nothing left to do."""
        for _ in self._threads:
            self._row_queue.put(None)
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Start on nothing more, and wait for nothing that is being decoded."""
        while not self._row_queue.empty():
            self._row_queue.get()
        for _ in self._threads:
            self._row_queue.put(None)
        self.decoders.close()
        self._in_flight.close()

    def _decode_loop(self, slot: int) -> None:
        while (row := self._row_queue.get()) is not None:
            try:
                self._ready_queue.put(self._prepare(row, slot))
            except BaseException as error:  # carried over to the main thread
                self._ready_queue.put(error)

    def _prepare(self, row: int, slot: int) -> PrefetchedImage:
        """Read, hash and decode one image: what the threads do."""
        task, listing = self.job, self.job.listing
        item = PrefetchedImage(row, int(listing.sizes[row]), int(listing.mtimes_ns[row]))
        start = time.perf_counter()
        try:
            data, item.size, item.mtime_ns = reading.read_image_file(listing.full_path(row))
            item.digest = hash_bytes(data)
            item.read_seconds = time.perf_counter() - start
            recorded = b"" if task.recorded_sha256 is None else task.recorded_sha256[row].tobytes()
            if task.new_layers_only:
                item.is_changed = recorded != item.digest
                if item.is_changed:
                    return item
            elif recorded == item.digest:
                item.is_unchanged = True
                return item
            item.copy_of = self.content_index.claim(item.digest, row)
            if item.copy_of is None:
                start = time.perf_counter()
                item.pixels = self._decode(data, item.digest, slot)
                item.decode_seconds = time.perf_counter() - start
        except ImageUnreadableError as error:
            item.reason = error.reason
        return item

    def _decode(self, data: bytes, digest: bytes, slot: int) -> np.ndarray:
        if self._in_flight.is_suspect(digest):
            with self._suspect_lock:
                try:
                    return decode_in_process(data, self.job.preprocess)
                finally:
                    self._in_flight.clear_suspect(digest)
        self._in_flight.begin(slot, digest)
        try:
            return self.decoders.decode(data)
        finally:
            self._in_flight.end(slot)

"""Hash and decode images in threads, ahead of the network."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurize.engines.auto import EngineSelector
from featurize.errors import ImageUnreadableError
from featurize.files import hash_bytes
from featurize.images import reasons
from featurize.images.preprocess import Preprocess
from featurize.images.workers.pool import DecoderPool, decode_in_process
from featurize.images.workers.task_memory import count_task_images
from featurize.images.workers.worker import Decoded
from featurize.pipeline.content_index import ContentIndex, StoredRow
from featurize.pipeline.in_flight import InFlightLog
from featurize.pipeline.read_ahead import ReadAhead, TimedRead
from featurize.pipeline.stats import RunStats
from featurize.sources.listing import ImageListing

MAX_BATCHES_AHEAD = 2
MAX_WAIT_SECONDS = 1.0  # without a new image; then an incomplete batch is run


@dataclass
class ExtractionJob:
    """Input of one pass over some rows.

    Attributes
    ----------
    listing : ImageListing
    rows : int array
        Rows to process, ascending.
    preprocess : Preprocess
    layers : list of str
        Dataset names that the engine computes, in its order.
    engine_selector : EngineSelector
        Opens the engine when the first image is decoded.
    in_flight_path : Path, optional
        Log of the images being decoded.
    recorded_sha256 : uint8 array of shape (N, 32), optional
        Hashes of finished rows whose file may be unchanged; zeros elsewhere. If the file has the
        same hash, the row is not computed again.
    returns_changed : bool
        Whether an image with another hash than recorded is not computed: `process_rows` returns
        its row.
    computes_unchanged : bool
        Whether an image with the recorded hash is computed: the other layers of its row are
        written already.
    """

    listing: ImageListing
    rows: np.ndarray
    preprocess: Preprocess
    layers: list[str]
    engine_selector: EngineSelector
    in_flight_path: Path | None
    recorded_sha256: np.ndarray | None = None
    returns_changed: bool = False
    computes_unchanged: bool = False


@dataclass
class PrefetchedImage:
    """An image that was read, with the result.

    Attributes
    ----------
    row : int
    size, stamp : int
        As read; as listed if the image could not be read.
    digest : bytes
        SHA-256 of its bytes; zeros if it could not be read.
    pixels : uint8 array of shape (crop, crop, 3), optional
        None if the image need not, or cannot, be embedded.
    reason : int
        Code of `featurize.images.reasons`, why it cannot be embedded.
    is_unchanged, is_changed : bool
        Whether it has the recorded hash, and whether it should have but does not.
    copy_of : int or StoredRow, optional
        The row to copy features from.
    read_seconds, decode_seconds, wait_seconds : float
        Until it was read and hashed, in decoding, and how long a decoder waited for it.
    """

    row: int
    size: int
    stamp: int
    digest: bytes = bytes(32)
    pixels: np.ndarray | None = None
    reason: int = reasons.OK
    is_unchanged: bool = False
    is_changed: bool = False
    copy_of: int | StoredRow | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    wait_seconds: float = 0.0

    def release_pixels(self) -> None:
        """Give the pixels up once they are copied."""
        self.pixels = None


class Prefetcher:
    """Iterator over images that are hashed and decoded in threads, in order of completion.

    A slow image does not delay the others. The threads are daemons, not a pool of the standard
    library: the interpreter waits for the threads of a pool before it exits.

    Parameters
    ----------
    job : ExtractionJob
    content_index : ContentIndex
    stats : RunStats
        Its `workers` is the number of threads; updated in place.
    decoders : DecoderPool, optional
        Stays open after `stop`. Default one of its own.

    Attributes
    ----------
    batch_size : int
        Set by the caller; at most `MAX_BATCHES_AHEAD` batches are read and decoded ahead of it.
    decoders : DecoderPool
    """

    def __init__(
        self,
        job: ExtractionJob,
        content_index: ContentIndex,
        stats: RunStats,
        decoders: DecoderPool | None = None,
    ) -> None:
        self.job, self.content_index, self.stats = job, content_index, stats
        self.batch_size = 32  # until the engine is open
        self.decoders, self._owns_decoders = decoders or DecoderPool(job.preprocess), not decoders
        self._ready_queue: queue.SimpleQueue[list[PrefetchedImage] | BaseException] = (
            queue.SimpleQueue()
        )
        self._in_flight: InFlightLog | None = None
        if job.in_flight_path is not None:
            n_images = count_task_images(job.preprocess.crop)
            self._in_flight = InFlightLog(job.in_flight_path, stats.workers, n_images)
        self._suspect_lock = threading.Lock()
        n_threads = min(stats.workers, len(job.rows))
        self._read_ahead = ReadAhead(job.listing, job.rows, self._limit, n_threads)
        self._threads = [
            threading.Thread(target=self._decode_loop, args=(slot,), name="decode", daemon=True)
            for slot in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def _limit(self) -> int:
        """How many images are read, decoded or ready at a time."""
        return MAX_BATCHES_AHEAD * self.batch_size + 2 * self.stats.workers

    def __iter__(self) -> Iterator[PrefetchedImage | None]:
        """Yield images as they are ready; None after `MAX_WAIT_SECONDS` without one."""
        n_left = len(self.job.rows)
        while n_left:
            with self.stats.time_waiting("input"):
                try:
                    items = self._ready_queue.get(timeout=MAX_WAIT_SECONDS)
                except queue.Empty:
                    items = []
            if isinstance(items, BaseException):
                raise items
            if not items:
                yield None
                continue
            n_left -= len(items)
            self._read_ahead.release(self._limit, len(items))
            for item in items:
                self.stats.stage_seconds["read"] += item.read_seconds
                self.stats.stage_seconds["decode"] += item.decode_seconds
                self.stats.wait_seconds["read"] += item.wait_seconds
                yield item

    def finish(self) -> None:
        """Wait for the threads, after the last image."""
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Drop the images not started, and do not wait for those being decoded."""
        self._read_ahead.close()
        if self._owns_decoders:
            self.decoders.close()
        if self._in_flight is not None:
            self._in_flight.close()

    def _decode_loop(self, thread: int) -> None:
        while True:
            start = time.perf_counter()
            try:
                taken = self._read_ahead.take(self.decoders.max_task_images)
                if not taken:
                    return
                waited = time.perf_counter() - start
                items = self._prepare(taken, thread)
                items[0].wait_seconds = waited
                self._ready_queue.put(items)
            except BaseException as error:  # raised again in the main thread
                self._ready_queue.put(error)
                return

    def _prepare(self, taken: list[TimedRead], thread: int) -> list[PrefetchedImage]:
        """Hash images and decode those that have to be, in a thread."""
        items: list[PrefetchedImage] = []
        to_decode: list[tuple[PrefetchedImage, bytes]] = []
        for (row, image), seconds in taken:
            if isinstance(image, ImageUnreadableError):
                listing = self.job.listing
                listed = int(listing.sizes[row]), int(listing.stamps[row])
                item = PrefetchedImage(row, *listed, reason=image.reason, read_seconds=seconds)
            else:
                item = PrefetchedImage(row, image.size, image.stamp, read_seconds=seconds)
                if self._has_to_be_decoded(item, image.data):
                    to_decode.append((item, image.data))
            items.append(item)
        if to_decode:
            self._decode(to_decode, thread)
        return items

    def _has_to_be_decoded(self, item: PrefetchedImage, data: bytes) -> bool:
        """Hash an image, and find out whether it is known."""
        job, start = self.job, time.perf_counter()
        item.digest = hash_bytes(data)
        item.read_seconds += time.perf_counter() - start
        recorded = b"" if job.recorded_sha256 is None else job.recorded_sha256[item.row].tobytes()
        if job.returns_changed and recorded != item.digest:
            item.is_changed = True
            return False
        if recorded == item.digest and not job.computes_unchanged:
            item.is_unchanged = True
            return False
        item.copy_of = self.content_index.claim(item.digest, item.row)
        return item.copy_of is None

    def _decode(self, to_decode: list[tuple[PrefetchedImage, bytes]], thread: int) -> None:
        start = time.perf_counter()
        plain = []
        for item, data in to_decode:
            if self._in_flight is not None and self._in_flight.is_suspect(item.digest):
                _set_decoded(item, self._decode_suspect(item.digest, data))
            else:
                plain.append((item, data))
        if plain:
            if self._in_flight is not None:
                self._in_flight.begin(thread, [item.digest for item, _ in plain])
            try:
                decoded = self.decoders.decode_task([data for _, data in plain])
            finally:
                if self._in_flight is not None:
                    self._in_flight.end(thread, len(plain))
            for (item, _), found in zip(plain, decoded, strict=True):
                _set_decoded(item, found)
        seconds = (time.perf_counter() - start) / len(to_decode)
        for item, _ in to_decode:
            item.decode_seconds = seconds

    def _decode_suspect(self, digest: bytes, data: bytes) -> Decoded:
        """Decode an image that may have ended an earlier run."""
        assert self._in_flight is not None
        with self._suspect_lock:
            try:
                return decode_in_process(data, self.job.preprocess)
            except ImageUnreadableError as error:
                return error
            finally:
                self._in_flight.clear_suspect(digest)


def _set_decoded(item: PrefetchedImage, decoded: Decoded) -> None:
    if isinstance(decoded, ImageUnreadableError):
        item.reason = decoded.reason
    else:
        item.pixels = decoded

"""Read a bounded number of images ahead of the decoders, in threads of their own.

How many requests a network or a disk should have in flight does not depend on the cores.
"""

import queue
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from featurize.errors import ImageUnreadableError
from featurize.images import reasons
from featurize.images.reading import ImageFile
from featurize.sources.listing import ImageListing, ImageRead

MAX_BYTES_AHEAD = 64 << 20  # of images read and not decoded yet
MAX_BYTES_TAKEN = 4 << 20  # by one consumer at a time, or a single image that is larger


class TimedRead(NamedTuple):
    """An image, and how long it was read.

    Attributes
    ----------
    read : ImageRead
    seconds : float
    """

    read: ImageRead
    seconds: float


class ReadAhead:
    """Images of a listing, read ahead in threads.

    At most `limit` images are admitted, and `MAX_BYTES_AHEAD` bytes of them wait for a decoder,
    or a single image that is larger. An admitted image counts until `release` is called.

    The threads are daemons: one that waits for a network does not keep the process.

    Parameters
    ----------
    listing : ImageListing
    rows : int array
        Rows to read, ascending.
    limit : int
    n_consumers : int
        Threads that call `take`.
    """

    def __init__(
        self, listing: ImageListing, rows: np.ndarray, limit: int, n_consumers: int
    ) -> None:
        self._listing, self._n_consumers = listing, n_consumers
        chunks = listing.source.split_rows(listing, rows)
        self._chunks = iter(chunks)
        self._limit, self._n_admitted, self._n_bytes = limit, 0, 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._queue: queue.SimpleQueue[TimedRead | BaseException | None] = queue.SimpleQueue()
        self._n_reading = max(1, min(listing.source.n_readers, len(chunks)))
        for _ in range(self._n_reading):
            threading.Thread(target=self._read_loop, name="read", daemon=True).start()

    def take(self, most: int = 1) -> list[TimedRead]:
        """Wait for the next image, and take others that are there already.

        Parameters
        ----------
        most : int
            How many to take at most. No more are taken than this consumer's share of those there,
            nor after `MAX_BYTES_TAKEN` bytes.

        Returns
        -------
        list of TimedRead
            Empty at the end.

        Raises
        ------
        BaseException
            What went wrong in a thread, beyond single images.
        """
        taken: list[TimedRead] = []
        n_bytes = 0
        item = self._queue.get()
        most = min(most, 1 + self._queue.qsize() // self._n_consumers)
        while isinstance(item, TimedRead):
            taken.append(item)
            n_bytes += _count_bytes(item.read)
            if len(taken) == most or n_bytes >= MAX_BYTES_TAKEN:
                break
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        else:
            if taken:
                self._queue.put(item)  # for whoever comes next
            elif item is not None:
                raise item
        if n_bytes:
            with self._changed:
                self._n_bytes -= n_bytes
                self._changed.notify_all()
        return taken

    def release(self, limit: int, n_images: int = 1) -> None:
        """Let further images in for those that have left.

        Parameters
        ----------
        limit : int
            How many are admitted from now on.
        n_images : int
            How many have left.
        """
        with self._changed:
            self._n_admitted -= n_images
            self._limit = limit
            self._changed.notify_all()

    def close(self) -> None:
        """Read no further, and end every `take`; do not wait for what is being read."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._put_end()

    def _put_end(self) -> None:
        for _ in range(self._n_consumers):
            self._queue.put(None)

    def _read_loop(self) -> None:
        try:
            reader = self._listing.source.open_reader(self._listing)
            try:
                while (rows := self._next_chunk()) is not None:
                    if not self._read_chunk(reader.read(rows), rows):
                        break
            finally:
                reader.close()
        except BaseException as error:  # raised again by `take`
            self._queue.put(error)
        with self._changed:
            self._n_reading -= 1
            is_last = not self._n_reading
        if is_last:
            self._put_end()

    def _next_chunk(self) -> np.ndarray | None:
        with self._changed:
            return None if self._is_closed else next(self._chunks, None)

    def _read_chunk(self, reads: Iterator[ImageRead], rows: np.ndarray) -> bool:
        """Pass a chunk on; return whether to go on with the next."""
        missing = set(rows.tolist())
        start = time.perf_counter()
        for read in reads:
            seconds = time.perf_counter() - start
            missing.discard(read.row)
            if not self._admit(read):
                return False
            self._queue.put(TimedRead(read, seconds))
            start = time.perf_counter()
        for row in sorted(missing):  # or the run would wait for it for ever
            path = self._listing.paths[row]
            error = ImageUnreadableError(f"{path} was not read", reasons.READ_ERROR)
            if not self._admit(ImageRead(row, error)):
                return False
            self._queue.put(TimedRead(ImageRead(row, error), 0.0))
        return True

    def _admit(self, read: ImageRead) -> bool:
        """Wait until there is room; return False if there will be none."""
        size = _count_bytes(read)
        with self._changed:
            while not self._is_closed and (
                self._n_admitted >= self._limit
                or (self._n_bytes and self._n_bytes + size > MAX_BYTES_AHEAD)
            ):
                self._changed.wait()
            self._n_admitted += 1
            self._n_bytes += size
            return not self._is_closed


def _count_bytes(read: ImageRead) -> int:
    return len(read.image.data) if isinstance(read.image, ImageFile) else 0

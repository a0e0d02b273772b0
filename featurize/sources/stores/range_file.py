"""A file that is read by ranges of bytes, ahead as far as it is read one after another."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from featurize.errors import ImageUnreadableError
from featurize.images import reasons

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MIN_AHEAD_BYTES = 256 << 10
MAX_AHEAD_BYTES = 8 << 20


class RangeFile(io.RawIOBase):
    """A binary file for reading and seeking; every range that is not at hand is one request.

    While it is read one after another, each request asks for twice as many bytes as the one
    before, up to `MAX_AHEAD_BYTES`. Skipping over less than that is reading one after another too.

    Parameters
    ----------
    read_range : callable
        Given start and stop, gives the bytes.
    size : int
        Of the file.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read_range, self.size = read_range, size
        self._position = 0
        self._start, self._data = 0, b""  # what is at hand
        self._ahead = MIN_AHEAD_BYTES // 2

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be sought in."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; no request is made.

        Parameters
        ----------
        offset : int
        whence : int
            Where `offset` counts from.

        Returns
        -------
        int
            The new position.

        Raises
        ------
        ValueError
            If it is before the beginning.
        """
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a buffer, but for the end of the file.

        Parameters
        ----------
        buffer : buffer

        Returns
        -------
        int
            Number of bytes; 0 at the end.

        Raises
        ------
        OSError
            If they cannot be read.
        """
        view = memoryview(buffer).cast("B")
        data = self._take(self._position, min(self._position + len(view), self.size))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Read to the end.

        Returns
        -------
        bytes
        """
        data = bytes(self._take(self._position, self.size))
        self._position += len(data)
        return data

    def _take(self, start: int, stop: int) -> bytes | memoryview:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if start >= stop:
            return b""
        end = self._start + len(self._data)
        if not (self._start <= start and stop <= end):
            is_next = 0 <= start - end <= self._ahead or self._start <= start <= end
            self._ahead = min(2 * self._ahead, MAX_AHEAD_BYTES) if is_next else MIN_AHEAD_BYTES
            kept = self._data[start - self._start :] if self._start <= start < end else b""
            first = start + len(kept)
            self._data = kept + self._fetch(first, min(max(stop, first + self._ahead), self.size))
            self._start = start
        offset = start - self._start
        return memoryview(self._data)[offset : offset + stop - start]

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            data = self._read_range(start, stop)
        except ImageUnreadableError as error:  # as a local file would say it
            kinds = {
                reasons.VANISHED: FileNotFoundError,
                reasons.NO_PERMISSION: PermissionError,
            }
            raise kinds.get(error.reason, OSError)(str(error)) from None
        if len(data) != stop - start:
            raise OSError(f"{len(data):,} bytes came where {stop - start:,} are")
        return data

"""A file of which a window is in memory: small reads cost no request, and none is unbounded."""

import errno
import io
import re
import tarfile
from collections.abc import Callable

MAX_HEADER_BYTES = 1 << 18  # of one member, with long names and extended attributes
MAX_RANGE_BYTES = 16 << 20  # read at once
MAX_GAP_BYTES = 64 << 10  # read and thrown away, rather than asked for apart

# Python before 3.11.10 takes quadratic time for long runs of digits (CVE-2024-6232).
_LONG_NUMBER = re.compile(rb"\d{200}")


class WindowFile(io.RawIOBase):
    """A file for `tarfile` and `zipfile`, over any way to read bytes at a position.

    Parameters
    ----------
    read_at : callable
        Takes a position and a number of bytes, and returns so many or more; fewer at the end
        alone.
    size : int
        Of the file in bytes; -1 if it is unknown.

    Attributes
    ----------
    size : int
        As the parameter.
    max_read_bytes : int
        A larger read is refused: strangers' files say how much is to be read.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read_at, self.size = read_at, size
        self.max_read_bytes = MAX_RANGE_BYTES
        self._position = self._start = 0
        self._window = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move without reading."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a position before the file")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the position; all that is left for a negative size."""
        if size is None or size < 0:
            size = max(0, self.size - self._position)
        if size > self.max_read_bytes:
            raise ValueError(f"{size:,} bytes are to be read at once")
        data = self.peek(self._position, size)
        self._position += len(data)
        return data

    def peek(self, position: int, size: int) -> bytes:
        """Read at a position, and stay where the file is.

        Parameters
        ----------
        position, size : int

        Returns
        -------
        bytes
            Fewer than asked for at the file's end.
        """
        start = position - self._start
        if not 0 <= start <= start + size <= len(self._window):
            if self.size >= 0:
                size = min(size, self.size - position)
            if size <= 0:
                return b""
            self.load(position, size)
            start = 0
        return self._window[start : start + size]

    def load(self, position: int, size: int) -> None:
        """Take a range into memory, for the reads to come.

        Parameters
        ----------
        position, size : int
        """
        self._window = self._read_at(position, size)
        self._start = position


class TarHeaderFile(WindowFile):
    """What `tarfile` reads the headers from: a bounded number of bytes for each member."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        super().__init__(read_at, size)
        self.start_member()

    def start_member(self) -> None:
        """Let the headers of one more member be read."""
        self.max_read_bytes = MAX_HEADER_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the position; see `WindowFile.read`."""
        if size is None or size < 0:
            raise tarfile.ReadError("a header of negative size")
        data = super().read(size)
        self.max_read_bytes -= len(data)
        if len(data) > tarfile.BLOCKSIZE and _LONG_NUMBER.search(data):
            raise tarfile.ReadError("a header with a number of 200 digits")
        return data


def merge_ranges(ranges: list[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """Merge neighbouring ranges of bytes into few that are read at once.

    Parameters
    ----------
    ranges : list of (int, int)
        Start and stop of each, ascending.

    Returns
    -------
    list of (int, int, list of int)
        Start and stop of at most `MAX_RANGE_BYTES`, but for a larger range, and the indices of
        the ranges in it.
    """
    merged: list[tuple[int, int, list[int]]] = []
    for i, (start, stop) in enumerate(ranges):
        if merged:
            first, last, members = merged[-1]
            if start - last <= MAX_GAP_BYTES and max(last, stop) - first <= MAX_RANGE_BYTES:
                members.append(i)
                merged[-1] = first, max(last, stop), members
                continue
        merged.append((start, stop, [i]))
    return merged

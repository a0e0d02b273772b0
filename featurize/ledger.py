"""Which images are being decoded: so that one which takes the whole run down can be named."""

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

from featurize.errors import OutputError
from featurize.files import explained

DIGEST_BYTES = 32
MAX_BYTES = 1 << 16


class Ledger:
    """A small file beside the cache, ``C.h5.working``: one place for each decoding thread.

    A thread writes an image's hash there before it decodes, and clears it afterwards. Where the
    system ends the process in between, for want of memory or by a crash inside a decoder, the
    file stays. The next run decodes those images alone, each in a process of its own.

    Parameters
    ----------
    path : Path
        As `ledger_of` gives it; the cache's `Lock` has to be held.
    places : int
        How many threads decode.

    Raises
    ------
    OutputError, DiskFull
        If something else lies there, or it cannot be written.
    """

    def __init__(self, path: Path, places: int) -> None:
        self.path = path
        self._suspects = left_by_a_dead_run(path)
        self._lock = threading.Lock()
        # Those still to be tried stay in the file until they were: this run may die as well.
        self._first = len(self._suspects)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            path.unlink(missing_ok=True)  # never written into: it may be a link
            self._fd = os.open(path, flags, 0o644)
            _write(self._fd, b"".join(sorted(self._suspects)) + bytes(places * DIGEST_BYTES), 0)
        except OSError as error:
            raise explained(error, path) from error

    def is_suspect(self, digest: bytes) -> bool:
        """Whether this image was in work when an earlier run died, and has not been tried yet."""
        return digest in self._suspects

    def acquit(self, digest: bytes) -> None:
        """Note that a suspect was tried, and this process is still there."""
        self._suspects.discard(digest)

    def begin(self, place: int, digest: bytes) -> None:
        """Note that the image with this SHA-256 is being decoded at a place."""
        self._put(digest, self._first + place)

    def end(self, place: int) -> None:
        """Note that it is done."""
        self._put(bytes(DIGEST_BYTES), self._first + place)

    def close(self) -> None:
        """Leave what is still suspected, or no file: nothing in work was what ended the run."""
        with self._lock:  # a thread that nobody waits for may still be at work
            fd, self._fd = self._fd, -1
        left = b"".join(sorted(self._suspects))
        with suppress(OSError):
            if left:
                os.ftruncate(fd, 0)
                _write(fd, left, 0)
            else:
                self.path.unlink(missing_ok=True)
        os.close(fd)

    def _put(self, data: bytes, place: int) -> None:
        # What the disk has to say is heard where rows are written; this is only an aid.
        with self._lock, suppress(OSError):
            if self._fd >= 0:
                _write(self._fd, data, place * DIGEST_BYTES)


def _write(fd: int, data: bytes, offset: int) -> None:
    if hasattr(os, "pwrite"):
        os.pwrite(fd, data, offset)
    else:
        os.lseek(fd, offset, os.SEEK_SET)
        os.write(fd, data)


def ledger_of(cache: Path) -> Path:
    """Where the ledger of a cache lies."""
    return cache.with_name(cache.name + ".working")


def left_by_a_dead_run(path: Path) -> set[bytes]:
    """SHA-256 of the images that were in work when an earlier run died.

    Raises
    ------
    OutputError
        If something else lies there.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return set()
    known = stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES
    if not known or found.st_size % DIGEST_BYTES:
        raise OutputError(f"{path} stands where a run notes what it decodes; move it away")
    data = path.read_bytes()
    places = range(0, len(data) - DIGEST_BYTES + 1, DIGEST_BYTES)
    return {data[at : at + DIGEST_BYTES] for at in places} - {bytes(DIGEST_BYTES)}

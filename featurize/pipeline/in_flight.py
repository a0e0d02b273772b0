"""Which images are being decoded: so that one which takes the whole run down can be named."""

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

from featurize.errors import OutputError
from featurize.files import pwrite_all, to_write_error

DIGEST_BYTES = 32
MAX_FILE_BYTES = 1 << 16


class InFlightLog:
    """A small file beside the cache, ``C.h5.working``: one place for each decoding thread.

    A thread writes an image's hash there before it decodes, and clears it afterwards. Where the
    system ends the process in between, for want of memory or by a crash inside a decoder, the
    file stays. The next run decodes those images alone, each in a process of its own.

    Parameters
    ----------
    path : Path
        As `in_flight_path` gives it; the cache's `WriteLock` has to be held.
    n_slots : int
        How many threads decode.

    Raises
    ------
    OutputError, DiskFullError
        If something else lies there, or it cannot be written.
    """

    def __init__(self, path: Path, n_slots: int) -> None:
        self.path = path
        self._suspects = read_crash_suspects(path)
        self._lock = threading.Lock()
        # Those still to be tried stay in the file until they were: this run may die as well.
        self._first_slot = len(self._suspects)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            path.unlink(missing_ok=True)  # never written into: it may be a link
            self._fd = os.open(path, flags, 0o644)
            pwrite_all(
                self._fd, b"".join(sorted(self._suspects)) + bytes(n_slots * DIGEST_BYTES), 0
            )
        except OSError as error:
            raise to_write_error(error, path) from error

    def is_suspect(self, digest: bytes) -> bool:
        """Whether this image was in work when an earlier run died, and has not been tried yet."""
        return digest in self._suspects

    def clear_suspect(self, digest: bytes) -> None:
        """Note that a suspect was tried, and this process is still there."""
        self._suspects.discard(digest)

    def begin(self, slot: int, digest: bytes) -> None:
        """Note that the image with this SHA-256 is being decoded at a place."""
        self._write_slot(digest, self._first_slot + slot)

    def end(self, slot: int) -> None:
        """Note that it is done."""
        self._write_slot(bytes(DIGEST_BYTES), self._first_slot + slot)

    def close(self) -> None:
        """Leave what is still suspected, or no file: nothing in work was what ended the run."""
        with self._lock:  # a thread that nobody waits for may still be at work
            fd, self._fd = self._fd, -1
        left = b"".join(sorted(self._suspects))
        with suppress(OSError):
            if left:
                os.ftruncate(fd, 0)
                pwrite_all(fd, left, 0)
            else:
                self.path.unlink(missing_ok=True)
        os.close(fd)

    def _write_slot(self, data: bytes, slot: int) -> None:
        # What the disk has to say is heard where rows are written; this is only an aid.
        with self._lock, suppress(OSError):
            if self._fd >= 0:
                pwrite_all(self._fd, data, slot * DIGEST_BYTES)


def in_flight_path(cache: Path) -> Path:
    """Name the file in which a run on this cache notes what it decodes."""
    return cache.with_name(cache.name + ".working")


def read_crash_suspects(path: Path) -> set[bytes]:
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
    known = stat.S_ISREG(found.st_mode) and found.st_size <= MAX_FILE_BYTES
    if not known or found.st_size % DIGEST_BYTES:
        raise OutputError(f"{path} stands where a run notes what it decodes; move it away")
    data = path.read_bytes()
    places = range(0, len(data) - DIGEST_BYTES + 1, DIGEST_BYTES)
    return {data[at : at + DIGEST_BYTES] for at in places} - {bytes(DIGEST_BYTES)}

"""Log the images being decoded, to identify an image that crashes the process."""

import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from featurize.errors import OutputError
from featurize.files import pwrite_all, to_write_error

DIGEST_BYTES = 32
MAX_FILE_BYTES = 1 << 20


class InFlightLog:
    """A small file ``C.h5.working`` next to the cache, with slots for each decoding thread.

    A thread writes the hashes of its images to its slots before it decodes, and clears them
    afterwards.
    If the process is killed in between, by lack of memory or a crash inside a decoder, the file
    remains. The next run decodes each of those images in a process of its own.

    Parameters
    ----------
    path : Path
        As `in_flight_path` returns it. The caller holds the cache's `WriteLock`.
    n_threads : int
        Number of decoding threads.
    n_images : int
        How many images a thread decodes at a time, at most.

    Raises
    ------
    OutputError, DiskFullError
        If there is another kind of file at `path`, or the file cannot be written.
    """

    def __init__(self, path: Path, n_threads: int, n_images: int = 1) -> None:
        self.path = path
        self._suspects = read_crash_suspects(path)
        self._lock = threading.Lock()
        # Untested suspects stay at the start of the file, because this run may crash as well.
        self._first_slot, self._n_images = len(self._suspects), n_images
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            path.unlink(missing_ok=True)  # never write to an existing file: it may be a link
            self._fd = os.open(path, flags, 0o644)
            pwrite_all(
                self._fd,
                b"".join(sorted(self._suspects)) + bytes(n_threads * n_images * DIGEST_BYTES),
                0,
            )
        except OSError as error:
            raise to_write_error(error, path) from error

    def is_suspect(self, digest: bytes) -> bool:
        """Return whether an image was being decoded when an earlier run crashed.

        Parameters
        ----------
        digest : bytes
            SHA-256 of the image.

        Returns
        -------
        bool
            False once `clear_suspect` was called for it.
        """
        return digest in self._suspects

    def clear_suspect(self, digest: bytes) -> None:
        """Remove a suspect after it was decoded without a crash.

        Parameters
        ----------
        digest : bytes
            SHA-256 of the image.
        """
        self._suspects.discard(digest)

    def begin(self, thread: int, digests: Sequence[bytes]) -> None:
        """Log that images are being decoded.

        Parameters
        ----------
        thread : int
            Number of the decoding thread, from 0.
        digests : sequence of bytes
            SHA-256 of each image.
        """
        self._write_slots(thread, b"".join(digests))

    def end(self, thread: int, n_images: int) -> None:
        """Log that the images of a thread have been decoded.

        Parameters
        ----------
        thread : int
            Number of the decoding thread, from 0.
        n_images : int
            How many `begin` was called with.
        """
        self._write_slots(thread, bytes(n_images * DIGEST_BYTES))

    def close(self) -> None:
        """Remove the file, or leave only the suspects in it that were not tried."""
        with self._lock:  # a decoding thread may still be running
            fd, self._fd = self._fd, -1
        suspects = b"".join(sorted(self._suspects))
        with suppress(OSError):
            if suspects:
                os.ftruncate(fd, 0)
                pwrite_all(fd, suspects, 0)
            else:
                self.path.unlink(missing_ok=True)
        os.close(fd)

    def _write_slots(self, thread: int, data: bytes) -> None:
        # Ignore errors here: the log is only an aid, and the writer of rows reports disk errors.
        with self._lock, suppress(OSError):
            if self._fd >= 0:
                slot = self._first_slot + thread * self._n_images
                pwrite_all(self._fd, data, slot * DIGEST_BYTES)


def in_flight_path(cache: Path) -> Path:
    """Return the path of a cache's in-flight log.

    Parameters
    ----------
    cache : Path

    Returns
    -------
    Path
        ``C.h5.working``.
    """
    return cache.with_name(cache.name + ".working")


def read_crash_suspects(path: Path) -> set[bytes]:
    """Read which images were being decoded when an earlier run crashed.

    Parameters
    ----------
    path : Path
        The in-flight log; it need not exist.

    Returns
    -------
    set of bytes
        SHA-256 of each image.

    Raises
    ------
    OutputError
        If there is another kind of file at `path`.
    """
    try:
        stat_result = path.lstat()
    except FileNotFoundError:
        return set()
    is_log = stat.S_ISREG(stat_result.st_mode) and stat_result.st_size <= MAX_FILE_BYTES
    if not is_log or stat_result.st_size % DIGEST_BYTES:
        raise OutputError(f"{path} stands where a run notes what it decodes; move it away")
    data = path.read_bytes()
    offsets = range(0, len(data) - DIGEST_BYTES + 1, DIGEST_BYTES)
    return {data[offset : offset + DIGEST_BYTES] for offset in offsets} - {bytes(DIGEST_BYTES)}

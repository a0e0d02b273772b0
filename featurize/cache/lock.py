"""A lock that allows one writer at a time."""

import errno
import os
import sys
from pathlib import Path

from featurize.errors import CacheBusyError, OutputError
from featurize.files import to_write_error

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_HELD_ERRNOS = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_UNSUPPORTED_ERRNOS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of some network file systems
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


class WriteLock:
    """An advisory lock on ``C.h5.lock``, next to the cache; a context manager.

    A lock on the cache itself would be lost when the file is replaced, and would keep readers
    out. The lock file is never removed, because that would race with the next writer.

    Where nothing can be written, as on a disk mounted read-only, entering does not raise: a run
    with nothing to do needs no lock. Such a run calls `require_held` before it writes.

    Parameters
    ----------
    cache : Path
        The cache file; it need not exist.
    waits : bool
        Whether entering waits for a process that holds the lock.

    Attributes
    ----------
    unheld_reason : str
        Why the lock file could not be opened; empty if it was.
    unsupported_reason : str
        Why the system cannot lock there. Then nothing prevents a second writer.

    Raises
    ------
    CacheBusyError
        On entering, if another process holds the lock and `waits` is not set.
    DiskFullError, OutputError
        On entering, if the lock file cannot be made.
    """

    def __init__(self, cache: Path, *, waits: bool = False) -> None:
        self.cache, self.waits = cache, waits
        self.path = cache.with_name(cache.name + ".lock")
        self.unheld_reason = self.unsupported_reason = ""
        self._fd = -1

    def __enter__(self) -> "WriteLock":
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o644)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise to_write_error(error, self.path) from error
            self.unheld_reason = os.strerror(error.errno)
            return self
        try:
            if sys.platform == "win32":
                msvcrt.locking(self._fd, msvcrt.LK_LOCK if self.waits else msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._fd, fcntl.LOCK_EX | (0 if self.waits else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _UNSUPPORTED_ERRNOS:
                self.unsupported_reason = os.strerror(error.errno)
                return self
            os.close(self._fd)
            self._fd = -1
            if error.errno not in _HELD_ERRNOS:
                raise to_write_error(error, self.path) from error
            raise CacheBusyError(
                f"another process is writing to {self.cache}; wait for it, or give another -o"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def require_held(self) -> None:
        """Check that the lock file could be opened.

        Raises
        ------
        OutputError
            If it could not.
        """
        if self.unheld_reason:
            raise OutputError(
                f"cannot write {self.cache}: {self.path} cannot be opened ({self.unheld_reason}). "
                "Copy the cache to where you may write, or give another -o"
            )

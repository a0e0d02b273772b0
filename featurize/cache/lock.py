"""One writer at a time."""

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
    """The right to write to one cache: an advisory lock on a sidecar, ``C.h5.lock``.

    Not on the cache itself: that lock would be lost when the file is replaced, and would
    keep readers out. The sidecar stays, because removing it would race with the next writer.

    Where nothing can be written at all, on a disk mounted read-only, it is not held; a run that
    finds nothing to do needs none. `require` says so before anything is written.

    Attributes
    ----------
    unheld : str
        Why it is not held; empty where it is.
    unlockable : str
        Why the system cannot lock there: then nothing keeps a second writer away.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
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
                msvcrt.locking(self._fd, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        """Refuse to write without it.

        Raises
        ------
        OutputError
        """
        if self.unheld_reason:
            raise OutputError(
                f"cannot write {self.cache}: {self.path} cannot be opened ({self.unheld_reason}). "
                "Copy the cache to where you may write, or give another -o"
            )

"""Read image files completely, and detect changes while they are read."""

import os
import stat
import time
from typing import NamedTuple

from featurize.errors import ImageUnreadableError
from featurize.images.reasons import (
    EMPTY,
    NO_MEMORY,
    NO_PERMISSION,
    NOT_A_FILE,
    READ_ERROR,
    TOO_LARGE,
    VANISHED,
)
from featurize.system import memory

MAX_FILE_BYTES = 1 << 30

MTIME_GRANULARITY_NS = 2_000_000_000  # the coarsest resolution of a file system's clock

MAX_READ_ATTEMPTS = 3  # of a file that changes while it is read


class ImageFile(NamedTuple):
    """The content of a file and its state while it was read.

    Attributes
    ----------
    data : bytes
        The whole content.
    size : int
        Size in bytes, the same before and after reading.
    stamp : int
        Version stamp. That of a file is its modification time in nanoseconds, the same before and
        after reading. It is 0 if the time was so recent that a further change might not alter it:
        the file must be read again later.
    """

    data: bytes
    size: int
    stamp: int


def read_image_file(path: str | bytes | os.PathLike[str]) -> ImageFile:
    """Read a whole file in a consistent state.

    A file that changes while it is read is read again, up to `MAX_READ_ATTEMPTS` times.

    Parameters
    ----------
    path : path
        The file; may be bytes.

    Returns
    -------
    ImageFile
        Content, size and modification time.

    Raises
    ------
    ImageUnreadableError
        If the file cannot be read, is empty, is not a regular file, exceeds `MAX_FILE_BYTES`, or
        changes during each attempt.
    """
    name = os.fsdecode(path)
    try:
        # Without O_NONBLOCK opening a named pipe would block for ever.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            image_file = _read_stable(fd, name)
        finally:
            os.close(fd)
    except ImageUnreadableError:
        raise
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a null byte in the path
        raise to_unreadable_error(error, name) from error
    if not image_file.data:
        raise ImageUnreadableError(f"{name} is empty", EMPTY)
    return image_file


def to_unreadable_error(error: Exception, name: str) -> ImageUnreadableError:
    """Convert an error of the system to one that has a reason of the cache.

    Parameters
    ----------
    error : Exception
    name : str
        Of the file, for the message.

    Returns
    -------
    ImageUnreadableError
        To be raised by the caller.
    """
    if isinstance(error, FileNotFoundError):
        return ImageUnreadableError(f"{name} is gone", VANISHED)
    if isinstance(error, PermissionError):
        return ImageUnreadableError(f"{name} may not be read", NO_PERMISSION)
    if isinstance(error, MemoryError):
        return ImageUnreadableError(f"{name}: not enough memory to read it", NO_MEMORY)
    return ImageUnreadableError(f"{name} cannot be read: {error}", READ_ERROR)


def stamp_of_file(status: os.stat_result, now: int | None = None) -> int:
    """Return the version stamp of a file.

    Parameters
    ----------
    status : os.stat_result
    now : int, optional
        When the file was looked at, in nanoseconds since the epoch.

    Returns
    -------
    int
        Modification time in nanoseconds, at least 1; 0 if it is so recent that a further change
        might not alter it.
    """
    now = time.time_ns() if now is None else now
    is_recent = status.st_mtime_ns > now - MTIME_GRANULARITY_NS
    return 0 if is_recent else status.st_mtime_ns or 1


def _read_stable(fd: int, name: str) -> ImageFile:
    before = os.fstat(fd)
    for _ in range(MAX_READ_ATTEMPTS):
        if not stat.S_ISREG(before.st_mode):
            raise ImageUnreadableError(f"{name} is not a regular file", NOT_A_FILE)
        if before.st_size > MAX_FILE_BYTES:
            raise ImageUnreadableError(f"{name} has {before.st_size:,} bytes", TOO_LARGE)
        now = time.time_ns()
        with memory.reserve(before.st_size, name), open(fd, "rb", closefd=False) as file:
            file.seek(0)
            data = file.read(before.st_size + 1)
        after = os.fstat(fd)
        state = (after.st_size, after.st_mtime_ns)
        if state == (before.st_size, before.st_mtime_ns) and len(data) == after.st_size:
            return ImageFile(data, after.st_size, stamp_of_file(after, now))
        before = after
    raise ImageUnreadableError(f"{name} changes while it is read", READ_ERROR)

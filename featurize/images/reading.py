"""Read image files whole, hash them, and notice when they change meanwhile."""

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

MTIME_GRANULARITY_NS = 2_000_000_000  # nanoseconds; coarse clocks of file systems tick that slowly

MAX_READ_ATTEMPTS = 3  # of a file that changes meanwhile


class ImageFile(NamedTuple):
    """A file as it was read.

    Attributes
    ----------
    data : bytes
        All of it.
    size, mtime_ns : int
        As they stood before and after. The time is 0 where it was so young that the file may
        change once more without another time showing: it has to be looked at again.
    """

    data: bytes
    size: int
    mtime_ns: int


def read_image_file(path: str | bytes | os.PathLike[str]) -> ImageFile:
    """Read one file whole, and as it stands at one moment.

    Raises
    ------
    ImageUnreadable
        If it cannot be read, is empty, is no regular file or is over a gigabyte, or if it changes
        as fast as it is read.
    """
    name = os.fsdecode(path)
    try:
        # Without O_NONBLOCK a named pipe would hang the run for ever.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            found = _read_stable(fd, name)
        finally:
            os.close(fd)
    except ImageUnreadableError:
        raise
    except FileNotFoundError as error:
        raise ImageUnreadableError(f"{name} is gone", VANISHED) from error
    except PermissionError as error:
        raise ImageUnreadableError(f"{name} may not be read", NO_PERMISSION) from error
    except MemoryError as error:
        raise ImageUnreadableError(f"{name}: not enough memory to read it", NO_MEMORY) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ImageUnreadableError(f"{name} cannot be read: {error}", READ_ERROR) from error
    if not found.data:
        raise ImageUnreadableError(f"{name} is empty", EMPTY)
    return found


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
            young = after.st_mtime_ns > now - MTIME_GRANULARITY_NS
            return ImageFile(data, after.st_size, 0 if young else after.st_mtime_ns)
        before = after
    raise ImageUnreadableError(f"{name} changes while it is read", READ_ERROR)

"""Files: written whole or not at all, only over what is our own; read and written at a place."""

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from featurize.errors import DiskFullError, HeadgraftError, OutputError

NO_SPACE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def to_write_error(error: OSError, path: Path) -> OSError:
    """What the system said, as an error that names the file and says what to do."""
    if error.errno in NO_SPACE_ERRNOS:
        return DiskFullError(f"no room to write {path}: {error}; free some space and run again")
    return OutputError(
        f"cannot write {path}: {error.strerror or error}. What was finished is kept; see to the "
        "disk, then the same command goes on from there"
    )


def check_target(
    path: str | os.PathLike[str],
    is_own: Callable[[Path], bool],
    kind: str,
    error: type[Exception],
) -> Path:
    """Refuse a place where a file cannot be written, before any work is done for it.

    Parameters
    ----------
    path : path
        What ``-o`` names. A link is followed: what it points to is what would be replaced.
    is_own : callable
        Whether a file that is there already is of the kind that is to be written.
    kind : str
        That kind, for the message: ``a report``.
    error : exception type
        What to raise.

    Returns
    -------
    Path
        Where to write, with no link in it.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise error(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise error(f"cannot write {path}: no permission to write in {path.parent}")
    if path.is_dir():
        raise error(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or is_own(path))):
        raise error(f"{path} exists and is not {kind}; give another -o, or remove it")
    return path


@contextmanager
def atomic_write(
    path: Path, mode: str = "wb", *, error: type[Exception] = OutputError, **options: Any
) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when the block ends, and not before.

    It is written under a name of its own beside `path`, which is refused where anything has that
    name already, a link included. It is synced, then renamed. After an error nothing is left
    of it, and `path` is as it was.

    Parameters
    ----------
    path : Path
        As `check_target` returns it.
    mode : {"wb", "w"}
    error : exception type
        What to raise where the system does not let it be written.
    options
        As for `open`: ``encoding``, ``newline``.

    Yields
    ------
    file
        Open for writing.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Outside the inner `try`: what was there before us is not ours to remove.
        file = open(draft, mode.replace("w", "x"), **options)  # noqa: SIM115
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            replace_durably(draft, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
    except HeadgraftError:
        raise
    except OSError as cause:
        raise error(f"cannot write {path}: {cause.strerror or cause}") from cause


def replace_durably(source: Path, target: Path) -> None:
    """Rename over `target` so that the rename itself outlives a power cut."""
    os.replace(source, target)
    with suppress(OSError):  # folders cannot be opened for syncing everywhere
        fd = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer of bytes from a place in an open file.

    Parameters
    ----------
    fd : int
    buffer : memoryview of bytes
    offset : int
        Where in the file, in bytes.

    Returns
    -------
    int
        Bytes read: fewer than asked for only where the file ends.
    """
    done = 0
    while done < len(buffer):
        if hasattr(os, "preadv"):  # leaves alone the position that threads share
            count = os.preadv(fd, [buffer[done:]], offset + done)
        else:
            os.lseek(fd, offset + done, os.SEEK_SET)
            data = os.read(fd, len(buffer) - done)
            count = len(data)
            buffer[done : done + count] = data
        if not count:
            break
        done += count
    return done


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write bytes to a place in an open file, all of them."""
    rest = memoryview(data)
    while rest:
        if hasattr(os, "pwrite"):
            count = os.pwrite(fd, rest, offset)
        else:
            os.lseek(fd, offset, os.SEEK_SET)  # one thread writes, so the two steps are safe
            count = os.write(fd, rest)
        rest, offset = rest[count:], offset + count


def hash_bytes(data: bytes) -> bytes:
    """Compute the SHA-256 of some bytes: 32 bytes."""
    return hashlib.sha256(data).digest()


def hash_file(path: str | os.PathLike[str]) -> bytes:
    """Compute the SHA-256 of a file, a part of it in memory at a time: 32 bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

"""Files: atomic writing, checks of the target, reading and writing at an offset, hashes.

A file of another kind is never overwritten.
"""

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
    """Turn an error of the system into one that names the file and says what to do.

    Parameters
    ----------
    error : OSError
        The error raised by the write.
    path : Path
        The file that was written to.

    Returns
    -------
    OSError
        `DiskFullError` if there is no room, else `OutputError`. The caller raises it.
    """
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
    """Refuse a target that cannot be written, before any work is done for it.

    Parameters
    ----------
    path : path
        The argument of ``-o``. A link is followed: the file it points to would be replaced.
    is_own : callable
        Whether an existing file is of the kind that is to be written. Only such a file, or an
        empty one, may be replaced.
    kind : str
        That kind, for the message: ``a report``.
    error : exception type
        The type of error to raise.

    Returns
    -------
    Path
        The absolute path to write, free of links.

    Raises
    ------
    Exception
        Of type `error`, if the folder is missing or not writable, or if the path is a folder or
        a file of another kind.
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
    """Open a temporary file that replaces `path` when the block ends without an error.

    The temporary file has a random name in the same folder. It is created exclusively, so an
    existing file or link of that name is an error. It is synced, then renamed. After an error it
    is removed, and `path` is unchanged.

    Parameters
    ----------
    path : Path
        As `check_target` returns it.
    mode : {"wb", "w"}
        Binary or text.
    error : exception type
        The type of error to raise if the system cannot write the file.
    **options
        Keyword arguments of `open`: ``encoding``, ``newline``.

    Yields
    ------
    file object
        The temporary file, open for writing.

    Raises
    ------
    Exception
        Of type `error`, if the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Outside the inner `try`: a file that existed before is not ours to remove.
        file = temporary.open(mode.replace("w", "x"), **options)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            replace_durably(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except HeadgraftError:
        raise
    except OSError as cause:
        raise error(f"cannot write {path}: {cause.strerror or cause}") from cause


def replace_durably(source: Path, target: Path) -> None:
    """Rename a file over another one so that the rename survives a power cut.

    The folder is synced after the rename, where the system allows it.

    Parameters
    ----------
    source, target : Path
        Files in the same file system.
    """
    source.replace(target)
    with suppress(OSError):  # folders cannot be opened for syncing everywhere
        fd = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from an offset of an open file.

    Parameters
    ----------
    fd : int
        File descriptor.
    buffer : memoryview of bytes
        The buffer to fill.
    offset : int
        Offset in the file in bytes.

    Returns
    -------
    int
        Number of bytes read: less than ``len(buffer)`` only at the end of the file.
    """
    n_read = 0
    while n_read < len(buffer):
        if hasattr(os, "preadv"):  # does not move the position that threads share
            count = os.preadv(fd, [buffer[n_read:]], offset + n_read)
        else:
            os.lseek(fd, offset + n_read, os.SEEK_SET)
            data = os.read(fd, len(buffer) - n_read)
            count = len(data)
            buffer[n_read : n_read + count] = data
        if not count:
            break
        n_read += count
    return n_read


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset of an open file.

    Parameters
    ----------
    fd : int
        File descriptor.
    data : bytes or memoryview
        The bytes to write.
    offset : int
        Offset in the file in bytes.
    """
    remaining = memoryview(data)
    while remaining:
        if hasattr(os, "pwrite"):
            count = os.pwrite(fd, remaining, offset)
        else:
            os.lseek(fd, offset, os.SEEK_SET)  # one thread writes, so the two steps are safe
            count = os.write(fd, remaining)
        remaining, offset = remaining[count:], offset + count


def hash_bytes(data: bytes) -> bytes:
    """Compute the SHA-256 of bytes.

    Parameters
    ----------
    data : bytes
        The bytes to hash.

    Returns
    -------
    bytes
        Digest of 32 bytes.
    """
    return hashlib.sha256(data).digest()


def hash_file(path: str | os.PathLike[str]) -> bytes:
    """Compute the SHA-256 of a file without reading all of it into memory.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    bytes
        Digest of 32 bytes.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

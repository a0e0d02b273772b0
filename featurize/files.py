"""Files that are written whole or not at all, and only over what is our own."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from featurize.errors import DiskFullError, OutputError

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
def atomic_write(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when the block ends, and not before.

    It is written under a name of its own beside `path`, which is refused where anything has that
    name already, a link included. It is synced, then renamed. After an error nothing is left
    of it, and `path` is as it was.

    Parameters
    ----------
    path : Path
        As `check_target` returns it.
    mode : {"wb", "w"}
    options
        As for `open`: ``encoding``, ``newline``.

    Raises
    ------
    OSError
        As the system has it.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    # Outside the `try`: what was there before us is not ours to remove.
    file = open(draft, mode.replace("w", "x"), **options)  # noqa: SIM115
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise

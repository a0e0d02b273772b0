"""Files that the verbs write: over what is their own only, and whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from classify.errors import OutputError
from featurize.files import atomic_write, check_target


def check_output(path: str | os.PathLike[str], is_own: Callable[[Path], bool], what: str) -> Path:
    """Refuse a place where a file cannot be written: `featurize.files.check_target`.

    Raises
    ------
    OutputError
    """
    return check_target(path, is_own, what, OutputError)


@contextmanager
def open_output(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Write a file whole or not at all: `featurize.files.atomic_write`.

    Raises
    ------
    OutputError
        Where the system does not let it be written.
    """
    try:
        with atomic_write(path, mode, **options) as file:
            yield file
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

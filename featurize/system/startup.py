"""What comes first in a command: whose modules are run, and what its output can be."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH_VARIABLE = "PYTHONSAFEPATH"


def prepare_process() -> None:
    """Settle the surroundings of a command line, before anything else of it is imported."""
    enable_safe_path()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where the locale knows fewer characters than a message has, it is said all the same.
            stream.reconfigure(errors="backslashreplace")


def enable_safe_path() -> None:
    """Keep processes that are started from here on from importing what the working folder holds.

    Workers and trackers, of joblib and of torch's compiler, are started by ``python -m`` and
    ``python -c``, which look for modules there first: in a folder that was downloaded, those may
    be anybody's.
    """
    os.environ[SAFE_PATH_VARIABLE] = "1"


@contextmanager
def use_safe_path() -> Iterator[None]:
    """The same inside a block: other processes of a user's program start as ever."""
    with override_env(SAFE_PATH_VARIABLE, "1"):
        yield


@contextmanager
def override_env(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment inside a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

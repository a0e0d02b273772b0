"""Process set-up of a command: where modules are imported from, and how output is encoded."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH_VARIABLE = "PYTHONSAFEPATH"


def prepare_process() -> None:
    """Set up the process of a command line, before its other modules are imported."""
    enable_safe_path()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that the locale cannot encode are escaped, so the message is printed.
            stream.reconfigure(errors="backslashreplace")


def enable_safe_path() -> None:
    """Prevent child processes from importing modules of the working folder.

    The workers and trackers of joblib and of torch's compiler are started by ``python -m`` and
    ``python -c``, which search that folder first. A downloaded folder may hold untrusted modules.
    """
    os.environ[SAFE_PATH_VARIABLE] = "1"


@contextmanager
def use_safe_path() -> Iterator[None]:
    """Apply `enable_safe_path` inside a block, and leave the rest of a user's program as it is.

    Yields
    ------
    None
        The previous environment is restored after the block.
    """
    with override_env(SAFE_PATH_VARIABLE, "1"):
        yield


@contextmanager
def override_env(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside a block.

    Parameters
    ----------
    name, value : str
        The variable and its value.

    Yields
    ------
    None
        The previous value is restored after the block.
    """
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if previous is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = previous

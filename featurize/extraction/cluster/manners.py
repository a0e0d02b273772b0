"""What Ray does to the process that starts it, and to its user: undone, hushed, tidied up."""

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from featurize.system import signals

MAX_FOLDER_LENGTH = 24  # sockets lie deep below it, and their paths end at 107 bytes
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# A local cluster then listens on this machine's loopback alone, on any system.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
LOGGERS = ("ray", "ray.data", "ray._private", "ray.tune", "ray.serve")


def make_session_folder() -> Path:
    """Make a private folder for Ray's sockets and logs; its name is short.

    Returns
    -------
    Path
    """
    parent = tempfile.gettempdir()
    if len(parent) > MAX_FOLDER_LENGTH and sys.platform != "win32":
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="hg-", dir=parent))


def remove_session_folder(folder: Path) -> None:
    """Remove Ray's folder, even if a process of Ray's that ends writes its last lines there.

    Parameters
    ----------
    folder : Path
    """
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


@contextmanager
def environment(values: Mapping[str, str], *, replaces: bool = False) -> Iterator[None]:
    """Set variables of the environment; what Ray starts inherits them.

    Parameters
    ----------
    values : mapping of str to str
    replaces : bool
        Whether variables are set that have a value.

    Yields
    ------
    None
        They are as before after the block.
    """
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(
        {name: value for name, value in values.items() if replaces or previous[name] is None}
    )
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Restore the handlers of signals: with Ray's own, SIGTERM aborts the process.

    Yields
    ------
    None
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def hide_stderr(folder: Path) -> Iterator[None]:
    """Send what Ray's own code writes past Python, while it starts, to a file.

    Parameters
    ----------
    folder : Path
        Where the file is made.

    Yields
    ------
    None
    """
    own = os.dup(2)
    try:
        with (folder / "start.log").open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)


@contextmanager
def hide_raylet() -> Iterator[None]:
    """Switch off what Ray prints of lost workers, on the standard output: we say it ourselves.

    Yields
    ------
    None
    """
    from ray._private import worker

    name = "_worker_logs_enabled"
    previous = getattr(worker, name, True)
    setattr(worker, name, False)
    try:
        yield
    finally:
        setattr(worker, name, previous)


def set_levels(levels: Mapping[str, int]) -> None:
    """Set the levels of loggers.

    Parameters
    ----------
    levels : mapping of str to int
        By the logger's name.
    """
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)

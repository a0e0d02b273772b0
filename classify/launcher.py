"""Processes that torch's launcher starts: which one this is, and how one of them ends.

The launcher describes them in environment variables, which are read here, without torch.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from featurize.system import signals

MAIN_SPEAKS_SECONDS = 2.0  # in which the launcher ends the others, once the main process failed


def read_world_size() -> int:
    """Read the number of processes that train together.

    Returns
    -------
    int
        1 without a launcher.
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_local_processes() -> int:
    """Count the processes that train together on this machine, and share its memory.

    Returns
    -------
    int
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", read_world_size()))


def is_main_process() -> bool:
    """Tell whether this process is the one that writes files and messages.

    Returns
    -------
    bool
    """
    return read_world_size() == 1 or os.environ.get("RANK", "0") == "0"


@contextmanager
def let_main_process_speak() -> Iterator[None]:
    """Hold an error of another process back for a moment.

    What all processes refuse is said by the main process alone: it fails too, and the launcher
    ends the others meanwhile. An error that the main process does not share is raised then.

    Yields
    ------
    None
        The context is entered in the main thread of a command.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if is_main_process():
            raise
        if signals.was_received():
            os._exit(signals.EXIT_INTERRUPTED)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(MAIN_SPEAKS_SECONDS)
        raise


def leave_peers(code: int) -> None:
    """End this process at once, if it failed and others train with it.

    Libraries that connect GPUs would wait for the others when the interpreter ends, and the others
    for this process. So the launcher would never learn that it failed.

    Parameters
    ----------
    code : int
        The exit code; with 0 nothing is done.
    """
    if code and read_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

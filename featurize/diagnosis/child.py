"""Checks in a process of their own, which a broken package may crash or hang."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

# The process searches for modules only where this one does.
_CHILD_CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from featurize.diagnosis.child import run_in_child
run_in_child(sys.argv[2], json.loads(sys.argv[3]))"""

Emit = Callable[[dict[str, Any]], None]


class ChildCheck:
    """A check at work in a child process.

    Attributes
    ----------
    ended_by : str
        How the process ended, if not by itself: a signal, an exit code, the time limit. Empty
        until then, and if it ended well.
    """

    def __init__(self, process: "subprocess.Popen[str]", max_seconds: float) -> None:
        self.ended_by = ""
        self._process, self._max_seconds = process, max_seconds
        self._timed_out = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over what the child emits, until it ends."""
        timer = threading.Timer(self._max_seconds, self._stop)
        timer.daemon = True
        timer.start()
        try:
            for line in self._process.stdout or ():
                yield json.loads(line)
            code = self._process.wait()
        finally:
            timer.cancel()
        if self._timed_out:
            self.ended_by = f"it took more than {self._max_seconds:.0f} s"
        elif code < 0:
            self.ended_by = f"it crashed: {signal.Signals(-code).name}"
        elif code:
            self.ended_by = f"it ended the process with exit code {code}"

    def _stop(self) -> None:
        self._timed_out = True
        self._process.kill()


@contextmanager
def start_child(module: str, arguments: Any, max_seconds: float) -> Iterator[ChildCheck]:
    """Start a check in a child process, which does not outlive the block.

    Parameters
    ----------
    module : str
        Dotted name of a module with a function ``check``. It takes the arguments, and a callable
        that emits a dict for JSON.
    arguments : object
        For the function; written as JSON.
    max_seconds : float
        After so long the process is killed.

    Yields
    ------
    ChildCheck
        To be iterated over.
    """
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-W", "ignore", "-c", _CHILD_CODE),
            *(json.dumps(sys.path), module, json.dumps(arguments)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Ctrl-C is handled by this process, which then ends that one.
        start_new_session=True,
    )
    try:
        yield ChildCheck(process, max_seconds)
    finally:
        process.kill()
        process.communicate()


def run_in_child(module: str, arguments: Any) -> None:
    """Run a check in the child process.

    Parameters
    ----------
    module : str
        Dotted name of its module.
    arguments : object
        Of its function ``check``.
    """
    # What packages print must not come between the lines for the parent.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as pipe:
        os.dup2(2, 1)

        def emit(value: dict[str, Any]) -> None:
            print(json.dumps(value), file=pipe, flush=True)

        import_module(module).check(arguments, emit)

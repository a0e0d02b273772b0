"""Run a call in a child process first, because it could crash or hang this process."""

import os
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress

from h5py._objects import phil  # HDF5's lock: no other thread may hold it while forking

from featurize.system import signals

if hasattr(os, "fork"):
    import resource  # not in the child, which may lack the descriptors for an import

MAX_CPU_SECONDS = 10  # far more than reading any layout takes; ends an endless loop
MAX_WALL_SECONDS = 300.0  # a disk may be slow: on tape, remote or asleep
COMPLETED, CRASHED, TIMED_OUT = "ended", "crashed", "unanswered"


def probe_in_child(call: Callable[[], object]) -> str:
    """Report how a call ends in a forked child.

    HDF5's parsers crash or loop on some damaged bytes, and no check can run before them. Forking
    a child takes milliseconds. Only processor time distinguishes a loop from a slow disk, so it
    has the tight limit. Wall-clock time has a much longer one, with an outcome of its own.

    Parameters
    ----------
    call : callable
        Takes no argument. Its result and its exceptions are dropped.

    Returns
    -------
    str
        `COMPLETED` if the call returned or raised; `CRASHED` if it killed the child or used
        more than `MAX_CPU_SECONDS`; `TIMED_OUT` if it took more than `MAX_WALL_SECONDS`.
        `COMPLETED` as well where no process can be forked.
    """
    if not hasattr(os, "fork"):
        return COMPLETED
    child, status = 0, None
    try:
        # An interrupt inside `fork` would be swallowed, and could leave logging's lock locked.
        with signals.defer_signals(), phil, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads
            child = os.fork()
            if not child:
                _run_child(call)
        status = os.waitpid(child, 0)[1]
    except OSError:  # no more processes allowed, or no memory for one
        return COMPLETED
    finally:
        if child and status is None:  # interrupted before the child ended
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return TIMED_OUT
    return CRASHED if code else COMPLETED


def _run_child(call: Callable[[], object]) -> None:
    # Always leave by `os._exit`: the parent's exit handlers must not run in the child.
    status = 1
    try:
        signals.ignore_signals()
        for number in (signal.SIGALRM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, MAX_WALL_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
        with suppress(OSError):  # no descriptor left
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)  # a report of faulthandler would look like the parent's
            os.close(null)
        status = 0
        call()
    except Exception:
        pass
    finally:
        os._exit(status)

"""Try a call in a process of its own first, where it could crash or hang this one."""

import os
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress

from h5py._objects import phil  # HDF5's lock: no other thread may hold it while forking

from featurize.system import signals

if hasattr(os, "fork"):
    import resource  # not in the child, which may be short of descriptors to import by

MAX_CPU_SECONDS = 10  # far more than any layout takes; a loop without end is cut off here
MAX_WALL_SECONDS = 300.0  # a disk may be slow: recalled from tape, far away, just waking up
COMPLETED, CRASHED, TIMED_OUT = "ended", "crashed", "unanswered"


def probe_in_child(call: Callable[[], object]) -> str:
    """What becomes of a call in a forked child.

    HDF5's parsers crash or loop on some damaged bytes, and no check of ours comes before them. A
    forked child takes milliseconds. Only processor time tells a loop from a slow disk, so that is
    what is limited; the clock is as well, but far later and under another name.

    Returns
    -------
    str
        `COMPLETED`, with a result or an exception; `CRASHED`, or never to end; `TIMED_OUT` within
        `MAX_WALL_SECONDS`. Where no process can be forked the call is trusted to end.
    """
    if not hasattr(os, "fork"):
        return COMPLETED
    child, status = 0, None
    try:
        # An interrupt inside `fork` would be swallowed, and could leave logging's lock locked.
        with signals.defer_signals(), phil, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            child = os.fork()
            if not child:
                _run_child(call)
        status = os.waitpid(child, 0)[1]
    except OSError:  # no more processes allowed, or no memory for one
        return COMPLETED
    finally:
        if child and status is None:  # interrupted: nobody waits for the answer any more
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return TIMED_OUT
    return CRASHED if code else COMPLETED


def _run_child(call: Callable[[], object]) -> None:
    # Straight out in any case: what the parent would do at its end is not the child's to do.
    status = 1
    try:
        signals.ignore_signals()
        for number in (signal.SIGALRM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, MAX_WALL_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
        with suppress(OSError):  # no descriptor left
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)  # faulthandler's report would be taken for the parent's
            os.close(null)
        status = 0
        call()
    except Exception:
        pass
    finally:
        os._exit(status)

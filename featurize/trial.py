"""Try a call in a process of its own first, where it could crash or hang this one."""

import os
import signal
import warnings
from collections.abc import Callable

from h5py._objects import phil  # HDF5's lock: no other thread may hold it while forking

SECONDS = 10.0


def survives(call: Callable[[], object]) -> bool:
    """Whether a call ends, with a result or an exception, rather than crashing or hanging.

    HDF5's parsers crash or loop on some damaged bytes, and no check of ours comes before them. A
    forked child takes milliseconds. Where there is no fork, the call is trusted.
    """
    if not hasattr(os, "fork"):
        return True
    with phil, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
        if not child:
            _try(call)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _try(call: Callable[[], object]) -> None:
    # Straight out in any case: what the parent would do at its end is not the child's to do.
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # faulthandler's report would be taken for the parent's
        status = 0
        call()
    except Exception:
        pass
    finally:
        os._exit(status)

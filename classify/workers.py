"""Worker processes for training heads; none of them outlives its parent."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import Any

from joblib import Parallel, parallel_config
from joblib.externals.loky.backend import resource_tracker as loky_tracker
from threadpoolctl import threadpool_limits

from classify.store import WRITE_LOCK
from featurize.system import signals
from featurize.system.cpu import usable_cores
from featurize.system.startup import override_env, use_safe_path


@contextmanager
def run_parallel(calls: Sequence[Any], jobs: int | None = None) -> Iterator[Iterator[Any]]:
    """Run calls in processes of one thread each; a single call runs in this process.

    Parameters
    ----------
    calls : sequence of joblib's delayed calls
        At least one.
    jobs : int, optional
        Number of processes; by default the number of cores.

    Yields
    ------
    iterator
        The calls' return values, in order of completion. The workers stop when the block ends.
    """
    config = parallel_config(
        "loky",
        n_jobs=max(1, min(jobs or usable_cores(), len(calls))),
        inner_max_num_threads=1,
        initializer=_init_worker,
        initargs=(os.getpid(),),
    )
    with use_safe_path(), config, threadpool_limits(1), ExitStack() as exit_stack:
        with _ignore_sigint_in_children():
            batches = Parallel(return_as="generator_unordered", batch_size=1)(calls)
        exit_stack.callback(_close_quietly, batches)
        try:
            yield batches
        except KeyboardInterrupt:
            signals.acknowledge()  # a second Ctrl-C would leave workers running
            raise


@contextmanager
def _ignore_sigint_in_children() -> Iterator[None]:
    """Make child processes ignore SIGINT from their start; the parent stops them.

    A blocked signal stays blocked in a new program until `_init_worker` ignores it. The resource
    trackers are started first, because starting one unblocks the signal. A signal that arrives in
    this block is handled after it.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or not hasattr(signal, "pthread_sigmask"):
        yield  # Python runs signal handlers in the main thread only
        return
    with override_env("PYTHONWARNINGS", _make_warning_filters()):
        resource_tracker.ensure_running()
        loky_tracker.ensure_running()
    with signals.defer_signals():
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _make_warning_filters() -> str:
    """Return the warning filters for the resource trackers.

    A tracker cleans up after a process that died, and warns about it. After a command that was
    stopped on purpose, that warning is noise.
    """
    user_filters = os.environ.get("PYTHONWARNINGS", "")
    our_filter = "ignore:resource_tracker" if signals.has_handlers() else ""
    return ",".join(filter(None, (user_filters, our_filter)))


def _init_worker(parent: int) -> None:
    """Ignore SIGINT, and end within a second of the parent's end.

    Otherwise a worker would wait forever for the dead parent to read its result.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def exit_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        with WRITE_LOCK:
            os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _close_quietly(batches: Generator[Any]) -> None:
    """Stop the workers, and silence joblib's warning about unfinished calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        batches.close()

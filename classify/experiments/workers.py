"""Worker processes: heads are trained in several, and none outlives the process it works for."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import Any

from joblib import Parallel, cpu_count, parallel_config
from joblib.externals.loky.backend import resource_tracker as loky_tracker
from threadpoolctl import threadpool_limits

from classify.store import WRITE_LOCK
from featurize.system import signals
from featurize.system.startup import override_env, use_safe_path


@contextmanager
def run_parallel(calls: Sequence[Any], jobs: int | None = None) -> Iterator[Iterator[Any]]:
    """Carry out calls in processes of one thread each; a single one is this process itself.

    Parameters
    ----------
    calls : sequence of joblib's delayed calls
        At least one.
    jobs : int, optional
        How many processes; as many as there are cores if not given.

    Yields
    ------
    iterator
        What the calls return, as soon as it is there. When the block ends, so do the workers.
    """
    config = parallel_config(
        "loky",
        n_jobs=max(1, min(jobs or cpu_count(), len(calls))),
        inner_max_num_threads=1,
        initializer=_init_worker,
        initargs=(os.getpid(),),
    )
    with use_safe_path(), config, threadpool_limits(1), ExitStack() as ended:
        with _ignore_sigint_in_children():
            batches = Parallel(return_as="generator_unordered", batch_size=1)(calls)
        ended.callback(_close_quietly, batches)
        try:
            yield batches
        except KeyboardInterrupt:
            signals.acknowledge()  # a second one would leave workers behind
            raise


@contextmanager
def _ignore_sigint_in_children() -> Iterator[None]:
    """Make child processes ignore SIGINT from their start; this process stops them.

    A blocked signal stays blocked in a new program, until `_init_worker` has it ignored. The
    trackers are started before, as that would unblock it. What comes meanwhile counts when it is
    over.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "pthread_sigmask"):
        yield  # elsewhere no handler runs
        return
    with override_env("PYTHONWARNINGS", _make_warning_filters()):
        resource_tracker.ensure_running()
        loky_tracker.ensure_running()
    with signals.defer_signals():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_warning_filters() -> str:
    """Which warnings a tracker does not print.

    It sweeps up after a process that ended, and says so: of a command that was stopped, and thus
    ended at once, that is no news.
    """
    given = os.environ.get("PYTHONWARNINGS", "")
    ours = "ignore:resource_tracker" if signals.has_handlers() else ""
    return ",".join(filter(None, (given, ours)))


def _init_worker(parent: int) -> None:
    """What a worker does first.

    It ends within a second of the process it works for, however that one ended: its answer would
    wait for ever for somebody to read it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        with WRITE_LOCK:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _close_quietly(batches: Generator[Any]) -> None:
    """Stop the workers, and silence joblib's warning about unfinished calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        batches.close()

"""Compare heads: tasks x heads x layers from one cache, in parallel."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from joblib import Parallel, cpu_count, delayed, parallel_config
from threadpoolctl import threadpool_limits

from classify.errors import CallError
from classify.evaluate import Labels, graft, table_of
from classify.features import CacheOrPath, dim, layer_sets, open_cache
from classify.heads import HEADS, named
from classify.labels import LabelTable
from classify.records import Record
from classify.tasks import Task, make_task

Progress = Callable[[Record, int, int], None]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes
    ----------
    records : list of Record
        By task, head and layers, in the order asked for.
    best_per_task : dict of str to Record
        Each task's highest validation; of equals the narrower features, then the earlier.
    best : Record
        The same over all tasks.
    notices : list of str
        What a user should know.
    seconds : float
    """

    records: list[Record]
    best_per_task: dict[str, Record]
    best: Record
    notices: list[str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """``records``, ``best``, and with several tasks ``best_per_task``, as dicts."""
        found: dict[str, Any] = {
            "records": [record.to_json() for record in self.records],
            "best": self.best.to_json(),
        }
        if len(self.best_per_task) > 1:
            found["best_per_task"] = {t: r.to_json() for t, r in self.best_per_task.items()}
        return found


def compare(
    cache: CacheOrPath,
    labels: Labels | Sequence[Labels] = None,
    heads: str | Sequence[str] = tuple(HEADS),
    layers: str | Sequence[str] = "each,joined",
    *,
    column: str = "label",
    test_size: float = 0.2,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Train every head on every choice of layers for every task.

    Parameters
    ----------
    cache : path or FeatureCache
        Worker processes map its features into memory; none is copied between processes.
    labels : LabelTable or path of a CSV, or several, optional
        One task each; folder names, if not given.
    heads : str or sequence of str
        Names; a text is split at its commas.
    layers : str or sequence of str
        Of ``each`` (every layer by itself), ``joined`` (all at once), names, and ``a+b``.
    column, test_size, seed
        As in `fit`; every head of a task sees the same split.
    jobs : int, optional
        Worker processes of one thread each; as many as there are cores if not given.
    progress : callable, optional
        Called as results come, with a record, how many are done, and how many there will be.

    Returns
    -------
    Comparison

    Raises
    ------
    ClassifyError, FeaturizeError, FileNotFoundError
    """
    started = time.perf_counter()
    words = heads.split(",") if isinstance(heads, str) else heads
    kinds = list(dict.fromkeys(named(word.strip()).name for word in words))
    cache = open_cache(cache)
    sets = layer_sets(cache, layers)
    one = labels is None or isinstance(labels, (LabelTable, str, PathLike))
    given: Sequence[Any] = [labels] if one else list(labels)  # type: ignore[arg-type]
    tables = _distinct([table_of(cache, item, column) for item in given])
    tasks = [make_task(cache, table, test_size=test_size, seed=seed) for table in tables]
    grid = [(task, kind, names) for task in tasks for kind in kinds for names in sets]
    if not grid:
        raise CallError("nothing to compare: give at least one table, one head and one layer")

    # The widest first, so that no worker is left alone with one at the end.
    order = sorted(range(len(grid)), key=lambda i: -dim(cache, grid[i][2]))
    path = str(cache.path.absolute())  # workers may have been started in another folder
    calls = [delayed(_one)(i, path, *grid[i], seed) for i in order]
    workers = max(1, min(jobs or cpu_count(), len(grid)))
    found: dict[int, Record] = {}
    notices = [f"{task.name}: {notice}" for task in tasks for notice in task.notices]
    with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1), threadpool_limits(1):
        with _deaf_children():
            results = Parallel(return_as="generator_unordered", batch_size=1)(calls)
        for i, record, more in results:
            found[i] = record
            notices += [f"{record.task}: {notice}" for notice in more]
            if progress is not None:
                progress(record, len(found), len(grid))

    rank = {i: (_score(found[i]), -dim(cache, grid[i][2]), -i) for i in found}
    best = {
        task.name: found[max((i for i in found if grid[i][0] is task), key=rank.__getitem__)]
        for task in tasks
    }
    return Comparison(
        records=[found[i] for i in range(len(grid))],
        best_per_task=best,
        best=found[max(found, key=rank.__getitem__)],
        notices=notices,
        seconds=round(time.perf_counter() - started, 3),
    )


def _one(
    i: int, path: str, task: Task, head: str, layers: tuple[str, ...], seed: int
) -> tuple[int, Record, tuple[str, ...]]:
    """One cell of the grid, in a worker: it opens the cache itself and maps what it reads."""
    fitted, record = graft(open_cache(path), task, named(head), layers, seed=seed)
    return i, record, fitted.notices


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach; this one, which it does, stops them.

    Only an ignored signal is passed on to a new program; a blocked one is unblocked on the way
    by multiprocessing's resource tracker. It takes a fraction of a second.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _score(record: Record) -> float:
    return -1.0 if record.validation is None else record.validation


def _distinct(tables: list[LabelTable]) -> list[LabelTable]:
    """Tables under names that tell them apart: by file name, or where two agree, by path."""
    names = [table.name for table in tables]
    tables = [
        replace(table, name=table.source) if names.count(table.name) > 1 else table
        for table in tables
    ]
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise CallError(f"the same labels are given twice: {', '.join(names)}")
    return tables

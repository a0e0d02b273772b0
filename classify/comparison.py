"""Compare heads: tasks x heads x layers from one cache, in parallel."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from joblib import delayed

from classify.checks import Checks, check
from classify.errors import CallError
from classify.features import CacheOrPath, dim, layer_sets, open_cache
from classify.fitting import Labels, check_class_weight, graft, table_of
from classify.heads import STANDARD, named
from classify.kept import sweep
from classify.labels import LabelTable
from classify.preparation import check_preparation
from classify.records import Record
from classify.results import Result, keep_result, key_of, recall_result
from classify.scores import holm, paired
from classify.tasks import Task, make_task
from classify.workers import working
from featurize.cache import FeatureCache

Cell = tuple[Task, str, tuple[str, ...]]
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
    results : list of Result
        As `records`, with each head's answers image by image.
    tasks : list of Task
    recalled : int
        How many of the heads had been trained before, and were found beside the cache.
    notices : list of str
        What a user should know.
    seconds : float
    """

    records: list[Record]
    best_per_task: dict[str, Record]
    best: Record
    results: list[Result]
    tasks: list[Task]
    recalled: int
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
    heads: str | Sequence[str] = STANDARD,
    layers: str | Sequence[str] = "each,joined",
    *,
    column: str = "label",
    labels_level: int | None = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    test_size: float = 0.2,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Train every head on every choice of layers for every task.

    Each result is kept beside the cache as soon as it is there: a comparison that was interrupted
    goes on where it stopped, and one that asks for more trains only what is new.

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
    column, labels_level, class_weight, prepare, test_size, seed
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
    check_class_weight(class_weight)
    check_preparation(prepare)
    words = heads.split(",") if isinstance(heads, str) else heads
    kinds = list(dict.fromkeys(named(word.strip()).name for word in words))
    cache = open_cache(cache)
    sets = layer_sets(cache, layers)
    one = labels is None or isinstance(labels, (LabelTable, str, os.PathLike))
    given: Sequence[Any] = [labels] if one else list(labels)  # type: ignore[arg-type]
    tables = _distinct([table_of(cache, item, column, labels_level) for item in given])
    tasks = [make_task(cache, table, test_size=test_size, seed=seed) for table in tables]
    grid = [(task, kind, names) for task in tasks for kind in kinds for names in sets]
    if not grid:
        raise CallError("nothing to compare: give at least one table, one head and one layer")

    options = (seed, class_weight, prepare)
    keys = [key_of(cache, *cell, *options) for cell in grid]
    found: dict[int, Result] = {}
    for i, key in enumerate(keys):
        result = recall_result(cache, key, *grid[i])
        if result is not None:
            found[i] = result
            if progress is not None:
                progress(result.record, len(found), len(grid))
    recalled, left_out = len(found), []
    path = str(cache.path.absolute())  # workers may have been started in another folder
    calls = [
        delayed(_train)(path, [(i, *grid[i], keys[i]) for i in job], *options)
        for job in _jobs(cache, grid, [i for i in range(len(grid)) if i not in found])
    ]
    if calls:
        with ExitStack() as ended:
            ended.callback(sweep, cache)  # once all workers are ended, be it by a kill
            for batch in ended.enter_context(working(calls, jobs)):
                for i, outcome in batch:
                    if isinstance(outcome, str):
                        left_out.append(outcome)
                        continue
                    found[i] = outcome
                    if progress is not None:
                        progress(outcome.record, len(found), len(grid))

    rank = {i: (_score(r.record), -dim(cache, grid[i][2]), -i) for i, r in found.items()}
    best: dict[str, int] = {}
    for i in sorted(rank, key=rank.__getitem__):
        best[grid[i][0].name] = i  # the last one is the best
    if len(best) < len(tasks):
        raise CallError("; ".join(left_out))
    results = _beside({i: found[i] for i in sorted(found)}, grid, best, seed)
    return Comparison(
        records=[result.record for result in results],
        best_per_task={task.name: found[best[task.name]].record for task in tasks},
        best=found[max(rank, key=rank.__getitem__)].record,
        results=results,
        tasks=tasks,
        recalled=recalled,
        notices=[f"{task.name}: {notice}" for task in tasks for notice in task.notices]
        + left_out
        + [f"{r.record.task}: {notice}" for r in results for notice in r.notices],
        seconds=round(time.perf_counter() - started, 3),
    )


def check_data(cache: FeatureCache, found: Comparison) -> dict[str, Checks]:
    """Check each task's data, its labels against the answers of its best head.

    Returns
    -------
    dict of str to Checks
        By task, see `classify.checks.check`.
    """
    tasks = {task.name: task for task in found.tasks}
    return {
        name: check(cache, tasks[name], result.validation, result.test)
        for result in found.results
        if result.record is found.best_per_task[name := result.record.task]
    }


def _jobs(cache: FeatureCache, grid: list[Cell], missing: list[int]) -> list[list[int]]:
    """What a worker does at one go: heads that share a spectrum, one after the other."""
    jobs: dict[object, list[int]] = {}
    for i in missing:
        task, kind, names = grid[i]
        way = named(kind).way
        shares = way in ("solved", "minimised")
        jobs.setdefault((task.name, names, way) if shares else i, []).append(i)
    # The widest first, so that no worker is left alone with one at the end.
    return sorted(jobs.values(), key=lambda job: -dim(cache, grid[job[0]][2]))


def _train(
    path: str,
    cells: list[tuple[int, Task, str, tuple[str, ...], str]],
    seed: int,
    class_weight: str | None,
    prepare: str | None,
) -> list[tuple[int, Result | str]]:
    """Some cells of the grid, in a worker: it opens the cache itself and maps what it reads.

    Where a head cannot be trained on so many rows or columns, the reason stands for its result.
    """
    cache = open_cache(path)
    found: list[tuple[int, Result | str]] = []
    for i, task, head, layers, key in cells:
        try:
            _, result = graft(cache, task, named(head), layers, seed, class_weight, prepare)
        except CallError as error:
            found.append((i, f"{task.name}: {head} on {'+'.join(layers)} left out: {error}"))
            continue
        keep_result(cache, key, result)
        found.append((i, result))
    return found


def _beside(
    found: dict[int, Result], grid: list[Cell], best: dict[str, int], seed: int
) -> list[Result]:
    """Mark what chance alone could explain beside the task's best, and what is worse than it."""
    marked = dict(found)
    for name, at in best.items():
        test, differences = found[at].test, {}
        if test is None:
            continue
        for i, result in found.items():
            if grid[i][0].name == name and i != at and result.test is not None:
                unit = grid[i][0].unit_of(test.rows)
                differences[i] = paired(test, result.test, unit, seed=seed)
        apart = holm([difference.p_value for difference in differences.values()])
        for (i, difference), one in zip(differences.items(), apart, strict=True):
            record = replace(
                found[i].record,
                distinguishable=difference.distinguishable,
                worse=one and difference.distinguishable and difference.value > 0,
            )
            marked[i] = replace(found[i], record=record)
    return list(marked.values())


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

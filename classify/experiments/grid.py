"""Many heads trained in workers: what has been trained is recalled, the rest trained and kept."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from joblib import delayed

from classify.data.features import open_cache, total_dim
from classify.data.tasks import Task
from classify.errors import CallError
from classify.experiments.fit_task import fit_task
from classify.experiments.results import FitOptions, FitResult, load_result, result_key, save_result
from classify.experiments.workers import run_parallel
from classify.heads.record import HeadProgress, HeadReport
from classify.heads.registry import get_head_spec
from classify.store import remove_partial
from featurize.cache.reader import FeatureCache
from featurize.progress import ignore


@dataclass(frozen=True, eq=False)
class GridCell:
    """One head to be trained.

    Attributes
    ----------
    task : Task
    head : str
    layers : tuple of str
    options : FitOptions
    """

    task: Task
    head: str
    layers: tuple[str, ...]
    options: FitOptions


def train_grid(
    cache: FeatureCache,
    grid: Sequence[GridCell],
    on_result: Callable[[int, FitResult], None],
    *,
    persist: bool = True,
    jobs: int | None = None,
    report: HeadReport = ignore,
) -> tuple[int, dict[int, str]]:
    """Train every cell that has not been trained before; each result is kept at once.

    Parameters
    ----------
    cache : FeatureCache
        Worker processes map its features into memory; none is copied between processes.
    grid : sequence of GridCell
    on_result : callable
        Called with a position in `grid` and its result, in whatever order they come.
    persist : bool
        Whether to store bases, as in `classify.solvers.gram_cache.compute_fold_bases`. Where they
        are not stored, all heads that share a basis are trained by one worker.
    jobs : int, optional
        Worker processes of one thread each; as many as there are cores if not given.
    report : callable
        Called with a `HeadProgress` as results come.

    Returns
    -------
    int
        How many were recalled.
    dict of int to str
        Why a head was left out, which cannot be trained on so many rows or columns.
    """
    done = 0

    def take(i: int, result: FitResult) -> None:
        nonlocal done
        done += 1
        on_result(i, result)
        report(HeadProgress(result.record, done, len(grid)))

    keys, missing = [], []
    for i, cell in enumerate(grid):
        keys.append(result_key(cache, cell.task, cell.head, cell.layers, cell.options))
        result = load_result(cache, keys[i], cell.task, cell.head, cell.layers)
        if result is None:
            missing.append(i)
        else:
            take(i, result)
    recalled, left_out = done, {}
    path = str(cache.path.absolute())  # workers may have been started in another folder
    calls = [
        delayed(_train_group)(path, [(i, grid[i], keys[i]) for i in job], persist)
        for job in _group_cells(cache, grid, missing, persist)
    ]
    if calls:
        with ExitStack() as ended:
            ended.callback(remove_partial, cache)  # once all workers are ended, be it by a kill
            for batch in ended.enter_context(run_parallel(calls, jobs)):
                for i, outcome in batch:
                    if isinstance(outcome, str):
                        left_out[i] = outcome
                    else:
                        take(i, outcome)
    return recalled, left_out


def _group_cells(
    cache: FeatureCache, grid: Sequence[GridCell], missing: list[int], persist: bool
) -> list[list[int]]:
    """What a worker does at one go: heads that share a spectrum, one after the other."""
    jobs: dict[object, list[int]] = {}
    for i in missing:
        cell = grid[i]
        spec = get_head_spec(cell.head)
        key = (id(cell.task), cell.layers, spec.solver if persist else "")
        jobs.setdefault(key if spec.uses_gram else i, []).append(i)
    # The widest first, so that no worker is left alone with one at the end.
    return sorted(jobs.values(), key=lambda job: -total_dim(cache, grid[job[0]].layers))


def _train_group(
    path: str, cells: list[tuple[int, GridCell, str]], persist: bool
) -> list[tuple[int, FitResult | str]]:
    """Some cells of the grid, in a worker: it opens the cache itself and maps what it reads.

    Where a head cannot be trained on so many rows or columns, the reason stands for its result.
    """
    cache = open_cache(path)
    found: list[tuple[int, FitResult | str]] = []
    for i, cell, key in cells:
        try:
            _, result = fit_task(
                cache,
                cell.task,
                get_head_spec(cell.head),
                cell.layers,
                cell.options,
                persist,
            )
        except CallError as error:
            where = f"{cell.task.name}: {cell.head} on {'+'.join(cell.layers)}"
            found.append((i, f"{where} left out: {error}"))
            continue
        save_result(cache, key, result)
        found.append((i, result))
    return found

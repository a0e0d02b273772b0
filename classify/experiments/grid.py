"""Train a grid of heads in worker processes, reusing results that are already stored."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from joblib import delayed

from classify.data.features import open_cache, total_dim
from classify.data.tasks import Task
from classify.errors import CallError
from classify.experiments.fit_task import fit_task
from classify.experiments.results import FitOptions, FitResult, load_result, result_key, save_result
from classify.heads.record import HeadProgress, HeadReport
from classify.heads.registry import get_head_spec
from classify.store import remove_partial
from classify.workers import run_parallel
from featurize.cache.reader import FeatureCache
from featurize.progress import ignore


@dataclass(frozen=True, eq=False)
class GridCell:
    """One head to train.

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
    """Train every cell that has no stored result, and store each result at once.

    Parameters
    ----------
    cache : FeatureCache
        Worker processes map its features into memory; nothing is copied between processes.
    grid : sequence of GridCell
    on_result : callable
        Called with a position in `grid` and its result, in order of completion.
    persist : bool
        Whether to store bases, as in `classify.solvers.gram_cache.compute_fold_bases`. If not, all
        heads that share a basis are trained by one worker.
    jobs : int, optional
        Number of worker processes of one thread each; by default the number of cores.
    report : callable
        Called with a `HeadProgress` for each result.

    Returns
    -------
    n_reused : int
        Number of results that were stored already.
    left_out : dict of int to str
        By position, why a head could not be trained on so many rows or columns.
    """
    n_done = 0

    def handle_result(i: int, result: FitResult) -> None:
        nonlocal n_done
        n_done += 1
        on_result(i, result)
        report(HeadProgress(result.record, n_done, len(grid)))

    keys, missing = [], []
    for i, cell in enumerate(grid):
        keys.append(result_key(cache, cell.task, cell.head, cell.layers, cell.options))
        result = load_result(cache, keys[i], cell.task, cell.head, cell.layers)
        if result is None:
            missing.append(i)
        else:
            handle_result(i, result)
    n_reused, left_out = n_done, {}
    path = str(cache.path.absolute())  # workers may have been started in another folder
    calls = [
        delayed(_train_group)(path, [(i, grid[i], keys[i]) for i in group], persist)
        for group in _group_cells(cache, grid, missing, persist)
    ]
    if calls:
        with ExitStack() as exit_stack:
            # Runs after all workers have ended, even if they were killed.
            exit_stack.callback(remove_partial, cache)
            for batch in exit_stack.enter_context(run_parallel(calls, jobs)):
                for i, result_or_reason in batch:
                    if isinstance(result_or_reason, str):
                        left_out[i] = result_or_reason
                    else:
                        handle_result(i, result_or_reason)
    return n_reused, left_out


def _group_cells(
    cache: FeatureCache, grid: Sequence[GridCell], missing: list[int], persist: bool
) -> list[list[int]]:
    """Group the missing cells by worker call: heads that share a basis go together."""
    groups: dict[object, list[int]] = {}
    for i in missing:
        cell = grid[i]
        spec = get_head_spec(cell.head)
        key = (id(cell.task), cell.layers, spec.solver if persist else "")
        groups.setdefault(key if spec.uses_gram else i, []).append(i)
    # The slowest (widest) first, so that the workers finish at about the same time.
    return sorted(groups.values(), key=lambda group: -total_dim(cache, grid[group[0]].layers))


def _train_group(
    path: str, cells: list[tuple[int, GridCell, str]], persist: bool
) -> list[tuple[int, FitResult | str]]:
    """Train a group of cells in a worker, which opens the cache itself.

    Where a head cannot be trained on so many rows or columns, the reason replaces its result.
    """
    cache = open_cache(path)
    results: list[tuple[int, FitResult | str]] = []
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
            description = f"{cell.task.name}: {cell.head} on {'+'.join(cell.layers)}"
            results.append((i, f"{description} left out: {error}"))
            continue
        save_result(cache, key, result)
        results.append((i, result))
    return results

"""Train a grid of heads in worker processes, reusing results that are already stored."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from joblib import delayed

from classify.data.features import CacheOrPath, open_cache, total_dim
from classify.data.sets.cache_set import CacheSet
from classify.data.tasks import Task
from classify.errors import CallError
from classify.evaluation.predictions import HeldOutPredictions
from classify.experiments.fit_task import fit_task
from classify.experiments.results import FitOptions, FitResult, load_result, result_key, save_result
from classify.heads.record import HeadProgress, HeadReport
from classify.heads.registry import get_head_spec
from classify.store import remove_partial
from classify.training.train import GRID_EDGE
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


@dataclass(frozen=True, eq=False)
class _PlacedCell:
    """A cell in the cache that has its layers.

    Attributes
    ----------
    cache : FeatureCache
    cell : GridCell
        With rows and layers of `cache`.
    key : str
        Of its stored result.
    """

    cache: FeatureCache
    cell: GridCell
    key: str

    def load(self) -> FitResult | None:
        """Load the stored result."""
        cell = self.cell
        return load_result(self.cache, self.key, cell.task, cell.head, cell.layers)


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
        Worker processes map its features into memory; nothing is copied between processes. In a
        `CacheSet`, layers of one cache are trained on and stored beside that cache, as if it had
        been given alone.
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
    placed = _place_cells(cache, grid)

    def handle_result(i: int, result: FitResult) -> None:
        nonlocal n_done
        n_done += 1
        result = _describe_in_set(cache, grid[i], placed[i], result)
        on_result(i, result)
        report(HeadProgress(result.record, n_done, len(grid)))

    missing = []
    for i, place in enumerate(placed):
        result = place.load()
        if result is None:
            missing.append(i)
        else:
            handle_result(i, result)
    n_reused, left_out = n_done, {}
    calls = [
        delayed(_train_group)(
            _make_portable(placed[group[0]].cache),
            [(i, placed[i].cell, placed[i].key) for i in group],
            persist,
        )
        for group in _group_cells(cache, grid, missing, persist)
    ]
    if calls:
        with ExitStack() as exit_stack:
            # Runs after all workers have ended, even if they were killed.
            for written in {place.cache.path: place.cache for place in placed}.values():
                exit_stack.callback(remove_partial, written)
            for batch in exit_stack.enter_context(run_parallel(calls, jobs)):
                for i, result_or_reason in batch:
                    if isinstance(result_or_reason, str):
                        name = f"{grid[i].head} on {'+'.join(grid[i].layers)}"
                        left_out[i] = f"{grid[i].task.name}: {name} left out: {result_or_reason}"
                    else:
                        handle_result(i, result_or_reason)
    return n_reused, left_out


def _place_cells(cache: FeatureCache, grid: Sequence[GridCell]) -> list[_PlacedCell]:
    """Find the cache of every cell, and the task's rows in it."""
    tasks: dict[tuple[int, str], Task] = {}  # one object each, as those that share it are grouped
    placed = []
    for cell in grid:
        source = cache
        if isinstance(cache, CacheSet):
            names, layers = cache.locate(cell.layers)
            if len(names) == 1:
                rows, source = cache.rows_in[names[0]], cache.caches[names[0]]
                task = tasks.setdefault(
                    (id(cell.task), names[0]), replace(cell.task, rows=rows[cell.task.rows])
                )
                cell = replace(cell, task=task, layers=layers)
        key = result_key(source, cell.task, cell.head, cell.layers, cell.options)
        placed.append(_PlacedCell(source, cell, key))
    return placed


def _describe_in_set(
    cache: FeatureCache, cell: GridCell, place: _PlacedCell, result: FitResult
) -> FitResult:
    """Say which cache a result is of, and give its predictions by rows of the set."""
    if not isinstance(cache, CacheSet):
        return result
    names, _ = cache.locate(cell.layers)
    infos = [cache.layer(layer) for layer in cell.layers]
    record = replace(
        result.record,
        cache="+".join(names),
        columns=sum(info.dim for info in infos),
        row_bytes=sum(info.dim * np.dtype(info.dtype).itemsize for info in infos),
        gmacs=cache.sum_gmacs(cell.layers),
    )
    start = f"{record.head} on "
    notices = tuple(
        notice.replace(f"{start}{record.layer}:", f"{start}{record.place}:", 1)
        for notice in result.notices
    )

    def renumber(predictions: HeldOutPredictions | None) -> HeldOutPredictions | None:
        if predictions is None:
            return None
        positions = np.searchsorted(place.cell.task.rows, predictions.rows)
        return replace(predictions, rows=cell.task.rows[positions])

    return FitResult(record, renumber(result.validation), renumber(result.test), notices)


def list_notices(results: Sequence[FitResult]) -> list[str]:
    """List what is to be said of the heads of a comparison.

    That a param is the end of its grid is said in one sentence a task: often it is so of many.

    Parameters
    ----------
    results : sequence of FitResult

    Returns
    -------
    list of str
        Each begins with the task's name.
    """
    notices, edges = [], defaultdict[str, list[str]](list)
    for result in results:
        for notice in result.notices:
            if notice.endswith(GRID_EDGE):
                edges[result.record.task].append(notice.removesuffix(f" {GRID_EDGE}"))
            else:
                notices.append(f"{result.record.task}: {notice}")
    counts = Counter(result.record.task for result in results)
    for task, params in edges.items():
        rest = f", and {len(params) - 3} more" if len(params) > 3 else ""
        notices.append(
            f"{task}: of {counts[task]:,} heads {len(params):,} took the last setting of their "
            f"grid ({'; '.join(params[:3])}{rest})"
        )
    return notices


def _make_portable(cache: FeatureCache) -> CacheOrPath:
    """Return what a worker opens a cache by; it may have been started in another folder."""
    # A set goes as it is: a run that fills a cache must not change which images it has.
    return cache if isinstance(cache, CacheSet) else str(cache.path.absolute())


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
    cache: CacheOrPath, cells: list[tuple[int, GridCell, str]], persist: bool
) -> list[tuple[int, FitResult | str]]:
    """Train a group of cells in a worker, which opens the cache itself.

    Where a head cannot be trained on so many rows or columns, the reason replaces its result.
    """
    cache = open_cache(cache)
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
            results.append((i, str(error)))
            continue
        save_result(cache, key, result)
        results.append((i, result))
    return results

"""Compare heads for several labels, numbers or grades: tasks x heads x layers of one cache."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import delayed
from threadpoolctl import threadpool_limits

from classify.data.features import open_cache, total_dim
from classify.data.targets.task import TargetTask
from classify.errors import CallError, ClassifyError
from classify.evaluation.paired import apply_holm_correction
from classify.evaluation.targets.metrics import LOWER_IS_BETTER, compare_target_paired
from classify.experiments.targets.fit import fit_or_load
from classify.experiments.targets.results import (
    TargetFit,
    TargetFitOptions,
    load_target_result,
    target_result_key,
)
from classify.heads.targets.record import TargetProgress, TargetResult
from classify.heads.targets.registry import COMPARED_HEADS_OF, get_target_head_spec
from classify.store import remove_partial
from classify.workers import run_parallel
from featurize.cache.reader import FeatureCache
from featurize.progress import ignore


@dataclass(frozen=True)
class TargetComparison:
    """Result of a comparison of heads for labels that are not one class.

    Attributes
    ----------
    records : list of TargetResult
        By task, head and layers, in the order of the request.
    best_per_task : dict of str to TargetResult
        By task name, the best head by validation. Of equals, the one with fewer columns.
    results : list of TargetFit
        As `records`, with each head's predictions image by image.
    tasks : list of TargetTask
        The label tables over the cache.
    n_reused : int
        Number of heads whose kept results were reused.
    notices : list of str
        Notices for the user.
    seconds : float
        Wall-clock time.
    """

    records: list[TargetResult]
    best_per_task: dict[str, TargetResult]
    results: list[TargetFit]
    tasks: list[TargetTask]
    n_reused: int
    notices: list[str]
    seconds: float

    @property
    def caches(self) -> dict[str, str]:
        """Files of several caches by short name; several are read as one set here."""
        return {}

    @property
    def best(self) -> TargetResult:
        """The best head of the first task."""
        return self.best_per_task[self.tasks[0].name]

    def to_dict(self) -> dict[str, Any]:
        """Return the records and the best of them as dicts for JSON.

        Returns
        -------
        dict
            ``records`` and ``best``; with several tasks also ``best_per_task``.
        """
        content: dict[str, Any] = {
            "records": [record.to_dict() for record in self.records],
            "best": self.best.to_dict(),
        }
        if len(self.best_per_task) > 1:
            content["best_per_task"] = {t: r.to_dict() for t, r in self.best_per_task.items()}
        return content


def compare_targets(
    cache: FeatureCache,
    tasks: Sequence[TargetTask],
    heads: Sequence[str] | None,
    layer_sets: Sequence[tuple[str, ...]],
    *,
    metric: str | None = None,
    prepare: str | None = None,
    coverage: float | None = None,
    seed: int = 0,
    jobs: int | None = None,
    report: Callable[[TargetProgress], None] = ignore,
) -> TargetComparison:
    """Train every head on every choice of layers for every task.

    Each result is kept next to the cache as soon as it is available.

    Parameters
    ----------
    cache : FeatureCache
    tasks : sequence of TargetTask
    heads : sequence of str, or None
        If not given, those of `COMPARED_HEADS_OF` of each task's kind.
    layer_sets : sequence of tuple of str
    metric, prepare : str, optional
    coverage : float, optional
        As in `classify.fit`.
    seed : int
    jobs : int, optional
        Number of worker processes of one thread each; by default the number of cores.
    report : callable
        Called with a `TargetProgress` for each result.

    Returns
    -------
    TargetComparison

    Raises
    ------
    CallError
        If an option does not go with a kind, or no head of a task could be trained.
    """
    started = time.perf_counter()
    cells: list[tuple[TargetTask, str, tuple[str, ...], TargetFitOptions]] = []
    for task in tasks:
        options = TargetFitOptions.from_options(
            task.kind, seed, metric=metric, prepare=prepare, coverage=coverage
        )
        for name in heads or COMPARED_HEADS_OF[task.kind]:
            get_target_head_spec(name, task.kind)  # raises before anything is trained
            cells += [(task, name, layers, options) for layers in layer_sets]
    results: dict[int, TargetFit] = {}
    left_out: dict[int, str] = {}

    def handle(i: int, found: TargetFit | str) -> None:
        if isinstance(found, str):
            task, name, layers, _ = cells[i]
            left_out[i] = f"{task.name}: {name} on {'+'.join(layers)} left out: {found}"
            return
        results[i] = found
        report(TargetProgress(found.record, len(results), len(cells)))

    missing = []
    for i, (task, name, layers, options) in enumerate(cells):
        key = target_result_key(cache, task, name, layers, options)
        kept = load_target_result(cache, key, task, name, layers)
        if kept is None:
            missing.append(i)
        else:
            handle(i, kept)
    n_reused = len(results)
    groups: dict[object, list[int]] = {}
    for i in missing:  # heads on the same features share their statistics
        groups.setdefault((cells[i][0].name, cells[i][2]), []).append(i)
    ordered = sorted(groups.values(), key=lambda group: -total_dim(cache, cells[group[0]][2]))
    path = str(cache.path.absolute())
    calls = [delayed(_fit_group)(path, [(i, *cells[i]) for i in group]) for group in ordered]
    if calls:
        try:
            with run_parallel(calls, jobs) as batches:
                for batch in batches:
                    for i, found in batch:
                        handle(i, found)
        finally:
            remove_partial(cache)
    return _summarise(cache, tasks, cells, results, left_out, n_reused, seed, started)


def _fit_group(
    path: str, group: list[tuple[int, TargetTask, str, tuple[str, ...], TargetFitOptions]]
) -> list[tuple[int, TargetFit | str]]:
    """Fit a group of cells in a worker, which opens the cache itself."""
    cache, found = open_cache(path), list[tuple[int, TargetFit | str]]()
    for i, task, name, layers, options in group:
        try:
            with threadpool_limits(1):
                spec = get_target_head_spec(name, task.kind)
                found.append((i, fit_or_load(cache, task, spec, layers, options)))
        except ClassifyError as error:
            found.append((i, str(error)))
    return found


def _summarise(
    cache: FeatureCache,
    tasks: Sequence[TargetTask],
    cells: Sequence[tuple[TargetTask, str, tuple[str, ...], TargetFitOptions]],
    results: dict[int, TargetFit],
    left_out: dict[int, str],
    n_reused: int,
    seed: int,
    started: float,
) -> TargetComparison:
    marked, best_per_task = dict(results), dict[str, TargetResult]()
    for task in tasks:
        own = [i for i in sorted(results) if cells[i][0] is task]
        if not own:
            raise CallError("; ".join(left_out.values()) or "nothing to compare")
        best = min(own, key=lambda i: (_rank(results[i].record), total_dim(cache, cells[i][2]), i))
        marked |= _mark_significance(task, {i: results[i] for i in own}, best, seed)
        best_per_task[task.name] = marked[best].record
    in_order = [marked[i] for i in sorted(marked)]
    notices = [f"{task.name}: {notice}" for task in tasks for notice in task.notices]
    notices += left_out.values()
    notices += [f"{fit.record.task}: {notice}" for fit in in_order for notice in fit.notices]
    return TargetComparison(
        records=[fit.record for fit in in_order],
        best_per_task=best_per_task,
        results=in_order,
        tasks=list(tasks),
        n_reused=n_reused,
        notices=notices,
        seconds=round(time.perf_counter() - started, 3),
    )


def _rank(record: TargetResult) -> float:
    value = record.validation_metric
    if value is None:
        return np.inf
    return value if record.metric in LOWER_IS_BETTER else -value


def _mark_significance(
    task: TargetTask, results: dict[int, TargetFit], best: int, seed: int
) -> dict[int, TargetFit]:
    """Mark the heads not distinguishable from the task's best, and those worse than it."""
    test, differences = results[best].test, {}
    if test is None:
        return results
    unit, sign = task.units_for(test.rows), 1
    metric = results[best].record.metric
    if metric in LOWER_IS_BETTER:
        sign = -1
    for i, result in results.items():
        if i != best and result.test is not None:
            differences[i] = compare_target_paired(
                test, result.test, metric, task.n_grades, unit, seed=seed
            )
    significant = apply_holm_correction([found.p_value for found in differences.values()])
    marked = dict(results)
    for (i, found), is_significant in zip(differences.items(), significant, strict=True):
        worse = is_significant and found.distinguishable and sign * found.value > 0
        record = replace(results[i].record, distinguishable=found.distinguishable, worse=worse)
        marked[i] = replace(results[i], record=record)
    return marked


def rank_target_results(results: Sequence[TargetResult], best: TargetResult) -> list[TargetResult]:
    """Sort a task's results by their validation metric, the best head first.

    Parameters
    ----------
    results : sequence of TargetResult
    best : TargetResult
        One of them, which comes first.

    Returns
    -------
    list of TargetResult
    """
    return sorted(results, key=lambda result: (result is not best, _rank(result)))

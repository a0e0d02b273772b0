"""Compare heads: tasks x heads x layers from one cache, in parallel."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from classify.checks.summary import DataChecks, check_task
from classify.data.features import CacheOrPath, open_cache, resolve_layer_sets, total_dim
from classify.data.labels import LabelsLike, LabelTable
from classify.data.tasks import Task, TaskSpec, make_task
from classify.errors import CallError
from classify.evaluation.paired import apply_holm_correction, compare_paired
from classify.evaluation.selection_metric import SelectionMetric
from classify.experiments.draws import DrawSpec
from classify.experiments.fit import make_fit_options
from classify.experiments.grid import GridCell, train_grid
from classify.experiments.repeats import RepeatedComparison, compare_over_draws
from classify.experiments.results import FitResult
from classify.heads.record import HeadCallback, HeadReport, HeadResult, rank_results, report_to
from classify.heads.registry import DEFAULT_HEADS, get_head_spec
from featurize.cache.reader import FeatureCache
from featurize.progress import ignore


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes
    ----------
    records : list of HeadResult
        By task, head and layers, in the order asked for.
    best_per_task : dict of str to HeadResult
        Each task's best by validation; of equals the narrower features, then the earlier.
    best : HeadResult
        The same over all tasks.
    results : list of FitResult
        As `records`, with each head's answers image by image.
    tasks : list of Task
    n_reused : int
        How many of the heads had been trained before, and were found beside the cache.
    notices : list of str
        What a user should know.
    seconds : float
    """

    records: list[HeadResult]
    best_per_task: dict[str, HeadResult]
    best: HeadResult
    results: list[FitResult]
    tasks: list[Task]
    n_reused: int
    notices: list[str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """``records``, ``best``, and with several tasks ``best_per_task``, as dicts."""
        content: dict[str, Any] = {
            "records": [record.to_dict() for record in self.records],
            "best": self.best.to_dict(),
        }
        if len(self.best_per_task) > 1:
            content["best_per_task"] = {t: r.to_dict() for t, r in self.best_per_task.items()}
        return content

    def to_frame(self) -> Any:
        """The records as a pandas ``DataFrame``, by task, the best first.

        Returns
        -------
        pandas.DataFrame
            A row for each head, with the keys of `HeadResult.to_dict`, but for ``classes``,
            ``recall`` and ``bias``.

        Raises
        ------
        ImportError
            If pandas is not installed: headgraft does without it.
        """
        import pandas  # type: ignore[import-untyped]

        rows = [
            record.to_dict()
            for task, best in self.best_per_task.items()
            for record in rank_results([r for r in self.records if r.task == task], best)
        ]
        return pandas.DataFrame(rows).drop(columns=["classes", "recall", "bias"])


@overload
def compare(
    cache: CacheOrPath,
    labels: LabelsLike | Sequence[LabelsLike] = None,
    heads: str | Sequence[str] = ...,
    layers: str | Sequence[str] = ...,
    *,
    column: str = "label",
    labels_level: int | None = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    test_size: float = 0.2,
    seed: int = 0,
    repeats: None = None,
    shots: None = None,
    folds: None = None,
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: HeadReport = ignore,
) -> Comparison: ...


@overload
def compare(
    cache: CacheOrPath,
    labels: LabelsLike | Sequence[LabelsLike] = None,
    heads: str | Sequence[str] = ...,
    layers: str | Sequence[str] = ...,
    *,
    column: str = "label",
    labels_level: int | None = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    test_size: float = 0.2,
    seed: int = 0,
    repeats: int | None = None,
    shots: str | Sequence[int] | None = None,
    folds: int | None = None,
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: HeadReport = ignore,
) -> Comparison | RepeatedComparison: ...


def compare(
    cache: CacheOrPath,
    labels: LabelsLike | Sequence[LabelsLike] = None,
    heads: str | Sequence[str] = DEFAULT_HEADS,
    layers: str | Sequence[str] = "each,joined",
    *,
    column: str = "label",
    labels_level: int | None = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    test_size: float = 0.2,
    seed: int = 0,
    repeats: int | None = None,
    shots: str | Sequence[int] | None = None,
    folds: int | None = None,
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: HeadReport = ignore,
) -> Comparison | RepeatedComparison:
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
    column, labels_level, class_weight, prepare, metric, test_size, seed
        As in `fit`; every head of a task sees the same split.
    repeats : int, optional
        The same on so many random splits, of `seed` and the seeds after it: two or more. With
        `shots` so many draws of them, 5 if not given; with `folds` so many times.
    shots : str or sequence of int, optional
        On so many training images of each class, as ``1,2,4,8,16``, drawn by seed. All are tested
        on the same images, those that the table brings or those held out by `seed`. Settings are
        chosen among the images drawn and no others.
    folds : int, optional
        Every image is tested once, by a head trained on the other folds.
    jobs : int, optional
        Worker processes of one thread each; as many as there are cores if not given.
    progress : callable, optional
        Called as results come, with a record, how many are done, and how many there will be.
    report : callable
        Called with the same as one `classify.heads.record.HeadProgress`.

    Returns
    -------
    Comparison
        Or, with `repeats`, `shots` or `folds`, a `classify.experiments.repeats.RepeatedComparison`.

    Raises
    ------
    ClassifyError, FeaturizeError, FileNotFoundError
    """
    started = time.perf_counter()
    options = make_fit_options(seed, class_weight, prepare, metric)
    words = heads.split(",") if isinstance(heads, str) else heads
    names = list(dict.fromkeys(get_head_spec(word.strip()).name for word in words))
    cache = open_cache(cache)
    sets = resolve_layer_sets(cache, layers)
    single = labels is None or isinstance(labels, (LabelTable, str, os.PathLike))
    given: Sequence[Any] = [labels] if single else list(labels)  # type: ignore[arg-type]
    specs = [TaskSpec(item, column, labels_level, test_size, seed) for item in given]
    tables = _make_names_unique([spec.read_table(cache) for spec in specs])
    if not (tables and names and sets):
        raise CallError("nothing to compare: give at least one table, one head and one layer")
    if repeats is not None or shots is not None or folds is not None:
        return compare_over_draws(
            cache,
            tables,
            names,
            sets,
            DrawSpec.from_options(repeats, shots, folds, seed),
            options=options,
            test_size=test_size,
            jobs=jobs,
            report=report_to(report, progress),
        )
    tasks = [make_task(cache, table, test_size=test_size, seed=seed) for table in tables]
    for task in tasks:
        options.metric.check_classes(task.classes)
    grid = [
        GridCell(task, name, layer_set, options)
        for task in tasks
        for name in names
        for layer_set in sets
    ]
    found: dict[int, FitResult] = {}
    n_reused, left_out = train_grid(
        cache, grid, found.__setitem__, jobs=jobs, report=report_to(report, progress)
    )
    rank = {
        i: (_signed_metric(r.record, options.metric), -total_dim(cache, grid[i].layers), -i)
        for i, r in found.items()
    }
    best: dict[str, int] = {}
    for i in sorted(rank, key=rank.__getitem__):
        best[grid[i].task.name] = i  # the last one is the best
    if len(best) < len(tasks):
        raise CallError("; ".join(left_out.values()))
    results = _mark_significance({i: found[i] for i in sorted(found)}, grid, best, seed)
    return Comparison(
        records=[result.record for result in results],
        best_per_task={task.name: found[best[task.name]].record for task in tasks},
        best=found[max(rank, key=rank.__getitem__)].record,
        results=results,
        tasks=tasks,
        n_reused=n_reused,
        notices=[f"{task.name}: {notice}" for task in tasks for notice in task.notices]
        + list(left_out.values())
        + [f"{r.record.task}: {notice}" for r in results for notice in r.notices],
        seconds=round(time.perf_counter() - started, 3),
    )


def check_data(cache: FeatureCache, found: Comparison) -> dict[str, DataChecks]:
    """Check each task's data, its labels against the answers of its best head.

    Returns
    -------
    dict of str to Checks
        By task, see `classify.checks.summary.check_task`.
    """
    tasks = {task.name: task for task in found.tasks}
    return {
        name: check_task(cache, tasks[name], result.validation, result.test)
        for result in found.results
        if result.record is found.best_per_task[name := result.record.task]
    }


def _mark_significance(
    found: dict[int, FitResult], grid: list[GridCell], best: dict[str, int], seed: int
) -> list[FitResult]:
    """Mark what chance alone could explain beside the task's best, and what is worse than it."""
    marked = dict(found)
    for name, at in best.items():
        test, differences = found[at].test, {}
        if test is None:
            continue
        for i, result in found.items():
            if grid[i].task.name == name and i != at and result.test is not None:
                unit = grid[i].task.units_for(test.rows)
                differences[i] = compare_paired(test, result.test, unit, seed=seed)
        apart = apply_holm_correction([difference.p_value for difference in differences.values()])
        for (i, difference), one in zip(differences.items(), apart, strict=True):
            record = replace(
                found[i].record,
                distinguishable=difference.distinguishable,
                worse=one and difference.distinguishable and difference.value > 0,
            )
            marked[i] = replace(found[i], record=record)
    return list(marked.values())


def _signed_metric(record: HeadResult, metric: SelectionMetric) -> float:
    value = record.validation_metric
    return -np.inf if value is None else metric.sign * value


def _make_names_unique(tables: list[LabelTable]) -> list[LabelTable]:
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

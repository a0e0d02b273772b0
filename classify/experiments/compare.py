"""Compare heads: tasks x heads x layers of one cache or several, in parallel."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np

from classify.checks.groups import describe_evident_groups
from classify.checks.summary import DataChecks, check_task
from classify.data.features import total_dim
from classify.data.sets.cache_set import CachesLike, find_deepest_layer, list_files, open_caches
from classify.data.sets.layer_words import DEFAULT_LAYERS, list_layer_sets
from classify.data.sets.shared_images import keep_shared_images
from classify.data.targets.spec import TaskSpec
from classify.data.tasks import Task, make_task
from classify.errors import CallError
from classify.evaluation.paired import apply_holm_correction, compare_paired
from classify.evaluation.selection_metric import SelectionMetric
from classify.experiments.compare_draws import compare_over_draws
from classify.experiments.draws import DrawSpec
from classify.experiments.fit import make_fit_options
from classify.experiments.grid import GridCell, list_notices, train_grid
from classify.experiments.repeats import RepeatedComparison
from classify.experiments.results import FitResult
from classify.experiments.zero_shot import find_tasks_of, load_zero_shot_head, score_zero_shot
from classify.heads.record import HeadCallback, HeadReport, HeadResult, rank_results, report_to
from classify.heads.registry import DEFAULT_HEADS, get_head_spec
from classify.kinds import CLASS
from classify.labels.table import LabelsLike, LabelTable
from classify.labels.targets.kinds import split_words
from classify.labels.targets.table import make_names_unique
from featurize.cache.reader import FeatureCache
from featurize.progress import ignore


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes
    ----------
    records : list of HeadResult
        By task, head and layers, in the order of the request.
    best_per_task : dict of str to HeadResult
        By task name, the best head by validation. Of equals, the one with fewer columns, then the
        earlier one.
    best : HeadResult
        The best over all tasks.
    results : list of FitResult
        As `records`, with each head's predictions image by image.
    tasks : list of Task
        The label tables over the cache.
    n_reused : int
        Number of heads whose stored results were reused.
    notices : list of str
        Notices for the user.
    seconds : float
        Wall-clock time.
    caches : dict of str to str
        File of each cache by short name; empty where one cache is compared.
    """

    records: list[HeadResult]
    best_per_task: dict[str, HeadResult]
    best: HeadResult
    results: list[FitResult]
    tasks: list[Task]
    n_reused: int
    notices: list[str]
    seconds: float
    caches: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the records and the best of them as dicts for JSON.

        Returns
        -------
        dict
            ``records`` and ``best``; with several tasks also ``best_per_task``, with several
            caches also ``caches``.
        """
        content: dict[str, Any] = {
            "records": [record.to_dict() for record in self.records],
            "best": self.best.to_dict(),
        }
        if len(self.best_per_task) > 1:
            content["best_per_task"] = {t: r.to_dict() for t, r in self.best_per_task.items()}
        if self.caches:
            content["caches"] = self.caches
        return content

    def to_frame(self) -> Any:
        """Return the records as a pandas ``DataFrame``, by task, the best first.

        Returns
        -------
        pandas.DataFrame
            One row per head, with the keys of `HeadResult.to_dict` except ``classes``, ``recall``,
            ``bias`` and ``doubt``.

        Raises
        ------
        ImportError
            If pandas is not installed. It is not a dependency of headgraft.
        """
        import pandas  # type: ignore[import-untyped]

        rows = [
            record.to_dict()
            for task, best in self.best_per_task.items()
            for record in rank_results([r for r in self.records if r.task == task], best)
        ]
        return pandas.DataFrame(rows).drop(columns=["classes", "recall", "bias", "doubt"])


@overload
def compare_classes(
    cache: CachesLike,
    labels: LabelsLike | Sequence[LabelsLike] = None,
    heads: str | Sequence[str] | None = ...,
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
    zeroshot: Sequence[str | os.PathLike[str]] = (),
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: HeadReport = ignore,
) -> Comparison: ...


@overload
def compare_classes(
    cache: CachesLike,
    labels: LabelsLike | Sequence[LabelsLike] = None,
    heads: str | Sequence[str] | None = ...,
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
    zeroshot: Sequence[str | os.PathLike[str]] = (),
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: HeadReport = ignore,
) -> Comparison | RepeatedComparison: ...


def compare_classes(
    cache: CachesLike,
    labels: LabelsLike | Sequence[LabelsLike] = None,
    heads: str | Sequence[str] | None = None,
    layers: str | Sequence[str] = DEFAULT_LAYERS,
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
    zeroshot: Sequence[str | os.PathLike[str]] = (),
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: HeadReport = ignore,
) -> Comparison | RepeatedComparison:
    """Train every head for classes on every choice of layers for every task.

    Each result is stored next to the cache as soon as it is available. An interrupted comparison
    resumes where it stopped, and a larger one trains only what is new.

    Parameters
    ----------
    cache : path or FeatureCache, or several
        Worker processes map its features into memory; nothing is copied between processes. Several
        caches of the same images, matched by path, are compared on those that are finished in all
        of them: one split, one leaderboard, paired differences. Which images are copies of each
        other is told from the first.
    labels : LabelTable or path of a CSV, or several, optional
        One task each; by default one, of the labels that came with the images or the folder names.
    heads : str or sequence of str, optional
        Names; a string is split at its commas. The linear heads if not given.
    layers : str or sequence of str
        ``each`` (every layer alone), ``joined`` (all layers concatenated), layer names, and
        ``a+b``. For several caches see `classify.data.sets.layer_words.list_layer_sets`.
    column, labels_level, class_weight, prepare, metric, test_size, seed
        As in `fit`; every head of a task gets the same split.
    repeats : int, optional
        Number of random splits, 2 or more, with `seed` and the seeds that follow it. With `shots`
        the number of draws of each size (default 5), with `folds` the number of repetitions.
    shots : str or sequence of int, optional
        Numbers of training images per class, as ``1,2,4,8,16``, drawn by seed. All draws are tested
        on the same images: the table's own test images, or those held out by `seed`. Each draw
        selects its params among its own images only.
    folds : int, optional
        Number of test folds, 2 or more. Every image is tested once, by a head trained on the other
        folds.
    zeroshot : sequence of path
        Heads of `make_zero_shot_head`, scored beside the trained ones on the tasks of their
        classes.
    jobs : int, optional
        Number of worker processes of one thread each; by default the number of cores.
    progress : callable, optional
        Called with each record, the number of heads done, and the total.
    report : callable
        Called with the same as one `classify.heads.record.HeadProgress`.

    Returns
    -------
    Comparison or RepeatedComparison
        With `repeats`, `shots` or `folds`, a `classify.experiments.repeats.RepeatedComparison`.

    Raises
    ------
    CallError
        If an option is invalid, nothing is to be compared, or no head of a task could be trained.
    ClassifyError, FeaturizeError, FileNotFoundError
        As in `fit`.
    """
    started = time.perf_counter()
    options = make_fit_options(seed, class_weight, prepare, metric)
    words = DEFAULT_HEADS if heads is None else split_words(heads)
    names = list(dict.fromkeys(get_head_spec(word).name for word in words))
    cache = open_caches(cache)
    layer_sets = list_layer_sets(cache, layers)
    single = labels is None or isinstance(labels, (LabelTable, str, os.PathLike))
    label_inputs: Sequence[Any] = [labels] if single else list(labels)  # type: ignore[arg-type]
    specs = [
        TaskSpec(task_labels, column, labels_level, test_size, seed, CLASS)
        for task_labels in label_inputs
    ]
    tables = make_names_unique(
        [keep_shared_images(cache, spec.read_table(cache)) for spec in specs]
    )
    if not (tables and names and layer_sets):
        raise CallError("nothing to compare: give at least one table, one head and one layer")
    untrained = [load_zero_shot_head(path) for path in zeroshot]
    if untrained and list_files(cache):
        raise CallError("--zeroshot goes with one cache, that of its head's backbone")
    if repeats is not None or shots is not None or folds is not None:
        if untrained:
            raise CallError(
                "--zeroshot goes without --repeats, --shots and --folds: its head is the same in "
                "every draw"
            )
        return compare_over_draws(
            cache,
            tables,
            names,
            layer_sets,
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
        for layer_set in layer_sets
    ]
    results_by_cell: dict[int, FitResult] = {}
    untrained_cells = [(head, task) for head in untrained for task in find_tasks_of(head, tasks)]
    n_reused, left_out = train_grid(
        cache, grid, results_by_cell.__setitem__, jobs=jobs, report=report_to(report, progress)
    )
    for head, task in untrained_cells:
        result = score_zero_shot(cache, task, head, options.metric, seed)
        results_by_cell[len(grid)] = result
        grid.append(GridCell(task, head.head, tuple(result.record.layer.split("+")), options))
    rank_of_cell = {
        i: (_signed_metric(r.record, options.metric), -total_dim(cache, grid[i].layers), -i)
        for i, r in results_by_cell.items()
    }
    best_cell_of_task: dict[str, int] = {}
    for i in sorted(rank_of_cell, key=rank_of_cell.__getitem__):
        # Ascending, so the last cell of a task is its best.
        best_cell_of_task[grid[i].task.name] = i
    if len(best_cell_of_task) < len(tasks):
        raise CallError("; ".join(left_out.values()))
    results = _mark_significance(
        {i: results_by_cell[i] for i in sorted(results_by_cell)}, grid, best_cell_of_task, seed
    )
    return Comparison(
        records=[result.record for result in results],
        best_per_task={
            task.name: results_by_cell[best_cell_of_task[task.name]].record for task in tasks
        },
        best=results_by_cell[max(rank_of_cell, key=rank_of_cell.__getitem__)].record,
        results=results,
        tasks=tasks,
        n_reused=n_reused,
        notices=[f"{task.name}: {notice}" for task in tasks for notice in task.notices]
        + _describe_groups(cache, tasks)
        + list(left_out.values())
        + list_notices(results),
        seconds=round(time.perf_counter() - started, 3),
        caches=list_files(cache),
    )


def _describe_groups(cache: FeatureCache, tasks: Sequence[Task]) -> list[str]:
    """Describe groups that are evident, in tasks that have none."""
    return [
        f"{task.name}: {notice}"
        for task in tasks
        if task.groups is None
        for notice in describe_evident_groups(cache, task.rows, task.y)
    ]


def check_data(cache: FeatureCache, found: Comparison) -> dict[str, DataChecks]:
    """Check each task's data, its labels against the predictions of its best head.

    Parameters
    ----------
    cache : FeatureCache
    found : Comparison
        A comparison on `cache`. Of a `CacheSet`, duplicates are looked for in the deepest layer of
        the cache of the task's best head.

    Returns
    -------
    dict of str to DataChecks
        By task name, see `classify.checks.summary.check_task`.
    """
    tasks = {task.name: task for task in found.tasks}
    return {
        name: check_task(
            cache,
            tasks[name],
            result.validation,
            result.test,
            layer=find_deepest_layer(cache, result.record.place),
        )
        for result in found.results
        if result.record is found.best_per_task[name := result.record.task]
    }


def _mark_significance(
    results: dict[int, FitResult], grid: list[GridCell], best: dict[str, int], seed: int
) -> list[FitResult]:
    """Mark the heads not distinguishable from the task's best, and those worse than it."""
    marked_results = dict(results)
    for task_name, best_cell in best.items():
        test, difference_of_cell = results[best_cell].test, {}
        if test is None:
            continue
        for i, result in results.items():
            if grid[i].task.name == task_name and i != best_cell and result.test is not None:
                unit = grid[i].task.units_for(test.rows)
                difference_of_cell[i] = compare_paired(test, result.test, unit, seed=seed)
        significant = apply_holm_correction(
            [difference.p_value for difference in difference_of_cell.values()]
        )
        for (i, difference), is_significant in zip(
            difference_of_cell.items(), significant, strict=True
        ):
            record = replace(
                results[i].record,
                distinguishable=difference.distinguishable,
                worse=is_significant and difference.distinguishable and difference.value > 0,
            )
            marked_results[i] = replace(results[i], record=record)
    return list(marked_results.values())


def _signed_metric(record: HeadResult, metric: SelectionMetric) -> float:
    """Return the validation metric with the sign that makes higher better."""
    value = record.validation_metric
    return -np.inf if value is None else metric.sign * value

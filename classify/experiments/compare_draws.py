"""Compare heads over several draws of training images, with intervals that cover the draws."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from classify.data.features import total_dim
from classify.data.sets.cache_set import list_files
from classify.errors import CallError
from classify.evaluation.metrics import estimate_proportion
from classify.evaluation.paired import Difference, apply_holm_correction, compare_correctness
from classify.evaluation.repeated import RepeatedMean, average_over_draws, average_over_splits
from classify.experiments.draws import Draw, DrawPlan, DrawSpec, plan_draws
from classify.experiments.grid import GridCell, train_grid
from classify.experiments.repeats import HeadSummary, RepeatedComparison
from classify.experiments.results import FitOptions, FitResult
from classify.heads.record import HeadReport, HeadResult
from classify.labels.folders import TEST
from classify.labels.table import LabelTable
from classify.training.train import GRID_EDGE
from featurize.cache.reader import FeatureCache

RUN_METRICS = ("balanced_accuracy", "macro_f1", "log_loss")


@dataclass(frozen=True, eq=False)
class DrawResult:
    """Result of one head on one draw, as small as the summary allows.

    Attributes
    ----------
    record : HeadResult
    correct : bool array of shape (n,)
        Whether each test image is predicted correctly, by row.
    """

    record: HeadResult
    correct: np.ndarray

    @classmethod
    def from_result(cls, result: FitResult) -> "DrawResult":
        """Reduce the result of a fit that has test images.

        Parameters
        ----------
        result : FitResult

        Returns
        -------
        DrawResult
        """
        assert result.test is not None  # every draw has test images
        return cls(result.record, result.test.correct[np.argsort(result.test.rows, kind="stable")])


def compare_over_draws(
    cache: FeatureCache,
    tables: Sequence[LabelTable],
    heads: Sequence[str],
    layer_sets: Sequence[tuple[str, ...]],
    spec: DrawSpec,
    *,
    options: FitOptions,
    test_size: float,
    jobs: int | None,
    report: HeadReport,
) -> RepeatedComparison:
    """Compare heads on every draw, and summarise them over the draws.

    It is the part of `classify.compare` that follows once all options are resolved. Params are
    selected inside every draw, on its training images alone. Every head gets the same draws, and
    the first split is that of a comparison without repeats.

    Parameters
    ----------
    cache : FeatureCache
    tables : sequence of LabelTable
        One task each.
    heads : sequence of str
    layer_sets : sequence of tuple of str
        Layers of one tuple are joined.
    spec : DrawSpec
    options : FitOptions
        Their seed is replaced by each draw's.
    test_size : float
        Fraction of each class that a split holds out.
    jobs : int, optional
        Number of worker processes; by default the number of cores.
    report : callable
        Called with a `classify.heads.record.HeadProgress` for each result.

    Returns
    -------
    RepeatedComparison

    Raises
    ------
    CallError
        If no head of a task could be trained.
    ClassifyError
        As `classify.experiments.draws.plan_draws` does.
    """
    started = time.perf_counter()
    plans = [plan_draws(cache, table, spec, test_size) for table in tables]
    # Draw by draw: a draw's heads share statistics of its features.
    grid = [
        (
            number,
            draw,
            GridCell(draw.task, head_name, layer_names, replace(options, seed=draw.seed)),
        )
        for number, plan in enumerate(plans)
        for draw in plan.draws
        for head_name in heads
        for layer_names in layer_sets
    ]
    results: dict[int, DrawResult] = {}
    notice_counts: dict[str, Counter[str]] = defaultdict(Counter)

    def handle_result(i: int, result: FitResult) -> None:
        results[i] = DrawResult.from_result(result)
        prefix = f"{result.record.head} on {result.record.place}: "
        for notice in result.notices:
            # Which setting it was differs from draw to draw.
            kind = f"a setting {GRID_EDGE}" if notice.endswith(GRID_EDGE) else notice
            notice_counts[f"{result.record.task}: {result.record.head}"][
                kind.removeprefix(prefix)
            ] += 1

    n_reused, left_out = train_grid(
        cache,
        [cell for _, _, cell in grid],
        handle_result,
        persist=False,
        jobs=jobs,
        report=report,
    )
    left_out_heads = {(grid[i][0], grid[i][2].head, grid[i][2].layers) for i in left_out}
    rows: list[HeadSummary] = []
    best_per_task: dict[str, HeadSummary] = {}
    for number, plan in enumerate(plans):
        results_by_head: dict[
            tuple[str, tuple[str, ...], int | None], list[tuple[Draw, DrawResult]]
        ] = {}
        for head_name in heads:
            for layer_names in layer_sets:
                if (number, head_name, layer_names) not in left_out_heads:
                    for shots in plan.overlap:
                        results_by_head[head_name, layer_names, shots] = []
        for i, (plan_number, draw, cell) in enumerate(grid):
            if plan_number == number and (cell.head, cell.layers, draw.shots) in results_by_head:
                results_by_head[cell.head, cell.layers, draw.shots].append((draw, results[i]))
        if not results_by_head:
            raise CallError("; ".join(dict.fromkeys(left_out.values())))
        summaries, best = _summarise_task(cache, plan, spec, results_by_head)
        rows += summaries
        best_per_task |= {} if best is None else {plan.task.name: best}
    return RepeatedComparison(
        rows=rows,
        best_per_task=best_per_task,
        kind=spec.kind,
        seeds=spec.seeds,
        shots=spec.shots,
        folds=spec.folds,
        tasks=[plan.task for plan in plans],
        n_heads=len(results),
        n_reused=n_reused,
        notices=[
            f"{draw_plan.task.name}: {notice}"
            for draw_plan in plans
            for notice in draw_plan.notices
        ]
        + list(dict.fromkeys(left_out.values()))
        + [
            f"{head}: {notice} (in {count:,} of {_count_trained(head, results):,} trainings)"
            for head, counts in notice_counts.items()
            for notice, count in counts.items()
        ],
        seconds=round(time.perf_counter() - started, 3),
        caches=list_files(cache),
    )


def _count_trained(head: str, results: dict[int, DrawResult]) -> int:
    """Return on how many draws a head, named as ``task: head``, was trained."""
    return sum(head == f"{result.record.task}: {result.record.head}" for result in results.values())


ResultsByHead = dict[tuple[str, tuple[str, ...], int | None], list[tuple[Draw, DrawResult]]]


def _summarise_task(
    cache: FeatureCache, plan: DrawPlan, spec: DrawSpec, results_by_head: ResultsByHead
) -> tuple[list[HeadSummary], HeadSummary | None]:
    """Summarise a task's heads; also return the best of them by validation."""
    rows = {
        key: _summarise_head(plan, spec, key[2], draw_results)
        for key, draw_results in results_by_head.items()
    }
    max_shots = max(spec.shots, default=None)
    validated = [
        (row.validation, -total_dim(cache, key[1]), -position, key)
        for position, (key, row) in enumerate(rows.items())
        if key[2] == max_shots and row.validation is not None
    ]
    if not validated:
        return list(rows.values()), None
    head_name, layer_names, _ = max(validated)[3]
    for shots in plan.overlap:
        other_keys = [
            key for key in rows if key[2] == shots and key[:2] != (head_name, layer_names)
        ]
        differences = [
            _compare_with_best(
                plan,
                spec,
                shots,
                results_by_head[head_name, layer_names, shots],
                results_by_head[key],
            )
            for key in other_keys
        ]
        significant = apply_holm_correction([difference.p_value for difference in differences])
        for key, is_significant, difference in zip(
            other_keys, significant, differences, strict=True
        ):
            worse = is_significant and difference.distinguishable and difference.value > 0
            rows[key] = replace(rows[key], difference=difference, worse=worse)
    return list(rows.values()), rows[head_name, layer_names, max_shots]


def _summarise_head(
    plan: DrawPlan, spec: DrawSpec, shots: int | None, draw_results: list[tuple[Draw, DrawResult]]
) -> HeadSummary:
    """Summarise one head on one choice of layers over its draws."""
    records = [result.record for _, result in draw_results]
    if spec.kind == "folds":
        correct, unit = _pool_folds(draw_results)
        value, (low, high) = estimate_proportion(correct, unit, spec.seeds[0])
        n_test = len(correct)
    else:
        mean = _average_over_draws(
            plan,
            shots,
            [draw for draw, _ in draw_results],
            [result.correct for _, result in draw_results],
        )
        value, low, high = mean.estimate.value, mean.estimate.low, mean.estimate.high
        n_test = round(np.mean([record.n_test for record in records]))
    validations = [record.validation for record in records if record.validation is not None]
    return HeadSummary(
        task=records[0].task,
        head=records[0].head,
        layer=records[0].layer,
        cache=records[0].cache,
        columns=records[0].columns,
        row_bytes=records[0].row_bytes,
        gmacs=records[0].gmacs,
        shots=shots,
        n_train=round(np.mean([record.n_train for record in records])),
        n_test=n_test,
        accuracy=value,
        accuracy_ci=(max(0.0, low), min(1.0, high)),
        accuracy_std=float(np.std([result.correct.mean() for _, result in draw_results], ddof=1)),
        validation=float(np.mean(validations)) if len(validations) == len(records) else None,
        difference=None,
        worse=None,
        runs=[_run_to_dict(draw, result.record) for draw, result in draw_results],
    )


def _run_to_dict(draw: Draw, record: HeadResult) -> dict[str, Any]:
    """Return one entry of `HeadSummary.runs`."""
    return {
        "seed": draw.seed,
        "fold": draw.fold,
        "n_train": record.n_train,
        "n_test": record.n_test,
        "settings": record.settings,
        "validation": record.validation,
        "accuracy": record.accuracy,
    } | {name: record.scores.get(name) for name in RUN_METRICS}


def _compare_with_best(
    plan: DrawPlan,
    spec: DrawSpec,
    shots: int | None,
    best: list[tuple[Draw, DrawResult]],
    other: list[tuple[Draw, DrawResult]],
) -> Difference:
    """Return by how much the best head is ahead of another, draw by draw."""
    if spec.kind == "folds":
        correct, unit = _pool_folds(best)
        return compare_correctness(correct, _pool_folds(other)[0], unit, seed=spec.seeds[0])
    differences = [
        a.correct.astype(float) - b.correct for (_, a), (_, b) in zip(best, other, strict=True)
    ]
    mean = _average_over_draws(plan, shots, [draw for draw, _ in best], differences)
    value, low, high = mean.estimate.value, mean.estimate.low, mean.estimate.high
    return Difference(value, low, high, mean.p_value, mean.p_value < 0.05)


def _average_over_draws(
    plan: DrawPlan, shots: int | None, draws: list[Draw], values: list[np.ndarray]
) -> RepeatedMean:
    """Average a number that is given for each test image of each draw.

    A metric that is no mean over images can use `average_over_splits` in the same way. Over shots
    it would need the variance that `average_over_draws` estimates from the images.
    """
    if shots is None:
        step = 1 / float(np.mean([len(column) for column in values]))
        return average_over_splits(np.array([c.mean() for c in values]), plan.overlap[None], step)
    return average_over_draws(np.stack(values), _get_test_units(draws[0]), plan.overlap[shots])


def _get_test_units(draw: Draw) -> np.ndarray:
    """Return the units of a draw's test images."""
    units: np.ndarray = draw.task.units[draw.task.split == TEST]
    return units


def _pool_folds(draw_results: list[tuple[Draw, DrawResult]]) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are predicted correctly over all folds, and their units."""
    correct = np.concatenate([result.correct for _, result in draw_results])
    return correct, np.concatenate([_get_test_units(draw) for draw, _ in draw_results])

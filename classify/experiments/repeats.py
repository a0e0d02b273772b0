"""Compare heads over several draws of training images, and say how sure their scores are then."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from classify.data.features import total_dim
from classify.data.folder_labels import TEST
from classify.data.labels import LabelTable
from classify.data.tasks import Task
from classify.errors import CallError
from classify.evaluation.metrics import Interval, estimate_proportion
from classify.evaluation.paired import Difference, apply_holm_correction, compare_correctness
from classify.evaluation.repeated import RepeatedMean, average_over_draws, average_over_splits
from classify.experiments.draws import Draw, DrawPlan, DrawSpec, plan_draws
from classify.experiments.grid import GridCell, train_grid
from classify.experiments.results import FitOptions, FitResult
from classify.heads.record import HeadReport, HeadResult
from featurize.cache.reader import FeatureCache

INTERVAL_NOTES = {
    "splits": (
        "Intervals cover the draw of training images as well as that of test images, corrected "
        "for splits that share images (Nadeau and Bengio, 2003)."
    ),
    "folds": (
        "Every image is tested once. Intervals cover the draw of test images, and not that of "
        "training images: --repeats draws the folds anew."
    ),
    "repeated folds": (
        "Every image is tested once in each repeat. Intervals cover the draw of training images "
        "as well as that of test images, corrected for folds that share images (Nadeau and "
        "Bengio, 2003; Bouckaert and Frank, 2004)."
    ),
    "shots": (
        "Intervals cover the draw of training images, by the seeds, as well as that of test "
        "images, which are the same for all."
    ),
}
"""What the intervals of each kind of draws cover."""
RUN_METRICS = ("balanced_accuracy", "macro_f1", "log_loss")


@dataclass(frozen=True)
class HeadSummary:
    """How one head did on one choice of layers, over all draws.

    Attributes
    ----------
    task, head, layer : str
        As in `classify.heads.record.HeadResult`.
    shots : int, or None
        So many training images of each class.
    n_train, n_test : int
        Images learnt from and tested on in a draw, in the mean. With folds that are drawn once,
        `n_test` is all images.
    accuracy : float
        The mean over the draws; with folds that are drawn once, over all images.
    accuracy_ci : (float, float)
        95 % interval, see `INTERVAL_NOTES`.
    accuracy_std : float
        The standard deviation over the draws: how far single ones are apart.
    validation : float, or None
        The mean over the draws; None where a draw could not be validated.
    difference : Difference, or None
        By how much the task's best head is ahead, on the same draws; None for itself, and where
        there is no best.
    worse : bool, or None
        Whether it is so by more than chance, allowing for the number of heads (Holm's correction).
    runs : list of dict
        By draw: ``seed``, ``fold``, and of its record ``n_train``, ``n_test``, ``settings``,
        ``validation`` and the scores.
    """

    task: str
    head: str
    layer: str
    shots: int | None
    n_train: int
    n_test: int
    accuracy: float
    accuracy_ci: Interval
    accuracy_std: float
    validation: float | None
    difference: Difference | None
    worse: bool | None
    runs: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The same as a flat dict of what JSON knows.

        ``difference`` is a number, and ``difference_ci``, ``p_value`` and ``distinguishable`` stand
        beside it.
        """
        found = asdict(self) | {"accuracy_ci": list(self.accuracy_ci)}
        apart = self.difference
        return found | {
            "difference": None if apart is None else apart.value,
            "difference_ci": None if apart is None else [apart.low, apart.high],
            "p_value": None if apart is None else apart.p_value,
            "distinguishable": None if apart is None else apart.distinguishable,
        }


@dataclass(frozen=True)
class RepeatedComparison:
    """What a comparison over several draws found.

    Attributes
    ----------
    rows : list of HeadSummary
        By task, head, layers and shots, in the order asked for.
    best_per_task : dict of str to Summary
        Each task's highest mean validation; of equals the narrower features, then the earlier. With
        shots that is among the rows of most shots. A task of which nothing could be validated has
        none.
    kind : str
        What was drawn: ``splits``, ``folds``, ``repeated folds`` or ``shots``.
    seeds, shots : tuple of int
    folds : int, or None
    tasks : list of Task
    heads : int
        How many were trained in all, over the draws.
    recalled : int
        How many of them had been trained before, and were found beside the cache.
    notices : list of str
        What a user should know.
    seconds : float
    """

    rows: list[HeadSummary]
    best_per_task: dict[str, HeadSummary]
    kind: str
    seeds: tuple[int, ...]
    shots: tuple[int, ...]
    folds: int | None
    tasks: list[Task]
    n_heads: int
    n_reused: int
    notices: list[str]
    seconds: float

    @property
    def interval_note(self) -> str:
        """What the intervals cover, in a sentence."""
        return INTERVAL_NOTES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """As what JSON knows.

        ``kind``, ``seeds``, ``shots``, ``folds``; ``intervals``, the sentence that says what they
        cover; ``rows`` as `HeadSummary.to_dict` gives them; ``best_per_task`` likewise, by task.
        """
        return {
            "kind": self.kind,
            "seeds": list(self.seeds),
            "shots": list(self.shots) or None,
            "folds": self.folds,
            "intervals": self.interval_note,
            "rows": [row.to_dict() for row in self.rows],
            "best_per_task": {task: row.to_dict() for task, row in self.best_per_task.items()},
        }


@dataclass(frozen=True, eq=False)
class DrawResult:
    """What is held in memory of one head on one draw: its record, and which answers are right.

    Attributes
    ----------
    record : HeadResult
    right : bool array of shape (n,)
        By row of the draw's test images.
    """

    record: HeadResult
    correct: np.ndarray

    @classmethod
    def from_result(cls, result: FitResult) -> "DrawResult":
        """Take it from a result that was tested."""
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
    """`classify.compare` over several draws, once everything is looked up.

    Choices are made inside every draw, on its training images alone. The same seeds give every
    head the same draws, and the first split is that of a comparison without repeats.

    Raises
    ------
    ClassifyError
        As `classify.experiments.draws.plan_draws` does; CallError where no head of a task could be
        trained.
    """
    started = time.perf_counter()
    plans = [plan_draws(cache, table, spec, test_size) for table in tables]
    # One draw after the other: a draw's heads share what is computed of its features.
    grid = [
        (number, draw, GridCell(draw.task, kind, names, replace(options, seed=draw.seed)))
        for number, planned in enumerate(plans)
        for draw in planned.draws
        for kind in heads
        for names in layer_sets
    ]
    found: dict[int, DrawResult] = {}
    said: dict[str, Counter[str]] = defaultdict(Counter)

    def arrived(i: int, result: FitResult) -> None:
        found[i] = DrawResult.from_result(result)
        start = f"{result.record.head} on {result.record.layer}: "
        for notice in result.notices:
            said[f"{result.record.task}: {result.record.head}"][notice.removeprefix(start)] += 1

    recalled, left_out = train_grid(
        cache,
        [cell for _, _, cell in grid],
        arrived,
        persist=False,
        jobs=jobs,
        report=report,
    )
    gone = {(grid[i][0], grid[i][2].head, grid[i][2].layers) for i in left_out}
    rows: list[HeadSummary] = []
    best_per_task: dict[str, HeadSummary] = {}
    for number, planned in enumerate(plans):
        series: dict[tuple[str, tuple[str, ...], int | None], list[tuple[Draw, DrawResult]]] = {}
        for kind in heads:
            for names in layer_sets:
                if (number, kind, names) not in gone:
                    for shots in planned.overlap:
                        series[kind, names, shots] = []
        for i, (of, draw, cell) in enumerate(grid):
            if of == number and (cell.head, cell.layers, draw.shots) in series:
                series[cell.head, cell.layers, draw.shots].append((draw, found[i]))
        if not series:
            raise CallError("; ".join(dict.fromkeys(left_out.values())))
        summed, best = _summarise_task(cache, planned, spec, series)
        rows += summed
        best_per_task |= {} if best is None else {planned.task.name: best}
    return RepeatedComparison(
        rows=rows,
        best_per_task=best_per_task,
        kind=spec.kind,
        seeds=spec.seeds,
        shots=spec.shots,
        folds=spec.folds,
        tasks=[planned.task for planned in plans],
        n_heads=len(found),
        n_reused=recalled,
        notices=[f"{p.task.name}: {notice}" for p in plans for notice in p.notices]
        + list(dict.fromkeys(left_out.values()))
        + [
            f"{head}: {notice} (in {count:,} of {_count_trained(head, found):,} trainings)"
            for head, counts in said.items()
            for notice, count in counts.items()
        ],
        seconds=round(time.perf_counter() - started, 3),
    )


def _count_trained(head: str, found: dict[int, DrawResult]) -> int:
    return sum(head == f"{run.record.task}: {run.record.head}" for run in found.values())


ResultsByHead = dict[tuple[str, tuple[str, ...], int | None], list[tuple[Draw, DrawResult]]]


def _summarise_task(
    cache: FeatureCache, plan: DrawPlan, spec: DrawSpec, series: ResultsByHead
) -> tuple[list[HeadSummary], HeadSummary | None]:
    """A task's rows, and the best of them by validation."""
    rows = {key: _summarise_head(plan, spec, key[2], runs) for key, runs in series.items()}
    most = max(spec.shots, default=None)
    validated = [
        (row.validation, -total_dim(cache, key[1]), -place, key)
        for place, (key, row) in enumerate(rows.items())
        if key[2] == most and row.validation is not None
    ]
    if not validated:
        return list(rows.values()), None
    kind, names, _ = max(validated)[3]
    for shots in plan.overlap:
        others = [key for key in rows if key[2] == shots and key[:2] != (kind, names)]
        ahead = [
            _compare_with_best(plan, spec, shots, series[kind, names, shots], series[key])
            for key in others
        ]
        apart = apply_holm_correction([difference.p_value for difference in ahead])
        for key, one, difference in zip(others, apart, ahead, strict=True):
            worse = one and difference.distinguishable and difference.value > 0
            rows[key] = replace(rows[key], difference=difference, worse=worse)
    return list(rows.values()), rows[kind, names, most]


def _summarise_head(
    plan: DrawPlan, spec: DrawSpec, shots: int | None, runs: list[tuple[Draw, DrawResult]]
) -> HeadSummary:
    records = [run.record for _, run in runs]
    if spec.kind == "folds":
        right, unit = _pool_folds(runs)
        value, (low, high) = estimate_proportion(right, unit, spec.seeds[0])
        n_test = len(right)
    else:
        found = _average_over_draws(
            plan, shots, [draw for draw, _ in runs], [run.correct for _, run in runs]
        )
        value, low, high = found.estimate.value, found.estimate.low, found.estimate.high
        n_test = round(np.mean([record.n_test for record in records]))
    validations = [record.validation for record in records if record.validation is not None]
    return HeadSummary(
        task=records[0].task,
        head=records[0].head,
        layer=records[0].layer,
        shots=shots,
        n_train=round(np.mean([record.n_train for record in records])),
        n_test=n_test,
        accuracy=value,
        accuracy_ci=(max(0.0, low), min(1.0, high)),
        accuracy_std=float(np.std([run.correct.mean() for _, run in runs], ddof=1)),
        validation=float(np.mean(validations)) if len(validations) == len(records) else None,
        difference=None,
        worse=None,
        runs=[_run_to_dict(draw, run.record) for draw, run in runs],
    )


def _run_to_dict(draw: Draw, record: HeadResult) -> dict[str, Any]:
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
    """By how much one head is ahead of another, draw by draw."""
    if spec.kind == "folds":
        right, unit = _pool_folds(best)
        return compare_correctness(right, _pool_folds(other)[0], unit, seed=spec.seeds[0])
    apart = [
        a.correct.astype(float) - b.correct for (_, a), (_, b) in zip(best, other, strict=True)
    ]
    found = _average_over_draws(plan, shots, [draw for draw, _ in best], apart)
    value, low, high = found.estimate.value, found.estimate.low, found.estimate.high
    return Difference(value, low, high, found.p_value, found.p_value < 0.05)


def _average_over_draws(
    plan: DrawPlan, shots: int | None, draws: list[Draw], values: list[np.ndarray]
) -> RepeatedMean:
    """The mean of a number for each test image of each draw.

    A metric that is no mean over images goes the same way over splits: `average_over_splits` takes
    whatever each draw gave. Over shots it needs the variance that `average_over_draws` takes from
    the images.
    """
    if shots is None:
        step = 1 / float(np.mean([len(column) for column in values]))
        return average_over_splits(np.array([c.mean() for c in values]), plan.overlap[None], step)
    return average_over_draws(np.stack(values), _get_test_units(draws[0]), plan.overlap[shots])


def _get_test_units(draw: Draw) -> np.ndarray:
    units: np.ndarray = draw.task.units[draw.task.split == TEST]
    return units


def _pool_folds(runs: list[tuple[Draw, DrawResult]]) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are right over all folds, and the units of the images."""
    right = np.concatenate([run.correct for _, run in runs])
    return right, np.concatenate([_get_test_units(draw) for draw, _ in runs])

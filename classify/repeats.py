"""Compare heads over several draws of training images, and say how sure their scores are then."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from classify.draws import Draw, Plan, Wanted, plan
from classify.errors import CallError
from classify.features import dim
from classify.grid import Cell, Progress, train_cells
from classify.labels import TEST, LabelTable
from classify.records import Record
from classify.repetition import Mean, corrected, crossed
from classify.results import FitOptions, Result
from classify.scores import Difference, Interval, holm, paired_answers, share
from classify.tasks import Task
from featurize.cache import FeatureCache

COVERS = {
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
SCORES = ("balanced_accuracy", "macro_f1", "log_loss")


@dataclass(frozen=True)
class Summary:
    """How one head did on one choice of layers, over all draws.

    Attributes
    ----------
    task, head, layer : str
        As in `classify.records.Record`.
    shots : int, or None
        So many training images of each class.
    n_train, n_test : int
        Images learnt from and tested on in a draw, in the mean. With folds that are drawn once,
        `n_test` is all images.
    accuracy : float
        The mean over the draws; with folds that are drawn once, over all images.
    accuracy_ci : (float, float)
        95 % interval, see `COVERS`.
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

    def to_json(self) -> dict[str, Any]:
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
class Repeated:
    """What a comparison over several draws found.

    Attributes
    ----------
    rows : list of Summary
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

    rows: list[Summary]
    best_per_task: dict[str, Summary]
    kind: str
    seeds: tuple[int, ...]
    shots: tuple[int, ...]
    folds: int | None
    tasks: list[Task]
    heads: int
    recalled: int
    notices: list[str]
    seconds: float

    @property
    def covers(self) -> str:
        """What the intervals cover, in a sentence."""
        return COVERS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """As what JSON knows.

        ``kind``, ``seeds``, ``shots``, ``folds``; ``intervals``, the sentence that says what they
        cover; ``rows`` as `Summary.to_json` gives them; ``best_per_task`` likewise, by task.
        """
        return {
            "kind": self.kind,
            "seeds": list(self.seeds),
            "shots": list(self.shots) or None,
            "folds": self.folds,
            "intervals": self.covers,
            "rows": [row.to_json() for row in self.rows],
            "best_per_task": {task: row.to_json() for task, row in self.best_per_task.items()},
        }


@dataclass(frozen=True, eq=False)
class Run:
    """What is held in memory of one head on one draw: its record, and which answers are right.

    Attributes
    ----------
    record : Record
    right : bool array of shape (n,)
        By row of the draw's test images.
    """

    record: Record
    right: np.ndarray

    @classmethod
    def of(cls, result: Result) -> "Run":
        """Take it from a result that was tested."""
        assert result.test is not None  # every draw has test images
        return cls(result.record, result.test.correct[np.argsort(result.test.rows, kind="stable")])


def repeated(
    cache: FeatureCache,
    tables: Sequence[LabelTable],
    kinds: Sequence[str],
    sets: Sequence[tuple[str, ...]],
    wanted: Wanted,
    *,
    options: FitOptions,
    test_size: float,
    jobs: int | None,
    progress: Progress | None,
) -> Repeated:
    """`classify.compare` over several draws, once everything is looked up.

    Choices are made inside every draw, on its training images alone. The same seeds give every
    head the same draws, and the first split is that of a comparison without repeats.

    Raises
    ------
    ClassifyError
        As `classify.draws.plan` does; CallError where no head of a task could be trained.
    """
    started = time.perf_counter()
    plans = [plan(cache, table, wanted, test_size) for table in tables]
    # One draw after the other: a draw's heads share what is computed of its features.
    grid = [
        (number, draw, Cell(draw.task, kind, names, replace(options, seed=draw.seed)))
        for number, planned in enumerate(plans)
        for draw in planned.draws
        for kind in kinds
        for names in sets
    ]
    found: dict[int, Run] = {}
    said: dict[str, Counter[str]] = defaultdict(Counter)

    def arrived(i: int, result: Result) -> None:
        found[i] = Run.of(result)
        start = f"{result.record.head} on {result.record.layer}: "
        for notice in result.notices:
            said[f"{result.record.task}: {result.record.head}"][notice.removeprefix(start)] += 1

    recalled, left_out = train_cells(
        cache,
        [cell for _, _, cell in grid],
        arrived,
        lasting=False,
        jobs=jobs,
        progress=progress,
    )
    gone = {(grid[i][0], grid[i][2].head, grid[i][2].layers) for i in left_out}
    rows: list[Summary] = []
    best_per_task: dict[str, Summary] = {}
    for number, planned in enumerate(plans):
        series: dict[tuple[str, tuple[str, ...], int | None], list[tuple[Draw, Run]]] = {}
        for kind in kinds:
            for names in sets:
                if (number, kind, names) not in gone:
                    for shots in planned.again:
                        series[kind, names, shots] = []
        for i, (of, draw, cell) in enumerate(grid):
            if of == number and (cell.head, cell.layers, draw.shots) in series:
                series[cell.head, cell.layers, draw.shots].append((draw, found[i]))
        if not series:
            raise CallError("; ".join(dict.fromkeys(left_out.values())))
        summed, best = _summed(cache, planned, wanted, series)
        rows += summed
        best_per_task |= {} if best is None else {planned.whole.name: best}
    return Repeated(
        rows=rows,
        best_per_task=best_per_task,
        kind=wanted.kind,
        seeds=wanted.seeds,
        shots=wanted.shots,
        folds=wanted.folds,
        tasks=[planned.whole for planned in plans],
        heads=len(found),
        recalled=recalled,
        notices=[f"{p.whole.name}: {notice}" for p in plans for notice in p.notices]
        + list(dict.fromkeys(left_out.values()))
        + [
            f"{head}: {notice} (in {count:,} of {_trained(head, found):,} trainings)"
            for head, counts in said.items()
            for notice, count in counts.items()
        ],
        seconds=round(time.perf_counter() - started, 3),
    )


def _trained(head: str, found: dict[int, Run]) -> int:
    return sum(head == f"{run.record.task}: {run.record.head}" for run in found.values())


Series = dict[tuple[str, tuple[str, ...], int | None], list[tuple[Draw, Run]]]


def _summed(
    cache: FeatureCache, planned: Plan, wanted: Wanted, series: Series
) -> tuple[list[Summary], Summary | None]:
    """A task's rows, and the best of them by validation."""
    rows = {key: _row(planned, wanted, key[2], runs) for key, runs in series.items()}
    most = max(wanted.shots, default=None)
    validated = [
        (row.validation, -dim(cache, key[1]), -place, key)
        for place, (key, row) in enumerate(rows.items())
        if key[2] == most and row.validation is not None
    ]
    if not validated:
        return list(rows.values()), None
    kind, names, _ = max(validated)[3]
    for shots in planned.again:
        others = [key for key in rows if key[2] == shots and key[:2] != (kind, names)]
        ahead = [
            _ahead(planned, wanted, shots, series[kind, names, shots], series[key])
            for key in others
        ]
        apart = holm([difference.p_value for difference in ahead])
        for key, one, difference in zip(others, apart, ahead, strict=True):
            worse = one and difference.distinguishable and difference.value > 0
            rows[key] = replace(rows[key], difference=difference, worse=worse)
    return list(rows.values()), rows[kind, names, most]


def _row(planned: Plan, wanted: Wanted, shots: int | None, runs: list[tuple[Draw, Run]]) -> Summary:
    records = [run.record for _, run in runs]
    if wanted.kind == "folds":
        right, unit = _pooled(runs)
        value, (low, high) = share(right, unit, wanted.seeds[0])
        n_test = len(right)
    else:
        found = _mean(planned, shots, [draw for draw, _ in runs], [run.right for _, run in runs])
        value, low, high = found.estimate.value, found.estimate.low, found.estimate.high
        n_test = round(np.mean([record.n_test for record in records]))
    validations = [record.validation for record in records if record.validation is not None]
    return Summary(
        task=records[0].task,
        head=records[0].head,
        layer=records[0].layer,
        shots=shots,
        n_train=round(np.mean([record.n_train for record in records])),
        n_test=n_test,
        accuracy=value,
        accuracy_ci=(max(0.0, low), min(1.0, high)),
        accuracy_std=float(np.std([run.right.mean() for _, run in runs], ddof=1)),
        validation=float(np.mean(validations)) if len(validations) == len(records) else None,
        difference=None,
        worse=None,
        runs=[_told(draw, run.record) for draw, run in runs],
    )


def _told(draw: Draw, record: Record) -> dict[str, Any]:
    return {
        "seed": draw.seed,
        "fold": draw.fold,
        "n_train": record.n_train,
        "n_test": record.n_test,
        "settings": record.settings,
        "validation": record.validation,
        "accuracy": record.accuracy,
    } | {name: record.scores.get(name) for name in SCORES}


def _ahead(
    planned: Plan,
    wanted: Wanted,
    shots: int | None,
    best: list[tuple[Draw, Run]],
    other: list[tuple[Draw, Run]],
) -> Difference:
    """By how much one head is ahead of another, draw by draw."""
    if wanted.kind == "folds":
        right, unit = _pooled(best)
        return paired_answers(right, _pooled(other)[0], unit, seed=wanted.seeds[0])
    apart = [a.right.astype(float) - b.right for (_, a), (_, b) in zip(best, other, strict=True)]
    found = _mean(planned, shots, [draw for draw, _ in best], apart)
    value, low, high = found.estimate.value, found.estimate.low, found.estimate.high
    return Difference(value, low, high, found.p_value, found.p_value < 0.05)


def _mean(planned: Plan, shots: int | None, draws: list[Draw], numbers: list[np.ndarray]) -> Mean:
    """The mean of a number for each test image of each draw.

    A score that is no mean over images goes the same way over splits: `corrected` takes whatever
    each draw gave. Over shots it needs the variance that `crossed` takes from the images.
    """
    if shots is None:
        step = 1 / float(np.mean([len(column) for column in numbers]))
        return corrected(np.array([c.mean() for c in numbers]), planned.again[None], step)
    return crossed(np.stack(numbers), _tested_units(draws[0]), planned.again[shots])


def _tested_units(draw: Draw) -> np.ndarray:
    units: np.ndarray = draw.task.units[draw.task.split == TEST]
    return units


def _pooled(runs: list[tuple[Draw, Run]]) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are right over all folds, and the units of the images."""
    right = np.concatenate([run.right for _, run in runs])
    return right, np.concatenate([_tested_units(draw) for draw, _ in runs])

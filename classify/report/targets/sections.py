"""The sections of the report whose labels are not one class, one for each task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from classify.data.sets.cache_set import label_joined_layers
from classify.data.targets.task import TargetTask
from classify.evaluation.targets.predictions import TargetPredictions
from classify.evaluation.targets.titles import format_metric_name
from classify.experiments.targets.compare import TargetComparison, rank_target_results
from classify.experiments.targets.results import TargetFit
from classify.heads.targets.record import TargetResult
from classify.kinds import GRADE, KIND_NOUNS, MULTI, NUMBER
from classify.labels.folders import TEST, TRAIN, VAL
from classify.report.charts.base import Chart
from classify.report.charts.confusion import chart_confusion
from classify.report.charts.residuals import chart_residuals
from classify.report.galleries import Gallery, Tile, TileGroup
from classify.report.thumbnails import GALLERY_PIXELS, Thumbnails
from featurize.cache.reader import FeatureCache

MAX_TILES = 18
MAX_LABELS = 200  # rows of the table of labels
SPLIT_NAMES = ((TRAIN, "training"), (VAL, "validation"), (TEST, "test"))


@dataclass(frozen=True)
class TargetLine:
    """One row of the leaderboard.

    Attributes
    ----------
    mark : str
        ``best``, ``equal``, ``worse``, ``baseline`` or empty.
    head, layer, setting : str
    validation, test : str
        The metric, formatted.
    interval : str
    """

    mark: str
    head: str
    layer: str
    setting: str
    validation: str
    test: str
    interval: str


@dataclass(frozen=True)
class TargetSection:
    """One task's section of the page.

    Attributes
    ----------
    id : str
        Of the section; all ids inside begin with it.
    name, summary, kind, metric : str
    best : TargetResult
    best_place : str
        Its layers, short enough for a sentence.
    value, interval : str
        Its metric and interval, formatted.
    guess : str
        What a guess without an image has.
    n_heads, n_equal : int
    rows : list of TargetLine
        By validation, the best first.
    metrics : list of (str, str, str)
        Name, value and interval of every metric of the best head.
    charts : list of Chart
    labels : list of (str, dict)
        Of several labels: the scores of each, the worst first.
    n_labels : int
    galleries : list of Gallery
    notices : list of str
    """

    id: str
    name: str
    summary: str
    kind: str
    metric: str
    best: TargetResult
    best_place: str
    value: str
    interval: str
    guess: str
    n_heads: int
    n_equal: int
    rows: list[TargetLine]
    metrics: list[tuple[str, str, str]]
    charts: list[Chart]
    labels: list[tuple[str, dict[str, Any]]]
    n_labels: int
    galleries: list[Gallery]
    notices: list[str]
    map_rows: list[int] = field(default_factory=list)
    template: str = "target.html"

    @property
    def answer(self) -> str:
        """The most important number."""
        return self.value

    @property
    def answer_note(self) -> str:
        """What it is, in a few words."""
        return (
            f"{self.metric}: {self.best.head} on {self.best_place}; without an image {self.guess}"
        )


def build_target_sections(
    cache: FeatureCache, comparison: TargetComparison, thumbnails: Thumbnails
) -> Iterator[TargetSection]:
    """Build the section of each task, in the comparison's order.

    Parameters
    ----------
    cache : FeatureCache
    comparison : TargetComparison
    thumbnails : Thumbnails

    Yields
    ------
    TargetSection
    """
    joined = label_joined_layers(cache)
    for number, task in enumerate(comparison.tasks, 1):
        best = comparison.best_per_task[task.name]
        results = [result for result in comparison.results if result.record.task == task.name]
        (best_result,) = (result for result in results if result.record is best)
        yield _build_section(
            f"task-{number}", cache, task, results, best_result, thumbnails, joined, comparison
        )


def _build_section(
    id: str,
    cache: FeatureCache,
    task: TargetTask,
    results: Sequence[TargetFit],
    best: TargetFit,
    thumbnails: Thumbnails,
    joined: Mapping[str, str],
    comparison: TargetComparison,
) -> TargetSection:
    record = best.record
    records = [result.record for result in results]
    predictions = best.validation if best.test is None else best.test
    charts, galleries = list[Chart](), list[Gallery]()
    if predictions is not None:
        charts = _draw_charts(cache, task, predictions, record, id)
        galleries = [_build_worst(cache, task, predictions, thumbnails, id)]
    labels = sorted(
        (record.labels or {}).items(),
        key=lambda pair: (pair[1]["average_precision"] is None, pair[1]["average_precision"]),
    )
    return TargetSection(
        id=id,
        name=task.name,
        summary=_summarise(task),
        kind=task.kind,
        metric=format_metric_name(record.metric),
        best=record,
        best_place=joined.get(record.place, record.layer),
        value=format_value(
            record.validation_metric if record.test_metric is None else record.test_metric
        ),
        interval=format_ends(record.test_ci),
        guess=format_value(record.baseline.get(record.metric)),
        n_heads=len(records),
        n_equal=sum(other.distinguishable is False for other in records),
        rows=_list_rows(records, record, joined),
        metrics=_list_metrics(record.metrics),
        charts=charts,
        labels=labels[:MAX_LABELS],
        n_labels=len(labels),
        galleries=galleries,
        notices=[
            notice.removeprefix(f"{task.name}: ")
            for notice in comparison.notices
            if notice.startswith(f"{task.name}: ")
        ],
    )


def _summarise(task: TargetTask) -> str:
    parts = [(int((task.split == part).sum()), name) for part, name in SPLIT_NAMES]
    images = ", ".join(f"{count:,} {name}" for count, name in parts if count)
    what = "numbers" if task.kind == NUMBER else f"{len(task.names):,} {KIND_NOUNS[task.kind]}"
    return f"{what} · {images} images"


def _list_rows(
    records: Sequence[TargetResult], best: TargetResult, joined: Mapping[str, str]
) -> list[TargetLine]:
    lines = []
    for record in rank_target_results(records, best):
        mark = "equal" if record.distinguishable is False else "worse" if record.worse else ""
        lines.append(
            TargetLine(
                "best" if record is best else mark,
                record.head,
                joined.get(record.place, record.layer),
                ", ".join(f"{name} = {value:g}" for name, value in record.settings.items()),
                format_value(record.validation_metric),
                format_value(record.test_metric),
                format_ends(record.test_ci),
            )
        )
    guess = best.baseline.get(best.metric)
    interval = best.baseline.get(f"{best.metric}_ci")
    if guess is not None:
        ends = format_ends(interval)
        lines.append(TargetLine("baseline", "no image", "–", "", "–", format_value(guess), ends))
    return lines


def _list_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (format_metric_name(name), format_value(value), format_ends(interval))
        for name, value in metrics.items()
        if (interval := metrics.get(f"{name}_ci")) is not None
    ]


def _draw_charts(
    cache: FeatureCache,
    task: TargetTask,
    predictions: TargetPredictions,
    record: TargetResult,
    id: str,
) -> list[Chart]:
    if task.kind == NUMBER:
        margin = None if record.interval is None else float(record.interval["margin"])
        paths = cache.paths_of(predictions.rows)
        truth, values = predictions.truth[:, 0], predictions.values[:, 0]
        return [chart_residuals(truth, values, paths, margin, f"{id}-residuals")]
    if task.kind == GRADE and record.confusion is not None:
        return [chart_confusion(np.array(record.confusion), record.names, f"{id}-confusion")]
    return []


def _build_worst(
    cache: FeatureCache,
    task: TargetTask,
    predictions: TargetPredictions,
    thumbnails: Thumbnails,
    id: str,
) -> Gallery:
    """Build the gallery of the images that the head is most wrong about."""
    losses = predictions.losses
    order = np.argsort(-losses, kind="stable")[:MAX_TILES]
    groups = []
    for i in order[losses[order] > 0]:
        row = int(predictions.rows[i])
        thumbnails.request(row, GALLERY_PIXELS)
        (path,) = cache.paths_of([row])
        given, said = _describe(task, predictions, int(i))
        lines = [("given", given, ""), ("predicted", said, "said")]
        groups.append(TileGroup([Tile(thumbnails, row, path, lines)]))
    note = "The images that the best head is most wrong about, the worst first."
    if not groups:
        note = "The best head is right about every image."
    return Gallery(f"{id}-worst", "Furthest off", note, groups)


def _describe(task: TargetTask, predictions: TargetPredictions, i: int) -> tuple[str, str]:
    """Describe the label of an image, and what is predicted."""
    truth, predicted = predictions.truth[i], predictions.predicted[i]
    if task.kind == MULTI:
        names = np.array(task.names, object)
        return (
            ", ".join(names[truth == 1]) or "none",
            ", ".join(names[predicted.astype(bool)]) or "none",
        )
    if task.kind == NUMBER:
        return f"{truth[0]:.4g}", f"{predicted[0]:.4g}"
    return task.names[int(truth[0])], task.names[int(predicted[0])]


def format_value(value: float | None) -> str:
    """Format a metric.

    Parameters
    ----------
    value : float, or None

    Returns
    -------
    str
        Three decimals, or four digits of a large one; a dash for None.
    """
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def format_ends(ends: Sequence[float] | None) -> str:
    """Format an interval.

    Parameters
    ----------
    ends : sequence of two floats, or None

    Returns
    -------
    str
        A dash for None.
    """
    return "–" if ends is None else f"{format_value(ends[0])} to {format_value(ends[1])}"

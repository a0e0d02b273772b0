"""The sections of the report, one for each task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from classify.checks.baseline import measure_baseline
from classify.checks.nearest_images import find_nearest_images
from classify.checks.summary import DataChecks, SmallClass, check_task
from classify.data.sets.cache_set import find_deepest_layer, label_joined_layers
from classify.data.tasks import Task
from classify.evaluation.metrics import calibration_error
from classify.evaluation.metrics import compute_confusion_matrix as count_confusions
from classify.evaluation.metrics import reliability_curve as reliability_of
from classify.evaluation.predictions import HeldOutPredictions
from classify.evaluation.recall import compute_class_recall
from classify.experiments.compare import Comparison
from classify.experiments.results import FitResult
from classify.labels.folders import TEST, TRAIN, VAL
from classify.report.charts.advice import AdviceSection, advice_section
from classify.report.charts.base import Chart
from classify.report.charts.confusion import chart_confusion
from classify.report.charts.depth import chart_depth
from classify.report.charts.embedding_map import chart_embedding_map
from classify.report.charts.reliability import chart_reliability
from classify.report.charts.risk import chart_risk
from classify.report.galleries import FindNearest, Gallery, GalleryBuilder
from classify.report.leaderboard import (
    Headline,
    LeaderboardRow,
    build_leaderboard,
    format_decimal,
    format_percent,
)
from classify.report.projection import Projector
from classify.report.thumbnails import Thumbnails
from classify.strategy.advise import Advice
from featurize.cache.reader import FeatureCache

MAX_PICTURES = 300  # in all galleries of a report
PICTURES_PER_ENTRY = 3 + 3 + 1  # a mistake, a label issue, half a pair of duplicates
MIN_ENTRIES, MAX_ENTRIES = 6, 18  # in one gallery
MAX_LISTED_CLASSES = 50  # classes in a table
SPLIT_NAMES = ((TRAIN, "training"), (VAL, "validation"), (TEST, "test"))


@dataclass(frozen=True)
class Finding:
    """Result of one data check.

    Attributes
    ----------
    text : str
        A few words.
    warn : bool
    target : str
        Id of the element that shows the details; empty if there is none.
    """

    text: str
    warn: bool = False
    target: str = ""


@dataclass(frozen=True)
class TaskSection:
    """One task's section of the page.

    Attributes
    ----------
    id : str
        Of the section; all ids inside begin with it.
    name, summary : str
    headline : Headline
    warning : str
        What to know before trusting the accuracy; empty if nothing.
    checks : list of Finding
    notices : list of str
    leaderboard_rows : list of LeaderboardRow
    rank_of : dict of str to int
        Position of each choice of layers for sorting, by `HeadResult.place`: by depth, joined ones
        last.
    depth : list of Chart
        Accuracy by layer, in the test and in validation.
    confusion, reliability, map : Chart
    map_rows : list of int
        Rows on the map.
    galleries : list of Gallery
    recall : list of (str, dict)
        Classes of the lowest recall, with the values of `classify.evaluation.recall`.
    n_recall : int
        Number of classes with images, of which `recall` lists the first.
    recall_of : str
        The images used, ``test`` or ``validation``.
    small : list of SmallClass
        The first of `n_small`.
    n_small, n_classes : int
    advice : AdviceSection, or None
        None if no advice was requested.
    doubt : Chart, or None
        Accuracy of the surest.
    doubt_note : str
        What prediction sets hold.
    template : str
        Name of the template that draws it.
    """

    id: str
    name: str
    summary: str
    headline: Headline
    warning: str
    checks: list[Finding]
    notices: list[str]
    leaderboard_rows: list[LeaderboardRow]
    rank_of: dict[str, int]
    depth: list[Chart]
    confusion: Chart
    reliability: Chart
    map: Chart
    map_rows: list[int]
    galleries: list[Gallery]
    recall: list[tuple[str, dict[str, Any]]]
    n_recall: int
    recall_of: str
    small: list[SmallClass]
    n_small: int
    n_classes: int
    advice: AdviceSection | None
    doubt: Chart | None = None
    doubt_note: str = ""
    template: str = "task.html"

    @property
    def answer(self) -> str:
        """The most important number: the accuracy of the best head."""
        best = self.headline.best
        return format_percent(best.validation if best.accuracy is None else best.accuracy)

    @property
    def answer_note(self) -> str:
        """The best head, and what the baseline reaches."""
        best, guess = self.headline.best, self.headline.baseline
        baseline = guess.validation if best.accuracy is None else guess.accuracy
        return f"{self.headline.head}; baseline {format_percent(baseline)}"

    @property
    def charts(self) -> list[Chart]:
        """All charts of the section."""
        advised = [] if self.advice is None else self.advice.charts
        doubted = [] if self.doubt is None else [self.doubt]
        return [*advised, *self.depth, self.confusion, self.reliability, *doubted, self.map]


def build_sections(
    cache: FeatureCache,
    comparison: Comparison,
    thumbnails: Thumbnails,
    advice: Mapping[str, Advice],
) -> Iterator[TaskSection]:
    """Build the section of each task, in the comparison's order.

    Parameters
    ----------
    cache : FeatureCache
    comparison : Comparison
    thumbnails : Thumbnails
    advice : mapping of str to Advice
        By task name; may lack tasks.

    Yields
    ------
    TaskSection
    """
    projector = Projector(cache)
    n_entries = MAX_PICTURES // (PICTURES_PER_ENTRY * len(comparison.tasks))
    n_entries = max(MIN_ENTRIES, min(MAX_ENTRIES, n_entries))
    for number, task in enumerate(comparison.tasks, 1):
        best = comparison.best_per_task[task.name]
        results = [result for result in comparison.results if result.record.task == task.name]
        (best_result,) = (result for result in results if result.record is best)
        notices = [
            notice.removeprefix(f"{task.name}: ")
            for notice in comparison.notices
            if notice.startswith(f"{task.name}: ")
        ]
        section = _build_section(
            f"task-{number}",
            cache,
            task,
            results,
            best_result,
            partial(GalleryBuilder, thumbnails, cache, task, max_images=n_entries),
            projector,
            notices,
        )
        if task.name in advice:
            section_of_advice = advice_section(advice[task.name], f"{section.id}-advice")
            section = replace(section, advice=section_of_advice)
        yield section


def _build_section(
    id: str,
    cache: FeatureCache,
    task: Task,
    results: Sequence[FitResult],
    best: FitResult,
    make_gallery_builder: Callable[[str, FindNearest], GalleryBuilder],
    projector: Projector,
    notices: list[str],
) -> TaskSection:
    layers = tuple(cache.layers)
    place = best.record.place
    records = [result.record for result in results]
    baseline = measure_baseline(task, best.record.metric, best.validation, best.test)
    headline, leaderboard_rows = build_leaderboard(
        records, best.record, baseline, label_joined_layers(cache)
    )
    find_nearest = partial(find_nearest_images, cache, task, place.split("+"), best.record.prepare)
    gallery_builder = make_gallery_builder(headline.head, find_nearest)
    predictions, predicted_split = best.test, "test"
    if predictions is None:
        predictions, predicted_split = best.validation, "validation"
    data_checks = check_task(
        cache, task, best.validation, best.test, layer=find_deepest_layer(cache, place)
    )
    ids = {name: f"{id}-{name}" for name in ("twins", "suspects", "mistakes", "small")}
    projection = projector.project(place.split("+"), task.rows)
    galleries = []
    if predictions is not None:
        galleries.append(
            gallery_builder.build_mistakes(predictions, predicted_split, ids["mistakes"])
        )
    if data_checks.labels.issues:
        galleries.append(gallery_builder.build_label_issues(data_checks.labels, ids["suspects"]))
    if data_checks.duplicates:
        galleries.append(
            gallery_builder.build_duplicates(
                data_checks.duplicates, data_checks.n_test, ids["twins"]
            )
        )
    recall_by_class = {}
    if predictions is not None:
        recall_by_class = compute_class_recall(
            predictions, task.classes, task.units_for(predictions.rows)
        )
    depth_of_layer = {name: i for i, name in enumerate(layers)}
    ranked = sorted(
        {r.place for r in records}, key=lambda n: (n.count("+"), depth_of_layer.get(n, 0), n)
    )
    return TaskSection(
        id=id,
        name=task.name,
        summary=_summarise_task(task),
        headline=headline,
        warning=_make_warning(data_checks),
        checks=list(_iter_findings(data_checks, ids)),
        notices=[*notices, *data_checks.notices],
        leaderboard_rows=leaderboard_rows,
        rank_of={name: i for i, name in enumerate(ranked)},
        depth=[
            chart_depth(records, layers, split, f"{id}-depth-{split}", guessed)
            for split, guessed in (
                ("test", baseline.accuracy),
                ("validation", baseline.validation),
            )
        ],
        confusion=_chart_confusion(
            task, predictions, f"{headline.head}, {predicted_split} images", f"{id}-confusion"
        ),
        reliability=_chart_reliability(
            predictions, f"{headline.head}, {predicted_split} images", f"{id}-reliability"
        ),
        map=chart_embedding_map(
            task, cache, projection, (best.validation, best.test), headline.layer, f"{id}-map"
        ),
        map_rows=[int(row) for row in projection.rows],
        galleries=galleries,
        recall=list(recall_by_class.items())[:MAX_LISTED_CLASSES],
        n_recall=len(recall_by_class),
        recall_of=predicted_split,
        small=data_checks.small_classes[:MAX_LISTED_CLASSES],
        n_small=len(data_checks.small_classes),
        n_classes=len(task.classes),
        advice=None,
        doubt=chart_risk(
            (best.record.doubt or {}).get("risk"),
            f"{headline.head}, test images: what would be right if the others were left open.",
            f"{id}-risk",
        ),
        doubt_note=_describe_sets(best.record.doubt),
    )


def _describe_sets(doubt: Mapping[str, Any] | None) -> str:
    """Describe prediction sets in a sentence; empty without any."""
    if not doubt or "realised" not in doubt:
        return ""
    low, high = doubt["realised_ci"]
    return (
        f"Sets of classes that were asked to hold {doubt['coverage']:.0%} of the truths hold "
        f"{doubt['realised']:.1%} of the test images (95 % interval {low:.1%} to {high:.1%}), with "
        f"{doubt['set_size']:.2f} classes on average; {doubt['empty']:.1%} are empty."
    )


def _summarise_task(task: Task) -> str:
    parts = [(int((task.split == part).sum()), name) for part, name in SPLIT_NAMES]
    images = ", ".join(f"{count:,} {name}" for count, name in parts if count)
    return f"{len(task.classes):,} classes · {images} images"


def _iter_findings(data_checks: DataChecks, ids: dict[str, str]) -> Iterator[Finding]:
    n_duplicates, n_label_issues, n_small = (
        len(data_checks.duplicates),
        len(data_checks.labels.issues),
        len(data_checks.small_classes),
    )
    for count, singular, plural, none, target in (
        (n_duplicates, "duplicate across the split", "duplicates across the split",
         "no duplicates across the split", ids["twins"]),
        (n_label_issues, "suspected wrong label", "suspected wrong labels", "no suspected labels",
         ids["suspects"]),
        (n_small, "class with too few images", "classes with too few images",
         "enough images in every class", ids["small"]),
    ):  # fmt: skip
        if count:
            text = f"{count:,} {singular if count == 1 else plural}"
            if target == ids["suspects"]:
                text += f", perhaps {max(1, round(data_checks.labels.expected_wrong)):,} are"
            yield Finding(text, True, target)
        else:
            yield Finding(none)


def _make_warning(data_checks: DataChecks) -> str:
    if not data_checks.duplicates:
        return ""
    verb = "is" if len(data_checks.duplicates) == 1 else "are"
    count = f"{len(data_checks.duplicates):,} test image{'s' if verb == 'are' else ''} {verb}"
    return f"{count}, or nearly {verb}, in the training set: the accuracy is too high, see below."


def _chart_confusion(
    task: Task, predictions: HeldOutPredictions | None, subject: str, id: str
) -> Chart:
    if predictions is None:
        return Chart(id, "Confusion matrix", "No image was held out.")
    chart = chart_confusion(count_confusions(predictions, len(task.classes)), task.classes, id)
    return replace(chart, note=f"{subject}. {chart.note}")


def _chart_reliability(predictions: HeldOutPredictions | None, subject: str, id: str) -> Chart:
    if predictions is None:
        return Chart(id, "Reliability", "No image was held out.")
    errors = [calibration_error(predictions, calibrated) for calibrated in (False, True)]
    note = f"{subject}. On the dashed line, accuracy equals confidence. "
    if errors[0] is None:
        note += "It has no probabilities before calibration; "
        note += f"after it, the calibration error is {format_decimal(errors[1])}."
    else:
        note += f"Calibration error: {format_decimal(errors[0])}, "
        note += f"after calibration {format_decimal(errors[1])}."
    points = [reliability_of(predictions, calibrated) for calibrated in (False, True)]
    return chart_reliability(points[0], points[1], note, id)

"""Everything the report says of one task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from classify.checks.summary import DataChecks, SmallClass, check_task
from classify.data.folder_labels import TEST, TRAIN, VAL
from classify.data.tasks import Task
from classify.evaluation.metrics import calibration_error
from classify.evaluation.metrics import compute_confusion_matrix as count_confusions
from classify.evaluation.metrics import reliability_curve as reliability_of
from classify.evaluation.predictions import HeldOutPredictions
from classify.evaluation.recall import compute_class_recall
from classify.experiments.compare import Comparison
from classify.experiments.results import FitResult
from classify.report.charts.advice import AdviceSection, advice_section
from classify.report.charts.base import Chart
from classify.report.charts.confusion import chart_confusion
from classify.report.charts.depth import chart_depth
from classify.report.charts.embedding_map import chart_embedding_map
from classify.report.charts.reliability import chart_reliability
from classify.report.galleries import Gallery, GalleryBuilder
from classify.report.leaderboard import Headline, LeaderboardRow, build_leaderboard, format_decimal
from classify.report.projection import Projector
from classify.report.thumbnails import Thumbnails
from classify.strategy.advise import Advice
from featurize.cache.reader import FeatureCache

MAX_GALLERY_IMAGES = 300  # in all galleries of a report together
MIN_GALLERY_IMAGES = 6  # in one gallery
MAX_LISTED_CLASSES = 50  # classes in a table
SPLIT_NAMES = ((TRAIN, "training"), (VAL, "validation"), (TEST, "test"))


@dataclass(frozen=True)
class Finding:
    """What a data check found, in a few words; `target` is the id of where it is shown."""

    text: str
    warn: bool = False
    target: str = ""


@dataclass(frozen=True)
class TaskSection:
    """One task's part of the page.

    Attributes
    ----------
    id : str
        Of the section; all ids inside begin with it.
    warning : str
        What to know before the score is believed; empty if nothing.
    rank_of : dict of str to int
        Where each choice of layers stands, for sorting: by depth, joined ones last.
    mapped : list of int
        Rows on the map.
    recall : list of (str, dict)
        The classes of which least is found, with what `classify.evaluation.recall` says of them.
    n_recall : int
        Classes with images, of which `recall` lists the first.
    recall_of : str
        Which images these are, ``test`` or ``validation``.
    small : list of SmallClass
        The first of `n_small`.
    advice : AdviceSection, or None
        None where none was asked for.
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

    @property
    def charts(self) -> list[Chart]:
        """All of them."""
        advised = [] if self.advice is None else self.advice.charts
        return [*advised, *self.depth, self.confusion, self.reliability, self.map]


def build_sections(
    cache: FeatureCache,
    comparison: Comparison,
    thumbnails: Thumbnails,
    advice: Mapping[str, Advice],
) -> Iterator[TaskSection]:
    """One for each task, in the comparison's order; `advice` is by the task's name."""
    projector = Projector(cache)
    share = MAX_GALLERY_IMAGES // (4 * len(comparison.tasks))  # twins take two pictures each
    most = max(MIN_GALLERY_IMAGES, min(24, share))
    for number, task in enumerate(comparison.tasks, 1):
        best = comparison.best_per_task[task.name]
        results = [result for result in comparison.results if result.record.task == task.name]
        (chosen,) = (result for result in results if result.record is best)
        curator = GalleryBuilder(thumbnails, cache.paths, task, most)
        notices = [
            notice.removeprefix(f"{task.name}: ")
            for notice in comparison.notices
            if notice.startswith(f"{task.name}: ")
        ]
        section = _build_section(
            f"task-{number}", cache, task, results, chosen, curator, projector, notices
        )
        if task.name in advice:
            told = advice_section(advice[task.name], f"{section.id}-advice")
            section = replace(section, advice=told)
        yield section


def _build_section(
    id: str,
    cache: FeatureCache,
    task: Task,
    results: Sequence[FitResult],
    best: FitResult,
    gallery_builder: GalleryBuilder,
    projector: Projector,
    notices: list[str],
) -> TaskSection:
    layers = tuple(cache.layers)
    records = [result.record for result in results]
    answer, board = build_leaderboard(records, best.record, layers)
    answers, part = best.test, "test"
    if answers is None:
        answers, part = best.validation, "validation"
    found = check_task(cache, task, best.validation, best.test)
    ids = {name: f"{id}-{name}" for name in ("twins", "suspects", "mistakes", "small")}
    places = projector.project(best.record.layer.split("+"), task.rows)
    galleries = []
    if answers is not None:
        galleries.append(gallery_builder.build_mistakes(answers, part, ids["mistakes"]))
    if found.label_issues:
        galleries.append(
            gallery_builder.build_label_issues(found.label_issues, found.n_judged, ids["suspects"])
        )
    if found.duplicates:
        galleries.append(
            gallery_builder.build_duplicates(found.duplicates, found.n_test, ids["twins"])
        )
    found_by_class = {}
    if answers is not None:
        found_by_class = compute_class_recall(answers, task.classes, task.units_for(answers.rows))
    order = {name: i for i, name in enumerate(layers)}
    ranked = sorted({r.layer for r in records}, key=lambda n: (n.count("+"), order.get(n, 0), n))
    return TaskSection(
        id=id,
        name=task.name,
        summary=_summarise_task(task),
        headline=answer,
        warning=_make_warning(found),
        checks=list(_iter_findings(found, ids)),
        notices=[*notices, *found.notices],
        leaderboard_rows=board,
        rank_of={name: i for i, name in enumerate(ranked)},
        depth=[chart_depth(records, layers, p, f"{id}-depth-{p}") for p in ("validation", "test")],
        confusion=_chart_confusion(task, answers, part, f"{id}-confusion"),
        reliability=_chart_reliability(answers, part, f"{id}-reliability"),
        map=chart_embedding_map(
            task, cache.paths, places, (best.validation, best.test), answer.layer, f"{id}-map"
        ),
        map_rows=[int(row) for row in places.rows],
        galleries=galleries,
        recall=list(found_by_class.items())[:MAX_LISTED_CLASSES],
        n_recall=len(found_by_class),
        recall_of=part,
        small=found.small_classes[:MAX_LISTED_CLASSES],
        n_small=len(found.small_classes),
        n_classes=len(task.classes),
        advice=None,
    )


def _summarise_task(task: Task) -> str:
    parts = [(int((task.split == part).sum()), name) for part, name in SPLIT_NAMES]
    images = ", ".join(f"{count:,} {name}" for count, name in parts if count)
    return f"{len(task.classes):,} classes · {images} images"


def _iter_findings(found: DataChecks, ids: dict[str, str]) -> Iterator[Finding]:
    twins, suspects, small = (
        len(found.duplicates),
        len(found.label_issues),
        len(found.small_classes),
    )
    for count, one, several, none, target in (
        (twins, "duplicate across the split", "duplicates across the split",
         "no duplicates across the split", ids["twins"]),
        (suspects, "suspected wrong label", "suspected wrong labels", "no suspected labels",
         ids["suspects"]),
        (small, "class with too few images", "classes with too few images",
         "enough images in every class", ids["small"]),
    ):  # fmt: skip
        if count:
            yield Finding(f"{count:,} {one if count == 1 else several}", True, target)
        else:
            yield Finding(none)


def _make_warning(found: DataChecks) -> str:
    if not found.duplicates:
        return ""
    one = "is" if len(found.duplicates) == 1 else "are"
    count = f"{len(found.duplicates):,} test image{'s' if one == 'are' else ''} {one}"
    return f"{count}, or nearly {one}, among those learnt from: this is too good, see below."


def _chart_confusion(
    task: Task, predictions: HeldOutPredictions | None, split: str, id: str
) -> Chart:
    if predictions is None:
        return Chart(id, "Confusion matrix", "No image was held out.")
    chart = chart_confusion(count_confusions(predictions, len(task.classes)), task.classes, id)
    return replace(
        chart, note=f"The best head on {len(predictions):,} {split} images. {chart.note}"
    )


def _chart_reliability(predictions: HeldOutPredictions | None, split: str, id: str) -> Chart:
    if predictions is None:
        return Chart(id, "Reliability", "No image was held out.")
    errors = [calibration_error(predictions, calibrated) for calibrated in (False, True)]
    note = (
        f"The best head on {len(predictions):,} {split} images: on the dashed line, it is right as "
        "often as it says. "
    )
    if errors[0] is None:
        note += f"It has no probabilities before scaling; after it, the error is {format_decimal(errors[1])}."
    else:
        note += f"Calibration error: {format_decimal(errors[0])}, after scaling {format_decimal(errors[1])}."
    points = [reliability_of(predictions, calibrated) for calibrated in (False, True)]
    return chart_reliability(points[0], points[1], note, id)

"""Everything the report says of one task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from classify.advice import Advice
from classify.checks import Checks, SmallClass, check
from classify.comparison import Comparison
from classify.labels import TEST, TRAIN, VAL
from classify.outcomes import Outcomes
from classify.pages.advice import Counsel, counsel
from classify.pages.board import Answer, Line, decimal, leaderboard
from classify.pages.depth import depth
from classify.pages.figures import Chart
from classify.pages.galleries import Curator, Gallery
from classify.pages.maps import embedding_map
from classify.pages.matrices import confusion, reliability
from classify.pages.pictures import Pictures
from classify.pages.projection import Projector
from classify.recalls import recalls
from classify.results import Result
from classify.scores import calibration_error
from classify.scores import confusion as count_confusions
from classify.scores import reliability as reliability_of
from classify.tasks import Task
from featurize.cache import FeatureCache

MAX_PICTURES = 300  # in all galleries of a report together
FEWEST_PICTURES = 6  # in one gallery
MAX_LISTED = 50  # classes in a table
PARTS = ((TRAIN, "training"), (VAL, "validation"), (TEST, "test"))


@dataclass(frozen=True)
class Finding:
    """What a data check found, in a few words; `target` is the id of where it is shown."""

    text: str
    warn: bool = False
    target: str = ""


@dataclass(frozen=True)
class Section:
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
        The classes of which least is found, with what `classify.recalls` says of them.
    n_recall : int
        Classes with images, of which `recall` lists the first.
    recall_of : str
        Which images these are, ``test`` or ``validation``.
    small : list of SmallClass
        The first of `n_small`.
    advice : Counsel, or None
        None where none was asked for.
    """

    id: str
    name: str
    summary: str
    answer: Answer
    warning: str
    checks: list[Finding]
    notices: list[str]
    board: list[Line]
    rank_of: dict[str, int]
    depth: list[Chart]
    confusion: Chart
    reliability: Chart
    map: Chart
    mapped: list[int]
    galleries: list[Gallery]
    recall: list[tuple[str, dict[str, Any]]]
    n_recall: int
    recall_of: str
    small: list[SmallClass]
    n_small: int
    n_classes: int
    advice: Counsel | None

    @property
    def charts(self) -> list[Chart]:
        """All of them."""
        advised = [] if self.advice is None else self.advice.charts
        return [*advised, *self.depth, self.confusion, self.reliability, self.map]


def sections(
    cache: FeatureCache,
    comparison: Comparison,
    pictures: Pictures,
    advice: Mapping[str, Advice],
) -> Iterator[Section]:
    """One for each task, in the comparison's order; `advice` is by the task's name."""
    projector = Projector(cache)
    share = MAX_PICTURES // (4 * len(comparison.tasks))  # twins take two pictures each
    most = max(FEWEST_PICTURES, min(24, share))
    for number, task in enumerate(comparison.tasks, 1):
        best = comparison.best_per_task[task.name]
        results = [result for result in comparison.results if result.record.task == task.name]
        (chosen,) = (result for result in results if result.record is best)
        curator = Curator(pictures, cache.paths, task, most)
        notices = [
            notice.removeprefix(f"{task.name}: ")
            for notice in comparison.notices
            if notice.startswith(f"{task.name}: ")
        ]
        section = _section(
            f"task-{number}", cache, task, results, chosen, curator, projector, notices
        )
        if task.name in advice:
            told = counsel(advice[task.name], f"{section.id}-advice")
            section = replace(section, advice=told)
        yield section


def _section(
    id: str,
    cache: FeatureCache,
    task: Task,
    results: Sequence[Result],
    best: Result,
    curator: Curator,
    projector: Projector,
    notices: list[str],
) -> Section:
    layers = tuple(cache.layers)
    records = [result.record for result in results]
    answer, board = leaderboard(records, best.record, layers)
    answers, part = best.test, "test"
    if answers is None:
        answers, part = best.validation, "validation"
    found = check(cache, task, best.validation, best.test)
    ids = {name: f"{id}-{name}" for name in ("twins", "suspects", "mistakes", "small")}
    places = projector.project(best.record.layer.split("+"), task.rows)
    galleries = []
    if answers is not None:
        galleries.append(curator.mistakes(answers, part, ids["mistakes"]))
    if found.suspects:
        galleries.append(curator.suspects(found.suspects, found.n_judged, ids["suspects"]))
    if found.twins:
        galleries.append(curator.twins(found.twins, found.n_test, ids["twins"]))
    found_by_class = {}
    if answers is not None:
        found_by_class = recalls(answers, task.classes, task.unit_of(answers.rows))
    order = {name: i for i, name in enumerate(layers)}
    ranked = sorted({r.layer for r in records}, key=lambda n: (n.count("+"), order.get(n, 0), n))
    return Section(
        id=id,
        name=task.name,
        summary=_summary(task),
        answer=answer,
        warning=_warning(found),
        checks=list(_findings(found, ids)),
        notices=[*notices, *found.notices],
        board=board,
        rank_of={name: i for i, name in enumerate(ranked)},
        depth=[depth(records, layers, p, f"{id}-depth-{p}") for p in ("validation", "test")],
        confusion=_confusion(task, answers, part, f"{id}-confusion"),
        reliability=_reliability(answers, part, f"{id}-reliability"),
        map=embedding_map(
            task, cache.paths, places, (best.validation, best.test), answer.layer, f"{id}-map"
        ),
        mapped=[int(row) for row in places.rows],
        galleries=galleries,
        recall=list(found_by_class.items())[:MAX_LISTED],
        n_recall=len(found_by_class),
        recall_of=part,
        small=found.small[:MAX_LISTED],
        n_small=len(found.small),
        n_classes=len(task.classes),
        advice=None,
    )


def _summary(task: Task) -> str:
    parts = [(int((task.split == part).sum()), name) for part, name in PARTS]
    images = ", ".join(f"{count:,} {name}" for count, name in parts if count)
    return f"{len(task.classes):,} classes · {images} images"


def _findings(found: Checks, ids: dict[str, str]) -> Iterator[Finding]:
    twins, suspects, small = len(found.twins), len(found.suspects), len(found.small)
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


def _warning(found: Checks) -> str:
    if not found.twins:
        return ""
    one = "is" if len(found.twins) == 1 else "are"
    count = f"{len(found.twins):,} test image{'s' if one == 'are' else ''} {one}"
    return f"{count}, or nearly {one}, among those learnt from: this is too good, see below."


def _confusion(task: Task, answers: Outcomes | None, part: str, id: str) -> Chart:
    if answers is None:
        return Chart(id, "Confusion matrix", "No image was held out.")
    chart = confusion(count_confusions(answers, len(task.classes)), task.classes, id)
    return replace(chart, note=f"The best head on {len(answers):,} {part} images. {chart.note}")


def _reliability(answers: Outcomes | None, part: str, id: str) -> Chart:
    if answers is None:
        return Chart(id, "Reliability", "No image was held out.")
    errors = [calibration_error(answers, calibrated) for calibrated in (False, True)]
    note = (
        f"The best head on {len(answers):,} {part} images: on the dashed line, it is right as "
        "often as it says. "
    )
    if errors[0] is None:
        note += (
            f"It has no probabilities before scaling; after it, the error is {decimal(errors[1])}."
        )
    else:
        note += f"Calibration error: {decimal(errors[0])}, after scaling {decimal(errors[1])}."
    points = [reliability_of(answers, calibrated) for calibrated in (False, True)]
    return reliability(points[0], points[1], note, id)

"""Images worth looking at: the worst mistakes, suspected labels, twins across the split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from classify.checks import Suspect, Twin
from classify.outcomes import Outcomes
from classify.pages.board import percent
from classify.pages.pictures import Picture, Pictures
from classify.tasks import Task


@dataclass(frozen=True)
class Shot:
    """One image with what is said of it: lines of a word, a value and a CSS class."""

    picture: Picture | None
    path: str
    lines: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Group:
    """Images shown together, with a note below."""

    shots: list[Shot]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Some images under a heading.

    Attributes
    ----------
    paired : bool
        Whether a group is two images side by side.
    """

    id: str
    title: str
    note: str
    groups: list[Group]
    paired: bool = False


class Curator:
    """Hangs the galleries of one task.

    Parameters
    ----------
    pictures : Pictures
    paths : sequence of str
        Of the whole cache.
    task : Task
    most : int
        Images in one gallery.
    """

    def __init__(self, pictures: Pictures, paths: Sequence[str], task: Task, most: int) -> None:
        self._pictures, self._paths, self._task, self._most = pictures, paths, task, most

    def shot(self, row: int, *lines: tuple[str, str, str]) -> Shot:
        """One image."""
        return Shot(self._pictures.card(row), self._paths[row], list(lines))

    def mistakes(self, answers: Outcomes, part: str, id: str) -> Gallery:
        """What a head got wrong, the surest first."""
        wrong = np.flatnonzero(~answers.correct)
        sure = answers.calibrated_confidence[wrong]
        if np.isnan(sure).any():
            sure = answers.confidence[wrong]
        order = wrong[np.argsort(-sure, kind="stable")][: self._most]
        groups = []
        for i in order:
            confidence = answers.calibrated_confidence[i]
            if np.isnan(confidence):
                confidence = answers.confidence[i]
            how = "" if np.isnan(confidence) else f" ({percent(float(confidence))})"
            said = self._task.classes[answers.predicted[i]] + how
            shot = self.shot(
                int(answers.rows[i]),
                ("given", self._task.classes[answers.truth[i]], ""),
                ("predicted", said, "said"),
            )
            groups.append(Group([shot]))
        note = f"The best head got none of {len(answers):,} {part} images wrong."
        if len(wrong):
            which = f"The {len(order):,} surest of" if len(order) < len(wrong) else "All"
            note = (
                f"{which} {len(wrong):,} mistakes on {len(answers):,} {part} images, with the "
                "confidence after calibration. Sure and wrong is often a wrong label."
            )
        return Gallery(id, "Worst mistakes", note, groups)

    def suspects(self, found: Sequence[Suspect], n_judged: int, id: str) -> Gallery:
        """Labels that look wrong, the surest first."""
        groups = [
            Group([self.shot(one.row, ("given", one.given, ""), ("rather", one.proposed, "said"))])
            for one in found[: self._most]
        ]
        note = (
            f"{_which(len(groups), len(found))} of {n_judged:,} labels that a head which did not "
            "learn them finds far less likely than another, the surest first. Many will be hard "
            "images rightly labelled: look before you change one."
        )
        return Gallery(id, "Suspected wrong labels", note, groups)

    def twins(self, found: Sequence[Twin], n_test: int, id: str) -> Gallery:
        """Test images that are, or nearly are, among those learnt from: each beside its twin."""
        groups = []
        for pair in found[: max(1, self._most // 2)]:
            shots = []
            for row in (pair.row_test, pair.row_train):
                at = int(np.searchsorted(self._task.rows, row))
                label = self._task.classes[self._task.y[at]]
                shots.append(self.shot(row, (str(self._task.split[at]), label, "")))
            how = (
                "the same bytes"
                if pair.same_bytes
                else f"nearly the same: cosine {pair.cosine:.4f}"
            )
            groups.append(Group(shots, how if pair.same_label else f"{how}, another label"))
        note = (
            f"{_which(len(groups), len(found))} of {n_test:,} test images that are, or nearly are, "
            "among those learnt from or chosen by. They make the score too good; keep such images "
            "together by a group column."
        )
        return Gallery(id, "Duplicates across the split", note, groups, paired=True)


def _which(shown: int, all: int) -> str:
    return f"The first {shown:,} of {all:,}, out" if shown < all else f"{all:,}"

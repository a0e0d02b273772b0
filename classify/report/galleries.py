"""Images worth looking at: the worst mistakes, suspected labels, twins across the split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from classify.checks.duplicates import DuplicatePair
from classify.checks.label_issues import LabelIssue
from classify.data.tasks import Task
from classify.evaluation.predictions import HeldOutPredictions
from classify.report.leaderboard import format_percent
from classify.report.thumbnails import Thumbnail, Thumbnails


@dataclass(frozen=True)
class Tile:
    """One image with what is said of it: lines of a word, a value and a CSS class."""

    picture: Thumbnail | None
    path: str
    lines: list[tuple[str, str, str]]


@dataclass(frozen=True)
class TileGroup:
    """Images shown together, with a note below."""

    tiles: list[Tile]
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
    groups: list[TileGroup]
    paired: bool = False


class GalleryBuilder:
    """Hangs the galleries of one task.

    Parameters
    ----------
    pictures : ImageDataset
    paths : sequence of str
        Of the whole cache.
    task : ExtractionJob
    most : int
        Images in one gallery.
    """

    def __init__(
        self, thumbnails: Thumbnails, paths: Sequence[str], task: Task, max_images: int
    ) -> None:
        self._thumbnails, self._paths, self._task, self._max_images = (
            thumbnails,
            paths,
            task,
            max_images,
        )

    def make_tile(self, row: int, *lines: tuple[str, str, str]) -> Tile:
        """One image."""
        return Tile(self._thumbnails.gallery_thumbnail(row), self._paths[row], list(lines))

    def build_mistakes(self, predictions: HeldOutPredictions, split: str, id: str) -> Gallery:
        """What a head got wrong, the surest first."""
        wrong = np.flatnonzero(~predictions.correct)
        sure = predictions.calibrated_confidence[wrong]
        if np.isnan(sure).any():
            sure = predictions.confidence[wrong]
        order = wrong[np.argsort(-sure, kind="stable")][: self._max_images]
        groups = []
        for i in order:
            confidence = predictions.calibrated_confidence[i]
            if np.isnan(confidence):
                confidence = predictions.confidence[i]
            how = "" if np.isnan(confidence) else f" ({format_percent(float(confidence))})"
            said = self._task.classes[predictions.predicted[i]] + how
            shot = self.make_tile(
                int(predictions.rows[i]),
                ("given", self._task.classes[predictions.truth[i]], ""),
                ("predicted", said, "said"),
            )
            groups.append(TileGroup([shot]))
        note = f"The best head got none of {len(predictions):,} {split} images wrong."
        if len(wrong):
            which = f"The {len(order):,} surest of" if len(order) < len(wrong) else "All"
            note = (
                f"{which} {len(wrong):,} mistakes on {len(predictions):,} {split} images, with the "
                "confidence after calibration. Sure and wrong is often a wrong label."
            )
        return Gallery(id, "Worst mistakes", note, groups)

    def build_label_issues(self, found: Sequence[LabelIssue], n_judged: int, id: str) -> Gallery:
        """Labels that look wrong, the surest first."""
        groups = [
            TileGroup(
                [
                    self.make_tile(
                        one.row, ("given", one.given, ""), ("rather", one.proposed, "said")
                    )
                ]
            )
            for one in found[: self._max_images]
        ]
        note = (
            f"{_format_count(len(groups), len(found))} of {n_judged:,} labels that a head which did not "
            "learn them finds far less likely than another, the surest first. Many will be hard "
            "images rightly labelled: look before you change one."
        )
        return Gallery(id, "Suspected wrong labels", note, groups)

    def build_duplicates(self, found: Sequence[DuplicatePair], n_test: int, id: str) -> Gallery:
        """Test images that are, or nearly are, among those learnt from: each beside its twin."""
        groups = []
        for pair in found[: max(1, self._max_images // 2)]:
            shots = []
            for row in (pair.row_test, pair.row_train):
                at = int(np.searchsorted(self._task.rows, row))
                label = self._task.classes[self._task.y[at]]
                shots.append(self.make_tile(row, (str(self._task.split[at]), label, "")))
            how = (
                "the same bytes"
                if pair.same_bytes
                else f"nearly the same: cosine {pair.cosine:.4f}"
            )
            groups.append(TileGroup(shots, how if pair.same_label else f"{how}, another label"))
        note = (
            f"{_format_count(len(groups), len(found))} of {n_test:,} test images that are, or nearly are, "
            "among those learnt from or chosen by. They make the score too good; keep such images "
            "together by a group column."
        )
        return Gallery(id, "Duplicates across the split", note, groups, paired=True)


def _format_count(shown: int, all: int) -> str:
    return f"The first {shown:,} of {all:,}, out" if shown < all else f"{all:,}"

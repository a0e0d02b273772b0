"""Galleries of images to inspect: mistakes, label issues, duplicates across the split."""

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
    """One image with its captions.

    Attributes
    ----------
    picture : Thumbnail, or None
    path : str
    lines : list of (str, str, str)
        Name, value and CSS class of each caption.
    """

    picture: Thumbnail | None
    path: str
    lines: list[tuple[str, str, str]]


@dataclass(frozen=True)
class TileGroup:
    """Images shown together, with a note below.

    Attributes
    ----------
    tiles : list of Tile
    note : str
    """

    tiles: list[Tile]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Groups of images under a heading.

    Attributes
    ----------
    id : str
        Of the HTML element.
    title : str
    note : str
    groups : list of TileGroup
    paired : bool
        Whether a group is two images side by side.
    """

    id: str
    title: str
    note: str
    groups: list[TileGroup]
    paired: bool = False


class GalleryBuilder:
    """Builds the galleries of one task.

    Parameters
    ----------
    thumbnails : Thumbnails
    paths : sequence of str
        All paths of the cache.
    task : Task
    max_images : int
        Maximum number of images in one gallery.
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

    def _make_tile(self, row: int, *lines: tuple[str, str, str]) -> Tile:
        """Return a tile of one row of the cache."""
        return Tile(self._thumbnails.gallery_thumbnail(row), self._paths[row], list(lines))

    def build_mistakes(self, predictions: HeldOutPredictions, split: str, id: str) -> Gallery:
        """Build a gallery of a head's mistakes, the most confident first.

        Parameters
        ----------
        predictions : HeldOutPredictions
        split : str
            Name of the images predicted: ``test`` or ``validation``.
        id : str
            Of the HTML element.

        Returns
        -------
        Gallery
        """
        wrong = np.flatnonzero(~predictions.correct)
        confidences = predictions.calibrated_confidence[wrong]
        if np.isnan(confidences).any():
            confidences = predictions.confidence[wrong]
        order = wrong[np.argsort(-confidences, kind="stable")][: self._max_images]
        groups = []
        for i in order:
            confidence = predictions.calibrated_confidence[i]
            if np.isnan(confidence):
                confidence = predictions.confidence[i]
            percent = "" if np.isnan(confidence) else f" ({format_percent(float(confidence))})"
            predicted = self._task.classes[predictions.predicted[i]] + percent
            tile = self._make_tile(
                int(predictions.rows[i]),
                ("given", self._task.classes[predictions.truth[i]], ""),
                ("predicted", predicted, "said"),
            )
            groups.append(TileGroup([tile]))
        note = f"The best head got none of {len(predictions):,} {split} images wrong."
        if len(wrong):
            which = f"The {len(order):,} most confident of" if len(order) < len(wrong) else "All"
            note = (
                f"{which} {len(wrong):,} mistakes on {len(predictions):,} {split} images, with the "
                "confidence after calibration. A confident mistake is often a wrong label."
            )
        return Gallery(id, "Worst mistakes", note, groups)

    def build_label_issues(self, found: Sequence[LabelIssue], n_judged: int, id: str) -> Gallery:
        """Build a gallery of labels that look wrong, the most confident first.

        Parameters
        ----------
        found : sequence of LabelIssue
        n_judged : int
            Number of labels that were checked.
        id : str
            Of the HTML element.

        Returns
        -------
        Gallery
        """
        groups = [
            TileGroup(
                [
                    self._make_tile(
                        issue.row, ("given", issue.given, ""), ("suggested", issue.proposed, "said")
                    )
                ]
            )
            for issue in found[: self._max_images]
        ]
        note = (
            f"{_format_count(len(groups), len(found))} of {n_judged:,} labels that a head trained "
            "without them finds far less likely than another label, the most confident first. Many "
            "will be hard images with correct labels: look before you change one."
        )
        return Gallery(id, "Suspected wrong labels", note, groups)

    def build_duplicates(self, found: Sequence[DuplicatePair], n_test: int, id: str) -> Gallery:
        """Build a gallery of test images, each with the training or validation image it duplicates.

        Parameters
        ----------
        found : sequence of DuplicatePair
        n_test : int
            Number of test images.
        id : str
            Of the HTML element.

        Returns
        -------
        Gallery
        """
        groups = []
        for pair in found[: max(1, self._max_images // 2)]:
            tiles = []
            for row in (pair.row_test, pair.row_train):
                position = int(np.searchsorted(self._task.rows, row))
                label = self._task.classes[self._task.y[position]]
                tiles.append(self._make_tile(row, (str(self._task.split[position]), label, "")))
            match = (
                "the same bytes"
                if pair.same_bytes
                else f"nearly the same: cosine {pair.cosine:.4f}"
            )
            groups.append(TileGroup(tiles, match if pair.same_label else f"{match}, another label"))
        note = (
            f"{_format_count(len(groups), len(found))} of {n_test:,} test images that duplicate, "
            "or nearly duplicate, a training or validation image. They make the accuracy too high; "
            "keep such images together by a group column."
        )
        return Gallery(id, "Duplicates across the split", note, groups, paired=True)


def _format_count(shown: int, all: int) -> str:
    return f"The first {shown:,} of {all:,}, out" if shown < all else f"{all:,}"

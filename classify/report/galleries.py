"""Galleries of images to inspect: mistakes, label issues, duplicates across the split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from classify.checks.duplicates import DuplicatePair
from classify.checks.label_issues import LabelReview
from classify.data.tasks import Task
from classify.evaluation.predictions import HeldOutPredictions
from classify.report.leaderboard import format_percent
from classify.report.thumbnails import GALLERY_PIXELS, Thumbnail, Thumbnails
from featurize.cache.reader import FeatureCache
from featurize.text import format_count

FindNearest = Callable[[Sequence[tuple[int, int]]], list[int | None]]
"""Row and class number of each query in, row of the nearest training image out."""


@dataclass(frozen=True)
class Tile:
    """One image with its captions.

    Attributes
    ----------
    thumbnails : Thumbnails
        Among them its own, once they are read.
    row : int
        Of the cache.
    path : str
    lines : list of (str, str, str)
        Name, value and CSS class of each caption.
    """

    thumbnails: Thumbnails
    row: int
    path: str
    lines: list[tuple[str, str, str]]

    @property
    def picture(self) -> Thumbnail | None:
        """Its thumbnail; None without images, or if it cannot be opened."""
        return self.thumbnails.get(self.row, GALLERY_PIXELS)


@dataclass(frozen=True)
class TileGroup:
    """Images shown together, with a note below.

    Attributes
    ----------
    tiles : list of Tile
    note : str
    nearest : list of Tile
        The nearest training images of the label predicted and of the label given, for comparison.
    """

    tiles: list[Tile]
    note: str = ""
    nearest: list[Tile] = field(default_factory=list)


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
    cache : FeatureCache
    task : Task
    head : str
        The best head, in words.
    find_nearest : callable
        As `classify.checks.nearest_images.find_nearest_images`, on the layers of the best head.
    max_images : int
        Maximum number of images in one gallery, without those for comparison.
    """

    def __init__(
        self,
        thumbnails: Thumbnails,
        cache: FeatureCache,
        task: Task,
        head: str,
        find_nearest: FindNearest,
        max_images: int,
    ) -> None:
        self._thumbnails, self._cache, self._task = thumbnails, cache, task
        self._head, self._find_nearest, self._max_images = head, find_nearest, max_images

    def _make_tile(self, row: int, *lines: tuple[str, str, str]) -> Tile:
        """Return a tile of one row of the cache."""
        self._thumbnails.request(row, GALLERY_PIXELS)
        (path,) = self._cache.paths_of([row])
        return Tile(self._thumbnails, row, path, list(lines))

    def _find_nearest_tiles(self, doubts: Sequence[tuple[int, int, int]]) -> list[list[Tile]]:
        """Return tiles of the nearest training images: for each row, of two class numbers."""
        queries = [(row, k) for row, *both in doubts for k in both]
        nearest = self._find_nearest(queries)
        tiles = [
            None
            if found is None
            else self._make_tile(found, ("nearest", self._task.classes[k], ""))
            for (_, k), found in zip(queries, nearest, strict=True)
        ]
        pairs = zip(tiles[::2], tiles[1::2], strict=True)
        return [[tile for tile in pair if tile is not None] for pair in pairs]

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
        nearest_tiles = self._find_nearest_tiles(
            [
                (
                    int(predictions.rows[i]),
                    int(predictions.predicted[i]),
                    int(predictions.truth[i]),
                )
                for i in order
            ]
        )
        groups = []
        for i, nearest in zip(order, nearest_tiles, strict=True):
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
            groups.append(TileGroup([tile], nearest=nearest))
        note = f"{self._head} got none of {len(predictions):,} {split} images wrong."
        if len(wrong):
            which = f"The {len(order):,} most confident of" if len(order) < len(wrong) else "All"
            note = (
                f"{which} {format_count(len(wrong), 'mistake')} of {self._head} on "
                f"{len(predictions):,} {split} images, with the confidence after calibration. "
                "Below each are the training images most like it, of the label predicted and of "
                "the label given."
            )
        return Gallery(id, "Worst mistakes", note, groups)

    def build_label_issues(self, review: LabelReview, id: str) -> Gallery:
        """Build a gallery of labels that look wrong, the most probably wrong first.

        Parameters
        ----------
        review : LabelReview
        id : str
            Of the HTML element.

        Returns
        -------
        Gallery
        """
        shown = review.issues[: self._max_images]
        number = {label: k for k, label in enumerate(self._task.classes)}
        nearest_tiles = self._find_nearest_tiles(
            [(issue.row, number[issue.proposed], number[issue.given]) for issue in shown]
        )
        groups = [
            TileGroup(
                [
                    self._make_tile(
                        issue.row,
                        ("given", issue.given, ""),
                        ("suggested", issue.proposed, "said"),
                        ("wrong with", format_percent(issue.wrong_probability), ""),
                    )
                ],
                nearest=nearest,
            )
            for issue, nearest in zip(shown, nearest_tiles, strict=True)
        ]
        note = (
            f"{_format_count(len(groups), len(review.issues))} of {review.n_judged:,} labels, the "
            f"most probably wrong first. {self._head} judged each label without having learnt it. "
            f"{review.describe()} Look before you change one."
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

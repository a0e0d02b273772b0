"""Labels matched to the images of a folder, and split into those to train on and those to test."""

import os
from dataclasses import dataclass

import numpy as np

from classify.data.tasks import (
    Task,
    describe_leaking_copies,
    encode_and_split,
    find_labelled_rows,
)
from classify.data.units import Copies, find_copies, find_file_copies
from classify.errors import UnknownPathError
from classify.labels.folders import TEST
from classify.labels.table import LabelTable, labels_from_folders
from featurize.cache.reader import FeatureCache
from featurize.sources.folder import list_images
from featurize.text import list_first


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Labelled images, and which of them are held out.

    Attributes
    ----------
    task_name : str
        Name of the label table.
    task : Task
        Classes, labels and the split of the n images.
    paths : array of str of shape (n,)
        Image paths relative to the image folder.
    rows : int array of shape (n,)
        The cache row of each image, or its position in the order of paths.
    leaks : list of str
        Sentences on copies of training images among the test images.
    """

    task_name: str
    task: Task
    paths: np.ndarray
    rows: np.ndarray
    leaks: list[str]

    @property
    def dev(self) -> np.ndarray:
        """Positions of the images to train on and to validate by."""
        return np.flatnonzero(self.task.split != TEST)

    @property
    def test(self) -> np.ndarray:
        """Positions of the test images."""
        return np.flatnonzero(self.task.split == TEST)


def split_labelled_images(
    images: str | os.PathLike[str],
    given: LabelTable | None,
    level: int | None,
    cache: FeatureCache | None,
    test_size: float,
    seed: int,
) -> LabelledImages:
    """Match labels to images, and hold some of them out.

    Parameters
    ----------
    images : path
        The image folder.
    given : LabelTable, optional
        By default the names of the folders are the labels.
    level : int, optional
        Which folder of a path is its label, see `labels_from_folders`.
    cache : FeatureCache, optional
        Of the same images.
    test_size : float
        Share of the images to hold out, where the labels do not say which.
    seed : int
        Of the split.

    Returns
    -------
    LabelledImages

    Raises
    ------
    UnknownPathError
        If an image of the table does not exist.
    TooFewImagesError
        If there is only one class.
    """
    table, positions, rows, copies, notices = _match_labels_to_images(images, given, level, cache)
    task = encode_and_split(table, positions, rows, copies, test_size, seed, notices)
    paths = np.array([table.paths[i] for i in positions], object)
    leaks = describe_leaking_copies(task, dict(zip(rows, paths, strict=True)))
    return LabelledImages(table.name, task, paths, rows, leaks)


def _match_labels_to_images(
    images: str | os.PathLike[str],
    given: LabelTable | None,
    level: int | None,
    cache: FeatureCache | None,
) -> tuple[LabelTable, np.ndarray, np.ndarray, Copies, list[str]]:
    """Match the lines of a label table to images.

    Without a cache there are no features. Then only files with the same bytes count as copies.

    Parameters
    ----------
    images : path
        The image folder.
    given : LabelTable, optional
        By default the names of the folders are the labels.
    level : int, optional
        Which folder of a path is its label, see `labels_from_folders`.
    cache : FeatureCache, optional
        Of the same images.

    Returns
    -------
    table : LabelTable
    positions : int array of shape (n,)
        The lines of the table that are used.
    rows : int array of shape (n,)
        The cache row of each line. Without a cache, its position in the order of paths.
    copies : Copies
    notices : list of str

    Raises
    ------
    UnknownPathError
        If an image of the table does not exist.
    """
    if cache is not None:
        table = given or labels_from_folders(cache.paths, level)
        rows, positions, notices = find_labelled_rows(cache, table)
        return table, positions, rows, find_copies(cache, rows), notices
    listing = list_images(images)
    table = given or labels_from_folders(listing.paths, level)
    absent = sorted(set(table.paths) - set(listing.paths))
    if absent:
        raise UnknownPathError(
            f"{len(absent):,} of {len(table):,} images of {table.source} are not in {images}: "
            f"{list_first(absent)}; its paths look like {listing.paths[0]!r}. Paths are relative "
            "to that folder"
        )
    positions = np.array(sorted(range(len(table)), key=table.paths.__getitem__), np.intp)
    notices = [sentence for sentence in (table.notice, *listing.skipped) if sentence]
    paths = [table.paths[i] for i in positions]
    index_by_path = dict(zip(listing.paths, range(len(listing.paths)), strict=True))
    sizes = listing.sizes[[index_by_path[path] for path in paths]]
    copies = find_file_copies(images, paths, sizes)
    return table, positions, np.arange(len(positions)), copies, notices

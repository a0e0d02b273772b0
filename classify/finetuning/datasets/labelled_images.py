"""Labels matched to the images of a source, and split into those to train on and those to test."""

from dataclasses import dataclass

import numpy as np

from classify.data.source_images import SourceImages
from classify.data.targets.spec import TaskSpec
from classify.data.targets.task import TargetTask, encode_and_split_targets
from classify.data.task_notices import describe_leaking_copies
from classify.data.tasks import Task, encode_and_split, find_labelled_rows
from classify.data.units import Copies, find_copies, find_image_copies
from classify.errors import UnknownPathError
from classify.labels.folders import TEST
from classify.labels.table import LabelTable
from classify.labels.targets.table import TargetTable
from featurize.cache.reader import FeatureCache
from featurize.text import format_count, list_first


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Labelled images, and which of them are held out.

    Attributes
    ----------
    task_name : str
        Name of the label table.
    task : Task or TargetTask
        Labels and the split of the n images.
    paths : array of str of shape (n,)
        Keys of the images.
    rows : int array of shape (n,)
        The cache row of each image, or its position in the order of paths.
    leaks : list of str
        Sentences on copies of training images among the test images.
    """

    task_name: str
    task: Task | TargetTask
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
    images: SourceImages, spec: TaskSpec, cache: FeatureCache | None
) -> LabelledImages:
    """Match labels to images, and hold some of them out.

    Parameters
    ----------
    images : SourceImages
    spec : TaskSpec
        The labels, and what is held out. By default the labels that came with the images, else
        the names of the folders, are the labels.
    cache : FeatureCache, optional
        Of the same images.

    Returns
    -------
    LabelledImages

    Raises
    ------
    UnknownPathError
        If an image of the table does not exist.
    LabelError, CallError, FileNotFoundError
        As `TaskSpec.read_any_table`.
    TooFewImagesError
        If there is only one class, or all labels are alike.
    """
    table, positions, rows, copies, notices = _match_labels_to_images(images, spec, cache)
    matched = (positions, rows, copies, spec.test_size, spec.seed, notices)
    task: Task | TargetTask
    if isinstance(table, TargetTable):
        task = encode_and_split_targets(table, *matched)
    else:
        task = encode_and_split(table, *matched)
    paths = np.array([table.paths[i] for i in positions], object)
    path_of = dict(zip(rows.tolist(), paths, strict=True))
    leaks = describe_leaking_copies(task, lambda rows: [path_of[row] for row in rows])
    return LabelledImages(table.name, task, paths, rows, leaks)


def _match_labels_to_images(
    images: SourceImages, spec: TaskSpec, cache: FeatureCache | None
) -> tuple[LabelTable | TargetTable, np.ndarray, np.ndarray, Copies, list[str]]:
    """Match the lines of a label table to images.

    Without a cache there are no features. Then only images with the same bytes count as copies.

    Parameters
    ----------
    images, spec, cache
        As in `split_labelled_images`.

    Returns
    -------
    table : LabelTable or TargetTable
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
        table = spec.read_any_table(cache)
        rows, positions, notices = find_labelled_rows(cache, table)
        return table, positions, rows, find_copies(cache, rows), notices
    listing = images.listing
    table = spec.read_listing_table(listing)
    absent = sorted(set(table.paths) - set(listing.paths))
    if absent:
        raise UnknownPathError(
            f"{len(absent):,} of {len(table):,} images of {table.source} are not in "
            f"{listing.root}: {list_first(absent)}; its paths look like {listing.paths[0]!r}. "
            f"Paths are relative to that {'folder' if images.is_folder else 'source'}"
        )
    positions = np.array(sorted(range(len(table)), key=table.paths.__getitem__), np.intp)
    notices = [sentence for sentence in (table.notice, *listing.skipped) if sentence]
    n_unlabelled = len(listing.paths) - len(table)
    if n_unlabelled and table.source == listing.root:  # the labels that came with the images
        notices.append(f"not used: {format_count(n_unlabelled, 'image')} without a label")
    copies = find_image_copies(listing.select([table.paths[i] for i in positions]))
    return table, positions, np.arange(len(positions)), copies, notices

"""Tasks: a label table over a feature cache, with a split into training, validation and test."""

from dataclasses import dataclass

import numpy as np

from classify.data.features import find_rows
from classify.data.splits import hold_out
from classify.data.task_notices import (
    describe_skipped_rows,
    warn_contradictions,
    warn_small_classes,
)
from classify.data.units import Copies, count_units, find_copies
from classify.errors import CallError, LabelError, TooFewImagesError
from classify.labels.folders import TEST, TRAIN, VAL
from classify.labels.table import ImageTable, LabelTable, check_several_classes
from featurize.cache.format import MARKED
from featurize.cache.reader import FeatureCache

NO_TEST_NOTICE = "there are no test images, so no test accuracy"


@dataclass(frozen=True)
class Task:
    """The labelled rows of a cache, in the cache's order.

    Attributes
    ----------
    name : str
    classes : list of str
        Names of the classes, sorted.
    rows : int array of shape (n,)
        Row numbers in the cache, all marked.
    y : int array of shape (n,)
        Class numbers: positions in `classes`.
    split : str array of shape (n,)
        ``train``, ``val`` (for selection) or ``test`` (for the final metrics only).
    groups : int array of shape (n,), or None
        The user's groups, numbered.
    notices : tuple of str
        Messages for the user: images left out, classes too small to be validated.
    units : int array of shape (n,)
        The unit of each image; images of one group and copies of each other share one.
    """

    name: str
    classes: list[str]
    rows: np.ndarray
    y: np.ndarray
    split: np.ndarray
    groups: np.ndarray | None
    notices: tuple[str, ...]
    units: np.ndarray

    def units_for(self, rows: np.ndarray) -> np.ndarray:
        """Return the units of some of the task's rows.

        Parameters
        ----------
        rows : int array of shape (m,)
            Row numbers in the cache, all of the task.

        Returns
        -------
        int array of shape (m,)
        """
        units: np.ndarray = self.units[np.searchsorted(self.rows, rows)]
        return units


def make_task(
    cache: FeatureCache, table: LabelTable, *, test_size: float = 0.2, seed: int = 0
) -> Task:
    """Look a label table up in a cache, and split its images.

    Parameters
    ----------
    cache : FeatureCache
    table : LabelTable
    test_size : float
        The share of every class to hold out where the table has no split; 0 holds out nothing.
    seed : int
        Decides which images are held out.

    Returns
    -------
    Task

    Raises
    ------
    UnknownPathError
        If the table names images that are not in the cache.
    TooFewImagesError
        If there are no training images, or only of one class.
    LabelError
        If a group is on several sides of the table's split.
    CallError
        If `test_size` is not from 0 to below 1.
    """
    check_test_size(test_size)
    rows, position, notices = find_labelled_rows(cache, table)
    return encode_and_split(
        table, position, rows, find_copies(cache, rows), test_size, seed, notices
    )


def check_test_size(test_size: float) -> None:
    """Refuse a test size that is not a share.

    Parameters
    ----------
    test_size : float

    Raises
    ------
    CallError
        If it is not from 0 to below 1.
    """
    if not 0 <= test_size < 1:
        raise CallError(f"the test size is a share from 0 to below 1, not {test_size}")


def encode_and_split(
    table: LabelTable,
    position: np.ndarray,
    rows: np.ndarray,
    copies: Copies,
    test_size: float,
    seed: int,
    notices: list[str],
) -> Task:
    """Encode the labels of some lines of a table as class numbers, and split the images.

    Parameters
    ----------
    table : LabelTable
    position : int array of shape (n,)
        The lines in use, sorted by path.
    rows : int array of shape (n,)
        The row in the cache of each line, ascending.
    copies : Copies
        Which of the n images are copies of each other.
    test_size : float
    seed : int
        As in `make_task`.
    notices : list of str
        Earlier notices, which come first.

    Returns
    -------
    Task

    Raises
    ------
    TooFewImagesError
        If there are no training images, or only of one class.
    LabelError
        If a group is on several sides of the table's split.
    """
    check_groups(table, position)
    classes, y = encode_texts(table.labels, position)
    groups = None if table.groups is None else encode_texts(table.groups, position)[1]
    unit, copy_notices = copies.assign_units(groups, len(y))
    if table.splits is not None:
        split = np.array([table.splits[i] for i in position], "U5")
    else:
        test = hold_out(y, test_size, seed, unit) if len(y) else np.zeros(0, bool)
        split = np.where(test, TEST, TRAIN)
    _check_trainable(table, classes, y[split == TRAIN])
    n_separable = count_units(y[split == TRAIN], unit[split == TRAIN])
    noun = "image" if groups is None else "group"
    all_notices = [*notices, *copy_notices]
    all_notices += warn_contradictions(y, copies.exact, [table.paths[i] for i in position])
    all_notices += warn_small_classes(classes, n_separable, y, split, noun)
    all_notices += [] if TEST in split else [NO_TEST_NOTICE]
    return Task(table.name, classes, rows, y, split, groups, tuple(all_notices), unit)


def check_groups(table: ImageTable, position: np.ndarray) -> None:
    """Refuse a split that has images of one group on several sides.

    Parameters
    ----------
    table : LabelTable
    position : int array of shape (n,)
        The lines in use.

    Raises
    ------
    LabelError
        With the number of such groups for each pair of sides, and the first group.
    """
    if table.splits is None or table.groups is None:
        return
    group_sides: dict[str, dict[str, str]] = {}  # a path by group and side
    for i in position:
        group_sides.setdefault(table.groups[i], {}).setdefault(table.splits[i], table.paths[i])
    split_groups = {group: paths for group, paths in group_sides.items() if len(paths) > 1}
    if not split_groups:
        return
    side_pairs = ((TRAIN, TEST), (TRAIN, VAL), (VAL, TEST))
    counts = {
        side_pair: sum(set(side_pair) <= paths.keys() for paths in split_groups.values())
        for side_pair in side_pairs
    }
    summary = ", ".join(
        f"{count:,} in {' and '.join(side_pair)}" for side_pair, count in counts.items() if count
    )
    group, paths = next(iter(split_groups.items()))
    shown = " and ".join(f"{path!r} in {side}" for side, path in paths.items())
    raise LabelError(
        f"{table.source}: the split tears {len(split_groups):,} of {len(group_sides):,} groups "
        f"apart ({summary}), the first {group!r} ({shown}), which makes a score too good; put each "
        "group on one side, or leave out the split column, so that whole groups are held out, or "
        "the group column"
    )


def find_labelled_rows(
    cache: FeatureCache, table: ImageTable
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Look a label table up in a cache.

    Parameters
    ----------
    cache : FeatureCache
    table : LabelTable

    Returns
    -------
    rows : int array of shape (n,)
        Rows of the cache that are marked and labelled, ascending.
    position : int array of shape (n,)
        The line of the table for each row.
    notices : list of str
        Which folder levels were used, and which images are left out.

    Raises
    ------
    UnknownPathError
        If the table names images that are not in the cache.
    """
    advice = f"Correct {table.source}, or add them with `featurize run`"
    # By path, so that a task does not depend on the table's order.
    position = np.array(sorted(range(len(table)), key=table.paths.__getitem__), np.intp)
    rows = find_rows(cache, table.paths, advice)[position]
    status = cache.column("status", rows)
    ready = np.flatnonzero(status == MARKED)
    notices = [] if table.notice is None else [table.notice]
    notices += describe_skipped_rows(cache, table, rows, status)
    return rows[ready], position[ready], notices


def encode_texts(texts: list[str], position: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Encode the texts at some positions as numbers.

    Parameters
    ----------
    texts : list of str
    position : int array of shape (n,)

    Returns
    -------
    names : list of str
        The distinct texts, sorted.
    number : int array of shape (n,)
        Of the text at each position.
    """
    # Not np.unique, which would make every text as wide as the longest.
    names = sorted({texts[i] for i in position})
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[texts[i]] for i in position], np.intp)


def _check_trainable(table: LabelTable, classes: list[str], y: np.ndarray) -> None:
    if not len(y):
        raise TooFewImagesError(
            f"{table.source} leaves no training images with features in the cache"
        )
    check_several_classes(table, {classes[number] for number in np.unique(y)})

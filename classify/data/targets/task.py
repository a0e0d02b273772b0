"""A table of several labels, numbers or grades over a feature cache, with its split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from classify.data.targets.stratify import hold_out_targets
from classify.data.task_notices import warn_contradictions
from classify.data.tasks import (
    NO_TEST_NOTICE,
    check_groups,
    check_test_size,
    encode_texts,
    find_labelled_rows,
)
from classify.data.units import Copies, find_copies
from classify.errors import TooFewImagesError
from classify.kinds import GRADE, MULTI
from classify.labels.folders import TEST, TRAIN
from classify.labels.targets.table import TargetTable
from featurize.cache.reader import FeatureCache
from featurize.text import list_first

MIN_IMAGES = 2  # with a label, and without it, for it to be learnt


@dataclass(frozen=True, eq=False)
class TargetTask:
    """The labelled rows of a cache, in the cache's order, with labels that are not one class.

    Attributes
    ----------
    name : str
    kind : str
        ``multi``, ``number`` or ``grade``.
    names : tuple of str
        The T labels, the title of the numbers, or the grades from the lowest.
    rows : int array of shape (n,)
        Row numbers in the cache, all marked.
    values : float64 array of shape (n, T)
        As in `classify.labels.targets.table.TargetTable`.
    split : str array of shape (n,)
        ``train``, ``val`` or ``test``.
    groups : int array of shape (n,), or None
        The user's groups, numbered.
    notices : tuple of str
    units : int array of shape (n,)
        The unit of each image; images of one group and copies of each other share one.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    rows: np.ndarray
    values: np.ndarray
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

    @property
    def n_grades(self) -> int | None:
        """Number of grades; None for other kinds."""
        return len(self.names) if self.kind == GRADE else None


def make_target_task(
    cache: FeatureCache, table: TargetTable, *, test_size: float = 0.2, seed: int = 0
) -> TargetTask:
    """Look a table up in a cache, and split its images.

    Parameters
    ----------
    cache : FeatureCache
    table : TargetTable
    test_size : float
        The share to hold out where the table has no split; 0 holds out nothing.
    seed : int
        Decides which images are held out.

    Returns
    -------
    TargetTask

    Raises
    ------
    UnknownPathError
        If the table names images that are not in the cache.
    TooFewImagesError
        If there are no training images, or nothing in their labels to learn.
    LabelError
        If a group is on several sides of the table's split.
    CallError
        If `test_size` is not from 0 to below 1.
    """
    check_test_size(test_size)
    rows, position, notices = find_labelled_rows(cache, table)
    copies = find_copies(cache, rows)
    return encode_and_split_targets(table, position, rows, copies, test_size, seed, notices)


def encode_and_split_targets(
    table: TargetTable,
    position: np.ndarray,
    rows: np.ndarray,
    copies: Copies,
    test_size: float,
    seed: int,
    notices: list[str],
) -> TargetTask:
    """Split the images of some lines of a table.

    Parameters
    ----------
    table : TargetTable
    position, rows, copies, notices
        As in `classify.data.tasks.encode_and_split`.
    test_size, seed
        As in `make_target_task`.

    Returns
    -------
    TargetTask

    Raises
    ------
    TooFewImagesError, LabelError
        As `make_target_task`.
    """
    check_groups(table, position)
    values = table.values[position]
    groups = None if table.groups is None else encode_texts(table.groups, position)[1]
    units, copy_notices = copies.assign_units(groups, len(rows))
    if table.splits is not None:
        split = np.array([table.splits[i] for i in position], "U5")
    elif len(rows):
        is_test = hold_out_targets(table.kind, values, test_size, seed, units)
        split = np.where(is_test, TEST, TRAIN)
    else:
        split = np.zeros(0, "U5")
    notices = [*notices, *copy_notices]
    if len(rows):
        _, y = np.unique(values, axis=0, return_inverse=True, equal_nan=True)
        paths = [table.paths[i] for i in position]
        notices += warn_contradictions(y.ravel(), copies.exact, paths)
    if TRAIN not in split:
        raise TooFewImagesError(
            f"{table.source} leaves no training images with features in the cache"
        )
    notices += check_learnable(table.source, table.kind, table.names, values[split == TRAIN])
    notices += [] if TEST in split else [NO_TEST_NOTICE]
    return TargetTask(
        table.name,
        table.kind,
        table.names,
        rows,
        values,
        split,
        groups,
        tuple(notices),
        units,
    )


def check_learnable(source: str, kind: str, names: Sequence[str], values: np.ndarray) -> list[str]:
    """Refuse labels from which nothing can be learnt; name those of several that cannot.

    Parameters
    ----------
    source : str
        Where they come from, for messages.
    kind : str
        ``multi``, ``number`` or ``grade``.
    names : sequence of str
        As in `TargetTask`.
    values : float64 array of shape (n, T)
        Labels of the training images, of which there are some.

    Returns
    -------
    list of str
        One sentence, or none.

    Raises
    ------
    TooFewImagesError
        If all are alike.
    """
    if kind == MULTI:
        with_label, without = (values == 1).sum(axis=0), (values == 0).sum(axis=0)
        is_rare = np.minimum(with_label, without) < MIN_IMAGES
        rare = [names[int(k)] for k in np.flatnonzero(is_rare)]
        if is_rare.all():
            raise TooFewImagesError(
                f"no label of {source} has {MIN_IMAGES} training images with it and "
                f"{MIN_IMAGES} without it; add images"
            )
        what = f"{len(rare):,} labels have" if len(rare) > 1 else "one label has"
        return (
            [f"{what} fewer than {MIN_IMAGES} training images with or without it: "
             f"{list_first(rare)}"]
            if rare
            else []
        )  # fmt: skip
    if len(np.unique(values)) < 2:
        label = names[int(values[0, 0])] if kind == GRADE else f"{values[0, 0]:g}"
        raise TooFewImagesError(
            f"every training image of {source} has the {kind} {label}; a head needs two at least"
        )
    return []

"""Tasks: a label table over a feature cache, split into what is learnt from and what is not."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from classify.data.features import find_rows
from classify.data.folder_labels import TEST, TRAIN, VAL
from classify.data.labels import LabelsLike, LabelTable, resolve_labels
from classify.data.splits import hold_out
from classify.data.units import Copies, count_units, find_copies
from classify.errors import CallError, LabelError, TooFewImagesError
from featurize.cache.format import FAILED, MARKED
from featurize.cache.reader import FeatureCache
from featurize.text import list_first

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
        Row numbers in the cache; every one of them is marked.
    y : int array of shape (n,)
        Class numbers: positions in `classes`.
    split : text array of shape (n,)
        ``train``, ``val`` (for choices) or ``test`` (for the final score only).
    groups : int array of shape (n,), or None
        The user's, by number.
    notices : tuple of str
        What a user should know: images left out, classes too small to be validated.
    units : int array of shape (n,)
        A number for each image; those of one group and copies of each other share theirs.
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
        """The units of some of its rows: int array of shape (m,)."""
        found: np.ndarray = self.units[np.searchsorted(self.rows, rows)]
        return found


@dataclass(frozen=True)
class TaskSpec:
    """What a task is made of, as the user gives it.

    Attributes
    ----------
    labels : LabelTable or path of a CSV, optional
        Folder names, if not given.
    column : str
        The column of the CSV that holds the labels.
    labels_level : int, optional
        Which folder names the label, 1 for the topmost; found out if not given.
    test_size : float
        The share of every class to hold out where the table has no split; 0 holds out nothing.
    seed : int
        Decides which images that are.
    """

    labels: LabelsLike = None
    column: str = "label"
    labels_level: int | None = None
    test_size: float = 0.2
    seed: int = 0

    def read_table(self, cache: FeatureCache) -> LabelTable:
        """The label table: given, read from its file, or made of the cache's folder names.

        Raises
        ------
        LabelError, CallError, FileNotFoundError
        """
        return resolve_labels(cache, self.labels, self.column, self.labels_level)

    def make_task(self, cache: FeatureCache) -> Task:
        """The task over a cache, see `make_task`.

        Raises
        ------
        ClassifyError, FileNotFoundError
        """
        table = self.read_table(cache)
        return make_task(cache, table, test_size=self.test_size, seed=self.seed)

    def as_keywords(self) -> dict[str, Any]:
        """All but the labels, as keyword arguments of the public functions."""
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    def as_command_options(self) -> list[str]:
        """What differs from the defaults, as options of the command line."""
        words: list[str] = []
        if self.labels is not None:
            given = self.labels
            source = given.source if isinstance(given, LabelTable) else os.fspath(given)
            words += ["--labels", source]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                words += [f"--{field.name.replace('_', '-')}", str(value)]
        return words


def make_task(
    cache: FeatureCache, table: LabelTable, *, test_size: float = 0.2, seed: int = 0
) -> Task:
    """Look a label table up in a cache and settle the split.

    Parameters
    ----------
    test_size : float
        The share of every class to hold out where the table has no split; 0 holds out nothing.
    seed : int
        Decides which images that are.

    Raises
    ------
    UnknownPath
        If the table names images that are not in the cache.
    TooFewImages
        If there are no training images, or only of one class.
    LabelError
        If the table's split tears a group.
    CallError
        If `test_size` is not from 0 to below 1.
    """
    check_test_size(test_size)
    rows, position, notices = find_labelled_rows(cache, table)
    return encode_and_split(
        table, position, rows, find_copies(cache, rows), test_size, seed, notices
    )


def check_test_size(test_size: float) -> None:
    """Refuse what is no share: CallError."""
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
    """Number the classes of some lines of a table, and settle the split.

    Parameters
    ----------
    table : LabelTable
    position : int array of shape (n,)
        The lines, by path.
    rows : int array of shape (n,)
        A number for each, ascending: its row in the cache.
    copies : Copies
        Which of the n are copies of each other.
    test_size, seed
        As in `make_task`.
    notices : list of str
        What is to be said already.

    Raises
    ------
    TooFewImages, LabelError
    """
    check_groups(table, position)
    classes, y = _encode(table.labels, position)
    groups = None if table.groups is None else _encode(table.groups, position)[1]
    unit, told = copies.assign_units(groups, len(y))
    if table.splits is not None:
        split = np.array([table.splits[i] for i in position], "U5")
    else:
        test = hold_out(y, test_size, seed, unit) if len(y) else np.zeros(0, bool)
        split = np.where(test, TEST, TRAIN)
    _check_trainable(table, classes, y[split == TRAIN])
    apart = count_units(y[split == TRAIN], unit[split == TRAIN])
    what = "image" if groups is None else "group"
    said = (*notices, *told, *_warn_small_classes(classes, apart, split, what))
    return Task(table.name, classes, rows, y, split, groups, said, unit)


def describe_leaking_copies(task: Task, paths: Sequence[str] | Mapping[int, str]) -> list[str]:
    """Say which test images are copies of images that are learnt from or chosen by.

    Parameters
    ----------
    task : Task
    paths : sequence of str, or mapping
        By row.

    Returns
    -------
    list of str
        A sentence, or none.
    """
    first: dict[int, int] = {}
    for i in np.flatnonzero(task.split != TEST):
        first.setdefault(int(task.units[i]), int(i))
    tested = np.flatnonzero(task.split == TEST)
    pairs = [(int(i), first[unit]) for i in tested if (unit := int(task.units[i])) in first]
    if not pairs:
        return []
    shown = ", ".join(f"{paths[task.rows[a]]!r} = {paths[task.rows[b]]!r}" for a, b in pairs[:3])
    return [
        f"{len(pairs):,} of {len(tested):,} test images are copies of images that are learnt from "
        "or chosen by, which makes the score too good (put copies on one side of the split): "
        f"{shown}{', ...' if len(pairs) > 3 else ''}"
    ]


def check_groups(table: LabelTable, position: np.ndarray) -> None:
    """Refuse a split that has images of one group on several sides.

    Parameters
    ----------
    table : LabelTable
    position : int array of shape (n,)
        The lines that are used.

    Raises
    ------
    LabelError
        With the number of groups that are torn, side by side, and the first of them.
    """
    if table.splits is None or table.groups is None:
        return
    sides: dict[str, dict[str, str]] = {}  # an image of each group on each side
    for i in position:
        sides.setdefault(table.groups[i], {}).setdefault(table.splits[i], table.paths[i])
    torn = {group: found for group, found in sides.items() if len(found) > 1}
    if not torn:
        return
    pairs = ((TRAIN, TEST), (TRAIN, VAL), (VAL, TEST))
    count = {pair: sum(set(pair) <= found.keys() for found in torn.values()) for pair in pairs}
    told = ", ".join(f"{n:,} in {' and '.join(pair)}" for pair, n in count.items() if n)
    group, found = next(iter(torn.items()))
    shown = " and ".join(f"{path!r} in {side}" for side, path in found.items())
    raise LabelError(
        f"{table.source}: the split tears {len(torn):,} of {len(sides):,} groups apart ({told}), "
        f"the first {group!r} ({shown}), which makes a score too good; put each group on one side, "
        "or leave out the split column, so that whole groups are held out, or the group column"
    )


def find_labelled_rows(
    cache: FeatureCache, table: LabelTable
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Look a label table up in a cache.

    Returns
    -------
    rows : int array of shape (n,)
        Rows of the cache that are marked and labelled, ascending.
    position : int array of shape (n,)
        Where the table names each.
    notices : list of str
        What was taken for what, where folders say it; what was left out.

    Raises
    ------
    UnknownPath
        If the table names images that are not in the cache.
    """
    advice = f"Correct {table.source}, or add them with `featurize run`"
    # By path, so that a task does not depend on the table's order.
    position = np.array(sorted(range(len(table)), key=table.paths.__getitem__), np.intp)
    rows = find_rows(cache, table.paths, advice)[position]
    status = cache.status[rows]
    ready = np.flatnonzero(status == MARKED)
    told = [] if table.notice is None else [table.notice]
    return rows[ready], position[ready], [*told, *_describe_skipped_rows(cache, table, status)]


def _encode(texts: list[str], position: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The different texts, sorted, and which of them each position holds."""
    # Not np.unique, which would make every text as wide as the longest.
    names = sorted({texts[i] for i in position})
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[texts[i]] for i in position], np.intp)


def _check_trainable(table: LabelTable, classes: list[str], y: np.ndarray) -> None:
    if not len(y):
        raise TooFewImagesError(
            f"{table.source} leaves no training images with features in the cache"
        )
    if len(np.unique(y)) < 2:
        raise TooFewImagesError(
            f"every training image of {table.source} has the label {classes[y[0]]!r}; "
            "a head needs at least two classes"
        )


def _describe_skipped_rows(
    cache: FeatureCache, table: LabelTable, status: np.ndarray
) -> Iterator[str]:
    failed = int((status == FAILED).sum())
    pending = int((status != MARKED).sum()) - failed
    if failed or pending:
        yield (
            f"{failed + pending:,} labelled images are left out, having no features in the cache: "
            f"{failed:,} failed, {pending:,} pending (`featurize info {cache.path}` lists them)"
        )
    unlabelled = cache.n_rows - len(table)
    if unlabelled:
        yield f"{unlabelled:,} images of the cache have no label in {table.source} and are not used"


def _warn_small_classes(
    classes: list[str], apart: np.ndarray, split: np.ndarray, what: str
) -> Iterator[str]:
    apart = np.pad(apart, (0, len(classes) - len(apart)))
    if not (split == VAL).any() and (apart == 1).any():
        yield (
            f"{_list_classes(classes, apart == 1)} with training images of one {what} only: "
            "learnt from, but left out of the validation"
        )
    if (apart == 0).any():
        names = _list_classes(classes, apart == 0)
        yield f"{names} with no training image: always counted as wrong"
    if not (split == TEST).any():
        yield NO_TEST_NOTICE


def _list_classes(classes: list[str], chosen: np.ndarray) -> str:
    names = [classes[i] for i in np.flatnonzero(chosen)]
    return f"{len(names):,} {'class' if len(names) == 1 else 'classes'} ({list_first(names)})"

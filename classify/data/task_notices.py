"""Notices about a task: rows of the cache that are left out, classes that are too small."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from classify.labels.folders import TEST, VAL
from classify.labels.table import ImageTable
from featurize.cache.format import FAILED, MARKED
from featurize.cache.reader import FeatureCache
from featurize.text import format_count, list_first


class SplitRows(Protocol):
    """What tasks of all kinds have."""

    @property
    def rows(self) -> np.ndarray:
        """Row numbers in the cache: int array of shape (n,)."""

    @property
    def split(self) -> np.ndarray:
        """``train``, ``val`` or ``test``: str array of shape (n,)."""

    @property
    def units(self) -> np.ndarray:
        """The unit of each image: int array of shape (n,)."""


def describe_skipped_rows(
    cache: FeatureCache, table: ImageTable, rows: np.ndarray, status: np.ndarray
) -> Iterator[str]:
    """Describe labelled images without features, and images of the cache without a label.

    Parameters
    ----------
    cache : FeatureCache
    table : LabelTable or TargetTable
    rows : int array of shape (m,)
        The row in the cache of each image of the table, ascending.
    status : uint8 array of shape (m,)
        Their status.

    Yields
    ------
    str
        A sentence for each kind of images that are left out.
    """
    failed = int((status == FAILED).sum())
    pending = int((status != MARKED).sum()) - failed
    if failed or pending:
        yield (
            f"left out: {format_count(failed + pending, 'labelled image')} without features: "
            f"{failed:,} failed, {pending:,} pending (`featurize info {cache.path}` lists them)"
        )
    unlabelled = cache.n_rows - len(table)
    if unlabelled > 0:
        known = np.unique(rows)
        is_gap = np.append(known != np.arange(len(known)), True)
        (first,) = cache.paths_of([int(np.argmax(is_gap))])
        yield (
            f"not used: {format_count(unlabelled, 'image')} of the cache without a label in "
            f"{table.source} (first: {first!r})"
        )


def warn_small_classes(
    classes: list[str], n_separable: np.ndarray, y: np.ndarray, split: np.ndarray, noun: str
) -> Iterator[str]:
    """Warn of classes that cannot be validated, trained or tested.

    Parameters
    ----------
    classes : list of str
        K class names.
    n_separable : int array of shape (K,) or shorter
        Training images (or units) of each class; 0 for those beyond its end.
    y : int array of shape (n,)
        Class numbers.
    split : str array of shape (n,)
        The side of each image.
    noun : str
        What is counted: ``image`` or ``group``.

    Yields
    ------
    str
        A sentence for each kind of small classes.
    """
    n_separable = np.pad(n_separable, (0, len(classes) - len(n_separable)))
    if not (split == VAL).any() and (n_separable == 1).any():
        yield (
            f"{_list_classes(classes, n_separable == 1)} with training images of one {noun} only: "
            "learnt from, but left out of the validation"
        )
    if (n_separable == 0).any():
        names = _list_classes(classes, n_separable == 0)
        yield f"{names} with no training image: always counted as wrong"
    is_untested = ~np.isin(np.arange(len(classes)), y[split == TEST])
    if TEST in split and is_untested.any():
        yield f"{_list_classes(classes, is_untested)} with no test image: no figure is about them"


def warn_contradictions(y: np.ndarray, exact: np.ndarray, paths: list[str]) -> Iterator[str]:
    """Warn of images with the same bytes and different labels.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    exact : int array of shape (p, 2)
        Positions of pairs of images with the same bytes.
    paths : list of str
        The n images.

    Yields
    ------
    str
        At most one sentence.
    """
    pairs = exact[y[exact[:, 0]] != y[exact[:, 1]]] if len(exact) else exact
    if len(pairs):
        first = ", ".join(repr(paths[i]) for i in pairs[0])
        images = len(np.unique(pairs))
        yield (
            f"{images:,} images have the bytes of another image and not its label: one of the two "
            f"labels is wrong (first: {first})"
        )


def _list_classes(classes: list[str], chosen: np.ndarray) -> str:
    names = [classes[i] for i in np.flatnonzero(chosen)]
    return f"{len(names):,} {'class' if len(names) == 1 else 'classes'} ({list_first(names)})"


def describe_leaking_copies(
    task: SplitRows, paths_of: Callable[[list[int]], Sequence[str]]
) -> list[str]:
    """Describe the test images that are copies of training or validation images.

    Parameters
    ----------
    task : Task or TargetTask
    paths_of : callable
        Takes rows; returns the paths of their images.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    first_of_unit: dict[int, int] = {}
    for i in np.flatnonzero(task.split != TEST):
        first_of_unit.setdefault(int(task.units[i]), int(i))
    tested = np.flatnonzero(task.split == TEST)
    pairs = [
        (int(i), first_of_unit[unit])
        for i in tested
        if (unit := int(task.units[i])) in first_of_unit
    ]
    if not pairs:
        return []
    rows = [int(task.rows[i]) for pair in pairs[:3] for i in pair]
    paths = paths_of(rows)
    shown = ", ".join(f"{a!r} = {b!r}" for a, b in zip(paths[::2], paths[1::2], strict=True))
    return [
        f"{len(pairs):,} of {len(tested):,} test images are copies of images that are learnt from "
        "or chosen by, which makes the score too good (put copies on one side of the split): "
        f"{shown}{', ...' if len(pairs) > 3 else ''}"
    ]

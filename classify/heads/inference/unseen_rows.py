"""Labelled rows that a head was not trained on."""

import numpy as np

from classify.data.tasks import check_groups, find_labelled_rows
from classify.data.units import find_copies
from classify.errors import CallError
from classify.heads.inference.images import EmbeddingHead
from classify.labels.folders import TEST
from classify.labels.table import ImageTable
from featurize.cache.reader import FeatureCache


def select_unseen_rows(
    head: EmbeddingHead, cache: FeatureCache, table: ImageTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Select the labelled rows that a head was neither trained on nor chosen by.

    Parameters
    ----------
    head : FittedHead or FittedTargets
    cache : FeatureCache
    table : LabelTable or TargetTable
        Where it has a split, only its test images count.

    Returns
    -------
    rows, position, unit : int arrays of shape (n,)
        Rows of the cache, lines of the table, and units.
    notices : list of str
        What is left out.

    Raises
    ------
    UnknownPathError
        If a labelled image is not in the cache.
    LabelError
        If a group is on several sides of the table's split.
    CallError
        If no image is left.
    """
    rows, position, notices = find_labelled_rows(cache, table)
    check_groups(table, position)
    chosen = np.ones(len(rows), bool)
    if table.splits is not None:
        chosen = np.array([table.splits[i] == TEST for i in position], bool)
    trained = head.trained_on(cache.column("sha256", rows))
    if (chosen & trained).any():
        notices.append(
            f"{int((chosen & trained).sum()):,} images are left out: the head was trained on them, "
            "or its setting chosen by them"
        )
    chosen &= ~trained
    if not chosen.any():
        raise CallError(
            f"{table.source} leaves no images in {cache.path} to score this head on, apart from "
            "those it was trained on or chosen by"
        )
    groups = None
    if table.groups is not None:
        groups = np.array([table.groups[i] for i in position], object)
    unit, copy_notices = find_copies(cache, rows).assign_units(groups, len(rows))
    notices += copy_notices
    if (linked := chosen & np.isin(unit, unit[trained])).any():
        notices.append(
            f"{int(linked.sum()):,} images are nearly the same as images that the head was trained "
            "on, or in one group with them, which makes the score too good"
        )
    return rows[chosen], position[chosen], unit[chosen], notices

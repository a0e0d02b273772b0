"""Splits and folds for labels that are not one class, with their distribution in every part."""

from typing import Any

import numpy as np

from classify.data.folds import (
    MAX_FOLDS,
    FoldPlan,
    plan_content_folds,
    plan_folds,
    plan_task_folds,
)
from classify.data.splits import VALIDATION_FRACTION, hold_out
from classify.errors import CallError, TooFewImagesError
from classify.kinds import GRADE, MULTI

MAX_BINS, MIN_PER_BIN = 10, 10
"""Numbers are stratified by so many quantiles at most, of so many images at least."""


def hold_out_targets(
    kind: str, values: np.ndarray, share: float, seed: int, unit: np.ndarray
) -> np.ndarray:
    """Choose test images at random, with about the same labels as all images.

    Parameters
    ----------
    kind : str
        ``multi``, ``number`` or ``grade``.
    values : float64 array of shape (n, T)
        As in `classify.labels.targets.table.TargetTable`.
    share : float
        From 0 to below 1.
    seed : int
    unit : int array of shape (n,)
        Images with the same number are on one side.

    Returns
    -------
    bool array of shape (n,)
    """
    if kind != MULTI:
        return hold_out(assign_strata(kind, values), share, seed, unit)
    if not share:
        return np.zeros(len(values), bool)
    shares = np.array([1 - share, share])
    part = draw_stratified_parts(values == 1, shares, [seed, 3], unit)
    return np.asarray(part == 1)


def split_target_validation(
    kind: str, values: np.ndarray, groups: Any, validation: Any, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split off the validation images: those the user marked, or a tenth with labels like all.

    Parameters
    ----------
    kind, values, seed
        As in `hold_out_targets`.
    groups : array of shape (n,), or None
        Images of one group stay on one side.
    validation : bool array of shape (n,), or None
        The images the user marked.

    Returns
    -------
    training, validation : bool arrays of shape (n,)

    Raises
    ------
    CallError
        If `groups` or `validation` is of another length.
    TooFewImagesError
        If nothing can be validated, or nothing is left to train on.
    """
    n = len(values)
    for name, given in (("groups", groups), ("validation", validation)):
        if given is not None and len(given) != n:
            raise CallError(f"{len(given):,} {name} do not go with {n:,} labels")
    if validation is not None:
        is_validation = np.asarray(validation, bool)
    else:
        unit = np.arange(n)
        if groups is not None:
            unit = np.unique(np.asarray(groups), return_inverse=True)[1]
        is_validation = hold_out_targets(kind, values, VALIDATION_FRACTION, seed, unit)
    if not is_validation.any() or is_validation.all():
        raise TooFewImagesError(
            "to train on and to validate by takes images each; add images, or mark some, not all, "
            "as val in a split column"
        )
    return ~is_validation, is_validation


def plan_target_folds(
    kind: str,
    values: np.ndarray,
    contents: np.ndarray,
    seed: int,
    unit: np.ndarray,
    val: np.ndarray,
) -> FoldPlan:
    """Plan the folds that settings are chosen by.

    Where every label (or quantile, or grade) has 50 images, folds follow from the images' bytes, as
    for classes: then what is computed for them serves every table over the same images.

    Parameters
    ----------
    kind, values, seed, unit
        As in `hold_out_targets`.
    contents : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    val : bool array of shape (n,)
        The user's validation images.

    Returns
    -------
    FoldPlan
    """
    if kind != MULTI:
        y = assign_strata(kind, values)
        return plan_task_folds(y, contents, seed, unit, val)
    if val.any():
        return plan_folds(np.zeros(len(values), np.intp), seed, unit, val)
    has_label = values == 1
    plans = [plan_content_folds(y, contents, seed, unit) for y in _list_binary(values)]
    if plans and all(plan is not None for plan in plans):
        return plans[0]  # type: ignore[return-value]
    n_folds = min(MAX_FOLDS, len(np.unique(unit)))
    part = draw_stratified_parts(has_label, np.full(n_folds, 1 / n_folds), [seed, 4], unit)
    val_indices = [np.flatnonzero(part == i) for i in range(n_folds)]
    if n_folds < 2 or min(map(len, val_indices)) == 0:
        return FoldPlan(np.zeros(len(values), np.int16), [])
    return FoldPlan(part.astype(np.int16), val_indices)


def _list_binary(values: np.ndarray) -> list[np.ndarray]:
    return [(column == 1).astype(np.intp) for column in values.T]


def assign_strata(kind: str, values: np.ndarray) -> np.ndarray:
    """Assign numbers or grades to strata.

    Parameters
    ----------
    kind : str
        ``number`` or ``grade``.
    values : float64 array of shape (n, 1)

    Returns
    -------
    int array of shape (n,)
        The grade, or the quantile of the number: ten of them, fewer for under 100 images. Equal
        numbers are in one.
    """
    numbers = values[:, 0]
    if kind == GRADE:
        return np.unique(numbers, return_inverse=True)[1].astype(np.intp)
    n_bins = max(1, min(MAX_BINS, len(numbers) // MIN_PER_BIN))
    edges = np.quantile(numbers, np.arange(1, n_bins) / n_bins)
    bins = np.searchsorted(edges, numbers, side="right")
    return np.unique(bins, return_inverse=True)[1].astype(np.intp)


def draw_stratified_parts(
    has_label: np.ndarray, shares: np.ndarray, seed: list[int], unit: np.ndarray
) -> np.ndarray:
    """Divide images into parts in which every label is about as frequent as in all.

    Iterative stratification (K. Sechidis, G. Tsoumakas and I. Vlahavas, 2011, "On the
    Stratification of Multi-Label Data", ECML PKDD): the images of the rarest label are dealt out
    first, each to the part that lacks most images of this label, of equals to the one that lacks
    most images. Whole units are dealt out.

    Parameters
    ----------
    has_label : bool array of shape (n, T)
    shares : float array of shape (P,)
        Share of each part, 1 in all.
    seed : list of int
    unit : int array of shape (n,)
        Images with the same number are in one part.

    Returns
    -------
    int array of shape (n,)
        The part of each image.
    """
    rng = np.random.default_rng(seed)
    _, unit = np.unique(unit, return_inverse=True)
    sizes = np.bincount(unit).astype(float)
    counts = np.zeros((len(sizes), has_label.shape[1]))
    np.add.at(counts, unit, has_label)
    wanted = shares[:, None] * counts.sum(axis=0)  # images of each label, by part
    room = shares * sizes.sum()
    left, is_dealt = (counts > 0).sum(axis=0), np.zeros(len(sizes), bool)
    part = np.empty(len(sizes), np.intp)
    order = rng.permutation(len(sizes))
    while (left > 0).any():
        label = int(np.argmin(np.where(left > 0, left, np.inf)))
        for i in order[(counts[order, label] > 0) & ~is_dealt[order]]:
            part[i] = _choose_part(wanted[:, label], room, rng)
            is_dealt[i] = True
            wanted[part[i]] -= counts[i]
            room[part[i]] -= sizes[i]
            left -= counts[i] > 0
    for i in order[~is_dealt[order]]:  # images without any label
        part[i] = _choose_part(room, room, rng)
        room[part[i]] -= sizes[i]
    return part[unit]


def _choose_part(wanted: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> int:
    best = np.flatnonzero(wanted >= wanted.max() - 1e-9)
    best = best[room[best] >= room[best].max() - 1e-9]
    return int(best[0] if len(best) == 1 else rng.choice(best))

"""Splits: which images are held out for the test and for validation."""

from typing import Any

import numpy as np

from classify.data.units import is_mostly_singletons
from classify.errors import CallError, TooFewImagesError

VALIDATION_FRACTION = 0.1  # of the images, for early stopping


def hold_out(y: np.ndarray, share: float, seed: int, unit: np.ndarray | None = None) -> np.ndarray:
    """Choose test images at random: about `share` of every class, and never all of one.

    A unit is either tested or trained on as a whole. Where most units are single images, images are
    drawn, and a unit goes to the side that has most of it. Otherwise units are drawn in random
    order, and one is held out if that brings the held-out class counts nearer to `share`.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    share : float
        From 0 (nothing) to below 1.
    seed : int
    unit : int array of shape (n,), optional
        Images with the same number stay together. Each image is its own unit if not given.

    Returns
    -------
    bool array of shape (n,)
        True for a test image; False everywhere if nothing can be held out.
    """
    rng = np.random.default_rng(seed)
    if unit is None:
        return _draw_images(y, share, rng)
    unit = np.unique(unit, return_inverse=True)[1]
    if not is_mostly_singletons(unit):
        return _draw_units(y, unit, share, rng)
    return _make_units_whole(_draw_images(y, share, rng), y, unit)


def _make_units_whole(test: np.ndarray, y: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Put each unit on the side that has most of it, and leave every class some to train on."""
    size = np.bincount(unit)
    test = (np.bincount(unit, test) > size / 2)[unit]
    for k in np.setdiff1d(y, y[~test]):
        test &= ~np.isin(unit, unit[(y == k) & (size[unit] > 1)])
    return test


def _draw_images(y: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    counts = np.bincount(y)
    n_test = np.floor(share * counts).astype(np.intp)
    # What rounding down left out goes to the classes with the largest remainders.
    remainder = share * counts - n_test
    n_missing = round(share * len(y)) - int(n_test.sum())
    n_test[np.lexsort((rng.random(len(counts)), -remainder))[:n_missing]] += 1
    n_test = np.minimum(n_test, np.maximum(counts - 1, 0))
    order = np.lexsort((rng.random(len(y)), y))
    rank = np.empty(len(y), np.intp)
    rank[order] = np.arange(len(y)) - (np.cumsum(counts) - counts)[y[order]]
    return np.asarray(rank < n_test[y])


def _draw_units(
    y: np.ndarray, unit: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    counts = np.bincount(y)
    target, n_held = share * counts, np.zeros(len(counts))
    members = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
    test = np.zeros(len(y), bool)
    nearest, nearest_gap = -1, np.inf
    for number in rng.permutation(len(members)):
        n_held_with = n_held + np.bincount(y[members[number]], minlength=len(counts))
        if (n_held_with >= counts)[counts > 0].any():
            continue  # a class would have no training images
        gap = float(np.linalg.norm(n_held_with - target))
        if gap < np.linalg.norm(n_held - target):
            test[members[number]], n_held = True, n_held_with
        elif not test.any() and gap < nearest_gap:
            nearest, nearest_gap = number, gap
    if share and not test.any() and nearest >= 0:
        test[members[nearest]] = True  # every unit is too large to come nearer to the share
    return test


def split_validation(
    y: np.ndarray, classes: list[str], groups: Any, validation: Any, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split off the validation images: those the user marked, or a tenth of every class.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    classes : list of str
        Names of the classes, by number.
    groups : array of shape (n,), or None
        Images of one group stay on one side.
    validation : bool array of shape (n,), or None
        The images the user marked.
    seed : int

    Returns
    -------
    training, validation : bool arrays of shape (n,)

    Raises
    ------
    CallError
        If `groups` or `validation` is of another length.
    TooFewImagesError
        If there is one class only, a class has one image, nothing can be validated, or a class has
        no training images.
    """
    for name, values in (("groups", groups), ("validation", validation)):
        if values is not None and len(values) != len(y):
            raise CallError(f"{len(values):,} {name} do not go with {len(y):,} labels")
    _check_classes(y, classes)
    if validation is not None:
        is_validation = np.asarray(validation, bool)
    else:
        unit = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        is_validation = hold_out(y, VALIDATION_FRACTION, seed, unit)
    if not is_validation.any():
        raise TooFewImagesError(
            "nothing can be held out to decide when to stop; add images, or mark some as val "
            "in a split column"
        )
    absent = np.setdiff1d(np.arange(len(classes)), y[~is_validation])
    if len(absent):
        raise TooFewImagesError(
            f"class {classes[absent[0]]!r} has validation images only; give it some to train on"
        )
    return ~is_validation, is_validation


def _check_classes(y: np.ndarray, classes: list[str]) -> None:
    if len(classes) < 2:
        problem = f"every training image has the label {classes[0]!r}" if classes else "no images"
        raise TooFewImagesError(f"{problem}; a classifier needs at least two classes")
    counts = np.bincount(y)
    if (counts < 2).any():
        rare = [repr(classes[k]) for k in np.flatnonzero(counts < 2)]
        raise TooFewImagesError(
            f"{len(rare)} of {len(counts)} classes have one training image only "
            f"({', '.join(rare[:3])}); to train on and to validate by takes two each: add "
            "images, or take these classes out of the labels"
        )

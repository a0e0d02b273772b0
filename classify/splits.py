"""Which images are held out: for the final score, and in turn for choices."""

from collections.abc import Iterator

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

MAX_FOLDS = 5


def hold_out(
    y: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Choose test images at random: about `share` of every class, and never all of one.

    With groups, a group is either tested or trained on as a whole. They are drawn in random
    order, and one is held out if that brings the held-out class counts nearer to `share`.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    share : float
        From 0 (nothing) to below 1.
    groups : int array of shape (n,), optional

    Returns
    -------
    bool array of shape (n,)
        True for a test image; nowhere if nothing can be held out.
    """
    rng = np.random.default_rng(seed)
    return _draw_rows(y, share, rng) if groups is None else _draw_groups(y, groups, share, rng)


def _draw_rows(y: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    counts = np.bincount(y)
    take = np.floor(share * counts).astype(np.intp)
    # What rounding down left over goes to the classes that lost most by it.
    loss = share * counts - take
    spare = round(share * len(y)) - int(take.sum())
    take[np.lexsort((rng.random(len(counts)), -loss))[:spare]] += 1
    take = np.minimum(take, np.maximum(counts - 1, 0))
    order = np.lexsort((rng.random(len(y)), y))
    rank = np.empty(len(y), np.intp)
    rank[order] = np.arange(len(y)) - (np.cumsum(counts) - counts)[y[order]]
    return np.asarray(rank < take[y])


def _draw_groups(
    y: np.ndarray, groups: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    counts = np.bincount(y)
    target, held = share * counts, np.zeros(len(counts))
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    test = np.zeros(len(y), bool)
    nearest, nearest_gap = -1, np.inf
    for group in rng.permutation(len(members)):
        with_it = held + np.bincount(y[members[group]], minlength=len(counts))
        if not len(members[group]) or (with_it >= counts)[counts > 0].any():
            continue  # a class would have nothing left to be learnt from
        gap = float(np.linalg.norm(with_it - target))
        if gap < np.linalg.norm(held - target):
            test[members[group]], held = True, with_it
        elif not test.any() and gap < nearest_gap:
            nearest, nearest_gap = group, gap
    if share and not test.any() and nearest >= 0:
        test[members[nearest]] = True  # every group is larger than the share
    return test


def units(y: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """How often each class can be torn apart: its images, or the groups they are in."""
    if groups is None:
        return np.bincount(y)
    return np.bincount(np.unique(np.stack([y, groups]), axis=1)[0])


def folds(
    y: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds for choosing a setting: five, or fewer if a class has fewer images.

    A class with a single image (or a single group) cannot be validated. It is left out of
    the score and stays in the training parts.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    groups : int array of shape (n,), optional
        Images of one group are never on both sides.

    Yields
    ------
    train, validation : int arrays
        Positions in `y`; at least two classes to train on. Nothing if no class can be validated.
    """
    apart = units(y, groups)
    usable = np.flatnonzero(apart[y] >= 2)
    if not len(usable):
        return
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(min(MAX_FOLDS, int(apart[apart >= 2].min())), shuffle=True, random_state=seed)
    within = None if groups is None else groups[usable]
    for _, part in splitter.split(usable, y[usable], within):
        held = usable[part]
        out = np.zeros(len(y), bool)
        out[held] = True
        if groups is not None:
            out = np.isin(groups, groups[held])
        train = np.flatnonzero(~out)
        if len(held) and len(np.unique(y[train])) > 1:
            yield train, held

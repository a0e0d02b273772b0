"""Folds: which rows are held out in turn when a setting is chosen."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from classify.data.units import count_units, is_mostly_singletons

MAX_FOLDS = 5

MIN_PER_CLASS = (
    50  # images of each class, from which on folds may be drawn without looking at labels
)

Folds = list[tuple[np.ndarray, np.ndarray]]


def iter_folds(
    y: np.ndarray, seed: int, unit: np.ndarray | None = None, max_folds: int = MAX_FOLDS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds for choosing a setting: `max_folds`, or fewer if a class has fewer images.

    A class with a single image (or a single unit) cannot be validated. It is left out of
    the score and stays in the training parts.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    unit : int array of shape (n,), optional
        Images of one unit are never on both sides.

    Yields
    ------
    train, validation : int arrays
        Positions in `y`; at least two classes to train on. Nothing if no class can be validated.
    """
    apart = count_units(y, unit)
    usable = np.flatnonzero(apart[y] >= 2)
    if not len(usable):
        return
    n_folds = min(max_folds, int(apart[apart >= 2].min()))
    for held in _iter_parts(usable, y, n_folds, seed, unit):
        out = np.zeros(len(y), bool)
        out[held] = True
        if unit is not None:
            out = np.isin(unit, unit[held])
        train = np.flatnonzero(~out)
        if len(held) and len(np.unique(y[train])) > 1:
            yield train, held


def _iter_parts(
    usable: np.ndarray, y: np.ndarray, n_folds: int, seed: int, unit: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Some positions in stratified parts, units whole."""
    alone = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    if unit is None:
        yield from (usable[part] for _, part in alone.split(usable, y[usable]))
        return
    within = unit[usable]
    _, first, which = np.unique(within, return_index=True, return_inverse=True)
    counts = np.bincount(y[usable[first]])
    if is_mostly_singletons(within) and counts[np.unique(y[usable])].min() >= n_folds:
        for _, part in alone.split(first, y[usable[first]]):  # the first stands for the others
            yield usable[np.isin(which, part)]
        return
    whole = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    yield from (usable[part] for _, part in whole.split(usable, y[usable], within))


def draw_test_folds(y: np.ndarray, n_folds: int, seed: int, unit: np.ndarray) -> np.ndarray:
    """Draw stratified folds in which every image is tested once, units whole.

    Where most images stand alone, the units of each class are dealt out in random order. Else each
    unit, in random order, goes to the fold that has least of its classes; of five such orders the
    one that spreads the classes best is taken. scikit-learn's StratifiedGroupKFold sorts units by
    size, so that folds of units of different sizes hardly move with the seed.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    n_folds : int
    seed : int
    unit : int array of shape (n,)
        Images with the same number are in one fold.

    Returns
    -------
    int array of shape (n,)
        The fold that tests each image.
    """
    rng = np.random.default_rng([seed, 2])  # not the numbers that hold_out draws
    _, first, unit = np.unique(unit, return_index=True, return_inverse=True)
    if is_mostly_singletons(unit):
        fold = np.empty(len(first), np.intp)
        fold[np.lexsort((rng.random(len(first)), y[first]))] = np.arange(len(first)) % n_folds
        return fold[unit]
    order = np.argsort(unit, kind="stable")
    members = np.split(y[order], np.cumsum(np.bincount(unit))[:-1])
    drawn = [_deal_units(members, np.bincount(y), n_folds, rng) for _ in range(5)]
    return min(drawn, key=lambda it: it[1])[0][unit]


def _deal_units(
    members: list[np.ndarray], counts: np.ndarray, n_folds: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """The fold of each unit, and how unevenly the classes are spread."""
    share = np.zeros((n_folds, len(counts)))  # of each class, in each fold
    fold = np.empty(len(members), np.intp)
    for number in rng.permutation(len(members)):
        classes, count = np.unique(members[number], return_counts=True)
        load = share[:, classes] @ count
        # Of equals the emptiest, then any.
        fold[number] = np.lexsort((rng.random(n_folds), share.sum(axis=1), load))[0]
        share[fold[number], classes] += count / counts[classes]
    return fold, float((share**2).sum())


def draw_class_ranks(y: np.ndarray, seed: int, unit: np.ndarray) -> np.ndarray:
    """Draw images of each class one after the other: tell the turn of each image.

    The first k of each class are those with a turn below k, so that more images of one seed hold
    the fewer. An image of a unit comes only after one of every other unit of its class: of copies
    of an image, or images of one patient, several are no more than one.

    Returns
    -------
    int array of shape (n,)
        From 0 in every class.
    """
    rng = np.random.default_rng([seed, 1])  # not the numbers that hold_out draws
    _, unit = np.unique(unit, return_inverse=True)
    alone, together = rng.random(len(y)), rng.random(len(y))[unit]
    within = _rank_within((alone, unit, y), (unit, y))
    return _rank_within((together, within, y), (y,))


def _rank_within(keys: tuple[np.ndarray, ...], group: tuple[np.ndarray, ...]) -> np.ndarray:
    """Each one's place, by keys of which the last counts first, within its group."""
    order = np.lexsort(keys)
    new = np.zeros(len(order), bool)
    for column in group:
        new[1:] |= np.diff(column[order]) != 0
    start = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order)) - start
    return rank


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """How a task's images outside the test are used: for choices in turn, then all to train.

    Attributes
    ----------
    part : int16 array of shape (n,)
        A number for each image: fold i trains on all but part i. From the number of folds on: in
        none of these parts.
    held_by : list of int arrays
        Positions that each fold holds out and judges by; all of its part, or some. Empty where
        nothing can be validated.
    spared : bool
        Whether part 0 is for choices only: the final head is not trained on it.
    by_content : bool
        Whether the parts follow from the images' contents alone, the same for every task.
    trains : list of int arrays, optional
        Positions that each fold trains on, where the user's own folds are not those of parts.
    """

    part: np.ndarray
    val_indices: list[np.ndarray]
    has_val_split: bool = False
    by_content: bool = False
    train_indices: list[np.ndarray] | None = None

    @property
    def folds(self) -> Folds:
        """Positions to train on and positions held out, fold by fold: found anew at each use."""
        if self.train_indices is not None:
            return list(zip(self.train_indices, self.val_indices, strict=True))
        return [(np.flatnonzero(self.part != i), held) for i, held in enumerate(self.val_indices)]

    @property
    def final_indices(self) -> np.ndarray:
        """Positions that the final head is trained on."""
        return np.flatnonzero(self.part != 0) if self.has_val_split else np.arange(len(self.part))

    @property
    def held_out(self) -> np.ndarray:
        """Positions of what is held out, in the order of the folds: all different."""
        return np.concatenate([np.zeros(0, np.intp), *self.val_indices])

    def select_fold(self, fold: int) -> "FoldPlan":
        """The same with one fold, the others' images being trained on."""
        part = np.where(self.part == fold, 0, 1).astype(np.int16)
        trains = None if self.train_indices is None else [self.train_indices[fold]]
        return FoldPlan(part, [self.val_indices[fold]], self.has_val_split, train_indices=trains)

    def subset(self, chosen: np.ndarray) -> "FoldPlan":
        """The same for some of the images, in the order that is given."""
        place = np.full(len(self.part), -1)
        place[chosen] = np.arange(len(chosen))

        def there(positions: np.ndarray) -> np.ndarray:
            found = place[positions]
            return np.sort(found[found >= 0])

        trains = (
            None if self.train_indices is None else [there(train) for train in self.train_indices]
        )
        held_by = [there(held) for held in self.val_indices]
        return replace(self, part=self.part[chosen], val_indices=held_by, train_indices=trains)


def plan_folds(
    y: np.ndarray,
    seed: int,
    unit: np.ndarray | None = None,
    val: np.ndarray | None = None,
    max_folds: int = MAX_FOLDS,
) -> FoldPlan:
    """Settle the folds: the user's validation images where there are some, else `iter_folds`.

    Parameters
    ----------
    y : int array of shape (n,)
    unit : int array of shape (n,), optional
    val : bool array of shape (n,), optional
        Images for choices; they are never trained on.
    max_folds : int
        Folds that are drawn, unless a class has fewer images.
    """
    if val is not None and val.any():
        return FoldPlan(
            np.where(val, 0, 1).astype(np.int16), [np.flatnonzero(val)], has_val_split=True
        )
    part, held_by = np.full(len(y), max_folds, np.int16), []
    for i, (train, held) in enumerate(iter_folds(y, seed, unit, max_folds)):
        out = np.ones(len(y), bool)
        out[train] = False
        part[out] = i
        held_by.append(held)
    part[part == max_folds] = len(held_by)
    return FoldPlan(part, held_by)


def plan_content_folds(
    y: np.ndarray, contents: np.ndarray, seed: int = 0, unit: np.ndarray | None = None
) -> FoldPlan | None:
    """Folds drawn by content, which are the same for every task over the same images.

    What is computed for them once serves every label set. Labels are not looked at, so every class
    needs `MIN_PER_CLASS` of images.

    Parameters
    ----------
    y : int array of shape (n,)
    contents : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    seed : int
    unit : int array of shape (n,), optional
        Images of one unit are in one part. Those with the same bytes always are.

    Returns
    -------
    FoldPlan, or None
        None where a class has too few images, or too many belong together.
    """
    if unit is not None and not is_mostly_singletons(unit):
        return None
    part = content_parts(contents, MAX_FOLDS, seed)
    if unit is not None:
        _, which = np.unique(unit, return_inverse=True)
        order = np.lexsort(
            (hash_prefixes(contents), which)
        )  # the least content stands for its unit
        part = part[order[np.searchsorted(which[order], which)]]
    inside = np.array([np.bincount(y[part != i], minlength=y.max() + 1) for i in range(MAX_FOLDS)])
    counts = np.bincount(y)
    if counts[counts > 0].min() < MIN_PER_CLASS or (inside < 0.5 * counts).any():
        return None
    held_by = [np.flatnonzero(part == i) for i in range(MAX_FOLDS)]
    return FoldPlan(part, held_by, by_content=True)


def content_parts(contents: np.ndarray, n_parts: int, seed: int = 0) -> np.ndarray:
    """Parts drawn by content: int array of shape (n,), from (n, 32) uint8 hashes."""
    found = hash_prefixes(contents)
    if seed:  # mixed anew: to add a number would only rename the parts
        found = found ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
        found = (found ^ found >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
        found ^= found >> np.uint64(33)
    return np.asarray(found % np.uint64(n_parts), np.int16)


def hash_prefixes(contents: np.ndarray) -> np.ndarray:
    """The first eight bytes of hashes (n, 32) as numbers: uint64 (n,)."""
    return np.ascontiguousarray(contents[:, :8]).view("<u8")[:, 0]

"""Folds: which rows are held out in turn when a param is selected."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from classify.data.units import count_units, is_mostly_singletons

MAX_FOLDS = 5

# With this many images in every class, folds may be drawn without looking at labels.
MIN_PER_CLASS = 50

Folds = list[tuple[np.ndarray, np.ndarray]]


def iter_folds(
    y: np.ndarray, seed: int, unit: np.ndarray | None = None, max_folds: int = MAX_FOLDS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield stratified folds for selecting a param.

    A class with a single image (or a single unit) cannot be validated. It stays in the training
    parts and is left out of the validation parts.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    seed : int
    unit : int array of shape (n,), optional
        Images of one unit are never on both sides. Each image is its own unit if not given.
    max_folds : int
        Number of folds; fewer if a class has fewer images (or units).

    Yields
    ------
    train, validation : int arrays
        Positions in `y`; at least two classes to train on. Nothing if no class can be validated.
    """
    n_separable = count_units(y, unit)
    usable = np.flatnonzero(n_separable[y] >= 2)
    if not len(usable):
        return
    n_folds = min(max_folds, int(n_separable[n_separable >= 2].min()))
    for validation in _iter_parts(usable, y, n_folds, seed, unit):
        is_excluded = np.zeros(len(y), bool)
        is_excluded[validation] = True
        if unit is not None:
            is_excluded = np.isin(unit, unit[validation])
        train = np.flatnonzero(~is_excluded)
        if len(validation) and len(np.unique(y[train])) > 1:
            yield train, validation


def _iter_parts(
    usable: np.ndarray, y: np.ndarray, n_folds: int, seed: int, unit: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Divide the `usable` positions into stratified parts that keep units whole."""
    by_image = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    if unit is None:
        yield from (usable[part] for _, part in by_image.split(usable, y[usable]))
        return
    usable_unit = unit[usable]
    _, first, unit_index = np.unique(usable_unit, return_index=True, return_inverse=True)
    counts = np.bincount(y[usable[first]])
    if is_mostly_singletons(usable_unit) and counts[np.unique(y[usable])].min() >= n_folds:
        for _, part in by_image.split(first, y[usable[first]]):  # one image stands for its unit
            yield usable[np.isin(unit_index, part)]
        return
    by_unit = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    yield from (usable[part] for _, part in by_unit.split(usable, y[usable], usable_unit))


def draw_test_folds(y: np.ndarray, n_folds: int, seed: int, unit: np.ndarray) -> np.ndarray:
    """Draw stratified folds that test every image once and keep units whole.

    Where most units are single images, the units of each class are dealt out in random order.
    Otherwise each unit, in random order, goes to the fold that has the smallest share of its
    classes. Of five such orders the one that spreads the classes most evenly is used.
    scikit-learn's StratifiedGroupKFold sorts units by size, so with units of different sizes its
    folds hardly depend on the seed.

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
        The fold that tests each image, from 0.
    """
    rng = np.random.default_rng([seed, 2])  # a stream apart from that of hold_out
    _, first, unit = np.unique(unit, return_index=True, return_inverse=True)
    if is_mostly_singletons(unit):
        fold = np.empty(len(first), np.intp)
        fold[np.lexsort((rng.random(len(first)), y[first]))] = np.arange(len(first)) % n_folds
        return fold[unit]
    order = np.argsort(unit, kind="stable")
    members = np.split(y[order], np.cumsum(np.bincount(unit))[:-1])
    candidates = [_deal_units(members, np.bincount(y), n_folds, rng) for _ in range(5)]
    return min(candidates, key=lambda candidate: candidate[1])[0][unit]


def _deal_units(
    members: list[np.ndarray], counts: np.ndarray, n_folds: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Assign each unit a fold, and measure how unevenly the classes are spread."""
    share = np.zeros((n_folds, len(counts)))  # of each class's images, by fold
    fold = np.empty(len(members), np.intp)
    for number in rng.permutation(len(members)):
        classes, count = np.unique(members[number], return_counts=True)
        load = share[:, classes] @ count
        # Ties go to the emptiest fold, then to a random one.
        fold[number] = np.lexsort((rng.random(n_folds), share.sum(axis=1), load))[0]
        share[fold[number], classes] += count / counts[classes]
    return fold, float((share**2).sum())


def draw_class_ranks(y: np.ndarray, seed: int, unit: np.ndarray) -> np.ndarray:
    """Draw the images of each class in random order, and rank them.

    The first k images of a class are those with a rank below k. So for one seed a larger draw
    contains the smaller one. A second image of a unit comes only after one image of every other
    unit of its class: copies of an image, or several images of one patient, add little.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    seed : int
    unit : int array of shape (n,)
        Images with the same number belong together.

    Returns
    -------
    int array of shape (n,)
        Ranks, from 0 in every class.
    """
    rng = np.random.default_rng([seed, 1])  # a stream apart from that of hold_out
    _, unit = np.unique(unit, return_inverse=True)
    image_key, unit_key = rng.random(len(y)), rng.random(len(y))[unit]
    rank_in_unit = _rank_within((image_key, unit, y), (unit, y))
    return _rank_within((unit_key, rank_in_unit, y), (y,))


def _rank_within(keys: tuple[np.ndarray, ...], group: tuple[np.ndarray, ...]) -> np.ndarray:
    """Rank each element within its group, by keys of which the last is the primary one."""
    order = np.lexsort(keys)
    is_first = np.zeros(len(order), bool)
    for column in group:
        is_first[1:] |= np.diff(column[order]) != 0
    start = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order)) - start
    return rank


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """How the images of a task outside the test are used: folds for selection, then the final fit.

    Attributes
    ----------
    part : int16 array of shape (n,)
        The part of each image: fold i trains on all but part i. Numbers from the count of folds on
        mean no part: such images are always trained on.
    val_indices : list of int arrays
        Positions that each fold holds out and validates on: all of its part, or some. Empty where
        nothing can be validated.
    has_val_split : bool
        Whether part 0 is the user's validation split: the final head is not trained on it.
    by_content : bool
        Whether the parts follow from the images' bytes alone, so that every task has the same.
    train_indices : list of int arrays, optional
        Positions that each fold trains on, where they are not the complement of its part.
    """

    part: np.ndarray
    val_indices: list[np.ndarray]
    has_val_split: bool = False
    by_content: bool = False
    train_indices: list[np.ndarray] | None = None

    @property
    def folds(self) -> Folds:
        """Positions to train on and to validate on, fold by fold; computed at each use."""
        if self.train_indices is not None:
            return list(zip(self.train_indices, self.val_indices, strict=True))
        return [
            (np.flatnonzero(self.part != i), validation)
            for i, validation in enumerate(self.val_indices)
        ]

    @property
    def final_indices(self) -> np.ndarray:
        """Positions that the final head is trained on."""
        return np.flatnonzero(self.part != 0) if self.has_val_split else np.arange(len(self.part))

    @property
    def held_out(self) -> np.ndarray:
        """Positions that any fold holds out, in the order of the folds; all different."""
        return np.concatenate([np.zeros(0, np.intp), *self.val_indices])

    def select_fold(self, fold: int) -> "FoldPlan":
        """Return a plan with one fold only; the images of the others are trained on.

        Parameters
        ----------
        fold : int
            From 0.

        Returns
        -------
        FoldPlan
        """
        part = np.where(self.part == fold, 0, 1).astype(np.int16)
        train_indices = None if self.train_indices is None else [self.train_indices[fold]]
        return FoldPlan(
            part, [self.val_indices[fold]], self.has_val_split, train_indices=train_indices
        )

    def subset(self, chosen: np.ndarray) -> "FoldPlan":
        """Return the plan of some of the images.

        Parameters
        ----------
        chosen : int array of shape (m,)
            Positions among the n images, each once, in the order they shall have.

        Returns
        -------
        FoldPlan
            Of m images; a fold may hold out none of them.
        """
        new_position = np.full(len(self.part), -1)
        new_position[chosen] = np.arange(len(chosen))

        def renumber_positions(positions: np.ndarray) -> np.ndarray:
            renumbered = new_position[positions]
            return np.sort(renumbered[renumbered >= 0])

        train_indices = (
            None
            if self.train_indices is None
            else [renumber_positions(train) for train in self.train_indices]
        )
        val_indices = [renumber_positions(validation) for validation in self.val_indices]
        return replace(
            self, part=self.part[chosen], val_indices=val_indices, train_indices=train_indices
        )


def plan_folds(
    y: np.ndarray,
    seed: int,
    unit: np.ndarray | None = None,
    val: np.ndarray | None = None,
    max_folds: int = MAX_FOLDS,
) -> FoldPlan:
    """Plan the folds: the user's validation images where there are some, otherwise `iter_folds`.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    seed : int
    unit : int array of shape (n,), optional
        Images of one unit are never on both sides.
    val : bool array of shape (n,), optional
        The user's validation images; they are never trained on.
    max_folds : int
        Number of folds that are drawn; fewer if a class has fewer images.

    Returns
    -------
    FoldPlan
    """
    if val is not None and val.any():
        return FoldPlan(
            np.where(val, 0, 1).astype(np.int16), [np.flatnonzero(val)], has_val_split=True
        )
    part, val_indices = np.full(len(y), max_folds, np.int16), []
    for i, (train, validation) in enumerate(iter_folds(y, seed, unit, max_folds)):
        is_excluded = np.ones(len(y), bool)
        is_excluded[train] = False
        part[is_excluded] = i
        val_indices.append(validation)
    part[part == max_folds] = len(val_indices)
    return FoldPlan(part, val_indices)


def plan_content_folds(
    y: np.ndarray, contents: np.ndarray, seed: int = 0, unit: np.ndarray | None = None
) -> FoldPlan | None:
    """Plan folds by the images' bytes, which are the same for every task over the same images.

    What is computed for such folds serves every label set. Labels do not decide the parts, so every
    class needs at least `MIN_PER_CLASS` images.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    contents : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    seed : int
    unit : int array of shape (n,), optional
        Images of one unit are in one part. Those with the same bytes always are.

    Returns
    -------
    FoldPlan, or None
        None where a class has too few images, or too many images share units.
    """
    if unit is not None and not is_mostly_singletons(unit):
        return None
    part = content_parts(contents, MAX_FOLDS, seed)
    if unit is not None:
        _, unit_index = np.unique(unit, return_inverse=True)
        # The image with the smallest hash decides the part of its unit.
        order = np.lexsort((hash_prefixes(contents), unit_index))
        part = part[order[np.searchsorted(unit_index[order], unit_index)]]
    n_train = np.array([np.bincount(y[part != i], minlength=y.max() + 1) for i in range(MAX_FOLDS)])
    counts = np.bincount(y)
    if counts[counts > 0].min() < MIN_PER_CLASS or (n_train < 0.5 * counts).any():
        return None
    val_indices = [np.flatnonzero(part == i) for i in range(MAX_FOLDS)]
    return FoldPlan(part, val_indices, by_content=True)


def plan_task_folds(
    y: np.ndarray, contents: np.ndarray, seed: int, unit: np.ndarray, val: np.ndarray
) -> FoldPlan:
    """Plan a task's folds: the same for every head, and if possible for every task.

    Parameters
    ----------
    y, seed, unit, val
        As in `plan_folds`.
    contents
        As in `plan_content_folds`.

    Returns
    -------
    FoldPlan
    """
    by_content = None if val.any() else plan_content_folds(y, contents, seed, unit)
    return by_content or plan_folds(y, seed, unit, val)


def content_parts(contents: np.ndarray, n_parts: int, seed: int = 0) -> np.ndarray:
    """Divide images into parts by their bytes.

    Parameters
    ----------
    contents : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    n_parts : int
    seed : int

    Returns
    -------
    int16 array of shape (n,)
        The part of each image, from 0.
    """
    hashes = hash_prefixes(contents)
    if seed:  # mix the bits: adding a number would only renumber the parts
        hashes = hashes ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
        hashes = (hashes ^ hashes >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
        hashes ^= hashes >> np.uint64(33)
    return np.asarray(hashes % np.uint64(n_parts), np.int16)


def hash_prefixes(contents: np.ndarray) -> np.ndarray:
    """Return the first eight bytes of each hash as a number.

    Parameters
    ----------
    contents : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.

    Returns
    -------
    uint64 array of shape (n,)
    """
    return np.ascontiguousarray(contents[:, :8]).view("<u8")[:, 0]

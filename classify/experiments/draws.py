"""Several draws of training images for one task: random splits, test folds, a few of each class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from classify.data.folder_labels import TEST, TRAIN
from classify.data.folds import draw_class_ranks, draw_test_folds
from classify.data.labels import LabelTable
from classify.data.splits import hold_out
from classify.data.tasks import NO_TEST_NOTICE, Task, make_task
from classify.data.units import count_units
from classify.errors import CallError, TooFewImagesError
from featurize.cache.reader import FeatureCache

DEFAULT_N_DRAWS = 5
"""Draws of a few images of each class, where no number is given: as many as P. Goyal et al. (2019),
"Scaling and benchmarking self-supervised visual representation learning", ICCV, take."""


@dataclass(frozen=True, eq=False)
class Draw:
    """One way to train and to test.

    Attributes
    ----------
    task : Task
        With a split of its own, and the rows that are used alone.
    seed : int
    fold : int, or None
        Which fold is tested, from 0.
    shots : int, or None
        So many training images of each class.
    """

    task: Task
    seed: int
    fold: int | None = None
    shots: int | None = None


@dataclass(frozen=True)
class DrawSpec:
    """What is to be drawn.

    Attributes
    ----------
    seeds : tuple of int
        One where folds are drawn once.
    shots : tuple of int
        Ascending; empty where splits or folds are drawn.
    folds : int, or None
    """

    seeds: tuple[int, ...]
    shots: tuple[int, ...] = ()
    folds: int | None = None

    @property
    def kind(self) -> str:
        """``shots``, ``folds``, ``repeated folds`` or ``splits``."""
        if self.folds is None:
            return "shots" if self.shots else "splits"
        return "repeated folds" if len(self.seeds) > 1 else "folds"

    @classmethod
    def from_options(
        cls, repeats: int | None, shots: str | Sequence[int] | None, folds: int | None, seed: int
    ) -> "DrawSpec":
        """Read the options of a comparison; a text of shots is split at its commas.

        Raises
        ------
        CallError
            If a number is too small, or shots and folds are both given.
        """
        if repeats is not None and repeats < 2:
            raise CallError(f"repeats is 2 or more, not {repeats}: one draw has no interval")
        if folds is not None and folds < 2:
            raise CallError(f"folds is 2 or more, not {folds}")
        if folds is not None and shots is not None:
            raise CallError(
                "folds test every image once, shots test on the same images always: give one"
            )
        counts = () if shots is None else _parse_shots(shots)
        default = DEFAULT_N_DRAWS if counts else 1
        return cls(tuple(range(seed, seed + (repeats or default))), counts, folds)


def _parse_shots(shots: str | Sequence[int]) -> tuple[int, ...]:
    words = shots.split(",") if isinstance(shots, str) else shots
    try:
        counts = tuple(sorted({int(word) for word in words}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < 1:
        raise CallError(
            f"shots are images of each class, 1 or more, as in 1,2,4,8,16, not {shots!r}"
        )
    return counts


@dataclass(frozen=True, eq=False)
class DrawPlan:
    """All draws of one label table.

    Attributes
    ----------
    task : Task
        The table over the cache, as it is before the first draw.
    draws : list of Draw
        By shots, seed and fold.
    overlap : dict of int or None to float
        By shots: what `classify.evaluation.repeated` has to allow for images that several draws
        share.
    notices : list of str
    """

    task: Task
    draws: list[Draw]
    overlap: dict[int | None, float]
    notices: list[str]


def plan_draws(
    cache: FeatureCache, table: LabelTable, spec: DrawSpec, test_size: float
) -> DrawPlan:
    """Draw the splits, folds or shots of one label table.

    Parameters
    ----------
    cache : FeatureCache
    table : LabelTable
    spec : DrawSpec
    test_size : float
        The share of every class that a split holds out; shots are tested on those of the first
        seed, or on the table's own test images.

    Raises
    ------
    CallError
        If the table brings a split and others are to be drawn, or nothing would be tested.
    TooFewImages
        If a draw would leave one class only to be learnt from.
    ClassifyError
        As `classify.data.tasks.make_task` does.
    """
    if table.splits is not None and not spec.shots:
        raise CallError(
            f"{table.source} brings its own split, which is one and cannot be drawn anew: give a "
            "table without a split to have test images drawn from all of its images, or ask for "
            "shots, which draw training images and keep the test images"
        )
    drawn = 0 if spec.folds else test_size
    whole = make_task(cache, table, test_size=drawn, seed=spec.seeds[0])
    if not spec.folds and not (whole.split == TEST).any():
        raise CallError(
            f"{table.source}: there are no test images; give a test size above 0, or a table "
            "that has a test split"
        )
    found = _draw_shots(whole, spec) if spec.shots else _draw_folds(whole, spec)
    if spec.kind == "splits":
        found = _draw_splits(whole, spec, test_size)
    for draw in found.draws:
        train = draw.task.split == TRAIN
        if len(np.unique(draw.task.y[train])) < 2:
            raise TooFewImagesError(
                f"{table.source}: seed {draw.seed} leaves training images of one class only; a "
                "head needs at least two classes, and each class images that stand alone"
            )
    told = [notice for notice in whole.notices if notice != NO_TEST_NOTICE]
    return replace(found, notices=told + found.notices)


def _draw_splits(task: Task, spec: DrawSpec, test_size: float) -> DrawPlan:
    draws = []
    for seed in spec.seeds:
        test = hold_out(task.y, test_size, seed, task.units)
        draws.append(Draw(replace(task, split=np.where(test, TEST, TRAIN)), seed))
    return DrawPlan(task, draws, {None: _compute_test_train_ratio(draws)}, [])


def _compute_test_train_ratio(draws: list[Draw]) -> float:
    tested = [float((draw.task.split == TEST).mean()) for draw in draws]
    return float(np.mean(tested) / (1 - np.mean(tested)))


def _draw_folds(task: Task, spec: DrawSpec) -> DrawPlan:
    n_folds, draws = spec.folds or 2, []
    apart = count_units(task.y, task.units)
    if n_folds > len(np.unique(task.units)):
        raise CallError(
            f"{n_folds} folds of {task.name}, whose images are of {len(np.unique(task.units))} "
            "units only, which stay whole: ask for fewer folds"
        )
    for seed in spec.seeds:
        fold = draw_test_folds(task.y, n_folds, seed, task.units)
        for i in range(n_folds):
            if (fold == i).any():
                split = np.where(fold == i, TEST, TRAIN)
                draws.append(Draw(replace(task, split=split), seed, i))
    once = [task.classes[k] for k in np.flatnonzero(apart == 1)]
    said = (
        [f"{_format_classes(once)}: tested without having been learnt, so always wrong"]
        if once
        else []
    )
    return DrawPlan(task, draws, {None: _compute_test_train_ratio(draws)}, said)


def _draw_shots(task: Task, spec: DrawSpec) -> DrawPlan:
    test = task.split == TEST
    pool = np.flatnonzero(task.split == TRAIN)
    among = np.isin(task.units[pool], task.units[test])
    said = []
    if among.any():
        said.append(
            f"{among.sum():,} training images belong together with test images: none is drawn"
        )
        pool = pool[~among]
    count = np.bincount(task.y[pool], minlength=len(task.classes))
    draws: list[Draw] = []
    again: dict[int | None, float] = {}
    for shots in spec.shots:
        taken = np.minimum(count, shots).sum()
        # Where all are taken all draws are the same, and nothing is known of others.
        again[shots] = float(taken / (len(pool) - taken)) if taken < len(pool) else 0.0
        short = [task.classes[k] for k in np.flatnonzero(count < shots)]
        if short:
            said.append(
                f"{_format_classes(short)} with fewer than {shots} training images to draw: all "
                "are taken"
            )
        for seed in spec.seeds:
            used = test.copy()
            used[pool[draw_class_ranks(task.y[pool], seed, task.units[pool]) < shots]] = True
            draws.append(Draw(_subset_task(task, used), seed, None, shots))
    return DrawPlan(task, draws, again, said)


def _subset_task(task: Task, used: np.ndarray) -> Task:
    """A task with some of its rows: validation images of the user's are no shots, and left out."""
    return replace(
        task,
        rows=task.rows[used],
        y=task.y[used],
        split=task.split[used],
        groups=None if task.groups is None else task.groups[used],
        units=task.units[used],
    )


def _format_classes(classes: list[str]) -> str:
    names = ", ".join(map(repr, classes[:3])) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes):,} {'class' if len(classes) == 1 else 'classes'} ({names})"

"""Several draws of training images for one task: random splits, test folds, few shots per class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from classify.data.folds import draw_class_ranks, draw_test_folds
from classify.data.splits import hold_out
from classify.data.tasks import NO_TEST_NOTICE, Task, make_task
from classify.data.units import count_units
from classify.errors import CallError, TooFewImagesError
from classify.labels.folders import TEST, TRAIN
from classify.labels.table import LabelTable
from featurize.cache.reader import FeatureCache
from featurize.text import list_first

DEFAULT_N_DRAWS = 5
"""Default number of draws per number of shots, as in P. Goyal et al. (2019), "Scaling and
benchmarking self-supervised visual representation learning", ICCV."""


@dataclass(frozen=True, eq=False)
class Draw:
    """One split of a task into training and test images.

    Attributes
    ----------
    task : Task
        Holds the split; its rows are only those that are used.
    seed : int
    fold : int, or None
        The fold that is tested, from 0.
    shots : int, or None
        Number of training images per class.
    """

    task: Task
    seed: int
    fold: int | None = None
    shots: int | None = None


@dataclass(frozen=True)
class DrawSpec:
    """Kind and number of draws.

    Attributes
    ----------
    seeds : tuple of int
        A single one where folds are drawn once.
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
        """Check the options of a comparison and collect them.

        Parameters
        ----------
        repeats : int, optional
            Number of draws, 2 or more.
        shots : str or sequence of int, optional
            Numbers of training images per class; a string is split at its commas.
        folds : int, optional
            Number of test folds, 2 or more; not together with `shots`.
        seed : int
            The first seed.

        Returns
        -------
        DrawSpec

        Raises
        ------
        CallError
            If a number is too small, or `shots` and `folds` are both given.
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
        The table's task before any draw.
    draws : list of Draw
        By shots, seed and fold.
    overlap : dict of int or None to float
        By shots: the `overlap` of `classify.evaluation.repeated`, which corrects for images that
        several draws share.
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
        Fraction of each class that a split holds out. Shots are tested on the images held out with
        the first seed, or on the table's own test images.

    Returns
    -------
    DrawPlan

    Raises
    ------
    CallError
        If the table has its own split and splits or folds are to be drawn, or if there would be no
        test images.
    TooFewImagesError
        If a draw would leave training images of a single class.
    ClassifyError
        As `classify.data.tasks.make_task` does.
    """
    if table.splits is not None and not spec.shots:
        raise CallError(
            f"{table.source} brings its own split, which is one and cannot be drawn again: give a "
            "table without a split to have test images drawn from all of its images, or ask for "
            "shots, which draw training images and keep the test images"
        )
    whole_test_size = 0 if spec.folds else test_size
    whole_task = make_task(cache, table, test_size=whole_test_size, seed=spec.seeds[0])
    if not spec.folds and not (whole_task.split == TEST).any():
        raise CallError(
            f"{table.source}: there are no test images; give a test size above 0, or a table "
            "that has a test split"
        )
    plan = _draw_shots(whole_task, spec) if spec.shots else _draw_folds(whole_task, spec)
    if spec.kind == "splits":
        plan = _draw_splits(whole_task, spec, test_size)
    for draw in plan.draws:
        is_train = draw.task.split == TRAIN
        if len(np.unique(draw.task.y[is_train])) < 2:
            raise TooFewImagesError(
                f"{table.source}: seed {draw.seed} leaves training images of one class only; a "
                "head needs at least two classes, and each class images that stand alone"
            )
    task_notices = [notice for notice in whole_task.notices if notice != NO_TEST_NOTICE]
    return replace(plan, notices=task_notices + plan.notices)


def _draw_splits(task: Task, spec: DrawSpec, test_size: float) -> DrawPlan:
    draws = []
    for seed in spec.seeds:
        test = hold_out(task.y, test_size, seed, task.units)
        draws.append(Draw(replace(task, split=np.where(test, TEST, TRAIN)), seed))
    return DrawPlan(task, draws, {None: _compute_test_train_ratio(draws)}, [])


def _compute_test_train_ratio(draws: list[Draw]) -> float:
    """Return the mean ratio of test to training images."""
    test_fractions = [float((draw.task.split == TEST).mean()) for draw in draws]
    return float(np.mean(test_fractions) / (1 - np.mean(test_fractions)))


def _draw_folds(task: Task, spec: DrawSpec) -> DrawPlan:
    n_folds, draws = spec.folds or 2, []
    n_units_per_class = count_units(task.y, task.units)
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
    lone_classes = [task.classes[k] for k in np.flatnonzero(n_units_per_class == 1)]
    notices = (
        [f"{_format_classes(lone_classes)}: tested without having been learnt, so always wrong"]
        if lone_classes
        else []
    )
    return DrawPlan(task, draws, {None: _compute_test_train_ratio(draws)}, notices)


def _draw_shots(task: Task, spec: DrawSpec) -> DrawPlan:
    test = task.split == TEST
    pool = np.flatnonzero(task.split == TRAIN)
    is_shared = np.isin(task.units[pool], task.units[test])
    notices = []
    if is_shared.any():
        notices.append(
            f"{is_shared.sum():,} training images belong together with test images: none is drawn"
        )
        pool = pool[~is_shared]
    n_per_class = np.bincount(task.y[pool], minlength=len(task.classes))
    draws: list[Draw] = []
    overlap: dict[int | None, float] = {}
    for shots in spec.shots:
        n_drawn = np.minimum(n_per_class, shots).sum()
        # If all images are drawn, all draws are equal: they tell nothing of other training sets.
        overlap[shots] = float(n_drawn / (len(pool) - n_drawn)) if n_drawn < len(pool) else 0.0
        scarce = [task.classes[k] for k in np.flatnonzero(n_per_class < shots)]
        if scarce:
            notices.append(
                f"{_format_classes(scarce)} with fewer than {shots} training images to draw: all "
                "are taken"
            )
        for seed in spec.seeds:
            used = test.copy()
            used[pool[draw_class_ranks(task.y[pool], seed, task.units[pool]) < shots]] = True
            draws.append(Draw(_subset_task(task, used), seed, None, shots))
    return DrawPlan(task, draws, overlap, notices)


def _subset_task(task: Task, used: np.ndarray) -> Task:
    """Return a task with the used rows only, without the table's own validation images."""
    return replace(
        task,
        rows=task.rows[used],
        y=task.y[used],
        split=task.split[used],
        groups=None if task.groups is None else task.groups[used],
        units=task.units[used],
    )


def _format_classes(classes: list[str]) -> str:
    return f"{len(classes):,} {'class' if len(classes) == 1 else 'classes'} ({list_first(classes)})"

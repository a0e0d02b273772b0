"""How many images there are: counts against published thresholds, and a learning curve."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import delayed

from classify.features import Rows
from classify.heads import named
from classify.kept import digest, keep, recall
from classify.labels import TEST, TRAIN, VAL
from classify.preparation import ROOT_L2
from classify.resampling import Estimate, means
from classify.splits import Folding, folds
from classify.statistics import spectra
from classify.tasks import Task
from classify.training import Lesson, train
from classify.workers import working
from featurize.cache import FeatureCache

SMALL, LARGE = "small", "large"
IMAGES = 20_000
"""Training images from which on a task is large: where A. Kolesnikov et al. (2020), "Big Transfer
(BiT): General Visual Representation Learning", ECCV, begin to fine-tune for longer."""
PER_CLASS = 100
"""Of each class, by the median: between the fine-grained sets that nobody trains a network on from
nothing (30 to 80 a class) and the smallest on which that is usual (CIFAR-100, 500 a class)."""
NEAR = 2  # within this factor of a threshold it is said that the number is near
SHARES = (0.125, 0.25, 0.5, 1.0)
MANY = 5_000  # images from which on one held-out fold says enough
MOST_HELD = 20_000  # more held-out images would narrow no interval that matters
VERSION = 2
HEAD = "lda"  # in closed form: a fifth of the time of softmax, and the same order of layers


@dataclass(frozen=True)
class Point:
    """One point of the learning curve.

    Attributes
    ----------
    share : float
        Of the rows that there are to learn from.
    images : int
        So many were learnt from; over several folds, in the mean.
    accuracy : Estimate
        On images held out, the same for every point.
    """

    share: float
    images: int
    accuracy: Estimate


@dataclass(frozen=True)
class Size:
    """How many images there are, and what more of them would bring.

    Attributes
    ----------
    images, classes : int
        To learn from.
    per_class : (int, float)
        Images of the smallest class, and of the one in the middle.
    curve : list of Point
        From few rows to all.
    doubling : Estimate
        What the last doubling of the rows gained, image by image.
    """

    images: int
    classes: int
    per_class: tuple[int, float]
    curve: list[Point]
    doubling: Estimate

    @property
    def verdict(self) -> str:
        """``large`` or ``small``."""
        return LARGE if self.images >= IMAGES and self.per_class[1] >= PER_CLASS else SMALL

    @property
    def near(self) -> bool:
        """Whether the number that decides is within a factor of two of its threshold."""
        least = min(self.images / IMAGES, self.per_class[1] / PER_CLASS)
        return 1 / NEAR < least < NEAR

    @property
    def gaining(self) -> bool:
        """Whether the head is still gaining from data: the last doubling was no chance."""
        return self.doubling.low > 0

    @property
    def next_doubling(self) -> float:
        """What twice as many images would bring, in accuracy.

        Errors are taken to fall as a power of the number of images towards a floor (J. Hestness et
        al., 2017, "Deep Learning Scaling is Predictable, Empirically"): then each doubling brings
        the same share of what the one before did. The share is kept between 0 and 1.
        """
        quarter, half, whole = (point.accuracy.value for point in self.curve[-3:])
        before, last = half - quarter, whole - half
        if last <= 0:
            return 0.0
        return last * (min(1.0, last / before) if before > 0 else 1.0)

    def to_json(self) -> dict[str, Any]:
        """The same as what JSON knows."""
        return {
            "images": self.images,
            "classes": self.classes,
            "per_class": {"min": self.per_class[0], "median": self.per_class[1]},
            "thresholds": {"images": IMAGES, "per_class": PER_CLASS},
            "near_threshold": self.near,
            "curve": [
                {"share": p.share, "images": p.images, "accuracy": p.accuracy.value}
                | {"accuracy_ci": [p.accuracy.low, p.accuracy.high]}
                for p in self.curve
            ],
            "gaining": self.gaining,
            "last_doubling": self.doubling.value,
            "last_doubling_ci": [self.doubling.low, self.doubling.high],
            "next_doubling": self.next_doubling,
            "measured": self.verdict,
        }


@dataclass(frozen=True, eq=False)
class Trial:
    """One head of the learning curve: what it learns from, and what it is asked.

    Attributes
    ----------
    share : int
        Position in `SHARES`.
    train, held : int arrays
        Positions among the task's rows.
    """

    share: int
    train: np.ndarray
    held: np.ndarray


def trials(task: Task, seed: int) -> list[Trial]:
    """Plan a learning curve: for each held-out fold, the rest of the rows and nested parts of it.

    The user's validation images are held out where there are some; else five folds in turn, or the
    first alone of 5,000 images or more. Groups stay whole on every side.
    """
    dev = np.flatnonzero(task.split != TEST)
    if (task.split == VAL).any():
        sides = [(np.flatnonzero(task.split == TRAIN), np.flatnonzero(task.split == VAL))]
    else:
        unit = task.units[dev]
        sides = [(dev[a], dev[b]) for a, b in folds(task.y[dev], seed, unit)]
        sides = sides[:1] if len(dev) >= MANY else sides
    return list(_trials(task, sides, seed))


def _trials(task: Task, sides: list[tuple[np.ndarray, np.ndarray]], seed: int) -> Iterator[Trial]:
    rng = np.random.default_rng(seed)
    for learnt, held in sides:
        held = np.sort(rng.permutation(held)[:MOST_HELD])
        place = _places(task.y[learnt], task.units[learnt], rng)
        for i, share in enumerate(SHARES):
            yield Trial(i, learnt[place <= share], held)


def _places(y: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """From which share on each image is learnt from: float (n,), 0 to 1.

    In every class, images (or whole units, each counted for its most frequent class) stand in
    random order; the first is in every part.
    """
    unit = np.unique(unit, return_inverse=True)[1]
    cells, count = np.unique(np.stack([unit, y]), axis=1, return_counts=True)
    by_count = np.lexsort((-count, cells[0]))
    first = np.unique(cells[0, by_count], return_index=True)[1]
    main = cells[1, by_count][first]  # each unit's most frequent class
    place = np.empty(len(main))
    for k in np.unique(main):
        mine = rng.permutation(np.flatnonzero(main == k))
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
        place[mine[0]] = 0
    return place[unit]


def by_count(
    cache: FeatureCache,
    task: Task,
    layer: str,
    planned: list[Trial],
    *,
    seed: int,
    jobs: int | None = None,
    advanced: Callable[[int], None] | None = None,
) -> Size:
    """Count the images, and draw the learning curve of a linear head.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    layer : str
    planned : list of Trial
        As `trials` gives them, at least one fold's.
    seed : int
        For the bootstrap.
    jobs : int, optional
        Worker processes; as many as there are cores if not given.
    advanced : callable, optional
        Called with how many heads are done.
    """
    count = np.bincount(task.y[task.split == TRAIN])
    count = count[count > 0]
    right = _answered(cache, task, layer, planned, jobs, advanced)
    held = np.concatenate([trial.held for trial in planned if trial.share == 0])
    columns = np.stack(
        [
            np.concatenate([r for r, t in zip(right, planned, strict=True) if t.share == i])
            for i in range(len(SHARES))
        ],
        axis=1,
    ).astype(float)
    unit = task.units[held]
    accuracy = means(columns, unit, (0, 1), seed)
    (doubling,) = means(columns[:, -1:] - columns[:, -2:-1], unit, (-1, 1), seed)
    images = [
        round(np.mean([len(t.train) for t in planned if t.share == i])) for i in range(len(SHARES))
    ]
    return Size(
        images=int(count.sum()),
        classes=len(count),
        per_class=(int(count.min()), float(np.median(count))),
        curve=[Point(*it) for it in zip(SHARES, images, accuracy, strict=True)],
        doubling=doubling,
    )


def _answered(
    cache: FeatureCache,
    task: Task,
    layer: str,
    planned: list[Trial],
    jobs: int | None,
    advanced: Callable[[int], None] | None,
) -> list[np.ndarray]:
    """Which held-out images each trial's head has right; kept beside the cache."""
    contents = cache.column("sha256")[task.rows]
    about = [VERSION, cache.layer(layer).fingerprint, SHARES]
    key = digest(about, contents, task.y, *(part for t in planned for part in (t.train, t.held)))
    kept = recall(cache, "curve", key)
    if kept is not None and len(kept.arrays) == len(planned):
        if advanced is not None:
            advanced(len(planned))
        return [kept.arrays[f"{i:03}"] for i in range(len(planned))]
    # The widest first, so that no worker is left alone with one at the end.
    order = sorted(range(len(planned)), key=lambda i: -len(planned[i].train))
    calls = [delayed(_right)(cache, task, layer, planned[i], i) for i in order]
    found: dict[int, np.ndarray] = {}
    with working(calls, jobs) as answers:
        for i, right in answers:
            found[i] = right
            if advanced is not None:
                advanced(len(found))
    keep(cache, "curve", key, {f"{i:03}": found[i] for i in found}, {"layer": layer})
    return [found[i] for i in range(len(planned))]


def _right(
    cache: FeatureCache, task: Task, layer: str, trial: Trial, which: int
) -> tuple[int, np.ndarray]:
    """Train one head of the curve, in a worker; its C is chosen on what it is asked."""
    positions = np.concatenate([trial.train, trial.held])
    learnt, held = np.split(np.arange(len(positions)), [len(trial.train)])
    known = np.unique(task.y[trial.train])
    number = np.full(len(task.classes), -1)
    number[known] = np.arange(len(known))
    y = number[task.y[positions]]
    rows = Rows.of_cache(cache, [layer], task.rows[positions]).prepared(ROOT_L2)
    part = np.repeat([1, 0], [len(learnt), len(held)]).astype(np.int16)
    split = Folding(part, [held], spared=True)
    # Nothing is kept of these rows' spectra: no other task will ask for the same ones.
    basis = spectra(None, [layer], rows, split)
    trained = train(named(HEAD), Lesson(rows, y, len(known), split, basis))
    assert trained.choice is not None
    return which, trained.choice.scores.argmax(axis=1) == y[held]

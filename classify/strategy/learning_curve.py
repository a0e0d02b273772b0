"""How many images there are: counts against published thresholds, and a learning curve."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import delayed

from classify.data.features import FeatureRows
from classify.data.folder_labels import TEST, TRAIN, VAL
from classify.data.folds import FoldPlan, iter_folds
from classify.data.preparation import ROOT_L2
from classify.data.tasks import Task
from classify.evaluation.bootstrap import Estimate, bootstrap_means
from classify.evaluation.predictions import renumber
from classify.experiments.workers import run_parallel
from classify.heads.registry import get_head_spec
from classify.store import compute_digest, load_artifact, save_artifact
from classify.training.train import train
from classify.training.training_set import TrainingSet
from featurize.cache.reader import FeatureCache
from featurize.progress import Report, Step, ignore

SMALL, LARGE = "small", "large"
MIN_LARGE_IMAGES = 20_000
"""Training images from which on a task is large: where A. Kolesnikov et al. (2020), "Big Transfer
(BiT): General Visual Representation Learning", ECCV, begin to fine-tune for longer."""
MIN_LARGE_PER_CLASS = 100
"""Of each class, by the median: between the fine-grained sets that nobody trains a network on from
nothing (30 to 80 a class) and the smallest on which that is usual (CIFAR-100, 500 a class)."""
NEAR_FACTOR = 2  # within this factor of a threshold it is said that the number is near
TRAIN_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
MIN_SINGLE_FOLD_IMAGES = 5_000  # images from which on one held-out fold says enough
MAX_HELD_OUT = 20_000  # more held-out images would narrow no interval that matters
CURVE_VERSION = 2
ADVICE_HEAD = "lda"  # in closed form: a fifth of the time of softmax, and the same order of layers


@dataclass(frozen=True)
class CurvePoint:
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

    fraction: float
    n_images: int
    accuracy: Estimate


@dataclass(frozen=True)
class DatasetSize:
    """How many images there are, and what more of them would bring.

    Attributes
    ----------
    images, classes : int
        To learn from.
    per_class : (int, float)
        Images of the smallest class, and of the one in the middle.
    curve : list of CurvePoint
        From few rows to all.
    doubling : Estimate
        What the last doubling of the rows gained, image by image.
    """

    n_images: int
    n_classes: int
    images_per_class: tuple[int, float]
    curve: list[CurvePoint]
    last_doubling_gain: Estimate

    @property
    def verdict(self) -> str:
        """``large`` or ``small``."""
        return (
            LARGE
            if self.n_images >= MIN_LARGE_IMAGES and self.images_per_class[1] >= MIN_LARGE_PER_CLASS
            else SMALL
        )

    @property
    def is_near_threshold(self) -> bool:
        """Whether the number that decides is within a factor of two of its threshold."""
        least = min(
            self.n_images / MIN_LARGE_IMAGES, self.images_per_class[1] / MIN_LARGE_PER_CLASS
        )
        return 1 / NEAR_FACTOR < least < NEAR_FACTOR

    @property
    def is_gaining(self) -> bool:
        """Whether the head is still gaining from data: the last doubling was no chance."""
        return self.last_doubling_gain.low > 0

    @property
    def next_doubling_gain(self) -> float:
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

    def to_dict(self) -> dict[str, Any]:
        """The same as what JSON knows."""
        return {
            "images": self.n_images,
            "classes": self.n_classes,
            "per_class": {"min": self.images_per_class[0], "median": self.images_per_class[1]},
            "thresholds": {"images": MIN_LARGE_IMAGES, "per_class": MIN_LARGE_PER_CLASS},
            "near_threshold": self.is_near_threshold,
            "curve": [
                {"share": p.fraction, "images": p.n_images, "accuracy": p.accuracy.value}
                | {"accuracy_ci": [p.accuracy.low, p.accuracy.high]}
                for p in self.curve
            ],
            "gaining": self.is_gaining,
            "last_doubling": self.last_doubling_gain.value,
            "last_doubling_ci": [self.last_doubling_gain.low, self.last_doubling_gain.high],
            "next_doubling": self.next_doubling_gain,
            "measured": self.verdict,
        }


@dataclass(frozen=True, eq=False)
class CurveFit:
    """One head of the learning curve: what it learns from, and what it is asked.

    Attributes
    ----------
    share : int
        Position in `TRAIN_FRACTIONS`.
    train, held : int arrays
        Positions among the task's rows.
    """

    fraction_index: int
    train: np.ndarray
    held_out: np.ndarray


def plan_curve(task: Task, seed: int) -> list[CurveFit]:
    """Plan a learning curve: for each held-out fold, the rest of the rows and nested parts of it.

    The user's validation images are held out where there are some; else five folds in turn, or the
    first alone of 5,000 images or more. Groups stay whole on every side.
    """
    dev = np.flatnonzero(task.split != TEST)
    if (task.split == VAL).any():
        sides = [(np.flatnonzero(task.split == TRAIN), np.flatnonzero(task.split == VAL))]
    else:
        unit = task.units[dev]
        sides = [(dev[a], dev[b]) for a, b in iter_folds(task.y[dev], seed, unit)]
        sides = sides[:1] if len(dev) >= MIN_SINGLE_FOLD_IMAGES else sides
    return list(_iter_curve_fits(task, sides, seed))


def _iter_curve_fits(
    task: Task, sides: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> Iterator[CurveFit]:
    rng = np.random.default_rng(seed)
    for learnt, held in sides:
        held = np.sort(rng.permutation(held)[:MAX_HELD_OUT])
        place = _draw_nested_order(task.y[learnt], task.units[learnt], rng)
        for i, share in enumerate(TRAIN_FRACTIONS):
            yield CurveFit(i, learnt[place <= share], held)


def _draw_nested_order(y: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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


def measure_learning_curve(
    cache: FeatureCache,
    task: Task,
    layer: str,
    fits: list[CurveFit],
    *,
    seed: int,
    jobs: int | None = None,
    report: Report = ignore,
) -> DatasetSize:
    """Count the images, and draw the learning curve of a linear head.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    layer : str
    planned : list of CurveFit
        As `plan_curve` gives them, at least one fold's.
    seed : int
        For the bootstrap.
    jobs : int, optional
        Worker processes; as many as there are cores if not given.
    report : callable
        Called with a `featurize.progress.Progress` of the curve's heads.
    """
    count = np.bincount(task.y[task.split == TRAIN])
    count = count[count > 0]
    right = _load_or_fit_curve(cache, task, layer, fits, jobs, report)
    held = np.concatenate([trial.held_out for trial in fits if trial.fraction_index == 0])
    columns = np.stack(
        [
            np.concatenate([r for r, t in zip(right, fits, strict=True) if t.fraction_index == i])
            for i in range(len(TRAIN_FRACTIONS))
        ],
        axis=1,
    ).astype(float)
    unit = task.units[held]
    accuracy = bootstrap_means(columns, unit, (0, 1), seed)
    (doubling,) = bootstrap_means(columns[:, -1:] - columns[:, -2:-1], unit, (-1, 1), seed)
    images = [
        round(np.mean([len(t.train) for t in fits if t.fraction_index == i]))
        for i in range(len(TRAIN_FRACTIONS))
    ]
    return DatasetSize(
        n_images=int(count.sum()),
        n_classes=len(count),
        images_per_class=(int(count.min()), float(np.median(count))),
        curve=[CurvePoint(*it) for it in zip(TRAIN_FRACTIONS, images, accuracy, strict=True)],
        last_doubling_gain=doubling,
    )


def _load_or_fit_curve(
    cache: FeatureCache,
    task: Task,
    layer: str,
    fits: list[CurveFit],
    jobs: int | None,
    report: Report,
) -> list[np.ndarray]:
    """Which held-out images each trial's head has right; kept beside the cache."""
    contents = cache.column("sha256")[task.rows]
    about = [CURVE_VERSION, cache.layer(layer).fingerprint, TRAIN_FRACTIONS]
    key = compute_digest(
        about, contents, task.y, *(part for t in fits for part in (t.train, t.held_out))
    )
    kept = load_artifact(cache, "curve", key)
    if kept is not None and len(kept.arrays) == len(fits):
        report(Step("learning curve", len(fits), len(fits)))
        return [kept.arrays[f"{i:03}"] for i in range(len(fits))]
    # The widest first, so that no worker is left alone with one at the end.
    order = sorted(range(len(fits)), key=lambda i: -len(fits[i].train))
    calls = [delayed(_fit_point)(cache, task, layer, fits[i], i) for i in order]
    found: dict[int, np.ndarray] = {}
    with run_parallel(calls, jobs) as answers:
        for i, right in answers:
            found[i] = right
            report(Step("learning curve", len(found), len(fits)))
    save_artifact(cache, "curve", key, {f"{i:03}": found[i] for i in found}, {"layer": layer})
    return [found[i] for i in range(len(fits))]


def _fit_point(
    cache: FeatureCache, task: Task, layer: str, curve_fit: CurveFit, index: int
) -> tuple[int, np.ndarray]:
    """Fit one point of the curve, in a worker; its shrinkage is selected on the held-out images.

    Returns
    -------
    int
        `index`.
    bool array of shape (m,)
        Which held-out images it has right.
    """
    positions = np.concatenate([curve_fit.train, curve_fit.held_out])
    n_train = len(curve_fit.train)
    held_out = np.arange(n_train, len(positions))
    known = np.unique(task.y[curve_fit.train])
    y = renumber(task.y[positions], known)
    rows = FeatureRows.from_cache(cache, [layer], task.rows[positions]).with_preparation(ROOT_L2)
    part = np.repeat([1, 0], [n_train, len(held_out)]).astype(np.int16)
    fold_plan, spec = FoldPlan(part, [held_out], has_val_split=True), get_head_spec(ADVICE_HEAD)
    # Without a cache nothing is stored: no other task will ask for the same rows' bases.
    trained = train(spec, TrainingSet.prepare(spec, rows, y, fold_plan, n_classes=len(known)))
    assert trained.selected is not None
    return index, trained.selected.decision_values.argmax(axis=1) == y[held_out]

"""Size of a dataset: image counts against published thresholds, and a learning curve."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import delayed

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan, iter_folds
from classify.data.preparation import ROOT_L2
from classify.data.tasks import Task
from classify.evaluation.bootstrap import Estimate, bootstrap_means
from classify.evaluation.predictions import renumber
from classify.heads.registry import get_head_spec
from classify.labels.folders import TEST, TRAIN, VAL
from classify.store import compute_digest, load_artifact, save_artifact
from classify.training.train import train
from classify.training.training_set import TrainingSet
from classify.workers import run_parallel
from featurize.cache.reader import FeatureCache
from featurize.progress import Report, Step, ignore

SMALL, LARGE = "small", "large"
MIN_LARGE_IMAGES = 20_000
"""Minimum number of training images of a large task: A. Kolesnikov et al. (2020), "Big Transfer
(BiT): General Visual Representation Learning", ECCV, fine-tune longer from there on."""
MIN_LARGE_PER_CLASS = 100
"""Minimum median number of images per class of a large task: between fine-grained datasets, which
are too small to train a network from scratch (30 to 80 per class), and the smallest on which that
is usual (CIFAR-100, 500 per class)."""
NEAR_FACTOR = 2  # within this factor of a threshold, a number counts as near it
TRAIN_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
MIN_SINGLE_FOLD_IMAGES = 5_000  # from here on, one held-out fold is precise enough
MAX_HELD_OUT = 20_000  # more held-out images would hardly narrow the intervals
CURVE_VERSION = 2
ADVICE_HEAD = "lda"  # closed form: a fifth of the time of softmax, and it ranks layers alike


@dataclass(frozen=True)
class CurvePoint:
    """One point of the learning curve.

    Attributes
    ----------
    fraction : float
        Fraction of the available training images.
    n_images : int
        Number of training images; with several folds, the mean.
    accuracy : Estimate
        Accuracy on held-out images, the same for every point.
    """

    fraction: float
    n_images: int
    accuracy: Estimate


@dataclass(frozen=True)
class DatasetSize:
    """Number of images, and the expected gain from more.

    Attributes
    ----------
    n_images, n_classes : int
        Of the training images.
    images_per_class : (int, float)
        Minimum and median over the classes.
    curve : list of CurvePoint
        From the smallest fraction to all images.
    last_doubling_gain : Estimate
        Accuracy gained by the last doubling of the images, paired by image.
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
        """Whether the deciding number is within a factor of 2 of its threshold."""
        ratio = min(
            self.n_images / MIN_LARGE_IMAGES, self.images_per_class[1] / MIN_LARGE_PER_CLASS
        )
        return 1 / NEAR_FACTOR < ratio < NEAR_FACTOR

    @property
    def is_gaining(self) -> bool:
        """Whether the last doubling gained accuracy by more than chance."""
        return self.last_doubling_gain.low > 0

    @property
    def next_doubling_gain(self) -> float:
        """Expected gain in accuracy from twice as many images.

        The error is assumed to fall as a power of the number of images towards a floor (J.
        Hestness et al., 2017, "Deep Learning Scaling is Predictable, Empirically"). Then each
        doubling gains a constant fraction of the previous gain; the fraction is clipped to [0, 1].
        """
        quarter, half, whole = (point.accuracy.value for point in self.curve[-3:])
        previous_gain, last_gain = half - quarter, whole - half
        if last_gain <= 0:
            return 0.0
        return last_gain * (min(1.0, last_gain / previous_gain) if previous_gain > 0 else 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the size as a dict for JSON.

        Returns
        -------
        dict
            The evidence of an advice; `classify.strategy.advise.Advice.to_dict` includes it.
        """
        return {
            "images": self.n_images,
            "classes": self.n_classes,
            "per_class": {"min": self.images_per_class[0], "median": self.images_per_class[1]},
            "thresholds": {"images": MIN_LARGE_IMAGES, "per_class": MIN_LARGE_PER_CLASS},
            "near_threshold": self.is_near_threshold,
            "curve": [
                {
                    "share": point.fraction,
                    "images": point.n_images,
                    "accuracy": point.accuracy.value,
                }
                | {"accuracy_ci": [point.accuracy.low, point.accuracy.high]}
                for point in self.curve
            ],
            "gaining": self.is_gaining,
            "last_doubling": self.last_doubling_gain.value,
            "last_doubling_ci": [self.last_doubling_gain.low, self.last_doubling_gain.high],
            "next_doubling": self.next_doubling_gain,
            "measured": self.verdict,
        }


@dataclass(frozen=True, eq=False)
class CurveFit:
    """One head of the learning curve.

    Attributes
    ----------
    fraction_index : int
        Position in `TRAIN_FRACTIONS`.
    train, held_out : int arrays
        Positions among the task's rows.
    """

    fraction_index: int
    train: np.ndarray
    held_out: np.ndarray


def plan_curve(task: Task, seed: int) -> list[CurveFit]:
    """Plan a learning curve: for each held-out fold, nested subsets of the other rows.

    The user's validation images are held out where there are some. Otherwise five folds are held
    out in turn, or with 5,000 images or more only the first. Groups are never split.

    Parameters
    ----------
    task : Task
    seed : int
        Seed of the folds and of the subsets.

    Returns
    -------
    list of CurveFit
        Empty if nothing can be held out.
    """
    dev = np.flatnonzero(task.split != TEST)
    if (task.split == VAL).any():
        splits = [(np.flatnonzero(task.split == TRAIN), np.flatnonzero(task.split == VAL))]
    else:
        unit = task.units[dev]
        splits = [
            (dev[train_rows], dev[held_out_rows])
            for train_rows, held_out_rows in iter_folds(task.y[dev], seed, unit)
        ]
        splits = splits[:1] if len(dev) >= MIN_SINGLE_FOLD_IMAGES else splits
    return list(_iter_curve_fits(task, splits, seed))


def _iter_curve_fits(
    task: Task, splits: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> Iterator[CurveFit]:
    rng = np.random.default_rng(seed)
    for train_rows, held_out_rows in splits:
        held_out_rows = np.sort(rng.permutation(held_out_rows)[:MAX_HELD_OUT])
        order = _draw_nested_order(task.y[train_rows], task.units[train_rows], rng)
        for i, fraction in enumerate(TRAIN_FRACTIONS):
            yield CurveFit(i, train_rows[order <= fraction], held_out_rows)


def _draw_nested_order(y: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the smallest training fraction that includes each image: float (n,), 0 to 1.

    In every class, images (or whole units, each counted for its most frequent class) are in random
    order; the first one is in every subset.
    """
    unit = np.unique(unit, return_inverse=True)[1]
    unit_class_pairs, count = np.unique(np.stack([unit, y]), axis=1, return_counts=True)
    by_unit_and_count = np.lexsort((-count, unit_class_pairs[0]))
    first = np.unique(unit_class_pairs[0, by_unit_and_count], return_index=True)[1]
    class_of_unit = unit_class_pairs[1, by_unit_and_count][
        first
    ]  # most frequent class of each unit
    fraction_of_unit = np.empty(len(class_of_unit))
    for k in np.unique(class_of_unit):
        units_of_class = rng.permutation(np.flatnonzero(class_of_unit == k))
        fraction_of_unit[units_of_class] = (np.arange(len(units_of_class)) + 0.5) / len(
            units_of_class
        )
        fraction_of_unit[units_of_class[0]] = 0
    return fraction_of_unit[unit]


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
    """Count the images, and measure the learning curve of a linear head.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    layer : str
    fits : list of CurveFit
        From `plan_curve`, of at least one fold.
    seed : int
        Seed of the bootstrap.
    jobs : int, optional
        Number of worker processes; by default the number of cores.
    report : callable
        Called with a `featurize.progress.Progress` for each head of the curve.

    Returns
    -------
    DatasetSize
    """
    n_per_class = np.bincount(task.y[task.split == TRAIN])
    n_per_class = n_per_class[n_per_class > 0]
    correct = _load_or_fit_curve(cache, task, layer, fits, jobs, report)
    held_out = np.concatenate(
        [curve_fit.held_out for curve_fit in fits if curve_fit.fraction_index == 0]
    )
    columns = np.stack(
        [
            np.concatenate([r for r, t in zip(correct, fits, strict=True) if t.fraction_index == i])
            for i in range(len(TRAIN_FRACTIONS))
        ],
        axis=1,
    ).astype(float)
    unit = task.units[held_out]
    accuracy = bootstrap_means(columns, unit, (0, 1), seed)
    (doubling_gain,) = bootstrap_means(columns[:, -1:] - columns[:, -2:-1], unit, (-1, 1), seed)
    n_images = [
        round(np.mean([len(t.train) for t in fits if t.fraction_index == i]))
        for i in range(len(TRAIN_FRACTIONS))
    ]
    return DatasetSize(
        n_images=int(n_per_class.sum()),
        n_classes=len(n_per_class),
        images_per_class=(int(n_per_class.min()), float(np.median(n_per_class))),
        curve=[
            CurvePoint(*values) for values in zip(TRAIN_FRACTIONS, n_images, accuracy, strict=True)
        ],
        last_doubling_gain=doubling_gain,
    )


def _load_or_fit_curve(
    cache: FeatureCache,
    task: Task,
    layer: str,
    fits: list[CurveFit],
    jobs: int | None,
    report: Report,
) -> list[np.ndarray]:
    """Return which held-out images each fit gets right; the result is stored next to the cache."""
    image_hashes = cache.column("sha256", task.rows)
    key_parts = [CURVE_VERSION, cache.layer(layer).fingerprint, TRAIN_FRACTIONS]
    key = compute_digest(
        key_parts, image_hashes, task.y, *(part for t in fits for part in (t.train, t.held_out))
    )
    artifact = load_artifact(cache, "curve", key)
    if artifact is not None and len(artifact.arrays) == len(fits):
        report(Step("learning curve", len(fits), len(fits)))
        return [artifact.arrays[f"{i:03}"] for i in range(len(fits))]
    # The largest first, so that the workers finish at about the same time.
    order = sorted(range(len(fits)), key=lambda i: -len(fits[i].train))
    calls = [delayed(_fit_point)(cache, task, layer, fits[i], i) for i in order]
    correct_by_fit: dict[int, np.ndarray] = {}
    with run_parallel(calls, jobs) as results:
        for i, correct in results:
            correct_by_fit[i] = correct
            report(Step("learning curve", len(correct_by_fit), len(fits)))
    save_artifact(
        cache,
        "curve",
        key,
        {f"{i:03}": correct_by_fit[i] for i in correct_by_fit},
        {"layer": layer},
    )
    return [correct_by_fit[i] for i in range(len(fits))]


def _fit_point(
    cache: FeatureCache, task: Task, layer: str, curve_fit: CurveFit, index: int
) -> tuple[int, np.ndarray]:
    """Fit one point of the curve in a worker; its shrinkage is selected on the held-out images.

    Returns
    -------
    index : int
        As given.
    correct : bool array of shape (m,)
        Whether each held-out image is predicted correctly.
    """
    positions = np.concatenate([curve_fit.train, curve_fit.held_out])
    n_train = len(curve_fit.train)
    held_out = np.arange(n_train, len(positions))
    known = np.unique(task.y[curve_fit.train])
    y = renumber(task.y[positions], known)
    rows = FeatureRows.from_cache(cache, [layer], task.rows[positions]).with_preparation(ROOT_L2)
    fold_of_row = np.repeat([1, 0], [n_train, len(held_out)]).astype(np.int16)
    fold_plan, spec = (
        FoldPlan(fold_of_row, [held_out], has_val_split=True),
        get_head_spec(ADVICE_HEAD),
    )
    # No cache is passed, so no bases are stored: no other task has the same rows.
    trained = train(spec, TrainingSet.prepare(spec, rows, y, fold_plan, n_classes=len(known)))
    assert trained.selected is not None
    return index, trained.selected.decision_values.argmax(axis=1) == y[held_out]

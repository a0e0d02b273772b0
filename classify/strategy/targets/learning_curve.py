"""Learning curve of labels that are not one class."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from classify.data.targets.stratify import hold_out_targets
from classify.data.targets.task import TargetTask
from classify.evaluation.targets.metrics import compute_target_metrics
from classify.experiments.targets.fit_task import fit_target_task
from classify.experiments.targets.results import TargetFitOptions
from classify.heads.targets.registry import LAYER_HEAD, get_target_head_spec
from classify.labels.folders import TEST, TRAIN
from classify.strategy.learning_curve import TRAIN_FRACTIONS
from featurize.cache.reader import FeatureCache

HELD_OUT_SHARE = 0.2  # of the images outside the test, which every point is measured on
MIN_IMAGES = 20  # of a point


@dataclass(frozen=True)
class CurvePoint:
    """One point of the learning curve.

    Attributes
    ----------
    fraction : float
        Fraction of the available training images.
    n_images : int
    value : float
        The metric on held-out images, the same for every point.
    ci : (float, float)
        95 % interval.
    """

    fraction: float
    n_images: int
    value: float
    ci: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the point as a dict for JSON.

        Returns
        -------
        dict
        """
        return {
            "share": self.fraction,
            "images": self.n_images,
            "value": self.value,
            "value_ci": list(self.ci),
        }


def measure_target_curve(
    cache: FeatureCache, task: TargetTask, layer: str, options: TargetFitOptions
) -> list[CurvePoint]:
    """Measure ridge on growing parts of the training images.

    Images of the test are not used: a fifth of the others takes their place.

    Parameters
    ----------
    cache : FeatureCache
    task : TargetTask
    layer : str
    options : TargetFitOptions

    Returns
    -------
    list of CurvePoint
        From the smallest part to all; parts of under 20 images are left out.
    """
    spec = get_target_head_spec(LAYER_HEAD, task.kind)
    rng = np.random.default_rng(options.seed)
    dev = np.flatnonzero(task.split != TEST)
    is_held_out = hold_out_targets(
        task.kind, task.values[dev], HELD_OUT_SHARE, options.seed, task.units[dev]
    )
    unit = np.unique(task.units[dev], return_inverse=True)[1]
    rank = rng.permutation(int(unit.max()) + 1)[unit] / (int(unit.max()) + 1)
    points = []
    for fraction in TRAIN_FRACTIONS:
        chosen = np.flatnonzero(is_held_out | (rank < fraction))
        split = np.where(is_held_out[chosen], TEST, TRAIN)
        n_images = int((split == TRAIN).sum())
        if n_images < MIN_IMAGES or not is_held_out.any():
            continue
        part = TargetTask(
            task.name,
            task.kind,
            task.names,
            task.rows[dev[chosen]],
            task.values[dev[chosen]],
            split,
            None,
            (),
            task.units[dev[chosen]],
        )
        with threadpool_limits(1):
            _, fitted = fit_target_task(cache, part, spec, (layer,), options, persist=False)
        if fitted.test is None:
            continue
        found = compute_target_metrics(
            fitted.test,
            task.n_grades,
            part.units_for(fitted.test.rows),
            seed=options.seed,
            names=(options.metric,),
        )
        if found[options.metric] is not None:
            low, high = found[f"{options.metric}_ci"]
            points.append(CurvePoint(fraction, n_images, found[options.metric], (low, high)))
    return points

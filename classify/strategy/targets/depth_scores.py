"""How well a head does by depth, for labels that are not one class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from classify.data.targets.task import TargetTask
from classify.evaluation.paired import Difference
from classify.evaluation.targets.metrics import (
    LOWER_IS_BETTER,
    compare_target_paired,
    compute_target_metric,
    compute_target_metrics,
)
from classify.evaluation.targets.predictions import TargetPredictions
from classify.strategy.depth_profile import (
    EQUAL_MARGIN,
    MIN_ERROR_REDUCTION,
    N_PARTS,
)
from classify.strategy.layer_depths import LayerDepths


@dataclass(frozen=True)
class LayerScore:
    """How well a head does on one layer.

    Attributes
    ----------
    layer : str
        Of the cache; several joined as ``a+b``.
    depth : float, or None
        Relative depth in the network; None for joined layers.
    value : float
        The metric on held-out images.
    ci : (float, float)
        95 % interval.
    """

    layer: str
    depth: float | None
    value: float
    ci: tuple[float, float]


def measure_profile(
    task: TargetTask,
    held_out: dict[str, TargetPredictions],
    depths: LayerDepths,
    metric: str,
    seed: int,
) -> list[LayerScore]:
    """Measure a head on every layer.

    Parameters
    ----------
    task : TargetTask
    held_out : dict of str to TargetPredictions
        By layer.
    depths : LayerDepths
    metric : str
    seed : int
        Of the intervals.

    Returns
    -------
    list of LayerScore
    """
    scores = []
    for layer, predictions in held_out.items():
        unit = task.units_for(predictions.rows)
        found = compute_target_metrics(predictions, task.n_grades, unit, seed=seed, names=(metric,))
        if found[metric] is not None:
            low, high = found[f"{metric}_ci"]
            scores.append(LayerScore(layer, depths.relative.get(layer), found[metric], (low, high)))
    return scores


def measure_cut(
    task: TargetTask,
    held_out: dict[str, TargetPredictions],
    candidates: Sequence[str],
    last: str,
    metric: str,
    seed: int,
) -> Difference:
    """Measure the gain of the best candidate, chosen on nine tenths and judged on the tenth.

    Parameters
    ----------
    task : TargetTask
    held_out : dict of str to TargetPredictions
        By layer.
    candidates : sequence of str
        Layers to choose from.
    last : str
        The layer to compare with.
    metric : str
    seed : int

    Returns
    -------
    Difference
        Positive is better, whatever the metric.
    """
    reference = held_out[last]
    unit = np.unique(task.units_for(reference.rows), return_inverse=True)[1]
    n_units = int(unit.max()) + 1
    part = (np.random.default_rng(seed).permutation(n_units) % min(N_PARTS, n_units))[unit]
    values = reference.values.copy()
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for i in range(int(part.max()) + 1):
        inside, outside = part == i, part != i
        scores = []
        for name in candidates:
            predictions = held_out[name]
            value = compute_target_metric(
                metric,
                predictions.truth[outside],
                predictions.values[outside],
                predictions.thresholds,
                task.n_grades,
            )
            scores.append(-np.inf if value is None else sign * value)
        values[inside] = held_out[candidates[int(np.argmax(scores))]].values[inside]
    nested = TargetPredictions(
        reference.kind, reference.rows, reference.truth, values, reference.thresholds
    )
    found = compare_target_paired(nested, reference, metric, task.n_grades, unit, seed=seed)
    if sign > 0:
        return found
    return Difference(-found.value, -found.high, -found.low, found.p_value, found.distinguishable)


def measure_room(metric: str, value: float) -> float:
    """Return what the last layer leaves to be gained.

    Parameters
    ----------
    metric : str
    value : float
        Of the last layer.

    Returns
    -------
    float
        The error, or what lacks to 1.
    """
    return value if metric in LOWER_IS_BETTER else max(1 - value, 0.0)


def is_settled(
    gain: Difference,
    lower_gain: Difference | None,
    room: float,
    is_clear: bool,
    is_redundant: bool,
) -> bool:
    """Return whether the intervals leave only one verdict.

    Parameters
    ----------
    gain, lower_gain : Difference
        Of the best cut, and of the best low one.
    room : float
        As `measure_room` gives it.
    is_clear, is_redundant : bool
        Whether the cut is clearly better, and whether the upper part adds nothing.

    Returns
    -------
    bool
    """
    if is_clear:
        return True
    redundant_at = -EQUAL_MARGIN * room
    lower_settled = lower_gain is None or not lower_gain.low <= redundant_at <= lower_gain.high
    if is_redundant:
        return lower_settled
    least = MIN_ERROR_REDUCTION * room
    threshold = 0.0 if gain.value >= least else least
    return lower_settled and not gain.low <= threshold <= gain.high

"""Fit what tells images that are unlike all that a head was trained on."""

from collections.abc import Sequence

import numpy as np

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan
from classify.doubt.novelty import FeatureSpread, Novelty, fit_novelty
from classify.errors import CallError
from classify.solvers.closed_form import sum_classes_for_folds
from classify.solvers.gram import PrincipalBasis
from classify.solvers.gram_cache import compute_fold_bases
from featurize.cache.reader import FeatureCache

MAX_HELD_OUT = 20_000  # images that a threshold is set by; more would not move it


def fit_head_novelty(
    cache: FeatureCache,
    layers: Sequence[str],
    rows: FeatureRows,
    y: np.ndarray,
    n_classes: int,
    fold_plan: FoldPlan,
    held_out: np.ndarray,
    proba: np.ndarray,
    unit: np.ndarray,
) -> Novelty | None:
    """Fit the novelty of a head from the statistics of its own prepared features.

    The distance of a held-out image is to the images that its fold trained on, so that a threshold
    holds for new ones.

    Parameters
    ----------
    cache : FeatureCache
    layers : sequence of str
    rows : FeatureRows
        n rows outside the test, prepared.
    y : int array of shape (n,)
        Class numbers below `n_classes`; -1 for a class that the head does not know.
    n_classes : int
    fold_plan : FoldPlan
        Folds of these rows.
    held_out : int array of shape (m,)
        Positions of the validated rows.
    proba : float array of shape (m, K)
        Their calibrated probabilities.
    unit : int array of shape (m,)

    Returns
    -------
    Novelty, or None
        None where nothing was held out, there are too few units, or the features are too wide for
        their statistics.
    """
    if not len(held_out):
        return None
    if len(held_out) > MAX_HELD_OUT:
        chosen = np.random.default_rng(0).choice(len(held_out), MAX_HELD_OUT, replace=False)
        held_out, proba, unit = held_out[chosen], proba[chosen], unit[chosen]
    try:
        bases = compute_fold_bases(cache, layers, rows, fold_plan)
        sums = sum_classes_for_folds(rows, y, n_classes, fold_plan)
    except CallError:
        return None
    distances = np.empty((len(held_out), 2))
    for fold in range(len(fold_plan.val_indices)):
        own = np.flatnonzero(np.isin(held_out, fold_plan.val_indices[fold]))
        if not len(own):
            continue
        spread = FeatureSpread.from_statistics(_unpack(bases[fold]), *sums.sum_without(fold))
        order = own[np.argsort(held_out[own])]
        part = rows.subset(held_out[order])
        blocks = [spread.distances(block) for _, block in part.iter_blocks()]
        distances[order] = np.concatenate(blocks)
    final = sums.sum_without(0 if fold_plan.has_val_split else None)
    spread = FeatureSpread.from_statistics(_unpack(bases[-1]), *final)
    return fit_novelty(spread, distances, proba, unit)


def _unpack(
    basis: PrincipalBasis,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return basis.count, basis.mean, basis.scale, basis.vectors, basis.values

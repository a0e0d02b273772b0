"""Recall of each class with intervals, which one accuracy for all classes hides."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from classify.evaluation.metrics import estimate_proportion
from classify.evaluation.predictions import HeldOutPredictions

ClassRecalls = dict[str, dict[str, Any]]
"""By class: the recall ``value``, its interval ``ci`` and the number of images ``n``."""


def compute_class_recall(
    predictions: HeldOutPredictions, classes: Sequence[str], unit: np.ndarray, seed: int = 0
) -> ClassRecalls:
    """Compute the recall of each class: the share of its images that is predicted correctly.

    Parameters
    ----------
    predictions : HeldOutPredictions
        Of n images.
    classes : sequence of str
        Names by class number.
    unit : int array of shape (n,)
        Images with the same number count as one observation.
    seed : int

    Returns
    -------
    dict of str to dict
        By class, the lowest recall first; classes without an image are left out. The 95 % intervals
        are those of `classify.evaluation.metrics.estimate_proportion`. They leave out the variance
        of training, and each holds for its class alone: of twenty, one misses by chance.
    """
    order = np.argsort(predictions.truth, kind="stable")
    numbers, first = np.unique(predictions.truth[order], return_index=True)
    recalls: list[tuple[str, dict[str, Any]]] = []
    for number, positions in zip(numbers, np.split(order, first[1:]), strict=True):
        value, (low, high) = estimate_proportion(
            predictions.correct[positions], unit[positions], seed
        )
        recalls.append((classes[number], {"value": value, "ci": [low, high], "n": len(positions)}))
    return dict(sorted(recalls, key=lambda pair: pair[1]["value"]))

"""How many images of each class are found, with intervals: what one accuracy hides."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from classify.evaluation.metrics import estimate_proportion
from classify.evaluation.predictions import HeldOutPredictions

ClassRecalls = dict[str, dict[str, Any]]
"""By class: ``value``, ``ci`` and ``n``, its images."""


def compute_class_recall(
    predictions: HeldOutPredictions, classes: Sequence[str], unit: np.ndarray, seed: int = 0
) -> ClassRecalls:
    """The share of each class's images that is found, the least first.

    Parameters
    ----------
    predictions : HeldOutPredictions
        n of them.
    classes : sequence of str
        By class number. Those without an image are left out.
    unit : int array of shape (n,)
        Images with the same number are right or wrong together.
    seed : int

    Returns
    -------
    dict
        The 95 % intervals are those of `classify.evaluation.metrics.estimate_proportion`: they
        leave out the variance of training, and each holds for its class alone. Of twenty, one
        misses by chance.
    """
    order = np.argsort(predictions.truth, kind="stable")
    numbers, first = np.unique(predictions.truth[order], return_index=True)
    found: list[tuple[str, dict[str, Any]]] = []
    for k, of_class in zip(numbers, np.split(order, first[1:]), strict=True):
        value, (low, high) = estimate_proportion(
            predictions.correct[of_class], unit[of_class], seed
        )
        found.append((classes[k], {"value": value, "ci": [low, high], "n": len(of_class)}))
    return dict(sorted(found, key=lambda pair: pair[1]["value"]))

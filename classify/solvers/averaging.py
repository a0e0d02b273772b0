"""Averages of calibrated linear heads on the same features, which are linear heads again.

The log probabilities of several heads are averaged, each head with a temperature of its own: a
logarithmic opinion pool. C. Genest and J. V. Zidek (1986), "Combining Probability Distributions: A
Critique and an Annotated Bibliography", Statistical Science 1, 114-135. What softmax and LDA get
wrong differs most where images are few: see `benchmarks/small_tasks.py`.
"""

from collections.abc import Sequence

import numpy as np

from classify.evaluation.predictions import UNSEEN_CLASS_SCORE
from classify.heads.models import LinearModel


def average_decision_values(
    decision_values: Sequence[np.ndarray], temperatures: Sequence[float]
) -> np.ndarray:
    """Average decision values of several heads, each divided by its temperature.

    Parameters
    ----------
    decision_values : sequence of float arrays of one shape
        A last axis of K classes, or the K intercepts of each head.
    temperatures : sequence of float
        Temperature of each head.

    Returns
    -------
    float64 array of the same shape
        The softmax of it is the normalised geometric mean of the heads' probabilities. A class that
        a head was not trained on has `UNSEEN_CLASS_SCORE`.
    """
    mean = np.mean(
        [values / t for values, t in zip(decision_values, temperatures, strict=True)],
        axis=0,
        dtype=np.float64,
    )
    is_unseen = np.any([values == UNSEEN_CLASS_SCORE for values in decision_values], axis=0)
    return np.where(is_unseen, UNSEEN_CLASS_SCORE, mean)


def average_linear_models(
    models: Sequence[LinearModel], temperatures: Sequence[float]
) -> LinearModel:
    """Average linear models of the same rows, each divided by its temperature.

    Parameters
    ----------
    models : sequence of LinearModel
        With the same `mean` and `scale`.
    temperatures : sequence of float
        Temperature of each model.

    Returns
    -------
    LinearModel
        Its decision values are the average of the models' scaled decision values.
    """
    first = models[0]
    coef = np.mean([model.coef / t for model, t in zip(models, temperatures, strict=True)], axis=0)
    intercept = average_decision_values([model.intercept for model in models], temperatures)
    return LinearModel(first.mean, first.scale, coef, intercept)

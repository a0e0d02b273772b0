"""Convert a head to fitted scikit-learn estimators."""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from classify.data.preparation import RootL2
from classify.heads.models import LinearModel


def make_linear_pipeline(
    scorer: LinearModel, classes: Sequence[str], temperature: float | None
) -> Pipeline:
    """Make a scikit-learn pipeline of a linear model, with the attributes that `fit` would set.

    Parameters
    ----------
    scorer : LinearModel
        The linear model.
    classes : sequence of str
        Names of the K classes, in the order of the decision values.
    temperature : float, or None
        Divisor of the decision values for probabilities; None for a head without probabilities.

    Returns
    -------
    Pipeline
        A `StandardScaler`, then a `LogisticRegression`, or a `LinearSVC` without a temperature.
    """
    scaler = StandardScaler()
    scaler.mean_, scaler.scale_ = scorer.mean.astype(float), scorer.scale.astype(float)
    scaler.var_, scaler.n_samples_seen_ = scaler.scale_**2, 1
    linear = LinearSVC() if temperature is None else LogisticRegression()
    coef, intercept = scorer.coef.astype(float), scorer.intercept.astype(float)
    order = np.argsort(np.array(classes))  # scikit-learn sorts the classes
    coef, intercept = coef[order] / (temperature or 1), intercept[order] / (temperature or 1)
    if len(classes) == 2:  # scikit-learn has one column: second minus first
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    linear.classes_, linear.coef_, linear.intercept_ = np.array(classes)[order], coef, intercept
    linear.n_iter_ = np.zeros(1, np.int32)
    scaler.n_features_in_ = linear.n_features_in_ = scorer.dim
    return Pipeline([("scale", scaler), ("classify", linear)])


def make_fitted_root_l2(widths: Sequence[int]) -> RootL2:
    """Make a fitted `RootL2` transformer.

    Parameters
    ----------
    widths : sequence of int
        Number of columns of each layer.

    Returns
    -------
    RootL2
        It takes ``sum(widths)`` features.
    """
    transformer = RootL2([*widths])
    transformer.n_features_in_ = sum(widths)
    return transformer

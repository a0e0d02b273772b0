"""A head as scikit-learn would hold it, had it been fitted there."""

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
    """Set the attributes that `fit` would set.

    Parameters
    ----------
    scorer : LinearModel
    classes : sequence of str
        K of them, in the order of the scores.
    temperature : float, or None
        What the scores are divided by for probabilities; None where there are none.
    """
    scale = StandardScaler()
    scale.mean_, scale.scale_ = scorer.mean.astype(float), scorer.scale.astype(float)
    scale.var_, scale.n_samples_seen_ = scale.scale_**2, 1
    linear = LinearSVC() if temperature is None else LogisticRegression()
    coef, intercept = scorer.coef.astype(float), scorer.intercept.astype(float)
    order = np.argsort(np.array(classes))  # as scikit-learn has them
    coef, intercept = coef[order] / (temperature or 1), intercept[order] / (temperature or 1)
    if len(classes) == 2:  # one column there: how much greater the second score is
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    linear.classes_, linear.coef_, linear.intercept_ = np.array(classes)[order], coef, intercept
    linear.n_iter_ = np.zeros(1, np.int32)
    scale.n_features_in_ = linear.n_features_in_ = scorer.dim
    return Pipeline([("scale", scale), ("classify", linear)])


def make_fitted_root_l2(widths: Sequence[int]) -> RootL2:
    """The preparation of layers of these widths."""
    step = RootL2([*widths])
    step.n_features_in_ = sum(widths)
    return step

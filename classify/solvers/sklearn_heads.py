"""Heads that scikit-learn trains: any classifier of the user's choice."""

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from classify.data.folds import Folds
from classify.heads.models import SklearnModel
from classify.heads.registry import ClassWeight, EstimatorFactory
from classify.solvers.selection import PathPoint


def cross_val_point(
    make_estimator: EstimatorFactory,
    X: np.ndarray,
    y: np.ndarray,
    folds: Folds,
    n_classes: int,
    class_weight: ClassWeight,
    *,
    global_scale: bool = False,
) -> PathPoint:
    """The held-out scores of every fold, in their order: there is nothing to choose.

    Parameters
    ----------
    build : callable
    X : float32 array of shape (n, D)
    y : int array of shape (n,)
    folds : sequence of (train, held out)
        Positions.
    n_classes : int
    weight : dict of int to float, or None
        The class weight.
    global_scale : bool
        As in `classify.scaling.fit_and_scale`.
    """
    scores, converged = [], True
    for train, held in folds:
        model, fine = fit_sklearn_head(
            make_estimator, X[train], y[train], n_classes, class_weight, global_scale=global_scale
        )
        scores.append(model.decision_values(X[held]))
        converged = converged and fine
    return PathPoint(None, np.concatenate(scores), converged)


def fit_sklearn_head(
    make_estimator: EstimatorFactory,
    X: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    class_weight: ClassWeight,
    *,
    global_scale: bool = False,
) -> tuple[SklearnModel, bool]:
    """Fit once, on features scaled by their own statistics.

    Parameters
    ----------
    X : float32 array of shape (n, D)
        Scaled in place: give a copy.
    y : int array of shape (n,)
    n_classes : int
        K; positions in `y` are below it.

    Returns
    -------
    SklearnModel
    bool
        Whether it converged.
    """
    scaler, Z = fit_and_scale(X, global_scale=global_scale)
    model = make_estimator(class_weight)
    fine = fit_converged(model, Z, y)
    pipeline = Pipeline([("scale", scaler), ("classify", model)])
    return SklearnModel(pipeline, X.shape[1], n_classes), fine


def fit_converged(model: Any, X: np.ndarray, y: np.ndarray) -> bool:
    """Fit a classifier, and say whether it converged: scikit-learn warns where it did not.

    Other warnings pass.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def fit_and_scale(
    X: np.ndarray, *, global_scale: bool = False
) -> tuple[StandardScaler, np.ndarray]:
    """Scale training features by their own statistics.

    Parameters
    ----------
    X : float array of shape (n, D)
        Scaled in place: give a copy.
    global_scale : bool
        Divide all columns by one number, the root of their mean variance: rows that are prepared
        keep the proportions of their columns. Else each is divided by its own deviation.

    Returns
    -------
    StandardScaler
        Fitted, for the rows to come: it copies what it is given.
    float array of shape (n, D)
    """
    scaler = StandardScaler(copy=False).fit(X)
    if global_scale:
        scaler.scale_[:] = np.sqrt(scaler.var_.mean()) or 1
    X = scaler.transform(X)
    return scaler.set_params(copy=True), X

"""Heads that scikit-learn trains: any classifier that the user names."""

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
    """Compute held-out decision values of a classifier without a param.

    Parameters
    ----------
    make_estimator : callable
        Makes an unfitted classifier from a class weight.
    X : float32 array of shape (n, D)
        Prepared features.
    y : int array of shape (n,)
        Class numbers below `n_classes`.
    folds : sequence of (train, held out)
        Positions among the n rows.
    n_classes : int
        K.
    class_weight : dict of int to float, or None
        Weights by class number.
    global_scale : bool, default False
        As in `fit_and_scale`.

    Returns
    -------
    PathPoint
        Decision values in the order of the folds.
    """
    decision_values, converged = [], True
    for train, held_out in folds:
        model, fold_converged = fit_sklearn_head(
            make_estimator, X[train], y[train], n_classes, class_weight, global_scale=global_scale
        )
        decision_values.append(model.decision_values(X[held_out]))
        converged = converged and fold_converged
    return PathPoint(None, np.concatenate(decision_values), converged)


def fit_sklearn_head(
    make_estimator: EstimatorFactory,
    X: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    class_weight: ClassWeight,
    *,
    global_scale: bool = False,
) -> tuple[SklearnModel, bool]:
    """Fit a scikit-learn classifier on features scaled by their own statistics.

    Parameters
    ----------
    make_estimator : callable
        Makes an unfitted classifier from a class weight.
    X : float32 array of shape (n, D)
        Scaled in place: give a copy.
    y : int array of shape (n,)
        Class numbers below `n_classes`.
    n_classes : int
        K.
    class_weight : dict of int to float, or None
        Weights by class number.
    global_scale : bool, default False
        As in `fit_and_scale`.

    Returns
    -------
    SklearnModel
        The scaler and the classifier.
    bool
        Whether the fit converged.
    """
    scaler, Z = fit_and_scale(X, global_scale=global_scale)
    model = make_estimator(class_weight)
    converged = fit_converged(model, Z, y)
    pipeline = Pipeline([("scale", scaler), ("classify", model)])
    return SklearnModel(pipeline, X.shape[1], n_classes), converged


def fit_converged(model: Any, X: np.ndarray, y: np.ndarray) -> bool:
    """Fit a classifier and return whether it converged.

    It did not if scikit-learn warned of it. Other warnings are issued again.

    Parameters
    ----------
    model : classifier
        Fitted in place.
    X : float array of shape (n, D)
        Scaled features.
    y : int array of shape (n,)
        Class numbers.

    Returns
    -------
    bool
        Whether the fit converged.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def fit_and_scale(
    X: np.ndarray, *, global_scale: bool = False
) -> tuple[StandardScaler, np.ndarray]:
    """Standardise training features by their own statistics.

    Parameters
    ----------
    X : float array of shape (n, D)
        Scaled in place: give a copy.
    global_scale : bool, default False
        Divide all columns by one number, the root of their mean variance, which keeps the
        proportions of columns prepared by root-l2. Else divide each by its own standard deviation.

    Returns
    -------
    StandardScaler
        Fitted; it copies the rows that it transforms.
    float array of shape (n, D)
        The scaled features.
    """
    scaler = StandardScaler(copy=False).fit(X)
    if global_scale:
        scaler.scale_[:] = np.sqrt(scaler.var_.mean()) or 1
    X = scaler.transform(X)
    return scaler.set_params(copy=True), X

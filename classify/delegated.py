"""Heads that scikit-learn trains: any classifier of the user's choice."""

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline

from classify.choice import Step
from classify.heads import Builder, ClassWeight
from classify.scaling import scaled
from classify.scorers import Fitted
from classify.splits import Folds


def held_out(
    build: Builder,
    X: np.ndarray,
    y: np.ndarray,
    folds: Folds,
    n_classes: int,
    weight: ClassWeight,
    *,
    whole: bool = False,
) -> Step:
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
    whole : bool
        As in `classify.scaling.scaled`.
    """
    scores, converged = [], True
    for train, held in folds:
        model, fine = fit(build, X[train], y[train], n_classes, weight, whole=whole)
        scores.append(model.scores(X[held]))
        converged = converged and fine
    return Step(None, np.concatenate(scores), converged)


def fit(
    build: Builder,
    X: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    weight: ClassWeight,
    *,
    whole: bool = False,
) -> tuple[Fitted, bool]:
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
    Fitted
    bool
        Whether it converged.
    """
    scaler, Z = scaled(X, whole=whole)
    model = build(weight)
    fine = converges(model, Z, y)
    pipeline = Pipeline([("scale", scaler), ("classify", model)])
    return Fitted(pipeline, X.shape[1], n_classes), fine


def converges(model: Any, X: np.ndarray, y: np.ndarray) -> bool:
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

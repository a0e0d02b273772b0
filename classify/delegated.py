"""Heads that scikit-learn trains: nearest neighbours, and any classifier of the user's choice."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline

from classify.choice import Step
from classify.heads import Builder
from classify.preparation import fitted_scaler
from classify.scorers import Fitted
from classify.splits import Folds


def held_out(
    build: Builder,
    grid: Sequence[float | None],
    X: np.ndarray,
    y: np.ndarray,
    folds: Folds,
    n_classes: int,
    weight: str | None,
    *,
    whole: bool = False,
) -> Iterator[Step]:
    """Walk a grid: the held-out scores of every fold.

    Parameters
    ----------
    build : callable
    grid : sequence of float, or of None
        From strong to weak regularisation.
    X : float32 array of shape (n, D)
    y : int array of shape (n,)
    folds : sequence of (train, held out)
        Positions.
    n_classes : int
    weight : str, or None
        The class weight.
    whole : bool
        Whether all columns are scaled by one number; else each by its own.

    Yields
    ------
    Step
        Scores in the order of the folds.
    """
    for setting in grid:
        scores, converged = [], True
        for train, held in folds:
            model, fine = fit(build, setting, X[train], y[train], n_classes, weight, whole=whole)
            scores.append(model.scores(X[held]))
            converged = converged and fine
        yield Step(setting, np.concatenate(scores), converged)


def fit(
    build: Builder,
    setting: float | None,
    X: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    weight: str | None,
    *,
    whole: bool = False,
) -> tuple[Fitted, bool]:
    """Fit once, on features scaled by their own statistics.

    Parameters
    ----------
    X : float32 array of shape (n, D)
    y : int array of shape (n,)
    n_classes : int
        K; positions in `y` are below it.

    Returns
    -------
    Fitted
    bool
        Whether scikit-learn warned of no convergence. Other warnings pass.
    """
    scaler = fitted_scaler(X, whole=whole)
    classifier: Any = build(setting, X.shape, weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.fit(scaler.transform(X), y)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    fine = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    model = Pipeline([("scale", scaler), ("classify", classifier)])
    return Fitted(model, X.shape[1], n_classes), fine

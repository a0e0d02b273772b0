"""Weights of classes and rows: check the options and convert them to arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils import compute_class_weight

from classify.errors import CallError

REPEATS_PER_ROW = 8  # repeats in validation of a row of mean weight, for fractional weights
MAX_MEAN_REPEATS = 16  # largest mean of whole weights that are used as numbers of repeats


def resolve_class_weights(
    option: object, classes: np.ndarray, y: np.ndarray, row_weights: np.ndarray | None = None
) -> np.ndarray | None:
    """Compute the weight of each class, as scikit-learn's ``compute_class_weight``.

    Parameters
    ----------
    option : None, "balanced" or mapping
        ``balanced``: n / (K times the class's rows), so that all classes have equal total weight. A
        mapping has weights by class; classes that are not in it have weight 1.
    classes : array of shape (K,)
        Names of the classes; the keys of a mapping.
    y : int array of shape (n,)
        Positions in `classes`; -1 for a row to leave out.
    row_weights : float array of shape (n,), optional
        Weight of each row in the counts of ``balanced``; 1 if not given.

    Returns
    -------
    float64 array of shape (K,), or None
        None if `option` is None.

    Raises
    ------
    CallError
        If the option is not one of these, names an unknown class, or has an invalid weight.
    """
    if option is None:
        return None
    known = y >= 0
    if isinstance(option, str) and option == "balanced":
        known_weights = None if row_weights is None else row_weights[known]
        count = np.bincount(y[known], known_weights, minlength=len(classes))
        return np.asarray(count.sum() / ((count > 0).sum() * np.where(count > 0, count, 1)))
    if not isinstance(option, Mapping):
        raise CallError(
            f"the class weight is None, 'balanced' or a dict of weights by class, not {option!r}"
        )
    try:
        computed = compute_class_weight(dict(option), classes=classes, y=classes[y[known]])
        weights = np.asarray(computed, np.float64)
    except (TypeError, ValueError) as error:
        raise CallError(f"class_weight does not fit the classes: {error}") from error
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights > 0).sum() > 1):
        raise CallError(
            "weights of classes are numbers from 0 on, and more than one class has one above 0; "
            f"not {dict(option)!r}"
        )
    return weights


def count_repeats(weights: np.ndarray) -> np.ndarray:
    """Convert row weights to numbers of repeats in validation.

    Whole weights are used as they are, so that a row of weight 3 counts as three rows. Others are
    rounded cumulatively, so that no run of rows is off by more than one row.

    Parameters
    ----------
    weights : float array of shape (n,)
        Above 0.

    Returns
    -------
    int array of shape (n,)
        Number of repeats of each row; may be 0.
    """
    is_whole = bool((weights == np.rint(weights)).all())
    if is_whole and weights.sum() <= MAX_MEAN_REPEATS * len(weights):
        return np.asarray(weights, np.intp)
    ends = np.floor(np.cumsum(weights) / weights.mean() * REPEATS_PER_ROW + 0.5)
    return np.asarray(np.diff(ends, prepend=0), np.intp)


def check_sample_weight(sample_weight: Any, n: int) -> np.ndarray | None:
    """Check row weights and convert them to an array.

    Parameters
    ----------
    sample_weight : array of shape (n,), float or None
        Weight of each row, or one weight for all.
    n : int
        Number of rows.

    Returns
    -------
    float64 array of shape (n,), or None
        None if `sample_weight` is None.

    Raises
    ------
    CallError
        If they are not n finite numbers from 0 on, or all are 0.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, np.float64)
    if weights.ndim == 0:
        weights = np.full(n, float(weights))
    if weights.shape != (n,):
        raise CallError(f"sample_weight is one number a row, shape ({n},), not {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise CallError("sample_weight has an entry that is negative or no finite number")
    if not weights.any():
        raise CallError("sample_weight is zero for every row, so there is nothing to learn from")
    return weights

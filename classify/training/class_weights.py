"""How much classes and rows count: options checked, and turned into numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils import compute_class_weight

from classify.errors import CallError

REPEATS_PER_ROW = 8  # times that a row of mean weight is judged, where weights are no whole numbers
MAX_MEAN_REPEATS = 16  # times a row, on average, that whole weights are taken as they are


def resolve_class_weights(
    option: object, classes: np.ndarray, y: np.ndarray, row_weights: np.ndarray | None = None
) -> np.ndarray | None:
    """The weight of each class, as scikit-learn's ``compute_class_weight`` has it.

    Parameters
    ----------
    option : None, "balanced" or mapping
        ``balanced``: n / (K times the class's rows), so that all classes count alike. A mapping has
        weights by class; one that it leaves out counts 1.
    classes : array of shape (K,)
        Their names; the keys of a mapping.
    y : int array of shape (n,)
        Positions in `classes`. -1 for a row of none.
    row_weights : float array of shape (n,), optional
        ``balanced`` counts each row so often.

    Returns
    -------
    float64 array of shape (K,), or None
        None where all count as they are.

    Raises
    ------
    CallError
        If the option is another, names a class that is not there, or has a weight that is none.
    """
    if option is None:
        return None
    known = y >= 0
    if isinstance(option, str) and option == "balanced":
        each = None if row_weights is None else row_weights[known]
        count = np.bincount(y[known], each, minlength=len(classes))
        return np.asarray(count.sum() / ((count > 0).sum() * np.where(count > 0, count, 1)))
    if not isinstance(option, Mapping):
        raise CallError(
            f"the class weight is None, 'balanced' or a dict of weights by class, not {option!r}"
        )
    try:
        found = compute_class_weight(dict(option), classes=classes, y=classes[y[known]])
        each = np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
        raise CallError(f"class_weight does not fit the classes: {error}") from error
    if not (np.isfinite(each).all() and (each >= 0).all() and (each > 0).sum() > 1):
        raise CallError(
            "weights of classes are numbers from 0 on, and more than one class has one above 0; "
            f"not {dict(option)!r}"
        )
    return each


def count_repeats(weights: np.ndarray) -> np.ndarray:
    """How often each row is to be judged for its weight: int (n,), from weights above 0.

    Whole weights are taken as they are, so that a row of weight three is judged as three such rows
    are. Others are rounded so that no run of rows is off by more than a row.
    """
    whole = bool((weights == np.rint(weights)).all())
    if whole and weights.sum() <= MAX_MEAN_REPEATS * len(weights):
        return np.asarray(weights, np.intp)
    ends = np.floor(np.cumsum(weights) / weights.mean() * REPEATS_PER_ROW + 0.5)
    return np.asarray(np.diff(ends, prepend=0), np.intp)


def check_sample_weight(sample_weight: Any, n: int) -> np.ndarray | None:
    """Weights of rows as float64 (n,); None where all are 1.

    Raises
    ------
    CallError
        If there are not n finite numbers from 0 on, or all of them are 0.
    """
    if sample_weight is None:
        return None
    found = np.asarray(sample_weight, np.float64)
    if found.ndim == 0:
        found = np.full(n, float(found))
    if found.shape != (n,):
        raise CallError(f"sample_weight is one number a row, shape ({n},), not {found.shape}")
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise CallError("sample_weight has an entry that is negative or no finite number")
    if not found.any():
        raise CallError("sample_weight is zero for every row, so there is nothing to learn from")
    return found

"""The label of one item of a dataset, as loaders collect them."""

import numpy as np

ItemLabel = int | np.ndarray


def get_label(y: np.ndarray, i: int) -> ItemLabel:
    """Return the label of an item.

    Parameters
    ----------
    y : int array of shape (n,), or float64 array of shape (n, T)
        Class numbers, or several labels, a number or a grade.
    i : int

    Returns
    -------
    int, or float64 array of shape (T,)
    """
    return int(y[i]) if y.ndim == 1 else np.asarray(y[i])

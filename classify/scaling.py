"""How features are scaled for what scikit-learn trains, in one place."""

import numpy as np
from sklearn.preprocessing import StandardScaler


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

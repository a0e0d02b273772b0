"""How features are scaled for what scikit-learn trains, in one place."""

import numpy as np
from sklearn.preprocessing import StandardScaler


def scaled(X: np.ndarray) -> tuple[StandardScaler, np.ndarray]:
    """Standardise training features by their own statistics.

    Parameters
    ----------
    X : float array of shape (n, D)
        Scaled in place: give a copy.

    Returns
    -------
    StandardScaler
        Fitted, for the rows to come: it copies what it is given.
    float array of shape (n, D)
    """
    scaler = StandardScaler(copy=False)
    X = scaler.fit_transform(X)
    return scaler.set_params(copy=True), X

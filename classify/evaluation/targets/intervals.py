"""Intervals of numbers, from the errors on images that were held out."""

import numpy as np

MIN_COVERAGE, MAX_COVERAGE = 0.5, 0.999


def fit_margin(errors: np.ndarray, unit: np.ndarray, coverage: float) -> float | None:
    """Find half the width of intervals that cover a share of new images.

    Split conformal prediction (J. Lei et al., 2018, "Distribution-Free Predictive Inference for
    Regression", JASA 113) with whole units: every unit counts as one, shared among its images, and
    the new one as one more (R. Dunn, L. Wasserman and A. Ramdas, 2022, "Distribution-Free
    Prediction Sets for Two-Layer Hierarchical Models", JASA 118). The guarantee is for errors of a
    head that saw none of these images; for errors of several folds it holds nearly, as measured.

    Parameters
    ----------
    errors : float array of shape (m,)
        Absolute errors on held-out images.
    unit : int array of shape (m,)
        Images with the same number belong together.
    coverage : float
        The share to cover, above 0 and below 1.

    Returns
    -------
    float, or None
        None where there are too few units for such a share: 0.9 takes 9.
    """
    _, unit = np.unique(unit, return_inverse=True)
    size = np.bincount(unit)
    order = np.argsort(errors, kind="stable")
    weight = 1 / (size[unit[order]] * (len(size) + 1))
    covered = np.cumsum(weight) >= coverage - 1e-12
    return float(errors[order[int(np.argmax(covered))]]) if covered.any() else None

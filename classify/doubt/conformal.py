"""Conformal prediction: sets of classes, and intervals of numbers, that cover a stated share.

What is guaranteed: of images that are drawn as those held out were, and by whole units where images
belong together, at least the asked share is covered on average over draws of held-out images. That
is a theorem for scores of one head on images that it has not seen, as with a ``val`` split. Scores
of several folds (V. Vovk, 2015, "Cross-conformal predictors", Annals of Mathematics and Artificial
Intelligence 74) come from heads that learnt a fifth less; there it is measured, by
`benchmarks/doubt.py`, and not proven. Nothing is promised for single classes, nor for other images.
"""

import numpy as np

from classify.errors import CallError

DEFAULT_COVERAGE = 0.9
MIN_COVERAGE, MAX_COVERAGE = 0.5, 0.999
TIE_TOL = 1e-5
"""Probabilities that differ by this share are equal. A threshold is itself the probability of an
image, and counts of neighbours give many images the same one: rounding must not leave them out."""


def check_coverage(coverage: float | None) -> float:
    """Check the share that sets and intervals shall cover.

    Parameters
    ----------
    coverage : float, optional

    Returns
    -------
    float
        0.9 if not given.

    Raises
    ------
    CallError
        If it is not from 0.5 to 0.999.
    """
    coverage = DEFAULT_COVERAGE if coverage is None else coverage
    if not MIN_COVERAGE <= coverage <= MAX_COVERAGE:
        raise CallError(
            f"the coverage is a share from {MIN_COVERAGE} to {MAX_COVERAGE}, not {coverage}"
        )
    return coverage


def conformal_quantile(scores: np.ndarray, unit: np.ndarray, coverage: float) -> float | None:
    """Find the score that a share of new images does not exceed.

    Every unit counts as one, shared among its images, and the unit of the new image as one more: Y.
    Lee, R. F. Barber and R. Willett (2023), "Distribution-free inference with hierarchical data",
    arXiv 2306.06342, which needs no random choice of one image a unit, as R. Dunn, L. Wasserman and
    A. Ramdas (2022), "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models", JASA
    118, do. It holds for an image of a new unit. Where every image is its own unit this is the
    quantile of split conformal prediction.

    Parameters
    ----------
    scores : float array of shape (m,)
        Of images that were held out; higher is worse.
    unit : int array of shape (m,)
        Images with the same number belong together.
    coverage : float
        The share, above 0 and below 1.

    Returns
    -------
    float, or None
        None where there are too few units for such a share: 0.9 takes 9.
    """
    _, unit = np.unique(unit, return_inverse=True)
    size = np.bincount(unit)
    order = np.argsort(scores, kind="stable")
    weight = 1 / (size[unit[order]] * (len(size) + 1))
    covered = np.cumsum(weight) >= coverage - 1e-9
    return float(scores[order[int(np.argmax(covered))]]) if covered.any() else None


def fit_set_threshold(own_proba: np.ndarray, unit: np.ndarray, coverage: float) -> float | None:
    """Find the probability from which a class belongs to an image's set.

    The sets with the least ambiguity: M. Sadinle, J. Lei and L. Wasserman (2019), "Least Ambiguous
    Set-Valued Classifiers With Bounded Error Levels", JASA 114. A set may be empty: no class is
    probable enough then. Adaptive sets (APS) are larger at the same coverage; these were chosen
    because people read them.

    Parameters
    ----------
    own_proba : float array of shape (m,)
        Calibrated probability of the true class of images that were held out; 0 for a class that
        the head does not know.
    unit : int array of shape (m,)
    coverage : float
        As in `conformal_quantile`.

    Returns
    -------
    float, or None
        None where there are too few units.
    """
    quantile = conformal_quantile(1 - own_proba, unit, coverage)
    return None if quantile is None else (1 - quantile) * (1 - TIE_TOL)


def fit_margin(errors: np.ndarray, unit: np.ndarray, coverage: float) -> float | None:
    """Find half the width of intervals that cover a share of new images.

    J. Lei et al. (2018), "Distribution-Free Predictive Inference for Regression", JASA 113.

    Parameters
    ----------
    errors : float array of shape (m,)
        Absolute errors on images that were held out.
    unit : int array of shape (m,)
    coverage : float
        As in `conformal_quantile`.

    Returns
    -------
    float, or None
        None where there are too few units.
    """
    return conformal_quantile(errors, unit, coverage)

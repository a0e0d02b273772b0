"""Calibration of several labels: from outputs to probabilities, by a slope and a bias for each."""

import numpy as np
from scipy.special import expit

MAX_VALUES = 4_000_000  # held-out outputs to fit on; more would not change two numbers a label
MAX_STEPS, TOL = 50, 1e-7
MIN_SLOPE = 1e-6  # outputs that say the opposite of the truth leave the frequency alone


def fit_label_calibration(outputs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Fit probabilities ``expit(slope output + bias)`` of every label on held-out outputs.

    J. Platt (1999), "Probabilistic outputs for support vector machines", Advances in Large Margin
    Classifiers, with his targets (n + 1) / (n + 2); Newton's method for all labels at once.

    Parameters
    ----------
    outputs : float array of shape (m, T)
        Of images that the head was not trained on.
    truth : float array of shape (m, T)
        1, 0, or NaN where it is not known.

    Returns
    -------
    float64 array of shape (2, T)
        Slopes, at least 0, and biases.
    """
    n_rows = max(1, MAX_VALUES // max(1, outputs.shape[1]))
    if len(outputs) > n_rows:
        chosen = np.random.default_rng(0).choice(len(outputs), n_rows, replace=False)
        outputs, truth = outputs[chosen], truth[chosen]
    known = ~np.isnan(truth)
    n_known = np.maximum(known.sum(axis=0), 1)
    n_positive = (truth == 1).sum(axis=0)
    n_negative = (truth == 0).sum(axis=0)
    target = np.where(truth == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    values = np.where(known, outputs, 0.0)
    mean = values.sum(axis=0) / n_known
    centred = np.where(known, values - mean, 0.0)
    scale = np.sqrt((centred**2).sum(axis=0) / n_known)
    scale = np.where(scale > 0, scale, 1.0)
    centred /= scale

    def measure(slope: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = slope * centred + bias
        losses = np.logaddexp(0, logits) - target * logits
        return np.where(known, losses, 0).sum(axis=0), expit(logits)

    frequency = (n_positive + 1) / (n_positive + n_negative + 2)
    slope, bias = np.zeros(len(mean)), np.log(frequency / (1 - frequency))
    value, proba = measure(slope, bias)
    for _ in range(MAX_STEPS):
        residual = np.where(known, proba - target, 0)
        curvature = np.where(known, proba * (1 - proba), 0)
        gradient = np.stack([(residual * centred).sum(axis=0), residual.sum(axis=0)])
        a, b = (curvature * centred**2).sum(axis=0) + 1e-9, (curvature * centred).sum(axis=0)
        c = curvature.sum(axis=0) + 1e-9
        determinant = np.maximum(a * c - b * b, 1e-12)
        step = np.stack(
            [c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]]
        ) / determinant  # fmt: skip
        if (np.abs(gradient).max(axis=0) <= TOL * n_known).all():
            break
        size = np.ones(len(mean))
        for _ in range(30):  # halve the step of each label until its loss falls
            new_value, new_proba = measure(slope - size * step[0], bias - size * step[1])
            worse = new_value > value + 1e-12 * n_known
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
        slope, bias = slope - size * step[0], bias - size * step[1]
        value, proba = new_value, new_proba
    is_misleading = slope < MIN_SLOPE
    slope = np.where(is_misleading, 0, slope)
    bias = np.where(is_misleading, np.log(frequency / (1 - frequency)), bias)
    return np.stack([slope / scale, bias - slope * mean / scale])


def apply_label_calibration(outputs: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Compute probabilities of labels.

    Parameters
    ----------
    outputs : float array of shape (m, T)
    calibration : float64 array of shape (2, T)
        As `fit_label_calibration` returns it.

    Returns
    -------
    float64 array of shape (m, T)
    """
    return np.asarray(expit(outputs.astype(np.float64) * calibration[0] + calibration[1]))

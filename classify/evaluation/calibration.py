"""Calibration: a slope and one bias per class, fitted on held-out decision values."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from classify.evaluation.predictions import UNSEEN_CLASS_SCORE, sample_rows, subtract_row_max
from classify.evaluation.temperature import SEARCH_SPAN, fit_temperature

N_PARTS = 5
BIAS_PRIOR_STD = 2.0  # prior standard deviation of a bias, in log odds
MIN_IMAGES_PER_CLASS = 10  # mean number of images a class, below which no bias is fitted
MAX_BIAS_VALUES = 2_000_000  # decision values to fit on; a bias takes longer than a temperature
MAX_NEWTON_STEPS = 50
LOSS_TOL = 1e-8  # of the mean loss: smaller gains do not count
ZERO_PROBABILITY_VALUE = -1e99  # a value this far below the best means a probability of zero

SlopeAndBias = tuple[float, np.ndarray]  # slope and biases (K,)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A map from decision values to probabilities: softmax((values + bias) / temperature).

    Attributes
    ----------
    temperature : float
    bias : float64 array of shape (K,), or None
        In units of the decision values. None where the temperature alone is as good.
    decision_values : float32 array of shape (n, K)
        The held-out decision values, cross-fitted: each part is calibrated with what the other
        parts gave, and scaled so that softmax(decision_values / temperature) gives these
        probabilities. So no image is judged by a map fitted on its own label. The values as given
        where there is no bias.
    """

    temperature: float
    bias: np.ndarray | None
    decision_values: np.ndarray


def calibrate(
    decision_values: np.ndarray, y: np.ndarray, unit: np.ndarray | None = None
) -> Calibration:
    """Fit a temperature, and one bias per class where that improves the probabilities.

    Of two classes this is Platt scaling (J. Platt, 1999, "Probabilistic outputs for support vector
    machines", Advances in Large Margin Classifiers), of more it is vector scaling with one slope
    (Guo, Pleiss, Sun and Weinberger, 2017, "On Calibration of Modern Neural Networks", ICML).

    The held-out images are divided into five parts. For each part, the slope and biases fitted on
    the other four are compared with the temperature alone, which is fitted on all parts. The biases
    are used if they give the lower mean log loss, and if they do not add errors by more than a
    standard error. Neighbour counts need the second condition, because their values have gaps.

    Parameters
    ----------
    decision_values : float array of shape (n, K)
        Of images that the head was not trained on. A fixed random sample of 2 million values is
        used where there are more. With under ten images a class no bias is fitted.
    y : int array of shape (n,)
        The column of each truth; negative for a class without one.
    unit : int array of shape (n,), optional
        Images with the same number are in one part. Each image is its own unit if not given.

    Returns
    -------
    Calibration

    Raises
    ------
    CallError
        As `classify.evaluation.temperature.fit_temperature`.
    """
    decision_values, y = np.asarray(decision_values), np.asarray(y)
    temperature, n_columns = fit_temperature(decision_values, y), decision_values.shape[1]
    temperature_only = Calibration(temperature, None, decision_values)
    chosen = sample_rows(decision_values, y, MAX_BIAS_VALUES)
    if n_columns < 2 or len(chosen) < MIN_IMAGES_PER_CLASS * n_columns:
        return temperature_only
    shifted, truths = subtract_row_max(decision_values[chosen]), y[chosen]
    is_possible = shifted[np.arange(len(truths)), truths] > ZERO_PROBABILITY_VALUE
    chosen, shifted, truths = chosen[is_possible], shifted[is_possible], truths[is_possible]
    is_correct = shifted.argmax(axis=1) == truths
    if is_correct.all():
        return temperature_only  # no error to correct; the temperature accounts for n
    unit = np.arange(len(y)) if unit is None else np.unique(unit, return_inverse=True)[1]
    part = _assign_parts(y, unit)
    if len(np.unique(part[chosen])) == 1:
        return temperature_only
    full_fit = _fit_slope_and_bias(shifted, truths, temperature)
    part_fits = []
    loss_gain, extra_errors = _log_losses(shifted / temperature, truths), is_correct.astype(float)
    for i in range(part.max() + 1):
        is_held_out = part[chosen] == i
        slope, bias = _fit_slope_and_bias(
            shifted[~is_held_out], truths[~is_held_out], temperature, full_fit
        )
        part_fits.append((slope, bias))
        mapped = slope * shifted[is_held_out] + bias
        loss_gain[is_held_out] -= _log_losses(mapped, truths[is_held_out])
        extra_errors[is_held_out] -= mapped.argmax(axis=1) == truths[is_held_out]
    if loss_gain.mean() <= 0 or _is_beyond_chance(extra_errors, unit[chosen]):
        return temperature_only
    slope, bias = full_fit
    cross_fitted = np.empty(decision_values.shape, np.float32)
    for i, (part_slope, part_bias) in enumerate(part_fits):
        in_part = part == i
        cross_fitted[in_part] = decision_values[in_part] * (part_slope / slope) + part_bias / slope
    cross_fitted[decision_values == UNSEEN_CLASS_SCORE] = UNSEEN_CLASS_SCORE
    return Calibration(1 / slope, bias / slope, cross_fitted)


def choose_calibration(
    decision_values: np.ndarray,
    y: np.ndarray,
    unit: np.ndarray,
    balanced: bool,
    loss: Callable[[np.ndarray, np.ndarray], float] | None,
) -> Calibration:
    """Calibrate held-out decision values: by temperature alone where a bias would be harmful.

    A bias makes each class predicted as often as it occurs. With balanced classes that would undo
    the balancing. It may also be worse by the selection metric.

    Parameters
    ----------
    decision_values, y, unit
        As in `calibrate`.
    balanced : bool
        Whether the head was trained with classes of equal weight.
    loss : callable, or None
        What params are selected by, of decision values and `y`; None for the head's own loss.

    Returns
    -------
    Calibration
    """
    if not balanced:
        calibration = calibrate(decision_values, y, unit)
        if loss is None or loss(calibration.decision_values, y) <= loss(decision_values, y):
            return calibration
    return Calibration(fit_temperature(decision_values, y), None, decision_values)


def _is_beyond_chance(numbers: np.ndarray, unit: np.ndarray) -> bool:
    """Tell whether a sum exceeds zero by more than its standard error, with units whole."""
    unit_sums = np.bincount(unit, numbers)
    return bool(unit_sums.sum() > np.sqrt((unit_sums**2).sum()))


def _assign_parts(y: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Divide whole units into parts with about as many of every class: int array (n,)."""
    _, first = np.unique(unit, return_index=True)
    random_key = np.random.default_rng(0).random(len(first))
    unit_part = np.empty(len(first), np.intp)
    unit_part[np.lexsort((random_key, y[first]))] = np.arange(len(first)) % N_PARTS
    part: np.ndarray = unit_part[unit]
    return part


def _fit_slope_and_bias(
    shifted: np.ndarray, y: np.ndarray, temperature: float, warm_start: SlopeAndBias | None = None
) -> SlopeAndBias:
    """Fit the slope and biases with the least mean log loss of softmax(slope shifted + bias).

    The truth gets the target probability (n + 1) / (n + 2), by Laplace's rule of succession, so the
    slope stays finite where a bias makes every image right. The bias at the mean of a class's
    values has a normal prior with the standard deviation `BIAS_PRIOR_STD`. It is zero for a class
    without an image, and the others have the mean zero. Newton's method: the loss is convex, and
    its Hessian costs no more than a few of its values.

    Parameters
    ----------
    shifted : float64 array of shape (n, K)
        Decision values less the greatest of their row.
    y : int array of shape (n,)
        The column of each truth.
    temperature : float
        Where the search starts.
    warm_start : (float, float64 array of shape (K,)), optional
        Slope and biases of similar images.

    Returns
    -------
    slope : float
    bias : float64 array of shape (K,)
    """
    n, n_columns = shifted.shape
    count = np.bincount(y, minlength=n_columns)
    has_images = count > 0
    centre = np.diag(has_images * 1.0) - np.outer(has_images, has_images) / has_images.sum()
    # Transposed, because sums over a few classes are then faster.
    is_zero = shifted.T <= ZERO_PROBABILITY_VALUE
    scaled = np.where(is_zero, 0, shifted.T) / temperature
    class_mean = centre @ scaled.mean(axis=1)
    scaled -= class_mean[:, None]
    target = ~is_zero / ((n + 2) * np.maximum((~is_zero).sum(axis=0) - 1, 1))
    target[y, np.arange(n)] = (n + 1) / (n + 2)
    prior_precision = np.append(0, np.full(n_columns, 1 / (BIAS_PRIOR_STD**2 * n)))

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        logits = params[0] * scaled + (centre @ params[1:])[:, None]
        logits -= np.where(is_zero, -np.inf, logits).max(axis=0)
        proba = np.where(is_zero, 0, np.exp(np.minimum(logits, 0)))
        normaliser = proba.sum(axis=0)
        value = (np.log(normaliser) - (target * logits).sum(axis=0)).mean() + (
            prior_precision * params**2
        ).sum() / 2
        return float(value), proba / normaliser

    params = np.append(1.0, class_mean)
    if warm_start is not None:
        params = np.append(
            warm_start[0] * temperature, warm_start[1] + warm_start[0] * temperature * class_mean
        )
    value, proba = loss(params)
    for _ in range(MAX_NEWTON_STEPS):
        residual, expected = proba - target, (proba * scaled).sum(axis=0)
        gradient = (
            np.append((residual * scaled).sum() / n, centre @ residual.mean(axis=1))
            + prior_precision * params
        )
        hessian = np.diag(prior_precision)
        hessian[0, 0] += ((proba * scaled * scaled).sum(axis=0) - expected**2).mean()
        hessian[0, 1:] += centre @ (proba * (scaled - expected)).mean(axis=1)
        hessian[1:, 0] = hessian[0, 1:]
        hessian[1:, 1:] += centre @ (np.diag(proba.mean(axis=1)) - proba @ proba.T / n) @ centre
        step = -np.linalg.lstsq(hessian, gradient)[0]
        decrease = -float(gradient @ step)
        if decrease < LOSS_TOL:
            break
        step_size = 1.0
        while (candidate := loss(params + step_size * step))[
            0
        ] > value - step_size * decrease / 4 and step_size > LOSS_TOL:
            step_size /= 2
        params, (value, proba) = params + step_size * step, candidate
    # Misleading decision values: only the class frequencies are left to predict from.
    if params[0] < 1 / SEARCH_SPAN:
        return 1 / (SEARCH_SPAN * temperature), centre @ np.log(count + 1)
    return float(params[0] / temperature), centre @ params[1:] - params[0] * class_mean


def _log_losses(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y])

"""Slope and bias: what a class's scores lack or have too much of, learnt from held-out scores."""

from dataclasses import dataclass

import numpy as np

from classify.evaluation.predictions import UNSEEN_CLASS_SCORE, sample_rows, subtract_row_max
from classify.evaluation.temperature import SEARCH_SPAN, fit_temperature

N_PARTS = 5
BIAS_PRIOR_STD = 2.0  # standard deviation of a bias, in log odds, before any image is seen
MIN_IMAGES_PER_CLASS = 10  # images a class, on average, that a bias is learnt from
MAX_BIAS_VALUES = 2_000_000  # scores it is learnt from; it takes longer than a temperature
MAX_NEWTON_STEPS = 50
LOSS_TOL = 1e-8  # of the mean loss: what is less is no gain
ZERO_PROBABILITY_VALUE = -1e99  # below it, less the best, a score stands for a probability of zero

SlopeAndBias = tuple[float, np.ndarray]  # slope and biases (K,)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What makes a head's scores into probabilities: softmax((scores + shift) / temperature).

    Attributes
    ----------
    temperature : float
    shift : float64 array of shape (K,), or None
        In units of the scores. None where temperature alone is as good.
    held : float32 array of shape (n, K)
        The held-out scores, shifted by what the other parts of them showed, and stretched so that
        softmax(held / temperature) is what these parts make of them: what is said of an image has
        not seen its label. The scores as they were, where there is no shift.
    """

    temperature: float
    bias: np.ndarray | None
    decision_values: np.ndarray


def calibrate(
    decision_values: np.ndarray, y: np.ndarray, unit: np.ndarray | None = None
) -> Calibration:
    """Learn a temperature, and a bias for each class where that gains.

    Of two classes this is Platt scaling (J. Platt, 1999, "Probabilistic outputs for support vector
    machines", Advances in Large Margin Classifiers), of more it is vector scaling with one slope
    (Guo, Pleiss, Sun and Weinberger, 2017, "On Calibration of Modern Neural Networks", ICML).

    The held-out images are put into five parts. Each part's log loss and errors with the slope and
    bias that the other four teach are set against those with temperature alone, which has seen them
    all. The bias is taken where its mean loss is less, and where it does not make more errors by
    over a standard error (to neighbours' counts, whose scores have gaps, it would).

    Parameters
    ----------
    decision_values : float array of shape (n, K)
        Of images that the head was not trained on. A sample (always the same) of 2 million scores
        is used where there are more; a bias is not looked for in under ten images a class.
    y : int array of shape (n,)
        The column of each truth; negative for a class without one.
    unit : int array of shape (n,), optional
        Images with the same number are in one part; each stands alone if not given.

    Raises
    ------
    CallError
        As `classify.evaluation.temperature.fit_temperature`.
    """
    decision_values, y = np.asarray(decision_values), np.asarray(y)
    heat, n_columns = fit_temperature(decision_values, y), decision_values.shape[1]
    alone = Calibration(heat, None, decision_values)
    chosen = sample_rows(decision_values, y, MAX_BIAS_VALUES)
    if n_columns < 2 or len(chosen) < MIN_IMAGES_PER_CLASS * n_columns:
        return alone
    below, truths = subtract_row_max(decision_values[chosen]), y[chosen]
    possible = below[np.arange(len(truths)), truths] > ZERO_PROBABILITY_VALUE
    chosen, below, truths = chosen[possible], below[possible], truths[possible]
    plain = below.argmax(axis=1) == truths
    if plain.all():
        return alone  # no decision to mend, and the temperature says how many showed that
    unit = np.arange(len(y)) if unit is None else np.unique(unit, return_inverse=True)[1]
    part = _assign_parts(y, unit)
    if len(np.unique(part[chosen])) == 1:
        return alone
    whole = _fit_slope_and_bias(below, truths, heat)
    lines, gain, more = [], _log_losses(below / heat, truths), plain.astype(float)
    for i in range(part.max() + 1):
        out = part[chosen] == i
        slope, bias = _fit_slope_and_bias(below[~out], truths[~out], heat, whole)
        lines.append((slope, bias))
        made = slope * below[out] + bias
        gain[out] -= _log_losses(made, truths[out])
        more[out] -= made.argmax(axis=1) == truths[out]
    if gain.mean() <= 0 or _is_beyond_chance(more, unit[chosen]):
        return alone
    slope, bias = whole
    held = np.empty(decision_values.shape, np.float32)
    for i, (its_slope, its_bias) in enumerate(lines):
        there = part == i
        held[there] = decision_values[there] * (its_slope / slope) + its_bias / slope
    held[decision_values == UNSEEN_CLASS_SCORE] = UNSEEN_CLASS_SCORE
    return Calibration(1 / slope, bias / slope, held)


def _is_beyond_chance(numbers: np.ndarray, unit: np.ndarray) -> bool:
    """Whether their sum is above zero by more than its standard error, units whole."""
    total = np.bincount(unit, numbers)
    return bool(total.sum() > np.sqrt((total**2).sum()))


def _assign_parts(y: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Parts of whole units, each with about as many of every class: int array of shape (n,)."""
    _, first = np.unique(unit, return_index=True)
    mixed = np.random.default_rng(0).random(len(first))
    part = np.empty(len(first), np.intp)
    part[np.lexsort((mixed, y[first]))] = np.arange(len(first)) % N_PARTS
    found: np.ndarray = part[unit]
    return found


def _fit_slope_and_bias(
    below: np.ndarray, y: np.ndarray, temperature: float, warm_start: SlopeAndBias | None = None
) -> SlopeAndBias:
    """The slope and the biases with the least mean log loss of softmax(slope below + bias).

    The truth is only believed to (n + 1) / (n + 2), by Laplace's rule of succession, so that the
    slope stays finite where a bias makes every image right. The bias at the middle of a class's
    scores has a normal prior, with the standard deviation `BIAS_PRIOR_STD`. That of a class
    without an image is zero, as is the mean of the others. Newton's method: the loss is convex, and
    its curvature costs no more than a few of its values.

    Parameters
    ----------
    below : float64 array of shape (n, K)
        Scores less the greatest of their row.
    y : int array of shape (n,)
    heat : float
        A temperature to begin with.
    warm_start : (float, float64 array of shape (K,)), optional
        What other images of this kind gave.
    """
    n, n_columns = below.shape
    count = np.bincount(y, minlength=n_columns)
    seen = count > 0
    centre = np.diag(seen * 1.0) - np.outer(seen, seen) / seen.sum()
    never = (
        below.T <= ZERO_PROBABILITY_VALUE
    )  # columns side by side: sums over few of them are quick
    x = np.where(never, 0, below.T) / temperature
    middle = centre @ x.mean(axis=1)
    x -= middle[:, None]
    target = ~never / ((n + 2) * np.maximum((~never).sum(axis=0) - 1, 1))
    target[y, np.arange(n)] = (n + 1) / (n + 2)
    drawn = np.append(0, np.full(n_columns, 1 / (BIAS_PRIOR_STD**2 * n)))

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        z = at[0] * x + (centre @ at[1:])[:, None]
        z -= np.where(never, -np.inf, z).max(axis=0)
        p = np.where(never, 0, np.exp(np.minimum(z, 0)))
        total = p.sum(axis=0)
        value = (np.log(total) - (target * z).sum(axis=0)).mean() + (drawn * at**2).sum() / 2
        return float(value), p / total

    at = np.append(1.0, middle)
    if warm_start is not None:
        at = np.append(
            warm_start[0] * temperature, warm_start[1] + warm_start[0] * temperature * middle
        )
    value, p = loss(at)
    for _ in range(MAX_NEWTON_STEPS):
        off, mean = p - target, (p * x).sum(axis=0)
        ahead = np.append((off * x).sum() / n, centre @ off.mean(axis=1)) + drawn * at
        curve = np.diag(drawn)
        curve[0, 0] += ((p * x * x).sum(axis=0) - mean**2).mean()
        curve[0, 1:] += centre @ (p * (x - mean)).mean(axis=1)
        curve[1:, 0] = curve[0, 1:]
        curve[1:, 1:] += centre @ (np.diag(p.mean(axis=1)) - p @ p.T / n) @ centre
        step = -np.linalg.lstsq(curve, ahead)[0]
        promised = -float(ahead @ step)
        if promised < LOSS_TOL:
            break
        part = 1.0
        while (found := loss(at + part * step))[
            0
        ] > value - part * promised / 4 and part > LOSS_TOL:
            part /= 2
        at, (value, p) = at + part * step, found
    if (
        at[0] < 1 / SEARCH_SPAN
    ):  # scores that mislead: only how many of each class there are is left
        return 1 / (SEARCH_SPAN * temperature), centre @ np.log(count + 1)
    return float(at[0] / temperature), centre @ at[1:] - at[0] * middle


def _log_losses(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y])

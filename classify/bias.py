"""Slope and bias: what a class's scores lack or have too much of, learnt from held-out scores."""

from dataclasses import dataclass

import numpy as np

from classify.calibration import SPAN, below_best, sample, temperature
from classify.scorers import ABSENT

PARTS = 5
PRIOR = 2.0  # standard deviation of a bias, in log odds, before any image is seen
FEWEST = 10  # images a class, on average, that a bias is learnt from
MOST = 2_000_000  # scores it is learnt from; it takes longer than a temperature
STEPS = 50
FINE = 1e-8  # of the mean loss: what is less is no gain
NEVER = -1e99  # below it, less the best, a score stands for a probability of zero

Line = tuple[float, np.ndarray]  # slope and biases (K,)


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
    shift: np.ndarray | None
    held: np.ndarray


def calibrate(scores: np.ndarray, y: np.ndarray, unit: np.ndarray | None = None) -> Calibration:
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
    scores : float array of shape (n, K)
        Of images that the head was not trained on. A sample (always the same) of 2 million scores
        is used where there are more; a bias is not looked for in under ten images a class.
    y : int array of shape (n,)
        The column of each truth; negative for a class without one.
    unit : int array of shape (n,), optional
        Images with the same number are in one part; each stands alone if not given.

    Raises
    ------
    CallError
        As `classify.calibration.temperature`.
    """
    scores, y = np.asarray(scores), np.asarray(y)
    heat, n_columns = temperature(scores, y), scores.shape[1]
    alone = Calibration(heat, None, scores)
    chosen = sample(scores, y, MOST)
    if n_columns < 2 or len(chosen) < FEWEST * n_columns:
        return alone
    below, truths = below_best(scores[chosen]), y[chosen]
    possible = below[np.arange(len(truths)), truths] > NEVER
    chosen, below, truths = chosen[possible], below[possible], truths[possible]
    plain = below.argmax(axis=1) == truths
    if plain.all():
        return alone  # no decision to mend, and the temperature says how many showed that
    unit = np.arange(len(y)) if unit is None else np.unique(unit, return_inverse=True)[1]
    part = _parts(y, unit)
    if len(np.unique(part[chosen])) == 1:
        return alone
    whole = _learn(below, truths, heat)
    lines, gain, more = [], _losses(below / heat, truths), plain.astype(float)
    for i in range(part.max() + 1):
        out = part[chosen] == i
        slope, bias = _learn(below[~out], truths[~out], heat, whole)
        lines.append((slope, bias))
        made = slope * below[out] + bias
        gain[out] -= _losses(made, truths[out])
        more[out] -= made.argmax(axis=1) == truths[out]
    if gain.mean() <= 0 or _beyond_chance(more, unit[chosen]):
        return alone
    slope, bias = whole
    held = np.empty(scores.shape, np.float32)
    for i, (its_slope, its_bias) in enumerate(lines):
        there = part == i
        held[there] = scores[there] * (its_slope / slope) + its_bias / slope
    held[scores == ABSENT] = ABSENT
    return Calibration(1 / slope, bias / slope, held)


def _beyond_chance(numbers: np.ndarray, unit: np.ndarray) -> bool:
    """Whether their sum is above zero by more than its standard error, units whole."""
    total = np.bincount(unit, numbers)
    return bool(total.sum() > np.sqrt((total**2).sum()))


def _parts(y: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Parts of whole units, each with about as many of every class: int array of shape (n,)."""
    _, first = np.unique(unit, return_index=True)
    mixed = np.random.default_rng(0).random(len(first))
    part = np.empty(len(first), np.intp)
    part[np.lexsort((mixed, y[first]))] = np.arange(len(first)) % PARTS
    found: np.ndarray = part[unit]
    return found


def _learn(below: np.ndarray, y: np.ndarray, heat: float, near: Line | None = None) -> Line:
    """The slope and the biases with the least mean log loss of softmax(slope below + bias).

    The truth is only believed to (n + 1) / (n + 2), by Laplace's rule of succession, so that the
    slope stays finite where a bias makes every image right. The bias at the middle of a class's
    scores has a normal prior, with the standard deviation `PRIOR`. That of a class without an
    image is zero, as is the mean of the others. Newton's method: the loss is convex, and its
    curvature costs no more than a few of its values.

    Parameters
    ----------
    below : float64 array of shape (n, K)
        Scores less the greatest of their row.
    y : int array of shape (n,)
    heat : float
        A temperature to begin with.
    near : (float, float64 array of shape (K,)), optional
        What other images of this kind gave.
    """
    n, n_columns = below.shape
    count = np.bincount(y, minlength=n_columns)
    seen = count > 0
    centre = np.diag(seen * 1.0) - np.outer(seen, seen) / seen.sum()
    never = below.T <= NEVER  # columns side by side: sums over few of them are quick
    x = np.where(never, 0, below.T) / heat
    middle = centre @ x.mean(axis=1)
    x -= middle[:, None]
    target = ~never / ((n + 2) * np.maximum((~never).sum(axis=0) - 1, 1))
    target[y, np.arange(n)] = (n + 1) / (n + 2)
    drawn = np.append(0, np.full(n_columns, 1 / (PRIOR**2 * n)))

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        z = at[0] * x + (centre @ at[1:])[:, None]
        z -= np.where(never, -np.inf, z).max(axis=0)
        p = np.where(never, 0, np.exp(np.minimum(z, 0)))
        total = p.sum(axis=0)
        value = (np.log(total) - (target * z).sum(axis=0)).mean() + (drawn * at**2).sum() / 2
        return float(value), p / total

    at = np.append(1.0, middle)
    if near is not None:
        at = np.append(near[0] * heat, near[1] + near[0] * heat * middle)
    value, p = loss(at)
    for _ in range(STEPS):
        off, mean = p - target, (p * x).sum(axis=0)
        ahead = np.append((off * x).sum() / n, centre @ off.mean(axis=1)) + drawn * at
        curve = np.diag(drawn)
        curve[0, 0] += ((p * x * x).sum(axis=0) - mean**2).mean()
        curve[0, 1:] += centre @ (p * (x - mean)).mean(axis=1)
        curve[1:, 0] = curve[0, 1:]
        curve[1:, 1:] += centre @ (np.diag(p.mean(axis=1)) - p @ p.T / n) @ centre
        step = -np.linalg.lstsq(curve, ahead)[0]
        promised = -float(ahead @ step)
        if promised < FINE:
            break
        part = 1.0
        while (found := loss(at + part * step))[0] > value - part * promised / 4 and part > FINE:
            part /= 2
        at, (value, p) = at + part * step, found
    if at[0] < 1 / SPAN:  # scores that mislead: only how many of each class there are is left
        return 1 / (SPAN * heat), centre @ np.log(count + 1)
    return float(at[0] / heat), centre @ at[1:] - at[0] * middle


def _losses(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y])

"""How a setting is chosen: along a path from strong to weak regularisation, by held-out loss."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

MAX_LOSS = 100.0
SAMPLE, STEPS, NEAR = 5_000, 12, 1e-3
"""Images, steps and relative error of what makes scores into probabilities to choose by."""
BLOCK = 1_000_000  # scores whose losses are computed at a time
RISES = 2  # so many times in a row the loss may rise before the path ends


Judge = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Step:
    """One setting, tried.

    Attributes
    ----------
    setting : float, or None
        None where there is nothing to choose.
    scores : float32 array of shape (m, K)
        Of held-out images, each by the fold that did not train on it.
    converged : bool
        Whether every fold's fit did.
    again : callable, optional
        Gives the scores anew. Where there is one, they are not held while the path goes on.
    """

    setting: float | None
    scores: np.ndarray
    converged: bool = True
    again: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Choice:
    """The setting that was chosen.

    Attributes
    ----------
    setting : float, or None
    scores : float32 array of shape (m, K)
        The held-out scores with this setting.
    path : list of (setting, mean loss)
        Every setting tried, in order.
    loss : float
        The least mean loss; infinite where no fit converged.
    unconverged : list of float
        Settings at which a fit did not converge. They are chosen only where all are such.
    at_end : bool
        Whether the loss was still falling where the grid ended.
    """

    setting: float | None
    scores: np.ndarray
    path: list[tuple[float | None, float]]
    loss: float
    unconverged: list[float | None]
    at_end: bool


def choose(
    steps: Iterable[Step],
    y: np.ndarray,
    loss: str,
    judge: Judge | None = None,
    slack: float = 0.0,
) -> Choice:
    """Walk a path and take the setting of the least mean loss.

    The path ends when the loss has risen twice in a row: it hardly ever falls below its least again
    after that. The one-standard-error rule, which prefers a stronger regularisation where losses
    are close, loses accuracy and log loss by it: `benchmarks/small_tasks.py` has it as before.

    Parameters
    ----------
    steps : iterable of Step
        From strong to weak regularisation; asked for one at a time. Of equal losses the first wins.
    y : int array of shape (m,)
        Positions of the true classes among the K; -1 for a class that is not among them.
    loss : str
        One of `LOSSES`.
    judge : callable, optional
        What is to be least instead, from scores and `y`.
    slack : float
        Of the settings whose loss is at most so much above the least, the first is taken.

    Returns
    -------
    Choice
    """
    path: list[tuple[float | None, float]] = []
    unconverged: list[float | None] = []
    within: list[tuple[float, Step]] = []  # only what may still be taken is held
    reserve: Step | None = None  # should none converge
    least, rises, last = np.inf, 0, np.inf
    for step in steps:
        mean = np.inf
        if step.converged:
            if judge is None:
                mean = float(_losses(loss, step.scores, y).mean())
            else:
                mean = judge(step.scores, y)
        if step.again is not None:
            step = replace(step, scores=step.scores[:0].copy())
        reserve = reserve or step
        if not step.converged:
            unconverged.append(step.setting)
            continue
        path.append((step.setting, mean))
        least = min(least, mean)
        within = [(loss, held) for loss, held in [*within, (mean, step)] if loss <= least + slack]
        rises = rises + 1 if mean > last else 0
        last = mean
        if rises == RISES:
            break
    chosen = within[0][1] if within else reserve
    if chosen is None:
        raise ValueError("a path needs a step")
    at_end = len(path) > 1 and path[-1][0] == chosen.setting
    # A copy: the scores may be a part of those of all settings, which then are freed.
    scores = chosen.scores.copy() if chosen.again is None else chosen.again()
    return Choice(chosen.setting, scores, path, least, unconverged, at_end)


def _losses(loss: str, scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    size = max(1, BLOCK // scores.shape[1])
    blocks = [slice(start, start + size) for start in range(0, len(y), size)]
    factor = _sharpness(scores, y) if loss == "calibrated" else 1.0
    found = [LOSSES[loss](scores[block] * factor, y[block]) for block in blocks]
    return np.asarray(np.minimum(np.concatenate(found), MAX_LOSS))


def _log_loss(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float64)
    found = logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
    return np.asarray(np.where(y < 0, MAX_LOSS, np.minimum(found, MAX_LOSS)))


def _sharpness(scores: np.ndarray, y: np.ndarray) -> float:
    """The factor of the scores for which their mean log loss is least, by Newton's method.

    It is 1 / T of `classify.calibration.temperature`, near enough to choose by.
    """
    some = np.flatnonzero(y >= 0)[:: max(1, len(y) // SAMPLE)]
    scores, y = scores[some].astype(np.float64), y[some]
    scores -= scores.max(axis=1, keepdims=True, initial=-np.inf)
    spread = -float(scores.mean()) if len(y) else 0.0
    if not spread:
        return 1.0
    scores /= spread
    own = scores[np.arange(len(y)), y]
    factor = 1.0
    for _ in range(STEPS):
        proba = np.exp(factor * scores)
        proba /= proba.sum(axis=1, keepdims=True)
        mean = (proba * scores).sum(axis=1)
        slope = (mean - own).mean()
        bend = (proba * scores**2).sum(axis=1).mean() - (mean**2).mean()
        # No step is longer than fourfold: far from the least the curve bends too little to tell.
        step = slope / bend if bend > 0 else np.sign(slope) * np.inf
        before, factor = factor, float(np.clip(factor - step, factor / 4, factor * 4))
        if abs(factor - before) < NEAR * factor:
            break
    return factor / spread


def _hinge(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((np.maximum(0, 1 - _signs(scores, y) * scores) ** 2).sum(axis=1))


def _error(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((scores.argmax(axis=1) != y).astype(np.float64))


def _signs(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    signs = np.full(scores.shape, -1.0)
    known = np.flatnonzero(y >= 0)
    signs[known, y[known]] = 1.0
    return signs


LOSSES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "log": _log_loss,
    "calibrated": _log_loss,
    "hinge": _hinge,
    "error": _error,
}
"""Loss of each image: of probabilities, of scores made into probabilities, of support vectors, and
0 or 1."""

"""How a setting is chosen: along a path from strong to weak regularisation, by held-out loss."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

MAX_LOSS = 100.0
BLOCK = 1_000_000  # scores whose losses are computed at a time
RISES = 2  # so many times in a row the loss may rise before the path ends


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
    path : list of (setting, mean loss, standard error)
        Every setting tried, in order.
    unconverged : list of float
        Settings at which a fit did not converge. They are chosen only where all are such.
    at_end : bool
        Whether the loss was still falling where the grid ended.
    """

    setting: float | None
    scores: np.ndarray
    path: list[tuple[float | None, float, float]]
    unconverged: list[float | None]
    at_end: bool


def choose(steps: Iterable[Step], y: np.ndarray, loss: str) -> Choice:
    """Walk a path and choose by the one-standard-error rule.

    The path ends when the loss has risen twice in a row. Of the settings whose mean loss is within
    one standard error of the least, the one with the strongest regularisation is taken: Breiman,
    Friedman, Olshen & Stone (1984), "Classification and regression trees", section 3.4.3.

    Parameters
    ----------
    steps : iterable of Step
        From strong to weak regularisation; asked for one at a time.
    y : int array of shape (m,)
        Positions of the true classes among the K; -1 for a class that is not among them.
    loss : str
        One of `LOSSES`.

    Returns
    -------
    Choice
    """
    path: list[tuple[float | None, float, float]] = []
    within: list[tuple[int, Step]] = []  # only steps that may still be chosen are held
    unconverged: list[float | None] = []
    reserve: Step | None = None  # should none converge
    best, error, rises, last = np.inf, 0.0, 0, np.inf
    for step in steps:
        losses = _losses(loss, step.scores, y) if step.converged else np.zeros(0)
        if step.again is not None:
            step = replace(step, scores=step.scores[:0].copy())
        reserve = reserve or step
        if not step.converged:
            unconverged.append(step.setting)
            continue
        mean, spread = float(losses.mean()), float(losses.std() / np.sqrt(len(losses)))
        within.append((len(path), step))
        path.append((step.setting, mean, spread))
        if mean < best:
            best, error = mean, spread
        within = [(i, held) for i, held in within if path[i][1] <= best + error]
        rises = rises + 1 if mean > last else 0
        last = mean
        if rises == RISES:
            break
    chosen = within[0][1] if within else reserve
    if chosen is None:
        raise ValueError("a path needs a step")
    at_end = len(path) > 1 and rises == 0 and path[-1][1] == best and path[-1][0] == chosen.setting
    # A copy: the scores may be a part of those of all settings, which then are freed.
    scores = chosen.scores.copy() if chosen.again is None else chosen.again()
    return Choice(chosen.setting, scores, path, unconverged, at_end)


def _losses(loss: str, scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    size = max(1, BLOCK // scores.shape[1])
    blocks = [slice(start, start + size) for start in range(0, len(y), size)]
    found = [LOSSES[loss](scores[block], y[block]) for block in blocks]
    return np.asarray(np.minimum(np.concatenate(found), MAX_LOSS))


def _log_loss(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float64)
    found = logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
    return np.asarray(np.where(y < 0, MAX_LOSS, np.minimum(found, MAX_LOSS)))


def _squared(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(((scores - _signs(scores, y)) ** 2).sum(axis=1))


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
    "squared": _squared,
    "hinge": _hinge,
    "error": _error,
}
"""Loss of each image: of probabilities, of ridge, of support vectors, and 0 or 1."""

"""How a setting is chosen: along a path from strong to weak regularisation, by held-out loss."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

MAX_LOSS = 100.0
TEMPERATURE_SAMPLE_ROWS, MAX_NEWTON_STEPS, NEWTON_TOL = 5_000, 12, 1e-3
"""Images, steps and relative error of what makes scores into probabilities to choose by."""
MAX_BLOCK_VALUES = 1_000_000  # scores whose losses are computed at a time
PATIENCE = 2  # so many times in a row the loss may rise before the path ends


SelectionLoss = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class PathPoint:
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

    param: float | None
    decision_values: np.ndarray
    converged: bool = True
    recompute: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class SelectedParam:
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

    param: float | None
    decision_values: np.ndarray
    path: list[tuple[float | None, float]]
    loss: float
    unconverged: list[float | None]
    is_at_grid_edge: bool


def select_param(
    points: Iterable[PathPoint],
    y: np.ndarray,
    loss: str,
    selection_loss: SelectionLoss | None = None,
    loss_tol: float = 0.0,
) -> SelectedParam:
    """Walk a path and take the setting of the least mean loss.

    The path ends when the loss has risen twice in a row: it hardly ever falls below its least again
    after that. The one-standard-error rule, which prefers a stronger regularisation where losses
    are close, loses accuracy and log loss by it: `benchmarks/small_tasks.py` has it as before.

    Parameters
    ----------
    steps : iterable of TrainProgress
        From strong to weak regularisation; asked for one at a time. Of equal losses the first wins.
    y : int array of shape (m,)
        Positions of the true classes among the K; -1 for a class that is not among them.
    loss : str
        One of `LOSSES`.
    judge : callable, optional
        What is to be least instead, from scores and `y`.
    loss_tol : float
        Of the settings whose loss is at most so much above the least, the first is taken.

    Returns
    -------
    SelectedParam
    """
    path: list[tuple[float | None, float]] = []
    unconverged: list[float | None] = []
    within: list[tuple[float, PathPoint]] = []  # only what may still be taken is held
    reserve: PathPoint | None = None  # should none converge
    least, rises, last = np.inf, 0, np.inf
    for step in points:
        mean = np.inf
        if step.converged:
            if selection_loss is None:
                mean = float(_compute_losses(loss, step.decision_values, y).mean())
            else:
                mean = selection_loss(step.decision_values, y)
        if step.recompute is not None:
            step = replace(step, decision_values=step.decision_values[:0].copy())
        reserve = reserve or step
        if not step.converged:
            unconverged.append(step.param)
            continue
        path.append((step.param, mean))
        least = min(least, mean)
        within = [
            (loss, held) for loss, held in [*within, (mean, step)] if loss <= least + loss_tol
        ]
        rises = rises + 1 if mean > last else 0
        last = mean
        if rises == PATIENCE:
            break
    chosen = within[0][1] if within else reserve
    if chosen is None:
        raise ValueError("a path needs a step")
    at_end = len(path) > 1 and path[-1][0] == chosen.param
    # A copy: the scores may be a part of those of all settings, which then are freed.
    scores = chosen.decision_values.copy() if chosen.recompute is None else chosen.recompute()
    return SelectedParam(chosen.param, scores, path, least, unconverged, at_end)


def _compute_losses(loss: str, decision_values: np.ndarray, y: np.ndarray) -> np.ndarray:
    size = max(1, MAX_BLOCK_VALUES // decision_values.shape[1])
    blocks = [slice(start, start + size) for start in range(0, len(y), size)]
    factor = _fit_inverse_temperature(decision_values, y) if loss == "calibrated" else 1.0
    found = [LOSSES[loss](decision_values[block] * factor, y[block]) for block in blocks]
    return np.asarray(np.minimum(np.concatenate(found), MAX_LOSS))


def _log_loss(decision_values: np.ndarray, y: np.ndarray) -> np.ndarray:
    decision_values = decision_values.astype(np.float64)
    found = logsumexp(decision_values, axis=1) - decision_values[np.arange(len(y)), y]
    return np.asarray(np.where(y < 0, MAX_LOSS, np.minimum(found, MAX_LOSS)))


def _fit_inverse_temperature(decision_values: np.ndarray, y: np.ndarray) -> float:
    """The factor of the scores for which their mean log loss is least, by Newton's method.

    It is 1 / T of `classify.evaluation.temperature.fit_temperature`, near enough to choose by.
    """
    some = np.flatnonzero(y >= 0)[:: max(1, len(y) // TEMPERATURE_SAMPLE_ROWS)]
    decision_values, y = decision_values[some].astype(np.float64), y[some]
    decision_values -= decision_values.max(axis=1, keepdims=True, initial=-np.inf)
    spread = -float(decision_values.mean()) if len(y) else 0.0
    if not spread:
        return 1.0
    decision_values /= spread
    own = decision_values[np.arange(len(y)), y]
    factor = 1.0
    for _ in range(MAX_NEWTON_STEPS):
        proba = np.exp(factor * decision_values)
        proba /= proba.sum(axis=1, keepdims=True)
        mean = (proba * decision_values).sum(axis=1)
        slope = (mean - own).mean()
        bend = (proba * decision_values**2).sum(axis=1).mean() - (mean**2).mean()
        # No step is longer than fourfold: far from the least the curve bends too little to tell.
        step = slope / bend if bend > 0 else np.sign(slope) * np.inf
        before, factor = factor, float(np.clip(factor - step, factor / 4, factor * 4))
        if abs(factor - before) < NEWTON_TOL * factor:
            break
    return factor / spread


def _squared_hinge_loss(decision_values: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(
        (np.maximum(0, 1 - _make_signed_targets(decision_values, y) * decision_values) ** 2).sum(
            axis=1
        )
    )


def _zero_one_loss(decision_values: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((decision_values.argmax(axis=1) != y).astype(np.float64))


def _make_signed_targets(decision_values: np.ndarray, y: np.ndarray) -> np.ndarray:
    signs = np.full(decision_values.shape, -1.0)
    known = np.flatnonzero(y >= 0)
    signs[known, y[known]] = 1.0
    return signs


LOSSES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "log": _log_loss,
    "calibrated": _log_loss,
    "hinge": _squared_hinge_loss,
    "error": _zero_one_loss,
}
"""Loss of each image: of probabilities, of scores made into probabilities, of support vectors, and
0 or 1."""

"""Select a param along a path from strong to weak regularisation, by held-out loss."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

MAX_LOSS = 100.0
TEMPERATURE_SAMPLE_ROWS, MAX_NEWTON_STEPS, NEWTON_TOL = 5_000, 12, 1e-3
"""Images, steps and relative tolerance of the temperature that params are compared with."""
MAX_BLOCK_VALUES = 1_000_000  # decision values in a block of losses
PATIENCE = 2  # consecutive rises of the loss that end the path


SelectionLoss = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class PathPoint:
    """The held-out decision values of one param.

    Attributes
    ----------
    param : float, or None
        Value of the param; None for a head without one.
    decision_values : float32 array of shape (m, K)
        Decision values of held-out images, each from the fold that did not train on it.
    converged : bool
        Whether the fits of all folds converged.
    recompute : callable, optional
        Computes the decision values again. If given, they are not held along the path.
    """

    param: float | None
    decision_values: np.ndarray
    converged: bool = True
    recompute: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class SelectedParam:
    """The selected param and its path.

    Attributes
    ----------
    param : float, or None
        The selected value; None for a head without a param.
    decision_values : float32 array of shape (m, K)
        Held-out decision values with this param.
    path : list of (param, mean loss)
        All params whose fits converged, in order.
    loss : float
        The smallest mean loss; infinite if no fit converged.
    unconverged : list of float
        Params for which a fit did not converge. One is selected only if no fit converged.
    is_at_grid_edge : bool
        Whether the last param of the path was selected, so that the loss was still falling.
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
    """Follow a path and select the param with the smallest mean loss.

    The path ends when the loss has risen twice in a row: it hardly ever reaches a new minimum after
    that. The one-standard-error rule, which prefers stronger regularisation where losses are close,
    gave lower accuracy and higher log loss: see `benchmarks/small_tasks.py`.

    Parameters
    ----------
    points : iterable of PathPoint
        From strong to weak regularisation, consumed one at a time. The first of equal losses wins.
    y : int array of shape (m,)
        True class numbers below K; -1 for a class that the head does not know.
    loss : str
        A key of `LOSSES`.
    selection_loss : callable, optional
        Minimised instead of the mean of `loss`. It takes decision values and `y`.
    loss_tol : float, default 0
        Select the first param whose loss is at most this much above the smallest.

    Returns
    -------
    SelectedParam
        The selected param and its path.

    Raises
    ------
    ValueError
        If `points` is empty.
    """
    path: list[tuple[float | None, float]] = []
    unconverged: list[float | None] = []
    candidates: list[tuple[float, PathPoint]] = []  # only points that may still be selected
    reserve: PathPoint | None = None  # selected if no fit converges
    least, rises, last = np.inf, 0, np.inf
    for point in points:
        mean = np.inf
        if point.converged:
            if selection_loss is None:
                mean = float(_compute_losses(loss, point.decision_values, y).mean())
            else:
                mean = selection_loss(point.decision_values, y)
        if point.recompute is not None:
            point = replace(point, decision_values=point.decision_values[:0].copy())
        reserve = reserve or point
        if not point.converged:
            unconverged.append(point.param)
            continue
        path.append((point.param, mean))
        least = min(least, mean)
        candidates = [pair for pair in [*candidates, (mean, point)] if pair[0] <= least + loss_tol]
        rises = rises + 1 if mean > last else 0
        last = mean
        if rises == PATIENCE:
            break
    selected = candidates[0][1] if candidates else reserve
    if selected is None:
        raise ValueError("a path needs a step")
    is_at_grid_edge = len(path) > 1 and path[-1][0] == selected.param
    # A copy, because the decision values may be a view of those of several params.
    values = selected.decision_values.copy() if selected.recompute is None else selected.recompute()
    return SelectedParam(selected.param, values, path, least, unconverged, is_at_grid_edge)


def _compute_losses(loss: str, decision_values: np.ndarray, y: np.ndarray) -> np.ndarray:
    size = max(1, MAX_BLOCK_VALUES // decision_values.shape[1])
    blocks = [slice(start, start + size) for start in range(0, len(y), size)]
    factor = _fit_inverse_temperature(decision_values, y) if loss == "calibrated" else 1.0
    losses = [LOSSES[loss](decision_values[block] * factor, y[block]) for block in blocks]
    return np.asarray(np.minimum(np.concatenate(losses), MAX_LOSS))


def _log_loss(decision_values: np.ndarray, y: np.ndarray) -> np.ndarray:
    decision_values = decision_values.astype(np.float64)
    losses = logsumexp(decision_values, axis=1) - decision_values[np.arange(len(y)), y]
    return np.asarray(np.where(y < 0, MAX_LOSS, np.minimum(losses, MAX_LOSS)))


def _fit_inverse_temperature(decision_values: np.ndarray, y: np.ndarray) -> float:
    """Fit the factor of the decision values that minimises mean log loss, by Newton's method.

    It is 1 / T of `classify.evaluation.temperature.fit_temperature`, exact enough for selection.
    """
    sample = np.flatnonzero(y >= 0)[:: max(1, len(y) // TEMPERATURE_SAMPLE_ROWS)]
    decision_values, y = decision_values[sample].astype(np.float64), y[sample]
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
        curvature = (proba * decision_values**2).sum(axis=1).mean() - (mean**2).mean()
        # Limited to a factor of four: far from the minimum the curvature is too small to trust.
        step = slope / curvature if curvature > 0 else np.sign(slope) * np.inf
        previous, factor = factor, float(np.clip(factor - step, factor / 4, factor * 4))
        if abs(factor - previous) < NEWTON_TOL * factor:
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
"""Loss of each image: log loss, log loss after temperature scaling, squared hinge, 0-1 loss."""

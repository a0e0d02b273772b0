"""Ordinal logistic regression of grades: one direction, and cutpoints between the grades."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

SEARCH_TOL, FINAL_TOL = 1e-5, 1e-8  # largest entry of the gradient of the mean loss
MAX_ITER = 1000
MIN_GAP = 1e-6  # between neighbouring cutpoints
LBFGS_MEMORY = 20


@dataclass(frozen=True, eq=False)
class OrdinalModel:
    """A fitted ordinal logistic regression.

    Attributes
    ----------
    coef : float64 array of shape (R,)
    cutpoints : float64 array of shape (G - 1,)
        Ascending.
    converged : bool
    """

    coef: np.ndarray
    cutpoints: np.ndarray
    converged: bool


def fit_ordinal(
    Z: np.ndarray,
    y: np.ndarray,
    n_grades: int,
    C: float,
    warm_start: OrdinalModel | None = None,
    *,
    tol: float = FINAL_TOL,
) -> OrdinalModel:
    """Fit P(grade > k) = expit(Z coef - cutpoint k), for all grades k but the highest.

    The proportional-odds model (P. McCullagh, 1980, "Regression Models for Ordinal Data", Journal
    of the Royal Statistical Society B 42), minimising ``|coef|^2 / 2 + C sum of log losses``. The
    cutpoints are not penalised, and stay in order: the first, then the logarithms of the gaps.
    L-BFGS in coordinates whose curvature is bounded by one.

    Parameters
    ----------
    Z : float64 array of shape (n, R)
        Centred features along uncorrelated directions, such as a principal basis.
    y : int array of shape (n,)
        Grades from 0.
    n_grades : int
        G, 2 or more. Grades without rows get a gap of next to nothing.
    C : float
        Inverse strength of the penalty.
    warm_start : OrdinalModel, optional
        Where the search starts.
    tol : float
        Largest entry of the gradient at which the solver stops.

    Returns
    -------
    OrdinalModel
    """
    n = len(y)
    penalty = 1 / (C * n)
    scale = 1 / np.sqrt(0.25 * (Z**2).mean(axis=0) + penalty)
    present = np.unique(y)
    grade = np.searchsorted(present, y)  # grades without rows have no parameter
    n_cuts = len(present) - 1
    scaled = Z * scale
    start = np.zeros(scaled.shape[1] + n_cuts)
    shares = np.cumsum(np.bincount(grade) / n)[:-1]
    cuts = np.log(shares / (1 - shares))
    if warm_start is not None:
        start[:-n_cuts] = warm_start.coef / scale
        cuts = warm_start.cutpoints[present[:-1]]
    start[-n_cuts:] = _to_parameters(cuts)

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, cutpoints = parameters[:-n_cuts], _to_cutpoints(parameters[-n_cuts:])
        scores = scaled @ weights
        edges = np.concatenate([[-np.inf], cutpoints, [np.inf]])
        upper, lower = edges[grade + 1] - scores, edges[grade] - scores
        # P(grade) = expit(upper) - expit(lower), computed without cancellation.
        gap = edges[grade + 1] - edges[grade]
        log_proba = -np.logaddexp(0, -upper) - np.logaddexp(0, lower) + np.log(-np.expm1(-gap))
        # d log P / d upper and d lower; both tend to 0 at the infinite ends.
        rest = 1 / np.expm1(np.minimum(gap, 700))
        d_upper = np.where(np.isinf(upper), 0, expit(-upper) + np.where(np.isinf(gap), 0, rest))
        d_lower = np.where(np.isinf(lower), 0, -expit(lower) - np.where(np.isinf(gap), 0, rest))
        coef = weights * scale
        value = -log_proba.mean() + penalty / 2 * float(coef @ coef)
        grad_weights = (d_upper + d_lower) @ scaled / n + penalty * coef * scale
        grad_cuts = np.zeros(n_cuts)
        is_low, is_high = grade < n_cuts, grade > 0
        grad_cuts += np.bincount(grade[is_low], d_upper[is_low], n_cuts)
        grad_cuts += np.bincount(grade[is_high] - 1, d_lower[is_high], n_cuts)
        grad_cuts *= -1 / n
        # The first parameter moves all cutpoints, each gap those above it.
        from_above = np.cumsum(grad_cuts[::-1])[::-1]
        gaps = np.append(1.0, np.exp(parameters[-n_cuts + 1 :]) if n_cuts > 1 else [])
        return float(value), np.concatenate([grad_weights, from_above * gaps[:n_cuts]])

    options = {"maxiter": MAX_ITER, "gtol": tol, "ftol": 0, "maxcor": LBFGS_MEMORY}
    bounds = [(None, None)] * (len(start) - n_cuts + 1) + [(-12.0, 12.0)] * (n_cuts - 1)
    result = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    cutpoints = np.empty(n_grades - 1)
    found = _to_cutpoints(result.x[-n_cuts:])
    for k in range(n_grades - 1):
        # The cutpoint above grade k lies above all present grades up to k.
        below = int(np.searchsorted(present, k, side="right"))
        far = 30.0
        if below == 0:
            cutpoints[k] = found[0] - far
        elif below > n_cuts:
            cutpoints[k] = found[-1] + far
        else:
            cutpoints[k] = found[below - 1]
    cutpoints += MIN_GAP * np.arange(n_grades - 1) * (len(present) < n_grades)
    converged = bool(result.success or np.abs(result.jac).max() <= 10 * tol)
    return OrdinalModel(result.x[:-n_cuts] * scale, cutpoints, converged)


def _to_parameters(cutpoints: np.ndarray) -> np.ndarray:
    gaps = np.maximum(np.diff(cutpoints), 1e-5)
    return np.concatenate([cutpoints[:1], np.log(gaps)])


def _to_cutpoints(parameters: np.ndarray) -> np.ndarray:
    gaps = np.exp(parameters[1:])
    return np.asarray(parameters[0] + np.concatenate([[0.0], np.cumsum(gaps)]))


def grade_probabilities(scores: np.ndarray, cutpoints: np.ndarray) -> np.ndarray:
    """Compute the probability of every grade.

    Parameters
    ----------
    scores : float64 array of shape (n,)
    cutpoints : float64 array of shape (G - 1,)

    Returns
    -------
    float64 array of shape (n, G)
        Rows that sum to 1.
    """
    above = expit(np.asarray(scores, np.float64)[:, None] - cutpoints)
    edge = np.ones((len(above), 1))
    return np.asarray(-np.diff(above, axis=1, prepend=edge, append=0 * edge))

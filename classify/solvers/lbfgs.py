"""Linear heads without a closed form: softmax and squared hinge, minimised by L-BFGS.

Every step reads all rows in blocks, so features larger than memory need no code of their own.
L-BFGS is preconditioned by the principal basis of the features, so it converges in a few dozen
iterations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from classify.data.features import FeatureRows
from classify.errors import CallError
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE, renumber
from classify.heads.models import LinearModel
from classify.solvers.gram import MAX_SOLVER_BYTES, PrincipalBasis
from classify.solvers.selection import PathPoint

# Largest entry of the gradient of the mean loss, in the scaled coordinates. The first is enough to
# select a param: on 20,000 x 512 features it changed no test accuracy by more than 0.0004.
SEARCH_TOL, FINAL_TOL = 1e-4, 1e-5
MAX_ITER = 1000
LBFGS_MEMORY = 20  # steps that the solver remembers
# Held-out decision values above which they are not held for several params.
MAX_VALUES_IN_MEMORY = 16_000_000
MAX_CHUNK_VALUES = 1 << 17  # features, or decision values, in a chunk


@dataclass(frozen=True, eq=False)
class Problem:
    """The training rows of one fit, and its held-out rows.

    Attributes
    ----------
    rows : FeatureRows
        n rows.
    weights : float64 array of shape (n,)
        Weight of each row; 0 for rows that are not trained on.
    basis : PrincipalBasis
        Basis of the training rows.
    held_out : FeatureRows
        The held-out rows; may be empty.
    """

    rows: FeatureRows
    weights: np.ndarray
    basis: PrincipalBasis
    held_out: FeatureRows


def cross_val_path(
    loss: str,
    grid: Sequence[float | None],
    problems: Sequence[Problem],
    y: np.ndarray,
    n_classes: int,
) -> Iterator[PathPoint]:
    """Compute held-out decision values along a grid of C, each fold with warm starts.

    Parameters
    ----------
    loss : str
        As in `fit_linear`.
    grid : sequence of float
        Values of C, from strong to weak regularisation.
    problems : sequence of Problem
        One for each fold.
    y : int array of shape (n,), or float array of shape (n, K)
        As in `fit_linear`.
    n_classes : int
        K.

    Yields
    ------
    PathPoint
        Decision values in the order of the folds.
    """
    warm_starts: list[LinearModel | None] = [None] * len(problems)
    n_held_out = sum(len(problem.held_out) for problem in problems)
    for C in grid:
        models, converged = [], True
        for i, problem in enumerate(problems):
            model, fold_converged = fit_linear(
                loss, float(C or 1), problem, y, n_classes, warm_starts[i], tol=SEARCH_TOL
            )
            models.append(model)
            warm_starts[i], converged = model, converged and fold_converged
        recompute = partial(_compute_held_out, models, problems, n_held_out, n_classes)
        yield PathPoint(
            C,
            recompute(),
            converged,
            recompute if n_held_out * n_classes > MAX_VALUES_IN_MEMORY else None,
        )


def _compute_held_out(
    models: Sequence[LinearModel], problems: Sequence[Problem], n_held_out: int, n_classes: int
) -> np.ndarray:
    values, begin = np.empty((n_held_out, n_classes), np.float32), 0
    for model, problem in zip(models, problems, strict=True):
        for _, block in problem.held_out.iter_blocks(n_classes):
            values[begin : begin + len(block)] = model.decision_values(block)
            begin += len(block)
    return values


def fit_linear(
    loss: str,
    C: float,
    problem: Problem,
    y: np.ndarray,
    n_classes: int,
    warm_start: LinearModel | None = None,
    *,
    tol: float = FINAL_TOL,
) -> tuple[LinearModel, bool]:
    """Minimise ``|W|^2 / 2 + C sum of losses``: the objective of LogisticRegression and LinearSVC.

    As in scikit-learn's LogisticRegression the intercept is not penalised. Two classes have two
    weight vectors here, where scikit-learn has their difference. The coordinates are those of the
    principal basis, each times the root of an upper bound of the loss's curvature along it:
    Boehning (1992), "Multinomial logistic regression algorithm", Annals of the Institute of
    Statistical Mathematics 44, 197-200.

    Parameters
    ----------
    loss : str
        ``log``: cross entropy of the softmax. ``hinge``: squared hinge of each class against the
        rest, summed over classes. ``label-log`` and ``label-hinge``: log loss of the logistic
        function, and squared hinge, of each of several labels, summed over labels; there the
        objective is that of LogisticRegression and LinearSVC for every label by itself.
    C : float
        Inverse strength of the penalty.
    problem : Problem
        The training rows.
    y : int array of shape (n,), or float array of shape (n, K)
        Class numbers below `n_classes`; or 1 where a row has a label, 0 where not, and NaN where it
        is not known.
    n_classes : int
        K.
    warm_start : LinearModel, optional
        Initial weights, on features scaled as in `problem.basis`; zero if not given.
    tol : float, default 1e-5
        Largest entry of the gradient at which the solver stops.

    Returns
    -------
    LinearModel
        The minimum. Classes without training rows have `UNSEEN_CLASS_SCORE`.
    bool
        Whether it converged: the gradient in float64 is at most `tol`, whatever scipy reports.

    Raises
    ------
    CallError
        If there are too many classes and columns for the solver.
    """
    basis, weights, rows = problem.basis, problem.weights, problem.rows
    n = float(weights.sum())
    penalty = 1 / (C * n)
    curvature_scale = np.sqrt(MAX_CURVATURE[loss] * basis.values / n + penalty)
    from_scaled = basis.vectors / curvature_scale  # (D, R): from scaled coordinates to weights
    compute_loss_and_grad = LOSS_GRADS[loss]
    if y.ndim == 2:  # several labels a row
        known, targets = np.arange(n_classes), y
    else:
        known = np.flatnonzero(np.bincount(y[weights > 0], minlength=n_classes))
        targets = renumber(y, known)
    check_solver_memory(len(known), *basis.vectors.shape)

    def objective(flat_params: np.ndarray, dtype: type) -> tuple[float, np.ndarray]:
        """Compute the mean loss and its gradient, with products in float32 or float64."""
        params = flat_params.reshape(len(known), -1)
        principal_coef = params[:, :-1] / curvature_scale
        coef = params[:, :-1] @ from_scaled.T / basis.scale
        # Features are centred before the product: with a mean far from zero and a small spread
        # they would lose their digits. The part of the mean that float32 cannot hold goes into the
        # intercept.
        mean: np.ndarray = basis.mean.astype(dtype)
        mean_rest = basis.mean - mean
        intercept = (params[:, -1] - coef @ mean_rest).astype(dtype)
        coef_columns: np.ndarray = coef.T.astype(dtype)
        buffer: np.ndarray = np.empty((0, rows.dim), dtype)
        value, grad_coef, grad_intercept = (
            0.0,
            np.zeros((len(known), rows.dim)),
            np.zeros(len(known)),
        )
        for positions, block in _iter_chunks(rows, len(known)):
            if len(buffer) < len(block):
                buffer = np.empty(block.shape, dtype)
            x = np.subtract(block, mean, out=buffer[: len(block)])
            decision_values = x @ coef_columns
            decision_values += intercept
            losses, grad = compute_loss_and_grad(decision_values, targets[positions])
            value += float(weights[positions] @ losses)
            grad *= weights[positions, None].astype(dtype)
            grad_coef += grad.T @ x
            grad_intercept += grad.sum(axis=0, dtype=np.float64)
        grad_coef = (grad_coef - grad_intercept[:, None] * mean_rest) / basis.scale
        value = value / n + penalty / 2 * float((principal_coef**2).sum())
        grad_scaled = grad_coef @ from_scaled / n + penalty * principal_coef / curvature_scale
        return value, np.concatenate([grad_scaled, grad_intercept[:, None] / n], axis=1).ravel()

    params = np.zeros((len(known), len(curvature_scale) + 1))
    if warm_start is not None:
        params[:, :-1] = warm_start.coef[known] @ basis.vectors * curvature_scale
        params[:, -1] = warm_start.intercept[known]
    # float32 while it can distinguish losses, then float64, so that the final gradient and the test
    # of convergence do not depend on rounding or on the kernel that BLAS chooses.
    for dtype, ftol in ((np.float32, 1e-9), (np.float64, 0)):
        options = {"maxiter": MAX_ITER, "gtol": tol, "ftol": ftol, "maxcor": LBFGS_MEMORY}
        result = minimize(
            objective, params.ravel(), args=(dtype,), jac=True, method="L-BFGS-B", options=options
        )
        params = result.x.reshape(params.shape)
    coef, intercept = np.zeros((n_classes, rows.dim)), np.full(n_classes, UNSEEN_CLASS_SCORE)
    coef[known], intercept[known] = params[:, :-1] @ from_scaled.T, params[:, -1]
    converged = bool(np.abs(result.jac).max() <= tol)
    return LinearModel(basis.mean, basis.scale, coef, intercept), converged


def check_solver_memory(n_classes: int, dim: int, n_directions: int) -> None:
    """Check that L-BFGS fits into `MAX_SOLVER_BYTES`.

    Parameters
    ----------
    n_classes : int
        K.
    dim : int
        Number of features D.
    n_directions : int
        Number of principal directions R.

    Raises
    ------
    CallError
        If it does not fit; the message says how many bytes it would need.
    """
    # Two vectors for each step in memory and some more in the solver, then those of the objective.
    needed = 8 * n_classes * ((2 * LBFGS_MEMORY + 12) * (n_directions + 1) + 6 * dim)
    if needed > MAX_SOLVER_BYTES:
        raise CallError(
            f"{n_classes:,} classes of {dim:,} columns are too many for softmax and the SVMs: "
            f"their solver would need {needed:,} bytes; use ridge, lda or ncm, or fewer layers"
        )


def _iter_chunks(rows: FeatureRows, n_classes: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield chunks of rows that stay in the processor's cache with their decision values."""
    size = max(64, MAX_CHUNK_VALUES // max(rows.dim, n_classes))
    for positions, block in rows.iter_blocks():
        for start in range(0, len(block), size):
            chunk = block[start : start + size]
            begin = positions.start + start
            yield slice(begin, begin + len(chunk)), chunk


def _log_loss_and_grad(values: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute log loss (n,) and its gradient (n, K), which overwrites the decision values."""
    row_index = np.arange(len(y))
    values -= values.max(axis=1, keepdims=True)
    true_class = values[row_index, y]
    proba = np.exp(values, out=values)
    total = proba.sum(axis=1)
    proba /= total[:, None]
    proba[row_index, y] -= 1
    return np.log(total) - true_class, proba


def _squared_hinge_and_grad(values: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute one-versus-rest squared hinge (n,) and its gradient, which overwrites `values`."""
    row_index = np.arange(len(y))
    # The margin is violated by 1 + value for a wrong class and by 1 - value for the true one.
    values[row_index, y] *= -1
    values += 1
    violation = np.maximum(values, 0, out=values)
    losses = np.einsum("ij,ij->i", violation, violation)
    violation *= 2
    violation[row_index, y] *= -1
    return losses, violation


def _label_log_loss_and_grad(values: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the sum of the labels' log losses (n,) and its gradient (n, K)."""
    sign = np.where(y > 0, -1, 1).astype(values.dtype)
    wrong = values * sign  # log odds of the wrong answer
    losses = np.where(np.isnan(y), 0, np.logaddexp(0, wrong))
    grad = np.where(np.isnan(y), 0, sign * expit(wrong))
    return losses.sum(axis=1), grad


def _label_hinge_and_grad(values: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the sum of the labels' squared hinges (n,) and its gradient (n, K)."""
    sign = np.where(y > 0, -1, 1).astype(values.dtype)
    violation = np.where(np.isnan(y), 0, np.maximum(0, 1 + values * sign))
    return (violation**2).sum(axis=1), 2 * sign * violation


LOSS_GRADS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "log": _log_loss_and_grad,
    "hinge": _squared_hinge_and_grad,
    "label-log": _label_log_loss_and_grad,
    "label-hinge": _label_hinge_and_grad,
}
MAX_CURVATURE = {"log": 0.5, "hinge": 2.0, "label-log": 0.25, "label-hinge": 2.0}
"""Largest second derivative of each loss by a decision value."""

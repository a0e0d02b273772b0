"""Linear heads without a closed form: softmax and squared hinge, minimised exactly.

Every step of L-BFGS goes through all rows in blocks, wherever they lie, so features larger than
memory are no other case. What makes it quick is the coordinates: in those of the features' spectrum
the problem is nearly round, and a few dozen steps do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize

from classify.data.features import FeatureRows
from classify.errors import CallError
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE, renumber
from classify.heads.models import LinearModel
from classify.solvers.gram import MAX_SOLVER_BYTES, PrincipalBasis
from classify.solvers.selection import PathPoint

# The greatest entry of the gradient of the mean loss, in the round coordinates. To choose a setting
# the first is enough: on 20,000 x 512 features it moved no test accuracy by more than 0.0004.
SEARCH_TOL, FINAL_TOL = 1e-4, 1e-5
MAX_ITER = 1000
LBFGS_MEMORY = 20  # steps that the solver remembers
MAX_VALUES_IN_MEMORY = (
    16_000_000  # held-out scores, from which on they are not held for several settings
)
MAX_CHUNK_VALUES = 1 << 17  # features, or scores, that are worked on at a time


@dataclass(frozen=True, eq=False)
class Problem:
    """What one head is trained on, and what it is held out from.

    Attributes
    ----------
    rows : FeatureRows
        n of them.
    weights : float64 array of shape (n,)
        Zero where a row is not trained on.
    spectrum : PrincipalBasis
        Of the rows that are.
    held : FeatureRows
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
    """Walk a grid of C; each fold goes on from its last minimum.

    Parameters
    ----------
    loss : str
        ``log`` or ``hinge``.
    grid : sequence of float
    problems : sequence of Problem
        One for each fold.
    y : int array of shape (n,)
    n_classes : int

    Yields
    ------
    PathPoint
        Scores in the order of the folds.
    """
    minima: list[LinearModel | None] = [None] * len(problems)
    n_held = sum(len(problem.held_out) for problem in problems)
    for setting in grid:
        models, converged = [], True
        for i, problem in enumerate(problems):
            found, fine = fit_linear(
                loss, float(setting or 1), problem, y, n_classes, minima[i], tol=SEARCH_TOL
            )
            models.append(found)
            minima[i], converged = found, converged and fine
        again = partial(_score_held_out, models, problems, n_held, n_classes)
        yield PathPoint(
            setting,
            again(),
            converged,
            again if n_held * n_classes > MAX_VALUES_IN_MEMORY else None,
        )


def _score_held_out(
    models: Sequence[LinearModel], problems: Sequence[Problem], n_held: int, n_classes: int
) -> np.ndarray:
    scores, begin = np.empty((n_held, n_classes), np.float32), 0
    for model, problem in zip(models, problems, strict=True):
        for _, block in problem.held_out.iter_blocks(n_classes):
            scores[begin : begin + len(block)] = model.decision_values(block)
            begin += len(block)
    return scores


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
    """Minimise ``|W|^2 / 2 + C sum of losses``: what LogisticRegression and LinearSVC minimise.

    As in scikit-learn's LogisticRegression the intercept is not penalised; two classes have two
    vectors here, where scikit-learn has their difference. The coordinates are
    those of the spectrum, each times the root of the largest curvature that the loss can have
    along it: a bound of Boehning (1992), "Multinomial logistic regression algorithm", Annals of the
    Institute of Statistical Mathematics 44, 197-200.

    Parameters
    ----------
    loss : str
        ``log``: cross entropy of the softmax. ``hinge``: squared hinge of each class against the
        rest, summed over classes.
    C : float
    problem : Problem
    y : int array of shape (n,)
    n_classes : int
    warm_start : LinearModel, optional
        Where to begin.
    tol : float
        The gradient to end at.

    Returns
    -------
    LinearModel
    bool
        Whether the gradient is flat there, measured in float64: scipy's word is not taken for it.

    Raises
    ------
    CallError
        If there are too many classes and columns for the solver.
    """
    spectrum, weights, rows = problem.basis, problem.weights, problem.rows
    n = float(weights.sum())
    penalty = 1 / (C * n)
    roots = np.sqrt(MAX_CURVATURE[loss] * spectrum.values / n + penalty)
    unround = spectrum.vectors / roots  # (D, R): from round coordinates to weights
    known = np.flatnonzero(np.bincount(y[weights > 0], minlength=n_classes))
    targets, slopes = renumber(y, known), LOSS_GRADS[loss]
    check_solver_memory(len(known), *spectrum.vectors.shape)

    def objective(point: np.ndarray, kind: type) -> tuple[float, np.ndarray]:
        """The mean loss and its gradient, from products of float32 or float64."""
        at = point.reshape(len(known), -1)
        inside = at[:, :-1] / roots
        coef = at[:, :-1] @ unround.T / spectrum.scale
        # Centred before the product: of what is far from zero beside its spread, little would be
        # left after it. What float32 cannot hold of the mean goes into the intercept.
        centre: np.ndarray = spectrum.mean.astype(kind)
        rest = spectrum.mean - centre
        intercept = (at[:, -1] - coef @ rest).astype(kind)
        turned: np.ndarray = coef.T.astype(kind)
        buffer: np.ndarray = np.empty((0, rows.dim), kind)
        value, pull, push = 0.0, np.zeros((len(known), rows.dim)), np.zeros(len(known))
        for where, block in _iter_chunks(rows, len(known)):
            if len(buffer) < len(block):
                buffer = np.empty(block.shape, kind)
            x = np.subtract(block, centre, out=buffer[: len(block)])
            scores = x @ turned
            scores += intercept
            losses, slope = slopes(scores, targets[where])
            value += float(weights[where] @ losses)
            slope *= weights[where, None].astype(kind)
            pull += slope.T @ x
            push += slope.sum(axis=0, dtype=np.float64)
        pull = (pull - push[:, None] * rest) / spectrum.scale
        value = value / n + penalty / 2 * float((inside**2).sum())
        by_round = pull @ unround / n + penalty * inside / roots
        return value, np.concatenate([by_round, push[:, None] / n], axis=1).ravel()

    at = np.zeros((len(known), len(roots) + 1))
    if warm_start is not None:
        at[:, :-1] = warm_start.coef[known] @ spectrum.vectors * roots
        at[:, -1] = warm_start.intercept[known]
    # float32 as far as it can tell one loss from another, then float64: whether the gradient is
    # flat there depends on no rounding, and so on no kernel of BLAS.
    for kind, least in ((np.float32, 1e-9), (np.float64, 0)):
        options = {"maxiter": MAX_ITER, "gtol": tol, "ftol": least, "maxcor": LBFGS_MEMORY}
        found = minimize(
            objective, at.ravel(), args=(kind,), jac=True, method="L-BFGS-B", options=options
        )
        at = found.x.reshape(at.shape)
    coef, intercept = np.zeros((n_classes, rows.dim)), np.full(n_classes, UNSEEN_CLASS_SCORE)
    coef[known], intercept[known] = at[:, :-1] @ unround.T, at[:, -1]
    there = bool(np.abs(found.jac).max() <= tol)
    return LinearModel(spectrum.mean, spectrum.scale, coef, intercept), there


def check_solver_memory(n_classes: int, dim: int, n_directions: int) -> None:
    """Refuse what L-BFGS cannot hold.

    Raises
    ------
    CallError
        The message says how many bytes it would need.
    """
    # It keeps two vectors a step it remembers, and some; then there are those around it.
    needed = 8 * n_classes * ((2 * LBFGS_MEMORY + 12) * (n_directions + 1) + 6 * dim)
    if needed > MAX_SOLVER_BYTES:
        raise CallError(
            f"{n_classes:,} classes of {dim:,} columns are too many for softmax and the SVMs: "
            f"their solver would need {needed:,} bytes; use ridge, lda or ncm, or fewer layers"
        )


def _iter_chunks(rows: FeatureRows, n_classes: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows that stay in the processor's cache with their scores."""
    size = max(64, MAX_CHUNK_VALUES // max(rows.dim, n_classes))
    for where, block in rows.iter_blocks():
        for start in range(0, len(block), size):
            part = block[start : start + size]
            begin = where.start + start
            yield slice(begin, begin + len(part)), part


def _log_loss_and_grad(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log loss of each row (n,), and its slope by the scores (n, K), which takes their place."""
    each = np.arange(len(y))
    scores -= scores.max(axis=1, keepdims=True)
    own = scores[each, y]
    proba = np.exp(scores, out=scores)
    total = proba.sum(axis=1)
    proba /= total[:, None]
    proba[each, y] -= 1
    return np.log(total) - own, proba


def _squared_hinge_and_grad(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared hinge of each class against the rest, summed; and its slope, in their place."""
    each = np.arange(len(y))
    # A class that is not the row's is short of -1 by 1 + score; its own of 1 by 1 - score.
    scores[each, y] *= -1
    scores += 1
    short = np.maximum(scores, 0, out=scores)
    losses = np.einsum("ij,ij->i", short, short)
    short *= 2
    short[each, y] *= -1
    return losses, short


LOSS_GRADS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "log": _log_loss_and_grad,
    "hinge": _squared_hinge_and_grad,
}
MAX_CURVATURE = {"log": 0.5, "hinge": 2.0}
"""The greatest second derivative by a score."""

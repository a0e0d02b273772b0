"""The heads, by name, each with its grid; and how a value is chosen from a grid."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from classify.errors import UnknownHead

# Far above what standardised features need: reaching it is worth a notice.
MAX_ITER = {"lbfgs": 3_000, "liblinear": 10_000}
NARROW = 64  # below this width, liblinear's primal solver is the quicker one


@dataclass(frozen=True)
class Head:
    """A kind of classifier on embeddings.

    Attributes
    ----------
    name : str
    grid : tuple of float
        Values of C to choose from, from strong to weak regularisation.
    classifier : callable
        From the shape of the training features, (n, D), to an unfitted scikit-learn classifier
        that has a parameter C.
    """

    name: str
    grid: tuple[float, ...]
    classifier: Callable[[tuple[int, int]], object]

    def build(self, C: float, shape: tuple[int, int]) -> Pipeline:
        """An unfitted pipeline of ``scale`` and ``classify``: training statistics scale.

        Parameters
        ----------
        C : float
            Inverse strength of the regularisation.
        shape : (int, int)
            Of the training features.
        """
        steps = [("scale", StandardScaler()), ("classify", self.classifier(shape))]
        return Pipeline(steps).set_params(classify__C=C)


def _softmax(shape: tuple[int, int]) -> LogisticRegression:
    # Warm-started, so that the values of a grid continue from each other.
    return LogisticRegression(solver="lbfgs", max_iter=MAX_ITER["lbfgs"], warm_start=True)


def _linear_svm(shape: tuple[int, int]) -> LinearSVC:
    rows, dim = shape
    # Measured on 1,437 x 480 and 6,000 x 512, ten classes: the dual is 1.5 to 8 times quicker,
    # more so for large C. At 32 columns it does not converge for large C; the primal does.
    dual = dim > NARROW or rows < dim
    # The dual's tolerance is absolute, and liblinear's own default for it is 0.1. From 1e-4 to
    # 1e-2 the time halves, the scores move by at most 0.005 and no prediction changed.
    tol = 1e-2 if dual else 1e-4
    return LinearSVC(dual=dual, tol=tol, max_iter=MAX_ITER["liblinear"], random_state=0)


def _decades(first: int, last: int) -> tuple[float, ...]:
    return tuple(float(f"1e{exponent}") for exponent in range(first, last + 1))


HEADS = {
    head.name: head
    for head in (
        Head("softmax", _decades(-4, 2), _softmax),
        Head("linear-svm", _decades(-5, -1), _linear_svm),
    )
}


def named(name: str) -> Head:
    """The head of that name.

    Raises
    ------
    UnknownHead
        If there is none; the message lists them.
    """
    if name not in HEADS:
        near = get_close_matches(name, HEADS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownHead(f"no head {name!r}, only {', '.join(HEADS)}{hint}")
    return HEADS[name]


@dataclass(frozen=True)
class Choice:
    """What a grid search came to.

    Attributes
    ----------
    C : float
    validation : float, or None
        The share of validated images that were right with this C; None where none could be.
    unconverged : int
        How many fits of the search did not converge.
    """

    C: float
    validation: float | None
    unconverged: int


def choose(
    head: Head, X: np.ndarray, y: np.ndarray, folds: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Choice:
    """Choose C by validation; where values tie, the stronger regularisation.

    Parameters
    ----------
    X : float32 array of shape (n, D)
    y : int array of shape (n,)
    folds : iterable of (train, validation)
        Positions. Every validated image counts once, whatever the sizes of the folds.

    Returns
    -------
    Choice
        Without folds, the middle of the grid.
    """
    right = np.zeros(len(head.grid), np.intp)
    validated = unconverged = 0
    for train, held in folds:
        features, labels = X[train], y[train]
        model = head.build(head.grid[0], features.shape)
        for i, C in enumerate(head.grid):
            model.set_params(classify__C=C)
            unconverged += not fit_quietly(model, features, labels)
            right[i] += int((model.predict(X[held]) == y[held]).sum())
        validated += len(held)
    if not validated:
        return Choice(head.grid[len(head.grid) // 2], None, 0)
    best = int(np.argmax(right))  # the first of equals
    return Choice(head.grid[best], float(right[best] / validated), unconverged)


def fit_quietly(model: Pipeline, X: np.ndarray, y: np.ndarray) -> bool:
    """Fit in place and say whether the solver converged, instead of warning; others' warnings pass.

    Returns
    -------
    bool
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)

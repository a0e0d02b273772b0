"""scikit-learn's own linear classifiers, as a careful user calls them: standardised, five folds."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifierCV
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

STEPS = 5000  # so many that every fit converges
ALPHAS = np.logspace(-1, 6, 20)
CV, BY_LOSS, PLAIN, RIDGE, JOINED = (
    "LogisticRegressionCV",
    "LogisticRegressionCV by log loss",
    "LogisticRegression",
    "RidgeClassifierCV",
    "LogisticRegressionCV, all layers",
)


def answers(
    last: tuple[np.ndarray, np.ndarray],
    joined: tuple[np.ndarray, np.ndarray],
    y: np.ndarray,
    groups: np.ndarray | None,
    version: str,
) -> dict[str, dict[str, object]]:
    """What each rival says of the test images.

    Parameters
    ----------
    last, joined : (array of shape (n, D), array of shape (m, D))
        To train on and to test on: of the last layer, and of all layers side by side.
    y : text array of shape (n,)
    groups : text array of shape (n,), or None
        What no fold is to tear.
    version : str
        Of scikit-learn. What is kept of another one does not count.

    Returns
    -------
    dict
        By rival: ``classes``, ``predicted``, ``probabilities`` (None if it has none), and
        ``unconverged``, the number of warnings that a fit had not converged.
    """
    folds = folds_of(y, groups)
    models = {
        CV: LogisticRegressionCV(Cs=20, cv=folds, scoring="accuracy", max_iter=STEPS),
        BY_LOSS: LogisticRegressionCV(Cs=20, cv=folds, scoring="neg_log_loss", max_iter=STEPS),
        PLAIN: LogisticRegression(max_iter=STEPS),
        # Its own leave-one-out is the default, but that tears groups.
        RIDGE: RidgeClassifierCV(ALPHAS, cv=None if groups is None else folds),
        JOINED: LogisticRegressionCV(Cs=20, cv=folds, scoring="accuracy", max_iter=STEPS),
    }
    with threadpool_limits(1):
        return {
            name: _answered(model, *(joined if name == JOINED else last), y)
            for name, model in models.items()
        }


def folds_of(y: np.ndarray, groups: np.ndarray | None) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Five stratified folds, of whole groups where there are some."""
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    return list(kind(5, shuffle=True, random_state=0).split(y, y, groups))


def _answered(
    model: ClassifierMixin, X: np.ndarray, X_test: np.ndarray, y: np.ndarray
) -> dict[str, object]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fitted = make_pipeline(StandardScaler(), model).fit(X.astype(np.float64), y)
    X_test = X_test.astype(np.float64)
    return {
        "classes": fitted.classes_.tolist(),
        "predicted": fitted.predict(X_test),
        "probabilities": fitted.predict_proba(X_test) if hasattr(model, "predict_proba") else None,
        "unconverged": sum(issubclass(one.category, ConvergenceWarning) for one in told),
    }

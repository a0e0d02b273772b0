"""Temperature scaling: one number that makes a head's scores into probabilities."""

import numpy as np
from scipy.optimize import brentq

from classify.errors import CallError
from classify.evaluation.predictions import HeldOutPredictions
from classify.heads.models import UNSEEN_CLASS_SCORE

MAX_SAMPLE_ROWS = 50_000  # one number is learnt: more rows would not move it
MAX_SAMPLE_VALUES = 5_000_000  # nor would more than 5,000 rows of 1,000 classes
SEARCH_SPAN = 1e4  # the temperature is sought so many times above and below the usual margin
MAX_LOG_LOSS = 100.0  # the cap of a loss: a probability of 4e-44
MAX_BLOCK_VALUES = 2_000_000  # scores turned into probabilities at a time, 16 MB


def fit_temperature(decision_values: np.ndarray, y: np.ndarray) -> float:
    """The T > 0 for which softmax(scores / T) has the least mean log loss.

    Guo, Pleiss, Sun and Weinberger (2017), "On Calibration of Modern Neural Networks", ICML. The
    loss is convex in 1 / T, so T is where its derivative crosses zero: sought from 1e-4 to 1e4
    times the median margin (greatest score less the second), and one of these ends where the
    derivative does not cross zero in between.

    Where every truth has the greatest score, the loss falls all the way to T = 0, and the first
    error in new images would cost without limit. T is then where the mean probability of the truth
    is (n + 1) / (n + 2): as much as n right answers show, by Laplace's rule of succession.

    Parameters
    ----------
    decision_values : float array of shape (n, K)
        Of images that the head was not trained on. A sample (always the same) of 50,000 rows, or
        of 5 million scores, is used where there are more.
    y : int array of shape (n,)
        The column of each truth. Rows with a negative one are left out, and so are those whose
        class the head of their fold was not trained on: no temperature would help them.

    Returns
    -------
    float
        1 where there is nothing to learn it from: no rows, one column, or every row's greatest
        score there twice.

    Raises
    ------
    CallError
        If a score is NaN or positive infinity, or the shapes do not fit.
    """
    decision_values, y = np.asarray(decision_values), np.asarray(y)
    known = sample_rows(decision_values, y)
    if not len(known) or decision_values.shape[1] < 2:
        return 1.0
    below = subtract_row_max(decision_values[known])
    of_truth = below[np.arange(len(known)), y[known]]
    margin = -np.partition(below, -2, axis=1)[:, -2]
    if not margin.any():
        return 1.0
    unit = float(np.median(margin[margin > 0]))

    def slope(log_t: float) -> float:
        """Minus that by 1 / T: the truth's score less the score expected."""
        p = np.exp(below / np.exp(log_t))
        expected = (p * below).sum(axis=1) / p.sum(axis=1)
        return float((of_truth - expected).mean() / unit)

    def doubt(log_t: float) -> float:
        p = np.exp(of_truth / np.exp(log_t)) / np.exp(below / np.exp(log_t)).sum(axis=1)
        return float((len(p) + 1) / (len(p) + 2) - p.mean())

    crossing = doubt if (of_truth == 0).all() else slope
    low, high = np.log(unit) - np.log(SEARCH_SPAN), np.log(unit) + np.log(SEARCH_SPAN)
    # Both rise with T.
    if crossing(low) >= 0:
        return float(np.exp(low))
    if crossing(high) <= 0:
        return float(np.exp(high))
    return float(np.exp(brentq(crossing, low, high, xtol=1e-6)))


def sample_rows(
    decision_values: np.ndarray, y: np.ndarray, max_values: int = MAX_SAMPLE_VALUES
) -> np.ndarray:
    """Rows to calibrate by, ascending: those with a truth that could be found, at most so many."""
    if decision_values.ndim != 2 or y.shape != decision_values.shape[:1]:
        raise CallError(f"scores {decision_values.shape} and truths {y.shape} do not fit together")
    known = np.flatnonzero(y >= 0)
    known = known[decision_values[known, y[known]] != UNSEEN_CLASS_SCORE]
    most = min(MAX_SAMPLE_ROWS, max(1, max_values // max(1, decision_values.shape[1])))
    if len(known) > most:
        known = np.sort(np.random.default_rng(0).choice(known, most, replace=False))
    return known


def summarise_decision_values(
    rows: np.ndarray,
    y_true: np.ndarray,
    decision_values: np.ndarray,
    classes: np.ndarray,
    *,
    temperature: float | None,
    probabilistic: bool,
) -> HeldOutPredictions:
    """What a head's scores say of some images.

    Parameters
    ----------
    rows : int array of shape (n,)
        Rows of the cache.
    y_true : int array of shape (n,)
        Class numbers; one that has no column costs the greatest loss, 100.
    scores : float array of shape (n, K)
        The greatest wins; of equals, the first.
    classes : int array of shape (K,)
        The class number of each column, each once.
    temperature : float, or None
        For the calibrated probabilities, softmax(scores / temperature); NaN without one.
    probabilistic : bool
        Whether softmax(scores) are the head's own probabilities; NaN if not.

    Raises
    ------
    CallError
        If the temperature is not above 0, a score is NaN or positive infinity, or the shapes do
        not fit.
    """
    n, n_columns = decision_values.shape if decision_values.ndim == 2 else (-1, -1)
    if rows.shape != (n,) or y_true.shape != (n,) or classes.shape != (n_columns,) or not n_columns:
        raise CallError(
            f"rows {rows.shape}, truths {y_true.shape}, scores {decision_values.shape} and classes "
            f"{classes.shape} do not fit together"
        )
    if temperature is not None and not 0 < temperature < np.inf:
        raise CallError(f"a temperature is above 0 and finite, not {temperature}")
    numbers = np.concatenate([y_true, classes]) if n else classes
    column_of = np.full(int(numbers.max()) + 1, -1)
    column_of[classes] = np.arange(n_columns)
    predicted = np.empty(n, np.int64)
    own, calibrated = np.full((2, n), np.nan, np.float32), np.full((2, n), np.nan, np.float32)
    step = max(1, MAX_BLOCK_VALUES // n_columns)
    for start in range(0, n, step):
        part = slice(start, start + step)
        below = subtract_row_max(decision_values[part])
        column = column_of[y_true[part]]
        predicted[part] = classes[below.argmax(axis=1)]
        if probabilistic:
            own[:, part] = _confidence_and_loss(below, column)
        if temperature is not None:
            calibrated[:, part] = _confidence_and_loss(below / temperature, column)
    return HeldOutPredictions(
        rows=np.asarray(rows, np.int64),
        truth=np.asarray(y_true, np.int64),
        predicted=predicted,
        confidence=own[0],
        loss=own[1],
        calibrated_confidence=calibrated[0],
        calibrated_loss=calibrated[1],
    )


def subtract_row_max(decision_values: np.ndarray) -> np.ndarray:
    """Scores less the greatest of their row: float64 (n, K), at most 0 and finite."""
    decision_values = np.where(
        decision_values == UNSEEN_CLASS_SCORE, -np.inf, decision_values.astype(np.float64)
    )
    best = decision_values.max(axis=1, keepdims=True)
    if not np.isfinite(best).all():
        raise CallError("a head's scores are not finite numbers, so it says nothing of an image")
    decision_values -= best
    # Zero times minus infinity would be no number; the probability is 0 at either.
    np.maximum(decision_values, -1e100, out=decision_values)
    return decision_values


def _confidence_and_loss(below: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Probability of the best, and minus the logarithm of that of a column: (2, n).

    A column of -1 stands for a class without one.
    """
    total = np.exp(below).sum(axis=1)
    loss = np.log(total) - below[np.arange(len(below)), column]
    return np.stack([1 / total, np.where(column < 0, MAX_LOG_LOSS, np.minimum(loss, MAX_LOG_LOSS))])

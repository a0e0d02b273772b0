"""Temperature scaling: one number that makes a head's scores into probabilities."""

import numpy as np
from scipy.optimize import brentq

from classify.evaluation.predictions import (
    sample_rows,
    subtract_row_max,
)

SEARCH_SPAN = 1e4  # the temperature is sought so many times above and below the usual margin


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

"""Temperature scaling: one number that turns decision values into calibrated probabilities."""

import numpy as np
from scipy.optimize import brentq

from classify.evaluation.predictions import (
    sample_rows,
    subtract_row_max,
)

SEARCH_SPAN = 1e4  # the search spans this factor above and below the median margin


def fit_temperature(decision_values: np.ndarray, y: np.ndarray) -> float:
    """Fit the T > 0 for which softmax(decision values / T) has the least mean log loss.

    Guo, Pleiss, Sun and Weinberger (2017), "On Calibration of Modern Neural Networks", ICML. The
    loss is convex in 1 / T, so T is where its derivative is zero. The search covers 1e-4 to 1e4
    times the median margin (greatest value less the second), and returns one of these ends where
    the derivative has no zero in between.

    Where every truth has the greatest value, the loss falls all the way to T = 0, and one
    error in new images would cost an unbounded loss. T is then where the mean probability of the
    truth is (n + 1) / (n + 2): what n correct predictions support, by Laplace's rule of succession.

    Parameters
    ----------
    decision_values : float array of shape (n, K)
        Of images that the head was not trained on. A fixed random sample of 50,000 rows, or of
        5 million values, is used where there are more.
    y : int array of shape (n,)
        The column of each truth. Rows with a negative one are left out. So are rows whose class the
        head of their fold was not trained on: no temperature would help them.

    Returns
    -------
    float
        1 where it cannot be estimated: no rows, one column, or a tie for the greatest value in
        every row.

    Raises
    ------
    CallError
        If a decision value is NaN or positive infinity, or the shapes do not match.
    """
    decision_values, y = np.asarray(decision_values), np.asarray(y)
    known = sample_rows(decision_values, y)
    if not len(known) or decision_values.shape[1] < 2:
        return 1.0
    shifted = subtract_row_max(decision_values[known])
    truth_value = shifted[np.arange(len(known)), y[known]]
    margin = -np.partition(shifted, -2, axis=1)[:, -2]
    if not margin.any():
        return 1.0
    scale = float(np.median(margin[margin > 0]))

    def loss_derivative(log_temperature: float) -> float:
        """Minus the derivative by 1 / T: the truth's decision value less the expected one."""
        proba = np.exp(shifted / np.exp(log_temperature))
        expected = (proba * shifted).sum(axis=1) / proba.sum(axis=1)
        return float((truth_value - expected).mean() / scale)

    def laplace_gap(log_temperature: float) -> float:
        """(n + 1) / (n + 2) less the mean probability of the truth."""
        proba = np.exp(truth_value / np.exp(log_temperature)) / np.exp(
            shifted / np.exp(log_temperature)
        ).sum(axis=1)
        return float((len(proba) + 1) / (len(proba) + 2) - proba.mean())

    crossing = laplace_gap if (truth_value == 0).all() else loss_derivative
    low, high = np.log(scale) - np.log(SEARCH_SPAN), np.log(scale) + np.log(SEARCH_SPAN)
    # Both functions rise with T.
    if crossing(low) >= 0:
        return float(np.exp(low))
    if crossing(high) <= 0:
        return float(np.exp(high))
    return float(np.exp(brentq(crossing, low, high, xtol=1e-6)))

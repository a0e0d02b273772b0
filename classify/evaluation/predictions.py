"""Predictions of a head on held-out images: a few numbers for each, for every metric and chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from classify.errors import CallError

MAX_SAMPLE_ROWS = 50_000  # to fit one number; more rows would not change it

MAX_SAMPLE_VALUES = 5_000_000  # as many as 5,000 rows of 1,000 classes

MAX_LOG_LOSS = 100.0  # cap of a loss; a probability of 4e-44

MAX_BLOCK_VALUES = 2_000_000  # decision values per block, 16 MB

UNSEEN_CLASS_SCORE = -1e4  # decision value of a class without training images


@dataclass(frozen=True, eq=False)
class HeldOutPredictions:
    """One head's predictions on n images it was not trained on.

    Class numbers are positions in the task's list of classes. Two probabilities are stored for each
    image, not K, so that a million images with a thousand classes fit into memory.

    Attributes
    ----------
    rows : int64 array of shape (n,)
        Rows of the cache.
    truth, predicted : int64 arrays of shape (n,)
        Class numbers. A truth may be a class without training images.
    confidence : float32 array of shape (n,)
        The head's own probability of the predicted class; NaN where it gives decision values only.
    loss : float32 array of shape (n,)
        Minus the logarithm of the head's own probability of the true class, at most 100; or NaN.
    calibrated_confidence, calibrated_loss : float32 arrays of shape (n,)
        The same after calibration, which gives every head probabilities.
    """

    rows: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    calibrated_confidence: np.ndarray
    calibrated_loss: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["HeldOutPredictions"]) -> "HeldOutPredictions":
        """Concatenate predictions.

        Parameters
        ----------
        parts : sequence of HeldOutPredictions
            At least one.

        Returns
        -------
        HeldOutPredictions
        """
        return cls(
            *(
                np.concatenate([vars(part)[attribute.name] for part in parts])
                for attribute in fields(cls)
            )
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def calibrated_log_loss(self) -> float:
        """The mean of `calibrated_loss`; infinite where there are no images."""
        return float(self.calibrated_loss.mean()) if len(self) else math.inf

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct: bool array of shape (n,)."""
        return np.asarray(self.predicted == self.truth)


def sample_rows(
    decision_values: np.ndarray, y: np.ndarray, max_values: int = MAX_SAMPLE_VALUES
) -> np.ndarray:
    """Sample rows to calibrate on: those whose truth the head could predict.

    Parameters
    ----------
    decision_values : float array of shape (n, K)
    y : int array of shape (n,)
        The column of each truth; negative for a class without one.
    max_values : int
        The sample holds at most this many decision values, and at most 50,000 rows.

    Returns
    -------
    int array of shape (m,)
        Positions, ascending; always the same for the same input.

    Raises
    ------
    CallError
        If the shapes do not match.
    """
    if decision_values.ndim != 2 or y.shape != decision_values.shape[:1]:
        raise CallError(f"scores {decision_values.shape} and truths {y.shape} do not fit together")
    known = np.flatnonzero(y >= 0)
    known = known[decision_values[known, y[known]] != UNSEEN_CLASS_SCORE]
    max_rows = min(MAX_SAMPLE_ROWS, max(1, max_values // max(1, decision_values.shape[1])))
    if len(known) > max_rows:
        known = np.sort(np.random.default_rng(0).choice(known, max_rows, replace=False))
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
    """Reduce a head's decision values to predictions, confidences and losses.

    Parameters
    ----------
    rows : int array of shape (n,)
        Rows of the cache.
    y_true : int array of shape (n,)
        Class numbers. One that has no column gets the greatest loss, 100.
    decision_values : float array of shape (n, K)
        The greatest of a row is predicted; of equals, the first.
    classes : int array of shape (K,)
        The class number of each column, each once.
    temperature : float, or None
        For the calibrated probabilities, softmax(decision values / temperature); NaN without one.
    probabilistic : bool
        Whether softmax(decision values) are the head's own probabilities; NaN if not.

    Returns
    -------
    HeldOutPredictions

    Raises
    ------
    CallError
        If the temperature is not above 0, a decision value is NaN or positive infinity, or the
        shapes do not match.
    """
    n, n_columns = decision_values.shape if decision_values.ndim == 2 else (-1, -1)
    if rows.shape != (n,) or y_true.shape != (n,) or classes.shape != (n_columns,) or not n_columns:
        raise CallError(
            f"rows {rows.shape}, truths {y_true.shape}, scores {decision_values.shape} and classes "
            f"{classes.shape} do not fit together"
        )
    if temperature is not None and not 0 < temperature < np.inf:
        raise CallError(f"a temperature is above 0 and finite, not {temperature}")
    columns = renumber(y_true, classes)
    predicted = np.empty(n, np.int64)
    own, calibrated = np.full((2, n), np.nan, np.float32), np.full((2, n), np.nan, np.float32)
    block_size = max(1, MAX_BLOCK_VALUES // n_columns)
    for start in range(0, n, block_size):
        part = slice(start, start + block_size)
        shifted = subtract_row_max(decision_values[part])
        column = columns[part]
        predicted[part] = classes[shifted.argmax(axis=1)]
        if probabilistic:
            own[:, part] = _confidence_and_loss(shifted, column)
        if temperature is not None:
            calibrated[:, part] = _confidence_and_loss(shifted / temperature, column)
    return HeldOutPredictions(
        rows=np.asarray(rows, np.int64),
        truth=np.asarray(y_true, np.int64),
        predicted=predicted,
        confidence=own[0],
        loss=own[1],
        calibrated_confidence=calibrated[0],
        calibrated_loss=calibrated[1],
    )


def renumber(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Renumber classes by their positions in a list.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers; -1 for none.
    classes : int array of shape (K,)
        Class numbers, each once.

    Returns
    -------
    int array of shape (n,)
        Positions in `classes`; -1 for a class number that is not among them.
    """
    position = np.full(
        max(y.max(initial=-1), classes.max(initial=-1)) + 2, -1
    )  # index -1 reads the last entry, which is -1
    position[classes] = np.arange(len(classes))
    return np.asarray(position[y])


def subtract_row_max(decision_values: np.ndarray) -> np.ndarray:
    """Subtract from each decision value the greatest of its row.

    Parameters
    ----------
    decision_values : float array of shape (n, K)

    Returns
    -------
    float64 array of shape (n, K)
        At most 0, and finite.

    Raises
    ------
    CallError
        If the greatest value of a row is not finite.
    """
    decision_values = np.where(
        decision_values == UNSEEN_CLASS_SCORE, -np.inf, decision_values.astype(np.float64)
    )
    row_max = decision_values.max(axis=1, keepdims=True)
    if not np.isfinite(row_max).all():
        raise CallError("a head's scores are not finite numbers, so it says nothing of an image")
    decision_values -= row_max
    # Zero times minus infinity would be NaN. The probability is 0 for both values.
    np.maximum(decision_values, -1e100, out=decision_values)
    return decision_values


def _confidence_and_loss(shifted: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return the greatest probability, and minus the logarithm of a column's probability: (2, n).

    A column of -1 stands for a class that has none; its loss is `MAX_LOG_LOSS`.
    """
    normaliser = np.exp(shifted).sum(axis=1)
    loss = np.log(normaliser) - shifted[np.arange(len(shifted)), column]
    return np.stack(
        [1 / normaliser, np.where(column < 0, MAX_LOG_LOSS, np.minimum(loss, MAX_LOG_LOSS))]
    )

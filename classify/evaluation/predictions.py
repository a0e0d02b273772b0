"""What a head said of some images: a few numbers for each, enough for every score and chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from classify.errors import CallError

MAX_SAMPLE_ROWS = 50_000  # one number is learnt: more rows would not move it

MAX_SAMPLE_VALUES = 5_000_000  # nor would more than 5,000 rows of 1,000 classes

MAX_LOG_LOSS = 100.0  # the cap of a loss: a probability of 4e-44

MAX_BLOCK_VALUES = 2_000_000  # scores turned into probabilities at a time, 16 MB

UNSEEN_CLASS_SCORE = -1e4  # the score of a class that a model was not trained on


@dataclass(frozen=True, eq=False)
class HeldOutPredictions:
    """One head's answers on n images it was not trained on.

    Class numbers are positions in the task's list of classes. Two probabilities an image are kept
    and not all K, so that a million images with a thousand classes fit.

    Attributes
    ----------
    rows : int64 array of shape (n,)
        Rows of the cache.
    truth, predicted : int64 arrays of shape (n,)
        Class numbers; a truth of a class that the head never saw is kept.
    confidence : float32 array of shape (n,)
        The head's own probability of the predicted class; NaN where a head has scores only.
    loss : float32 array of shape (n,)
        Minus the logarithm of its own probability of the true class, at most 100; or NaN.
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
        """One after the other: at least one."""
        return cls(*(np.concatenate([vars(part)[f.name] for part in parts]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def calibrated_log_loss(self) -> float:
        """The mean of `calibrated_loss`; infinite where there are no images."""
        return float(self.calibrated_loss.mean()) if len(self) else math.inf

    @property
    def correct(self) -> np.ndarray:
        """Which are right: bool array of shape (n,)."""
        return np.asarray(self.predicted == self.truth)


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
    columns = renumber(y_true, classes)
    predicted = np.empty(n, np.int64)
    own, calibrated = np.full((2, n), np.nan, np.float32), np.full((2, n), np.nan, np.float32)
    step = max(1, MAX_BLOCK_VALUES // n_columns)
    for start in range(0, n, step):
        part = slice(start, start + step)
        below = subtract_row_max(decision_values[part])
        column = columns[part]
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


def renumber(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Number the classes anew.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers; -1 for none.
    classes : int array of shape (K,)
        The class number that each new number stands for, each once.

    Returns
    -------
    int array of shape (n,)
        Positions in `classes`; -1 for a class number that is not among them.
    """
    position = np.full(max(y.max(initial=-1), classes.max(initial=-1)) + 2, -1)  # -1 is the last
    position[classes] = np.arange(len(classes))
    return np.asarray(position[y])


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

"""What a constant guess reaches: the majority class, with the class priors as probabilities."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from classify.data.tasks import Task
from classify.evaluation.metrics import Interval, compute_metrics
from classify.evaluation.predictions import (
    UNSEEN_CLASS_SCORE,
    HeldOutPredictions,
    renumber,
    summarise_decision_values,
)
from classify.evaluation.selection_metric import COST, SelectionMetric
from classify.labels.folders import TEST


@dataclass(frozen=True)
class Baseline:
    """What the majority class reaches on the images that heads are measured on.

    Attributes
    ----------
    label : str
        The class with the most training images.
    is_tied : bool
        Whether another class has as many.
    validation, accuracy : float, or None
        Share of the held-out images and of the test images that are of this class.
    accuracy_ci : (float, float), or None
        95 % interval of `accuracy`.
    validation_metric, test_metric : float, or None
        The metric that heads are ranked by.
    scores : dict of str to number, interval or None
        The further metrics of the test images, as in `classify.heads.record.HeadResult`. The
        probabilities are the class priors.
    """

    label: str
    is_tied: bool
    validation: float | None
    accuracy: float | None
    accuracy_ci: Interval | None
    validation_metric: float | None
    test_metric: float | None
    scores: dict[str, Any] = field(default_factory=dict)


def measure_baseline(
    task: Task,
    metric: str,
    validation: HeldOutPredictions | None,
    test: HeldOutPredictions | None,
    *,
    seed: int = 0,
) -> Baseline:
    """Measure the guess that needs no image: the class priors of the training images.

    Parameters
    ----------
    task : Task
    metric : str
        Name of the metric that heads are ranked by. Of ``cost``, whose table it does not have, it
        gives None.
    validation, test : HeldOutPredictions, or None
        Of any head; only their rows and truths are used.
    seed : int
        Of the intervals.

    Returns
    -------
    Baseline
    """
    counts = np.bincount(task.y[task.split != TEST], minlength=len(task.classes))
    known = np.flatnonzero(counts)
    prior = np.full(len(counts), UNSEEN_CLASS_SCORE)
    prior[known] = np.log(counts[known] / counts.sum())
    classes = [task.classes[k] for k in known]

    def measure(
        held_out: HeldOutPredictions | None,
    ) -> tuple[float | None, HeldOutPredictions | None]:
        if held_out is None or not len(held_out):
            return None, None
        values = np.tile(prior[known], (len(held_out), 1))
        guesses = summarise_decision_values(
            held_out.rows, held_out.truth, values, known, temperature=1.0, probabilistic=True
        )
        if metric == COST:
            return None, guesses
        y = renumber(held_out.truth, known)
        return SelectionMetric(metric).compute(values, y, classes), guesses

    validation_metric, validated = measure(validation)
    test_metric, tested = measure(test)
    scores: dict[str, Any] = {}
    if tested is not None:
        units = task.units_for(tested.rows)
        scores = vars(compute_metrics(tested, len(task.classes), units, seed=seed)).copy()
    return Baseline(
        label=task.classes[int(counts.argmax())],
        is_tied=int((counts == counts.max()).sum()) > 1,
        validation=None if validated is None else float(validated.correct.mean()),
        accuracy=scores.pop("accuracy", None),
        accuracy_ci=scores.pop("accuracy_ci", None),
        validation_metric=validation_metric,
        test_metric=test_metric,
        scores=scores,
    )

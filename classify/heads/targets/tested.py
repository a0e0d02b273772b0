"""What is reported of a head on test images whose labels are not one class."""

from typing import Any

import numpy as np

from classify.data.targets.task import TargetTask
from classify.evaluation.metrics import estimate_proportion
from classify.evaluation.targets.metrics import (
    METRICS,
    compute_label_scores,
    compute_target_metric,
    compute_target_metrics,
    constant_predictions,
    count_grade_confusions,
)
from classify.evaluation.targets.predictions import TargetPredictions
from classify.heads.targets.fitted import FittedTargets
from classify.kinds import GRADE, MULTI, NUMBER


def describe_test(
    task: TargetTask,
    test: TargetPredictions,
    train_truth: np.ndarray,
    head: FittedTargets,
    seed: int,
) -> dict[str, Any]:
    """Describe the test images.

    Parameters
    ----------
    task : TargetTask
    test : TargetPredictions
        Of the head, for test images.
    train_truth : float64 array of shape (m, T)
        Labels of the training images, for the guess without an image.
    head : FittedTargets
        Its intervals are measured.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict of str to object
        ``metrics``, ``baseline``, and where the kind has them ``labels``, ``confusion`` and
        ``interval``, as in `classify.heads.targets.record.TargetResult`.
    """
    unit = task.units_for(test.rows)
    guess = constant_predictions(task.kind, train_truth, test.rows, test.truth)
    described: dict[str, Any] = {
        "metrics": compute_target_metrics(test, task.n_grades, unit, seed=seed),
        "baseline": {
            name: compute_target_metric(name, guess.truth, guess.values, None, task.n_grades)
            for name in METRICS[task.kind]
        },
    }
    if task.kind == MULTI:
        described["labels"] = compute_label_scores(test, task.names, unit, seed)
    if task.kind == GRADE:
        described["confusion"] = count_grade_confusions(test, len(task.names)).tolist()
    if task.kind == NUMBER and head.margin is not None:
        is_covered = np.abs(test.values - test.truth)[:, 0] <= head.margin
        share, interval = estimate_proportion(is_covered, unit, seed)
        described["interval"] = {
            "coverage": head.coverage,
            "margin": head.margin,
            "realised": share,
            "realised_ci": list(interval),
        }
    return described

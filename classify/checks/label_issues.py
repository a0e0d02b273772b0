"""Find label issues: images that a head not trained on them predicts to be of another class."""

from dataclasses import dataclass

import numpy as np

from classify.data.tasks import Task
from classify.evaluation.predictions import HeldOutPredictions
from classify.labels.folders import TRAIN

MIN_PROBABILITY_RATIO = 5.0  # of the proposed label to the given label


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label looks wrong.

    Attributes
    ----------
    row : int
        Row of the cache.
    given, proposed : str
        The label of the image, and the label that the head predicts.
    margin : float
        Probability of the proposed label minus that of the given label, from 0 to 1.
    """

    row: int
    given: str
    proposed: str
    margin: float


def find_label_issues(task: Task, predictions: HeldOutPredictions) -> list[LabelIssue]:
    """Find labels that look wrong, the most certain first.

    As in confident learning (C. Northcutt, L. Jiang and I. Chuang, 2021, "Confident Learning:
    Estimating Uncertainty in Dataset Labels", JAIR 70), the evidence is calibrated probabilities of
    held-out images. A label is listed if it is at most a fifth as probable as the proposed label,
    and labels are ordered by that ratio. The rule of the paper (the proposed label is as probable
    as it usually is where it is given) found fewer wrong labels in a list of the same length, and
    its order by margin far fewer at the top.

    Measured twice with 20 of 10,000 CIFAR-10 labels changed at random, SqueezeNet's last layer and
    a softmax of 72 % accuracy: 15 and 16 of them are listed among 1,020 labels, 8 and 13 in the
    first 100. Of 2,000 labels (65 % accuracy): 19 and 20 are listed among 260, 18 in the first 100.
    The rest are mostly hard images with correct labels. So the list is to be reviewed from its top,
    not to be used for automatic correction.

    Parameters
    ----------
    task : Task
        Labels, classes and split.
    predictions : HeldOutPredictions
        Held-out images, each with calibrated probabilities.

    Returns
    -------
    list of LabelIssue
        Empty if there are no calibrated probabilities. Classes without training images are left
        out, as no head can predict them.
    """
    trained = np.bincount(task.y[task.split == TRAIN], minlength=len(task.classes)) > 0
    # Zero where the prediction is the given label; comparisons with NaN are false.
    odds = np.log(predictions.calibrated_confidence.astype(float)) + predictions.calibrated_loss
    chosen = np.flatnonzero((odds >= np.log(MIN_PROBABILITY_RATIO)) & trained[predictions.truth])
    chosen = chosen[np.lexsort((predictions.rows[chosen], -odds[chosen]))]
    margin = predictions.calibrated_confidence - np.exp(-predictions.calibrated_loss)
    return [
        LabelIssue(
            int(predictions.rows[i]),
            task.classes[predictions.truth[i]],
            task.classes[predictions.predicted[i]],
            float(margin[i]),
        )
        for i in chosen
    ]

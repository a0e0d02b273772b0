"""Labels that look wrong: a head that did not learn from an image calls it something else."""

from dataclasses import dataclass

import numpy as np

from classify.data.folder_labels import TRAIN
from classify.data.tasks import Task
from classify.evaluation.predictions import HeldOutPredictions

MIN_PROBABILITY_RATIO = 5.0  # so many times likelier than the given label


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label looks wrong.

    Attributes
    ----------
    row : int
        Of the cache.
    given, proposed : str
        Its label, and the one that the head says.
    margin : float
        Probability of the proposed label less that of the given one, from 0 to 1.
    """

    row: int
    given: str
    proposed: str
    margin: float


def find_label_issues(task: Task, predictions: HeldOutPredictions) -> list[LabelIssue]:
    """List labels that look wrong, the surest first.

    As in confident learning (C. Northcutt, L. Jiang and I. Chuang, 2021, "Confident Learning:
    Estimating Uncertainty in Dataset Labels", JAIR 70) the evidence is calibrated probabilities of
    images that the head did not learn from. Listed is a label that is at most a fifth as probable
    as the one proposed, and the order is by that ratio. Their own rule (the proposed label is as
    probable as it usually is where it is given) found fewer at the same length of list, and their
    order by margin far fewer at its top.

    Measured with 20 of 10,000 CIFAR-10 labels changed at random, SqueezeNet's last layer and a
    softmax of 72 % accuracy: 15 and 16 of them are listed, among 1,020 in all, 8 and 13 of them
    in its first 100. Of 2,000 labels (65 %): 19 and 20 among 260, 18 in its first 100. Those are
    mostly hard images rightly labelled: a list to look at from its top, not to correct by.

    Parameters
    ----------
    task : Task
    predictions : HeldOutPredictions
        Of images that were held out, each with calibrated probabilities.

    Returns
    -------
    list of Suspect
        Empty where there are no calibrated probabilities. A class without training images is left
        out: no head could have said it.
    """
    taught = np.bincount(task.y[task.split == TRAIN], minlength=len(task.classes)) > 0
    # Zero where the head says what is given; NaN compares as false.
    odds = np.log(predictions.calibrated_confidence.astype(float)) + predictions.calibrated_loss
    chosen = np.flatnonzero((odds >= np.log(MIN_PROBABILITY_RATIO)) & taught[predictions.truth])
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

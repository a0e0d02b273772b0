"""Find label issues: images whose label is more likely wrong than the usual mistakes explain."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from classify.data.tasks import Task
from classify.evaluation.predictions import HeldOutPredictions
from classify.labels.folders import TRAIN

MIN_PROBABILITY_RATIO = 5.0  # of the proposed label to the given label
MIN_WRONG_PROBABILITY = 0.1  # below it, nine looks in ten would be in vain
MIN_LIKELIHOOD_RATIO = 2.71  # chi-square at 5 %, one-sided
SHARPENING_POWERS = np.arange(1.0, 3.1, 0.25)
SPREAD_CLASSES = 3  # among which a head spreads what it leaves to others than its prediction
MIN_PROBABILITY, MAX_RATE = 1e-40, 1 - 1e-9


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
    wrong_probability : float
        Estimated probability that the given label is wrong, from 0.1 to 1.
    """

    row: int
    given: str
    proposed: str
    margin: float
    wrong_probability: float


@dataclass(frozen=True)
class LabelReview:
    """The labels that look wrong, and what to expect of them.

    Attributes
    ----------
    issues : list of LabelIssue
        The most probably wrong first.
    n_judged : int
        Number of labels that were compared with a prediction.
    n_left_out : int
        Further labels that the head finds at most a fifth as probable as another. So many are
        expected of a head that makes mistakes, so they are not listed.
    noise_rate : float
        Estimated share of wrong labels among all that were judged.
    """

    issues: list[LabelIssue]
    n_judged: int
    n_left_out: int
    noise_rate: float

    @property
    def expected_wrong(self) -> float:
        """Expected number of wrong labels among `issues`."""
        return sum(issue.wrong_probability for issue in self.issues)

    def describe(self) -> str:
        """Say in sentences how many of the listed labels to expect wrong, and what is left out.

        Returns
        -------
        str
        """
        expected = max(1, round(self.expected_wrong))
        text = (
            f"By the head's own doubts perhaps {expected:,} of {len(self.issues):,} are wrong: "
            "look before you change one."
        )
        if self.n_left_out:
            labels = "label" if self.n_left_out == 1 else "labels"
            text += (
                f" {self.n_left_out:,} further {labels} that it doubts are left out: its own "
                "mistakes explain so many."
            )
        return text


def review_labels(task: Task, predictions: HeldOutPredictions) -> LabelReview:
    """Find labels that look wrong, the most probably wrong first, and tell how many to expect.

    The evidence is calibrated probabilities of held-out images, as in confident learning
    (C. Northcutt, L. Jiang and I. Chuang, 2021, "Confident Learning: Estimating Uncertainty in
    Dataset Labels", JAIR 70). A mistaken head finds many correct labels improbable. A calibrated
    one says how many. So each label is one draw of a mixture: with probability ``1 - noise rate``
    from the head's probabilities, otherwise a wrong label, each of them alike. The noise rate is
    that of the greatest likelihood, and Bayes' rule gives the probability that a label is wrong
    (N. Natarajan and others, 2013, "Learning with Noisy Labels", NIPS, has the noise model).

    A label is listed if it is wrong with a probability of at least 0.1, and at most a fifth as
    probable as the proposed label. Where the head's mistakes explain all improbable labels, none
    is listed.

    Measured on 5,000 CIFAR-10 images with EfficientNet-Lite0's last layer, a softmax of 76 %
    accuracy, and 100 labels changed at random, three times: 119, 121 and 96 labels are listed, of
    which 69, 66 and 55 are wrong, and 47, 49 and 36 were expected; of the first 50, 41, 41 and 36
    are. With 25 changed, 48 are listed, 16 are wrong, and 16 were expected. With none changed, none
    is listed. The ratio alone lists 436 to 471 labels each time. Wrong labels that a class is often
    mistaken for are harder to find than these, and fewer are expected than there are.

    Parameters
    ----------
    task : Task
        Labels, classes and split.
    predictions : HeldOutPredictions
        Held-out images, each with calibrated probabilities.

    Returns
    -------
    LabelReview
        Empty if there are no calibrated probabilities. Classes without training images are left
        out, as no head can predict them.
    """
    trained = np.bincount(task.y[task.split == TRAIN], minlength=len(task.classes)) > 0
    is_judged = ~np.isnan(predictions.calibrated_loss)
    judged = np.flatnonzero(is_judged & trained[predictions.truth])
    loss = predictions.calibrated_loss[judged].astype(float)
    confidence = predictions.calibrated_confidence[judged].astype(float)
    given = np.maximum(np.exp(-loss), MIN_PROBABILITY)
    noise_rate, wrong = _estimate_wrong(
        confidence, given, predictions.correct[judged], int(trained.sum())
    )
    # The ratio is 1 where the prediction is the given label.
    log_ratio = np.log(confidence) + loss
    is_doubted = log_ratio >= np.log(MIN_PROBABILITY_RATIO)
    listed = np.flatnonzero(is_doubted & (wrong >= MIN_WRONG_PROBABILITY))
    order = np.lexsort((predictions.rows[judged[listed]], -log_ratio[listed], -wrong[listed]))
    issues = [
        LabelIssue(
            int(predictions.rows[judged[i]]),
            task.classes[predictions.truth[judged[i]]],
            task.classes[predictions.predicted[judged[i]]],
            float(confidence[i] - given[i]),
            float(wrong[i]),
        )
        for i in listed[order]
    ]
    return LabelReview(
        issues, int(is_judged.sum()), int(is_doubted.sum()) - len(issues), noise_rate
    )


def _estimate_wrong(
    confidence: np.ndarray, given: np.ndarray, correct: np.ndarray, n_classes: int
) -> tuple[float, np.ndarray]:
    """Estimate the share of wrong labels, and the probability of each to be wrong.

    Wrong labels make the temperature too high. So probabilities are sharpened by the power that
    gives the greatest likelihood, together with the noise rate.

    Parameters
    ----------
    confidence, given : float arrays of shape (n,)
        Calibrated probabilities of the predicted and of the given label.
    correct : bool array of shape (n,)
        Whether both are the same.
    n_classes : int
        K, the number of classes that the head knows.
    """
    none = 0.0, np.zeros(len(given))
    if not len(given) or n_classes < 2:
        return none
    fits, clean_likelihood = [], -np.inf
    for power in SHARPENING_POWERS:
        sharpened = _sharpen(confidence, given, correct, power, n_classes)
        # Of a wrong label, the truth is any of the other classes, and the label any but the truth.
        otherwise = (1 - sharpened) / (n_classes - 1)
        rate = _fit_rate(sharpened, otherwise)
        likelihood = (1 - rate) * sharpened + rate * otherwise
        fits.append((float(np.log(likelihood).sum()), rate, rate * otherwise / likelihood))
        clean_likelihood = max(clean_likelihood, float(np.log(sharpened).sum()))
    best_likelihood, rate, wrong = max(fits, key=lambda fit: fit[0])
    # A likelihood ratio test: heads make a few mistakes that look like wrong labels.
    return (
        (rate, wrong) if 2 * (best_likelihood - clean_likelihood) > MIN_LIKELIHOOD_RATIO else none
    )


def _sharpen(
    confidence: np.ndarray, given: np.ndarray, correct: np.ndarray, power: float, n_classes: int
) -> np.ndarray:
    """Raise probabilities to a power; return those of the given labels, scaled to a sum of one.

    Only two probabilities of an image are known. The others are taken as a few of equal size.
    """
    n_spread = min(SPREAD_CLASSES, n_classes - 1)
    others = n_spread * (np.maximum(1 - confidence, 0) / n_spread) ** power
    powers = given**power
    total = confidence**power + np.maximum(others, np.where(correct, 0, powers))
    return np.asarray(np.clip(powers / total, MIN_PROBABILITY, 1))


def _fit_rate(given: np.ndarray, otherwise: np.ndarray) -> float:
    """Fit the rate of the mixture ``(1 - rate) * given + rate * otherwise``, by likelihood."""

    def slope(rate: float) -> float:
        # The derivative of the log likelihood falls as the rate rises.
        return float(np.mean((otherwise - given) / ((1 - rate) * given + rate * otherwise)))

    if slope(0.0) <= 0:
        return 0.0
    return MAX_RATE if slope(MAX_RATE) >= 0 else float(brentq(slope, 0.0, MAX_RATE))

"""Any number of labels an image: a binary cross-entropy for each label that is known."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, xlogy
from torch import Tensor, nn

from classify.evaluation.targets.metrics import PRIMARY, choose_thresholds
from classify.evaluation.targets.titles import format_metric_name
from classify.evaluation.temperature import fit_temperature
from classify.finetuning.config import TrainConfig
from classify.finetuning.network import Classifier
from classify.finetuning.objectives.objective import AnyHead, Decided, Loss
from classify.finetuning.objectives.targets import TargetObjective, rescale_outputs
from classify.heads.source import FeatureSource
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.registry import LOGISTIC
from classify.kinds import MULTI
from classify.training.targets.selection import TrainedTargets

MIN_POSITIVES = 10
"""Validation images with a label, from which its threshold is chosen by itself."""


@dataclass(frozen=True)
class MultiObjective(TargetObjective):
    """T labels; 1 where an image has one, 0 where not, NaN where it is not known.

    Attributes
    ----------
    names : tuple of str
        The labels.
    """

    names: tuple[str, ...]
    kind = MULTI
    title = format_metric_name(PRIMARY[MULTI])
    probe = LOGISTIC
    mixes = True  # two images laid over each other show what both show; NaN stays NaN

    def make_loss(self, y: np.ndarray, config: TrainConfig, device: str) -> Loss:
        """Make the mean binary cross-entropy of the labels that are known."""

        def loss(outputs: Tensor, target: Tensor) -> Tensor:
            known = ~target.isnan()
            losses = nn.functional.binary_cross_entropy_with_logits(
                outputs.float(), target.nan_to_num().float(), reduction="none"
            )
            return (losses * known).sum() / known.sum().clamp(min=1)

        return loss

    def values_of(self, outputs: np.ndarray, decided: Decided | None = None) -> np.ndarray:
        """Return the probabilities of the labels."""
        slope = 1.0 if decided is None else decided["calibration"][0]
        return np.asarray(expit(outputs.astype(np.float64) * slope))

    def init_at_random(self, classifier: Classifier, y: np.ndarray) -> None:
        """Let every label begin with its frequency."""
        share = _compute_shares(y)
        with torch.no_grad():
            classifier.out.bias.copy_(torch.from_numpy(np.log(share / (1 - share))))

    def measure_guess(self, y: np.ndarray) -> float:
        """Measure the mean log loss of the labels' frequencies."""
        share = _compute_shares(y)
        return float(-(xlogy(share, share) + xlogy(1 - share, 1 - share)).mean())

    def copy_probe(self, classifier: Classifier, probe: TrainedTargets) -> None:
        """Copy a logistic regression of each label."""
        classifier.init_from(probe.model)  # type: ignore[arg-type]

    def init_from_head(self, classifier: Classifier, head: AnyHead) -> None:
        """Copy a linear head, as log odds."""
        model = head.scorer
        if isinstance(head, FittedTargets) and head.calibration is not None:
            slope, bias = head.calibration
            model = rescale_outputs(model, slope, bias)  # type: ignore[arg-type]
        classifier.init_from(model)  # type: ignore[arg-type]

    def decide(self, outputs: np.ndarray, y: np.ndarray, unit: np.ndarray) -> Decided:
        """Fit one temperature of all labels, and a threshold of each.

        A label that fewer than `MIN_POSITIVES` images have gets the threshold that is best for all
        labels together: its own would rest on chance.
        """
        known = ~np.isnan(y)
        log_odds, truth = outputs[known].astype(np.float64), y[known].astype(np.intp)
        temperature = fit_temperature(np.stack([np.zeros(len(truth)), log_odds], axis=1), truth)
        calibration = np.zeros((2, len(self.names)))
        calibration[0] = 1 / temperature
        proba = self.values_of(outputs, {"calibration": calibration})
        shared = choose_thresholds(y[known][:, None], proba[known][:, None])
        is_rare = (y == 1).sum(axis=0) < MIN_POSITIVES
        thresholds = np.where(is_rare, shared, choose_thresholds(y, proba))
        return {"calibration": calibration, "thresholds": thresholds}

    def make_head(
        self, classifier: Classifier, source: FeatureSource, seen: np.ndarray, decided: Decided
    ) -> FittedTargets:
        """Package a classifier as a head with probabilities and thresholds."""
        return self.pack(LOGISTIC, classifier.to_model(), source, seen, **decided)


def _compute_shares(y: np.ndarray) -> np.ndarray:
    """Return the share of each label among the images where it is known, above 0 and below 1."""
    return np.asarray(((y == 1).sum(axis=0) + 1) / ((~np.isnan(y)).sum(axis=0) + 2))

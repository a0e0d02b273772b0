"""A number an image: Huber's loss of the standardised number."""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from classify.doubt.conformal import DEFAULT_COVERAGE, fit_margin
from classify.evaluation.targets.metrics import PRIMARY
from classify.evaluation.targets.titles import format_metric_name
from classify.finetuning.config import TrainConfig
from classify.finetuning.network import Classifier
from classify.finetuning.objectives.objective import AnyHead, Decided, Loss
from classify.finetuning.objectives.targets import TargetObjective, rescale_outputs
from classify.heads.models import LinearModel, MLPModel
from classify.heads.source import FeatureSource
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.registry import RIDGE
from classify.kinds import NUMBER
from classify.training.targets.selection import TrainedTargets

HEAD_NAME = "linear"
HUBER_DELTA = 1.0
"""Errors are squared up to so many standard deviations of the number, and linear beyond. So the
start, a ridge regression, is one of nearly the same loss, and of a batch of 32 images one with a
number far from all others, or mistyped, does not outweigh the rest (P. J. Huber, 1964, "Robust
Estimation of a Location Parameter", Annals of Mathematical Statistics 35)."""


@dataclass(frozen=True)
class NumberObjective(TargetObjective):
    """One number; the network gives it in standard deviations from the mean.

    Attributes
    ----------
    names : tuple of str
        The name of the number.
    mean, scale : float
        Mean and standard deviation of the training images, which the saved head has in its last
        layer.
    """

    names: tuple[str, ...]
    mean: float = 0.0
    scale: float = 1.0
    kind = NUMBER
    title = format_metric_name(PRIMARY[NUMBER])
    probe = RIDGE

    def learn_scale(self, y: np.ndarray) -> "NumberObjective":
        """Take over mean and standard deviation."""
        return replace(self, mean=float(y.mean()), scale=float(y.std()))

    def make_loss(self, y: np.ndarray, config: TrainConfig, device: str) -> Loss:
        """Make Huber's loss of the standardised number."""

        def loss(outputs: Tensor, target: Tensor) -> Tensor:
            standardised = ((target - self.mean) / self.scale).float()
            return nn.functional.huber_loss(outputs.float(), standardised, delta=HUBER_DELTA)

        return loss

    def values_of(self, outputs: np.ndarray, decided: Decided | None = None) -> np.ndarray:
        """Return the numbers."""
        return outputs.astype(np.float64) * self.scale + self.mean

    def init_at_random(self, classifier: Classifier, y: np.ndarray) -> None:
        """Leave the weights as they are: outputs near 0 are the mean."""

    def copy_probe(self, classifier: Classifier, probe: TrainedTargets) -> None:
        """Copy a ridge regression."""
        self._copy(classifier, probe.model)  # type: ignore[arg-type]

    def init_from_head(self, classifier: Classifier, head: AnyHead) -> None:
        """Copy a linear head."""
        self._copy(classifier, head.scorer)  # type: ignore[arg-type]

    def _copy(self, classifier: Classifier, model: LinearModel | MLPModel) -> None:
        model = rescale_outputs(model, 1 / self.scale, -self.mean / self.scale)
        classifier.init_from(model)  # type: ignore[arg-type]

    def decide(self, outputs: np.ndarray, y: np.ndarray, unit: np.ndarray) -> Decided:
        """Find the width of intervals; None where the validation images are too few."""
        errors = np.abs(self.values_of(outputs) - y)[:, 0]
        margin = fit_margin(errors, unit, DEFAULT_COVERAGE)
        # Where all errors are 0 there is no width to speak of.
        return {"margin": margin, "coverage": DEFAULT_COVERAGE} if margin else {}

    def make_head(
        self, classifier: Classifier, source: FeatureSource, seen: np.ndarray, decided: Decided
    ) -> FittedTargets:
        """Package a classifier as a head whose last layer gives the number itself."""
        scorer = rescale_outputs(classifier.to_model(), self.scale, self.mean)
        return self.pack(HEAD_NAME, scorer, source, seen, **decided)

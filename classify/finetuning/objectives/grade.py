"""One of several ordered grades: a score, and cutpoints between the grades."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from torch import Tensor, nn

from classify.evaluation.targets.metrics import PRIMARY
from classify.evaluation.targets.titles import format_metric_name
from classify.finetuning.config import TrainConfig
from classify.finetuning.network import Classifier
from classify.finetuning.objectives.objective import AnyHead, Decided, Loss
from classify.finetuning.objectives.targets import TargetObjective, rescale_outputs
from classify.heads.source import FeatureSource
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.registry import ORDINAL
from classify.kinds import GRADE
from classify.training.targets.selection import TrainedTargets

MIN_GAP = 1e-6  # between cutpoints, so that a logarithm is finite
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class GradeObjective(TargetObjective):
    """One of G grades, as positions from 0.

    The loss is that of the proportional-odds model (P. McCullagh, 1980, "Regression Models for
    Ordinal Data", Journal of the Royal Statistical Society B 42), of which the start, an `ordinal`
    head, is the minimum on frozen features. Cross-entropy of grades as classes would not know that
    a neighbouring grade is less wrong than a far one.

    Attributes
    ----------
    names : tuple of str
        The grades from the lowest.
    """

    names: tuple[str, ...]
    kind = GRADE
    title = format_metric_name(PRIMARY[GRADE])
    probe = ORDINAL

    @property
    def n_outputs(self) -> int:
        """One score."""
        return 1

    @property
    def n_cutpoints(self) -> int:
        """G - 1: the network gives the log odds of a grade above each of the lower ones."""
        return len(self.names) - 1

    @property
    def n_grades(self) -> int | None:
        """G."""
        return len(self.names)

    def make_loss(self, y: np.ndarray, config: TrainConfig, device: str) -> Loss:
        """Make the negative log probability of the grade."""
        return lambda outputs, target: compute_ordinal_loss(outputs, target[:, 0].long())

    def values_of(self, outputs: np.ndarray, decided: Decided | None = None) -> np.ndarray:
        """Return the grades: as many as there are cutpoints below the score."""
        return np.asarray((outputs > 0).sum(axis=1), np.float64)[:, None]

    def init_at_random(self, classifier: Classifier, y: np.ndarray) -> None:
        """Let every grade begin with its frequency."""
        counts = np.bincount(y[:, 0].astype(np.intp), minlength=len(self.names)) + 1
        below = np.cumsum(counts)[:-1] / counts.sum()
        classifier.init_cutpoints(np.log(below / (1 - below)))

    def measure_guess(self, y: np.ndarray) -> float:
        """Measure the mean log loss of the grades' frequencies."""
        share = np.unique(y[:, 0], return_counts=True)[1] / len(y)
        return float(-xlogy(share, share).sum())

    def copy_probe(self, classifier: Classifier, probe: TrainedTargets) -> None:
        """Copy an ordinal regression."""
        classifier.init_from(probe.model)  # type: ignore[arg-type]
        classifier.init_cutpoints(probe.cutpoints)  # type: ignore[arg-type]

    def compare_labels(self, head: AnyHead) -> dict[str, tuple[Any, Any]]:
        """Compare the kinds of labels, the grades, and what they are decided by."""
        compared = super().compare_labels(head)
        if isinstance(head, FittedTargets) and head.cutpoints is None:
            compared["output"] = ("one for each grade", "one, with cutpoints: --head ordinal")
        return compared

    def init_from_head(self, classifier: Classifier, head: AnyHead) -> None:
        """Copy a linear head with cutpoints."""
        classifier.init_from(head.scorer)  # type: ignore[arg-type]
        classifier.init_cutpoints(head.cutpoints)  # type: ignore[union-attr,arg-type]

    def decide(self, outputs: np.ndarray, y: np.ndarray, unit: np.ndarray) -> Decided:
        """Fit a temperature of score and cutpoints, which softens probabilities where it gains."""
        log_odds, grades = torch.from_numpy(outputs).double(), torch.tensor(y[:, 0]).long()

        def measure(log_temperature: float) -> float:
            return float(compute_ordinal_loss(log_odds / np.exp(log_temperature), grades))

        bounds = (0.0, np.log(MAX_TEMPERATURE))
        found = minimize_scalar(measure, bounds=bounds, method="bounded")
        gains = found.fun < measure(0.0)
        return {"temperature": float(np.exp(found.x)) if gains else 1.0}

    def make_head(
        self, classifier: Classifier, source: FeatureSource, seen: np.ndarray, decided: Decided
    ) -> FittedTargets:
        """Package a classifier as a head with cutpoints."""
        slope = 1 / decided["temperature"]
        scorer = rescale_outputs(classifier.to_model(), slope)
        cutpoints = classifier.compute_cutpoints().detach().cpu().double().numpy() * slope
        return self.pack(ORDINAL, scorer, source, seen, cutpoints=cutpoints)


def compute_ordinal_loss(log_odds: Tensor, grade: Tensor) -> Tensor:
    """Compute the mean negative log probability of grades.

    Parameters
    ----------
    log_odds : Tensor of shape (B, G - 1)
        Of a grade above each but the highest, descending along a row.
    grade : int Tensor of shape (B,)

    Returns
    -------
    Tensor
        A scalar, in nats.
    """
    log_odds = log_odds if log_odds.dtype == torch.float64 else log_odds.float()
    n_cutpoints = log_odds.shape[1]
    is_lowest, is_highest = grade == 0, grade == n_cutpoints
    above = log_odds.gather(1, grade.clamp(max=n_cutpoints - 1)[:, None])[:, 0]
    from_here = log_odds.gather(1, (grade - 1).clamp(min=0)[:, None])[:, 0]
    # P(grade) = expit(from here) - expit(above), without cancellation.
    gap = (from_here - above).clamp(min=MIN_GAP)
    between = torch.log(-torch.expm1(-gap))
    log_proba = (
        nn.functional.logsigmoid(-above).masked_fill(is_highest, 0)
        + nn.functional.logsigmoid(from_here).masked_fill(is_lowest, 0)
        + between.masked_fill(is_lowest | is_highest, 0)
    )
    return -log_proba.mean()

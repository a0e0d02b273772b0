"""One class an image: softmax cross-entropy, with one temperature in the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from classify.data.preparation import STANDARDISE
from classify.data.splits import split_validation
from classify.errors import TooFewImagesError
from classify.evaluation.temperature import fit_temperature
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets.activations import ActivationDataset
from classify.finetuning.datasets.images import ImageDataset
from classify.finetuning.network import Classifier
from classify.finetuning.objectives.objective import AnyHead, Decided, Loss, Objective
from classify.heads.fitted import FittedHead
from classify.heads.models import LinearModel
from classify.heads.registry import get_head_spec
from classify.heads.source import FeatureSource
from classify.kinds import CLASS
from classify.training.train import train
from classify.training.training_set import make_training_set
from featurize.progress import Say

SOFTMAX = get_head_spec("softmax")
PROBE_LOSS_SLACK = 0.1
"""How much the log loss of the initial probe may exceed the lowest, for stronger regularisation.
On easily separable classes the best probe has very large weights. Then small changes of the network
below it change the decision values much."""


@dataclass(frozen=True)
class ClassObjective(Objective):
    """One of K classes; labels are their numbers, int (n,).

    Attributes
    ----------
    names : tuple of str
        The classes.
    """

    names: tuple[str, ...]
    kind = CLASS
    title = ""  # accuracy, as ever

    @property
    def key(self) -> dict[str, Any]:
        """Nothing: so it was before there were other kinds."""
        return {}

    def check_config(self, config: TrainConfig, say: Say) -> TrainConfig:
        """Return the options as they are: all are for classes."""
        return config

    def split_validation(
        self, y: np.ndarray, groups: Any, validation: Any, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Split off a tenth of every class. See `classify.data.splits.split_validation`."""
        return split_validation(y, list(self.names), groups, validation, seed)

    def check_readable(
        self, wanted: np.ndarray, read: np.ndarray, purpose: str, failures: Mapping[str, str]
    ) -> None:
        """Refuse a class of which no image can be read."""
        missing = np.setdiff1d(wanted, read)
        if len(missing):
            path, reason = next(iter(failures.items()))
            raise TooFewImagesError(
                f"no image of class {self.names[missing[0]]!r} to {purpose} can be "
                f"read ({path}: {reason})"
            )

    def make_loss(self, y: np.ndarray, config: TrainConfig, device: str) -> Loss:
        """Make the cross-entropy, with the weights of the classes."""
        weights = _compute_class_weights(y, len(self.names), config.class_weight)
        if weights is not None:
            weights = weights.to(device)

        def loss(outputs: Tensor, target: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, target, weights)

        return loss

    def measure(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, float | None]:
        """Return the mean cross-entropy, in nats, and the accuracy."""
        y_true = torch.from_numpy(np.asarray(y))
        loss = float(nn.functional.cross_entropy(torch.from_numpy(outputs), y_true))
        return loss, float((outputs.argmax(axis=1) == y).mean())

    def init_from_probe(
        self,
        classifier: Classifier,
        embeddings: np.ndarray,
        training: ImageDataset | ActivationDataset,
        config: TrainConfig,
    ) -> None:
        """Start from a softmax head, regularised a little more strongly than is best."""
        classes, y = np.unique(training.y, return_inverse=True)
        training_set = make_training_set(
            SOFTMAX,
            embeddings,
            y,
            classes,
            np.arange(len(y)),
            class_weight=config.class_weight,
            seed=config.seed,
            loss_tol=PROBE_LOSS_SLACK,
        )
        with threadpool_limits(1):
            probe = train(SOFTMAX, training_set)
        classifier.init_from(probe.scorer)  # type: ignore[arg-type]

    def init_at_random(self, classifier: Classifier, y: np.ndarray) -> None:
        """Leave the weights as they are."""

    def compare_labels(self, head: AnyHead) -> dict[str, tuple[Any, Any]]:
        """Compare the kinds of labels, and the classes."""
        if isinstance(head, FittedHead):
            return {"classes": (list(head.classes), list(self.names))}
        return {"kind of labels": (head.kind, self.kind)}

    def init_from_head(self, classifier: Classifier, head: AnyHead) -> None:
        """Copy the weights."""
        classifier.init_from(head.scorer)  # type: ignore[arg-type]

    def decide(self, outputs: np.ndarray, y: np.ndarray, unit: np.ndarray) -> Decided:
        """Fit the temperature, which divides decision values."""
        return {"temperature": fit_temperature(outputs, y)}

    def judge(self, outputs: np.ndarray, y: np.ndarray, decided: Decided) -> list[bool]:
        """Say whether each image is predicted correctly."""
        return list((outputs.argmax(axis=1) == y).tolist())

    def make_head(
        self, classifier: Classifier, source: FeatureSource, seen: np.ndarray, decided: Decided
    ) -> FittedHead:
        """Package a classifier as a head with probabilities."""
        scorer = classifier.to_model()
        return FittedHead(
            head="softmax" if isinstance(scorer, LinearModel) else "mlp",
            classes=list(self.names),
            prepare=STANDARDISE,
            scorer=scorer,
            probabilistic=True,
            temperature=decided["temperature"],
            settings={},
            task="",
            source=source,
            record={},
            seen=seen,
        )


def _compute_class_weights(y: np.ndarray, n_classes: int, option: str | None) -> Tensor | None:
    if option is None:
        return None
    counts = np.bincount(y, minlength=n_classes)
    return torch.from_numpy(np.asarray(len(y) / (n_classes * counts), np.float32))

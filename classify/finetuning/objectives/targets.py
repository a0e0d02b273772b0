"""What several labels, numbers and grades have in common as objectives of a network."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from classify.data.features import FeatureRows
from classify.data.preparation import STANDARDISE
from classify.data.targets.stratify import plan_target_folds, split_target_validation
from classify.data.targets.task import check_learnable
from classify.errors import CallError, TooFewImagesError
from classify.evaluation.targets.metrics import PRIMARY, compute_target_metric
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets.activations import ActivationDataset
from classify.finetuning.datasets.images import ImageDataset
from classify.finetuning.network import Classifier
from classify.finetuning.objectives.objective import AnyHead, Decided, Objective
from classify.heads.models import LinearModel, MLPModel
from classify.heads.source import FeatureSource
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.registry import ORDINAL, get_target_head_spec
from classify.kinds import CLASS
from classify.training.targets.selection import TrainedTargets
from classify.training.targets.target_set import TargetSet
from classify.training.targets.train import train_targets
from classify.training.training_set import MAX_IN_MEMORY_BYTES
from featurize.progress import Say

PROBE_LOSS_SLACK = 0.05
"""How much of the log loss of a constant guess the initial probe may lose, for stronger
regularisation: see `classify.finetuning.objectives.classes.PROBE_LOSS_SLACK`."""


class TargetObjective(Objective):
    """An objective for labels that are not one class, float64 (n, T).

    Attributes
    ----------
    probe : str
        The head that training starts from.
    mixes : bool
        Whether labels of two images can be mixed as the images are.
    """

    probe: ClassVar[str]
    mixes: ClassVar[bool] = False

    @property
    def n_grades(self) -> int | None:
        """Number of grades; None for other kinds."""
        return None

    def check_config(self, config: TrainConfig, say: Say) -> TrainConfig:
        """Refuse class weights; leave mixup out where labels cannot be mixed."""
        if config.class_weight is not None:
            raise CallError(
                f"class weights are for classes, and labels of the kind {self.kind} have none: "
                "leave --class-weight out"
            )
        if not config.mixup or self.mixes:
            return config
        say(
            f"mixup is left out: what lies between two images is not known to have the {self.kind} "
            "between theirs"
        )
        return replace(config, mixup=0.0)

    def split_validation(
        self, y: np.ndarray, groups: Any, validation: Any, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Split off a tenth with about the same labels as all images."""
        masks = split_target_validation(self.kind, y, groups, validation, seed)
        check_learnable("this training", self.kind, self.names, y[masks[0]])
        return masks

    def check_readable(
        self, wanted: np.ndarray, read: np.ndarray, purpose: str, failures: Mapping[str, str]
    ) -> None:
        """Refuse a part of which no image can be read."""
        if not len(read):
            path, reason = next(iter(failures.items()))
            raise TooFewImagesError(f"no image to {purpose} can be read ({path}: {reason})")

    def measure(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, float | None]:
        """Return the mean loss, and the metric that heads of this kind are ranked by."""
        loss = self.make_loss(y, TrainConfig(), "cpu")(torch.from_numpy(outputs), torch.tensor(y))
        values = self.values_of(outputs)
        return float(loss), compute_target_metric(
            PRIMARY[self.kind], y, values, n_grades=self.n_grades
        )

    @abstractmethod
    def values_of(self, outputs: np.ndarray, decided: Decided | None = None) -> np.ndarray:
        """Turn outputs into predictions as numbers.

        Parameters
        ----------
        outputs : float32 array of shape (n, K)
        decided : mapping of str to object, optional
            As `decide` returns it.

        Returns
        -------
        float64 array of shape (n, T)
            As `classify.heads.targets.fitted.FittedTargets.values_of` gives them.
        """

    def judge(self, outputs: np.ndarray, y: np.ndarray, decided: Decided) -> list[np.ndarray]:
        """Return the predicted values of each image."""
        return list(self.values_of(outputs, decided))

    def init_from_probe(
        self,
        classifier: Classifier,
        embeddings: np.ndarray,
        training: ImageDataset | ActivationDataset,
        config: TrainConfig,
    ) -> None:
        """Start from the head that `probe` names; from a part of the images if they are many."""
        chosen = np.arange(len(embeddings))
        n_most = MAX_IN_MEMORY_BYTES // embeddings[:1].nbytes
        if self.probe == ORDINAL and len(chosen) > n_most:  # its solver copies all features
            rng = np.random.default_rng(config.seed)
            chosen = np.sort(rng.choice(chosen, n_most, replace=False))
        y, contents = training.y[chosen], training.sha256[chosen]
        unit = np.unique(contents, axis=0, return_inverse=True)[1].ravel()
        nothing = np.zeros(len(y), bool)
        target_set = TargetSet(
            self.kind,
            FeatureRows((embeddings,), chosen),
            y,
            self.n_grades,
            plan_target_folds(self.kind, y, contents, config.seed, unit, nothing),
            loss_tol=PROBE_LOSS_SLACK * self.measure_guess(y),
        )
        with threadpool_limits(1):
            probe = train_targets(get_target_head_spec(self.probe, self.kind), target_set)
        self.copy_probe(classifier, probe)

    def measure_guess(self, y: np.ndarray) -> float:
        """Measure the log loss of a guess without an image.

        Parameters
        ----------
        y : float64 array of shape (n, T)

        Returns
        -------
        float
            In nats; 0 where the probe has no log loss.
        """
        return 0.0

    @abstractmethod
    def copy_probe(self, classifier: Classifier, probe: TrainedTargets) -> None:
        """Set the weights of a classifier to those of a probe.

        Parameters
        ----------
        classifier : Classifier
        probe : TrainedTargets
        """

    def compare_labels(self, head: AnyHead) -> dict[str, tuple[Any, Any]]:
        """Compare the kinds of labels, and their names."""
        if not isinstance(head, FittedTargets):
            return {"kind of labels": (CLASS, self.kind)}
        return {
            "kind of labels": (head.kind, self.kind),
            "list of labels": (list(head.names), list(self.names)),
        }

    def pack(
        self,
        head: str,
        scorer: LinearModel | MLPModel,
        source: FeatureSource,
        seen: np.ndarray,
        **decided: Any,
    ) -> FittedTargets:
        """Package a model as a head.

        Parameters
        ----------
        head : str
            Name of the head, where it is linear.
        scorer : LinearModel or MLPModel
        source : FeatureSource
        seen : uint64 array
        **decided
            Further attributes of the head.

        Returns
        -------
        FittedTargets
        """
        return FittedTargets(
            head=head if isinstance(scorer, LinearModel) else "mlp",
            kind=self.kind,
            names=self.names,
            prepare=STANDARDISE,
            scorer=scorer,
            settings={},
            task="",
            source=source,
            record={},
            seen=seen,
            **decided,
        )


def rescale_outputs(
    model: LinearModel | MLPModel, slope: np.ndarray | float, shift: np.ndarray | float = 0.0
) -> LinearModel | MLPModel:
    """Fold a slope and a shift of the outputs into the last layer of a model.

    Parameters
    ----------
    model : LinearModel or MLPModel
        With K outputs.
    slope, shift : float, or float array of shape (K,)
        Outputs become ``slope output + shift``.

    Returns
    -------
    LinearModel or MLPModel
        In float64.
    """
    slope = np.broadcast_to(np.asarray(slope, np.float64), model.intercept.shape)
    coef = model.coef.astype(np.float64) * slope[:, None]
    intercept = model.intercept.astype(np.float64) * slope + shift
    return replace(model, coef=coef, intercept=intercept)

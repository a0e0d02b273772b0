"""What the training of a network asks of a kind of labels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor
from torchvision.transforms import v2

from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets.activations import ActivationDataset
from classify.finetuning.datasets.images import ImageDataset
from classify.finetuning.network import Classifier
from classify.heads.fitted import FittedHead
from classify.heads.source import FeatureSource
from classify.heads.targets.fitted import FittedTargets
from featurize.progress import Say

AnyHead = FittedHead | FittedTargets
Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs (B, K) and labels of a batch to a scalar."""
Decided = Mapping[str, Any]
"""What validation images decide, as keyword arguments of `Objective.make_head`."""


class Objective(ABC):
    """What a network learns: its outputs, its loss, and how outputs become predictions.

    There is one class for each kind of labels. It is chosen once, by the estimator; everything else
    in the training of a network is the same for all kinds.

    Attributes
    ----------
    kind : str
        ``class``, ``multi``, ``number`` or ``grade``.
    title : str
        What `Epoch.validation` is called in progress notes; empty where that goes without saying.
    names : tuple of str
        The classes, the labels, the name of the number, or the grades from the lowest.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    names: tuple[str, ...]

    @property
    def n_outputs(self) -> int:
        """Units of the last layer."""
        return len(self.names)

    @property
    def n_cutpoints(self) -> int:
        """Cutpoints that are learnt beside the last layer; none by default."""
        return 0

    @property
    def key(self) -> dict[str, Any]:
        """What the key of a checkpoint holds beside the options of the estimator."""
        return {"kind": self.kind, "names": list(self.names)}

    @abstractmethod
    def check_config(self, config: TrainConfig, say: Say) -> TrainConfig:
        """Refuse options of a training that have no meaning for this kind.

        Parameters
        ----------
        config : TrainConfig
        say : callable
            Called with a sentence for each option that is left out.

        Returns
        -------
        TrainConfig
            What holds instead.

        Raises
        ------
        CallError
            If an option is for other kinds.
        """

    @abstractmethod
    def split_validation(
        self, y: np.ndarray, groups: Any, validation: Any, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Split off the validation images: those the user marked, or a tenth.

        Parameters
        ----------
        y : array of shape (n,) or (n, T)
            The labels.
        groups : array of shape (n,), or None
            Images of one group stay on one side.
        validation : bool array of shape (n,), or None
            The images the user marked.
        seed : int

        Returns
        -------
        training, validation : bool arrays of shape (n,)

        Raises
        ------
        CallError
            If `groups` or `validation` is of another length.
        TooFewImagesError
            If nothing can be learnt from the one part, or nothing validated by the other.
        """

    def learn_scale(self, y: np.ndarray) -> Self:
        """Take over what the training labels say of their scale.

        Parameters
        ----------
        y : array of shape (n,) or (n, T)
            Labels of the training images.

        Returns
        -------
        Objective
            Itself by default.
        """
        return self

    @abstractmethod
    def check_readable(
        self, wanted: np.ndarray, read: np.ndarray, purpose: str, failures: Mapping[str, str]
    ) -> None:
        """Refuse a part whose readable images are too few.

        Parameters
        ----------
        wanted, read : arrays of shape (n,) or (n, T)
            The labels of the part's images, and of those that can be read.
        purpose : str
            ``train on`` or ``validate by``.
        failures : mapping of str to str
            Why an image cannot be read, by path.

        Raises
        ------
        TooFewImagesError
        """

    @abstractmethod
    def make_loss(self, y: np.ndarray, config: TrainConfig, device: str) -> Loss:
        """Make the loss that is minimised.

        Parameters
        ----------
        y : array of shape (n,) or (n, T)
            Labels of the training images.
        config : TrainConfig
        device : str
            Of outputs and labels.

        Returns
        -------
        callable
        """

    def make_mixup(self, alpha: float) -> v2.MixUp | None:
        """Make the transform of mixup.

        Parameters
        ----------
        alpha : float
            0 for none.

        Returns
        -------
        v2.MixUp, or None
        """
        return v2.MixUp(alpha=alpha, num_classes=self.n_outputs) if alpha else None

    @abstractmethod
    def measure(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, float | None]:
        """Measure a network on the validation part.

        Parameters
        ----------
        outputs : float32 array of shape (n, K)
        y : array of shape (n,) or (n, T)

        Returns
        -------
        loss : float
            The mean loss, by which training stops and the best epoch is chosen.
        metric : float, or None
            What users are told: accuracy, or the metric that heads of this kind are ranked by. None
            where it is undefined.
        """

    @abstractmethod
    def init_from_probe(
        self,
        classifier: Classifier,
        embeddings: np.ndarray,
        training: ImageDataset | ActivationDataset,
        config: TrainConfig,
    ) -> None:
        """Train a linear probe, and set the weights of a linear classifier to it.

        Parameters
        ----------
        classifier : Classifier
        embeddings : float32 array of shape (n, D)
            Of the training images.
        training : ImageDataset or ActivationDataset
            Gives their labels.
        config : TrainConfig
            Its class weight and seed are also those of the probe.
        """

    @abstractmethod
    def init_at_random(self, classifier: Classifier, y: np.ndarray) -> None:
        """Set what is not random where the weights are.

        Parameters
        ----------
        classifier : Classifier
        y : array of shape (n,) or (n, T)
            Labels of the training images.
        """

    @abstractmethod
    def compare_labels(self, head: AnyHead) -> dict[str, tuple[Any, Any]]:
        """Put the labels of a head to start from beside those of the training.

        Parameters
        ----------
        head : FittedHead or FittedTargets

        Returns
        -------
        dict of str to (object, object)
            By what they are called; a difference is an error of the user.
        """

    @abstractmethod
    def init_from_head(self, classifier: Classifier, head: AnyHead) -> None:
        """Copy a linear head on the same embeddings.

        Parameters
        ----------
        classifier : Classifier
        head : FittedHead or FittedTargets
            With the same labels.
        """

    @abstractmethod
    def decide(self, outputs: np.ndarray, y: np.ndarray, unit: np.ndarray) -> Decided:
        """Decide on validation images how outputs become predictions.

        Parameters
        ----------
        outputs : float32 array of shape (n, K)
            Of the trained network.
        y : array of shape (n,) or (n, T)
        unit : int array of shape (n,)
            Images with the same number belong together.

        Returns
        -------
        mapping of str to object
        """

    @abstractmethod
    def judge(self, outputs: np.ndarray, y: np.ndarray, decided: Decided) -> Sequence[Any]:
        """Say of each validation image how it is predicted.

        Parameters
        ----------
        outputs, y
            As in `decide`.
        decided : mapping of str to object
            As `decide` returns it.

        Returns
        -------
        sequence of length n
            Whether the class is right; of other kinds the predicted values, float64 (T,).
        """

    @abstractmethod
    def make_head(
        self, classifier: Classifier, source: FeatureSource, seen: np.ndarray, decided: Decided
    ) -> AnyHead:
        """Package a classifier as a head.

        Parameters
        ----------
        classifier : Classifier
            Trained.
        source : FeatureSource
            The tuned network and its last layer.
        seen : uint64 array
            As in `classify.heads.fitted.FittedHead`.
        decided : mapping of str to object
            As `decide` returns it.

        Returns
        -------
        FittedHead or FittedTargets
        """

"""`FineTuneClassifier`: fine-tuning as a scikit-learn classifier on image paths."""

import os
import time
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from classify.data.features import CacheOrPath, check_paths, open_cache
from classify.data.source_images import SourceImages
from classify.errors import CallError
from classify.finetuning.checkpoint import check_checkpoint_path
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets.images import DecodedImages, ImageDataset
from classify.finetuning.distributed import Distributed, init_distributed, seed_torch
from classify.finetuning.head_transfer import resolve_init_head
from classify.finetuning.objectives.classes import ClassObjective
from classify.finetuning.objectives.objective import AnyHead, Objective
from classify.finetuning.steps import FineTuning
from classify.finetuning.trainer import ProgressCallback, run_inference
from classify.heads.fitted import FittedHead
from classify.time_limit import TimeLimit
from featurize.backbones.backbone import Backbone
from featurize.engines.torch_settings import resolve_device
from featurize.progress import Say, ignore
from featurize.system.device_errors import is_out_of_memory


class FineTuneEstimator(BaseEstimator, metaclass=ABCMeta):  # type: ignore[misc]
    """What the estimators of all kinds of labels share: parameters, and the way of a training.

    Its parameters are described at `FineTuneClassifier`.
    """

    def __init__(
        self,
        backbone: str | Backbone = "resnet50",
        *,
        root: str | os.PathLike[str] = ".",
        weights: str | None = None,
        preprocess: str | Mapping[str, Any] | None = None,
        tune: str = "all",
        lora: int | None = None,
        classifier: str = "linear",
        init_head: str | os.PathLike[str] | AnyHead | None = None,
        cache: CacheOrPath | None = None,
        epochs: int = TrainConfig.epochs,
        batch_size: int = TrainConfig.batch_size,
        learning_rate: float | None = None,
        augment: str = TrainConfig.augment,
        mixup: float = TrainConfig.mixup,
        patience: int = TrainConfig.patience,
        batch_norm: str | None = None,
        class_weight: str | None = TrainConfig.class_weight,
        device: str = "auto",
        seed: int = TrainConfig.seed,
    ) -> None:
        self.backbone = backbone
        self.root = root
        self.weights = weights
        self.preprocess = preprocess
        self.tune = tune
        self.lora = lora
        self.classifier = classifier
        self.init_head = init_head
        self.cache = cache
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.augment = augment
        self.mixup = mixup
        self.patience = patience
        self.batch_norm = batch_norm
        self.class_weight = class_weight
        self.device = device
        self.seed = seed

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        groups: np.ndarray | None = None,
        validation: np.ndarray | None = None,
        images: SourceImages | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        deadline: float | TimeLimit | None = None,
        n_test: int = 0,
        say: Say = ignore,
        report: ProgressCallback = ignore,
    ) -> Self:
        """Train on labelled images.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.
        y : array of shape (n,), or (n, T)
            Labels.
        groups : array of shape (n,), optional
            Images of one group are all trained on, or all validated by.
        validation : bool array of shape (n,), optional
            Images for early stopping, not trained on. By default a tenth, of every class.
        images : SourceImages, optional
            Those of `root`, where they are listed already.
        checkpoint : path, optional
            Written after every epoch. If it exists, training resumes from it.
        deadline : float or TimeLimit, optional
            A time of `time.monotonic`, in seconds. No epoch begins that would end later, nor one
            that would leave no time to calibrate, test and save.
        n_test : int
            Number of images that will be tested on before the deadline. None by default.
        say : callable
            Called with sentences for the user.
        report : callable
            Called with a `TrainProgress` often.

        Returns
        -------
        FineTuneEstimator
            Itself.

        Raises
        ------
        TooFewImagesError
            If there is only one class, or a class has only one readable image; if all labels are
            alike.
        CallError
            If an option has an unknown value, or `X` and `y` do not go together.
        UnknownLayerError, BackboneError, HeadMismatchError
            If `backbone`, `tune`, `cache` and `init_head` do not go together.
        OutputError
            If the checkpoint cannot be written.
        DivergedError
            If the loss is not finite.
        RunInterruptedError
            If not even one epoch ends before the deadline.
        """
        limit = _make_limit(deadline)
        report = limit.guard(report)
        paths = _check_text_paths(X)
        objective, y = self._encode_labels(y)
        if len(y) != len(paths):
            raise CallError(f"{len(paths):,} paths do not go with {len(y):,} labels")
        config = TrainConfig.from_options(self, from_scratch=self.is_from_scratch)
        config = objective.check_config(config, say)
        init_head = self._resolve_init_head()
        masks = objective.split_validation(y, groups, validation, self.seed)
        objective = objective.learn_scale(y[masks[0]])
        path = None if checkpoint is None else check_checkpoint_path(checkpoint)
        with (
            init_distributed(self.device) as distributed,
            seed_torch(self.seed, distributed.device),
            _naming_batch_size(self.batch_size, distributed.device),
        ):
            tuning = FineTuning(
                self, config, init_head, objective, distributed, say, report, images
            )
            tuning.say_start(masks)
            tuning.prepare(paths, y, masks)
            tuning.start(path)
            self.history_ = tuning.train(tuning.plan(limit, paths, n_test))
            decided = tuning.decide(dict(zip(paths.tolist(), _number(groups, len(y)), strict=True)))
        self.validated_ = tuning.validated
        self.failures_, self.n_train_ = tuning.failures, len(tuning.training)
        n_held_out = len(tuning.held_out)
        n_trained = len(self.history_) * (self.n_train_ + n_held_out)
        self.images_run_ = tuning.n_init + n_trained + n_held_out
        self._network = tuning.net
        self.head_, self.network_ = tuning.package(decided)
        return self

    def embed_paths(self, X: Any) -> np.ndarray:
        """Compute embeddings by the tuned network.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.

        Returns
        -------
        float32 array of shape (n, D)
            What `head_` takes.

        Raises
        ------
        CallError
            If an image cannot be read.
        """
        check_is_fitted(self)
        paths, images = _check_text_paths(X).tolist(), SourceImages(self.root)
        if self.cache is not None and not images.is_folder:
            images = SourceImages(self.root, open_cache(self.cache))
        pixels = DecodedImages(images.locate(paths), self.head_.source.preprocess)
        if pixels.failures:
            path, reason = next(iter(pixels.failures.items()))
            raise CallError(f"{len(pixels.failures):,} images cannot be read: {path}: {reason}")
        return self.embed(pixels)

    def embed(self, pixels: DecodedImages) -> np.ndarray:
        """Compute embeddings of decoded images.

        Parameters
        ----------
        pixels : DecodedImages
            n images. The rows of unreadable ones have no meaning.

        Returns
        -------
        float32 array of shape (n, D)
        """
        dataset = ImageDataset(pixels, np.zeros(len(pixels), np.intp), pixels.side)
        distributed = Distributed(resolve_device(self.device))
        net = self._network.to(distributed.device)
        return run_inference(net, dataset, self.batch_size, distributed, embeddings=True)

    @abstractmethod
    def _encode_labels(self, y: Any) -> tuple[Objective, np.ndarray]:
        """Check labels, and turn them into what the objective takes."""

    @property
    def is_from_scratch(self) -> bool:
        """Whether training starts from random weights."""
        return self.weights == "none"

    def _resolve_init_head(self) -> AnyHead | None:
        """Load the head to start from, and refuse options that exclude each other."""
        if self.is_from_scratch and self.cache is not None:
            raise CallError(
                "--weights none trains from random weights, for which no cache can be of use: "
                "leave --cache out"
            )
        return resolve_init_head(self.init_head, self.classifier)


class FineTuneClassifier(ClassifierMixin, FineTuneEstimator):  # type: ignore[misc]
    """A backbone and a new classifier, trained together on images.

    Training starts from a linear probe on the frozen embeddings, so that the first steps do not
    spoil the backbone (A. Kumar et al., 2022, "Fine-tuning can distort pretrained features and
    underperform out-of-distribution", ICLR). Then both are trained: AdamW, a warm-up, a cosine
    decay, lower learning rates for earlier stages or blocks, frozen batch norm, and early stopping
    by the loss on a validation part.

    Parameters
    ----------
    backbone : str or Backbone
        As in `featurize.load_backbone`. It may be the file of an earlier fine-tuning. A `Backbone`
        of your own stays as it is; `last` has to be known of it, as it is of timm's networks.
    root : path or URL
        The image folder that paths are relative to, or another source of images: an archive, a
        table, whatever `featurize.run` takes. Paths are then its keys, as a cache has them.
    weights, preprocess : str, optional
        As in `featurize.load_backbone`. Weights ``none`` are random ones: training from scratch.
    tune : str
        ``all``, ``last`` (the deepest stage), ``last-4`` (the last four blocks of a transformer, or
        the last four stages), or a layer: that one and everything after it.
    lora : int, optional
        Rank of adapters, which are trained in place of the weights from `tune` on (LoRA, by PEFT)
        and added to them in the end. It is for networks with linear layers, as transformers have.
    classifier : {"linear", "mlp"}
        ``mlp`` has one hidden layer of 512 units.
    init_head : str, path or FittedHead, optional
        The initial linear classifier: a head trained on the backbone's last layer, or ``random``.
        By default such a head is trained first, from `cache` if that has the layer.
    cache : path or FeatureCache, optional
        If it has the maps that enter the tuned part (``PREVIOUS:none``), training reads those. Then
        the frozen part is never run, and there are no random crops or flips.
    epochs, batch_size, augment, mixup, patience, class_weight, seed
        See `classify.finetuning.config.TrainConfig`.
    learning_rate, batch_norm : optional
        See `TrainConfig`. The defaults from scratch are 1e-3 and ``trained``; with `lora` the
        learning rate is 1e-3 too.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

    Attributes
    ----------
    classes_ : array of shape (K,)
        The sorted labels.
    head_ : FittedHead
        The classifier on the tuned backbone's embeddings.
    network_ : dict of str to Tensor
        The tuned backbone's weights.
    n_train_ : int
        Number of images trained on.
    history_ : list of Epoch
        All epochs.
    images_run_ : int
        Forward passes of an image through the tuned part: initialisation, training, validation.
    validated_ : dict of str to bool
        Whether each validation image is predicted correctly, by path.
    failures_ : dict of str to str
        Why an image was left out, by path.

    Examples
    --------
    ``FineTuneClassifier("resnet50", root="photos", tune="layer4").fit(paths, labels)``
    """

    head_: FittedHead

    def _encode_labels(self, y: Any) -> tuple[Objective, np.ndarray]:
        self.classes_, numbers = np.unique(np.asarray(y), return_inverse=True)
        return ClassObjective(tuple(str(name) for name in self.classes_)), numbers

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of each image.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.

        Returns
        -------
        array of shape (n,)
            The most probable label of each image.

        Raises
        ------
        CallError
            If an image cannot be read.
        """
        best = self.decision_scores(X).argmax(axis=1)
        predictions: np.ndarray = self.classes_[best]
        return predictions

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return calibrated class probabilities, float64 (n, K). See `predict`."""
        scores = self.decision_scores(X)
        return self.head_.probabilities(scores)

    def decision_scores(self, X: Any) -> np.ndarray:
        """Compute decision values of images.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.

        Returns
        -------
        float32 array of shape (n, K)
            In the order of `classes_`. Raises as `predict` does.
        """
        embeddings = self.embed_paths(X)  # refuses an estimator that is not fitted
        return self.head_.scores(embeddings)


def _check_text_paths(X: Any) -> np.ndarray:
    paths = check_paths(X)
    if not all(isinstance(path, str) for path in paths):
        raise CallError("X is image paths, as text")
    return paths


def _make_limit(deadline: float | TimeLimit | None) -> TimeLimit:
    if isinstance(deadline, TimeLimit):
        return deadline
    now = time.monotonic()
    return TimeLimit(None if deadline is None else deadline - now, now)


@contextmanager
def _naming_batch_size(batch_size: int, device: str) -> Iterator[None]:
    """Say what to do where memory ends."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CallError(
            f"not enough memory on {device} to train with batches of {batch_size} images: lower "
            "--batch-size, tune fewer layers (--tune), or take a smaller network"
        ) from error


def _number(groups: np.ndarray | None, n: int) -> list[int]:
    """Return the number of each image's group; each is its own if there are none."""
    if groups is None:
        return list(range(n))
    return list(np.unique(np.asarray(groups), return_inverse=True)[1].tolist())

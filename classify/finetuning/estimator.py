"""`FineTuneClassifier`: a backbone's weights trained too, as a scikit-learn classifier on paths."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from classify.data.features import CacheOrPath, check_paths, open_cache
from classify.data.splits import split_validation
from classify.errors import CallError, TooFewImagesError
from classify.evaluation.temperature import fit_temperature
from classify.finetuning import trainer
from classify.finetuning.activations import find_activations
from classify.finetuning.checkpoint import check_checkpoint_path, load_checkpoint
from classify.finetuning.datasets import ActivationDataset, DecodedImages, ImageDataset
from classify.finetuning.distributed import Distributed, init_distributed
from classify.finetuning.head_transfer import (
    RANDOM_INIT,
    check_init_head,
    extract_state_dict,
    init_classifier,
    resolve_init_head,
    to_fitted_head,
)
from classify.finetuning.network import FineTuneNetwork, find_last_weighted_stage
from classify.finetuning.trainer import ProgressCallback, TrainConfig, TrainProgress
from classify.heads.fitted import FittedHead
from classify.store import compute_digest
from featurize.backbones.backbone import Backbone, load_backbone
from featurize.engines.torch_settings import resolve_device

LEARNING_RATE, SCRATCH_LEARNING_RATE = 3e-4, 1e-3
Say = Callable[[str], None]


class FineTuneClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A backbone and a new classifier, trained together on images.

    It starts from a linear probe: the head that is best on the frozen embeddings, so that the first
    steps do not spoil the backbone (A. Kumar et al., 2022, "Fine-tuning can distort pretrained
    features and underperform out-of-distribution", ICLR). Then both are trained: AdamW, a warm-up
    and a cosine, lower learning rates for earlier stages, batch norm frozen, and an early stop by
    the loss on a validation part.

    Parameters
    ----------
    backbone : str
        As in `featurize.load_backbone`; the result of an earlier fine-tuning is one too.
    root : path
        The image folder that paths are relative to.
    weights, preprocess : str, optional
        As in `featurize.load_backbone`. Weights ``none`` are random ones: training from scratch.
    tune : str
        ``all``, ``last`` (the deepest stage), or a layer: that one and everything after it.
    classifier : {"linear", "mlp"}
        The latter has one hidden layer of 512 units.
    init_head : str, path or FittedHead, optional
        What a linear classifier starts from: a head trained on the backbone's last layer, or
        ``random``. Not given, such a head is trained first, from `cache` if that has the layer.
    cache : path or FeatureCache, optional
        With the maps that enter the tuned part (``PREVIOUS:none``), training starts from those and
        the frozen part is never run; they are seen as they are, so nothing is cropped or flipped.
    epochs, batch_size, learning_rate, mixup, patience
        See `classify.finetuning.trainer.TrainConfig`. The learning rate is 3e-4 if not given, from scratch 1e-3.
    augment : {"flips", "crops", "none"}
        Random crops mirrored at random, random crops alone (for what has a left and a right), or
        the centre.
    batch_norm : {"frozen", "trained"}, optional
        Frozen if not given, except from scratch.
    class_weight : {"balanced"}, optional
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
    seed : int

    Attributes
    ----------
    classes_ : array of shape (K,)
    head_ : FittedHead
        The classifier on the tuned backbone's embeddings.
    network_ : dict of str to Tensor
        The tuned backbone's weights.
    n_train_ : int
    history_ : list of Epoch
    images_run_ : int
        Images that went forward through the tuned part, in training, validation and before.
    failures_ : dict of str to str
        Images left out, and why.

    Examples
    --------
    ``FineTuneClassifier("resnet50", root="photos", tune="layer4").fit(paths, labels)``
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        root: str | os.PathLike[str] = ".",
        weights: str | None = None,
        preprocess: str | Mapping[str, Any] | None = None,
        tune: str = "all",
        classifier: str = "linear",
        init_head: str | os.PathLike[str] | FittedHead | None = None,
        cache: CacheOrPath | None = None,
        epochs: int = 15,
        batch_size: int = 32,
        learning_rate: float | None = None,
        augment: str = "flips",
        mixup: float = 0.0,
        patience: int = 5,
        batch_norm: str | None = None,
        class_weight: str | None = None,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.root = root
        self.weights = weights
        self.preprocess = preprocess
        self.tune = tune
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
        checkpoint: str | os.PathLike[str] | None = None,
        deadline: float | None = None,
        say: Say = lambda _: None,
        report: ProgressCallback = lambda _: None,
    ) -> "FineTuneClassifier":
        """Train.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.
        y : array of shape (n,)
            Labels.
        groups : array of shape (n,), optional
            Images of one group are either trained on or validated by.
        validation : bool array of shape (n,), optional
            Images for the early stop, not trained on; else a tenth of every class.
        checkpoint : path, optional
            Written after every epoch; where it is there, training goes on from it.
        deadline : float, optional
            Of `time.monotonic`: no epoch is begun that would pass it.
        say, report : callable
            Told what a user should know, and how training goes.

        Raises
        ------
        TooFewImages
            If there is one class only, or a class has one image.
        UnknownLayer, BackboneError, HeadMismatch, CallError, OutputError, Diverged
        """
        paths, (self.classes_, numbers) = (
            _check_text_paths(X),
            np.unique(np.asarray(y), return_inverse=True),
        )
        if len(numbers) != len(paths):
            raise CallError(f"{len(paths):,} paths do not go with {len(numbers):,} labels")
        course, head = self._make_config(), self._resolve_init_head()
        names = [str(name) for name in self.classes_]
        sides = split_validation(numbers, names, groups, validation, self.seed)
        unfinished = None if checkpoint is None else check_checkpoint_path(checkpoint)
        with init_distributed(self.device) as crew, _seed_torch(self.seed):
            backbone = self._load_backbone()
            say(self._format_start_message(backbone, sides, crew))
            cache = None if self.cache is None else open_cache(self.cache)
            tune = find_last_weighted_stage(backbone) if self.tune == "last" else self.tune
            maps = find_activations(backbone, tune, cache, paths.tolist(), say)
            net = self._make_network(backbone, tune, from_activations=maps is not None).to(
                crew.device
            )
            if head is not None:
                check_init_head(head, backbone, net.last_layer, names)
            self.failures_: dict[str, str] = {}
            training, judged = (
                self._make_dataset(
                    backbone, paths[side], numbers[side], report, is_training=side is sides[0]
                )
                if maps is None
                else ActivationDataset(maps.subset(side), numbers[side])
                for side in sides
            )
            key = compute_digest(
                *(self._collect_key_params(head), backbone.weights_sha256),
                *(part for side in (training, judged) for part in (side.sha256, side.y)),
            )
            place = None if unfinished is None else (unfinished, key)
            begun = place and load_checkpoint(
                *place, net.trainable_state(), net.trainable_parameters()
            )
            if begun:
                say(f"going on after epoch {len(begun.history)}, from {checkpoint}")
                run = 0
            else:
                run = init_classifier(
                    net,
                    training,
                    crew,
                    head=head,
                    cache=cache,
                    random_init=self.init_head == RANDOM_INIT or self._is_from_scratch,
                    class_weight=self.class_weight,
                    batch_size=self.batch_size,
                    seed=self.seed,
                    report=report,
                )
            self.history_ = trainer.train_network(
                net,
                training,
                judged,
                course,
                distributed=crew,
                class_weights=self._compute_class_weights(training.y),
                checkpoint=place,
                resume_from=begun or None,
                deadline=deadline,
                report=report,
            )
            scores = trainer.run_inference(net, judged, self.batch_size, crew)
        self.images_run_ = run + len(self.history_) * (len(training) + len(judged)) + len(judged)
        self.n_train_ = len(training)
        self._network, self.network_ = net, extract_state_dict(net, backbone)
        self.head_ = to_fitted_head(
            net,
            backbone,
            names,
            temperature=fit_temperature(scores, judged.y),
            train_sha256=np.concatenate([training.sha256, judged.sha256]),
        )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The best class of each image: (n,).

        Raises
        ------
        CallError
            If one cannot be read.
        """
        best = self.decision_scores(X).argmax(axis=1)
        found: np.ndarray = self.classes_[best]
        return found

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, calibrated on the validation part: float64 (n, K)."""
        check_is_fitted(self)
        return self.head_.probabilities(self.decision_scores(X))

    def decision_scores(self, X: Any) -> np.ndarray:
        """Scores of images: float32 (n, K)."""
        check_is_fitted(self)
        pixels = DecodedImages(
            self.root, _check_text_paths(X).tolist(), self.head_.source.preprocess
        )
        if pixels.failures:
            path, reason = next(iter(pixels.failures.items()))
            raise CallError(f"{len(pixels.failures):,} images cannot be read: {path}: {reason}")
        return self.scores_of(pixels)

    def scores_of(self, pixels: DecodedImages) -> np.ndarray:
        """Scores of decoded images: float32 (n, K)."""
        examples = ImageDataset(pixels, np.zeros(len(pixels), np.intp), pixels.side)
        crew = Distributed(resolve_device(self.device))
        net = self._network.to(crew.device)
        found = trainer.run_inference(net, examples, self.batch_size, crew, embeddings=True)
        return self.head_.scores(found)

    @property
    def _is_from_scratch(self) -> bool:
        return self.weights == "none"

    def _make_config(self) -> TrainConfig:
        rate = SCRATCH_LEARNING_RATE if self._is_from_scratch else LEARNING_RATE
        course = TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            layer_decay=1.0 if self._is_from_scratch else trainer.LAYER_DECAY,
            patience=self.patience,
            mixup=self.mixup,
            seed=self.seed,
        )
        course.check()
        return course

    def _resolve_init_head(self) -> FittedHead | None:
        """The head to start from, once the options are known to go together."""
        head = resolve_init_head(self.init_head)
        if head is not None and self.classifier != "linear":
            raise CallError(
                f"the classifier {self.classifier} cannot start from a head: leave --init-head or "
                "--classifier out"
            )
        if self.class_weight not in (None, "balanced"):
            raise CallError(f"the class weight is balanced or nothing, not {self.class_weight!r}")
        if self._is_from_scratch and self.cache is not None:
            raise CallError(
                "--weights none trains from random weights, for which no cache can be of use: "
                "leave --cache out"
            )
        return head

    def _load_backbone(self) -> Backbone:
        return load_backbone(
            self.backbone,
            None if self._is_from_scratch else self.weights,
            preprocess=self.preprocess,
            frozen_weights=not self._is_from_scratch,
        )

    def _make_network(
        self, backbone: Backbone, tune: str, *, from_activations: bool
    ) -> FineTuneNetwork:
        return FineTuneNetwork(
            backbone,
            tune,
            len(self.classes_),
            self.classifier,
            from_activations=from_activations,
            batch_norm=self.batch_norm or ("trained" if self._is_from_scratch else "frozen"),
        )

    def _make_dataset(
        self,
        backbone: Backbone,
        paths: np.ndarray,
        numbers: np.ndarray,
        report: ProgressCallback,
        *,
        is_training: bool,
    ) -> ImageDataset:
        recipe, augment = backbone.preprocess, self.augment if is_training else "none"
        pixels = DecodedImages(
            self.root,
            paths.tolist(),
            recipe,
            uncropped=augment != "none",
            report=lambda done, total: report(TrainProgress("reading images", done, total)),
        )
        self.failures_ |= pixels.failures
        at = np.flatnonzero(pixels.is_readable)
        missing = np.setdiff1d(numbers, numbers[at])
        if len(missing):
            path, reason = next(iter(pixels.failures.items()))
            raise TooFewImagesError(
                f"no image of class {str(self.classes_[missing[0]])!r} to "
                f"{'train on' if is_training else 'validate by'} can be read ({path}: {reason})"
            )
        return ImageDataset(pixels, numbers[at], recipe["crop"], augment, self.seed, indices=at)

    def _compute_class_weights(self, y: np.ndarray) -> np.ndarray | None:
        if self.class_weight != "balanced":
            return None
        count = np.bincount(y, minlength=len(self.classes_))
        return np.asarray(len(y) / (len(count) * count), np.float32)

    def _collect_key_params(self, head: FittedHead | None) -> dict[str, Any]:
        """Every parameter that decides the result, as JSON knows it."""
        found = {
            k: v for k, v in self.get_params(deep=False).items() if k not in ("root", "device")
        }
        found["cache"] = self.cache is not None
        if head is not None:
            found["init_head"] = compute_digest(head.scorer.coef, head.scorer.intercept)  # type: ignore[union-attr]
        return {key: value if value is None else str(value) for key, value in found.items()}

    def _format_start_message(
        self, backbone: Backbone, sides: Sequence[np.ndarray], distributed: Distributed
    ) -> str:
        weights = "random" if self._is_from_scratch else backbone.weights
        several = f" x {distributed.world_size}" if distributed.world_size > 1 else ""
        return (
            f"{backbone.name}, weights {weights}, tuning {self.tune} on {distributed.device}{several}: "
            f"{int(sides[0].sum()):,} images to train on, {int(sides[1].sum()):,} to validate by"
        )


@contextmanager
def _seed_torch(seed: int) -> Iterator[None]:
    """Random weights that depend on the seed, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _check_text_paths(X: Any) -> np.ndarray:
    paths = check_paths(X)
    if not all(isinstance(path, str) for path in paths):
        raise CallError("X is image paths, as text")
    return paths

"""`FineTuneClassifier`: fine-tuning as a scikit-learn classifier on image paths."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from classify.data.features import CacheOrPath, check_paths, open_cache
from classify.data.splits import split_validation
from classify.errors import CallError
from classify.evaluation.temperature import fit_temperature
from classify.finetuning.checkpoint import check_checkpoint_path, compute_key, load_checkpoint
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets.activations import ActivationDataset, find_activations
from classify.finetuning.datasets.images import DecodedImages, ImageDataset, read_image_datasets
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
from classify.finetuning.trainer import (
    ProgressCallback,
    TrainProgress,
    run_inference,
    seed_torch,
    train_network,
)
from classify.heads.fitted import FittedHead
from featurize.backbones.backbone import Backbone
from featurize.backbones.load import load_backbone
from featurize.engines.torch_settings import resolve_device
from featurize.progress import Say, ignore


class FineTuneClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A backbone and a new classifier, trained together on images.

    Training starts from a linear probe on the frozen embeddings, so that the first steps do not
    spoil the backbone (A. Kumar et al., 2022, "Fine-tuning can distort pretrained features and
    underperform out-of-distribution", ICLR). Then both are trained: AdamW, a warm-up, a cosine
    decay, lower learning rates for earlier stages, frozen batch norm, and early stopping by the
    loss on a validation part.

    Parameters
    ----------
    backbone : str
        As in `featurize.load_backbone`. It may be the file of an earlier fine-tuning.
    root : path
        The image folder that paths are relative to.
    weights, preprocess : str, optional
        As in `featurize.load_backbone`. Weights ``none`` are random ones: training from scratch.
    tune : str
        ``all``, ``last`` (the deepest stage), or a layer: that one and everything after it.
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
        See `TrainConfig`. The defaults from scratch are 1e-3 and ``trained``.
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
    failures_ : dict of str to str
        Why an image was left out, by path.

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
        say: Say = ignore,
        report: ProgressCallback = ignore,
    ) -> "FineTuneClassifier":
        """Train on labelled images.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.
        y : array of shape (n,)
            Labels.
        groups : array of shape (n,), optional
            Images of one group are all trained on, or all validated by.
        validation : bool array of shape (n,), optional
            Images for early stopping, not trained on. By default a tenth of every class.
        checkpoint : path, optional
            Written after every epoch. If it exists, training resumes from it.
        deadline : float, optional
            A time of `time.monotonic`, in seconds. No epoch begins that would end later.
        say : callable
            Called with sentences for the user.
        report : callable
            Called with a `TrainProgress` often.

        Returns
        -------
        FineTuneClassifier
            Itself.

        Raises
        ------
        TooFewImagesError
            If there is only one class, or a class has only one readable image.
        CallError
            If an option has an unknown value, or `X` and `y` do not go together.
        UnknownLayerError, BackboneError, HeadMismatchError
            If `backbone`, `tune`, `cache` and `init_head` do not go together.
        OutputError
            If the checkpoint cannot be written.
        DivergedError
            If the loss is not finite.
        """
        paths = _check_text_paths(X)
        self.classes_, y = np.unique(np.asarray(y), return_inverse=True)
        if len(y) != len(paths):
            raise CallError(f"{len(paths):,} paths do not go with {len(y):,} labels")
        config = TrainConfig.from_options(self, from_scratch=self._is_from_scratch)
        init_head, names = self._resolve_init_head(), [str(name) for name in self.classes_]
        masks = split_validation(y, names, groups, validation, self.seed)
        path = None if checkpoint is None else check_checkpoint_path(checkpoint)
        with init_distributed(self.device) as distributed, seed_torch(self.seed):
            backbone = load_backbone(
                self.backbone,
                None if self._is_from_scratch else self.weights,
                preprocess=self.preprocess,
                frozen_weights=not self._is_from_scratch,
            )
            say(self._format_start_message(backbone, masks, distributed))
            cache = None if self.cache is None else open_cache(self.cache)
            tune = find_last_weighted_stage(backbone) if self.tune == "last" else self.tune
            activations = find_activations(backbone, tune, cache, paths.tolist(), y, say)
            net = self._make_network(backbone, tune, config, init_head, activations)
            net.to(distributed.device)
            datasets = self._make_datasets(backbone, paths, y, masks, activations, report)
            key = compute_key(self.get_params(deep=False), init_head, backbone, datasets)
            training, held_out = datasets
            resume_from = None if path is None else load_checkpoint(path, key, net)
            n_init = 0
            if resume_from is None:
                random_init = self.init_head == RANDOM_INIT or self._is_from_scratch
                n_init = init_classifier(
                    net,
                    training,
                    config,
                    distributed,
                    init_head=init_head,
                    random_init=random_init,
                    cache=cache,
                    report=report,
                )
            else:
                say(f"going on after epoch {len(resume_from.history)}, from {checkpoint}")
            self.history_ = train_network(
                net,
                training,
                held_out,
                config,
                distributed=distributed,
                checkpoint=None if path is None else (path, key),
                resume_from=resume_from,
                deadline=deadline,
                report=report,
            )
            decision_values = run_inference(net, held_out, self.batch_size, distributed)
        n_per_epoch = len(training) + len(held_out)
        self.images_run_ = n_init + len(self.history_) * n_per_epoch + len(held_out)
        self.n_train_ = len(training)
        self._network, self.network_ = net, extract_state_dict(net, backbone)
        self.head_ = to_fitted_head(
            net,
            backbone,
            names,
            temperature=fit_temperature(decision_values, held_out.y),
            train_sha256=np.concatenate([training.sha256, held_out.sha256]),
        )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of each image.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.

        Returns
        -------
        array of shape (n,)

        Raises
        ------
        CallError
            If an image cannot be read.
        """
        best = self.decision_scores(X).argmax(axis=1)  # refuses an estimator that is not fitted
        predictions: np.ndarray = self.classes_[best]
        return predictions

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return calibrated class probabilities, float64 (n, K). See `predict`."""
        check_is_fitted(self)
        return self.head_.probabilities(self.decision_scores(X))

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
        check_is_fitted(self)
        pixels = DecodedImages(
            self.root, _check_text_paths(X).tolist(), self.head_.source.preprocess
        )
        if pixels.failures:
            path, reason = next(iter(pixels.failures.items()))
            raise CallError(f"{len(pixels.failures):,} images cannot be read: {path}: {reason}")
        return self.scores_of(pixels)

    def scores_of(self, pixels: DecodedImages) -> np.ndarray:
        """Compute decision values of decoded images.

        Parameters
        ----------
        pixels : DecodedImages
            n images. The rows of unreadable ones have no meaning.

        Returns
        -------
        float32 array of shape (n, K)
        """
        dataset = ImageDataset(pixels, np.zeros(len(pixels), np.intp), pixels.side)
        distributed = Distributed(resolve_device(self.device))
        net = self._network.to(distributed.device)
        embeddings = run_inference(net, dataset, self.batch_size, distributed, embeddings=True)
        return self.head_.scores(embeddings)

    @property
    def _is_from_scratch(self) -> bool:
        return self.weights == "none"

    def _resolve_init_head(self) -> FittedHead | None:
        """Load the head to start from, and refuse options that exclude each other."""
        if self._is_from_scratch and self.cache is not None:
            raise CallError(
                "--weights none trains from random weights, for which no cache can be of use: "
                "leave --cache out"
            )
        return resolve_init_head(self.init_head, self.classifier)

    def _make_network(
        self,
        backbone: Backbone,
        tune: str,
        config: TrainConfig,
        init_head: FittedHead | None,
        activations: ActivationDataset | None,
    ) -> FineTuneNetwork:
        net = FineTuneNetwork(
            backbone,
            tune,
            len(self.classes_),
            self.classifier,
            from_activations=activations is not None,
            batch_norm=config.batch_norm,
        )
        if init_head is not None:
            check_init_head(
                init_head, backbone, net.last_layer, [str(name) for name in self.classes_]
            )
        return net

    def _make_datasets(
        self,
        backbone: Backbone,
        paths: np.ndarray,
        y: np.ndarray,
        masks: Sequence[np.ndarray],
        activations: ActivationDataset | None,
        report: ProgressCallback,
    ) -> Sequence[ImageDataset | ActivationDataset]:
        self.failures_: dict[str, str] = {}
        if activations is not None:
            return [activations.subset(mask) for mask in masks]
        datasets = read_image_datasets(
            self.root,
            paths,
            y,
            masks,
            classes=self.classes_,
            preprocess=backbone.preprocess,
            augment=self.augment,
            seed=self.seed,
            report=lambda step: report(TrainProgress(step.stage, step.done, step.total)),
        )
        for dataset in datasets:
            self.failures_ |= dataset.images.failures
        return datasets

    def _format_start_message(
        self, backbone: Backbone, masks: Sequence[np.ndarray], distributed: Distributed
    ) -> str:
        weights = "random" if self._is_from_scratch else backbone.weights
        processes = f" x {distributed.world_size}" if distributed.world_size > 1 else ""
        n_train, n_validation = (int(mask.sum()) for mask in masks)
        return (
            f"{backbone.name}, weights {weights}, tuning {self.tune} on "
            f"{distributed.device}{processes}: {n_train:,} images to train on, {n_validation:,} to "
            "validate by"
        )


def _check_text_paths(X: Any) -> np.ndarray:
    paths = check_paths(X)
    if not all(isinstance(path, str) for path in paths):
        raise CallError("X is image paths, as text")
    return paths

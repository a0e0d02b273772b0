"""`FineTuneClassifier`: a backbone's weights trained too, as a scikit-learn classifier on paths."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from classify.data.features import CacheOrPath, check_paths, open_cache
from classify.data.splits import split_validation
from classify.errors import CallError, TooFewImagesError
from classify.evaluation.temperature import fit_temperature
from classify.finetuning.checkpoint import check_checkpoint_path, load_checkpoint
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets import (
    ActivationDataset,
    DecodedImages,
    ImageDataset,
    find_activations,
    read_image_dataset,
)
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
from classify.store import compute_digest
from featurize.backbones.backbone import Backbone, load_backbone
from featurize.engines.torch_settings import resolve_device
from featurize.progress import Progress

Examples = ImageDataset | ActivationDataset
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
    epochs, batch_size, augment, mixup, patience, class_weight, seed
        See `classify.finetuning.config.TrainConfig`.
    learning_rate, batch_norm : optional
        See `TrainConfig`. From scratch they are 1e-3 and ``trained`` if not given.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

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

        Returns
        -------
        FineTuneClassifier
            Itself.

        Raises
        ------
        TooFewImagesError
            If there is one class only, or a class has one image.
        UnknownLayerError, BackboneError, HeadMismatchError, CallError, OutputError, DivergedError
        """
        paths = _check_text_paths(X)
        self.classes_, y = np.unique(np.asarray(y), return_inverse=True)
        if len(y) != len(paths):
            raise CallError(f"{len(paths):,} paths do not go with {len(y):,} labels")
        config = TrainConfig.from_options(self, from_scratch=self._is_from_scratch)
        init_head, names = self._resolve_init_head(), [str(name) for name in self.classes_]
        parts = split_validation(y, names, groups, validation, self.seed)
        path = None if checkpoint is None else check_checkpoint_path(checkpoint)
        with init_distributed(self.device) as distributed, seed_torch(self.seed):
            backbone = self._load_backbone()
            say(self._format_start_message(backbone, parts, distributed))
            cache = None if self.cache is None else open_cache(self.cache)
            tune = find_last_weighted_stage(backbone) if self.tune == "last" else self.tune
            activations = find_activations(backbone, tune, cache, paths.tolist(), y, say)
            net = self._make_network(backbone, tune, config, init_head, activations)
            net.to(distributed.device)
            training, judged = self._make_datasets(backbone, paths, y, parts, activations, report)
            key = self._compute_key(init_head, backbone, training, judged)
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
                judged,
                config,
                distributed=distributed,
                checkpoint=None if path is None else (path, key),
                resume_from=resume_from,
                deadline=deadline,
                report=report,
            )
            scores = run_inference(net, judged, self.batch_size, distributed)
        n_epoch = len(training) + len(judged)
        self.images_run_ = n_init + len(self.history_) * n_epoch + len(judged)
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
        distributed = Distributed(resolve_device(self.device))
        net = self._network.to(distributed.device)
        embeddings = run_inference(net, examples, self.batch_size, distributed, embeddings=True)
        return self.head_.scores(embeddings)

    @property
    def _is_from_scratch(self) -> bool:
        return self.weights == "none"

    def _resolve_init_head(self) -> FittedHead | None:
        """The head to start from, once the options are known to go together."""
        if self._is_from_scratch and self.cache is not None:
            raise CallError(
                "--weights none trains from random weights, for which no cache can be of use: "
                "leave --cache out"
            )
        return resolve_init_head(self.init_head, self.classifier)

    def _load_backbone(self) -> Backbone:
        return load_backbone(
            self.backbone,
            None if self._is_from_scratch else self.weights,
            preprocess=self.preprocess,
            frozen_weights=not self._is_from_scratch,
        )

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
            check_init_head(init_head, backbone, net.last_layer, [str(x) for x in self.classes_])
        return net

    def _make_datasets(
        self,
        backbone: Backbone,
        paths: np.ndarray,
        y: np.ndarray,
        parts: Sequence[np.ndarray],
        activations: ActivationDataset | None,
        report: ProgressCallback,
    ) -> Sequence[Examples]:
        """What to train on and what to validate by."""
        self.failures_: dict[str, str] = {}
        if activations is not None:
            return [activations.subset(part) for part in parts]

        def report_images(progress: Progress) -> None:
            report(TrainProgress(progress.stage, progress.done, progress.total))

        datasets = []
        for part, purpose in zip(parts, ("train on", "validate by"), strict=True):
            augment = self.augment if purpose == "train on" else "none"
            dataset = read_image_dataset(
                self.root,
                paths[part],
                y[part],
                backbone.preprocess,
                augment,
                self.seed,
                report_images,
            )
            failures = dataset.images.failures
            missing = np.setdiff1d(y[part], dataset.y)
            if len(missing):
                path, reason = next(iter(failures.items()))
                raise TooFewImagesError(
                    f"no image of class {str(self.classes_[missing[0]])!r} to {purpose} can be "
                    f"read ({path}: {reason})"
                )
            self.failures_ |= failures
            datasets.append(dataset)
        return datasets

    def _compute_key(
        self,
        init_head: FittedHead | None,
        backbone: Backbone,
        training: Examples,
        judged: Examples,
    ) -> str:
        """A digest of everything that decides the result, for the checkpoint."""
        given: dict[str, Any] = self.get_params(deep=False)
        del given["root"], given["device"]  # neither changes what the images show
        given["cache"] = self.cache is not None
        if init_head is not None:
            scorer = init_head.scorer
            given["init_head"] = compute_digest(scorer.coef, scorer.intercept)  # type: ignore[union-attr]
        options = {name: value if value is None else str(value) for name, value in given.items()}
        contents = (training.sha256, training.y, judged.sha256, judged.y)
        return compute_digest(options, backbone.weights_sha256, *contents)

    def _format_start_message(
        self, backbone: Backbone, parts: Sequence[np.ndarray], distributed: Distributed
    ) -> str:
        weights = "random" if self._is_from_scratch else backbone.weights
        several = f" x {distributed.world_size}" if distributed.world_size > 1 else ""
        n_train, n_validation = (int(part.sum()) for part in parts)
        return (
            f"{backbone.name}, weights {weights}, tuning {self.tune} on "
            f"{distributed.device}{several}: {n_train:,} images to train on, {n_validation:,} to "
            "validate by"
        )


def _check_text_paths(X: Any) -> np.ndarray:
    paths = check_paths(X)
    if not all(isinstance(path, str) for path in paths):
        raise CallError("X is image paths, as text")
    return paths

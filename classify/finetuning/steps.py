"""The steps of a fine-tuning: network, images, a start, training, and a head at the end."""

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from classify.data.features import open_cache
from classify.data.source_images import SourceImages
from classify.errors import CallError, TooFewImagesError
from classify.finetuning.checkpoint import Checkpoint, compute_key, load_checkpoint
from classify.finetuning.config import Epoch, TrainConfig
from classify.finetuning.datasets.activations import ActivationDataset, find_activations
from classify.finetuning.datasets.images import DecodedImages, ImageDataset, read_image_datasets
from classify.finetuning.distributed import Distributed
from classify.finetuning.head_transfer import (
    RANDOM_INIT,
    check_init_head,
    extract_state_dict,
    init_classifier,
    to_fitted_head,
)
from classify.finetuning.network import FineTuneNetwork
from classify.finetuning.objectives.objective import AnyHead, Decided, Objective
from classify.finetuning.trainer import (
    ProgressCallback,
    TrainProgress,
    run_inference,
    train_network,
)
from classify.finetuning.tuned_part.stages import resolve_tune
from classify.time_limit import EpochBudget, TimeLimit
from featurize.backbones.backbone import Backbone
from featurize.backbones.load import load_backbone
from featurize.backbones.pixel_network import lay_channels_last
from featurize.engines.torch_settings import precision_context
from featurize.errors import FeaturizeError
from featurize.progress import Say

if TYPE_CHECKING:
    from classify.finetuning.estimator import FineTuneEstimator

N_TIMED_IMAGES = 16  # by which it is estimated how long testing takes
SAVED_BYTES_PER_SECOND = 1e8  # tensors copied, hashed and written
MIN_SAVE_SECONDS = 0.5


class FineTuning:
    """One fine-tuning. Its methods are its steps, in their order.

    Parameters
    ----------
    options : FineTuneEstimator
        Its parameters are the options.
    config : TrainConfig
        Those of the training.
    init_head : FittedHead or FittedTargets, optional
    objective : Objective
        What the network is trained for.
    distributed : Distributed
        The processes that train together.
    say : callable
        Called with sentences for the user.
    report : callable
        Called with a `TrainProgress` often.
    images : SourceImages, optional
        Those of the options' `root`, where they are listed already.

    Attributes
    ----------
    backbone : Backbone
        The network that is tuned.
    net : FineTuneNetwork
        Its trainable part and the classifier.
    training, held_out : ImageDataset or ActivationDataset
        The images to train on, and those to validate by.
    failures : dict of str to str
        Why an image was left out, by path.
    n_init : int
        Images that were run through the network for its start.
    validated : dict of str to object
        What `Objective.judge` says of each validation image, by path; after `decide`.

    Raises
    ------
    BackboneError
        If the network or its weights cannot be loaded.
    CallError
        If weights or preprocessing are given beside a `Backbone`, which has them; if several
        processes cannot train so.
    """

    net: FineTuneNetwork
    training: ImageDataset | ActivationDataset
    held_out: ImageDataset | ActivationDataset

    def __init__(
        self,
        options: "FineTuneEstimator",
        config: TrainConfig,
        init_head: AnyHead | None,
        objective: Objective,
        distributed: Distributed,
        say: Say,
        report: ProgressCallback,
        images: SourceImages | None = None,
    ) -> None:
        self.options, self.config = options, config
        self.init_head, self.objective = init_head, objective
        self.distributed, self.say, self.report = distributed, say, report
        if images is not None:
            self.images = images
        config.check_processes(distributed.world_size)
        self.backbone = _load_backbone(options)
        self.failures: dict[str, str] = {}
        self.n_init = 0
        self.validated: dict[str, Any] = {}
        self._cache = None if options.cache is None else open_cache(options.cache)
        self._checkpoint: tuple[Path, str] | None = None
        self._resume_from: Checkpoint | None = None

    @cached_property
    def images(self) -> SourceImages:
        """The images; opened when one is to be read, as cached activations need none."""
        return SourceImages(self.options.root, self._cache)

    def say_start(self, masks: Sequence[np.ndarray]) -> None:
        """Say what is tuned, and on how many images.

        Parameters
        ----------
        masks : pair of bool arrays of shape (n,)
            Training images and validation images.
        """
        weights = "random" if self.options.is_from_scratch else self.backbone.weights
        world_size = self.distributed.world_size
        processes = f" x {world_size}" if world_size > 1 else ""
        adapters = f" by adapters of rank {self.config.lora}" if self.config.lora else ""
        n_train, n_validation = (int(mask.sum()) for mask in masks)
        self.say(
            f"{self.backbone.name}, weights {weights}, tuning {self.options.tune}{adapters} on "
            f"{self.distributed.device}{processes}: {n_train:,} images to train on, "
            f"{n_validation:,} to validate by"
        )

    def prepare(self, paths: np.ndarray, y: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        """Make the network, and what it is trained on: cached activations or images.

        Parameters
        ----------
        paths : array of str of shape (n,)
            Keys of the images.
        y : int array of shape (n,), or float64 array of shape (n, T)
            Labels, as the objective takes them.
        masks : pair of bool arrays of shape (n,)
            Training images and validation images.

        Raises
        ------
        CallError, UnknownLayerError, BackboneError, HeadMismatchError
            If the network cannot be tuned so, or cache or head do not belong to it.
        TooFewImagesError
            If too few images can be read in one of the two parts.
        """
        tune = resolve_tune(self.backbone, self.options.tune)
        activations = find_activations(
            self.backbone, tune, self._cache, paths.tolist(), y, self.say
        )
        self._make_network(tune, from_activations=activations is not None)
        if activations is not None:
            self.training, self.held_out = (activations.subset(mask) for mask in masks)
        else:
            self._read_images(paths, y, masks)
        if len(self.training) < self.distributed.world_size:
            raise TooFewImagesError(
                f"{len(self.training)} images to train on are fewer than the "
                f"{self.distributed.world_size} processes"
            )

    def _make_network(self, tune: str, *, from_activations: bool) -> None:
        net = FineTuneNetwork(
            self.backbone,
            tune,
            self.objective.n_outputs,
            self.options.classifier,
            n_cutpoints=self.objective.n_cutpoints,
            from_activations=from_activations,
            batch_norm=self.config.batch_norm,
            lora=self.config.lora,
        )
        if self.init_head is not None:
            check_init_head(self.init_head, self.backbone, net.last_layer, self.objective)
        self.net = net.to(self.distributed.device)
        if self.distributed.device != "cpu" or self.distributed.world_size > 1:
            # As their gradients are, which are summed over processes as they lie in memory.
            lay_channels_last(self.net)

    def _read_images(self, paths: np.ndarray, y: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        datasets = read_image_datasets(
            self.images,
            paths,
            y,
            masks,
            check_readable=self.objective.check_readable,
            preprocess=self.backbone.preprocess,
            augment=self.options.augment,
            seed=self.options.seed,
            report=lambda step: self.report(TrainProgress(step.stage, step.done, step.total)),
        )
        for dataset in datasets:
            self.failures |= dataset.images.failures
            if costly := dataset.images.describe_rereading():
                self.say(costly)
        self.training, self.held_out = datasets

    def start(self, checkpoint: Path | None) -> None:
        """Start where a checkpoint stands, or from a classifier.

        Parameters
        ----------
        checkpoint : Path, optional
            Of the checkpoint, which need not exist yet.
        """
        options, datasets = self.options.get_params(deep=False), (self.training, self.held_out)
        key = compute_key(options, self.init_head, self.backbone, datasets, self.objective.key)
        if self.distributed.broadcast_object(key) != key:
            raise CallError("the processes differ in options, images, labels or weights")
        if checkpoint is not None:
            self._checkpoint = checkpoint, key
            # One process reads it: the others may not see the file, or an older one.
            found = None if self.distributed.rank else load_checkpoint(checkpoint, key, self.net)
            self._resume_from = self.distributed.broadcast_object(found)
        if self._resume_from is not None:
            n_epochs = len(self._resume_from.history)
            self.say(f"going on after epoch {n_epochs}, from {checkpoint}")
            return
        random_init = self.options.init_head == RANDOM_INIT or self.options.is_from_scratch
        self.n_init = init_classifier(
            self.net,
            self.training,
            self.objective,
            self.config,
            self.distributed,
            init_head=self.init_head,
            random_init=random_init,
            cache=self._cache,
            report=self.report,
        )

    def plan(self, limit: TimeLimit, paths: np.ndarray, n_test: int) -> EpochBudget | None:
        """Estimate how much of a time limit is for epochs, by timing some images.

        Parameters
        ----------
        limit : TimeLimit
        paths : array of str
            Keys of the images.
        n_test : int
            Number of images that will be predicted after training.

        Returns
        -------
        EpochBudget, or None
            None without a limit.
        """
        if not limit.is_set:
            return None
        names, device = paths[:N_TIMED_IMAGES].tolist(), self.distributed.device
        decode_seconds = self._time_decoding(names)
        # A copy, as the backbone's weights stay where they are.
        trunk = copy.deepcopy(self.backbone.cut([self.net.last_layer])).to(device).eval()
        # Its time does not depend on what the images show.
        side = self.backbone.preprocess.crop
        batch = torch.zeros(len(names), 3, side, side, device=device)
        # As validation and test are: in float32 on a GPU too.
        with torch.inference_mode(), precision_context(device, "float32"):
            for _ in range(2):  # the first time is the slower one
                started = time.monotonic()
                trunk(batch)[0].cpu()  # waits for the device
        run_seconds = (time.monotonic() - started) / len(batch)
        n_bytes = sum(tensor.nbytes for tensor in trunk.state_dict().values())
        validate_seconds = len(self.held_out) * run_seconds
        test_seconds = n_test * (decode_seconds + run_seconds)
        save_seconds = MIN_SAVE_SECONDS + n_bytes / SAVED_BYTES_PER_SECOND
        return EpochBudget(limit, validate_seconds, validate_seconds + test_seconds + save_seconds)

    def _time_decoding(self, paths: list[str]) -> float:
        """Measure the seconds an image takes; none where there are no images to test on."""
        with suppress(FeaturizeError):  # training from cached maps needs no images
            listing = self.images.locate(paths)
            started = time.monotonic()
            DecodedImages(listing, self.backbone.preprocess)
            return (time.monotonic() - started) / len(paths)
        return 0.0

    def train(self, budget: EpochBudget | None) -> list[Epoch]:
        """Train, and merge adapters into the weights.

        Parameters
        ----------
        budget : EpochBudget, optional
            As `plan` returns it.

        Returns
        -------
        list of Epoch

        Raises
        ------
        DivergedError
            If the loss is not finite.
        OutputError
            If the checkpoint cannot be written.
        RunInterruptedError
            If not even one epoch fits into the budget.
        """
        history = train_network(
            self.net,
            self.training,
            self.held_out,
            self.objective,
            self.config,
            distributed=self.distributed,
            checkpoint=self._checkpoint,
            resume_from=self._resume_from,
            budget=budget,
            report=self.report,
        )
        if budget is not None and budget.is_spent:
            self.say(
                f"the time limit has no room for another epoch: {len(history)} of "
                f"{self.config.epochs} are done, and the best of them is kept"
            )
        self.net.merge_adapters()
        return history

    def decide(self, units: Mapping[str, int]) -> Decided:
        """Decide on the validation part how outputs become predictions.

        Parameters
        ----------
        units : mapping of str to int
            Images with the same number belong together, by path.

        Returns
        -------
        mapping of str to object
            As `Objective.decide` returns it.
        """
        outputs = run_inference(self.net, self.held_out, self.config.batch_size, self.distributed)
        y, paths = self.held_out.y, self.held_out.paths
        decided = self.objective.decide(outputs, y, np.array([units[path] for path in paths]))
        judged = self.objective.judge(outputs, y, decided)
        self.validated = dict(zip(paths, judged, strict=True))
        return decided

    def package(self, decided: Decided) -> tuple[AnyHead, dict[str, Tensor]]:
        """Package the trained network as a head and the weights of a backbone.

        Parameters
        ----------
        decided : mapping of str to object
            As `decide` returns it.

        Returns
        -------
        head : FittedHead or FittedTargets
            The classifier on the tuned backbone's embeddings.
        network : dict of str to Tensor
            The tuned backbone's weights.
        """
        network = extract_state_dict(self.net, self.backbone)
        head = to_fitted_head(
            self.net,
            self.backbone,
            self.objective,
            decided=decided,
            train_sha256=np.concatenate([self.training.sha256, self.held_out.sha256]),
        )
        return head, network


def _load_backbone(options: "FineTuneEstimator") -> Backbone:
    if not isinstance(options.backbone, Backbone):
        return load_backbone(
            options.backbone,
            None if options.is_from_scratch else options.weights,
            preprocess=options.preprocess,
            frozen_weights=not options.is_from_scratch,
        )
    if options.weights is not None or options.preprocess is not None:
        raise CallError("a Backbone has its weights and preprocessing: leave both options out")
    return options.backbone

"""What a tuned network's classifier starts from: a linear probe, or random weights."""

import os

import numpy as np
from threadpoolctl import threadpool_limits
from torch import Tensor

from classify.data.features import FeatureRows, find_rows
from classify.data.folds import hash_prefixes
from classify.data.preparation import STANDARDISE
from classify.errors import CallError, HeadMismatchError
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets import (
    ADD_IMAGES,
    ActivationDataset,
    ImageDataset,
    describe_extractor,
)
from classify.finetuning.distributed import Distributed
from classify.finetuning.network import FineTuneNetwork
from classify.finetuning.trainer import ProgressCallback, run_inference
from classify.heads.fitted import FeatureSource, FittedHead, HeadLayer
from classify.heads.io import load_head
from classify.heads.models import LinearModel
from classify.heads.registry import get_head_spec
from classify.training.train import train
from classify.training.training_set import make_training_set
from featurize.backbones import weights as weights_files
from featurize.backbones.backbone import Backbone
from featurize.cache.reader import FeatureCache
from featurize.fingerprint import compute_fingerprint
from featurize.layer_spec import LayerSpec

WEIGHTS_NAME = "fine-tuned"

SOFTMAX = get_head_spec("softmax")
PROBE_LOSS_SLACK = 0.1
"""Log loss by which the probe that training starts from may be behind the best, for the sake of
stronger regularisation: where classes part easily the best has weights so large that every step of
the network below upsets them."""
MAX_SCALING_IMAGES = 2000  # images whose embeddings standardise those of a random classifier
RANDOM_INIT = "random"


def resolve_init_head(
    head: str | os.PathLike[str] | FittedHead | None, classifier: str
) -> FittedHead | None:
    """Load the head that the option ``init_head`` names.

    Parameters
    ----------
    head : path or FittedHead, optional
        Or ``random``.
    classifier : {"linear", "mlp"}
        Which is to start from it.

    Returns
    -------
    FittedHead, or None
        None for ``random``, or where no head is given.

    Raises
    ------
    CallError
        If the classifier is not linear.
    FileNotFoundError, HeadFileError
    """
    if head is None or head == RANDOM_INIT:
        return None
    head = head if isinstance(head, FittedHead) else load_head(head)
    if classifier != "linear":
        raise CallError(
            f"the classifier {classifier} cannot start from a head: leave --init-head or "
            "--classifier out"
        )
    return head


def check_init_head(
    head: FittedHead, backbone: Backbone, last_layer: LayerSpec, classes: list[str]
) -> None:
    """Refuse a head that is not linear in this network's embeddings.

    Raises
    ------
    HeadMismatchError
        Naming what differs.
    """
    if not isinstance(head.scorer, LinearModel):
        raise HeadMismatchError(f"training cannot start from a {head.head} head: it is not linear")
    if head.prepare != STANDARDISE:
        raise HeadMismatchError(
            f"training cannot start from this head: it takes its features as {head.prepare}, and a "
            "network ends in a linear layer; train one with `classify fit ... --prepare "
            f"{STANDARDISE}`, or leave --init-head out"
        )
    made = head.source.extractor
    compared = {
        "classes": (list(head.classes), classes),
        "layer": ([layer.spec.option for layer in head.source.layers], [last_layer.option]),
        **made.differences(describe_extractor(backbone, made)),
    }
    for what, (one, other) in compared.items():
        if one != other:
            raise HeadMismatchError(
                f"the head to start from has another {what} ({_shorten(one)}) than what is tuned "
                f"({_shorten(other)}); train one with `classify fit C.h5 --layer {last_layer.key}` "
                "on a cache of this backbone, or leave --init-head out"
            )


def init_classifier(
    net: FineTuneNetwork,
    training: ImageDataset | ActivationDataset,
    config: TrainConfig,
    distributed: Distributed,
    *,
    init_head: FittedHead | None,
    random_init: bool,
    cache: FeatureCache | None,
    report: ProgressCallback = lambda _: None,
) -> int:
    """Give a network's classifier the weights that its training begins with.

    Parameters
    ----------
    net : FineTuneNetwork
        On the device of `distributed`.
    training : ImageDataset or ActivationDataset
        n examples.
    config : TrainConfig
        Its class weight and its seed are also those of the linear probe.
    distributed : Distributed
    init_head : FittedHead, optional
        To start from as it is. Otherwise a linear probe is trained.
    random_init : bool
        Leave the classifier random, with standardised inputs.
    cache : FeatureCache, optional
        If it has the last layer, the embeddings are read from there.
    report : callable

    Returns
    -------
    int
        How many images were run through the network for it.
    """
    if init_head is not None:
        net.classifier.init_from(init_head.scorer)  # type: ignore[arg-type]
        return 0
    random_init = random_init or net.classifier.hidden is not None
    chosen = np.arange(len(training))
    if random_init and len(chosen) > MAX_SCALING_IMAGES:
        rng = np.random.default_rng(config.seed)
        chosen = np.sort(rng.choice(chosen, MAX_SCALING_IMAGES, replace=False))
    name, n_run = net.last_layer.key, 0
    if cache is not None and name in cache.layers:
        rows = find_rows(cache, training.paths, ADD_IMAGES)[chosen]
        embeddings = FeatureRows.from_cache(cache, (name,), rows).to_array()
    else:
        plain = training.without_augmentation(chosen)
        embeddings = run_inference(
            net, plain, config.batch_size, distributed, embeddings=True, report=report
        )
        n_run = len(chosen)
    if random_init:
        net.classifier.fit_scaling(embeddings)
        return n_run
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
    net.classifier.init_from(probe.scorer)  # type: ignore[arg-type]
    return n_run


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def extract_state_dict(net: FineTuneNetwork, backbone: Backbone) -> dict[str, Tensor]:
    """Copy the tuned network's tensors to the processor, named as those of the whole network."""
    net.use_images()
    net.cpu().eval().requires_grad_(False)
    places = backbone.network.module.state_dict()
    return {k: tensor.clone() for k, tensor in net.trunk.state_dict().items() if k in places}


def to_fitted_head(
    net: FineTuneNetwork,
    backbone: Backbone,
    classes: list[str],
    *,
    temperature: float,
    train_sha256: np.ndarray,
) -> FittedHead:
    """Package the classifier as a head on the tuned network's embeddings.

    Parameters
    ----------
    net : FineTuneNetwork
        Trained.
    backbone : Backbone
    classes : list of str
    temperature : float
    train_sha256 : uint8 array of shape (n, 32)
        SHA-256 of each image it was trained on, or stopped by.
    """
    scorer, last = net.classifier.to_model(), net.last_layer
    sha256 = weights_files.hash_state_dict(extract_state_dict(net, backbone))
    fingerprint = compute_fingerprint(
        backbone=backbone.name,
        weights_sha256=sha256,
        preprocess=backbone.preprocess,
        layer=last.layer,
        pool=last.pool,
        precision="float32",
        dtype="<f4",
    )
    embedding = HeadLayer(last.key, last.layer, last.pool, "<f4", scorer.dim, fingerprint)
    return FittedHead(
        head="softmax" if isinstance(scorer, LinearModel) else "mlp",
        classes=classes,
        prepare=STANDARDISE,
        scorer=scorer,
        probabilistic=True,
        temperature=temperature,
        settings={},
        task="",
        source=FeatureSource(
            backbone=backbone.name,
            weights=WEIGHTS_NAME,
            weights_sha256=sha256,
            preprocess=backbone.preprocess,
            precision="float32",
            layers=(embedding,),
        ),
        record={},
        seen=np.unique(hash_prefixes(train_sha256)),
    )

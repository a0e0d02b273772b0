"""What a tuned network's classifier starts from: a linear probe, or random weights."""

import os
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits
from torch import Tensor

from classify.data.features import FeatureRows, find_rows
from classify.data.folds import hash_prefixes
from classify.data.preparation import STANDARDISE
from classify.errors import HeadMismatchError
from classify.finetuning.activations import ADD_IMAGES, describe_extractor
from classify.finetuning.datasets import ActivationDataset, ImageDataset
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


def resolve_init_head(head: str | os.PathLike[str] | FittedHead | None) -> FittedHead | None:
    """The head that an option means; None for ``random``, or where none is given.

    Raises
    ------
    FileNotFoundError, HeadFileError
    """
    if head is None or head == RANDOM_INIT or isinstance(head, FittedHead):
        return head if isinstance(head, FittedHead) else None
    return load_head(head)


def check_init_head(
    head: FittedHead, backbone: Backbone, last_layer: LayerSpec, classes: list[str]
) -> None:
    """Refuse a head that is not linear in this network's embeddings.

    Raises
    ------
    HeadMismatch
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
    distributed: Distributed,
    *,
    head: FittedHead | None,
    cache: FeatureCache | None,
    random_init: bool,
    class_weight: str | None,
    batch_size: int,
    seed: int,
    report: ProgressCallback = lambda _: None,
) -> int:
    """Set a network's classifier to where its training begins.

    Parameters
    ----------
    net : FineTuneNetwork
        On the crew's device.
    training : ImageDataset or Maps
        n examples.
    head : FittedHead, optional
        To start from as it is.
    cache : FeatureCache, optional
        Where it has the last layer, that is not computed again.
    random_init : bool
        Leave the classifier random, though standardised.
    class_weight, batch_size, seed
        Of the linear probe, and of the pass over the images.
    report : callable

    Returns
    -------
    int
        How many images were run through the network for it.
    """
    if head is not None:
        net.classifier.init_from(head.scorer)  # type: ignore[arg-type]
        return 0
    random_init = random_init or net.classifier.hidden is not None
    some = np.arange(len(training))
    if random_init and len(some) > MAX_SCALING_IMAGES:
        some = np.sort(np.random.default_rng(seed).choice(some, MAX_SCALING_IMAGES, replace=False))
    name, run = net.last_layer.key, 0
    if cache is not None and name in cache.layers:
        rows = find_rows(cache, training.paths, ADD_IMAGES)[some]
        embeddings = FeatureRows.from_cache(cache, (name,), rows).to_array()
    else:
        plain = training.without_augmentation(some)
        embeddings = run_inference(
            net, plain, batch_size, distributed, embeddings=True, report=report
        )
        run = len(some)
    if random_init:
        net.classifier.fit_scaling(embeddings)
        return run
    classes, y = np.unique(training.y, return_inverse=True)
    lesson = make_training_set(
        SOFTMAX, embeddings, y, classes, np.arange(len(y)), class_weight=class_weight, seed=seed
    )
    with threadpool_limits(1):
        probe = train(SOFTMAX, replace(lesson, loss_tol=PROBE_LOSS_SLACK))
    net.classifier.init_from(probe.scorer)  # type: ignore[arg-type]
    return run


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def extract_state_dict(net: FineTuneNetwork, backbone: Backbone) -> dict[str, Tensor]:
    """The tuned network's tensors, on the processor, named as those of the whole network."""
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
    """The classifier as a head on the tuned network's embeddings.

    Parameters
    ----------
    net : FineTuneNetwork
        Trained.
    classes : list of str
    temperature : float
    train_sha256 : uint8 array of shape (n, 32)
        SHA-256 of each image it was trained on, or stopped by.
    """
    scorer, last = net.classifier.to_model(), net.last_layer
    sha256 = weights_files.hash_state_dict(extract_state_dict(net, backbone))
    printed = compute_fingerprint(
        backbone=backbone.name,
        weights_sha256=sha256,
        preprocess=backbone.preprocess,
        layer=last.layer,
        pool=last.pool,
        precision="float32",
        dtype="<f4",
    )
    embedding = HeadLayer(last.key, last.layer, last.pool, "<f4", scorer.dim, printed)
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

"""Between heads and tuned networks: a classifier from a linear probe, and back to a head."""

import os

import numpy as np
from torch import Tensor

from classify.data.features import FeatureRows, find_rows
from classify.data.folds import hash_prefixes
from classify.data.preparation import STANDARDISE
from classify.errors import CallError, HeadMismatchError
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets.activations import (
    ADD_IMAGES,
    ActivationDataset,
    describe_extractor,
)
from classify.finetuning.datasets.images import ImageDataset
from classify.finetuning.distributed import Distributed
from classify.finetuning.network import FineTuneNetwork
from classify.finetuning.objectives.objective import AnyHead, Decided, Objective
from classify.finetuning.trainer import ProgressCallback, run_inference
from classify.heads.models import LinearModel
from classify.heads.source import FeatureSource, HeadLayer
from classify.heads.targets.saved import load_head
from featurize.backbones import weights as weights_files
from featurize.backbones.backbone import Backbone
from featurize.cache.reader import FeatureCache
from featurize.fingerprint import compute_fingerprint
from featurize.layer_spec import LayerSpec
from featurize.progress import ignore

WEIGHTS_NAME = "fine-tuned"

MAX_SCALING_IMAGES = 2000  # images that the scaling of a random classifier is fitted on
RANDOM_INIT = "random"


def resolve_init_head(
    head: str | os.PathLike[str] | AnyHead | None, classifier: str
) -> AnyHead | None:
    """Load the head that the option ``init_head`` names.

    Parameters
    ----------
    head : path, FittedHead or FittedTargets, optional
        The value of the option. It may be ``random``.
    classifier : {"linear", "mlp"}
        The kind of the classifier to initialise.

    Returns
    -------
    FittedHead or FittedTargets, or None
        None for ``random``, or where no head is given.

    Raises
    ------
    CallError
        If the classifier is not linear.
    FileNotFoundError
        If there is no such file.
    HeadFileError
        If the file is no valid head.
    """
    if head is None or head == RANDOM_INIT:
        return None
    head = load_head(head) if isinstance(head, (str, os.PathLike)) else head
    if classifier != "linear":
        raise CallError(
            f"the classifier {classifier} cannot start from a head: leave --init-head or "
            "--classifier out"
        )
    return head


def check_init_head(
    head: AnyHead, backbone: Backbone, last_layer: LayerSpec, objective: Objective
) -> None:
    """Refuse a head that is not linear in this network's embeddings.

    Parameters
    ----------
    head : FittedHead or FittedTargets
        The head to start from.
    backbone : Backbone
        The network to tune.
    last_layer : LayerSpec
        Its last layer.
    objective : Objective
        The labels of the training.

    Raises
    ------
    HeadMismatchError
        If the head is not linear, or differs in labels, layer or extractor.
    """
    if not isinstance(head.scorer, LinearModel):
        raise HeadMismatchError(f"training cannot start from a {head.head} head: it is not linear")
    if head.prepare != STANDARDISE:
        raise HeadMismatchError(
            f"training cannot start from this head: it takes its features as {head.prepare}, and a "
            "network ends in a linear layer; train one with `classify fit ... --prepare "
            f"{STANDARDISE}`, or leave --init-head out"
        )
    extractor = head.source.extractor
    compared = {
        **objective.compare_labels(head),
        "layer": ([layer.spec.option for layer in head.source.layers], [last_layer.option]),
        **extractor.differences(describe_extractor(backbone, extractor)),
    }
    for name, (of_head, of_network) in compared.items():
        if of_head != of_network:
            raise HeadMismatchError(
                f"the head to start from has another {name} ({_shorten(of_head)}) than what is "
                f"tuned ({_shorten(of_network)}); train one with `classify fit C.h5 --layer "
                f"{last_layer.key}` on a cache of this backbone, or leave --init-head out"
            )


def init_classifier(
    net: FineTuneNetwork,
    training: ImageDataset | ActivationDataset,
    objective: Objective,
    config: TrainConfig,
    distributed: Distributed,
    *,
    init_head: AnyHead | None,
    random_init: bool,
    cache: FeatureCache | None,
    report: ProgressCallback = ignore,
) -> int:
    """Set the initial weights of a network's classifier.

    Parameters
    ----------
    net : FineTuneNetwork
        On the device of `distributed`.
    training : ImageDataset or ActivationDataset
        The training images.
    objective : Objective
        Trains the linear probe.
    config : TrainConfig
        Its class weight and seed are also those of the linear probe.
    distributed : Distributed
        Gives the device and the precision.
    init_head : FittedHead or FittedTargets, optional
        A linear head to copy. Without it a linear probe is trained.
    random_init : bool
        Whether to leave the weights random and only standardise the inputs. A classifier with a
        hidden layer is always initialised so.
    cache : FeatureCache, optional
        If it has the last layer, the embeddings are read from it.
    report : callable
        Called with a `TrainProgress` while embeddings are computed.

    Returns
    -------
    int
        Number of images that were run through the network.
    """
    if init_head is not None:
        objective.init_from_head(net.classifier, init_head)
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
        unaugmented = training.without_augmentation(chosen)
        embeddings = run_inference(
            net, unaugmented, config.batch_size, distributed, embeddings=True, report=report
        )
        n_run = len(chosen)
    if random_init:
        net.classifier.fit_scaling(embeddings)
        objective.init_at_random(net.classifier, training.y)
    else:
        objective.init_from_probe(net.classifier, embeddings, training, config)
    return n_run


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def extract_state_dict(net: FineTuneNetwork, backbone: Backbone) -> dict[str, Tensor]:
    """Copy the tuned backbone's tensors to the CPU, named as in the whole backbone.

    Parameters
    ----------
    net : FineTuneNetwork
        Trained. It is moved to the CPU, frozen, and takes images from now on.
    backbone : Backbone
        The backbone of `net`.

    Returns
    -------
    dict of str to Tensor
    """
    net.use_images()
    net.cpu().eval().requires_grad_(False)
    names = backbone.network.module.state_dict()
    return {
        name: tensor.clone() for name, tensor in net.trunk.state_dict().items() if name in names
    }


def to_fitted_head(
    net: FineTuneNetwork,
    backbone: Backbone,
    objective: Objective,
    *,
    decided: Decided,
    train_sha256: np.ndarray,
) -> AnyHead:
    """Package the classifier as a head on the tuned network's embeddings.

    Parameters
    ----------
    net : FineTuneNetwork
        Trained.
    backbone : Backbone
        The backbone of `net`.
    objective : Objective
        What the network was trained for.
    decided : mapping of str to object
        What validation images decided, as `Objective.decide` returns it.
    train_sha256 : uint8 array of shape (n, 32)
        SHA-256 of each training and validation image.

    Returns
    -------
    FittedHead or FittedTargets
    """
    dim, last = len(net.classifier.mean), net.last_layer
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
    embedding = HeadLayer(last.key, last.layer, last.pool, "<f4", dim, fingerprint)
    source = FeatureSource(
        backbone=backbone.name,
        weights=WEIGHTS_NAME,
        weights_sha256=sha256,
        preprocess=backbone.preprocess,
        precision="float32",
        layers=(embedding,),
        licence=backbone.facts.get("licence", ""),
    )
    seen = np.unique(hash_prefixes(train_sha256))
    return objective.make_head(net.classifier, source, seen, decided)

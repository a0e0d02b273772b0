"""What fine-tuning gives: a head like any other, and the network that it reads."""

import numpy as np
from torch import Tensor

from classify.entering import name_of
from classify.fitted import FittedHead, HeadLayer, Source
from classify.nets import Net
from classify.preparation import STANDARDISE
from classify.scorers import Linear
from classify.splits import beginnings
from featurize import weights as weights_files
from featurize.backbones import Backbone
from featurize.fingerprint import fingerprint

WEIGHTS = "fine-tuned"


def weights_of(net: Net, backbone: Backbone) -> dict[str, Tensor]:
    """The tuned network's tensors, on the processor, named as those of the whole network."""
    net.take_images()
    net.cpu().eval().requires_grad_(False)
    places = backbone.network.module.state_dict()
    return {k: tensor.clone() for k, tensor in net.trunk.state_dict().items() if k in places}


def head_of(
    net: Net, backbone: Backbone, classes: list[str], *, temperature: float, seen: np.ndarray
) -> FittedHead:
    """The classifier as a head on the tuned network's embeddings.

    Parameters
    ----------
    net : Net
        Trained.
    classes : list of str
    temperature : float
    seen : uint8 array of shape (n, 32)
        SHA-256 of each image it was trained on, or stopped by.
    """
    scorer, (layer, pool) = net.classifier.scorer(), net.last
    sha256 = weights_files.digest(weights_of(net, backbone))
    printed = fingerprint(
        backbone=backbone.name,
        weights_sha256=sha256,
        preprocess=backbone.preprocess,
        layer=layer,
        pool=pool,
        precision="float32",
        dtype="<f4",
    )
    embedding = HeadLayer(name_of(layer, pool), layer, pool, "<f4", scorer.dim, printed)
    return FittedHead(
        head="softmax" if isinstance(scorer, Linear) else "mlp",
        classes=classes,
        prepare=STANDARDISE,
        scorer=scorer,
        probabilistic=True,
        temperature=temperature,
        settings={},
        task="",
        source=Source(
            backbone=backbone.name,
            weights=WEIGHTS,
            weights_sha256=sha256,
            preprocess=backbone.preprocess,
            precision="float32",
            layers=(embedding,),
        ),
        record={},
        seen=np.unique(beginnings(seen)),
    )

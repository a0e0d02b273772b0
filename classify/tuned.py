"""What fine-tuning gives: a head like any other, and the network that it reads."""

import numpy as np
from torch import Tensor

from classify.finetuning.activations import dataset_name
from classify.heads.fitted import FeatureSource, FittedHead, HeadLayer
from classify.finetuning.network import FineTuneNetwork
from classify.data.preparation import STANDARDISE
from classify.heads.models import LinearModel
from classify.data.splits import hash_prefixes
from featurize.backbones import weights as weights_files
from featurize.backbones.backbone import Backbone
from featurize.fingerprint import compute_fingerprint

WEIGHTS_NAME = "fine-tuned"


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
    scorer, (layer, pool) = net.classifier.to_model(), net.last_layer
    sha256 = weights_files.hash_state_dict(extract_state_dict(net, backbone))
    printed = compute_fingerprint(
        backbone=backbone.name,
        weights_sha256=sha256,
        preprocess=backbone.preprocess,
        layer=layer,
        pool=pool,
        precision="float32",
        dtype="<f4",
    )
    embedding = HeadLayer(dataset_name(layer, pool), layer, pool, "<f4", scorer.dim, printed)
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

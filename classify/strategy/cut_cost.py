"""Cost of a network up to a cut. It is measured on the network, so torch is imported on demand."""

from dataclasses import asdict, dataclass
from typing import Any

from classify.data.features import CacheOrPath, open_cache
from featurize.backbones.families import EMBEDDING_DIMS
from featurize.backbones.names import TIMM
from featurize.errors import BackboneError
from featurize.system import signals

BATCH_SIZE = 8  # images; enough for a ratio of times, as large networks take seconds per image


@dataclass(frozen=True)
class CutCost:
    """Cost of a network up to a cut, as fractions of the whole network.

    Attributes
    ----------
    layer : str
    time : float
        Of a forward pass, measured on this machine's CPU.
    macs : float
        Of the multiply-accumulate operations.
    weights : float
        Of the bytes of the weights.
    dim : int
        Number of features per image.
    """

    layer: str
    time: float
    macs: float
    weights: float
    dim: int

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict for JSON.

        Returns
        -------
        dict
        """
        return asdict(self)


def measure_cut_cost(cache: CacheOrPath, layer: str) -> CutCost | None:
    """Measure what a cache's network costs up to a layer; no weights are downloaded.

    Parameters
    ----------
    cache : path or FeatureCache
    layer : str
        A layer of the cache.

    Returns
    -------
    CutCost or None
        None for a network that cannot be built by its name.

    Raises
    ------
    UnknownLayerError
        If the cache has no such layer.
    """
    cache = open_cache(cache)
    info, backbone = cache.layer(layer), cache.extractor.backbone
    if backbone not in EMBEDDING_DIMS and not backbone.startswith(TIMM):
        return None
    signals.import_uninterrupted("torchvision")
    from featurize import layer_costs, load_backbone

    try:
        # Networks of timm may be built for one size only, that of the cache.
        preprocess = cache.extractor.preprocess if backbone.startswith(TIMM) else None
        backbone_network = load_backbone(backbone, preprocess=preprocess, frozen_weights=False)
    except BackboneError:  # without timm, or with a version that has no such network
        return None
    total_bytes = sum(
        tensor.nbytes for tensor in backbone_network.network.module.state_dict().values()
    )
    cut_bytes = sum(
        tensor.nbytes for tensor in backbone_network.cut([info.spec]).state_dict().values()
    )
    (layer_cost,) = (
        layer_cost
        for layer_cost in layer_costs(backbone_network, BATCH_SIZE)
        if layer_cost.layer == info.layer
    )
    return CutCost(layer, layer_cost.cost, layer_cost.macs, cut_bytes / total_bytes, info.dim)

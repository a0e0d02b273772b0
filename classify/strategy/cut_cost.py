"""What a cut saves: measured on the network, so torch is imported here, when it is asked for."""

from dataclasses import asdict, dataclass
from typing import Any

from classify.data.features import CacheOrPath, open_cache
from featurize.backbones.families import EMBEDDING_DIMS
from featurize.system import signals

BATCH_SIZE = 8  # images: a share of the time is wanted, and large networks take seconds an image


@dataclass(frozen=True)
class CutCost:
    """What it takes to go no further than a cut, as shares of the whole network.

    Attributes
    ----------
    layer : str
    time : float
        Of a forward pass, measured on this machine's processor.
    macs : float
        Of the arithmetic.
    weights : float
        Of the bytes of its weights.
    dim : int
        Numbers that are kept of each image.
    """

    layer: str
    time: float
    macs: float
    weights: float
    dim: int

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict."""
        return asdict(self)


def measure_cut_cost(cache: CacheOrPath, layer: str) -> CutCost | None:
    """Measure what a cache's network costs up to a layer; weights are not needed for it.

    Parameters
    ----------
    cache : path or FeatureCache
    layer : str
        A layer of the cache.

    Returns
    -------
    Saving, or None
        None for a network that is not known by name.

    Raises
    ------
    UnknownLayer
    """
    cache = open_cache(cache)
    info, backbone = cache.layer(layer), cache.extractor.backbone
    if backbone not in EMBEDDING_DIMS:
        return None
    signals.import_uninterrupted("torchvision")
    from featurize import layer_costs, load_backbone

    net = load_backbone(backbone, frozen_weights=False)
    whole = sum(tensor.nbytes for tensor in net.network.module.state_dict().values())
    kept = sum(tensor.nbytes for tensor in net.cut([info.spec]).state_dict().values())
    (cost,) = (cost for cost in layer_costs(net, BATCH_SIZE) if cost.layer == info.layer)
    return CutCost(layer, cost.cost, cost.macs, kept / whole, info.dim)

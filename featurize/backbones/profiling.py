"""What each layer of a network costs: measured time, counted arithmetic."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from featurize.backbones.backbone import Backbone
from featurize.backbones.pixel_network import PixelNetwork
from featurize.backbones.pooling import pooled_dim

BATCH_SIZE = 32  # as a run has it at 224 pixels: times do not scale with the batch
N_PASSES = 5


@dataclass
class LayerCost:
    """One place to cut at.

    Attributes
    ----------
    layer : str
    shape : list of int
        What the layer gives for one image, in the network's own order of axes.
    dim : int
        Length of its vector under ``avg``.
    cost : float
        Measured share, 0 to 1, of the time of a whole forward pass, from pixels, to get here.
    macs : float
        The same share of the arithmetic (multiplications and additions).
    """

    layer: str
    shape: list[int]
    dim: int
    cost: float
    macs: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def layer_costs(backbone: Backbone, batch: int = BATCH_SIZE) -> list[LayerCost]:
    """Measure where a backbone can be cut, and what each cut saves.

    Parameters
    ----------
    batch : int
        Images in the batch that is timed on this machine's processor.

    Returns
    -------
    list of LayerCost
        Shallowest first.
    """
    module = backbone.network.to_graph_module()
    size = backbone.preprocess.crop
    prepared = PixelNetwork(module, backbone.preprocess)
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    clock = _TimingInterpreter(module)
    before = []  # the first layer, which every cut pays for
    with torch.inference_mode():
        for _ in range(N_PASSES):
            start = time.perf_counter()
            x = prepared.normalise(pixels)
            before.append(time.perf_counter() - start)
            clock.run(x)
        counter = _FlopInterpreter(module)
        counter.run(x[:1])
    names = [node.name for node in module.graph.nodes]
    # The best of several passes: what disturbs a node only ever makes it slower.
    seconds = [min(clock.seconds.get(name, [0.0])) for name in names]
    whole = min(before) + sum(seconds)
    flops = [counter.flops.get(name, 0) for name in names]
    found = []
    for layer in backbone.layers.values():
        upto = layer.depth + 1
        found.append(
            LayerCost(
                layer=layer.name,
                shape=list(layer.map_shape),
                dim=pooled_dim(layer.axis_order, "avg", layer.map_shape),
                cost=(min(before) + sum(seconds[:upto])) / whole,
                macs=sum(flops[:upto]) / max(sum(flops), 1),
            )
        )
    return found


class _TimingInterpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[str, list[float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        start = time.perf_counter()
        result = super().run_node(n)
        self.seconds.setdefault(n.name, []).append(time.perf_counter() - start)
        return result


class _FlopInterpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.flops: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.flops[n.name] = counter.get_total_flops()
        return result

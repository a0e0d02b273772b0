"""Profile the layers of a network: measured time and counted operations."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from featurize.backbones.backbone import Backbone
from featurize.backbones.pixel_network import PixelNetwork
from featurize.layers.axes import copy_to_meta

BATCH_SIZE = 32  # as in a run at 224 pixels: times are not proportional to the batch size
N_PASSES = 5


@dataclass
class LayerCost:
    """The cost of computing one layer from pixels.

    Attributes
    ----------
    layer : str
        Name of the layer.
    shape : list of int
        Shape of its output for one image, in the network's own order of axes.
    dim : int
        Length of its vector with the pool ``avg``.
    cost : float
        Measured time up to this layer, as a share (0 to 1) of a whole forward pass from pixels.
    macs : float
        Multiply-accumulate operations up to this layer, as a share of all.
    """

    layer: str
    shape: list[int]
    dim: int
    cost: float
    macs: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON.

        Returns
        -------
        dict of str to object
            The fields by name.
        """
        return asdict(self)


def layer_costs(backbone: Backbone, batch: int = BATCH_SIZE) -> list[LayerCost]:
    """Measure the cost of each layer at which a backbone can be cut.

    Parameters
    ----------
    backbone : Backbone
        The network.
    batch : int
        Number of images in the batch, which is timed on this machine's processor.

    Returns
    -------
    list of LayerCost
        The layers, shallowest first.
    """
    module = backbone.network.to_graph_module()
    size = backbone.preprocess.crop
    pixel_network = PixelNetwork(module, backbone.preprocess)
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    timer = _TimingInterpreter(module)
    normalise_seconds = []  # part of the cost of every cut
    with torch.inference_mode():
        for _ in range(N_PASSES):
            start = time.perf_counter()
            x = pixel_network.normalise(pixels)
            normalise_seconds.append(time.perf_counter() - start)
            timer.run(x)
        flop_counter = _FlopInterpreter(module)
        flop_counter.run(x[:1])
    names = [node.name for node in module.graph.nodes]
    # The minimum over passes: disturbances can only make a node slower.
    seconds = [min(timer.seconds.get(name, [0.0])) for name in names]
    total_seconds = min(normalise_seconds) + sum(seconds)
    flops = [flop_counter.flops.get(name, 0) for name in names]
    costs = []
    for layer in backbone.layers.values():
        n_nodes = layer.depth + 1
        costs.append(
            LayerCost(
                layer=layer.name,
                shape=list(layer.map_shape),
                dim=layer.dim("avg"),
                cost=(min(normalise_seconds) + sum(seconds[:n_nodes])) / total_seconds,
                macs=sum(flops[:n_nodes]) / max(sum(flops), 1),
            )
        )
    return costs


def count_macs(backbone: Backbone, layers: Iterable[str]) -> dict[str, float]:
    """Count the arithmetic of cuts, from the shapes of the tensors alone.

    Parameters
    ----------
    backbone : Backbone
        The network.
    layers : iterable of str
        Names of layers.

    Returns
    -------
    dict of str to float
        Multiply-accumulate operations per image in units of 1e9, by layer. Empty for a network
        whose shapes depend on values.
    """
    module = backbone.network.to_graph_module()
    size = backbone.preprocess.crop
    flop_counter = _FlopInterpreter(copy_to_meta(module))
    try:
        with torch.inference_mode():
            flop_counter.run(torch.empty(1, 3, size, size, device="meta"))
    except Exception:  # it runs the network's own code
        return {}
    nodes = list(module.graph.nodes)
    macs = {}
    for name in layers:
        needed, waiting = set(), [nodes[backbone.network.layer(name).depth]]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        flops = sum(flop_counter.flops.get(node.name, 0) for node in needed)
        macs[name] = round(flops / 2e9, 4)  # a multiplication and an addition
    return macs


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

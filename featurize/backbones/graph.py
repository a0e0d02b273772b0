"""The graph of a network, which can be cut so that nothing after the deepest layer runs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import VisionTransformer
from torchvision.models.feature_extraction import NodePathTracer

from featurize.backbones.families import Family
from featurize.backbones.inplace import remove_inplace_ops
from featurize.backbones.pooling import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    TOKENS,
    VECTOR,
    pool_maps,
    pooled_dim,
)
from featurize.errors import BackboneError, UnknownLayerError
from featurize.layer_spec import LayerSpec
from featurize.text import did_you_mean

# Modules whose output has channels first by definition.
_CHANNELS_FIRST_MODULES = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)


@dataclass(frozen=True)
class Layer:
    """A layer of a network.

    Attributes
    ----------
    name : str
        Dotted name in the network.
    depth : int
        Position in the network's order of computation.
    map_shape : tuple of int
        Shape of its output for one image, in the network's own order of axes.
    axis_order : str
        Position of the channels (see `featurize.backbones.pooling`), or a clause that says why the
        layer cannot be pooled.
    """

    name: str
    depth: int
    map_shape: tuple[int, ...]
    axis_order: str

    @property
    def usable(self) -> bool:
        """Whether the order of its axes is known, so that it can be pooled."""
        return self.axis_order in (VECTOR, CHANNELS_FIRST, CHANNELS_LAST, TOKENS)


class LayerGraph:
    """The graph of a network and its layers.

    Parameters
    ----------
    module : nn.Module
        The network, in evaluation mode. Its in-place operations are turned off.
    size : int
        Height and width of its input in pixels.
    family : Family, optional
        Its family, if known.

    Attributes
    ----------
    module : nn.Module
        As the parameter.
    input_size : int
        Height and width of its input in pixels.
    graph : fx.Graph
        The operations, none of them in place.
    node_depths : dict of fx.Node to int
        Position of each node in the order of computation.
    layers : dict of str to Layer
        All layers that give a tensor, by name, shallowest first; some are not usable.

    Raises
    ------
    BackboneError
        If the network can be traced neither operation by operation nor as a sequence of modules,
        or if it normalises by the statistics of each batch.
    """

    def __init__(self, module: nn.Module, size: int, family: Family | None = None) -> None:
        self.module = module
        self.input_size = size
        inplace_modules = set()
        for name, submodule in module.named_modules():
            if isinstance(submodule, _BatchNorm) and submodule.running_mean is None:
                raise BackboneError(
                    f"{name or 'the network'} normalises by the statistics of each batch, so an "
                    "image's features would depend on the others; give it statistics of its own"
                )
            if getattr(submodule, "inplace", False):
                submodule.inplace = False
                inplace_modules.add(name)
        self.graph, self._name_by_node = _trace(module)
        remove_inplace_ops(self.graph, inplace_modules)
        self.node_depths = {node: depth for depth, node in enumerate(self.graph.nodes)}
        self._node_by_name: dict[str, fx.Node] = {}
        for node in self.graph.nodes:
            parts = self._name_by_node.get(node, "").split(".")
            for end in range(1, len(parts) + 1):
                # The last node inside a module computes the output of the module.
                self._node_by_name[".".join(parts[:end])] = node
        self._node_by_name.pop("", None)
        self.layers = self._find_layers(family)

    def to_graph_module(self) -> fx.GraphModule:
        """Return the whole network as a graph module.

        Returns
        -------
        fx.GraphModule
            It has a copy of the graph, and shares its weights with the network.
        """
        return fx.GraphModule(self.module, copy.deepcopy(self.graph))

    def layer(self, name: str) -> Layer:
        """Return a usable layer by name.

        Parameters
        ----------
        name : str
            Dotted name of the layer.

        Returns
        -------
        Layer
            The layer.

        Raises
        ------
        UnknownLayerError
            If the network has no such layer.
        BackboneError
            If the layer cannot be pooled.
        """
        layer = self.layers.get(name)
        if layer is None:
            raise UnknownLayerError(
                f"the network has no layer {name!r}{did_you_mean(name, self.layers)}; "
                "`featurize layers BACKBONE` lists them"
            )
        if not layer.usable:
            raise BackboneError(f"cannot cut at {name!r}: {layer.axis_order}")
        return layer

    def nodes_inside(self, name: str) -> list[fx.Node]:
        """Return the operations inside a module.

        Parameters
        ----------
        name : str
            Dotted name of the module.

        Returns
        -------
        list of fx.Node
            In order of computation; empty if there is no such module.
        """
        prefix = f"{name}."
        return [node for node, path in self._name_by_node.items() if f"{path}.".startswith(prefix)]

    def cut(self, layers: Sequence[LayerSpec]) -> fx.GraphModule:
        """Extract the part of the network that computes and pools some layers.

        Parameters
        ----------
        layers : sequence of LayerSpec
            The layers to compute.

        Returns
        -------
        fx.GraphModule
            Maps a batch (B, 3, size, size) to a tuple of (B, D), one per layer. It shares its
            weights with the network, and has only the modules that it needs.

        Raises
        ------
        UnknownLayerError
            If the network has no such layer.
        BackboneError
            If a layer cannot be pooled in this way.
        """
        mapping: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        graph.graph_copy(self.graph, mapping)
        outputs = []
        for name, pool in layers:
            layer = self.layer(name)
            pooled_dim(layer.axis_order, pool, layer.map_shape)
            node = mapping[self._node_by_name[name]]
            # Pooled at once: the map is freed early, and no later layer can overwrite it.
            with graph.inserting_after(node):
                outputs.append(graph.call_function(pool_maps, (node, layer.axis_order, pool)))
        graph.output(tuple(outputs))
        deepest = max(self.node_depths[self._node_by_name[name]] for name, _ in layers)
        for node, copied in reversed(mapping.items()):
            if self.node_depths[node] > deepest and node.op != "output":
                graph.erase_node(copied)
        cut = fx.GraphModule(self.module, graph)
        cut.graph.eliminate_dead_code()
        return fx.GraphModule(self.module, cut.graph)  # without the unused modules

    def _find_layers(self, family: Family | None) -> dict[str, Layer]:
        shapes = _infer_shapes(self.to_graph_module(), 2, self.input_size)
        # The axes that grow with the image are the spatial ones.
        larger_shapes = _infer_shapes(self.to_graph_module(), 3, self.input_size + 64)
        layers = {}
        for name, node in self._node_by_name.items():
            shape = shapes.get(node.name)
            if shape is None or node.op in ("placeholder", "get_attr"):
                continue  # not a computed tensor
            axis_order = self._find_axis_order(node, shape, larger_shapes.get(node.name), family)
            layers[name] = Layer(name, self.node_depths[node], shape[1:], axis_order)
        return dict(sorted(layers.items(), key=lambda item: item[1].depth))

    def _find_axis_order(
        self,
        node: fx.Node,
        shape: tuple[int, ...],
        larger_shape: tuple[int, ...] | None,
        family: Family | None,
    ) -> str:
        if len(shape) < 2 or shape[0] != 2 or (larger_shape is not None and larger_shape[0] != 3):
            return "its first axis is not the batch"
        if len(shape) == 2:
            return VECTOR
        if len(shape) == 3:
            return self._find_token_order(shape)
        if len(shape) != 4:
            return f"it gives {len(shape) - 1} axes an image, and maps have 3"
        if larger_shape is not None:
            grown = [axis for axis in (1, 2, 3) if larger_shape[axis] != shape[axis]]
            if grown == [2, 3]:
                return CHANNELS_FIRST
            if grown == [1, 2]:
                return CHANNELS_LAST
        if shape[2:] == (1, 1):
            return CHANNELS_FIRST
        if node.op == "call_module" and isinstance(
            self.module.get_submodule(str(node.target)), _CHANNELS_FIRST_MODULES
        ):
            return CHANNELS_FIRST
        if family is not None and family.maps_are_nchw and self._is_stage_end(node, family):
            return CHANNELS_FIRST
        return "which of its axes holds the channels is not known"

    def _is_stage_end(self, node: fx.Node, family: Family) -> bool:
        return any(self._node_by_name.get(stage) is node for stage in family.stages)

    def _find_token_order(self, shape: tuple[int, ...]) -> str:
        if isinstance(self.module, VisionTransformer):
            # torchvision puts the class token first.
            if shape[1] == self.module.seq_length:
                return TOKENS
            return "its tokens are not those of the encoder"
        return "what its axes mean is not known"


def _trace(module: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
    first_error: Exception | None = None
    for tracer in (NodePathTracer(leaf_modules=[]), _SequentialTracer(leaf_modules=[])):
        try:
            graph = tracer.trace(module)
        except Exception as error:  # tracing runs the network's own code
            first_error = first_error or error
        else:
            return graph, dict(tracer.node_to_qualname)
    raise BackboneError(
        f"{type(module).__name__} can be cut nowhere: its forward cannot be traced "
        f"({first_error}), and it is no sequence of modules. Pass its front part alone, as an "
        "nn.Sequential"
    ) from first_error


class _SequentialTracer(NodePathTracer):  # type: ignore[misc]
    """A tracer that enters `nn.Sequential` only; every other module is a single operation."""

    def is_leaf_module(self, m: nn.Module, module_qualname: str) -> bool:
        return not isinstance(m, nn.Sequential)


def _infer_shapes(module: fx.GraphModule, batch: int, size: int) -> dict[str, tuple[int, ...]]:
    """Infer the shape of every node's tensor, by node name; values are computed only if needed."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta
    interpreter = _ShapeInterpreter(copy.deepcopy(module, memo))
    interpreter.run_until_error(torch.empty(batch, 3, size, size, device="meta"))
    if interpreter.error:  # control flow that depends on values needs real ones
        with_values = _ShapeInterpreter(module)
        with_values.run_until_error(torch.zeros(batch, 3, size, size))
        interpreter = max(interpreter, with_values, key=lambda candidate: len(candidate.shapes))
    if not interpreter.shapes or (interpreter.error and batch == 2):
        raise BackboneError(
            f"the network cannot take images of {size} x {size} pixels: {interpreter.error}"
        )
    return interpreter.shapes


class _ShapeInterpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.error: Exception | None = None

    def run_until_error(self, x: Tensor) -> None:
        """Run until the end, or until a node raises an error, which is stored."""
        try:
            with torch.no_grad():
                self.run(x)
        except Exception as error:
            # Some networks accept one size only; the shapes before the error are still known.
            self.error = error

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n.name] = tuple(result.shape)
        return result

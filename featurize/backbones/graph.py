"""Cut a network at its layers, so that nothing after the deepest one runs."""

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

# Modules whose output has its channels first by definition.
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
    """One place a network can be cut at.

    Attributes
    ----------
    name : str
    depth : int
        Position in the network's order of computation.
    map_shape : tuple of int
        What it gives for one image, in the network's own order of axes.
    kind : str
        Where the channels are (see `featurize.backbones.pooling`), or a sentence that says why it
        cannot be pooled.
    """

    name: str
    depth: int
    map_shape: tuple[int, ...]
    axis_order: str

    @property
    def usable(self) -> bool:
        """Whether it is understood well enough to pool it."""
        return self.axis_order in (VECTOR, CHANNELS_FIRST, CHANNELS_LAST, TOKENS)


class LayerGraph:
    """A network opened up into its layers.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode; its in-place operations get turned off.
    size : int
        Height and width of its input in pixels.
    family : Family, optional

    Raises
    ------
    BackboneError
        If it can be opened neither by tracing nor as a sequence of modules.
    """

    def __init__(self, module: nn.Module, size: int, family: Family | None = None) -> None:
        self.module = module
        self.input_size = size
        writers = set()
        for name, part in module.named_modules():
            if isinstance(part, _BatchNorm) and part.running_mean is None:
                raise BackboneError(
                    f"{name or 'the network'} normalises by the statistics of each batch, so an "
                    "image's features would depend on the others; give it statistics of its own"
                )
            if getattr(part, "inplace", False):
                part.inplace = False
                writers.add(name)
        self.graph, self._name_by_node = _trace(module)
        remove_inplace_ops(self.graph, writers)
        self.node_depths = {node: depth for depth, node in enumerate(self.graph.nodes)}
        self._node_by_name: dict[str, fx.Node] = {}
        for node in self.graph.nodes:
            parts = self._name_by_node.get(node, "").split(".")
            for end in range(1, len(parts) + 1):
                # The last node inside a module is what the module gives.
                self._node_by_name[".".join(parts[:end])] = node
        self._node_by_name.pop("", None)
        self.layers = self._find_layers(family)

    def to_graph_module(self) -> fx.GraphModule:
        """The network as one graph, uncut."""
        return fx.GraphModule(self.module, copy.deepcopy(self.graph))

    def layer(self, name: str) -> Layer:
        """One layer by name.

        Raises
        ------
        UnknownLayer
        BackboneError
            If it exists but is not understood.
        """
        found = self.layers.get(name)
        if found is None:
            raise UnknownLayerError(
                f"the network has no layer {name!r}{did_you_mean(name, self.layers)}; "
                "`featurize layers BACKBONE` lists them"
            )
        if not found.usable:
            raise BackboneError(f"cannot cut at {name!r}: {found.axis_order}")
        return found

    def nodes_inside(self, name: str) -> list[fx.Node]:
        """The operations inside a module, by its dotted name; none if there is no such module."""
        within = f"{name}."
        return [node for node, path in self._name_by_node.items() if f"{path}.".startswith(within)]

    def cut(self, layers: Sequence[LayerSpec]) -> fx.GraphModule:
        """The part of the network that computes these layers, pooled.

        Parameters
        ----------
        layers : sequence of LayerSpec

        Returns
        -------
        fx.GraphModule
            From a batch (B, 3, size, size) to a tuple of (B, D), one a layer. It shares its
            weights with the network and holds only the modules it needs.
        """
        mapping: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        graph.graph_copy(self.graph, mapping)
        outputs = []
        for name, pool in layers:
            layer = self.layer(name)
            pooled_dim(layer.axis_order, pool, layer.map_shape)
            node = mapping[self._node_by_name[name]]
            # Pooled at once: the map need not be kept, nor can a later layer overwrite it.
            with graph.inserting_after(node):
                outputs.append(graph.call_function(pool_maps, (node, layer.axis_order, pool)))
        graph.output(tuple(outputs))
        deepest = max(self.node_depths[self._node_by_name[name]] for name, _ in layers)
        for node, copied in reversed(mapping.items()):
            if self.node_depths[node] > deepest and node.op != "output":
                graph.erase_node(copied)
        cut = fx.GraphModule(self.module, graph)
        cut.graph.eliminate_dead_code()
        return fx.GraphModule(self.module, cut.graph)  # leaves the unused modules behind

    def _find_layers(self, family: Family | None) -> dict[str, Layer]:
        shapes = _infer_shapes(self.to_graph_module(), 2, self.input_size)
        # A larger image shows which axes are space: those that grow with it.
        larger = _infer_shapes(self.to_graph_module(), 3, self.input_size + 64)
        found = {}
        for name, node in self._node_by_name.items():
            shape = shapes.get(node.name)
            if shape is None or node.op in ("placeholder", "get_attr"):
                continue  # gives no tensor
            kind = self._find_axis_order(node, shape, larger.get(node.name), family)
            found[name] = Layer(name, self.node_depths[node], shape[1:], kind)
        return dict(sorted(found.items(), key=lambda item: item[1].depth))

    def _find_axis_order(
        self,
        node: fx.Node,
        shape: tuple[int, ...],
        larger: tuple[int, ...] | None,
        family: Family | None,
    ) -> str:
        if len(shape) < 2 or shape[0] != 2 or (larger is not None and larger[0] != 3):
            return "its first axis is not the batch"
        if len(shape) == 2:
            return VECTOR
        if len(shape) == 3:
            return self._find_token_order(shape)
        if len(shape) != 4:
            return f"it gives {len(shape) - 1} axes an image, and maps have 3"
        if larger is not None:
            grown = [axis for axis in (1, 2, 3) if larger[axis] != shape[axis]]
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
    """Looks into sequences only; every other module is taken whole, whatever it does inside."""

    def is_leaf_module(self, m: nn.Module, module_qualname: str) -> bool:
        return not isinstance(m, nn.Sequential)


def _infer_shapes(module: fx.GraphModule, batch: int, size: int) -> dict[str, tuple[int, ...]]:
    """Shape of every node's tensor, by node name, found without computing any number."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta
    walker = _ShapeInterpreter(copy.deepcopy(module, memo))
    walker.run_until_error(torch.empty(batch, 3, size, size, device="meta"))
    if walker.error:  # a path that depends on numbers needs some
        by_numbers = _ShapeInterpreter(module)
        by_numbers.run_until_error(torch.zeros(batch, 3, size, size))
        walker = max(walker, by_numbers, key=lambda found: len(found.shapes))
    if not walker.shapes or (walker.error and batch == 2):
        raise BackboneError(
            f"the network cannot take images of {size} x {size} pixels: {walker.error}"
        )
    return walker.shapes


class _ShapeInterpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.error: Exception | None = None

    def run_until_error(self, x: Tensor) -> None:
        """Run as far as it goes."""
        try:
            with torch.no_grad():
                self.run(x)
        except Exception as error:
            # Some networks accept one size only; then what came before is known.
            self.error = error

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n.name] = tuple(result.shape)
        return result

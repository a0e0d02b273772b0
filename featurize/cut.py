"""Cut a network at its layers, so that nothing after the deepest one runs."""

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models import VisionTransformer
from torchvision.models.feature_extraction import NodePathTracer

from featurize.errors import BackboneError, UnknownLayer
from featurize.families import Family
from featurize.names import nearest
from featurize.pools import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, VECTOR, pooled, width

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
        Where the channels are (see `featurize.pools`), or a sentence that says why it
        cannot be pooled.
    """

    name: str
    depth: int
    map_shape: tuple[int, ...]
    kind: str

    @property
    def usable(self) -> bool:
        """Whether it is understood well enough to pool it."""
        return self.kind in (VECTOR, CHANNELS_FIRST, CHANNELS_LAST, TOKENS)


class Network:
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
        self.size = size
        for part in module.modules():
            if getattr(part, "inplace", False):
                part.inplace = False  # type: ignore[assignment]
        self.graph, self._name_of = _traced(module)
        _turn_inplace_off(self.graph)
        self.order = {node: depth for depth, node in enumerate(self.graph.nodes)}
        self._node_of: dict[str, fx.Node] = {}
        for node in self.graph.nodes:
            parts = self._name_of.get(node, "").split(".")
            for end in range(1, len(parts) + 1):
                # The last node inside a module is what the module gives.
                self._node_of[".".join(parts[:end])] = node
        self._node_of.pop("", None)
        self.layers = self._find_layers(family)

    def whole(self) -> fx.GraphModule:
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
            raise UnknownLayer(
                f"the network has no layer {name!r}{nearest(name, self.layers)}; "
                "`featurize layers BACKBONE` lists them"
            )
        if not found.usable:
            raise BackboneError(f"cannot cut at {name!r}: {found.kind}")
        return found

    def cut(self, layers: Sequence[tuple[str, str]]) -> fx.GraphModule:
        """The part of the network that computes these layers, pooled.

        Parameters
        ----------
        layers : sequence of (layer, pool)

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
            width(layer.kind, pool, layer.map_shape)
            node = mapping[self._node_of[name]]
            # Pooled at once: the map need not be kept, nor can a later layer overwrite it.
            with graph.inserting_after(node):
                outputs.append(graph.call_function(pooled, (node, layer.kind, pool)))
        graph.output(tuple(outputs))
        deepest = max(self.order[self._node_of[name]] for name, _ in layers)
        for node, copied in reversed(mapping.items()):
            if self.order[node] > deepest and node.op != "output":
                graph.erase_node(copied)
        cut = fx.GraphModule(self.module, graph)
        cut.graph.eliminate_dead_code()
        return fx.GraphModule(self.module, cut.graph)  # leaves the unused modules behind

    def _find_layers(self, family: Family | None) -> dict[str, Layer]:
        shapes = _shapes(self.whole(), 2, self.size)
        # A larger image shows which axes are space: those that grow with it.
        larger = _shapes(self.whole(), 3, self.size + 64)
        found = {}
        for name, node in self._node_of.items():
            shape = shapes.get(node.name)
            if shape is None or node.op in ("placeholder", "get_attr"):
                continue  # gives no tensor
            kind = self._kind(node, shape, larger.get(node.name), family)
            found[name] = Layer(name, self.order[node], shape[1:], kind)
        return dict(sorted(found.items(), key=lambda item: item[1].depth))

    def _kind(
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
            return self._token_kind(shape)
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
        if family is not None and family.maps_are_nchw and self._ends_stage(node, family):
            return CHANNELS_FIRST
        return "which of its axes holds the channels is not known"

    def _ends_stage(self, node: fx.Node, family: Family) -> bool:
        return any(self._node_of.get(stage) is node for stage in family.stages)

    def _token_kind(self, shape: tuple[int, ...]) -> str:
        if isinstance(self.module, VisionTransformer):
            # torchvision puts the class token first.
            if shape[1] == self.module.seq_length:
                return TOKENS
            return "its tokens are not those of the encoder"
        return "what its axes mean is not known"


def _traced(module: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
    first_error: Exception | None = None
    for tracer in (NodePathTracer(leaf_modules=[]), _SequenceTracer(leaf_modules=[])):
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


class _SequenceTracer(NodePathTracer):  # type: ignore[misc]
    """Looks into sequences only; every other module is taken whole, whatever it does inside."""

    def is_leaf_module(self, m: nn.Module, module_qualname: str) -> bool:
        return not isinstance(m, nn.Sequential)


_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    getattr(operator, "i" + name): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
} | {operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor}


def _turn_inplace_off(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
        elif node.op == "call_method" and node.target[-1] == "_" and node.target[-2] != "_":
            node.target = node.target[:-1]
    graph.lint()


def _shapes(module: fx.GraphModule, batch: int, size: int) -> dict[str, tuple[int, ...]]:
    """Shape of every node's tensor, by node name, found without computing any number."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta
    walker = _ShapeWalker(copy.deepcopy(module, memo))
    try:
        with torch.no_grad():
            walker.run(torch.empty(batch, 3, size, size, device="meta"))
    except Exception as error:
        # Some networks accept one size only; then what came before is known.
        walker.stopped_by = error
    if not walker.shapes or (walker.stopped_by and batch == 2):
        raise BackboneError(
            f"the network cannot take images of {size} x {size} pixels: {walker.stopped_by}"
        )
    return walker.shapes


class _ShapeWalker(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.stopped_by: Exception | None = None

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n.name] = tuple(result.shape)
        return result

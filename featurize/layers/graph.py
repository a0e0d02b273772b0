"""The graph of a network, which can be cut so that nothing after the deepest layer runs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from featurize.errors import BackboneError, UnknownLayerError
from featurize.layer_spec import PRE_LOGITS, LayerSpec
from featurize.layers.axes import AxesFinder
from featurize.layers.pooling import Axes, pool_maps, pooled_dim
from featurize.layers.tracing import trace
from featurize.text import did_you_mean


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
    axes : Axes or None
        What the axes of its output mean; None if they are not known.
    problem : str
        A clause that says why the layer cannot be pooled; empty if it can.
    """

    name: str
    depth: int
    map_shape: tuple[int, ...]
    axes: Axes | None
    problem: str = ""

    @property
    def usable(self) -> bool:
        """Whether its axes are known, so that it can be pooled."""
        return self.axes is not None

    def dim(self, pool: str) -> int:
        """Compute the length of the vector of one image after pooling.

        Parameters
        ----------
        pool : str
            See `featurize.layers.pooling.pool_maps`.

        Returns
        -------
        int
            Length of the vector.

        Raises
        ------
        BackboneError
            If the layer cannot be pooled in this way.
        """
        return pooled_dim(self._known_axes(), pool, self.map_shape)

    def add_pooling(self, graph: fx.Graph, node: fx.Node, pool: str) -> fx.Node:
        """Add the pooling of this layer to a graph.

        Parameters
        ----------
        graph : fx.Graph
            The graph; it is modified at its point of insertion.
        node : fx.Node
            The operation of the graph that computes the layer.
        pool : str
            See `featurize.layers.pooling.pool_maps`.

        Returns
        -------
        fx.Node
            The operation that gives the pooled vectors.

        Raises
        ------
        BackboneError
            If the layer cannot be pooled in this way.
        """
        self.dim(pool)
        axes = self._known_axes()
        return graph.call_function(pool_maps, (node, axes.order, axes.n_prefix_tokens, pool))

    def _known_axes(self) -> Axes:
        if self.axes is None:
            raise BackboneError(f"cannot cut at {self.name!r}: {self.problem}")
        return self.axes


class LayerGraph:
    """The graph of a network and its layers.

    Parameters
    ----------
    module : nn.Module
        The network, in evaluation mode. Its in-place operations are turned off.
    size : int
        Height and width of its input in pixels.
    build : callable, optional
        Builds the same network for another size (see `featurize.layers.axes.AxesFinder`).
    classifier : str, optional
        Name of the module that classifies; its input becomes the layer ``pre_logits``. Empty if the
        network has none: then it is the network's output.

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

    def __init__(
        self,
        module: nn.Module,
        size: int,
        build: Callable[[int], nn.Module] | None = None,
        *,
        classifier: str | None = None,
    ) -> None:
        self.module = module
        self.input_size = size
        self.graph, self._name_by_node, output = trace(module)
        self.node_depths = {node: depth for depth, node in enumerate(self.graph.nodes)}
        self._node_by_name: dict[str, fx.Node] = {}
        for node in self.graph.nodes:
            parts = self._name_by_node.get(node, "").split(".")
            for end in range(1, len(parts) + 1):
                # The last node inside a module computes the output of the module.
                self._node_by_name[".".join(parts[:end])] = node
        self._node_by_name.pop("", None)
        pre_logits = self._find_pre_logits(classifier, output)
        if pre_logits is not None:
            self._node_by_name[PRE_LOGITS] = pre_logits
        self.layers = self._find_layers(AxesFinder(self.to_graph_module(), size, build))

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
            raise BackboneError(f"cannot cut at {name!r}: {layer.problem}")
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

    def has_weights_between(self, lower: str, upper: str) -> bool:
        """Tell whether weights are used between two layers.

        Parameters
        ----------
        lower, upper : str
            Names of the layers.

        Returns
        -------
        bool
            False if the upper one only pools, flattens or selects what the lower one gives.
        """
        begin, end = self.layers[lower].depth, self.layers[upper].depth
        for node, depth in self.node_depths.items():
            if begin < depth <= end and node.op == "get_attr":
                return True
            if begin < depth <= end and node.op == "call_module":
                module = self.module.get_submodule(str(node.target))
                if any(True for _ in module.parameters()):
                    return True
        return False

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
            layer, node = self.layer(name), mapping[self._node_by_name[name]]
            # Pooled at once: the map is freed early, and no later layer can overwrite it.
            with graph.inserting_after(node):
                outputs.append(layer.add_pooling(graph, node, pool))
        graph.output(tuple(outputs))
        deepest = max(self.node_depths[self._node_by_name[name]] for name, _ in layers)
        for node, copied in reversed(mapping.items()):
            if self.node_depths[node] > deepest and node.op != "output":
                graph.erase_node(copied)
        cut = fx.GraphModule(self.module, graph)
        cut.graph.eliminate_dead_code()
        return fx.GraphModule(self.module, cut.graph)  # without the unused modules

    def _find_pre_logits(self, classifier: str | None, output: fx.Node | None) -> fx.Node | None:
        if not classifier:
            return output if classifier == "" else None
        calls = [node for node in self.graph.nodes if node.op == "call_module"]
        inputs = [node.args[0] for node in calls if node.target == classifier]
        return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], fx.Node) else None

    def _find_layers(self, finder: AxesFinder) -> dict[str, Layer]:
        layers = {}
        for name, node in self._node_by_name.items():
            shape = finder.shapes.get(node.name)
            if shape is None or node.op in ("placeholder", "get_attr"):
                continue  # not a computed tensor
            axes = finder.find(node)
            problem = axes if isinstance(axes, str) else ""
            known = None if isinstance(axes, str) else axes
            layers[name] = Layer(name, self.node_depths[node], shape[1:], known, problem)
        return dict(sorted(layers.items(), key=lambda item: item[1].depth))

"""Partition a network at a layer: its input there, and the part from that layer on."""

import operator
from collections.abc import Callable
from typing import Any, cast

from torch import fx

from featurize.errors import BackboneError
from featurize.layer_spec import LayerSpec
from featurize.layers.axes import infer_shapes
from featurize.layers.graph import Layer, LayerGraph


def find_parameter_depths(network: LayerGraph) -> dict[str, int]:
    """Find the depth of each tensor of a state dict: the position of its first use.

    Parameters
    ----------
    network : LayerGraph
        The network.

    Returns
    -------
    dict of str to int
        Position in the order of computation, by tensor name. Unused tensors are left out.
    """
    depths: dict[str, int] = {}
    names = list(network.module.state_dict())
    for node, depth in network.node_depths.items():
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            for name in names:
                if name == target or name.startswith(f"{target}."):
                    depths.setdefault(name, depth)
    return depths


def find_boundary_layer(network: LayerGraph, layer: str) -> Layer:
    """Find the layer before another one whose map is all that the rest of the network needs.

    Parameters
    ----------
    network : LayerGraph
        The network.
    layer : str
        Name of a layer, or of any module of the network: the first of the upper part.

    Returns
    -------
    Layer
        The last layer of the lower part. Its unpooled map can be cached; from it
        `extract_upper_part` computes the rest.

    Raises
    ------
    BackboneError
        If several tensors cross into the part from `layer` on, or no layer lies before it.
    UnknownLayerError
        If the network has no such layer.
    """
    nodes = _find_crossing_nodes(network, layer)
    if len(nodes) != 1:
        names = ", ".join(filter(None, (_find_layer_name(network, node) for node in nodes)))
        raise BackboneError(
            f"{len(nodes)} tensors cross into the part from {layer!r} on ({names}), so no "
            "single map can stand for what lies before it; choose the beginning of a stage"
        )
    (node,) = nodes
    boundary_name = _find_layer_name(network, node)
    if node.op == "placeholder" or boundary_name is None:
        raise BackboneError(f"nothing that could be cached lies before {layer!r}: tune all instead")
    return network.layers[boundary_name]


def extract_upper_part(network: LayerGraph, layer: str, last: LayerSpec) -> fx.GraphModule:
    """Extract the part of a network from a layer up to an embedding.

    Parameters
    ----------
    network : LayerGraph
        The network.
    layer : str
        The first layer of the part.
    last : LayerSpec
        Layer and pool of the embedding.

    Returns
    -------
    fx.GraphModule
        Maps the output of `find_boundary_layer`, (B, *map_shape), to embeddings (B, D). It shares
        its weights with the network.

    Raises
    ------
    BackboneError
        As `find_boundary_layer` does; or if `layer` lies above `last`.
    UnknownLayerError
        If the network has no such layer.
    """
    first_depth, last_layer = find_first_op(network, layer), network.layer(last.layer)
    if first_depth > last_layer.depth:
        raise BackboneError(f"{layer!r} lies above {last.layer!r}, where the embedding is taken")
    boundary_depth = find_boundary_layer(network, layer).depth
    mapping: dict[fx.Node, Any] = {}
    graph = fx.Graph()
    images = graph.placeholder("entering")
    shape_of = _make_shape_reader(network, graph, images)
    static_nodes = _find_static_nodes(network)
    for node, depth in network.node_depths.items():
        if depth == boundary_depth:
            mapping[node] = images
        elif _reads_shape(node) and depth < first_depth:
            mapping[node] = shape_of(node)
        elif first_depth <= depth <= last_layer.depth or (
            depth < first_depth and node in static_nodes
        ):
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
    last_node = next(
        node for node, depth in network.node_depths.items() if depth == last_layer.depth
    )
    graph.output(last_layer.add_pooling(graph, mapping[last_node], last.pool))
    module = fx.GraphModule(network.module, graph)
    module.graph.eliminate_dead_code()
    return fx.GraphModule(network.module, module.graph)


def find_first_op(network: LayerGraph, layer: str) -> int:
    """Find the position of the first operation inside a layer.

    Parameters
    ----------
    network : LayerGraph
        The network.
    layer : str
        Name of a layer, or of any module of the network.

    Returns
    -------
    int
        Position in the order of computation.

    Raises
    ------
    UnknownLayerError
        If the network has no such layer.
    """
    depths = [network.node_depths[node] for node in network.nodes_inside(layer)]
    # A name that no module has is that of one operation; else the error suggests a name.
    return min(depths) if depths else network.layer(layer).depth


def _find_crossing_nodes(network: LayerGraph, layer: str) -> list[fx.Node]:
    first_depth = find_first_op(network, layer)
    static_nodes = _find_static_nodes(network)
    return [
        node
        for node, depth in network.node_depths.items()
        if depth < first_depth
        and node not in static_nodes
        and any(network.node_depths.get(user, -1) >= first_depth for user in node.users)
    ]


def _find_static_nodes(network: LayerGraph) -> set[fx.Node]:
    """Find what depends on no pixel: on weights, constants and the shapes of tensors alone."""
    static_nodes: set[fx.Node] = set()
    for node in network.node_depths:
        if node.op in ("placeholder", "output"):
            continue
        if _reads_shape(node) or all(given in static_nodes for given in node.all_input_nodes):
            static_nodes.add(node)
    return static_nodes


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.op == "call_function" and node.target is getattr and str(node.args[1]) == "shape"


def _make_shape_reader(
    network: LayerGraph, graph: fx.Graph, entering: fx.Node
) -> Callable[[fx.Node], Any]:
    """Make a function that gives the shape of a tensor that the upper part does not have.

    Images have one size, so the shape is known but for the number of images.
    """
    whole = network.to_graph_module()
    names = {
        node: copied.name
        for node, copied in zip(network.node_depths, whole.graph.nodes, strict=True)
    }
    two_images, _ = infer_shapes(whole, 2, network.input_size)
    three_images, _ = infer_shapes(whole, 3, network.input_size)

    def read_shape(node: fx.Node) -> Any:
        name = names[node.all_input_nodes[0]]
        shape: list[Any] = []
        for length, longer in zip(two_images[name], three_images[name], strict=True):
            if length == longer:
                shape.append(length)
            else:  # one or several per image
                batch = graph.call_method("size", (entering, 0))
                shape.append(graph.call_function(operator.mul, (batch, longer - length)))
        if node.target == "dim":
            return len(shape)
        if node.target == "size" and len(node.args) == 2:
            return shape[cast(int, node.args[1])]
        return tuple(shape)

    return read_shape


def _find_layer_name(network: LayerGraph, node: fx.Node) -> str | None:
    """Find the shortest name of a usable layer that a node computes."""
    depth = network.node_depths[node]
    names = [
        layer.name for layer in network.layers.values() if layer.depth == depth and layer.usable
    ]
    return min(names, key=len, default=None)

"""Partition a network at a layer: its input there, and the part from that layer on."""

from torch import fx

from featurize.backbones.graph import Layer, LayerGraph
from featurize.backbones.pooling import pool_maps, pooled_dim
from featurize.errors import BackboneError
from featurize.layer_spec import LayerSpec


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
    mapping: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    for node, depth in network.node_depths.items():
        if depth == boundary_depth:
            mapping[node] = graph.placeholder("entering")
        elif first_depth <= depth <= last_layer.depth or node.op == "get_attr":
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
    pooled_dim(last_layer.axis_order, last.pool, last_layer.map_shape)
    last_node = next(
        node for node, depth in network.node_depths.items() if depth == last_layer.depth
    )
    graph.output(
        graph.call_function(pool_maps, (mapping[last_node], last_layer.axis_order, last.pool))
    )
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
    if not depths:
        network.layer(layer)  # raises an error that suggests a name
    return min(depths)


def _find_crossing_nodes(network: LayerGraph, layer: str) -> list[fx.Node]:
    first_depth = find_first_op(network, layer)
    return [
        node
        for node, depth in network.node_depths.items()
        if depth < first_depth
        and node.op != "get_attr"
        and any(network.node_depths.get(user, -1) >= first_depth for user in node.users)
    ]


def _find_layer_name(network: LayerGraph, node: fx.Node) -> str | None:
    """Find the shortest name of a usable layer that a node computes."""
    depth = network.node_depths[node]
    names = [
        layer.name for layer in network.layers.values() if layer.depth == depth and layer.usable
    ]
    return min(names, key=len, default=None)

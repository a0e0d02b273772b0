"""Parts of a network: what enters a layer, and what lies from that layer on."""

from torch import fx

from featurize.backbones.graph import Layer, LayerGraph
from featurize.backbones.pooling import pool_maps, pooled_dim
from featurize.errors import BackboneError
from featurize.layer_spec import LayerSpec


def find_parameter_depths(network: LayerGraph) -> dict[str, int]:
    """How deep each tensor of a state dict lies: the position of the first operation to use it."""
    found: dict[str, int] = {}
    names = list(network.module.state_dict())
    for node, depth in network.node_depths.items():
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            for name in names:
                if name == target or name.startswith(f"{target}."):
                    found.setdefault(name, depth)
    return found


def find_boundary_layer(network: LayerGraph, layer: str) -> Layer:
    """The layer whose map enters another one, and is all that the rest of the network needs.

    Parameters
    ----------
    layer : str
        A layer, or any module of the network.

    Returns
    -------
    Layer
        Its unpooled map can be cached; from there on, `extract_upper_part` computes the rest.

    Raises
    ------
    BackboneError
        If more than one tensor crosses into the part from `layer` on, or nothing lies before it.
    UnknownLayer
    """
    crossing = _find_crossing_nodes(network, layer)
    if len(crossing) != 1:
        names = ", ".join(filter(None, (_find_layer_name(network, node) for node in crossing)))
        raise BackboneError(
            f"{len(crossing)} tensors cross into the part from {layer!r} on ({names}), so no "
            "single map can stand for what lies before it; choose the beginning of a stage"
        )
    (node,) = crossing
    called = _find_layer_name(network, node)
    if node.op == "placeholder" or called is None:
        raise BackboneError(f"nothing that could be cached lies before {layer!r}: tune all instead")
    return network.layers[called]


def extract_upper_part(network: LayerGraph, layer: str, last: LayerSpec) -> fx.GraphModule:
    """The network from a layer on, up to its last embedding.

    Parameters
    ----------
    layer : str
        The first layer of this part.
    last : LayerSpec
        The embedding.

    Returns
    -------
    fx.GraphModule
        From the map of `find_boundary_layer`, (B, *map_shape), to (B, D). It shares its weights
        with the network.

    Raises
    ------
    BackboneError
        As `find_boundary_layer`; or if `layer` lies above `last`.
    """
    begin, end = find_first_op(network, layer), network.layer(last.layer)
    if begin > end.depth:
        raise BackboneError(f"{layer!r} lies above {last.layer!r}, where the embedding is taken")
    door = find_boundary_layer(network, layer).depth
    mapping: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    for node, depth in network.node_depths.items():
        if depth == door:
            mapping[node] = graph.placeholder("entering")
        elif begin <= depth <= end.depth or node.op == "get_attr":
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
    pooled_dim(end.axis_order, last.pool, end.map_shape)
    top = next(node for node, depth in network.node_depths.items() if depth == end.depth)
    graph.output(graph.call_function(pool_maps, (mapping[top], end.axis_order, last.pool)))
    part = fx.GraphModule(network.module, graph)
    part.graph.eliminate_dead_code()
    return fx.GraphModule(network.module, part.graph)


def find_first_op(network: LayerGraph, layer: str) -> int:
    """The position of the first operation inside a layer.

    Raises
    ------
    UnknownLayer
    """
    inside = [network.node_depths[node] for node in network.nodes_inside(layer)]
    if not inside:
        network.layer(layer)  # says what there is
    return min(inside)


def _find_crossing_nodes(network: LayerGraph, layer: str) -> list[fx.Node]:
    begin = find_first_op(network, layer)
    return [
        node
        for node, depth in network.node_depths.items()
        if depth < begin
        and node.op != "get_attr"
        and any(network.node_depths.get(user, -1) >= begin for user in node.users)
    ]


def _find_layer_name(network: LayerGraph, node: fx.Node) -> str | None:
    """The shortest name of a layer that this node computes."""
    depth = network.node_depths[node]
    names = [
        layer.name for layer in network.layers.values() if layer.depth == depth and layer.usable
    ]
    return min(names, key=len, default=None)

"""Parts of a network: what enters a layer, and what lies from that layer on."""

from torch import fx

from featurize.cut import Layer, Network
from featurize.errors import BackboneError
from featurize.pools import pooled, width


def depths(network: Network) -> dict[str, int]:
    """How deep each tensor of a state dict lies: the position of the first operation to use it."""
    found: dict[str, int] = {}
    names = list(network.module.state_dict())
    for node, depth in network.order.items():
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            for name in names:
                if name == target or name.startswith(f"{target}."):
                    found.setdefault(name, depth)
    return found


def entrance(network: Network, layer: str) -> Layer:
    """The layer whose map enters another one, and is all that the rest of the network needs.

    Parameters
    ----------
    layer : str
        A layer, or any module of the network.

    Returns
    -------
    Layer
        Its unpooled map can be cached; from there on, `above` computes the rest.

    Raises
    ------
    BackboneError
        If more than one tensor crosses into the part from `layer` on, or nothing lies before it.
    UnknownLayer
    """
    crossing = _crossing(network, layer)
    if len(crossing) != 1:
        names = ", ".join(filter(None, (_called(network, node) for node in crossing)))
        raise BackboneError(
            f"{len(crossing)} tensors cross into the part from {layer!r} on ({names}), so no "
            "single map can stand for what lies before it; choose the beginning of a stage"
        )
    (node,) = crossing
    called = _called(network, node)
    if node.op == "placeholder" or called is None:
        raise BackboneError(f"nothing that could be cached lies before {layer!r}: tune all instead")
    return network.layers[called]


def above(network: Network, layer: str, last: tuple[str, str]) -> fx.GraphModule:
    """The network from a layer on, up to its last embedding.

    Parameters
    ----------
    layer : str
        The first layer of this part.
    last : (layer, pool)
        The embedding.

    Returns
    -------
    fx.GraphModule
        From the map of `entrance`, (B, *map_shape), to (B, D). It shares its weights with the
        network.

    Raises
    ------
    BackboneError
        As `entrance`; or if `layer` lies above `last`.
    """
    begin, end = beginning(network, layer), network.layer(last[0])
    if begin > end.depth:
        raise BackboneError(f"{layer!r} lies above {last[0]!r}, where the embedding is taken")
    door = entrance(network, layer).depth
    mapping: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    for node, depth in network.order.items():
        if depth == door:
            mapping[node] = graph.placeholder("entering")
        elif begin <= depth <= end.depth or node.op == "get_attr":
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
    width(end.kind, last[1], end.map_shape)
    top = next(node for node, depth in network.order.items() if depth == end.depth)
    graph.output(graph.call_function(pooled, (mapping[top], end.kind, last[1])))
    part = fx.GraphModule(network.module, graph)
    part.graph.eliminate_dead_code()
    return fx.GraphModule(network.module, part.graph)


def beginning(network: Network, layer: str) -> int:
    """The position of the first operation inside a layer.

    Raises
    ------
    UnknownLayer
    """
    inside = [network.order[node] for node in network.inside(layer)]
    if not inside:
        network.layer(layer)  # says what there is
    return min(inside)


def _crossing(network: Network, layer: str) -> list[fx.Node]:
    begin = beginning(network, layer)
    return [
        node
        for node, depth in network.order.items()
        if depth < begin
        and node.op != "get_attr"
        and any(network.order.get(user, -1) >= begin for user in node.users)
    ]


def _called(network: Network, node: fx.Node) -> str | None:
    """The shortest name of a layer that this node computes."""
    depth = network.order[node]
    names = [
        layer.name for layer in network.layers.values() if layer.depth == depth and layer.usable
    ]
    return min(names, key=len, default=None)

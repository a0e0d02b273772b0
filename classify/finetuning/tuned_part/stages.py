"""The stages and blocks of a backbone, and where its tuned part begins."""

import re

from classify.errors import CallError
from featurize.backbones.backbone import Backbone
from featurize.backbones.families import parse_layers
from featurize.layer_spec import LayerSpec
from featurize.layers.graph import Layer, LayerGraph
from featurize.layers.partition import find_first_op, find_parameter_depths
from featurize.layers.pooling import CHANNELS_LAST, TOKENS


def find_last_layer(backbone: Backbone) -> LayerSpec:
    """Find the layer that gives a backbone's embeddings.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    LayerSpec

    Raises
    ------
    UnknownLayerError
        If the backbone is of no known family.
    """
    (last_layer,) = parse_layers("last", None, backbone.name, backbone.family)
    return last_layer


def list_stages(backbone: Backbone) -> tuple[str, ...]:
    """Return the last layer of each stage of a backbone, shallowest first.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    tuple of str

    Raises
    ------
    UnknownLayerError
        If the backbone is of no known family.
    """
    specs = parse_layers("auto", None, backbone.name, backbone.family)
    return tuple(spec.layer for spec in specs)


def list_blocks(backbone: Backbone) -> tuple[str, ...]:
    """Return the blocks of a transformer that is one row of equal blocks, shallowest first.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    tuple of str
        Empty for every other network: a convnet, or a transformer whose stages halve the map.

    Raises
    ------
    UnknownLayerError
        If the backbone is of no known family.
    """
    network, row = backbone.network, list_stages(backbone)[0].rpartition(".")[0]
    modules = dict(network.module.named_modules())
    if not row or row not in modules:
        return ()
    names = [f"{row}.{name}" for name, _ in modules[row].named_children()]
    layers = [network.layers[name] for name in names if name in network.layers]
    kinds = {(type(modules[layer.name]), *_describe_tokens(layer)) for layer in layers}
    are_equal = len(layers) == len(names) > 1 and len(kinds) == 1
    return tuple(names) if are_equal and None not in next(iter(kinds)) else ()


def _describe_tokens(layer: Layer) -> tuple[str | None, int | None]:
    """Return the order of a layer's axes and its width, None if it gives no tokens."""
    if layer.axes is None or layer.axes.order not in (TOKENS, CHANNELS_LAST):
        return None, None
    return layer.axes.order, layer.map_shape[-1]


def find_group_ends(backbone: Backbone) -> list[int]:
    """Find where each group of parameters ends that shares a learning rate.

    A convnet has a group for each stage. A row of equal blocks has one for what lies before, one
    for each block and one for what lies behind (H. Bao et al., 2022, "BEiT: BERT pre-training of
    image transformers", ICLR; K. He et al., 2022, "Masked autoencoders are scalable vision
    learners", CVPR).

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    list of int
        Positions in the order of computation, rising.

    Raises
    ------
    UnknownLayerError
        If the backbone is of no known family.
    """
    network, blocks = backbone.network, list_blocks(backbone)
    if not blocks:
        return [network.layer(name).depth for name in list_stages(backbone)]
    block_ends = [network.layer(name).depth for name in blocks]
    last_depth = network.layer(find_last_layer(backbone).layer).depth
    return [find_first_op(network, blocks[0]) - 1, *block_ends, last_depth]


def find_last_weighted_stage(backbone: Backbone) -> str:
    """Find the last stage with a weight matrix; normalisations alone do not count.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    str
        The layer that ends the stage.

    Raises
    ------
    UnknownLayerError
        If the backbone is of no known family.
    """
    network = backbone.network
    last_depth = network.layer(find_last_layer(backbone).layer).depth
    depths = find_parameter_depths(network)
    matrix_depths = [
        depths[name]
        for name, parameter in network.module.named_parameters()
        if parameter.ndim > 1 and depths.get(name, last_depth + 1) <= last_depth
    ]
    return next(
        name
        for name in reversed(list_stages(backbone))
        if find_first_op(network, name) <= max(matrix_depths)
    )


def resolve_tune(backbone: Backbone, tune: str) -> str:
    """Resolve the option ``tune`` to the first layer that is tuned.

    Parameters
    ----------
    backbone : Backbone
        The network to tune.
    tune : str
        ``all``, ``last``, ``last-N`` or a layer.

    Returns
    -------
    str
        ``all``, or the name of a layer or module: that and everything after it is tuned.

    Raises
    ------
    CallError
        If the network has fewer than N stages or blocks.
    UnknownLayerError
        If ``last`` is asked of a backbone of no known family.
    """
    if tune == "last":
        return find_last_weighted_stage(backbone)
    count = re.fullmatch(r"last-(\d+)", tune)
    if count is None:
        return tune
    units, parts = "blocks", list_blocks(backbone)
    if not parts:
        units, stages = "stages", list_stages(backbone)
        parts = stages[: stages.index(find_last_weighted_stage(backbone)) + 1]
    n_tuned = int(count[1])
    if not 1 <= n_tuned <= len(parts):
        raise CallError(
            f"{backbone.name} has {len(parts)} {units}, so --tune is last-1 to last-{len(parts)}, "
            f"or all; not {tune}"
        )
    first = parts[-n_tuned]
    before = parts[-n_tuned - 1] if n_tuned < len(parts) else None
    return first if before is None else _find_layer_after(backbone.network, before) or first


def _find_layer_after(network: LayerGraph, before: str) -> str | None:
    """Find the layer or module whose first operation comes next after a layer."""
    next_depth = network.layer(before).depth + 1
    usable = [layer.name for layer in network.layers.values() if layer.usable]
    beginning = [name for name in usable if find_first_op(network, name) == next_depth]
    return min(beginning, key=len, default=None)

"""Pool the output of a layer into one vector per image."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from featurize.errors import BackboneError

# Kinds of layer output, by the position of the channels.
VECTOR, CHANNELS_FIRST, CHANNELS_LAST, TOKENS = (
    "vector",
    "channels first",
    "channels last",
    "tokens",
)


def pooled_dim(axis_order: str, pool: str, map_shape: tuple[int, ...]) -> int:
    """Compute the length of the vector of one image after pooling.

    Parameters
    ----------
    axis_order : str
        Kind of output: `VECTOR`, `CHANNELS_FIRST`, `CHANNELS_LAST` or `TOKENS`.
    pool : str
        As for `pool_maps`.
    map_shape : tuple of int
        Shape of the layer's output for one image.

    Returns
    -------
    int
        Length of the vector.

    Raises
    ------
    BackboneError
        If the layer cannot be pooled in this way.
    """
    if pool == "token" and axis_order != TOKENS:
        raise BackboneError("pool 'token' is for layers of a vision transformer; use avg")
    if pool == "none":
        return math.prod(map_shape)
    channels = map_shape[0] if axis_order in (VECTOR, CHANNELS_FIRST) else map_shape[-1]
    return 2 * channels if pool == "avgmax" else channels


def pool_maps(x: Tensor, axis_order: str, pool: str) -> Tensor:
    """Pool a batch of maps.

    Parameters
    ----------
    x : Tensor of shape (B, *map_shape)
        The layer's output.
    axis_order : str
        Kind of output: `VECTOR`, `CHANNELS_FIRST`, `CHANNELS_LAST` or `TOKENS`.
    pool : str
        ``avg``, ``max``, ``avgmax`` (both, concatenated), ``none`` (the map, flattened) or
        ``token`` (a vision transformer's class token). Averages and maxima over tokens
        leave out the class token.

    Returns
    -------
    Tensor of shape (B, D)
        Never a view of `x`, which a later layer may overwrite. D is `pooled_dim`.
    """
    if pool == "none" or axis_order == VECTOR:
        flat = x.flatten(1).clone()
        return flat.repeat(1, 2) if pool == "avgmax" else flat
    if pool == "token":
        return x[:, 0].clone()
    if axis_order == CHANNELS_FIRST:
        if pool == "avgmax":
            return torch.cat([_avg_pool(x), _max_pool(x)], 1)
        return _avg_pool(x) if pool == "avg" else _max_pool(x)
    x, axes = (x[:, 1:], [1]) if axis_order == TOKENS else (x, [1, 2])
    if pool == "avg":
        return x.mean(axes)
    if pool == "max":
        return x.amax(axes)
    return torch.cat([x.mean(axes), x.amax(axes)], 1)


# These use pooling operations, which keep the channels-last layout; reductions would transpose.


def _avg_pool(x: Tensor) -> Tensor:
    # Average over each row, then over the rows: a sum over the whole map would lose precision.
    row_means = functional.avg_pool2d(x, (1, x.shape[3]))
    return functional.avg_pool2d(row_means, (x.shape[2], 1)).flatten(1)


def _max_pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, x.shape[2:]).flatten(1)

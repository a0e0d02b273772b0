"""How what a layer gives becomes one vector an image."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from featurize.errors import BackboneError

# What a layer gives, by where its channels are.
VECTOR, CHANNELS_FIRST, CHANNELS_LAST, TOKENS = (
    "vector",
    "channels first",
    "channels last",
    "tokens",
)


def pooled_dim(axis_order: str, pool: str, map_shape: tuple[int, ...]) -> int:
    """Numbers an image after pooling.

    Raises
    ------
    BackboneError
        If the layer cannot be pooled so.
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
    axis_order : str
        Where the channels are.
    pool : str
        ``avg``, ``max``, ``avgmax`` (both, joined), ``none`` (the map, flattened) or
        ``token`` (a vision transformer's class token). Averages and maxima over tokens
        leave the class token out.

    Returns
    -------
    Tensor of shape (B, D)
        Never a view of `x`, which a later layer may overwrite.
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


# As pooling, not as reductions: engines have it in the layout that convolutions leave.


def _avg_pool(x: Tensor) -> Tensor:
    # Each row, then the rows: a sum over all of a map at once would lose digits.
    rows = functional.avg_pool2d(x, (1, x.shape[3]))
    return functional.avg_pool2d(rows, (x.shape[2], 1)).flatten(1)


def _max_pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, x.shape[2:]).flatten(1)

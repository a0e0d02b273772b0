"""Pool the output of a layer into one vector per image."""

import math
from typing import NamedTuple

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


class Axes(NamedTuple):
    """What the axes of a layer's output mean, after the axis of the batch.

    Attributes
    ----------
    order : str
        `VECTOR`, `CHANNELS_FIRST`, `CHANNELS_LAST` or `TOKENS`.
    n_prefix_tokens : int
        Number of tokens before those of the patches: class token, registers.
    has_class_token : bool
        Whether the first of them is a class token.
    """

    order: str
    n_prefix_tokens: int = 0
    has_class_token: bool = False


def pooled_dim(axes: Axes, pool: str, map_shape: tuple[int, ...]) -> int:
    """Compute the length of the vector of one image after pooling.

    Parameters
    ----------
    axes : Axes
        Of the layer's output.
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
    if pool == "token" and axes.order != TOKENS:
        raise BackboneError("pool 'token' is for layers of a vision transformer; use avg")
    if pool == "token" and not axes.has_class_token:
        raise BackboneError("pool 'token' needs a class token, and this layer has none; use avg")
    if pool == "none":
        return math.prod(map_shape)
    channels = map_shape[0] if axes.order in (VECTOR, CHANNELS_FIRST) else map_shape[-1]
    return 2 * channels if pool == "avgmax" else channels


def pool_maps(x: Tensor, axis_order: str, n_prefix_tokens: int, pool: str) -> Tensor:
    """Pool a batch of maps.

    Parameters
    ----------
    x : Tensor of shape (B, *map_shape)
        The layer's output.
    axis_order : str
        As `Axes.order`.
    n_prefix_tokens : int
        As `Axes.n_prefix_tokens`.
    pool : str
        ``avg``, ``max``, ``avgmax`` (both, concatenated), ``none`` (the map, flattened) or
        ``token`` (a vision transformer's class token). Averages and maxima over tokens are over
        patches: they leave out class token and registers.

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
    x, dims = (x[:, n_prefix_tokens:], [1]) if axis_order == TOKENS else (x, [1, 2])
    if pool == "avg":
        return x.mean(dims)
    if pool == "max":
        return x.amax(dims)
    return torch.cat([x.mean(dims), x.amax(dims)], 1)


# On the processor these use pooling operations, which keep the channels-last layout; reductions
# would transpose.


def _avg_pool(x: Tensor) -> Tensor:
    # Average over each row, then over the rows: a sum over the whole map would lose precision.
    row_means = functional.avg_pool2d(x, (1, x.shape[3]))
    return functional.avg_pool2d(row_means, (x.shape[2], 1)).flatten(1)


def _max_pool(x: Tensor) -> Tensor:
    if x.is_cuda:
        # A window as large as the map runs on a GPU as one block of threads an image, position
        # after position; a reduction takes all of the GPU.
        return x.amax((2, 3))
    return functional.max_pool2d(x, x.shape[2:]).flatten(1)

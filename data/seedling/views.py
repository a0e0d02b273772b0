"""Random views of drawn pictures: what the network sees in training."""

from __future__ import annotations

import torch
from planes import SIDE, chance, uniform
from torch import Generator, Tensor

__all__ = ["SIZE", "look"]

SIZE = 32
"""Side of a view in pixels: what the network's ``PREPROCESS`` brings a real image to."""


def resize_rows(centre: Tensor, width: Tensor, blur: Tensor) -> Tensor:
    """Make matrices (N, SIZE, SIDE) that cut a span and resize it with a triangle filter.

    The filter is that of an antialiased bilinear resize, widened by ``blur``; one matrix for rows
    and one for columns make a crop, a resize and a blur in two products.
    """
    steps = (torch.arange(SIZE) + 0.5) / SIZE
    middle = (centre[:, None] + (steps - 0.5) * width[:, None]) * SIDE
    support = (width * SIDE / SIZE).clamp_min(1.0) * blur
    gap = (torch.arange(SIDE) + 0.5 - middle[:, :, None]).abs()
    rows = (1 - gap / support[:, None, None]).clamp_min(0)
    return rows / rows.sum(2, keepdim=True).clamp_min(1e-6)


def look(pictures: Tensor, g: Generator) -> Tensor:
    """Take one random view of each picture: crop, mirror, blur, light and colour.

    Parameters
    ----------
    pictures : Tensor
        (N, 3, SIDE, SIDE) uint8.
    g : Generator
        Source of the random numbers.

    Returns
    -------
    Tensor
        (N, 3, SIZE, SIZE) float32 in 0..1.
    """
    n = len(pictures)
    area, ratio = uniform(g, 0.25, 1, n), torch.exp2(uniform(g, -0.4, 0.4, n))
    wide, high = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    blur = 1 + chance(g, 0.25, n) * uniform(g, 0, 1.5, n)
    rows = resize_rows(high / 2 + torch.rand(n, generator=g) * (1 - high), high, blur)
    columns = resize_rows(wide / 2 + torch.rand(n, generator=g) * (1 - wide), wide, blur)
    mirrored = chance(g, 0.5, n)[:, None, None] > 0
    columns = torch.where(mirrored, columns.flip(1), columns)
    x = rows[:, None] @ (pictures.float() / 255) @ columns.transpose(1, 2)[:, None]
    # A 3x3 matrix near a multiple of one: saturation, hue and tint in a single product.
    grey = torch.full((3, 3), 1 / 3)
    saturation = torch.exp2(uniform(g, -1.2, 0.6, n, 1, 1)) * chance(g, 0.85, n, 1, 1)
    mix = saturation * torch.eye(3) + (1 - saturation) * grey
    mix = mix + 0.08 * torch.randn(n, 3, 3, generator=g)
    contrast = torch.exp2(uniform(g, -0.6, 0.5, n, 1, 1, 1))
    x = torch.einsum("nij,njyx->niyx", mix, x - 0.5) * contrast
    x = x + 0.5 + uniform(g, -0.15, 0.15, n, 1, 1, 1)
    x = x + 0.03 * chance(g, 0.3, n, 1, 1, 1) * torch.randn(x.shape, generator=g)
    return x.clamp(0, 1)

"""Pictures drawn by formula: dead leaves, things before a ground, strokes, and mixtures of them.

Every picture comes from random numbers; nothing is read from a file. All functions work on a whole
batch of torch tensors, (N, 3, S, S) with values near 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial

import torch
import torch.nn.functional as F
from planes import SIDE, chance, coordinates, marbles, noise, palette, textures, uniform
from torch import Generator, Tensor

__all__ = ["FAMILIES", "draw"]


def leaf_distance(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """Return a distance-like plane that is below 1 inside one random shape a picture.

    Weighted norms give boxes, ellipses, diamonds and what lies between; a bend makes crescents, a
    taper makes wedges.
    """
    weight = torch.rand(n, 3, 1, 1, generator=g) ** 6 + 1e-3
    weight = weight / weight.sum(1, keepdim=True)
    bend = torch.randn(n, 1, 1, generator=g) * 0.5 * chance(g, 0.4, n, 1, 1)
    taper = uniform(g, -0.7, 0.7, n, 1, 1) * chance(g, 0.5, n, 1, 1)
    v = y + bend * x * x
    a, b = x.abs() / (1 + taper * v.clamp(-1, 1)), v.abs()
    box, diamond, disc = torch.maximum(a, b), a + b, (a * a + b * b).sqrt()
    return weight[:, 0] * box + weight[:, 1] * diamond + weight[:, 2] * disc


def fill(index: Tensor, count: int, g: Generator) -> Tensor:
    """Colour a plane of leaf numbers: each leaf its colour, texture, and gradient of light.

    Parameters
    ----------
    index : Tensor
        (n, S, S) int64, the number of the leaf seen at each pixel, below ``count``.
    count : int
        Number of leaves a picture.
    g : Generator
        Source of the random numbers.

    Returns
    -------
    Tensor
        (n, 3, S, S), values about 0..1.
    """
    n = len(index)
    x, y = coordinates()
    planes = torch.stack([textures(n, g), textures(n, g), noise(n, g), x.expand(n, -1, -1),
                          y.expand(n, -1, -1)], 1)  # fmt: skip
    pick = F.one_hot(torch.randint(3, (n, count), generator=g), 3).float()
    strength = uniform(g, 0, 0.35, n, 1, 1) * torch.rand(n, count, 1, generator=g)
    slope = torch.randn(n, count, 2, generator=g) * uniform(g, 0, 0.25, n, 1, 1)
    rows = torch.cat([palette(n, count, g), pick * strength, slope], 2)
    seen = rows.gather(1, index.reshape(n, -1, 1).expand(-1, -1, 8)).transpose(1, 2)
    seen = seen.reshape(n, 8, SIDE, SIDE)
    return seen[:, :3] + (seen[:, 3:] * planes).sum(1, keepdim=True)


def dead_leaves(n: int, g: Generator, count: int = 48) -> Tensor:
    """Draw overlapping shapes whose sizes follow a power law, each with a texture.

    References
    ----------
    Lee, Mumford & Huang (2001), "Occlusion models for natural images", IJCV; with textures Baradad
    et al. (2021), "Learning to see by looking at noise", NeurIPS.

    Returns
    -------
    Tensor
        (n, 3, S, S), values about 0..1.
    """
    x, y = coordinates()
    index = torch.zeros(n, SIDE, SIDE, dtype=torch.int64)
    smallest = uniform(g, 0.04, 0.25, n, 1, 1)
    for k in range(1, count):
        # Inverse sampling of a density r^-3 from `smallest` to 1.2 (Lee et al., section 3).
        u = torch.rand(n, 1, 1, generator=g)
        r = (smallest**-2 - u * (smallest**-2 - 1.2**-2)) ** -0.5
        angle = uniform(g, 0, 2 * math.pi, n, 1, 1)
        aspect = torch.exp2(uniform(g, -1, 1, n, 1, 1))
        dx, dy = x - uniform(g, -1.1, 1.1, n, 1, 1), y - uniform(g, -1.1, 1.1, n, 1, 1)
        along = (dx * angle.cos() + dy * angle.sin()) / (r * aspect)
        across = (dy * angle.cos() - dx * angle.sin()) / (r / aspect)
        index = torch.where(leaf_distance(along, across, n, g) < 1, k, index)
    return fill(index, count, g)


def scenes(n: int, g: Generator, parts: int = 9) -> Tensor:
    """Draw a thing of a few joined parts before a ground: what a photograph of one thing is like.

    Parts lie near a common axis and may be mirrored about it; the ground is a marble, often smooth.

    Returns
    -------
    Tensor
        (n, 3, S, S), values about 0..1.
    """
    x, y = coordinates()
    turn = torch.randn(n, 1, 1, generator=g) * 0.6
    cx, cy = uniform(g, -0.35, 0.35, n, 1, 1), uniform(g, -0.35, 0.35, n, 1, 1)
    u = (x - cx) * turn.cos() + (y - cy) * turn.sin()
    v = (y - cy) * turn.cos() - (x - cx) * turn.sin()
    u = torch.where(chance(g, 0.5, n, 1, 1) > 0, u.abs(), u)
    scale = uniform(g, 0.35, 0.9, n, 1, 1)
    index = torch.zeros(n, SIDE, SIDE, dtype=torch.int64)
    for k in range(1, parts):
        r = scale * torch.exp2(uniform(g, -2.5, 0.0, n, 1, 1) * (k > 1))
        angle, aspect = uniform(g, 0, math.pi, n, 1, 1), torch.exp2(uniform(g, -1, 1, n, 1, 1))
        dx = u - scale * uniform(g, -0.8, 0.8, n, 1, 1)
        dy = v - scale * uniform(g, -0.8, 0.8, n, 1, 1)
        along = (dx * angle.cos() + dy * angle.sin()) / (r * aspect)
        across = (dy * angle.cos() - dx * angle.sin()) / (r / aspect)
        index = torch.where(leaf_distance(along, across, n, g) < 1, k, index)
    return torch.where(index[:, None] > 0, fill(index, parts, g), marbles(n, g))


def strokes(n: int, g: Generator, count: int = 4, pieces: int = 7) -> Tensor:
    """Draw up to ``count`` pen strokes (cubic Bezier curves) a picture, as in writing.

    Returns
    -------
    Tensor
        (n, 3, S, S), values about 0..1.
    """
    x, y = coordinates()
    t = torch.linspace(0, 1, pieces + 1)
    basis = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3])
    points = uniform(g, -0.8, 0.8, n, count, 2, 4)
    # Later strokes mostly start where the one before ended: a glyph, not scattered hairs.
    for k in range(1, count):
        joined = chance(g, 0.7, n, 1)
        points[:, k, :, 0] = joined * points[:, k - 1, :, 3] + (1 - joined) * points[:, k, :, 0]
    curve = points @ basis
    drawn = torch.randint(1, count + 1, (n,), generator=g)
    distance = torch.full((n, SIDE, SIDE), 9.0)
    for k in range(count):
        for j in range(pieces):
            a, b = curve[:, k, :, j, None, None], curve[:, k, :, j + 1, None, None]
            d = b - a
            px, py = x - a[:, 0], y - a[:, 1]
            s = (px * d[:, 0] + py * d[:, 1]) / (d * d).sum(1).clamp_min(1e-6)
            s = s.clamp(0, 1)
            squared = (px - s * d[:, 0]) ** 2 + (py - s * d[:, 1]) ** 2
            distance = torch.where(
                (drawn > k)[:, None, None], torch.minimum(distance, squared), distance
            )
    width, soft = uniform(g, 0.03, 0.2, n, 1, 1), uniform(g, 0.02, 0.2, n, 1, 1)
    ink = ((width - distance.sqrt()) / soft + 0.5).clamp(0, 1)[:, None]
    colours = palette(n, 2, g)
    plain = chance(g, 0.5, n, 1, 1, 1)
    ground = plain * colours[:, 0, :, None, None] + (1 - plain) * marbles(n, g)
    # Half of the plain ones are pure light on dark or dark on light, without colour.
    grey = plain * chance(g, 0.5, n, 1, 1, 1)
    dark = chance(g, 0.5, n, 1, 1, 1)
    ground = grey * dark * 0.95 + (1 - grey) * ground
    pen = grey * (1 - dark) * 0.95 + (1 - grey) * colours[:, 1, :, None, None]
    return ground * (1 - ink) + pen * ink


SHARES: tuple[tuple[str, Callable[[int, Generator], Tensor], int], ...] = (
    ("leaves", dead_leaves, 2),
    ("scenes", scenes, 3),
    ("strokes", strokes, 1),
    ("marbles", marbles, 1),
    ("leaves", partial(dead_leaves, count=16), 1),
)
"""Families of pictures: name, function, share. Marbles also lie behind things and strokes."""

FAMILIES = tuple(dict.fromkeys(name for name, _, _ in SHARES))
"""Names of the families."""


def mix(pictures: Tensor, g: Generator) -> Tensor:
    """Join three in ten pictures with another one: most by a soft mask, some laid over each other.

    References
    ----------
    Baradad et al. (2022), "Procedural image programs for representation learning", NeurIPS.
    """
    n, other = len(pictures), pictures.roll(1, 0)
    mask = torch.sigmoid((noise(n, g, 1.5, 3.0) + uniform(g, -1, 1, n, 1, 1)) * 12)[:, None]
    mask = torch.where(chance(g, 0.3, n, 1, 1, 1) > 0, uniform(g, 0.2, 0.8, n, 1, 1, 1), mask)
    joined = mask * pictures + (1 - mask) * other
    return torch.where(chance(g, 0.3, n, 1, 1, 1) > 0, joined, pictures)


def draw(n: int, g: Generator, families: Collection[str] = FAMILIES, mixing: bool = True) -> Tensor:
    """Draw a batch of all families, in random order, some of them mixed.

    Parameters
    ----------
    n : int
        Number of pictures, at least 8.
    g : Generator
        Source of the random numbers; the same state gives the same pictures.
    families : collection of str
        Of ``FAMILIES``; the shares of the others go to these.
    mixing : bool
        Whether to ``mix``.

    Returns
    -------
    Tensor
        (n, 3, S, S) uint8.
    """
    chosen = [(family, share) for name, family, share in SHARES if name in families]
    total = sum(share for _, share in chosen)
    counts = [n * share // total for _, share in chosen]
    counts[-1] = n - sum(counts[:-1])
    groups = [family(count, g) for (family, _), count in zip(chosen, counts, strict=True)]
    pictures = torch.cat(groups)[torch.randperm(n, generator=g)]
    if mixing:
        pictures = mix(pictures, g)
    gamma = torch.exp2(uniform(g, -0.7, 0.7, n, 1, 1, 1))
    return (pictures.clamp(0, 1) ** gamma * 255).round().to(torch.uint8)

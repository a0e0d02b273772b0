"""What drawn pictures are made of: noise, waves, colours, all from random numbers.

Nothing is read from a file. All functions work on a whole batch of torch tensors: a plane is
(N, S, S), a picture (N, 3, S, S) with values near 0..1.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

__all__ = ["SIDE", "chance", "coordinates", "marbles", "noise", "palette", "textures", "uniform"]

SIDE = 64
"""Side of a picture in pixels: twice what the network sees, so that crops can be antialiased."""


def uniform(g: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Draw a float32 tensor of ``shape`` uniformly from ``low`` to ``high``."""
    return torch.rand(*shape, generator=g) * (high - low) + low


def chance(g: Generator, p: float, *shape: int) -> Tensor:
    """Draw zeros and ones (float32) of ``shape``; a one with probability ``p``."""
    return (torch.rand(*shape, generator=g) < p).float()


def coordinates() -> tuple[Tensor, Tensor]:
    """Return x and y, each (S, S), from -1 to 1."""
    line = torch.linspace(-1, 1, SIDE)
    return line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE)


def noise(n: int, g: Generator, low: float = 0.5, high: float = 2.2) -> Tensor:
    """Draw planes whose amplitude spectrum falls with a power of the frequency.

    Photographs have an exponent near 1 (Field 1987, "Relations between the statistics of natural
    images and the response properties of cortical cells", JOSA A). Here each plane has its own
    exponent and its own stretch along one direction.

    Parameters
    ----------
    n : int
        Number of planes.
    g : Generator
        Source of the random numbers.
    low, high : float
        Range of the exponent.

    Returns
    -------
    Tensor
        (n, S, S), mean 0 and standard deviation 1 in each plane.
    """
    fy, fx = torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)[None]
    angle = uniform(g, 0, math.pi, n, 1, 1)
    stretch = torch.exp2(uniform(g, -1.3, 1.3, n, 1, 1) * chance(g, 0.6, n, 1, 1))
    u = (fx * angle.cos() + fy * angle.sin()) * stretch
    v = (fy * angle.cos() - fx * angle.sin()) / stretch
    gain = (u * u + v * v + 1e-4) ** (-0.5 * uniform(g, low, high, n, 1, 1))
    white = torch.randn(n, SIDE, SIDE, generator=g)
    plane = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(SIDE, SIDE))
    plane = plane - plane.mean((1, 2), keepdim=True)
    return plane / plane.std((1, 2), keepdim=True).clamp_min(1e-6)


def textures(n: int, g: Generator) -> Tensor:
    """Draw planes from one formula that reaches from pure noise over marble to gratings and plaids.

    A sine wave of random direction is bent by noise, may be multiplied by a second wave, sharpened,
    and mixed with noise.

    Returns
    -------
    Tensor
        (n, S, S), values about -1..1.
    """
    x, y = coordinates()
    bend = noise(n, g) * torch.exp2(uniform(g, -3, 2.5, n, 1, 1)) * chance(g, 0.7, n, 1, 1)

    def wave() -> Tensor:
        angle = uniform(g, 0, math.pi, n, 1, 1)
        rate = torch.exp2(uniform(g, 0.5, 5.3, n, 1, 1))
        along = x * angle.cos() + y * angle.sin()
        return torch.sin(rate * along + bend + uniform(g, 0, 6.3, n, 1, 1))

    plaid = chance(g, 0.25, n, 1, 1)
    plane = wave() * (plaid * wave() + 1 - plaid)
    sharp = torch.exp2(uniform(g, -1, 4, n, 1, 1))
    plane = torch.tanh(sharp * plane) / torch.tanh(sharp)
    share = (uniform(g, -0.5, 1.5, n, 1, 1)).clamp(0, 1)
    return share * plane + (1 - share) * 0.6 * noise(n, g)


def palette(n: int, count: int, g: Generator) -> Tensor:
    """Draw ``count`` colours a picture: some pictures motley, most near to a few hues.

    Returns
    -------
    Tensor
        (n, count, 3), values about 0..1.
    """
    centre = uniform(g, 0.15, 0.85, n, 1, 1) + 0.1 * torch.randn(n, 1, 3, generator=g)
    light = torch.randn(n, count, 1, generator=g) * uniform(g, 0.05, 0.35, n, 1, 1)
    # Two hue directions a picture keep its colours related, as in a scene under one light.
    hues = torch.randn(n, 2, 3, generator=g)
    hues = hues - hues.mean(2, keepdim=True)
    weight = torch.randn(n, count, 2, generator=g) * uniform(g, 0.0, 0.14, n, 1, 1)
    return (centre + light + weight @ hues).clamp(-0.05, 1.05)


def marbles(n: int, g: Generator) -> Tensor:
    """Draw pictures of one texture each, coloured by three related planes.

    Returns
    -------
    Tensor
        (n, 3, S, S), values about 0..1.
    """
    colours = palette(n, 4, g)
    planes = torch.stack([textures(n, g), textures(n, g), noise(n, g, 1.0, 2.5)], 1)
    strength = uniform(g, 0.1, 1.0, n, 3, 1)
    tints = (colours[:, 1:] - colours[:, :1]) * strength
    return colours[:, 0, :, None, None] + torch.einsum("npyx,npc->ncyx", planes, tints)

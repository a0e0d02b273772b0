"""The teacher: a dictionary of drawn patches, which is fast to make but too wide to ship.

Single-layer patch dictionaries describe small photographs surprisingly well (Coates, Lee & Ng 2011,
"An analysis of single-layer networks in unsupervised feature learning", AISTATS). This one is made
of patches of drawn pictures only. The network learns to predict its answers, squeezed to a
few hundred uncorrelated numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

__all__ = ["Teacher"]


class Dictionary:
    """Whitened patches of one size and the atoms that cluster them.

    Parameters
    ----------
    views : Tensor
        (N, 3, H, W) in 0..1, where the patches are cut.
    atoms, size : int
        Number of atoms; side of a patch in pixels.
    g : Generator
        Source of the random numbers.
    """

    def __init__(self, views: Tensor, atoms: int, size: int, g: Generator, cut: int = 50000):
        n, side = len(views), views.shape[-1] - size + 1
        pick = [torch.randint(top, (cut, 1, 1), generator=g) for top in (n, side, side)]
        line = torch.arange(size)
        rows, columns = pick[1] + line[:, None], pick[2] + line
        patches = views[pick[0], :, rows, columns].permute(0, 3, 1, 2).flatten(1)
        patches = patches - patches.mean(1, keepdim=True)
        patches = patches / (patches.var(1, keepdim=True, unbiased=False) + 0.002).sqrt()
        mean = patches.mean(0)
        values, basis = torch.linalg.eigh(torch.cov(patches.T))
        # The floor of 0.05 keeps whitening from blowing up frequencies that hold only noise.
        whiten = basis @ torch.diag((values + 0.05).rsqrt()) @ basis.T
        points = F.normalize((patches - mean) @ whiten)
        self.size = size
        self.whiten = whiten.reshape(-1, 3, size, size).contiguous()
        self.total = whiten.sum(1)[:, None, None]
        self.offset = (whiten @ mean)[:, None, None]
        self.atoms = self._cluster(points, atoms, g)[:, :, None, None]

    @staticmethod
    def _cluster(points: Tensor, atoms: int, g: Generator, rounds: int = 8) -> Tensor:
        """Spherical k-means without regard to sign (Coates & Ng 2012)."""
        centres = points[:atoms].clone()
        for _ in range(rounds):
            near = points @ centres.T
            index = near.abs().argmax(1)
            sign = near.gather(1, index[:, None]).sign()
            centres = torch.zeros_like(centres).index_add_(0, index, points * sign)
            empty = centres.norm(dim=1) < 1e-3
            fresh = torch.randint(len(points), (int(empty.sum()),), generator=g)
            centres[empty] = points[fresh]
            centres = F.normalize(centres)
        return centres

    def __call__(self, views: Tensor) -> Tensor:
        """Answer (N, 8 * atoms): rectified responses of both signs, averaged over quarters."""
        mean = F.avg_pool2d(views, self.size, 1).mean(1, keepdim=True)
        power = F.avg_pool2d(views * views, self.size, 1).mean(1, keepdim=True)
        spread = ((power - mean * mean).clamp_min(0) + 0.002).sqrt()
        white = (F.conv2d(views, self.whiten) - mean * self.total) / spread - self.offset
        near = F.softshrink(F.conv2d(F.normalize(white), self.atoms), 0.25)
        # relu(t) = (|t| + t) / 2 after the average, on small maps, instead of before it.
        signed = F.adaptive_avg_pool2d(near, 2).flatten(1).float()
        size = F.adaptive_avg_pool2d(near.abs(), 2).flatten(1).float()
        return torch.cat([size + signed, size - signed], 1).clamp_min(0).mul(0.5).sqrt()


class Teacher:
    """Dictionaries at two scales and a coarse grid of colours, squeezed by principal components.

    Parameters
    ----------
    views : Tensor
        (N, 3, 32, 32) in 0..1: the drawn pictures to learn from.
    g : Generator
        Source of the random numbers.
    fine, coarse : int
        Atoms at full and at half resolution.
    dim : int
        Length of an answer.
    part : int
        Views answered at once. Small parts stay in a processor's caches: the maps between are two
        hundred deep. A GPU wants large ones.
    """

    def __init__(self, views: Tensor, g: Generator, fine: int = 200, coarse: int = 100,
                 dim: int = 384, part: int = 16) -> None:  # fmt: skip
        self.part = part
        self.fine = Dictionary(views, fine, 4, g)
        self.coarse = Dictionary(F.avg_pool2d(views, 2), coarse, 4, g) if coarse else None
        raw = torch.cat([self.raw(few) for few in views.split(part)])
        self.mean, self.scale = raw.mean(0), raw.std(0) + 1e-6
        raw = (raw - self.mean) / self.scale
        values, basis = torch.linalg.eigh(torch.cov(raw.T))
        values, basis = values.flip(0)[:dim], basis.flip(1)[:, :dim]
        self.squeeze = basis * values.rsqrt()
        # The leading components carry most and are learnt first; the last ones are nearly noise.
        self.weight = values.sqrt() / values.sqrt().mean()

    def raw(self, views: Tensor) -> Tensor:
        """Return the unsqueezed answers."""
        parts = [self.fine(views), F.adaptive_avg_pool2d(views, 4).flatten(1)]
        if self.coarse is not None:
            parts.append(self.coarse(F.avg_pool2d(views, 2)))
        return torch.cat(parts, 1)

    def __call__(self, views: Tensor) -> Tensor:
        """Return (N, dim): uncorrelated answers, mean 0 and variance 1 on drawn pictures."""
        raw = torch.cat([self.raw(few) for few in views.split(self.part)])
        return ((raw - self.mean) / self.scale) @ self.squeeze

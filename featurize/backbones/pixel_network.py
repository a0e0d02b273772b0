"""What every engine runs: preprocessing's arithmetic, then the cut network."""

import copy

import torch
from torch import Tensor, nn

from featurize.images.preprocess import Preprocess


class PixelNetwork(nn.Module):
    """A cut network that takes pixels.

    Parameters
    ----------
    network : nn.Module
        From a normalised float batch (B, 3, crop, crop) to a tuple of features.
    preprocess : Preprocess
        Its ``mean`` and ``std``.
    packed : bool
        Whether to run a copy whose weights lie in the pixels' order, channels last.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network) if channels_last else network
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocess, name)).view(1, 3, 1, 1))
        self.eval()
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """From uint8 (B, crop, crop, 3) to a tuple of (B, D), one a layer."""
        return tuple(self.network(self.normalise(pixels)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the network takes: float32 (B, 3, crop, crop)."""
        # The channels stay last in memory: convolutions are up to twice as fast so.
        x = pixels.permute(0, 3, 1, 2).to(torch.float32)
        return x.div_(255).sub_(self.mean).div_(self.std)

"""What every engine runs: preprocessing's arithmetic, then the cut network."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Prepared(nn.Module):
    """A cut network that takes pixels.

    Parameters
    ----------
    network : nn.Module
        From a normalised float batch (B, 3, crop, crop) to a tuple of features.
    preprocess : mapping
        Its ``mean`` and ``std``.
    memory_format : torch.memory_format
        ``channels_last`` leaves the pixels' order as it comes, and lays a copy of the weights out
        to match.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocess: Mapping[str, Any],
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        anew = memory_format == torch.channels_last
        self.network = copy.deepcopy(network) if anew else network
        self.memory_format = memory_format
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocess[name]).view(1, 3, 1, 1))
        self.eval()
        if anew:
            self.to(memory_format=memory_format)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """From uint8 (B, crop, crop, 3) to a tuple of (B, D), one a layer."""
        x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.memory_format)
        x = (x / 255 - self.mean) / self.std
        return tuple(self.network(x))

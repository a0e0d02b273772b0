"""The module that every engine runs: normalisation of pixels, then the cut network."""

import copy

import torch
from torch import Tensor, nn

from featurize.images.preprocess import Preprocess


class PixelNetwork(nn.Module):
    """A cut network that takes pixels.

    Parameters
    ----------
    network : nn.Module
        Maps a normalised float batch (B, 3, crop, crop) to a tuple of features.
    preprocess : Preprocess
        Its ``mean`` and ``std`` are used.
    channels_last : bool
        Whether to run a copy whose convolutions have channels-last weights, as the pixels are.

    Attributes
    ----------
    network : nn.Module
        As the parameter, or its copy.
    mean, std : float Tensor of shape (1, 3, 1, 1)
        Buffers, for values in 0..1.
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
            lay_channels_last(self)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of images.

        Parameters
        ----------
        pixels : uint8 Tensor of shape (B, crop, crop, 3)
            RGB pixels.

        Returns
        -------
        tuple of Tensor of shape (B, D)
            One per layer.
        """
        return tuple(self.network(self.normalise(pixels)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels: ``(x / 255 - mean) / std``.

        Parameters
        ----------
        pixels : uint8 Tensor of shape (B, crop, crop, 3)
            RGB pixels.

        Returns
        -------
        float32 Tensor of shape (B, 3, crop, crop)
            The input of the network, in channels-last layout.
        """
        # Channels-last layout makes convolutions up to twice as fast.
        x = pixels.permute(0, 3, 1, 2).to(torch.float32)
        return x.div_(255).sub_(self.mean).div_(self.std)


def lay_channels_last(network: nn.Module) -> None:
    """Lay the weights of 2-D convolutions with their channels last.

    No other tensor gains by it, and those of five dimensions, as in Swin, have no such layout.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)

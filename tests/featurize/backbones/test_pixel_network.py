"""`PixelNetwork`: its weights in channels-last layout, whatever else the network holds."""

import torch
from torch import nn

from featurize import Preprocess
from featurize.backbones.pixel_network import PixelNetwork

PREPROCESS = Preprocess(resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)


class Windowed(nn.Module):
    """A convolution beside constants of five dimensions, as Swin's masks of windows are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.mixing = nn.Parameter(torch.rand(2, 4, 4, 4))
        self.register_buffer("windows", torch.rand(1, 1, 4, 6, 6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return ((self.conv(x)[:, None] * self.windows).mean(dim=(1, 3, 4)),)


def test_a_network_with_constants_of_five_dimensions_runs_with_channels_last():
    network = Windowed().eval()
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    plain = PixelNetwork(network, PREPROCESS)
    with torch.inference_mode():
        expected = plain(pixels)[0]
        relaid = PixelNetwork(network, PREPROCESS, channels_last=True)
        assert torch.allclose(relaid(pixels)[0], expected, atol=1e-6)
    inner = relaid.network
    assert inner.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert inner.mixing.is_contiguous()  # no convolution reads it
    assert inner.windows.is_contiguous()
    assert network.conv.weight.is_contiguous()  # what was handed in stays as it was

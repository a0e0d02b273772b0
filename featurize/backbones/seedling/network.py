"""The network of the embedded backbone: a small residual net for 32 px images."""

from __future__ import annotations

from torch import Tensor, nn

from featurize.images.preprocess import Preprocess

__all__ = ["PREPROCESS", "Seedling"]

PREPROCESS = Preprocess(resize=32, crop=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def make_conv_norm(
    in_channels: int, out_channels: int, size: int, stride: int = 1
) -> nn.Sequential:
    """Make a convolution without bias followed by batch norm (Ioffe & Szegedy 2015).

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the maps read and written.
    size : int
        Side of the square kernel in pixels, odd; the map is padded by half of it.
    stride : int
        Step of the kernel in pixels.

    Returns
    -------
    nn.Sequential
        Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """
    conv = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: the basic residual block.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the maps read and written.
    stride : int
        Step of the first convolution. Where the shape changes, the shortcut is a 1x1 convolution.

    References
    ----------
    He, Zhang, Ren & Sun (2016), "Deep residual learning for image recognition", CVPR.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = make_conv_norm(in_channels, out_channels, 3, stride)
        # Never in place: the next operation must not overwrite a map that a user extracts.
        self.relu1 = nn.ReLU(inplace=False)
        self.second = make_conv_norm(out_channels, out_channels, 3)
        same = in_channels == out_channels and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity() if same else make_conv_norm(in_channels, out_channels, 1, stride)
        )
        self.relu2 = nn.ReLU(inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Parameters
        ----------
        x : Tensor of shape (N, in_channels, H, W)
            Maps.

        Returns
        -------
        Tensor of shape (N, out_channels, H / stride, W / stride)
            Maps.
        """
        y = self.second(self.relu1(self.first(x)))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class Seedling(nn.Module):
    """A residual net for 32 px RGB images, without a classifying layer.

    Five stages run in sequence, and the network can be cut after each. For an image of 32 px their
    maps are

    ========  ========  =====
    stage     channels  side
    ========  ========  =====
    stem      32        32
    stage1    32        32
    stage2    64        16
    stage3    128       8
    stage4    512       4
    ========  ========  =====

    The forward pass has no branch on data, so ``torch.fx`` traces it.

    Attributes
    ----------
    dim : int
        Length of the vector that ``forward`` returns for one image: 512.

    References
    ----------
    He, Zhang, Ren & Sun (2016), "Deep residual learning for image recognition", CVPR; its nets for
    CIFAR-10 have the same structure: a 3x3 stem at full size, then stages that halve it. The
    widening 1x1 convolution at the end is that of Sandler et al. (2018), "MobileNetV2", CVPR.
    """

    dim = 512
    """Length of the vector that ``forward`` returns for one image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(make_conv_norm(3, 32, 3), nn.ReLU(inplace=False))
        self.stage1 = nn.Sequential(BasicBlock(32, 32))
        self.stage2 = nn.Sequential(BasicBlock(32, 64, stride=2), BasicBlock(64, 64))
        self.stage3 = nn.Sequential(BasicBlock(64, 128, stride=2), BasicBlock(128, 128))
        # At 4x4 px a wide vector costs little, and it helps a linear head.
        self.stage4 = nn.Sequential(
            BasicBlock(128, 256, stride=2),
            BasicBlock(256, 256),
            make_conv_norm(256, self.dim, 1),
            nn.ReLU(inplace=False),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images.

        Parameters
        ----------
        x : Tensor of shape (N, 3, H, W)
            Images, preprocessed by ``PREPROCESS``. The network was trained on 32 x 32 pixels.

        Returns
        -------
        Tensor of shape (N, 512)
            The map of ``stage4``, averaged over space.
        """
        x = self.stem(x)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        vectors: Tensor = self.flatten(self.pool(x))
        return vectors

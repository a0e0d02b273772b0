"""A network made ready for a GPU computes the same, and is a copy; looked at on the processor."""

import numpy as np
import pytest
import torch
from torch import fx, nn

from featurize import Backbone, load_backbone
from featurize.backbones.families import parse_layers
from featurize.backbones.gpu_network import to_gpu_network
from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.base import ENGINE_RTOL

RECIPE = {"resize": 64, "crop": 64, "mean": [0.5] * 3, "std": [0.25] * 3}


class Shared(nn.Module):
    """A convolution used twice, one whose output is used before its norm, one read as a weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.read = nn.Conv2d(4, 4, 1)
        self.seen = nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))

    def forward(self, x):
        x = self.norms[0](self.stem(x))
        x = self.norms[1](self.twice(x)) + self.norms[2](self.twice(x.relu()))
        seen = self.seen(x)
        y = self.norms[3](self.read(x)) + self.norms[4](seen) * seen
        return (y + self.read.weight.sum()).mean((2, 3))


def set_statistics(module: nn.Module) -> None:
    """Batch norms that do something, as those of a trained network."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2.0, generator=generator)
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.3, generator=generator)


def make_pixels(crop: int) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (3, crop, crop, 3), np.uint8)
    return torch.from_numpy(pixels)


def count_norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def worst(found, expected) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float(((a - b).norm(dim=1) / b.norm(dim=1)).max()) for a, b in pairs)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "n_left"),
    [("resnet18", 0), ("seedling", 0), ("squeezenet1_1", 0), ("densenet121", None)],
)
def test_batch_norms_are_folded_and_features_stay(name, n_left):
    backbone = load_backbone(name, frozen_weights=name == "seedling")
    if name != "seedling":
        set_statistics(backbone.network.module)
    cut = backbone.cut(parse_layers("auto", "avgmax", name))
    n_before, state = count_norms(cut), {k: v.clone() for k, v in cut.state_dict().items()}
    pixels = make_pixels(64)
    plain = PixelNetwork(cut, backbone.preprocess)
    expected = plain(pixels)
    made = to_gpu_network(cut, backbone.preprocess, "cpu")
    assert worst(made(pixels), expected) <= ENGINE_RTOL
    n_after = count_norms(made)
    assert n_after == n_left if n_left is not None else 0 < n_after < n_before
    # The network that was handed in is as it was.
    assert count_norms(cut) == n_before
    assert all(torch.equal(value, state[name]) for name, value in cut.state_dict().items())
    convs = [part for part in made.modules() if isinstance(part, nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)


@torch.inference_mode()
def test_a_convolution_used_elsewhere_keeps_its_norm():
    module = Shared().eval()
    set_statistics(module)
    pixels = make_pixels(64)
    traced = fx.symbolic_trace(module)
    as_tuple = fx.GraphModule(traced, traced.graph)
    for node in as_tuple.graph.nodes:
        if node.op == "output":
            node.args = ((node.args[0],),)
    as_tuple.recompile()
    backbone = Backbone(Shared(), name="shared", preprocess=RECIPE)
    expected = PixelNetwork(as_tuple, backbone.preprocess)(pixels)
    made = to_gpu_network(as_tuple, backbone.preprocess, "cpu")
    assert worst(made(pixels), expected) <= ENGINE_RTOL
    assert count_norms(made) == 4  # that of the stem alone is folded


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet18", pytest.param("vit_b_32", marks=pytest.mark.long)])
def test_weights_in_half_precision_are_those_that_autocast_makes(name):
    backbone = load_backbone(name, frozen_weights=False)
    cut = backbone.cut(parse_layers("last", None, name))
    pixels = make_pixels(backbone.preprocess["crop"])
    full = to_gpu_network(cut, backbone.preprocess, "cpu")
    half = to_gpu_network(cut, backbone.preprocess, "cpu", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half(pixels)[0], full(pixels)[0])
    assert any(parameter.dtype == torch.bfloat16 for parameter in half.parameters())

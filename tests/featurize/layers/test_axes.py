"""What the axes of a layer mean: measured of each layer, and never asked of a table."""

import math

import pytest
import torch
from torch import Tensor, nn

from featurize import Backbone, load_backbone
from featurize.errors import BackboneError

RECIPE = {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


def make(timm, name: str, size: int, **options):
    """A network of timm whose tensors all matter."""
    torch.manual_seed(0)
    network = timm.create_model(name, img_size=size, num_classes=0, **options).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and (tensor.ndim < 2 or tensor.std() < 1e-3):
            tensor += 0.1 * torch.randn(tensor.shape)
    return network


def listen(network: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a module of the network itself gives."""
    found: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: found.append(output.clone())
    )
    network(x)
    handle.remove()
    return found[0]


def own(network: nn.Module, size: int) -> Backbone:
    return Backbone(network, name="mine", preprocess={"resize": size, "crop": size, **RECIPE})


def near(found: Tensor, expected: Tensor) -> bool:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm()) < 1e-6


# The prefix of each: none, a class token, two, one and four registers, registers alone.
PREFIXES = [
    ("vit_tiny_patch16_224", 112, "blocks.1", 1, True),
    ("vit_small_patch14_reg4_dinov2", 112, "norm", 5, True),
    ("vit_small_patch14_reg4_dinov2", 112, "blocks.0", 5, True),
    ("deit_tiny_distilled_patch16_224", 112, "blocks.0", 2, True),
    ("cait_xxs24_224", 112, "blocks.3", 0, False),
    ("convit_tiny", 112, "blocks.0", 0, False),
    ("convit_tiny", 112, "blocks.11", 1, True),
    ("xcit_nano_12_p8_224", 112, "blocks.0", 0, False),
    ("vit_base_patch16_siglip_224", 48, "blocks.0", 0, False),
    ("test_vit2", 160, "blocks.0", 1, False),
]


@pytest.mark.parametrize(("name", "size", "layer", "n_prefix", "has_class_token"), PREFIXES)
def test_averages_are_over_patches_alone(name, size, layer, n_prefix, has_class_token, timm):
    network = make(timm, name, size)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    backbone = own(network, size)
    found = backbone.cut([(layer, "avg"), (layer, "max"), (layer, "avgmax"), (layer, "none")])(x)
    tokens = listen(network, layer, x)
    patches = tokens[:, n_prefix:]
    assert math.isqrt(patches.shape[1]) ** 2 == patches.shape[1]
    assert near(found[0], patches.mean(1))
    assert near(found[1], patches.amax(1))
    assert near(found[2], torch.cat([patches.mean(1), patches.amax(1)], 1))
    assert near(found[3], tokens.flatten(1))
    if has_class_token:
        assert near(backbone.cut([(layer, "token")])(x)[0], tokens[:, 0])
    else:
        with pytest.raises(BackboneError, match="avg"):
            backbone.cut([(layer, "token")])


@pytest.mark.long
def test_token_of_a_network_without_one_exits_2(timm, tmp_path, cli, draw):
    """SigLIP pools by attention; a register is no class token either."""
    photos = draw(tmp_path / "photos", ["1.png"])
    for name in ("timm:vit_base_patch16_siglip_224", "timm:test_vit2"):
        done = cli("run", photos, "-o", tmp_path / "c.h5", "--backbone", name, "--dry-run",
                   "--layers", "blocks.0:token")  # fmt: skip
        assert done.exit_code == 2, name
        assert "token" in done.stderr
        assert "avg" in done.stderr


class OwnViT(nn.Module):
    """A user's own vision transformer, for images of one size, with class token and registers."""

    def __init__(self, size: int = 32, patch: int = 8, width: int = 12, registers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.registers = nn.Parameter(torch.randn(1, registers, width))
        n_tokens = 1 + registers + (size // patch) ** 2
        self.positions = nn.Parameter(torch.randn(1, n_tokens, width))
        self.block1 = nn.Linear(width, width)
        self.block2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        prefix = torch.cat([self.cls_token, self.registers], 1).expand(x.shape[0], -1, -1)
        x = torch.cat([prefix, x], 1) + self.positions
        x = self.block1(x)
        if mask is not None:
            x = x * mask
        return self.fc(self.norm(self.block2(x).relu())[:, 0])


def test_a_fixed_size_transformer_of_ones_own():
    """It cannot be built for another size; its one convolution says how many patches there are."""
    torch.manual_seed(0)
    network = OwnViT().eval()
    x = torch.randn(2, 3, 32, 32)
    backbone = own(network, 32)
    for layer in ("block1", "block2", "norm"):
        tokens = listen(network, layer, x)
        average, token = backbone.cut([(layer, "avg"), (layer, "token")])(x)
        assert near(average, tokens[:, 3:].mean(1))
        assert near(token, tokens[:, 0])
    assert near(backbone.cut([("fc", "avg")])(x)[0], network(x))


def test_no_mask_means_no_mask():
    """Optional arguments of forward keep their defaults; as variables they would be taken."""
    network = OwnViT().eval()
    code = own(network, 32).cut([("norm", "avg")]).code
    assert "mask" not in code


@pytest.mark.long
@pytest.mark.parametrize("size", [64, 96])
def test_a_vision_transformer_of_torchvision(size):
    backbone = load_backbone("vit_b_32", size=size, frozen_weights=False)
    network = backbone.network.module
    x = torch.randn(2, 3, size, size)
    layer = "encoder.layers.encoder_layer_0"
    tokens = listen(network, layer, x)
    assert tokens.shape[1] == (size // 32) ** 2 + 1
    average, token = backbone.cut([(layer, "avg"), (layer, "token")])(x)
    assert near(average, tokens[:, 1:].mean(1))
    assert near(token, tokens[:, 0])


@pytest.mark.slow
def test_maxvit_of_torchvision():
    """It takes images of one size, and is built a second time for another."""
    backbone = load_backbone("maxvit_t", frozen_weights=False)
    x = torch.randn(1, 3, 224, 224)
    for layer in ("stem", "blocks.0", "blocks.3"):
        assert backbone.layers[layer].axes.order == "channels first"
        maps = listen(backbone.network.module, layer, x)
        assert near(backbone.cut([(layer, "avg")])(x)[0], maps.mean((2, 3)))


@pytest.mark.long
def test_a_network_that_brings_all_images_to_one_size(timm):
    """CrossViT resizes its images itself, so that only a second construction tells its tokens."""
    backbone = load_backbone(f"timm:{timm.list_models('crossvit_9_240')[0]}", frozen_weights=False)
    counts = {
        layer.map_shape[0]
        for layer in backbone.layers.values()
        if (layer.axes.order, layer.axes.n_prefix_tokens) == ("tokens", 1)
    }
    assert counts == {20**2 + 1, 14**2 + 1}  # two branches, a class token each

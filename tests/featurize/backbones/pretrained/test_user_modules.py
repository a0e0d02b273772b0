"""A network of timm that a user hands in as a module: `last`, `auto`, every layer."""

import pytest
import torch

from featurize import Backbone, FeatureCache, run


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def hand_in(network, size: int = 160) -> Backbone:
    preprocess = {"resize": size, "crop": size, "mean": [0.5] * 3, "std": [0.25] * 3}
    return Backbone(network, name="mine", preprocess=preprocess)


def embed(network, x):
    return network.forward_head(network.forward_features(x), pre_logits=True)


@pytest.mark.parametrize("n_classes", [0, 7])
@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit3", "test_convnext", "test_resnet", "test_efficientnet"]
)
def test_last_auto_and_every_stage_end(name, n_classes, make_harsh, check_cuts, pictures, tmp_path):
    network = make_harsh(name, num_classes=n_classes)
    backbone = hand_in(network)
    x = torch.randn(2, 3, 160, 160)
    (found,) = backbone.cut([("pre_logits", "avg")])(x)
    assert torch.allclose(found, embed(network, x), rtol=1e-5, atol=1e-6)
    assert backbone.family.last == "pre_logits"
    names = [info["module"] for info in network.feature_info]
    maps = dict(zip(names, network.forward_intermediates(x, intermediates_only=True), strict=True))
    assert max(check_cuts(backbone, maps, x).values()) < 1e-6

    done = run(pictures, tmp_path / "c.h5", backbone=backbone, layers="last")
    assert done.layers == ["pre_logits"]
    done = run(pictures, tmp_path / "c.h5", backbone=backbone, layers="auto")
    assert set(done.layers) == set(backbone.family.stages)
    cache = FeatureCache(tmp_path / "c.h5")
    assert cache.layers["pre_logits"].dim == network.num_features


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 112),
        ("swin_tiny_patch4_window7_224", 224),
        ("beit_base_patch16_224", 112),
        ("vit_base_patch16_siglip_224", 112),
        ("eva02_tiny_patch14_224", 112),
        ("cait_xxs24_224", 112),
    ],
)
def test_what_gave_no_stage_end_before(name, size, make_harsh, check_cuts):
    network = make_harsh(name, img_size=size)
    backbone = hand_in(network, size)
    x = torch.randn(1, 3, size, size)
    names = [info["module"] for info in network.feature_info]
    maps = dict(zip(names, network.forward_intermediates(x, intermediates_only=True), strict=True))
    assert max(check_cuts(backbone, maps, x).values()) < 1e-6
    (found,) = backbone.cut([("pre_logits", "avg")])(x)
    assert torch.allclose(found, embed(network, x), rtol=1e-5, atol=1e-6)


def test_a_network_built_with_arguments_of_ones_own(make_harsh, check_cuts):
    """Its second construction, for the axes, has to be of this network, not of timm's default."""
    network = make_harsh("test_vit", img_size=96, reg_tokens=3, depth=2, num_classes=4)
    backbone = hand_in(network, 96)
    x = torch.randn(2, 3, 96, 96)
    maps = dict(
        zip(("blocks.0", "blocks.1"), network.forward_intermediates(x, intermediates_only=True),
            strict=True)
    )  # fmt: skip
    assert max(check_cuts(backbone, maps, x).values()) < 1e-6
    tokens = network.forward_features(x)
    assert torch.allclose(backbone.cut([("norm", "token")])(x)[0], tokens[:, 0], atol=1e-6)


def test_a_network_of_timm_inside_of_ones_own(make_harsh):
    inner = make_harsh("test_resnet", num_classes=0)
    network = torch.nn.Sequential(inner, torch.nn.Linear(inner.num_features, 5)).eval()
    backbone = hand_in(network)
    x = torch.randn(2, 3, 160, 160)
    (found,) = backbone.cut([("0.layer2", "avg")])(x)
    expected = inner.forward_intermediates(x, intermediates_only=True)[2].mean((2, 3))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_users_network_is_not_changed(make_harsh):
    network = make_harsh("test_mambaout", num_classes=3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inplace = [module for module in network.modules() if getattr(module, "inplace", False)]
    x = torch.randn(1, 3, 160, 160)
    expected = network(x)
    hand_in(network).cut([("pre_logits", "avg")])(x)
    assert [m for m in network.modules() if getattr(m, "inplace", False)] == inplace
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(network(x), expected)

"""The network to tune: cached maps are as good as images, and nothing stale is evaluated."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from classify.finetuning.network import FineTuneNetwork
from featurize import load_backbone
from featurize.layers.partition import find_boundary_layer

from ...fake_gpu import move_to_gpu

# The rope of DINOv3 and EVA and the positions of XCiT follow from the map's shape alone.
NETWORKS = {
    "vit_small_patch16_dinov3": {"depth": 3, "img_size": 112},
    "xcit_nano_12_p8_224": {"depth": 3, "img_size": 112},
    "eva02_tiny_patch14_224": {"depth": 3, "img_size": 112},
    "test_vit2": {"img_size": 112},
}


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_from_cached_maps_as_from_images(name, make_timm_backbone):
    backbone = make_timm_backbone(name, 112, **NETWORKS[name])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=generator)
    nets = []
    for from_activations in (False, True):
        torch.manual_seed(0)
        nets.append(
            FineTuneNetwork(
                backbone, "blocks.2", 3, "linear", from_activations=from_activations
            ).train()
        )
    whole, upper = nets
    boundary = find_boundary_layer(backbone.network, "blocks.2")
    assert boundary.name == "blocks.1"
    with torch.no_grad():
        normalised = (pixels - whole.mean) / whole.std
        (maps,) = backbone.cut([(boundary.name, "none")])(normalised)
    maps = maps.reshape(3, *boundary.map_shape)
    for n in (3, 1):  # the constants know how many images there are
        expected, found = whole(pixels[:n]), upper(maps[:n])
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    gradients = []
    for net, inputs in ((whole, pixels), (upper, maps)):
        torch.nn.functional.cross_entropy(net(inputs), torch.arange(3)).backward()
        trained = net.trainable_parameters()
        gradients.append({n: p.grad.clone() for n, p in trained.items()})
        net.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("trunk.blocks.2.") for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-5), name


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny_vit_5m_224", {"depths": (1, 1, 1, 1)}),
        ("levit_128s", {}),
        ("efficientformer_l1", {}),
    ],
)
def test_weights_that_are_restored_are_those_that_are_evaluated(name, options, make_timm_backbone):
    """timm keeps attention biases of the last evaluation in a dict of Python's."""
    size = 64 if options else 224
    backbone = make_timm_backbone(name, size, **options)
    x = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    net = FineTuneNetwork(backbone, "all", 3, "linear").eval()
    biases = [n for n in net.trainable_parameters() if n.endswith("attention_biases")]
    assert biases
    best = {n: tensor.clone() for n, tensor in net.trainable_state().items()}
    with torch.inference_mode():
        expected = net.embed(x)
    with torch.no_grad():
        for n in biases:
            net.get_parameter(n).add_(3 * torch.randn_like(net.get_parameter(n)))
        later = net.train().eval().embed(x)
        net.load_trainable_state(best)
        restored = net.embed(x)
    assert not net.training
    assert float((later - expected).norm() / expected.norm()) > 1e-3
    assert torch.allclose(restored, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classifier", ["linear", "mlp"])
@pytest.mark.parametrize(
    "name",
    [
        *("seedling", "mobilenet_v3_small"),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("vit_b_32", "convnext_tiny", "swin_t", "densenet121", "efficientnet_b0")
        ),
    ],
)
def test_network_and_loss_stay_on_the_gpu(name, classifier):
    """Looked at without one: tensors without content refuse to meet one of another device."""
    backbone = load_backbone(name, frozen_weights=name == "seedling")
    net = FineTuneNetwork(backbone, "all", 3, classifier)
    side = backbone.preprocess.crop
    with FakeTensorMode(allow_non_fake_inputs=False):
        move_to_gpu(net)
        net.train()
        pixels = torch.empty(2, 3, side, side, dtype=torch.uint8, device="cuda")
        target = torch.empty(2, dtype=torch.long, device="cuda")
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(net(pixels), target)
            net.eval()
            embeddings = net.embed(pixels)
    assert {loss.device.type, embeddings.device.type} == {"cuda"}

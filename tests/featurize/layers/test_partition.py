"""What enters a layer, and what lies from there on: together they are the uncut network."""

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from featurize import Backbone
from featurize.errors import BackboneError, UnknownLayerError
from featurize.layer_spec import LayerSpec
from featurize.layers.partition import (
    extract_upper_part,
    find_boundary_layer,
    find_parameter_depths,
)

RECIPE = {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.25] * 3}


def make_timm(architecture: str, **options) -> nn.Module:
    timm = pytest.importorskip("timm")
    network = timm.create_model(architecture, num_classes=0, img_size=32, depth=2, **options)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


NETWORKS = {
    "squeezenet": lambda: models.squeezenet1_1(),
    "resnet": lambda: models.ResNet(BasicBlock, [1, 1, 2, 1]),
    "densenet": lambda: models.DenseNet(4, (2, 2, 2), 8, 2),
    "vit": lambda: models.VisionTransformer(32, 8, 3, 2, 16, 32),
    "swin": lambda: models.SwinTransformer([2, 2], 8, [1, 1, 1], [1, 1, 1], [2, 2]),
    "convnext": lambda: models.convnext.ConvNeXt(
        [
            models.convnext.CNBlockConfig(8, 16, 1),
            models.convnext.CNBlockConfig(16, None, 1),
        ]
    ),
    # What enters their blocks beside the map follows from its shape alone.
    "dinov3": lambda: make_timm("vit_small_patch16_dinov3", embed_dim=96, num_heads=2),
    "xcit": lambda: make_timm("xcit_nano_12_p8_224"),
}
# A layer, the one whose map enters it, and where the embedding is taken.
PARTS = [
    ("squeezenet", "features.9", "features.8", ("features.12", "avg")),
    ("squeezenet", "features.12", "features.11", ("features.12", "max")),
    ("resnet", "layer3", "layer2", ("layer4", "avg")),
    ("resnet", "layer3.1", "layer3.0", ("layer4", "avg")),
    ("resnet", "layer4.0.conv2", None, ("layer4", "avg")),
    ("densenet", "features.denseblock2", "features.transition1", ("relu", "avg")),
    ("densenet", "features.denseblock1.denselayer2", None, ("relu", "avg")),
    ("vit", "encoder.layers.encoder_layer_1", None, ("encoder.ln", "token")),
    ("swin", "features.4", "features.3", ("norm", "avg")),
    ("convnext", "features.3", "features.2", ("features.3", "avg")),
    ("dinov3", "blocks.1", "blocks.0", ("pre_logits", "avg")),
    ("xcit", "blocks.1", "blocks.0", ("pre_logits", "avg")),
    ("xcit", "cls_attn_blocks.0", None, ("pre_logits", "avg")),
]


def made(name: str) -> Backbone:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):  # or it would hardly do anything
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 2)
    return Backbone(network, name="net", preprocess=RECIPE)


@pytest.fixture
def x():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "layer", "before", "last"), PARTS)
def test_both_parts_together_are_the_network_to_the_bit(name, layer, before, last, x):
    backbone = made(name)
    if layer in ("layer4.0.conv2", "features.denseblock1.denselayer2"):
        with pytest.raises(BackboneError, match=r"2 tensors cross into the part from .* \("):
            find_boundary_layer(backbone.network, layer)
        return
    door = find_boundary_layer(backbone.network, layer)
    assert before is None or door.depth == backbone.network.layer(before).depth
    with torch.inference_mode():
        (whole,) = backbone.cut([last])(x)
        (entering,) = backbone.cut([(door.name, "none")])(x)
        upper = extract_upper_part(backbone.network, layer, LayerSpec(*last))
        found = upper(entering.reshape(len(x), *door.map_shape))
    assert torch.equal(found, whole)
    assert whole.std() > 0


def test_a_part_holds_what_lies_in_it_and_shares_its_weights():
    backbone = made("resnet")
    upper = extract_upper_part(backbone.network, "layer4", LayerSpec("layer4", "avg"))
    names = {name.split(".")[0] for name in upper.state_dict()}
    assert names == {"layer4"}
    ours = dict(backbone.network.module.named_parameters())
    assert all(parameter is ours[name] for name, parameter in upper.named_parameters())


def test_depth_follows_the_order_of_computation():
    backbone = made("resnet")
    found = find_parameter_depths(backbone.network)
    assert set(found) >= {name for name, _ in backbone.network.module.named_parameters()}
    order = ["conv1.weight", "layer1.0.conv1.weight", "layer2.0.bn2.bias", "layer4.0.conv2.weight"]
    assert [*map(found.get, order)] == sorted(map(found.get, order))
    assert found["conv1.weight"] < backbone.network.layer("layer1").depth
    assert found["layer2.0.bn2.bias"] <= backbone.network.layer("layer2").depth


def test_what_cannot_be_parted_is_refused():
    network = made("resnet").network
    with pytest.raises(BackboneError, match="nothing that could be cached lies before 'conv1'"):
        find_boundary_layer(network, "conv1")
    with pytest.raises(UnknownLayerError, match=r"no layer 'layer33' \(did you mean 'layer3'\?\)"):
        find_boundary_layer(network, "layer33")
    with pytest.raises(BackboneError, match="'layer4' lies above 'layer3'"):
        extract_upper_part(network, "layer4", LayerSpec("layer3", "avg"))

"""No tensor of a network is made on another device than the GPU; looked at without one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from featurize import load_backbone
from featurize.backbones.families import parse_layers
from featurize.backbones.gpu_network import to_gpu_network

from ....fake_gpu import move_to_gpu

QUICK = ["seedling", "mobilenet_v3_small", "vit_b_32"]
OTHERS = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3"),
    *("mnasnet0_5", "mobilenet_v2", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "maxvit_t"),
]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_a_network_and_its_pools_stay_on_the_gpu(name):
    backbone = load_backbone(name, frozen_weights=name == "seedling")
    layers = [
        layer
        for pool in ("avg", "max", "avgmax", "none")
        for layer in parse_layers("auto", pool, name)
    ]
    module = backbone.cut(layers)
    crop = backbone.preprocess.crop
    network = to_gpu_network(module, backbone.preprocess, "cpu")
    # Tensors without content: an operation on tensors of two devices fails all the same.
    with FakeTensorMode():
        move_to_gpu(network)
        pixels = torch.empty(2, crop, crop, 3, dtype=torch.uint8, device="cuda")
        with torch.no_grad():
            outputs = network(pixels)
    assert len(outputs) == len(layers)
    assert {output.device.type for output in outputs} == {"cuda"}

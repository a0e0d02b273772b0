"""The stages and blocks of a network, and what `last-N` means of each kind."""

import pytest

from classify.errors import CallError
from classify.finetuning.network import FineTuneNetwork
from classify.finetuning.tuned_part.stages import list_blocks, resolve_tune
from featurize import load_backbone

RECIPE = {"resize": 64, "crop": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
VIT = "encoder.layers.encoder_layer_"


def load(name: str):
    size = 224 if name == "vit_b_32" else 64
    recipe = RECIPE | {"resize": size, "crop": size}
    return load_backbone(name, preprocess=recipe, frozen_weights=False)


@pytest.mark.long
def test_a_row_of_equal_blocks_is_found_and_stages_are_not_taken_for_one(make_timm_backbone):
    row = tuple(f"blocks.{k}" for k in range(6))
    assert list_blocks(make_timm_backbone("test_vit", img_size=64)) == row
    assert list_blocks(load("vit_b_32")) == tuple(f"{VIT}{k}" for k in range(12))
    for name in ("test_convnext", "test_efficientnet", "test_resnet"):
        assert list_blocks(make_timm_backbone(name)) == ()
    for name in ("seedling", "squeezenet1_1", "swin_t"):
        assert list_blocks(load(name)) == ()


@pytest.mark.parametrize(
    ("name", "tune", "begins"),
    [
        ("resnet18", "last-1", "layer4"),
        ("resnet18", "last-2", "layer3"),
        ("resnet18", "last-4", "layer1"),
        # A stage of several layers is tuned from its first one on.
        ("mobilenet_v2", "last-1", "features.18"),
        ("mobilenet_v2", "last-2", "features.14"),
        ("mobilenet_v2", "last-3", "features.7"),
        # What is deepest here is a normalisation, which is no stage of its own.
        ("swin_t", "last-1", "features.6"),
        ("vit_b_32", "last-4", f"{VIT}8"),
    ],
)
def test_last_n_begins_where_the_nth_last_stage_or_block_does(name, tune, begins):
    assert resolve_tune(load(name), tune) == begins


@pytest.mark.long
def test_of_timms_networks_too(make_timm_backbone):
    for name, tune, begins in (
        ("test_vit", "last", "blocks.5"),
        ("test_vit", "last-1", "blocks.5"),
        ("test_vit", "last-4", "blocks.2"),
        ("test_vit", "last-6", "blocks.0"),
        ("test_convnext", "last", "stages.3"),
        ("test_convnext", "last-2", "stages.2"),
        ("test_efficientnet", "last", "blocks.4"),
        ("test_efficientnet", "last-2", "blocks.3"),
    ):
        options = {"img_size": 64} if "vit" in name else {}
        backbone = make_timm_backbone(name, **options)
        assert resolve_tune(backbone, tune) == begins, (name, tune)
        tuned = FineTuneNetwork(backbone, begins, 2, "linear").trainable_parameters()
        first = next(iter(tuned)).removeprefix("trunk.")
        assert first.startswith(begins), (name, tune)


@pytest.mark.long
def test_more_than_there_are_is_refused():
    with pytest.raises(CallError, match=r"has 12 blocks, so --tune is last-1 to last-12, or all"):
        resolve_tune(load("vit_b_32"), "last-13")
    with pytest.raises(CallError, match=r"resnet18 has 4 stages.* last-1 to last-4.* not last-5"):
        resolve_tune(load("resnet18"), "last-5")
    with pytest.raises(CallError, match="not last-0"):
        resolve_tune(load("resnet18"), "last-0")

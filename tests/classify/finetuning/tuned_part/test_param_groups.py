"""Learning rates by block, held against timm's own order, and what weight decay leaves out."""

import pytest

from classify.finetuning.network import FineTuneNetwork
from featurize import load_backbone

RATE, LAYER_DECAY, BLOCK_DECAY, WEIGHT_DECAY = 1.0, 0.7, 0.75, 0.02
TRANSFORMERS = {
    "test_vit": {"img_size": 64},
    "test_vit2": {"img_size": 64},
    "eva02_tiny_patch14_224": {"depth": 3, "img_size": 112},
    "vit_small_patch16_dinov3": {"depth": 3, "img_size": 112},
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 96, "num_heads": 2, "img_size": 64},
    "vit_base_patch16_siglip_224": {"depth": 3, "embed_dim": 96, "num_heads": 2, "img_size": 64},
    "xcit_nano_12_p8_224": {"depth": 3, "img_size": 112},
}
CONVNETS = ("test_convnext", "test_efficientnet", "test_resnet", "test_nfnet")


def group(backbone) -> tuple[dict, dict, dict]:
    """Each parameter of the backbone, its learning rate, its weight decay."""
    net = FineTuneNetwork(backbone, "all", 3, "linear")
    parameters = net.trainable_parameters()
    groups = list(net.param_groups(RATE, LAYER_DECAY, BLOCK_DECAY, WEIGHT_DECAY))
    by_id = {id(member): each for each in groups for member in each["params"]}
    assert sum(len(each["params"]) for each in groups) == len(by_id) == len(parameters)
    names = [name.removeprefix("trunk.") for name in parameters]
    rates = {n: by_id[id(p)]["lr"] for n, p in zip(names, parameters.values(), strict=True)}
    decays = {
        n: by_id[id(p)]["weight_decay"] for n, p in zip(names, parameters.values(), strict=True)
    }
    return dict(zip(names, parameters.values(), strict=True)), rates, decays


@pytest.mark.parametrize("name", [*TRANSFORMERS, *CONVNETS])
def test_rates_grow_in_the_order_of_timms_groups(name, make_timm_backbone):
    from timm.models import group_parameters

    options = TRANSFORMERS.get(name, {})
    backbone = make_timm_backbone(name, options.get("img_size", 64), **options)
    _, rates, _ = group(backbone)
    module = backbone.network.module
    order = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    late = {"cls_token"} if name.startswith("xcit") else set()  # it enters above the blocks
    found = sorted((order[n], rates[n]) for n in rates if n in order and n not in late)
    assert len(found) > 20
    assert [rate for _, rate in found] == sorted(rate for _, rate in found)


def test_a_vit_has_the_rates_of_the_recipe(make_timm_backbone):
    """Those of BEiT and MAE, by timm's implementation of them."""
    from timm.optim import param_groups_layer_decay

    backbone = make_timm_backbone("test_vit", img_size=64, num_classes=3)
    module = backbone.network.module
    _, rates, decays = group(backbone)
    name_by_id = {id(parameter): name for name, parameter in module.named_parameters()}
    module.requires_grad_(True)  # the head too, of which ours takes the place
    groups = param_groups_layer_decay(
        module, WEIGHT_DECAY, module.no_weight_decay(), layer_decay=BLOCK_DECAY
    )
    expected = {
        name_by_id[id(parameter)]: (each["lr_scale"], each["weight_decay"])
        for each in groups
        for parameter in each["params"]
    }
    assert len(expected) > 70
    for name, (scale, decay) in expected.items():
        ours = name.replace("head.", "classifier.out.")
        # timm counts the last normalisation to the last block, the papers' code to the head.
        assert rates[ours] == pytest.approx(1 if name.startswith("norm.") else scale), name
        assert decays[ours] == decay, name


@pytest.mark.long
def test_torchvisions_vit_has_a_rate_for_each_block():
    backbone = load_backbone("vit_b_32", frozen_weights=False)
    _, rates, decays = group(backbone)
    weight = "encoder.layers.encoder_layer_{}.mlp.0.weight"
    for k in range(12):
        assert rates[weight.format(k)] == pytest.approx(0.75 ** (12 - k))
    assert rates["encoder.ln.weight"] == 1
    for name in ("conv_proj.weight", "class_token", "encoder.pos_embedding"):
        assert rates[name] == pytest.approx(0.75**13)
    assert decays["class_token"] == decays["encoder.pos_embedding"] == 0
    assert decays["conv_proj.weight"] == WEIGHT_DECAY


def test_convnets_have_a_rate_for_each_stage_as_before():
    parameters, rates, decays = group(load_backbone("resnet18", frozen_weights=False))
    for k in (1, 2, 3, 4):
        assert rates[f"layer{k}.0.conv1.weight"] == pytest.approx(0.7 ** (4 - k))
    assert rates["conv1.weight"] == rates["layer1.0.conv1.weight"]
    matrices = {n for n, parameter in parameters.items() if parameter.ndim > 1}
    assert {n for n, decay in decays.items() if decay == WEIGHT_DECAY} == matrices


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_a_network_names_does_not_decay(name, make_timm_backbone):
    options = TRANSFORMERS[name]
    backbone = make_timm_backbone(name, options["img_size"], **options)
    parameters, _, decays = group(backbone)
    named = set(backbone.network.module.no_weight_decay()) & set(parameters)
    assert named
    tokens = {n for n in parameters if n.endswith(("token", "pos_embed", "position_bias_table"))}
    vectors = {n for n, parameter in parameters.items() if parameter.ndim < 2}
    assert {n for n, decay in decays.items() if decay == 0} == named | tokens | vectors

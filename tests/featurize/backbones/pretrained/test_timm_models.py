"""Cuts of timm's networks are what timm's own `forward_intermediates` and `forward_head` give.

Weights come from a file. They are harsh: norms, biases, layer scales and running statistics are
perturbed, so that a wrong axis, a prefix token among the patches or a skipped branch shows.
"""

import runpy
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featurize import Backbone, FeatureCache, load_backbone, run
from featurize.errors import BackboneError

ROOT = Path(__file__).parents[4]
SIZES: dict[str, int] = runpy.run_path(str(ROOT / "benchmarks" / "timm_families.py"))["SIZES"]
SIZES |= {"efficientformer_l1": 224, "efficientformerv2_s0": 224, "tresnet_m": 64}
TINY = (
    *("test_byobnet", "test_coatnet", "test_convnext", "test_convnext2", "test_convnext3"),
    *("test_efficientnet", "test_efficientnet_evos", "test_efficientnet_gn"),
    *("test_efficientnet_ln", "test_mambaout", "test_maxvit", "test_nfnet", "test_resnet"),
    *("test_vit", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos"),
)
# Stage ends that `feature_info` names and that are no operation of their own, or mean one branch
# of several there. The rest of the network is compared all the same.
NO_LAYERS = {
    "hrnet_w18_small": 5,
    "mvitv2_tiny": 4,
    "twins_svt_small": 4,
    "crossvit_tiny_240": 3,
    "coat_tiny": 2,
    "mobilenetv5_300m": 1,
    "tresnet_m": 1,
    "efficientformer_l1": 1,  # takes images of one size, so its tokens are not told apart
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def make_oracle(timm, make_harsh, architecture: str, size: int | None = None, **options):
    """A harsh network for images of a size, where its architecture can be built for one."""
    published = timm.get_pretrained_cfg(architecture)
    if size is not None and published.fixed_input_size:
        options["img_size"] = size
    return make_harsh(architecture, **options)


def find_maps(oracle, x):
    """What timm gives at the ends of stages, by the name of the module."""
    names = [info["module"] for info in oracle.feature_info]
    maps = oracle.forward_intermediates(x, intermediates_only=True)
    return dict(zip(names, maps, strict=True))


def check_architecture(timm, make_harsh, write_folder, check_cuts, tmp_path, name, size) -> None:
    oracle = make_oracle(timm, make_harsh, name, size, num_classes=5)
    size = size or oracle.pretrained_cfg["input_size"][1]
    folder = write_folder(tmp_path / "folder", oracle, size=size)
    backbone = load_backbone(str(folder))
    shutil.rmtree(folder)  # all of them together take gigabytes
    assert backbone.name == f"timm:{name}"
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    # The oracle's forward comes last: some networks keep what they computed with earlier weights.
    (found,) = backbone.cut([("pre_logits", "avg")])(x)
    maps = find_maps(oracle, x)
    expected = oracle.forward_head(oracle.forward_features(x), pre_logits=True).flatten(1)
    assert found.shape == expected.shape
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-6
    assert not torch.equal(found[0], found[1])

    usable = {stage: m for stage, m in maps.items() if stage in backbone.layers}
    distances = check_cuts(backbone, usable, x)
    wrong = {stage for stage in maps if not distances.get(stage, 1.0) < 1e-6}
    assert len(wrong) <= NO_LAYERS.get(name, 0), {s: distances.get(s) for s in wrong}
    assert backbone.family is not None
    assert backbone.family.last == "pre_logits"
    assert set(backbone.family.stages) <= set(backbone.layers)


@pytest.mark.parametrize("name", TINY)
def test_cuts_are_timms(name, timm, make_harsh, write_folder, check_cuts, tmp_path):
    check_architecture(timm, make_harsh, write_folder, check_cuts, tmp_path, name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_cuts_of_each_family_are_timms(name, timm, make_harsh, write_folder, check_cuts, tmp_path):
    check_architecture(timm, make_harsh, write_folder, check_cuts, tmp_path, name, SIZES[name])


def test_no_small_network_of_timm_is_left_out(timm):
    assert set(timm.list_models("test_*")) <= set(TINY)


@pytest.mark.parametrize("name", ["test_vit3", "test_efficientnet"])
def test_an_image_alone_is_as_in_a_batch(name, make_harsh, write_folder, tmp_path):
    oracle = make_harsh(name)
    backbone = load_backbone(str(write_folder(tmp_path / "folder", oracle)))
    x = torch.randn(3, 3, 160, 160)
    together = backbone.cut([("pre_logits", "avg")])(x)[0]
    alone = torch.cat([backbone.cut([("pre_logits", "avg")])(row[None])[0] for row in x])
    assert float(((alone - together).norm(dim=1) / together.norm(dim=1)).max()) < 2e-5


@pytest.mark.parametrize("name", ["regnety_002", "densenet121"])
def test_filters_of_tensors_alone(name, timm, make_harsh, write_folder, check_cuts, tmp_path):
    """Some of timm's filters of weights take no network beside the tensors."""
    check_architecture(timm, make_harsh, write_folder, check_cuts, tmp_path, name, 64)


def test_patches_that_overlap_fit_any_size(make_harsh, write_folder, tmp_path):
    """PVT's are seven pixels wide and lie four apart."""
    oracle = make_harsh("pvt_v2_b0", num_classes=0)
    backbone = load_backbone(str(write_folder(tmp_path / "folder", oracle, size=64)))
    x = torch.randn(1, 3, 64, 64)
    (found,) = backbone.cut([("pre_logits", "avg")])(x)
    assert torch.allclose(found, oracle(x), rtol=1e-5, atol=1e-6)


def test_auto_is_the_quarters_of_a_transformer(make_harsh, write_folder, tmp_path):
    oracle = make_harsh("vit_tiny_patch16_224", num_classes=0, img_size=32)
    backbone = load_backbone(str(write_folder(tmp_path / "folder", oracle, size=32)))
    quarters = ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
    assert backbone.family.stages == (*quarters, "pre_logits")


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{"global_pool": ""}, {"dynamic_img_size": True}])
def test_last_is_a_vector(arguments, make_harsh, write_folder, pictures, tmp_path):
    """Where a network's own head does not pool, as Virchow's, it is the normalised class token."""
    oracle = make_harsh("test_vit", num_classes=0, **arguments)
    folder = write_folder(tmp_path / "folder", oracle, arguments=arguments)
    run(pictures, tmp_path / "c.h5", backbone=str(folder), layers="last")
    cache = FeatureCache(tmp_path / "c.h5")
    plain = make_harsh("test_vit", num_classes=0)
    twin = Backbone(plain, name="twin", preprocess=load_backbone(str(folder)).preprocess.to_dict())
    run(pictures, tmp_path / "twin.h5", backbone=twin, layers="pre_logits")
    expected = FeatureCache(tmp_path / "twin.h5").features("pre_logits")
    found = cache.features(next(iter(cache.layers)))
    assert found.shape == expected.shape
    assert abs(found - expected).max() < 1e-5


# --- a cut runs nothing above it ------------------------------------------------------------


@pytest.mark.long
def test_a_cut_holds_and_runs_nothing_above_it(make_harsh, write_folder, tmp_path):
    """Three of twelve blocks: less than 0.3 of the arithmetic, no tensor of the next block."""
    oracle = make_harsh("vit_tiny_patch16_224", num_classes=0, img_size=112)
    folder = write_folder(tmp_path / "folder", oracle, size=112)
    backbone = load_backbone(str(folder))
    x = torch.randn(2, 3, 112, 112)
    cut = backbone.cut([("blocks.2", "avg")])
    counts = []
    for network in (cut, backbone.cut([("pre_logits", "avg")])):
        with FlopCounterMode(display=False) as counter:
            network(x)
        counts.append(counter.get_total_flops())
    assert 0.2 < counts[0] / counts[1] < 0.3
    held = set(cut.state_dict())
    assert any(key.startswith("blocks.2.") for key in held)
    above = {f"blocks.{k}." for k in range(3, 12)}
    assert not [key for key in held if any(key.startswith(prefix) for prefix in above)]

    state = oracle.state_dict()
    poisoned = {
        key: torch.full_like(tensor, torch.nan) if key.startswith("blocks.3.") else tensor
        for key, tensor in state.items()
    }
    other = load_backbone(str(write_folder(tmp_path / "p", oracle, tensors=poisoned, size=112)))
    assert torch.equal(other.cut([("blocks.2", "avg")])(x)[0], cut(x)[0])
    assert not other.cut([("blocks.3", "avg")])(x)[0].isfinite().any()  # the poison works


# --- never a silently random layer ----------------------------------------------------------


def test_a_tensor_that_is_missing_below_the_cut_is_named(make_harsh, write_folder, tmp_path):
    oracle = make_harsh("test_vit", num_classes=5)
    tensors = dict(oracle.state_dict())
    del tensors["blocks.2.mlp.fc1.weight"]
    folder = write_folder(tmp_path / "folder", oracle, tensors=tensors)
    backbone = load_backbone(str(folder))
    for layer in ("blocks.2", "blocks.5", "pre_logits"):
        with pytest.raises(BackboneError, match=r"blocks\.2\.mlp\.fc1\.weight"):
            backbone.cut([(layer, "avg")])
    x = torch.randn(1, 3, 160, 160)
    expected = oracle.forward_intermediates(x, intermediates_only=True)[1].mean((2, 3))
    assert torch.allclose(backbone.cut([("blocks.1", "avg")])(x)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "key",
    ["blocks.2.mlp.fc1.weight", "blocks.0.norm1.weight", "cls_token", "patch_embed.proj.bias"],
)
def test_a_tensor_of_another_shape_is_named(key, make_harsh, write_folder, tmp_path):
    oracle = make_harsh("test_vit", num_classes=5)
    tensors = dict(oracle.state_dict())
    tensors[key] = torch.cat([tensors[key], tensors[key]], -1)
    folder = write_folder(tmp_path / "folder", oracle, tensors=tensors)
    with pytest.raises(BackboneError, match=key.replace(".", r"\.")):
        load_backbone(str(folder)).cut([("pre_logits", "avg")])


@pytest.mark.parametrize("key", ["pos_embed", "cls_token", "norm.weight"])
def test_a_tensor_outside_of_blocks_is_missed_too(key, make_harsh, write_folder, tmp_path):
    oracle = make_harsh("test_vit", num_classes=5)
    tensors = {name: tensor for name, tensor in oracle.state_dict().items() if name != key}
    folder = write_folder(tmp_path / "folder", oracle, tensors=tensors)
    with pytest.raises(BackboneError, match=key.replace(".", r"\.")):
        load_backbone(str(folder)).cut([("pre_logits", "avg")])


def test_running_statistics_are_missed_too(make_harsh, write_folder, tmp_path):
    oracle = make_harsh("test_resnet", num_classes=5)
    tensors = {k: t for k, t in oracle.state_dict().items() if k != "layer1.0.bn1.running_var"}
    folder = write_folder(tmp_path / "folder", oracle, tensors=tensors)
    with pytest.raises(BackboneError, match=r"layer1\.0\.bn1\.running_var"):
        load_backbone(str(folder)).cut([("layer1", "avg")])


def test_the_command_says_which_tensor_is_missing(
    make_harsh, write_folder, pictures, tmp_path, cli
):
    oracle = make_harsh("test_resnet", num_classes=5)
    tensors = {k: t for k, t in oracle.state_dict().items() if k != "layer2.0.conv1.weight"}
    folder = write_folder(tmp_path / "folder", oracle, tensors=tensors)
    done = cli("run", pictures, "-o", tmp_path / "c.h5", "--backbone", folder)
    assert done.exit_code == 2
    assert "layer2.0.conv1.weight" in done.stderr
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_nfnet"])
@pytest.mark.parametrize(
    "how", ["no classifier", "other number in the file", "other in the config"]
)
def test_the_classifier_is_not_needed(name, how, make_harsh, write_folder, tmp_path):
    """Non-strict loading, as timm's own here, would leave layers random without a word."""
    oracle = make_harsh(name, num_classes=5)
    tensors = dict(oracle.state_dict())
    classifier = oracle.pretrained_cfg["classifier"]
    more = {"num_classes": 1000} if how == "other in the config" else {}
    for key in (f"{classifier}.weight", f"{classifier}.bias"):
        if how == "no classifier":
            del tensors[key]
        elif how == "other number in the file":
            tensors[key] = tensors[key].repeat(2, *[1] * (tensors[key].ndim - 1))
    folder = write_folder(tmp_path / "folder", oracle, tensors=tensors, **more)
    x = torch.randn(2, 3, 160, 160)
    (found,) = load_backbone(str(folder)).cut([("pre_logits", "avg")])(x)
    expected = oracle.forward_head(oracle.forward_features(x), pre_logits=True)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_weights_of_another_network_are_refused(make_harsh, write_folder, tmp_path):
    oracle, other = make_harsh("test_vit"), make_harsh("test_resnet")
    folder = write_folder(tmp_path / "folder", oracle, tensors=dict(other.state_dict()))
    with pytest.raises(BackboneError, match="test_vit"):
        load_backbone(str(folder)).cut([("pre_logits", "avg")])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_those_in_full(dtype, make_harsh, write_folder, tmp_path):
    oracle = make_harsh("test_vit")
    halves = {name: tensor.to(dtype) for name, tensor in oracle.state_dict().items()}
    wide = {name: tensor.float() for name, tensor in halves.items()}
    first, second = (
        load_backbone(str(write_folder(tmp_path / str(k), oracle, tensors=tensors)))
        for k, tensors in enumerate((halves, wide))
    )
    assert first.weights_sha256 == second.weights_sha256
    x = torch.randn(1, 3, 160, 160)
    layers = [("pre_logits", "avg")]
    assert torch.equal(first.cut(layers)(x)[0], second.cut(layers)(x)[0])


def test_the_network_cannot_be_trained_by_accident(make_harsh, write_folder, tmp_path):
    backbone = load_backbone(str(write_folder(tmp_path / "folder", make_harsh("test_vit"))))
    module: nn.Module = backbone.cut([("pre_logits", "avg")])
    assert not any(parameter.requires_grad for parameter in module.parameters())
    leaves = [submodule for submodule in module.modules() if not list(submodule.children())]
    assert leaves
    assert not any(leaf.training for leaf in leaves)

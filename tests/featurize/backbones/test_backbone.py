"""What a backbone gives is what torchvision's own modules give.

The references here are made by torchvision alone, one image at a time: its transforms, its
modules with hooks on them, and pooling written out once more.
"""

import copy
import json
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from featurize import Backbone, FeatureCache, load_backbone, run
from featurize.backbones.families import EMBEDDING_DIMS, FAMILIES, find_family, parse_layers
from featurize.errors import BackboneError, CallError

RECIPE = {"resize": 18, "crop": 16, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference between two rows, as a share of the row's norm."""
    assert found.shape == expected.shape
    off = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    return float((off / np.linalg.norm(expected, axis=1)).max())


def pooled(x: torch.Tensor, pool: str, *, channels_last: bool = False, tokens: bool = False):
    """One vector an image, the plain way."""
    if pool == "none" or x.ndim == 2:
        return x.reshape(len(x), -1)
    if tokens:
        x = x[:, :1] if pool == "token" else x[:, 1:]
    elif channels_last:
        x = x.reshape(len(x), -1, x.shape[-1])
    else:
        x = x.reshape(len(x), x.shape[1], -1).transpose(1, 2)
    average, greatest = x.sum(1) / x.shape[1], x.max(1).values
    return {
        "avg": average,
        "token": average,
        "max": greatest,
        "avgmax": torch.cat([average, greatest], 1),
    }[pool]


# --- SqueezeNet with its real weights, on photographs --------------------------------------

LAYERS = [f"features.{n}" for n in range(13)]
POOLS = ("avg", "max", "avgmax", "none")


@pytest.fixture(scope="module")
def reference(photos, squeezenet_weights):
    """By layer, torchvision's maps of every photograph, in the order of their paths."""
    net = models.squeezenet1_1().eval()
    net.load_state_dict({k: v.float() for k, v in load_file(squeezenet_weights).items()})
    transforms = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    maps: dict[str, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    with torch.inference_mode():
        for path in sorted(photos.rglob("*.jpg")):
            with Image.open(path) as image:
                x = transforms(image.convert("RGB")).unsqueeze(0)
            for n, layer in enumerate(LAYERS):
                maps[layer].append(net.features[: n + 1](x.clone()).clone())
    return {layer: torch.cat(found) for layer, found in maps.items()}


@pytest.fixture(scope="module")
def squeezenet(squeezenet_weights):
    return load_backbone("squeezenet1_1", str(squeezenet_weights))


@pytest.fixture(scope="module")
def cache(photos, squeezenet, tmp_path_factory):
    """Every layer under every pool, from one pass."""
    output = tmp_path_factory.mktemp("squeezenet") / "c.h5"
    layers = ",".join(f"{layer}:{pool}" for layer in LAYERS for pool in POOLS)
    done = run(photos, output, backbone=squeezenet, layers=layers)
    assert done.computed == 12
    return FeatureCache(output)


@pytest.mark.parametrize("pool", POOLS)
def test_squeezenet_agrees_with_torchvision(cache, reference, pool):
    assert cache.paths == sorted(cache.paths)
    for layer in LAYERS:
        name = layer if pool == "avg" else f"{layer}@{pool}"
        expected = pooled(reference[layer], pool).numpy()
        assert worst(cache.features(name), expected) < 1e-4, name
        assert cache.layers[name].map_shape == tuple(reference[layer].shape[1:])


def test_an_image_alone_is_as_in_any_batch(photos, cache, squeezenet, tmp_path):
    layers = ",".join(LAYERS)
    for count in (1, 5):
        folder = tmp_path / str(count)
        folder.mkdir()
        for k, path in enumerate(cache.paths[3 : 3 + count]):
            (folder / f"{k}.jpg").hardlink_to(photos / path)
        run(folder, tmp_path / f"{count}.h5", backbone=squeezenet, layers=layers)
        found = FeatureCache(tmp_path / f"{count}.h5")
        for layer in LAYERS:
            expected = cache.features(layer)[3 : 3 + count]
            assert worst(found.features(layer), expected) < 1e-5, layer


@pytest.mark.parametrize("layer", ["features.0", "features.3", "features.7", "features.12"])
def test_a_layer_alone_is_as_among_others(photos, cache, squeezenet, tmp_path, layer):
    run(photos, tmp_path / "c.h5", backbone=squeezenet, layers=layer)
    alone = FeatureCache(tmp_path / "c.h5")
    assert worst(alone.features(layer), cache.features(layer)) < 1e-5
    assert alone.layers[layer].fingerprint == cache.layers[layer].fingerprint


def test_last_and_auto_of_squeezenet(photos, squeezenet_weights, tmp_path):
    weights = str(squeezenet_weights)
    options = {"backbone": "squeezenet1_1", "weights": weights}
    assert run(photos, tmp_path / "a.h5", **options).layers == ["features.12"]
    done = run(photos, tmp_path / "b.h5", **options, layers="auto", dry_run=True)
    assert done.layers == [f"features.{n}" for n in (2, 4, 7, 9, 10, 11, 12)]


# --- one network of each family, seeded random weights -------------------------------------


def grown(name: str) -> nn.Module:
    """A network of torchvision's with seeded weights, none of them without effect."""
    more = {}
    if name in ("googlenet", "inception_v3"):
        more = {"transform_input": True, "aux_logits": False, "init_weights": False}
    torch.manual_seed(0)
    net = models.get_model(name, weights=None, **more)
    net.requires_grad_(False)
    for key, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif key.endswith(("running_var", "layer_scale")):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("class_token", "bias_table")):
            tensor.normal_(0, 0.5)
        elif tensor.ndim == 1:
            tensor += 0.2 * torch.randn(tensor.shape)
    return net.eval()


def hooked(net: nn.Module, stages: list[str], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What torchvision's own modules give at each stage, copied as it comes out."""
    found: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda _module, _inputs, output: found.update({name: output.clone()})

    modules = dict(net.named_modules())
    # DenseNet's last ReLU is no module of its own.
    handles = [modules[s].register_forward_hook(keep(s)) for s in stages if s in modules]
    if "relu" in stages:
        handles.append(
            net.features.register_forward_hook(
                lambda _module, _inputs, output: found.update(relu=output.clone().relu())
            )
        )
    with torch.inference_mode():
        net(x)
    for handle in handles:
        handle.remove()
    assert set(found) == set(stages)
    return found


@pytest.fixture
def scenes(tmp_path):
    """Two images, one wide and one high."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name, size in (("a.png", (160, 130)), ("b.png", (120, 170))):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


def check_family(name: str, scenes: Path, tmp_path: Path, side: int | None) -> None:
    """Compare every stage, through a weights file, with hooks on torchvision's modules."""
    net = grown(name)
    official = models.get_model_weights(name).IMAGENET1K_V1.transforms()
    options = {}
    if side is not None:  # smaller images, for speed
        official.resize_size, official.crop_size = [side + 9], [side]
        recipe = {"resize": side + 9, "crop": side, "interpolation": official.interpolation.value}
        recipe |= {"mean": official.mean, "std": official.std}
        options["preprocess"] = str(tmp_path / "recipe.json")
        Path(options["preprocess"]).write_text(json.dumps(recipe))
    file = tmp_path / ("w.pth" if len(name) % 2 else "w.safetensors")
    save = torch.save if file.suffix == ".pth" else save_file
    save({key: tensor.contiguous() for key, tensor in net.state_dict().items()}, file)

    backbone = load_backbone(name, str(file), **options)
    stages = list(find_family(name).stages)
    vit, swin = name.startswith("vit"), name.startswith("swin")
    asked = [(stage, "max") for stage in stages] + parse_layers("auto", None, name)
    asked += [(stages[-1], "avg")] if vit else []
    layers = ",".join(f"{stage}:{pool}" for stage, pool in asked)
    backbone.cut(asked)  # puts the weights in
    module = backbone.network.module
    held = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    run(scenes, tmp_path / "c.h5", backbone=backbone, layers=layers)
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, held[key]), key  # bit for bit, batch norm's counters too
    cache = FeatureCache(tmp_path / "c.h5")
    for row, path in enumerate(cache.paths):
        with Image.open(scenes / path) as image:
            expected = hooked(net, stages, official(image).unsqueeze(0))
        for stage, pool in asked:
            dataset = stage if pool == "avg" else f"{stage}@{pool}"
            wanted = pooled(expected[stage], pool, channels_last=swin, tokens=vit).numpy()
            assert worst(cache.features(dataset, [row]), wanted) < 1e-4, (path, dataset)
    last, pool = parse_layers("last", None, name)[0]
    assert cache.layers[last if pool == "avg" else f"{last}@{pool}"].dim == EMBEDDING_DIMS[name]

    cut = backbone.cut(asked)
    x = torch.randn(2, 3, backbone.preprocess["crop"], backbone.preprocess["crop"])
    with torch.inference_mode():
        together, alone = cut(x), cut(x[1:])
        first = backbone.cut(asked[:1])(x)
    for many, one in zip(together, alone, strict=True):
        assert worst(one.numpy(), many[1:].numpy()) < 1e-5
    assert worst(first[0].numpy(), together[0].numpy()) < 1e-5
    # The weights are as they came, batch norm's statistics among them.
    before = net.state_dict()
    for key, tensor in cut.state_dict().items():
        if key in before and not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, before[key]), key


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 96),
        ("densenet121", 96),
        ("mobilenet_v3_small", 128),
        ("efficientnet_b0", 96),
        ("convnext_tiny", 96),
        ("swin_t", None),
        ("vit_b_32", None),
    ],
)
def test_every_stage_agrees_with_torchvision(name, side, scenes, tmp_path):
    check_family(name, scenes, tmp_path, side)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "vgg11_bn", "squeezenet1_0", "mobilenet_v2", "mnasnet0_5", "googlenet"),
        *("inception_v3", "shufflenet_v2_x0_5", "regnet_y_400mf", "resnext50_32x4d"),
        *("swin_v2_t", "vit_b_16", "efficientnet_v2_s"),
    ],
)
def test_every_stage_of_the_others_agrees_with_torchvision(name, scenes, tmp_path):
    check_family(name, scenes, tmp_path, None)


@pytest.mark.slow
def test_maxvit_agrees_with_torchvision(scenes, tmp_path):
    # Its forward makes index tensors of its own, which no weights file has.
    check_family("maxvit_t", scenes, tmp_path, None)


@pytest.mark.long
def test_vgg_agrees_with_torchvision(scenes, tmp_path):
    """VGG, whose file would have half a gigabyte, as a network of one's own."""
    net = grown("vgg11")
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    recipe = {"resize": 100, "crop": 96, "mean": [0.5] * 3, "std": [0.5] * 3}
    backbone = Backbone(net, name="vgg11", preprocess=recipe)
    run(scenes, tmp_path / "c.h5", backbone=backbone, layers="auto,features.0:max,features.3:max")
    cache = FeatureCache(tmp_path / "c.h5")
    stages = [*find_family("vgg11").stages, "features.0", "features.3"]
    transforms = models.VGG11_Weights.IMAGENET1K_V1.transforms(
        resize_size=100, crop_size=96, mean=recipe["mean"], std=recipe["std"]
    )
    for row, path in enumerate(cache.paths):
        with Image.open(scenes / path) as image:
            expected = hooked(net, stages, transforms(image).unsqueeze(0))
        for dataset, info in cache.layers.items():
            wanted = pooled(expected[info.layer], info.pool).numpy()
            assert worst(cache.features(dataset, [row]), wanted) < 1e-4, (path, dataset)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


# --- a network of one's own ----------------------------------------------------------------


class Own(nn.Module):
    """Batch norm, dropout, in-place operations and a shortcut."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        y = self.second(self.drop(x))
        y += x
        y.clamp_(min=-1.0)
        return self.head(nn.functional.relu(y, inplace=True).mean((2, 3)))


@pytest.fixture
def own():
    torch.manual_seed(0)
    net = Own()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return net


def test_own_network_is_not_touched(own, scenes, tmp_path):
    own.train()
    own.second.eval()
    own.second.weight.requires_grad_(False)
    before = copy.deepcopy(own.state_dict())
    flags = {name: (m.training, getattr(m, "inplace", None)) for name, m in own.named_modules()}
    grads = {name: p.requires_grad for name, p in own.named_parameters()}
    backbone = Backbone(own, name="own", preprocess=RECIPE)
    run(scenes, tmp_path / "c.h5", backbone=backbone, layers="norm,second,head")
    assert all(torch.equal(own.state_dict()[key], tensor) for key, tensor in before.items())
    assert flags == {
        name: (m.training, getattr(m, "inplace", None)) for name, m in own.named_modules()
    }
    assert grads == {name: p.requires_grad for name, p in own.named_parameters()}
    assert all(p.grad is None for p in own.parameters())
    # and it runs in evaluation mode all the same, twice alike
    run(scenes, tmp_path / "d.h5", backbone=backbone, layers="norm,second,head")
    x = torch.stack([as_input(scenes / name) for name in ("a.png", "b.png")])
    with torch.inference_mode():
        expected = own.eval()(x).numpy()
    for name in ("c.h5", "d.h5"):
        assert worst(FeatureCache(tmp_path / name).features("head"), expected) < 1e-5


def as_input(path: Path) -> torch.Tensor:
    transforms = models.ResNet18_Weights.IMAGENET1K_V1.transforms(resize_size=18, crop_size=16)
    with Image.open(path) as image:
        return transforms(image)


def test_weights_changed_later_change_nothing_before(own, scenes, tmp_path):
    """The backbone holds its own copy: training the network on does not leak into a cache."""
    backbone = Backbone(own, name="own", preprocess=RECIPE)
    digest = backbone.weights_sha256
    run(scenes, tmp_path / "a.h5", backbone=backbone, layers="head")
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(1)
    run(scenes, tmp_path / "b.h5", backbone=backbone, layers="head")
    left, right = FeatureCache(tmp_path / "a.h5"), FeatureCache(tmp_path / "b.h5")
    assert np.array_equal(left.features("head"), right.features("head"))
    assert Backbone(own, name="own", preprocess=RECIPE).weights_sha256 != digest


def test_digest_is_taken_of_what_is_run(own, scenes, tmp_path):
    """The same, where the digest is first asked for after the change."""
    digest = Backbone(copy.deepcopy(own), name="own", preprocess=RECIPE).weights_sha256
    backbone = Backbone(own, name="own", preprocess=RECIPE)
    with torch.no_grad():
        own.head.weight.add_(1)
    run(scenes, tmp_path / "a.h5", backbone=backbone, layers="head")
    expected = copy.deepcopy(own).eval()
    with torch.no_grad():
        expected.head.weight.sub_(1)
        x = torch.stack([as_input(scenes / name) for name in ("a.png", "b.png")])
        wanted = expected(x).numpy()
    cache = FeatureCache(tmp_path / "a.h5")
    same_digest = cache.extractor.weights_sha256 == digest
    same_features = worst(cache.features("head"), wanted) < 1e-5
    # Either snapshot would do, if what is recorded and what is run are the same one.
    assert same_digest == same_features
    assert same_digest


def test_networks_that_make_tensors_of_their_own(scenes, tmp_path):
    """A constant written into forward is no weight that a file could lack."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))

    torch.manual_seed(0)
    net = Shifted().eval()
    backbone = Backbone(net, name="shifted", preprocess=RECIPE)
    run(scenes, tmp_path / "c.h5", backbone=backbone, layers="conv")
    with torch.inference_mode():
        expected = net(torch.stack([as_input(scenes / name) for name in ("a.png", "b.png")]))
    found = FeatureCache(tmp_path / "c.h5").features("conv")
    assert worst(found, expected.mean((2, 3)).numpy()) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 0}, "resize must be 1 to"),
        ({"crop": "16"}, "crop must be 1 to"),
        ({"mean": [0.5]}, "mean must be three numbers"),
        ({"std": [0.5, 0.5, 0.0]}, "std must be three numbers"),
        ({"interpolation": "cubic"}, "interpolation is one of"),
        ({"decode": "slow"}, "decode is one of"),
        ({"size": 3}, "has the keys"),
    ],
)
def test_incomplete_preprocessing_is_refused(own, change, message):
    with pytest.raises(CallError, match=message):
        Backbone(own, name="own", preprocess={**RECIPE, **change})
    with pytest.raises(CallError):
        Backbone(own, name="own", preprocess={"resize": 16})


# --- names, weights by name, preprocessing --------------------------------------------------


def on_meta(name: str) -> nn.Module:
    more = {}
    if name in ("googlenet", "inception_v3"):
        more = {"aux_logits": False, "init_weights": False}
    with torch.device("meta"):
        return models.get_model(name, weights=None, **more)


def test_every_classification_network_of_torchvision_is_known():
    named = models.list_models(module=models)
    assert len(named) > 70
    assert [name for name in named if find_family(name) is None] == []
    assert set(EMBEDDING_DIMS) == {*named, "seedling"}
    unused = [p for p in FAMILIES if not any(FAMILIES[p] is find_family(n) for n in EMBEDDING_DIMS)]
    assert unused == []


@pytest.mark.slow
def test_stages_exist_and_dims_are_those_of_the_classifier():
    wrong = []
    for name in models.list_models(module=models):
        if name.startswith("regnet"):  # cannot be built without memory
            if not name.endswith(("_400mf", "_800mf")):
                continue
            net = models.get_model(name, weights=None)
        else:
            net = on_meta(name)
        modules = dict(net.named_modules())
        missing = {s for s in find_family(name).stages if s not in modules}
        if name.startswith("densenet"):
            missing.discard("relu")  # an operation, checked above against its values
        classifier = [m for m in modules.values() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        if isinstance(classifier, nn.Linear):
            dim = classifier.in_features
        else:  # SqueezeNet
            dim = classifier.in_channels
        if missing or EMBEDDING_DIMS[name] != dim:
            wrong.append((name, missing, dim))
    assert wrong == []


@pytest.mark.long
def test_preprocessing_is_that_of_the_weights():
    named = [
        ("resnet18", "IMAGENET1K_V1"),
        ("efficientnet_b0", "IMAGENET1K_V1"),
        ("mobilenet_v3_large", "IMAGENET1K_V2"),
        ("inception_v3", "IMAGENET1K_V1"),
    ]
    for name, label in named:
        official = models.get_model_weights(name)[label].transforms()
        backbone = load_backbone(name, label, frozen_weights=False)
        assert backbone.preprocess == {
            "resize": official.resize_size[0],
            "crop": official.crop_size[0],
            "interpolation": official.interpolation.value,
            "mean": official.mean,
            "std": official.std,
            "decode": "exact",
        }
    other = load_backbone("resnet18", frozen_weights=False, preprocess="IMAGENET1K_V1")
    assert other.preprocess["resize"] == 256


def test_every_preprocessing_of_torchvision_is_understood():
    from featurize.images.preprocess import Preprocess

    for name in models.list_models(module=models):
        for entry in models.get_model_weights(name):
            official = entry.transforms()
            assert official.antialias is True
            Preprocess.from_dict(
                {
                    "resize": official.resize_size[0],
                    "crop": official.crop_size[0],
                    "interpolation": official.interpolation.value,
                    "mean": official.mean,
                    "std": official.std,
                }
            )


@pytest.mark.long
def test_weights_for_larger_images_bring_their_network():
    """The same name with weights that were trained at 384 pixels."""
    backbone = load_backbone("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", frozen_weights=False)
    assert backbone.preprocess["crop"] == 384
    assert backbone.layers["encoder.ln"].map_shape == (577, 768)


def test_weights_by_name_are_torchvisions(monkeypatch, tmp_path):
    torch.manual_seed(1)
    tensors = models.resnet18().state_dict()
    asked = []

    def fetched(self, *_args, **options):
        asked.append((str(self), options.get("check_hash"), options.get("weights_only")))
        return tensors

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", fetched)
    backbone = load_backbone("resnet18")
    assert asked == [("ResNet18_Weights.IMAGENET1K_V1", True, True)]
    assert backbone.weights == "IMAGENET1K_V1"
    save_file(tensors, tmp_path / "w.safetensors")
    file = load_backbone("resnet18", str(tmp_path / "w.safetensors"))
    assert file.weights_sha256 == backbone.weights_sha256
    assert file.preprocess == backbone.preprocess


def test_weights_that_cannot_be_downloaded(monkeypatch, scenes, tmp_path):
    def offline(*_args, **_options):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(BackboneError, match=r"--backbone seedling.*--weights FILE"):
        run(scenes, tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()
    with pytest.raises(BackboneError, match="no route to host"):
        load_backbone("resnet18")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet5O", None, r"no backbone 'resnet5O' \(did you mean 'resnet50'\?\)"),
        ("resnet18", "IMAGENET1K_V7", r"no weights 'IMAGENET1K_V7' \(did you mean 'IMAGENET1K_V1'"),
        ("seedling", "V9", "seedling has no weights 'V9'"),
        ("resnet18", "./nothing.pth", "no weights file"),
        ("fcn_resnet50", None, "no backbone 'fcn_resnet50'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, weights, message):
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, weights)


def test_seedling_is_inside():
    backbone = load_backbone("seedling")
    assert len(backbone.weights_sha256) == 64
    assert list(find_family("seedling").stages) == ["stage1", "stage2", "stage3", "stage4"]
    with torch.inference_mode():
        (found,) = backbone.cut([("stage4", "avg")])(torch.randn(2, 3, 32, 32))
    assert found.shape == (2, EMBEDDING_DIMS["seedling"])


def test_a_file_may_name_its_backbone(scenes, tmp_path):
    """Metadata of a safetensors file: its network and its preprocessing."""
    torch.manual_seed(0)
    tensors = models.squeezenet1_1().state_dict()
    recipe = {"resize": 70, "crop": 64, "mean": [0.1] * 3, "std": [0.9] * 3}
    file = tmp_path / "mine.safetensors"
    save_file(tensors, file, {"backbone": "squeezenet1_1", "preprocess": json.dumps(recipe)})
    backbone = load_backbone(str(file))
    assert backbone.name == "squeezenet1_1"
    assert (backbone.preprocess["resize"], backbone.preprocess["mean"]) == (70, [0.1] * 3)
    done = run(scenes, tmp_path / "c.h5", backbone=str(file), layers="features.4")
    assert done.computed == 2
    save_file(tensors, file)
    with pytest.raises(BackboneError, match="does not say which network it is for"):
        load_backbone(str(file))


def test_last_of_a_file_that_names_its_backbone(scenes, tmp_path):
    """The default layer, without any option but the file."""
    torch.manual_seed(0)
    file = tmp_path / "mine.safetensors"
    save_file(models.squeezenet1_1().state_dict(), file, {"backbone": "squeezenet1_1"})
    assert run(scenes, tmp_path / "c.h5", backbone=str(file)).layers == ["features.12"]


def test_no_warning_while_opening_any_family():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"):
            assert load_backbone(name, frozen_weights=False).layers

"""Where a network can be cut: nothing after the cut runs, and what is not understood is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from featurize import Backbone, FeatureCache, load_backbone, run
from featurize.errors import BackboneError, CallError, UnknownLayerError

RECIPE = {"resize": 34, "crop": 32, "mean": [0.5] * 3, "std": [0.25] * 3}


def wrapped(network: nn.Module, name: str = "net", **more) -> Backbone:
    return Backbone(network.eval(), name=name, preprocess={**RECIPE, **more})


def rows(backbone: Backbone, x: torch.Tensor, *layers: str) -> list[np.ndarray]:
    """Features of a batch; a layer is written NAME or NAME:POOL."""
    pairs = [(name, pool or "avg") for name, _, pool in (layer.partition(":") for layer in layers)]
    with torch.inference_mode():
        return [found.numpy() for found in backbone.cut(pairs)(x.clone())]


def close(found: np.ndarray, expected: np.ndarray, limit: float = 1e-5) -> bool:
    off = np.linalg.norm(found.astype(float) - expected, axis=1)
    return bool((off <= limit * np.linalg.norm(expected, axis=1)).all())


@pytest.fixture
def x():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    for k in range(3):
        pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{k}.png")
    return images


# --- nothing after the cut runs ------------------------------------------------------------


class Trap(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("name", "layer", "below"),
    [
        ("squeezenet1_1", "features.4", [f"features.{n}" for n in range(5)]),
        ("resnet18", "layer1", ["conv1", "bn1", "relu", "maxpool", "layer1"]),
        ("vgg11", "features.5", [f"features.{n}" for n in range(6)]),
    ],
)
def test_nothing_after_the_cut_runs(name, layer, below, folder, tmp_path):
    more = {"init_weights": False} if name == "vgg11" else {}
    network = models.get_model(name, weights=None, **more)
    if name == "vgg11":
        network.classifier[0] = nn.Linear(512 * 49, 8)
        network.classifier[3] = nn.Linear(8, 8)
        network.classifier[6] = nn.Linear(8, 8)
    armed, ran = [], []

    def hook(path, allowed):
        def before(_module, _inputs):
            ran.append(path)
            if armed and not allowed:
                raise Trap(path)

        return before

    for path, module in network.named_modules():
        if not any(module.children()):
            allowed = any(path == name or path.startswith(name + ".") for name in below)
            module.register_forward_pre_hook(hook(path, allowed))
    backbone = Backbone(network, name=name, preprocess=RECIPE)
    armed.append(True)
    ran.clear()
    done = run(folder, tmp_path / "c.h5", backbone=backbone, layers=layer)
    assert done.computed == 3
    assert len(ran) > 1  # the hooks are there
    deeper = next(path for path in backbone.layers if path == "avgpool" or path == "features.12")
    with pytest.raises(Trap):
        run(folder, tmp_path / "d.h5", backbone=backbone, layers=deeper)


def test_a_cut_holds_only_the_weights_it_needs():
    backbone = load_backbone("squeezenet1_1", frozen_weights=False)
    for layer, deepest in (("features.4", 4), ("features.0", 0), ("features.4.squeeze", 4)):
        keys = backbone.cut([(layer, "avg")]).state_dict()
        assert {int(key.split(".")[1]) for key in keys} <= set(range(deepest + 1))
    keys = backbone.cut([("features.4.squeeze", "avg")]).state_dict()
    assert "features.4.expand1x1.weight" not in keys


def test_a_side_branch_is_left_out():
    """What is computed before the deepest layer, but not needed for it, does not run either."""

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.side = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.main, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            side = self.side(x)
            return self.head((self.main(x) + side).mean((2, 3)))

    assert "side.weight" not in wrapped(Forked()).cut([("main", "avg")]).state_dict()


# --- in-place operations -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shallow", "deep"),
    [
        ("squeezenet1_1", "features.0", "features.12"),
        ("vgg11", "features.0", "features.20"),
        ("resnet18", "bn1", "layer4"),
        ("resnet18", "layer1.0.bn2", "layer1"),
        ("densenet121", "features.norm0", "features.denseblock1"),
        ("mobilenet_v3_small", "features.0.1", "features.3"),
        ("shufflenet_v2_x0_5", "conv1.1", "stage2"),
        ("googlenet", "conv1.bn", "conv2"),
    ],
)
def test_a_later_layer_does_not_overwrite_an_earlier_one(name, shallow, deep, x):
    torch.manual_seed(0)
    backbone = load_backbone(name, frozen_weights=False)
    for pool in ("avg", "none"):
        (alone,) = rows(backbone, x.repeat(1, 1, 2, 2), f"{shallow}:{pool}")
        among, _ = rows(backbone, x.repeat(1, 1, 2, 2), f"{shallow}:{pool}", deep)
        assert close(among, alone)
    assert (alone < 0).any()  # taken before the ReLU that follows it in place


def test_in_place_code_of_ones_own_is_turned_off(x):
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            y = nn.functional.relu(x, inplace=True)
            y += 1
            y = y.mul_(2).clamp_(max=3)
            y *= y
            return self.second(torch.relu_(y - 5))

    torch.manual_seed(0)
    network = Careless()
    backbone = wrapped(network)
    with torch.inference_mode():
        expected = network.conv(x).flatten(1).numpy()
        deepest = network(x).flatten(1).numpy()
    found, last = rows(backbone, x, "conv:none", "second:none")
    assert close(found, expected)
    assert close(last, deepest)


class Writes(nn.Module):
    """A convolution, a statement that writes into its map, a second convolution."""

    def __init__(self, write):
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.write = write

    def forward(self, x):
        x = self.conv(x)
        self.write(self, x)
        return self.second(x)


@pytest.mark.parametrize(
    "write",
    [
        lambda net, x: x.mul_(2),
        lambda net, x: torch.relu_(x),
        lambda net, x: nn.functional.relu(x, inplace=True),
        lambda net, x: net.relu(x),
        lambda net, x: x[:, 0].mul_(3),
        lambda net, x: x[:, 0].zero_(),
        lambda net, x: x.flatten(1).clamp_(min=0),
    ],
    ids=["method", "function", "keyword", "module", "slice", "slice set", "view"],
)
def test_statements_that_write_are_right_or_refused(x, write):
    """Where nobody takes the result of an in-place operation, it still has its effect."""
    torch.manual_seed(0)
    network = Writes(write).eval()
    with torch.inference_mode():
        before = network.conv(x).flatten(1).numpy()
        after = network(x).flatten(1).numpy()
    try:
        found, last = rows(wrapped(network), x, "conv:none", "second:none")
    except BackboneError:
        return
    assert close(found, before)
    assert close(last, after)


# --- networks that cannot be traced --------------------------------------------------------


class Undecided(nn.Module):
    """Its path depends on its input; and it writes into that."""

    def __init__(self, decide):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.decide = decide

    def forward(self, x):
        if self.decide(x):
            return x
        return self.conv(x.relu_())


@pytest.mark.parametrize(
    "decide",
    [lambda x: len(x) > 1000, lambda x: bool(x.mean() > 1e9)],
    ids=["by shape", "by numbers"],
)
def test_a_sequence_is_cut_where_it_cannot_be_traced(x, folder, tmp_path, decide):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Sequential(Undecided(decide), nn.ReLU(inplace=True)),
        nn.Conv2d(4, 5, 1),
    )
    backbone = wrapped(network)
    assert {"0", "1.0", "1", "2"} <= set(backbone.layers)
    with torch.inference_mode():
        expected = [network[: k + 1](x.clone()).flatten(1).numpy() for k in range(3)]
        expected[0] = network[0](x).flatten(1).numpy()
    found = rows(backbone, x, "0:none", "1:none", "2:none")
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))
    assert close(rows(backbone, x, "0:none")[0], expected[0])
    assert "2.weight" not in backbone.cut([("1", "avg")]).state_dict()
    run(folder, tmp_path / "c.h5", backbone=backbone, layers="0,1:max,2")
    assert list(FeatureCache(tmp_path / "c.h5").layers) == ["0", "1@max", "2"]


def test_what_can_be_opened_in_no_way_is_refused():
    class Knot(nn.Module):
        def __init__(self):
            super().__init__()
            self.undecided = Undecided(lambda x: len(x) > 1000)

        def forward(self, x):
            return self.undecided(x) if x.sum() > 0 else x

    with pytest.raises(BackboneError, match=r"Knot can be cut nowhere.*nn\.Sequential"):
        wrapped(Knot())


def test_a_network_that_takes_no_such_images_is_refused():
    with pytest.raises(BackboneError, match="cannot take images of 32 x 32"):
        wrapped(nn.Sequential(nn.Conv2d(4, 4, 3)))
    with pytest.raises(BackboneError, match="cannot take images of 32 x 32"):
        wrapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)))


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "suggested"), [("feature.4", "features.4"), ("features.44", "features.4")]
)
def test_an_unknown_layer_is_answered_with_the_nearest(asked, suggested, folder, tmp_path):
    backbone = load_backbone("squeezenet1_1", frozen_weights=False)
    with pytest.raises(UnknownLayerError, match=rf"no layer '{asked}' \(did you mean '{suggested}"):
        backbone.cut([(asked, "avg")])
    backbone = load_backbone("seedling")
    with pytest.raises(UnknownLayerError, match="did you mean 'stage4'"):
        run(folder, tmp_path / "c.h5", backbone=backbone, layers="stage5")
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize(
    ("layers", "pool", "error", "message"),
    [
        ("stage4:sum", None, CallError, "no pool 'sum'; there are avg, max, avgmax, none, token"),
        ("stage4", "average", CallError, "no pool 'average'"),
        ("stage4,,stage1", None, CallError, "empty name"),
        ("stage4:token", None, BackboneError, "'token' is for layers of a vision transformer"),
    ],
)
def test_impossible_layers_are_refused(layers, pool, error, message, folder, tmp_path):
    with pytest.raises(error, match=message):
        run(folder, tmp_path / "c.h5", backbone="seedling", layers=layers, pool=pool)
    assert not (tmp_path / "c.h5").exists()


def test_last_needs_a_known_family(folder, tmp_path):
    backbone = wrapped(nn.Sequential(nn.Conv2d(3, 4, 3)), name="mine")
    for layers in (None, "last", "auto"):
        with pytest.raises(UnknownLayerError, match="name its layers instead"):
            run(folder, tmp_path / "c.h5", backbone=backbone, layers=layers)


def test_each_call_of_a_layer_has_a_name(x):
    """As in torchvision: the second call of ``relu`` is ``relu_1``."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.conv(self.relu(self.conv(x))))

    torch.manual_seed(0)
    network = Twice().eval()
    with torch.inference_mode():
        first = network.relu(network.conv(x)).flatten(1).numpy()
        second = network(x).flatten(1).numpy()
    found = rows(wrapped(network), x, "relu:none", "relu_1:none")
    assert close(found[0], first)
    assert close(found[1], second)


# --- what is not understood is refused -----------------------------------------------------


class Module(nn.Module):
    """A convolution, then whatever is given."""

    def __init__(self, tail, size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, size)
        self.tail = Tail(tail)

    def forward(self, x):
        return self.tail(self.conv(x))


class Tail(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (lambda x: x.flatten(2).transpose(1, 2), "what its axes mean is not known"),
        (lambda x: x.flatten(2), "what its axes mean is not known"),
        (lambda x: x.unsqueeze(2), "4 axes an image"),
        (lambda x: x.transpose(0, 1), "first axis is not the batch"),
        (lambda x: x.flatten(0, 1), "first axis is not the batch"),
        (lambda x: x.mean((0, 2, 3)), "first axis is not the batch"),
        (lambda x: x.mean((2, 3)).sum(1), "first axis is not the batch"),
        (lambda x: x.transpose(1, 2), "which of its axes"),
        (lambda x: x.permute(1, 0, 2, 3), "first axis is not the batch"),
    ],
)
def test_maps_that_are_not_understood_are_refused(tail, message):
    backbone = wrapped(Module(tail))
    assert "conv" in backbone.layers
    assert "tail" not in backbone.layers
    with pytest.raises(BackboneError, match=message):
        backbone.cut([("tail", "avg")])


def test_channels_are_found_wherever_they_are(x):
    """Channels first, channels last, vectors, and single pixels."""
    torch.manual_seed(0)
    for tail, reference in (
        (lambda x: x * 2, lambda x: (2 * x).mean((2, 3))),
        (lambda x: x.permute(0, 2, 3, 1), lambda x: x.mean((2, 3))),
        (lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3))),
        (lambda x: x.mean((2, 3), keepdim=True), lambda x: x.mean((2, 3))),
    ):
        network = Module(tail).eval()
        with torch.inference_mode():
            expected = reference(network.conv(x)).numpy()
        assert close(rows(wrapped(network), x, "tail")[0], expected)


def test_a_square_map_with_as_many_channels_is_not_mistaken(x):
    """No axis can be told by its length here: 30 channels of 30 x 30."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 30, 3)
            self.last = Tail(lambda x: x.permute(0, 2, 3, 1))

        def forward(self, x):
            return self.last(self.conv(x) + 0)

    torch.manual_seed(0)
    network = Square().eval()
    with torch.inference_mode():
        expected = network.conv(x).mean((2, 3)).numpy()
    first, last = rows(wrapped(network), x, "conv", "last")
    assert close(first, expected)
    assert close(last, expected)


def test_a_network_of_one_size_only(x):
    """Past the layer that fixes the size, only what is certain is offered."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.place = nn.Parameter(torch.randn(1, 4, 30, 30))
            self.turned = Tail(lambda x: x.permute(0, 2, 3, 1) * 1)
            self.back = Tail(lambda x: x.permute(0, 3, 1, 2))
            self.second = nn.Conv2d(4, 5, 3)
            self.head = nn.Linear(5 * 28 * 28, 2)

        def forward(self, x):
            x = self.conv(x) + self.place
            return self.head(self.second(self.back(self.turned(x))).flatten(1))

    torch.manual_seed(0)
    network = Fixed().eval()
    backbone = wrapped(network)
    assert {"conv", "second", "head"} <= set(backbone.layers)
    with pytest.raises(BackboneError, match="which of its axes holds the channels is not known"):
        backbone.cut([("turned", "avg")])
    with torch.inference_mode():
        x1 = network.conv(x) + network.place
        expected = network.second(x1).mean((2, 3)).numpy()
    assert close(rows(backbone, x, "second")[0], expected)


def test_layers_that_mix_the_images_of_a_batch_are_refused(x):
    """Batch norm without statistics of its own: an image's features would depend on the others."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()
    )
    try:
        backbone = wrapped(network)
        (alone,), (together,) = rows(backbone, x[:1], "2"), rows(backbone, x, "2")
    except BackboneError as refused:
        assert "batch" in str(refused)  # noqa: PT017
    else:
        assert close(alone, together[:1])


def test_tokens_of_a_vision_transformer():
    """The class token, the mean of the patches, and the hidden layers that are no token maps."""
    torch.manual_seed(0)
    network = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    nn.init.normal_(network.class_token)
    backbone = wrapped(network)
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        tokens = network._process_input(x)
        tokens = network.encoder(torch.cat([network.class_token.expand(3, -1, -1), tokens], 1))
    token, avg, most, both, none = rows(
        backbone, x, *(f"encoder.ln:{pool}" for pool in ("token", "avg", "max", "avgmax", "none"))
    )
    assert close(token, tokens[:, 0].numpy())
    assert close(avg, tokens[:, 1:].mean(1).numpy())
    assert close(most, tokens[:, 1:].amax(1).numpy())
    assert close(both, np.concatenate([avg, most], 1))
    assert close(none, tokens.flatten(1).numpy())
    assert backbone.layers["conv_proj"].map_shape == (16, 4, 4)
    assert backbone.layers["heads"].map_shape == (3,)

"""What each layer costs: shapes, shares of the arithmetic counted by hand, and the table."""

import json
import re

import pytest
import torch
from torch import nn
from torchvision import models

from featurize import Backbone, FeatureCache, load_backbone, run
from featurize.backbones.families import EMBEDDING_DIMS, find_family
from featurize.backbones.profiling import layer_costs

RECIPE = {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
KEYS = ["layer", "shape", "dim", "cost", "macs"]


@pytest.fixture(scope="module")
def squeezenet():
    """Costs by layer; the batch is of one, since no test here looks at the time."""
    backbone = load_backbone("squeezenet1_1", frozen_weights=False)
    return {cost.layer: cost for cost in layer_costs(backbone, batch=1)}


def multiplications(network: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """By module, in the order they run, counted with pencil and paper: outputs times window."""
    found: dict[str, int] = {}

    def count(name):
        def after(module, _inputs, output):
            found[name] = output.numel() * module.weight[0].numel()

        return after

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count(name))
    with torch.inference_mode():
        network.eval()(x)
    return found


def test_arithmetic_of_squeezenet(squeezenet):
    """26 % of it lies at or below features.4, and at every layer what a count by hand says."""
    assert squeezenet["features.4"].macs == pytest.approx(0.26, abs=0.01)
    by_hand = multiplications(models.squeezenet1_1(), torch.zeros(1, 3, 224, 224))
    whole = sum(by_hand.values())
    for n in range(13):
        upto = sum(
            share
            for name, share in by_hand.items()
            if name.startswith("features.") and int(name.split(".")[1]) <= n
        )
        assert squeezenet[f"features.{n}"].macs == pytest.approx(upto / whole, rel=1e-6), n
    assert squeezenet["features.4.squeeze"].macs < squeezenet["features.4"].macs


def test_shapes_and_dims_of_squeezenet(squeezenet):
    assert squeezenet["features.4"].shape == [128, 55, 55]
    assert squeezenet["features.4"].dim == 128
    assert squeezenet["features.12"].shape == [512, 13, 13]
    assert squeezenet["features.12"].dim == EMBEDDING_DIMS["squeezenet1_1"]
    assert set(find_family("squeezenet1_1").stages) <= set(squeezenet)


def test_shares_ascend_to_the_whole(squeezenet):
    for field in ("cost", "macs"):
        shares = [getattr(cost, field) for cost in squeezenet.values()]
        assert all(0 <= share <= 1 for share in shares)
        assert shares == sorted(shares)
    assert squeezenet["classifier"].macs == 1
    # Early layers are large maps: they take time all the same.
    assert squeezenet["features.0"].cost > 0


def test_a_linear_layer_and_a_shortcut_are_counted():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, stride=2)
            self.side = nn.Conv2d(4, 4, 1, bias=False)
            self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.head = nn.Linear(4, 6)

        def forward(self, x):
            x = self.first(x)
            return self.head((self.side(x) + self.grouped(x)).mean((2, 3)))

    costs = {c.layer: c for c in layer_costs(Backbone(Small(), name="s", preprocess=RECIPE), 1)}
    by_hand = multiplications(Small(), torch.zeros(1, 3, 32, 32))
    assert by_hand == {
        **{"first": 15 * 15 * 4 * 27, "side": 15 * 15 * 4 * 4, "grouped": 15 * 15 * 4 * 18},
        "head": 6 * 4,
    }
    whole, upto = sum(by_hand.values()), 0
    for name, share in by_hand.items():
        upto += share
        assert costs[name].macs == pytest.approx(upto / whole)
    assert (costs["grouped"].shape, costs["grouped"].dim) == ([4, 15, 15], 4)
    assert (costs["head"].shape, costs["head"].dim) == ([6], 6)


def test_a_network_without_arithmetic():
    backbone = Backbone(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), name="none", preprocess=RECIPE)
    costs = layer_costs(backbone, batch=1)
    assert [cost.macs for cost in costs] == [0, 0]
    assert 0 < costs[0].cost < costs[1].cost <= 1


def test_measuring_changes_no_network(toy):
    before = {key: value.clone() for key, value in toy.network.module.state_dict().items()}
    layer_costs(toy, batch=2)
    after = toy.network.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.fixture
def one_at_a_time(monkeypatch):
    """The command with a batch of one: what it says does not depend on it."""
    monkeypatch.setattr("featurize.backbones.profiling.layer_costs.__defaults__", (1,))


@pytest.mark.usefixtures("one_at_a_time")
def test_the_verb_prints_one_json_object(cli):
    done = cli("layers", "seedling", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert list(found) == ["layers"]
    assert all(list(layer) == KEYS for layer in found["layers"])
    by_name = {layer["layer"]: layer for layer in found["layers"]}
    assert {"stage1", "stage2", "stage3", "stage4"} <= set(by_name)
    assert by_name["stage4"]["dim"] == by_name["stage4"]["shape"][0] == EMBEDDING_DIMS["seedling"]
    assert all(isinstance(n, int) for layer in found["layers"] for n in layer["shape"])
    for key in ("cost", "macs"):
        shares = [layer[key] for layer in found["layers"]]
        assert shares == sorted(shares)
    assert "measuring seedling on this machine" in done.stderr


@pytest.mark.usefixtures("one_at_a_time")
def test_the_verb_prints_a_table(cli):
    done = cli("layers", "resnet18")
    assert done.exit_code == 0
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["layer", "shape", "dim", "time", "arithmetic"]
    shown = [re.match(r"(\S+)\s+([\dx]+)\s+(\d+)\s+(\d+)%\s+(\d+)%$", row) for row in rows[:-1]]
    assert all(shown), rows
    by_name = {match.group(1): match.groups()[1:] for match in shown}
    assert by_name["layer4"][:2] == ("512x7x7", "512")
    assert by_name["layer2"][:2] == ("128x28x28", "128")
    assert by_name["fc"][:2] == ("1000", "1000")
    assert by_name["fc"][3] == "100"
    assert re.match(r"\d+ deeper names are left out; --json lists all$", rows[-1])
    assert not any(name.count(".") > 1 for name in by_name)
    # Aligned: every row is as wide as the head.
    assert {len(row) for row in rows[:-1]} == {len(head)}


@pytest.mark.long
@pytest.mark.usefixtures("one_at_a_time")
def test_every_layer_that_is_listed_can_be_cut(cli, draw, tmp_path):
    found = json.loads(cli("layers", "seedling", "--json").stdout)["layers"]
    folder = draw(tmp_path / "images", ["a.png", "b.png"])
    names = ",".join(layer["layer"] for layer in found)
    done = run(folder, tmp_path / "c.h5", backbone="seedling", layers=names)
    cache = FeatureCache(tmp_path / "c.h5")
    assert sorted(done.layers) == sorted(layer["layer"] for layer in found)
    for layer in found:
        info = cache.layers[layer["layer"]]
        assert (info.dim, list(info.map_shape)) == (layer["dim"], layer["shape"])


def test_layers_of_an_unknown_network(cli):
    done = cli("layers", "squeezenet1_7")
    assert done.exit_code == 2
    assert "did you mean 'squeezenet1_1'?" in done.stderr
    assert "featurize backbones" in done.stderr


def test_backbones_are_listed(cli):
    found = json.loads(cli("backbones", "--json").stdout)["backbones"]
    keys = ["name", "weights", "dim", "source", "licence"]
    assert all(list(entry) == keys for entry in found)
    by_name = {entry["name"]: entry for entry in found}
    assert set(by_name) == {"seedling", "lite0", *models.list_models(module=models)}
    assert all(isinstance(entry["dim"], int) and entry["weights"] for entry in found)
    assert by_name["resnet50"]["weights"][0] == "IMAGENET1K_V1"
    assert by_name["seedling"]["source"] == "shipped inside"
    table = cli("backbones").stdout
    assert all(re.search(rf"^{name} ", table, re.MULTILINE) for name in by_name)
    assert "timm:*dinov2*" in table

"""`LayerSpec`: a layer and its pool, in each of the ways that they are written."""

import subprocess
import sys
from dataclasses import replace

import pytest

from featurize import FeatureCache, LayerSpec
from featurize.backbones.families import parse_layers
from featurize.errors import CallError


@pytest.mark.parametrize(
    ("text", "spec", "key", "option"),
    [
        ("layer4", LayerSpec("layer4", "avg"), "layer4", "layer4:avg"),
        ("layer4:max", LayerSpec("layer4", "max"), "layer4@max", "layer4:max"),
        (" layer4@none ", LayerSpec("layer4", "none"), "layer4@none", "layer4:none"),
        ("features.8:avg", LayerSpec("features.8"), "features.8", "features.8:avg"),
    ],
)
def test_it_is_read_and_written(text, spec, key, option):
    assert LayerSpec.parse(text) == spec
    assert (spec.key, spec.option) == (key, option)
    assert LayerSpec.parse(spec.key) == LayerSpec.parse(spec.option) == spec


def test_the_pool_that_a_text_lacks():
    assert LayerSpec.parse("a", "max") == LayerSpec("a", "max")
    assert LayerSpec.parse("a:avg", "max") == LayerSpec("a", "avg")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a:sum", "no pool 'sum'; there are avg, max"), (":max", "names no layer"), ("", "names no")],
)
def test_what_cannot_be_is_refused(text, message):
    with pytest.raises(CallError, match=message):
        LayerSpec.parse(text)


def test_it_is_the_pair_that_it_was():
    layer, pool = spec = LayerSpec("a", "max")
    assert (layer, pool) == spec == ("a", "max")
    assert {spec: 1}["a", "max"] == 1
    with pytest.raises(AttributeError):
        spec.pool = "avg"


def test_layers_of_an_option_and_of_a_cache_are_specs(allocate, tmp_path):
    assert parse_layers("a,b:max,a", "none", "mine") == [LayerSpec("a", "none"), ("b", "max")]
    assert parse_layers("last", None, "vit_b_16") == [LayerSpec("encoder.ln", "token")]
    assert parse_layers("last@max", "avg", "vit_b_16") == [LayerSpec("encoder.ln", "max")]
    layers = FeatureCache(allocate(tmp_path / "c.h5")).layers
    assert {name: info.spec for name, info in layers.items()} == {
        "layer3@max": LayerSpec("layer3", "max"),
        "layer4": LayerSpec("layer4"),
    }
    assert replace(layers["layer4"], pool="none").name == "layer4@none"


def test_a_backbone_is_cut_by_specs_and_by_pairs(toy):
    torch = pytest.importorskip("torch")
    x = torch.rand(1, 3, 8, 8)
    (spec,) = toy.cut([LayerSpec("2", "max")])(x)
    (pair,) = toy.cut([("2", "max")])(x)
    assert torch.equal(spec, pair)


def test_it_is_had_without_torch():
    code = "import sys; from featurize import LayerSpec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

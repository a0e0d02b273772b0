"""`featurize backbones`: what there is, found by name and by licence."""

import json

import pytest


@pytest.fixture
def search(cli):
    def search(*arguments):
        done = cli("backbones", *arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    return search


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


def rows(found):
    return found["backbones"] if isinstance(found, dict) else found


def test_all_of_timm_is_not_listed_unasked(search):
    found = rows(search())
    assert 50 < len(found) < 200
    assert not [entry for entry in found if entry["name"].startswith("timm:")]
    assert {"seedling", "resnet50", "lite0"} <= {entry["name"] for entry in found}


def test_dinov3_has_a_licence_of_its_own(search, timm):
    found = rows(search("timm:*dinov3*"))
    names = {entry["name"] for entry in found}
    expected = {f"timm:{name}" for name in timm.list_pretrained("*dinov3*")}
    assert expected
    assert names == expected
    licences = {
        entry["name"]: timm.get_pretrained_cfg(entry["name"].removeprefix("timm:")).license
        for entry in found
    }
    assert {entry["name"]: entry["licence"] for entry in found} == licences
    assert licences["timm:vit_small_patch16_dinov3.lvd1689m"] == "dinov3-license"


def test_a_filter_by_licence(search, timm):
    everything = rows(search("timm:*dinov*"))
    permissive = rows(search("timm:*dinov*", "--licence", "permissive"))
    names = [entry["name"] for entry in permissive]
    assert 0 < len(permissive) < len(everything)
    assert "timm:vit_small_patch14_reg4_dinov2.lvd142m" in names
    assert {entry["licence"] for entry in permissive} <= {"apache-2.0", "mit"}
    assert rows(search("timm:*dinov*", "--licence", "restricted"))


def test_every_name_that_is_listed_can_be_said(search, timm):
    """It is what --backbone takes: with its tag, square images of three channels."""
    for entry in rows(search("timm:test_*")):
        architecture, _, tag = entry["name"].removeprefix("timm:").partition(".")
        assert timm.is_model(architecture)
        assert entry["weights"] == [tag]
        assert entry["size"] == timm.get_pretrained_cfg(f"{architecture}.{tag}").input_size[1]


def test_nothing_found_and_wrong_questions(cli, search, timm):
    assert rows(search("timm:*nothing-like-this*")) == []
    done = cli("backbones", "timm:*", "--licence", "cheap")
    assert done.exit_code == 2
    assert "permissive" in done.stderr

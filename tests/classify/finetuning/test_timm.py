"""Networks of timm are tuned as others are: from images, from caches, from heads, and reopened."""

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone

from classify import FineTuneClassifier, evaluate, finetune, fit, load_head, predict, save_head
from classify.errors import CallError
from featurize import FeatureCache, load_backbone, run
from featurize.backbones.weights import hash_state_dict

OPTIONS = {"epochs": 2, "batch_size": 16, "augment": "none", "device": "cpu"}


@pytest.fixture(scope="module")
def vit_cache(pictured, vit_folder, tmp_path_factory):
    """The last layer, and the maps that enter the last two blocks."""
    path = tmp_path_factory.mktemp("timm") / "c.h5"
    run(pictured.images, path, backbone=vit_folder, layers="last,blocks.3:none", device="cpu")
    return path


@pytest.mark.long
def test_from_the_cache_alone_as_from_images(pictured, vit_folder, vit_cache, tmp_path):
    head, _ = fit(vit_cache, layer="pre_logits", prepare="standardise")
    save_head(head, tmp_path / "h")
    options = OPTIONS | {"tune": "last-2", "init_head": tmp_path / "h"}
    said = []
    plain = finetune(pictured.images, tmp_path / "M", backbone=vit_folder, **options)
    # The cache names the network; the folder says where its weights are.
    mapped = finetune(pictured.images, tmp_path / "N", cache=vit_cache, say=said.append, **options)
    assert (
        "training from the cached maps of blocks.3@none: the part before blocks.4 is not "
        in (said[1])
    )
    assert mapped.backbone == plain.backbone == "timm:test_vit"
    assert mapped.accuracy == plain.accuracy
    for one, other in zip(plain.history, mapped.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert "lora" not in plain.to_dict()


@pytest.mark.long
def test_the_command_tunes_and_what_it_saved_reopens(pictured, vit_folder, run_cli, tmp_path):
    line = ("finetune", pictured.images, "-o", tmp_path / "M", "--backbone", vit_folder, "--json")
    options = ("--tune", "last-4", "--epochs", 1, "--batch-size", 16, "--device", "cpu")
    done = run_cli(*line, *options)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["backbone"], record["tune"]) == ("timm:test_vit", "last-4")
    reopened, original = load_backbone(str(tmp_path / "M")), load_backbone(vit_folder)
    changed = {
        name
        for name, tensor in original.network.module.state_dict().items()
        if not torch.equal(reopened.network.module.state_dict()[name], tensor)
    }
    assert {name.split(".")[1] for name in changed if name.startswith("blocks.")} == set("2345")
    assert {name for name in changed if not name.startswith("blocks.")} == {
        "norm.weight",
        "norm.bias",
    }


@pytest.mark.long
def test_a_network_of_ones_own_is_tuned_and_stays_as_it_is(make_timm_backbone, pictured, tmp_path):
    backbone = make_timm_backbone("test_vit2", img_size=64)
    names = list(backbone.network.module.state_dict())
    digest = hash_state_dict(backbone.network.module.state_dict())
    run(pictured.images, tmp_path / "c.h5", backbone=backbone, layers="pre_logits,blocks.5:none")
    options = OPTIONS | {"tune": "last-2", "init_head": "random", "root": pictured.images}
    model = FineTuneClassifier(backbone, **options).fit(pictured.paths, pictured.labels)
    mapped = clone(model).set_params(cache=tmp_path / "c.h5", root="nowhere")
    mapped.fit(pictured.paths, pictured.labels)
    assert model.history_[-1].loss == pytest.approx(mapped.history_[-1].loss, rel=1e-3)
    assert list(model.network_) == list(mapped.network_) == names
    assert hash_state_dict(backbone.network.module.state_dict()) == digest
    assert model.head_.source.weights_sha256 != digest
    mapped.set_params(root=pictured.images)
    assert (model.predict(pictured.paths) == mapped.predict(pictured.paths)).mean() > 0.9
    with pytest.raises(CallError, match="has its weights and preprocessing: leave both options"):
        clone(model).set_params(weights="none").fit(pictured.paths, pictured.labels)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tf_efficientnet_lite0-imagenet", "mobilenetv2_100-imagenet"])
def test_real_weights_of_timm_are_tuned(folder, real, photos, tmp_path):
    options = OPTIONS | {"backbone": str(real / folder), "tune": "last-2", "epochs": 1}
    result = finetune(photos / "train", tmp_path / "M", **options)
    head, backbone = load_head(tmp_path / "M"), load_backbone(str(tmp_path / "M"))
    assert backbone.name == result.backbone == load_backbone(str(real / folder)).name
    assert backbone.weights_sha256 == head.source.weights_sha256
    assert backbone.preprocess == load_backbone(str(real / folder)).preprocess
    found = predict(head, photos / "train")
    assert set(np.unique(found.labels)) <= set(head.classes)
    run(photos / "train", tmp_path / "c.h5", backbone=str(tmp_path / "M"), device="cpu")
    assert evaluate(head, FeatureCache(tmp_path / "c.h5"))[0]["accuracy"] == result.accuracy

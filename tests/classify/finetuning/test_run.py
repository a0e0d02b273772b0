"""What fine-tuning makes is one file: a head, and a backbone. And the command that makes it."""

import csv
import inspect
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from classify import (
    FineTuneClassifier,
    evaluate,
    finetune,
    fit,
    load_head,
    predict,
    save_head,
)
from classify.cli.app import app
from classify.cli.networks import finetune as finetune_command
from classify.errors import CallError, HeadMismatchError, TooFewImagesError
from classify.finetuning.config import TrainConfig
from featurize import FeatureCache, load_backbone, run
from featurize.errors import BackboneError

OPTIONS = {"backbone": "seedling", "tune": "stage4", "epochs": 1, "batch_size": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def tuned(pictured, tmp_path_factory):
    """The file, and what `finetune` said."""
    path = tmp_path_factory.mktemp("tuned") / "M.head"
    return path, finetune(pictured.images, path, **OPTIONS)


@pytest.fixture(scope="module")
def tuned_cache(tuned, pictured):
    path = tuned[0].with_name("tuned.h5")
    run(pictured.images, path, backbone=str(tuned[0]), device="cpu")
    return path


@pytest.fixture
def called():
    """The command, in this process: status, stdout, stderr."""

    def call(*arguments):
        found = CliRunner().invoke(app, ["finetune", *map(str, arguments)])
        return found.exit_code, found.stdout, found.stderr

    return call


def words(options: dict) -> list[str]:
    return [word for k, v in options.items() for word in (f"--{k.replace('_', '-')}", str(v))]


# --- a head --------------------------------------------------------------------------------


@pytest.mark.long
def test_what_was_trained_is_what_predicts(tuner, pictured, tmp_path):
    for classifier in ("linear", "mlp"):
        model = tuner(classifier=classifier).fit(pictured.paths, pictured.labels)
        network = {name: tensor.numpy() for name, tensor in model.network_.items()}
        save_head(model.head_, tmp_path / "M", network)
        found = predict(load_head(tmp_path / "M"), pictured.images, top=3)
        assert found.paths == pictured.paths
        assert (found.labels[:, 0] == model.predict(pictured.paths)).all()
        expected = np.sort(model.predict_proba(pictured.paths))[:, ::-1]
        assert np.allclose(found.values, expected, atol=1e-4)


def test_the_record_says_what_was_done(tuned, pictured):
    _, made = tuned
    record = made
    assert (record.strategy, record.tune, record.classifier) == ("finetune", "stage4", "linear")
    assert (record.n_train, record.n_validation, record.n_test) == (43, 5, 12)
    assert record.accuracy == pytest.approx(
        (made.predictions.predicted == made.predictions.truth).mean()
    )
    assert record.accuracy > 0.6
    assert record.accuracy_ci[0] < record.accuracy <= record.accuracy_ci[1]
    assert made.notices == ["labels: 3 classes from folder level 1"]
    json.dumps(record.to_dict(), allow_nan=False)
    assert made.head.record == record.to_dict()
    assert made.record is made  # as it was called when the result was two classes


def test_options_have_names_and_one_default_each():
    """Function, estimator and command agree; what is misspelt is refused."""
    defaults = TrainConfig()
    assert TrainConfig.from_options(FineTuneClassifier()) == defaults
    given = inspect.signature(finetune).parameters
    command = inspect.signature(finetune_command).parameters
    for name, parameter in inspect.signature(FineTuneClassifier).parameters.items():
        if name not in ("backbone", "root", "classifier"):
            assert given[name].default == command[name].default == parameter.default, name
    scratch = TrainConfig.from_options(FineTuneClassifier(weights="none"), from_scratch=True)
    assert (scratch.learning_rate, scratch.batch_norm) == (1e-3, "trained")
    with pytest.raises(TypeError, match="epoch"):
        finetune("images", "M", **{"epoch": 3})


def test_it_may_be_called_anything(tuned, pictured, tmp_path, monkeypatch):
    shutil.copy(tuned[0], tmp_path / "M")
    monkeypatch.chdir(tmp_path)
    assert load_backbone("M").weights_sha256 == load_backbone(str(tuned[0])).weights_sha256
    assert len(predict(load_head("M"), pictured.images).paths) == 60


def test_saved_again_it_takes_its_network_along(tuned, tmp_path):
    save_head(load_head(tuned[0]), tmp_path / "again")
    one, other = load_file(tuned[0]), load_file(tmp_path / "again")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load_head(tmp_path / "again").network == tmp_path / "again"


# --- a backbone ----------------------------------------------------------------------------


def test_its_cache_serves_its_head(tuned, tuned_cache, pictured):
    path, made = tuned
    head, cache = load_head(path), FeatureCache(tuned_cache)
    assert cache.extractor.backbone == "seedling"
    assert cache.extractor.weights_sha256 == head.source.weights_sha256
    found, notices = evaluate(head, cache)
    assert found["n_test"] == made.n_test
    assert found["accuracy"] == made.accuracy
    assert any("48 images are left out: the head was trained on them" in text for text in notices)
    from_images, from_cache = predict(head, pictured.images), predict(head, tuned_cache)
    assert (from_images.labels == from_cache.labels).all()
    with pytest.raises(HeadMismatchError, match="weights_sha256 is"):
        evaluate(head, pictured.cache)


@pytest.mark.long
def test_heads_are_trained_on_it(tuned, tuned_cache, pictured, tmp_path):
    head, record = fit(tuned_cache)
    assert record.accuracy > 0.6
    save_head(head, tmp_path / "h")
    with pytest.raises(CallError, match=r"came from the weights file M\.head: give it with --weig"):
        predict(load_head(tmp_path / "h"), pictured.images)
    assert len(predict(head, pictured.images, weights=str(tuned[0])).paths) == 60
    again = finetune(pictured.images, tmp_path / "M2", cache=tuned_cache, tune="last", epochs=1)
    assert again.backbone == "seedling"
    assert again.images_run < 2 * 48  # it started from the cache


def test_a_head_alone_is_no_backbone(pictured, tmp_path):
    save_head(fit(pictured.cache)[0], tmp_path / "h")
    with pytest.raises(BackboneError, match="is a head alone, with no network in it"):
        load_backbone(str(tmp_path / "h"))
    with pytest.raises(BackboneError, match="is a head alone"):
        run(pictured.images, tmp_path / "c.h5", backbone=str(tmp_path / "h"))


def test_a_network_that_was_altered_is_refused(tuned, pictured, tmp_path):
    from safetensors import safe_open

    with safe_open(tuned[0], "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tuned[0])
    tensors["network.stem.0.0.weight"][0, 0, 0, 0] += 1e-3
    save_file(tensors, tmp_path / "M", metadata)
    with pytest.raises(BackboneError, match="is damaged: its network is not the one"):
        load_backbone(str(tmp_path / "M"))
    with pytest.raises(BackboneError, match="is damaged"):
        predict(load_head(tmp_path / "M"), pictured.images)


# --- the command ---------------------------------------------------------------------------


def test_retraining_with_a_classifier_of_choice(called, pictured, tmp_path):
    options = OPTIONS | {"tune": "all", "classifier": "mlp", "weights": "none"}
    options |= {"output": tmp_path / "M", "epochs": 1}
    status, out, err = called(pictured.images, "--json", *words(options))
    assert status == 0, err
    record = json.loads(out)
    assert (record["strategy"], record["classifier"], record["epochs"]) == ("retrain", "mlp", 1)
    assert "weights random" in err
    assert "epoch 1 of 1: validation" in err
    assert load_head(tmp_path / "M").head == "mlp"
    assert [path.name for path in tmp_path.iterdir()] == ["M"]


@pytest.mark.long
def test_a_table_with_splits_and_a_broken_image(called, pictured, tmp_path):
    shutil.copytree(pictured.images, tmp_path / "images")
    (tmp_path / "images" / pictured.paths[0]).write_bytes(b"no image")
    parts = ["train", "train", "train", "val", "test"]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["path", "label", "split"],
                *zip(pictured.paths, pictured.labels, parts * 12, strict=True),
            ]
        )
    options = OPTIONS | {"labels": tmp_path / "t.csv", "output": tmp_path / "M"}
    status, _, err = called(tmp_path / "images", *words(options))
    assert status == 0, err
    assert f"note: {pictured.paths[0]} is left out: not an image" in err
    head = load_head(tmp_path / "M")
    counts = [head.record[name] for name in ("n_train", "n_validation", "n_test")]
    assert counts == [35, 12, 12]
    seen = head.trained_on(FeatureCache(pictured.cache).column("sha256"))
    assert (seen == [part != "test" for part in parts * 12])[1:].all()


@pytest.mark.long
def test_bad_input_is_refused_before_training(called, pictured, tmp_path):
    (tmp_path / "one.csv").write_text("path,label\n" + "".join(f"{p},x\n" for p in pictured.paths))
    (tmp_path / "gone.csv").write_text("path,label\nno.png,a\n7/none.png,b\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    M = {"output": tmp_path / "M"}
    for options, message in (
        ({"labels": tmp_path / "one.csv"}, "at least two classes"),
        ({"labels": tmp_path / "gone.csv"}, "2 of 2 images of .* are not in .*'7/none.png'"),
        ({"max_time": "soon"}, "a time is written as 90s, 30m or 1h30m, not 'soon'"),
        ({"device": "cuda:9"}, "use --device cpu|CUDA devices here"),
        ({"cache": tmp_path / "none.h5"}, "none.h5"),
        ({"output": tmp_path / "folder"}, "it is a folder"),
        ({"output": tmp_path / "photo.jpg"}, "exists and is not a head"),
        ({"output": tmp_path / "no" / "M"}, "there is no folder"),
        ({"backbone": "seedlin"}, "did you mean 'seedling'"),
        ({"learning_rate": 1e30}, "Lower --learning-rate"),
        ({"tune": "last-5"}, "seedling has 4 stages, so --tune is last-1 to last-4, or all"),
        ({"lora": 8}, "beside linear layers, and what is tuned has none"),
        ({"lora": 0}, "the rank of --lora is 1 or more, not 0"),
    ):
        status, out, err = called(pictured.images, *words(OPTIONS | M | options))
        assert (status, out) == (2, ""), (options, err)
        last = next(text for text in err.splitlines() if text.startswith("error: "))
        assert "Traceback" not in err
        assert re.search(message, last), (options, last)
    status, _, err = called(tmp_path / "nowhere", *words(OPTIONS | M | {"cache": pictured.cache}))
    assert status == 2
    assert "does not exist" in err
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"
    assert not (tmp_path / "M").exists()


def test_a_class_that_cannot_be_read_at_all(pictured, tmp_path):
    shutil.copytree(pictured.images, tmp_path / "images")
    for path in (tmp_path / "images" / "7").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(
        TooFewImagesError, match=r"no image of class '7' .* can be read \(7/.*not an im"
    ):
        finetune(tmp_path / "images", tmp_path / "M", **OPTIONS)


def test_without_test_images_there_is_no_test_accuracy(pictured, tmp_path):
    made = finetune(pictured.images, tmp_path / "M", test_size=0, cache=pictured.cache, **OPTIONS)
    assert made.accuracy is None
    assert made.n_test == 0
    assert any("no test images" in text for text in made.notices)


@pytest.mark.slow
def test_squeezenet_from_cached_maps(photos, squeezenet_weights, tmp_path):
    given = {"backbone": "squeezenet1_1", "weights": str(squeezenet_weights), "device": "cpu"}
    cached = {**given, "layers": "last,features.8:none"}
    run(photos / "train", tmp_path / "c.h5", **cached)
    options = {**given, "tune": "features.9", "epochs": 2, "batch_size": 4, "augment": "none"}
    plain = finetune(photos / "train", tmp_path / "M", **options)
    said = []
    mapped = finetune(
        photos / "train", tmp_path / "N", cache=tmp_path / "c.h5", say=said.append, **options
    )
    assert any("from the cached maps of features.8@none" in text for text in said)
    assert mapped.accuracy == plain.accuracy
    for one, other in zip(plain.history, mapped.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["validation"] == other["validation"]

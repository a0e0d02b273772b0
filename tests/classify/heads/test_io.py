"""Saved heads: one file, no pickle, the same predictions; anything else is refused."""

import dataclasses
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import skops.io
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from classify import fit, load_head, predict, save_head
from classify.data.features import FeatureRows
from classify.errors import CallError, HeadFileError, HeadMismatchError, OutputError
from classify.heads.registry import HEADS
from classify.labels.table import LabelTable
from featurize.errors import UnknownLayerError


@pytest.fixture(scope="module")
def saved(cache, table, tmp_path_factory):
    path = tmp_path_factory.mktemp("heads") / "digit.head"
    head, _ = fit(cache, table, layer="coarse", prepare="standardise")
    save_head(head, path)
    return path


def parts(path):
    with safe_open(path, "np") as file:
        return load_file(path), dict(file.metadata())


@pytest.mark.parametrize("name", [*HEADS, "sklearn.naive_bayes:GaussianNB"])
@pytest.mark.parametrize("labels", ["table", "parity"])
@pytest.mark.parametrize("layer", ["coarse", "joined"])
def test_a_loaded_head_is_the_one_that_was_saved(cache, request, tmp_path, name, labels, layer):
    head, record = fit(cache, request.getfixturevalue(labels), name, layer)
    save_head(head, tmp_path / "h")
    loaded = load_head(tmp_path / "h")
    X = FeatureRows.from_cache(cache, record.layer.split("+"), np.arange(600)).to_array()
    assert np.array_equal(loaded.scores(X), head.scores(X))
    assert loaded.decision_function(X).shape == ((600,) if labels == "parity" else (600, 10))
    assert (loaded.predict(X) == head.predict(X)).all()
    proba = loaded.predict_proba(X)
    assert np.allclose(proba.sum(axis=1), 1)
    assert (np.array(loaded.classes)[proba.argmax(axis=1)] == loaded.predict(X)).all()


def test_what_could_not_be_loaded_again_is_not_saved(cache, table, tmp_path):
    head, _ = fit(cache, table, "sklearn.tree:DecisionTreeClassifier")
    with pytest.raises(OutputError, match=r"cannot be saved: it holds sklearn\.tree"):
        save_head(head, tmp_path / "h")
    assert list(tmp_path.iterdir()) == []


def test_scores_that_nothing_calibrates_are_no_probabilities(cache):
    table = LabelTable("t", "t.csv", cache.paths[:3], ["a", "b", "c"])
    with pytest.raises(CallError, match="has scores but no probabilities"):
        fit(cache, table, "ridge")[0].predict_proba(np.zeros((1, 16)))


@pytest.mark.long
def test_everything_that_matters_comes_back(cache, table, saved):
    head = fit(cache, table, layer="coarse", prepare="standardise")[0]
    loaded = load_head(saved)
    for name in ("head", "classes", "settings", "temperature", "task", "source"):
        assert getattr(loaded, name) == getattr(head, name)
    assert loaded.record["accuracy"] == head.record["accuracy"]
    assert loaded.trained_on(cache.column("sha256")).sum() == 480
    assert "softmax-lda on coarse, 10 classes" in repr(loaded)


@pytest.mark.parametrize("network", [None, {"weight": np.ones(3, np.float32)}])
def test_how_images_become_square_comes_back(saved, tmp_path, network):
    head = load_head(saved)
    assert "fit" not in json.loads(parts(saved)[1]["preprocess"])
    preprocess = dataclasses.replace(head.source.preprocess, fit="border")
    source = dataclasses.replace(head.source, preprocess=preprocess)
    save_head(dataclasses.replace(head, source=source), tmp_path / "h", network)
    assert load_head(tmp_path / "h").source == source


def test_the_file_is_safetensors_with_readable_metadata(saved, cache):
    arrays, metadata = parts(saved)
    of_doubt = ["class_means", "inverse_scale", "mean", "precision", "variances", "vectors"]
    model = ["coef", "intercept", "mean", "scale", "seen"]
    assert sorted(arrays) == sorted([*model, *(f"novelty.{name}" for name in of_doubt)])
    assert metadata["format"] == "headgraft-head"
    assert metadata["version"] == "1.2"
    assert json.loads(metadata["doubt"])["coverage"] == 0.9
    assert json.loads(metadata["backbone"]) == "pixels"
    assert json.loads(metadata["weights_sha256"]) == "ab" * 32
    assert json.loads(metadata["preprocess"]) == cache.extractor.preprocess
    (layer,) = json.loads(metadata["layers"])
    printed = cache.layers["coarse"].fingerprint
    assert (layer["name"], layer["dim"], layer["fingerprint"]) == ("coarse", 16, printed)


def test_features_of_another_width_are_refused(saved):
    with pytest.raises(CallError, match=r"shape \(n, 16\), not \(3, 64\)"):
        load_head(saved).predict(np.zeros((3, 64)))
    with pytest.raises(CallError, match=r"not \(16,\)"):
        load_head(saved).predict(np.zeros(16))


def test_a_head_fits_its_cache_and_no_other(saved, cache, make_cache, tmp_path, digits):
    head = load_head(saved)
    head.check_against(cache)
    coarse = np.zeros((2, 16), np.float32)
    other = make_cache(
        tmp_path / "other.h5",
        {"coarse": coarse},
        backbone="resnet50",
        preprocess={**head.source.preprocess, "resize": 9, "crop": 7},
    )
    with pytest.raises(HeadMismatchError) as caught:
        head.check_against(other)
    for words in (
        "backbone is pixels in the head, resnet50 in the cache",
        "preprocess.crop is 8 in the head, 7 in the cache",
        "preprocess.resize is 8 in the head, 9 in the cache",
    ):
        assert words in str(caught.value)
    assert "weights_sha256" not in str(caught.value)
    with pytest.raises(UnknownLayerError):
        head.check_against(make_cache(tmp_path / "no.h5", {"stem": coarse}))


def test_only_the_fingerprint_differing_is_still_a_mismatch(saved, cache):
    head = load_head(saved)
    (layer,) = head.source.layers
    source = dataclasses.replace(head.source, layers=(dataclasses.replace(layer, fingerprint="g"),))
    with pytest.raises(
        HeadMismatchError, match=r"coarse fingerprint is g in the head, [0-9a-f]{12}"
    ):
        dataclasses.replace(head, source=source).check_against(cache)


def set_array(name, change):
    return lambda arrays, metadata: arrays.__setitem__(name, change(arrays[name]))


def set_entry(name, value):
    return lambda arrays, metadata: metadata.__setitem__(name, value)


def set_layers(**values):
    def change(arrays, metadata):
        (layer,) = json.loads(metadata["layers"])
        metadata["layers"] = json.dumps([layer | values])

    return change


def with_nan(array):
    return np.where(np.arange(array.size).reshape(array.shape) == 3, np.nan, array)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (set_entry("format", "else"), "no format entry of ours"),
        (set_entry("version", "2.0"), r"version '2\.0' is unknown.*upgrade"),
        (set_entry("version", "x"), "version 'x' is unknown"),
        (lambda a, m: m.pop("classes"), "classes is missing"),
        (set_entry("classes", '["a", "b"]'), r"coef is F64 of shape \(10, 16\), not.*\(2, 16\)"),
        (set_entry("classes", '["a", "a"]'), "classes is not what it should be"),
        (set_entry("classes", '["a", 1]'), "classes is not what it should be"),
        (set_entry("classes", "[" * 100_000), "is not a head, or is damaged"),
        (set_entry("settings", '{"C": NaN}'), "settings is not what it should be"),
        (set_entry("settings", "[]"), "settings is not what it should be"),
        (set_entry("temperature", "-1"), "temperature is not what it should be"),
        (set_entry("temperature", "1" + "0" * 400), "is not a head, or is damaged"),
        (set_entry("probabilistic", "1"), "probabilistic is not what it should be"),
        (set_array("seen", lambda a: a.astype(np.int32)), "not one of 64-bit numbers"),
        (lambda a, m: a.pop("seen"), "which images it was trained on"),
        (set_entry("layers", "[]"), "layers is not what it should be"),
        (set_entry("layers", '[{"name": "x"}]'), "layers is not what it should be"),
        (set_entry("record", "3"), "record is not what it should be"),
        (set_layers(dtype=">f8"), "layers is not what it should be"),
        (set_layers(name="\ud800"), "layers is not what it should be"),
        (set_entry("classes", json.dumps(["x" * 200_000, *"123456789"])), "classes is not what"),
        (set_entry("classes", '["\\ud800", "b"]'), "classes is not what it should be"),
        (set_entry("settings", '{"C": 1, "C": 2}'), "a name is there twice"),
        (set_entry("backbone", "3"), "backbone is not what it should be"),
        (set_array("mean", lambda a: a[:-1]), r"mean is F64 of shape \(15,\)"),
        (set_array("coef", with_nan), "coef is not finite"),
        (set_array("coef", lambda a: a.astype(np.int32)), "coef is I32"),
        (set_array("scale", lambda a: a * 0), "scale is not positive"),
        (lambda a, m: a.pop("scale"), "holds the arrays"),
        (lambda a, m: a.update(code=np.zeros(1)), "holds the arrays"),
    ],
)
def test_a_tampered_head_is_refused(saved, tmp_path, tamper, message):
    arrays, metadata = parts(saved)
    tamper(arrays, metadata)
    path = tmp_path / "tampered.head"
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, metadata)
    with pytest.raises(HeadFileError, match=message) as caught:
        load_head(path)
    assert "tampered.head" in str(caught.value)


@pytest.mark.parametrize("name", ["head", "coef"])
def test_a_header_that_says_something_twice_is_refused(saved, tmp_path, name):
    whole = saved.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    known = json.loads(whole[8 : 8 + length])
    entry = json.dumps(known.get(name, "x"))
    before = b'{"__metadata__":{' if name == "head" else b"{"
    after = before + f'"{name}":{entry},'.encode()
    header = whole[8 : 8 + length].rstrip(b" ").replace(before, after, 1)
    header = header.ljust(-(-len(header) // 8) * 8)
    data = len(header).to_bytes(8, "little") + header + whole[8 + length :]
    (tmp_path / "h").write_bytes(data)
    with pytest.raises(HeadFileError, match="twice"):
        load_head(tmp_path / "h")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "value"), [("scale", 1e-45), ("coef", 3e38)])
def test_scores_beyond_numbers_are_refused(saved, cache, tmp_path, name, value):
    arrays, metadata = parts(saved)
    arrays[name] = np.full_like(arrays[name], value)
    save_file(arrays, tmp_path / "h", metadata)
    with pytest.raises((HeadFileError, CallError), match=r"too small to divide|not finite numbers"):
        predict(load_head(tmp_path / "h"), cache.path)


def test_a_long_name_of_a_class_costs_its_length_once(saved, cache, tmp_path):
    arrays, metadata = parts(saved)
    metadata["classes"] = json.dumps(["x" * 131_072, *"123456789"])
    save_file(arrays, tmp_path / "h", metadata)
    found = predict(load_head(tmp_path / "h"), cache.path, top=10)
    assert found.labels.nbytes == 600 * 10 * 8


class Bomb:
    def __reduce__(self):
        return (open, ("gone-off", "w"))


def with_object(saved, path, data):
    arrays, metadata = parts(saved)
    arrays = {"seen": arrays["seen"], "skops": np.frombuffer(data, np.uint8)}
    save_file(arrays, path, metadata)
    return path


def zipped(**files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.mark.long
def test_objects_that_are_not_scikit_learns_are_never_built(saved, tmp_path, monkeypatch):
    """skops would build them where it is told to trust them; nobody tells it."""
    monkeypatch.chdir(tmp_path)
    foreign = Pipeline([("odd", FunctionTransformer(os.system))])
    for data, message in (
        (skops.io.dumps(foreign), "which is not loaded from a file"),
        (pickle.dumps(Bomb()), "is not a head, or is damaged"),
        (zipped(schema="{}"), "is not a head, or is damaged"),
        (zipped(**{"schema.json": b"0" * 1_200_000_000}), "unpacks to more than"),
        (skops.io.dumps(LogisticRegression()), "does not belong to its classes"),
    ):
        with pytest.raises(HeadFileError, match=message):
            load_head(with_object(saved, tmp_path / "h", data))
    assert not (tmp_path / "gone-off").exists()


def test_an_object_of_another_width_is_refused(cache, table, saved, tmp_path):
    head, _ = fit(cache, table, "knn", "fine")
    data = skops.io.dumps(head.scorer.estimator)
    with pytest.raises(HeadFileError, match="does not belong to its layers"):
        load_head(with_object(saved, tmp_path / "h", data))


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\xff" * 64, b"{}" * 50])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(HeadFileError, match="is not a head, or is damaged"):
        load_head(path)


def test_every_cut_of_a_head_file_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(HeadFileError):
            load_head(tmp_path / "cut")


def test_missing_folder_and_oversized_heads_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="make one with `classify fit`"):
        load_head(tmp_path / "none")
    with pytest.raises(HeadFileError, match="not a head"):
        load_head(tmp_path)
    with open(tmp_path / "big", "wb") as file:
        file.truncate((4 << 30) + 1)  # sparse
    with pytest.raises(HeadFileError, match="over 4 GB"):
        load_head(tmp_path / "big")


def test_saving_replaces_a_head_and_nothing_else(saved, cache, table, tmp_path):
    head = load_head(saved)
    for other in (cache.path, table, tmp_path, "/dev/null"):
        with pytest.raises(OutputError, match=r"is not a head; give another -o|is a folder"):
            save_head(head, other)
    with pytest.raises(OutputError, match="there is no folder"):
        save_head(head, tmp_path / "none" / "h")
    target = tmp_path / "h"
    for task in ("one", "two"):
        save_head(dataclasses.replace(head, task=task), target)
        assert load_head(target).task == task
    link = tmp_path / "link"
    link.symlink_to(target)
    save_head(head, link)
    assert link.is_symlink()
    assert load_head(target).task == "digit"
    assert cache.verify() == []


def test_a_failed_save_leaves_the_old_head_and_no_litter(saved, tmp_path, monkeypatch):
    head = load_head(saved)
    target = tmp_path / "h"
    save_head(head, target)
    before = target.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*h: No space left"):
        save_head(head, target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["h"]

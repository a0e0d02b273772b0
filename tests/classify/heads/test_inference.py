"""A saved head at work: on a cache, on images, and scored on what it has not seen."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from classify import evaluate, fit, predict, save_head
from classify.errors import CallError, HeadMismatchError
from classify.labels.table import LabelTable
from featurize import FeatureCache, run
from featurize.errors import CacheReplacedError


@pytest.fixture(scope="module")
def world(tmp_path_factory, digits):
    """Images of two folders, their cache by the seedling, and a head on two of its layers."""
    home = tmp_path_factory.mktemp("world")
    for k, (pixels, digit) in enumerate(zip(*digits, strict=True)):
        if digit < 2:
            path = home / "images" / ("one" if digit else '=zero, "o"') / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels.reshape(8, 8) * 255).astype(np.uint8)).save(path)
    run(home / "images", home / "c.h5", backbone="seedling", layers="stage2,stage3:max")
    head, record = fit(home / "c.h5", layer="joined")
    return home, head, record


@pytest.mark.long
def test_a_cache_and_its_images_give_the_same(world):
    home, head, _ = world
    from_cache, from_images = predict(head, home / "c.h5"), predict(head, home / "images")
    assert from_cache.paths == from_images.paths
    assert (from_cache.labels == from_images.labels).all()
    assert np.allclose(from_cache.values, from_images.values, atol=1e-4)
    truth = [path.split("/")[0] for path in from_cache.paths]
    assert (from_cache.labels[:, 0] == truth).mean() > 0.95


def test_one_image(world):
    home, head, _ = world
    image = next((home / "images" / "one").iterdir())
    found = predict(head, image, top=5)
    assert found.paths == [image.name]
    assert found.labels.shape == (1, 2)
    assert found.labels[0, 0] == "one"
    assert found.values.sum() == pytest.approx(1)


@pytest.mark.long
def test_a_cache_that_is_overwritten_meanwhile_is_an_error(world, tmp_path):
    """As `cp` does it: the same file, the bytes of another."""
    home, head, _ = world
    cache = FeatureCache(shutil.copyfile(home / "c.h5", tmp_path / "c.h5"))
    fit(cache)
    other = tmp_path / "other.h5"
    run(home / "images", other, backbone="seedling", layers="stage2,stage3:max")
    assert other.stat().st_size == (tmp_path / "c.h5").stat().st_size
    (tmp_path / "c.h5").write_bytes(other.read_bytes())
    for work in (lambda: fit(cache), lambda: evaluate(head, cache)):
        with pytest.raises(CacheReplacedError, match="open it again"):
            work()


@pytest.mark.slow
def test_a_split_that_tears_groups_is_not_scored(world, run_cli, tmp_path):
    home, head, _ = world
    save_head(head, tmp_path / "h")
    paths = FeatureCache(home / "c.h5").paths
    rows = [(p, p.split("/")[0], "same", ("train", "test")[k % 2]) for k, p in enumerate(paths)]
    with open(tmp_path / "torn.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group", "split"), *rows])
    for verb in (
        ("evaluate", tmp_path / "h", home / "c.h5"),
        ("finetune", home / "images", "-o", tmp_path / "net", "--backbone", "seedling"),
    ):
        done = run_cli(*verb, "--labels", tmp_path / "torn.csv")
        assert done.returncode == 2, done.stderr
        assert "the split tears 1 of 1 groups apart" in done.stderr


def test_csv_is_quoted(world):
    home, head, _ = world
    out = io.StringIO()
    predict(head, home / "c.h5", top=2).write_csv(out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    titles = ["path", "label", "probability", "label_2", "probability_2", "set", "unknown"]
    assert list(rows[0]) == titles
    assert {row["label"] for row in rows} == {"one", '=zero, "o"'}


@pytest.mark.slow
def test_failed_images_are_said(world, run_cli, tmp_path):
    from classify import save_head

    _, head, _ = world
    save_head(head, tmp_path / "h")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    Image.new("L", (9, 9)).save(tmp_path / "images" / "fine.png")
    done = run_cli("predict", tmp_path / "h", tmp_path / "images", "--json")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert [row["path"] for row in found["predictions"]] == ["fine.png"]
    assert found["failures"] == {"broken.png": "not an image"}
    assert "broken.png: not an image; no label" in done.stderr


def test_other_weights_are_refused_before_any_image_is_read(world, tmp_path):
    from dataclasses import replace

    home, head, _ = world
    other = replace(head, source=replace(head.source, weights_sha256="0" * 64))
    with pytest.raises(HeadMismatchError, match="are not those that this head was trained on"):
        predict(other, home / "images")
    from_file = replace(head, source=replace(head.source, weights="mine.safetensors"))
    with pytest.raises(CallError, match=r"came from the weights file mine\.safetensors"):
        predict(from_file, home / "images")
    with pytest.raises(CallError, match="at least one label"):
        predict(head, home / "c.h5", top=0)
    with pytest.raises(FileNotFoundError):
        predict(head, tmp_path / "nowhere")


def test_images_it_was_trained_on_are_left_out(world):
    home, head, record = world
    found, notices = evaluate(head, home / "c.h5")
    assert found["n_test"] == record.n_test
    assert found["accuracy"] == record.accuracy
    assert any(f"{record.n_train} images are left out" in notice for notice in notices)


def test_results_unpack_and_name_their_parts(world):
    home, head, _ = world
    fitted = fit(home / "c.h5")
    again, record = fitted
    assert fitted.head is again
    assert fitted.notices == list(again.notices)
    assert fitted.to_dict() == record.to_dict()
    evaluation = evaluate(head, home / "c.h5")
    found, notices = evaluation
    assert evaluation.to_dict() == found == evaluation.metrics
    assert evaluation.notices == notices


def test_labels_it_does_not_know_count_as_wrong(world):
    home, head, _ = world
    paths = predict(head, home / "c.h5").paths
    labels = predict(head, home / "c.h5").labels[:, 0].tolist()
    mixed = [label if k % 2 else "new" for k, label in enumerate(labels)]
    found, notices = evaluate(head, home / "c.h5", LabelTable("t", "t.csv", paths, mixed))
    assert 0 < found["accuracy"] < 1
    assert any("does not know, counted as wrong: new" in notice for notice in notices)
    strange = LabelTable("t", "t.csv", paths, ["new"] * len(paths))
    with pytest.raises(CallError, match="no label that this head knows, but new"):
        evaluate(head, home / "c.h5", strange)
    seen = LabelTable("t", "t.csv", paths, ["one"] * len(paths), ["train"] * len(paths))
    with pytest.raises(CallError, match="leaves no images"):
        evaluate(head, home / "c.h5", seen)


@pytest.mark.long
@pytest.mark.parametrize("decode", ["fast", "fastest"])
def test_a_head_on_fast_decoding_predicts_with_it(decode, tmp_path):
    """Large photographs, decoded at reduced size: the head says so, and predicts as its cache."""
    rng = np.random.default_rng(0)
    for k in range(24):
        path = tmp_path / "images" / ("dark" if k % 2 else "light") / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 0 if k % 2 else 128
        coarse = Image.fromarray(rng.integers(low, low + 128, (6, 8, 3), dtype=np.uint8))
        coarse.resize((800, 600), Image.Resampling.BICUBIC).save(path, quality=90)
    run(tmp_path / "images", tmp_path / "c.h5", backbone="seedling", decode=decode)
    head, _ = fit(tmp_path / "c.h5")
    assert head.source.preprocess["decode"] == decode
    from_cache = predict(head, tmp_path / "c.h5")
    from_images = predict(head, tmp_path / "images")
    assert np.allclose(from_cache.values, from_images.values, atol=1e-6)


@pytest.mark.slow
def test_predictions_replace_predictions_and_nothing_else(world, run_cli, tmp_path):
    home, head, _ = world
    save_head(head, tmp_path / "h")
    shutil.copy(home / "c.h5", tmp_path / "c.h5")
    (tmp_path / "labels.csv").write_text("path,label\na,b\n")
    (tmp_path / "note.txt").write_text("path,label,probability of rain\n")
    (tmp_path / "age.csv").write_text("path,number\na,1\n")
    (tmp_path / "link.csv").symlink_to("labels.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in ("h", "c.h5", "labels.csv", "note.txt", "age.csv", "link.csv", "pipe.csv"):
        done = run_cli("predict", tmp_path / "h", tmp_path / "c.h5", "-o", tmp_path / name)
        assert done.returncode == 2, name
        assert "exists and is not a table of predictions" in done.stderr
        assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before
    done = run_cli("predict", tmp_path / "h", tmp_path / "c.h5", "-o", tmp_path / "no" / "x.csv")
    assert (done.returncode, "there is no folder" in done.stderr) == (2, True)

    target = tmp_path / "out.csv"
    for top in (1, 2):
        done = run_cli(
            "predict", tmp_path / "h", tmp_path / "c.h5", "-o", target, "--top", str(top)
        )
        assert done.returncode == 0, done.stderr
    titles = "path,label,probability,label_2,probability_2,set,unknown\n"
    assert target.read_text().startswith(titles)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.long
def test_an_input_is_never_written_over(world, run_cli, tmp_path):
    home, head, _ = world
    save_head(head, tmp_path / "h")
    done = run_cli("predict", tmp_path / "h", home / "c.h5", "-o", tmp_path / "a.csv")
    assert done.returncode == 0, done.stderr
    os.link(tmp_path / "a.csv", tmp_path / "b.csv")  # the same file under another name
    given = (tmp_path / "h", home / "c.h5", "--weights", tmp_path / "a.csv")
    done = run_cli("predict", *given, "-o", tmp_path / "b.csv")
    assert done.returncode == 2
    assert "is not a table of predictions" in done.stderr


@pytest.mark.long
def test_standard_output_by_its_name_is_standard_output(world, run_cli, tmp_path):
    home, head, _ = world
    save_head(head, tmp_path / "h")
    plain = run_cli("predict", tmp_path / "h", home / "c.h5")
    named = run_cli("predict", tmp_path / "h", home / "c.h5", "-o", "/dev/stdout")
    assert plain.returncode == named.returncode == 0
    assert named.stdout == plain.stdout


@pytest.mark.long
def test_a_large_crop_is_said_before_the_work(world, tmp_path):
    home, head, _ = world
    large = replace(head.source, preprocess=replace(head.source.preprocess, crop=1040))
    image, said = next((home / "images" / "one").iterdir()), []
    with pytest.raises(HeadMismatchError):  # the features are others
        predict(replace(head, source=large), image, say=said.append)
    assert "images of 1,040 x 1,040 pixels, which is 22 times the work" in said[0]

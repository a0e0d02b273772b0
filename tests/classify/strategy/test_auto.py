"""`classify auto`: one command from images to the advised strategy, carried out and compared."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from classify import load_head
from classify.strategy import auto as auto_module
from featurize.errors import CallError, RunInterruptedError
from featurize.text import parse_duration

ADVICE = {
    ("small", "similar"): "linear-probe",
    ("small", "different"): "truncated-probe",
    ("large", "similar"): "finetune",
    ("large", "different"): "retrain",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ninety handwritten zeros, ones and twos, and a text file that calls itself an image."""
    root = tmp_path_factory.mktemp("auto") / "photos"
    digits = load_digits()
    for k in [k for k in range(len(digits.target)) if digits.target[k] < 3][:90]:
        path = root / str(digits.target[k]) / f"{k:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 15).astype("uint8")).save(path)
    (root / "0" / "broken.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def auto(folder, command):
    """Run it with one epoch; the cache is made once."""

    def run(output: str, *more: str) -> dict:
        line = ["auto", folder, "-o", folder.parent / output, "--cache", folder.parent / "c.h5"]
        line += ["--backbone", "seedling", "--epochs", "1", "--json", *more]
        done = command("classify", *line)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize(
    ("situation", "strategy"),
    [
        pytest.param(*case, marks=() if case[1] == "linear-probe" else pytest.mark.slow)
        for case in ADVICE.items()
    ],
)
def test_each_strategy_is_carried_out_and_saved(auto, folder, command, situation, strategy):
    size, similarity = situation
    told = auto(strategy, "--size", size, "--similarity", similarity)
    assert (told["strategy"], told["size"], told["similarity"]) == (strategy, *situation)
    tried = [one["strategy"] for one in told["candidates"]]
    assert tried[0] == strategy
    assert {"linear-probe", "truncated-probe"} <= set(tried)
    trained = {"finetune", "retrain"} & set(tried)
    assert trained == ({strategy} if size == "large" else set())
    assert told["accuracy"] == told["candidates"][0]["accuracy"]
    assert told["epochs"] == (1 if size == "large" else 0)
    assert (told["rows"], told["failed"]) == (91, 1)
    # The others were scored on the same images.
    assert all(one["behind"] is not None for one in told["candidates"][1:])
    saved = folder.parent / strategy
    assert (load_head(saved).network is not None) == (size == "large")
    done = command("classify", "predict", saved, folder)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 90
    right = sum(row["path"].split("/")[0] == row["label"] for row in rows) / 90
    assert right > (0.5 if size == "large" else 0.8)  # one epoch on sixty images


@pytest.mark.parametrize("similarity", ["similar", "different"])
def test_a_probe_of_either_kind_takes_what_validates_best(folder, similarity):
    place = folder.parent
    options = {"backbone": "seedling", "cache": place / "c.h5", "similarity": similarity}
    found = auto_module.auto(folder, place / similarity, **options)
    kind = {"similar": "linear-probe", "different": "truncated-probe"}[similarity]
    mine = [one for one in found.candidates if one.strategy == kind]
    assert "stage1+stage2+stage3+stage4" in [one.what for one in mine]
    assert found.chosen.strategy == kind
    saved = load_head(place / similarity)
    assert saved.record["layer"] == found.chosen.what
    assert saved.record["accuracy"] == found.chosen.accuracy


@pytest.mark.slow
def test_time_left_tries_the_others_and_leaves_no_file_of_theirs(auto, folder):
    told = auto("timed", "--max-time", "5m")
    tried = [one["strategy"] for one in told["candidates"]]
    assert {"finetune", "retrain"} <= set(tried)
    assert sorted(p.name for p in folder.parent.glob("timed*")) == ["timed"]


def test_where_training_does_not_fit_the_best_probe_is_saved(folder, monkeypatch, tmp_path):
    """The advised network is left, which is said, and nothing better is hidden."""

    def never_fits(**_):
        raise RunInterruptedError("no epoch fits into the time limit")

    monkeypatch.setattr("classify.finetuning.run.finetune", never_fits)
    options = {"backbone": "seedling", "cache": folder.parent / "c.h5", "size": "large"}
    said = []
    found = auto_module.auto(folder, tmp_path / "m", max_seconds=900, say=said.append, **options)
    assert found.advice.strategy in ("finetune", "retrain")
    assert found.chosen.strategy.endswith("-probe")
    assert load_head(tmp_path / "m").record["layer"] == found.chosen.what
    (told,) = [notice for notice in found.notices if "no epoch fits" in notice]
    assert told.startswith(f"{found.advice.strategy} was left, and a probe is saved instead: ")
    assert any("until the network is trained" in sentence for sentence in said)
    with pytest.raises(RunInterruptedError):
        auto_module.auto(folder, tmp_path / "m", **options)


def test_labels_are_refused_before_any_image_is_embedded(folder, command, tmp_path):
    for images, message in (
        (folder / "1", "lies directly in the image folder itself"),
        (folder, "--labels-level 1` for the labels '0', '1', '2'"),
    ):
        level = ("--labels-level", 3) if images == folder else ()
        line = ("auto", images, "-o", tmp_path / "m", "--backbone", "seedling", *level)
        done = command("classify", *line)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "one" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "cat" / "1.png")
    done = command("classify", "auto", tmp_path / "one", "-o", tmp_path / "m")
    assert done.returncode == 2
    assert "has the label 'cat'; a head needs at least two classes. Add images" in done.stderr


@pytest.mark.long
def test_small_classes_and_empty_folders_are_said(folder, tmp_path):
    for name, count in (("0", 9), ("1", 4), ("forgotten", 0)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for path in sorted((folder / name).glob("0*.png"))[:count]:
            shutil.copy(path, tmp_path / "images" / name)
    said = []
    found = auto_module.auto(
        tmp_path / "images", tmp_path / "m", backbone="seedling", say=said.append
    )
    assert "no image lies in 'forgotten': no class, unless images are added" in said
    assert any("fewer than 10 images to learn from ('0', '1'; the" in n for n in found.notices)


@pytest.mark.slow
def test_ctrl_c_keeps_the_cache_and_ends_with_three(folder):
    place = folder.parent / "stopped"
    line = [Path(sys.executable).with_name("classify"), "auto", folder, "-o", place]
    line += ["--backbone", "seedling", "--size", "large", "--epochs", "1000"]
    process = subprocess.Popen(
        line,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what is in the background deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    limit = time.monotonic() + 120
    while not Path(f"{place}.part").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "Traceback" not in said
    assert not place.exists()
    assert Path(f"{place}.h5").exists()


def test_bad_input_is_said_before_any_work(folder, command, tmp_path):
    for more, message in (
        (["--size", "huge"], "small or large"),
        (["--max-time", "soon"], "90s, 30m or 1h30m"),
        (["--backbone", "seedlin"], "seedling"),
    ):
        done = command("classify", "auto", folder, "-o", tmp_path / "m", *more)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


def test_times_as_people_write_them():
    assert [parse_duration(t) for t in ("90", "90s", "1.5m", "1h30m", None)] == [
        *(90.0, 90.0, 90.0, 5400.0),
        None,
    ]
    for text in ("", "1x", "m", "30m1"):
        with pytest.raises(CallError, match="1h30m"):
            parse_duration(text)

"""Duplicates across the split and wrong labels, planted in real images: the command lists them."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SEEDS = (0, 1, 2)


def plant_labels(labels, seed, wrong=20) -> tuple[dict[str, str], set[str]]:
    """Give some images, drawn from all of both sides, another of the labels that there are."""
    rng = np.random.default_rng(seed)
    names = sorted(set(labels.values()))
    chosen = {sorted(labels)[i] for i in rng.choice(len(labels), wrong, replace=False)}
    given = dict(labels)
    for path in sorted(chosen):
        given[path] = str(rng.choice([name for name in names if name != labels[path]]))
    return given, chosen


def write(path, labels, split) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([name, label, split[name]] for name, label in labels.items())
    return path


@pytest.fixture(scope="module")
def digits_with_copies(tmp_path_factory, command, digits):
    """600 real digits, every fourth one tested on, and copies of three that are learnt from.

    Returns
    -------
    The cache, the right labels, the split, and each copy with what it is a copy of.
    """
    home = tmp_path_factory.mktemp("planted")
    (home / "images").mkdir()
    labels, split = {}, {}
    for i, (cells, digit) in enumerate(zip(*digits, strict=True)):
        name = f"{i:04}.png"
        Image.fromarray(np.uint8(255 * cells.reshape(8, 8))).save(home / "images" / name)
        labels[name], split[name] = str(digit), "test" if i % 4 == 0 else "train"
    copies = {f"copy {i}.png": f"{i:04}.png" for i in (1, 202, 403)}
    for copy, source in copies.items():
        labels[copy], split[copy] = labels[source], "test"
        shutil.copy(home / "images" / source, home / "images" / copy)
    # Another file of the same pixels.
    labels["saved again.bmp"], split["saved again.bmp"] = labels["0005.png"], "test"
    Image.open(home / "images" / "0005.png").save(home / "images" / "saved again.bmp")
    copies["saved again.bmp"] = "0005.png"
    done = command(
        "featurize", "run", home / "images", "-o", home / "c.h5",
        "--backbone", "seedling", "--layers", "auto",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home / "c.h5", labels, split, copies


def checks(run_cli, cache, table, *options) -> dict[str, list]:
    done = run_cli("compare", cache, "--labels", table, *options, "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["checks"][table.stem]


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_twenty_wrong_labels_of_600_digits_are_all_listed(
    digits_with_copies, run_cli, tmp_path, seed
):
    cache, labels, split, _ = digits_with_copies
    given, wrong = plant_labels(labels, seed)
    table = write(tmp_path / "digit.csv", given, split)
    found = checks(run_cli, cache, table, "--heads", "lda", "--layers", "joined")
    suspects = {one["path"]: one for one in found["suspects"]}
    assert wrong <= set(suspects)
    assert len(suspects) <= 30
    assert found["suspects_expected"]["wrong"] == pytest.approx(20, abs=4)
    assert len(wrong & set(list(suspects)[:20])) >= 15
    assert sum(suspects[path]["proposed"] == labels[path] for path in wrong) >= 15
    for path in wrong:
        assert suspects[path]["given"] == given[path]
    assert {split[path] for path in wrong} == {"train", "test"}


@pytest.mark.long
def test_copies_on_the_other_side_of_the_split_are_all_listed(
    digits_with_copies, run_cli, tmp_path
):
    cache, labels, split, copies = digits_with_copies
    table = write(tmp_path / "digit.csv", labels, split)
    found = checks(run_cli, cache, table, "--heads", "lda", "--layers", "joined")
    pairs = {one["test"]: one for one in found["twins"]}
    assert {path: pairs[path]["train"] for path in copies} == copies
    assert {path for path, one in pairs.items() if one["same_bytes"]} == {
        path for path in copies if path.startswith("copy")
    }
    assert len(pairs) <= len(copies) + 2
    # On one side they are nobody's business.
    together = {path: "train" if path in copies else side for path, side in split.items()}
    found = checks(
        run_cli, cache, write(tmp_path / "digit.csv", labels, together), "--heads", "lda"
    )
    assert not set(copies) & {one["test"] for one in found["twins"]}


@pytest.mark.long
def test_both_are_told_in_words(digits_with_copies, run_cli, tmp_path):
    cache, labels, split, _ = digits_with_copies
    given, wrong = plant_labels(labels, 0)
    table = write(tmp_path / "digit.csv", given, split)
    done = run_cli("compare", cache, "--labels", table, "--heads", "lda", "--layers", "joined")
    told = " ".join(done.stdout.split())
    assert "digit: 3 of 154 test images are, byte for byte, among those learnt from" in told
    assert "'copy 1.png' = '0001.png'" in told
    assert "of 604 labels are worth a look" in told
    assert any(f"{path!r} ({given[path]!r}, looks like {labels[path]!r})" in told for path in wrong)
    assert "--json lists them all" in told


@pytest.fixture(scope="module")
def photos_with_copies(cifar10, tmp_path_factory, command):
    """500 training and 100 test images of each class of CIFAR-10, and copies across the split."""
    home = tmp_path_factory.mktemp("photos")
    labels, split = {}, {}
    for side, most in (("train", 500), ("test", 100)):
        for kind in sorted((cifar10 / side).iterdir()):
            (home / "images" / side / kind.name).mkdir(parents=True)
            for image in sorted(kind.iterdir())[:most]:
                name = image.relative_to(cifar10).as_posix()
                (home / "images" / name).hardlink_to(image)
                labels[name], split[name] = kind.name, side
    copies = {}
    for i, kind in enumerate(sorted({*labels.values()})):
        source = f"train/{kind}/{i:04}.jpg"
        for name in (f"test/{kind}/the same.jpg", f"test/{kind}/saved again.jpg"):
            labels[name], split[name], copies[name] = kind, "test", source
        shutil.copy(home / "images" / source, home / "images" / f"test/{kind}/the same.jpg")
        again = io.BytesIO()
        Image.open(home / "images" / source).save(again, "JPEG", quality=85)
        (home / "images" / f"test/{kind}/saved again.jpg").write_bytes(again.getvalue())
    line = ("run", home / "images", "-o", home / "c.h5", "--backbone", "seedling")
    done = command("featurize", *line, "--layers", "auto")
    assert done.returncode == 0, done.stderr
    return home / "c.h5", labels, split, copies


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_of_6000_photographs_too(photos_with_copies, run_cli, tmp_path, seed):
    """A head that is right six times in ten finds some of them, in a short list."""
    cache, labels, split, copies = photos_with_copies
    given, wrong = plant_labels(labels, seed)
    table = write(tmp_path / "kind.csv", given, split)
    found = checks(run_cli, cache, table, "--heads", "softmax,lda", "--layers", "joined")
    pairs = {one["test"]: one["train"] for one in found["twins"]}
    same = {path for path in copies if path.endswith("the same.jpg")}
    assert {path: pairs.get(path) for path in same} == {path: copies[path] for path in same}
    assert sum(pairs.get(path) == source for path, source in copies.items()) >= len(copies) - 1
    listed = [one["path"] for one in found["suspects"]]
    print(
        seed, len(listed), len(wrong & set(listed)), [listed.index(p) for p in wrong if p in listed]
    )
    assert len(wrong & set(listed)) >= 4
    assert len(listed) <= 0.01 * len(labels)
    expected = found["suspects_expected"]
    assert expected["wrong"] <= len(listed) <= 10 * expected["wrong"]
    assert expected["left_out"] > 5 * len(listed)

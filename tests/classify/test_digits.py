"""The recipe of the sample data: real digits, three tables, nothing rewritten without need."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

RECIPE = Path(__file__).parents[2] / "data" / "digits" / "make.py"


def make(out: Path) -> str:
    command = [sys.executable, str(RECIPE), str(out)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits")
    assert "1,797 digits" in make(out)
    return out


def test_images_are_the_digits_scaled_to_255(out):
    digits = load_digits()
    paths = sorted((out / "images").iterdir())
    assert [path.name for path in paths] == [f"{i:04}.png" for i in range(1797)]
    for path, cells in list(zip(paths, digits.images, strict=True))[::100]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            assert (np.asarray(image) == np.round(cells * 255 / 16)).all()


def test_tables_label_every_image(out):
    target = load_digits().target
    expected = {
        "digit": [str(d) for d in target],
        "parity": [("even", "odd")[d % 2] for d in target],
        "loop": ["loop" if d in (0, 6, 8, 9) else "open" for d in target],
    }
    for task, labels in expected.items():
        with open(out / f"{task}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["label"] for row in rows] == labels
        assert [row["path"] for row in rows] == [f"{i:04}.png" for i in range(1797)]


def test_running_again_touches_nothing_but_repairs(out):
    files = [path for path in out.rglob("*") if path.is_file()]
    damaged = out / "images" / "0003.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in files if path != damaged}
    make(out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert damaged.read_bytes() == whole
    assert len(files) == 1800

"""One set of drawn images as a single cache and as a cache of parts, both made by the command."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("ant", "bee", "cow")
PER_CLASS = {"train": 16, "test": 6}
COUNT = len(CLASSES) * sum(PER_CLASS.values())
PART_ROWS = 15
LAYERS = ("--layers", "stage3,stage4")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Noisy patches whose classes overlap, so that heads and layers differ; nobody writes to it."""
    rng = np.random.default_rng(5)
    means = rng.integers(60, 200, (len(CLASSES), 4, 4, 3))
    home = tmp_path_factory.mktemp("source") / "photos"
    for split, count in PER_CLASS.items():
        for name, mean in zip(CLASSES, means, strict=True):
            (home / split / name).mkdir(parents=True)
            for i in range(count):
                coarse = np.clip(mean + rng.normal(0, 70, mean.shape), 0, 255).astype(np.uint8)
                picture = Image.fromarray(coarse).resize((40, 36 + i % 5))
                path = home / split / name / f"{i:03}.jpg"
                picture.save(path)
                os.utime(path, (1e9, 1e9))  # of a young file nobody knows whether it is unchanged
    return home


@pytest.fixture(scope="session")
def run(command) -> Callable[..., str]:
    """Call ``featurize run``, which ends with a code; what it said, without a traceback."""

    def run(source: Path, output: object, *options: object, code: int = 0) -> str:
        line = ("run", source, "-o", output, "--engine", "eager", "--device", "cpu", *options)
        done = command("featurize", *line)
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said
        return said

    return run


@pytest.fixture(scope="session")
def home(photos, run, command, tmp_path_factory) -> Path:
    """Holds `single.h5`, `parts` and `joined.h5` of the same images; nobody writes to them."""
    home = tmp_path_factory.mktemp("caches")
    run(photos, home / "single.h5", "--backbone", "seedling", *LAYERS)
    rows = ("--part-rows", PART_ROWS)
    run(photos, f"{home / 'parts'}/", *rows, "--backbone", "seedling", *LAYERS)
    done = command("featurize", "join", home / "parts", "-o", home / "joined.h5")
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def own(home, photos, tmp_path) -> Path:
    """A copy of the images, as `photos`, and of the parts, as `parts`, to be changed."""
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(home / "parts", tmp_path / "parts")
    return tmp_path

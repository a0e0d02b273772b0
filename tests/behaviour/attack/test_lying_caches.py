"""Caches made to lie, and caches that are replaced under a reader: refused, and nothing opened."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from featurize import FeatureCache

from .lies import EITHER, REFUSED
from .starting import Starter
from .world import NETWORK, World, classes

QUICK = (
    *("external storage", "virtual", "layer on sha256", "offset 2^63", "fingerprint"),
    *("NUL in a path", "empty part", "recipe without end"),
)


@pytest.fixture(scope="module")
def sound(start: Starter, tmp_path_factory):
    """A cache of 18 images in three classes, with two layers."""
    home = tmp_path_factory.mktemp("sound")
    classes(home / "images", each=6)
    words = ("run", home / "images", "-o", home / "c.h5", *NETWORK, "--layers", "stage2,stage4")
    assert start("featurize", *words).code == 0
    return home / "c.h5"


def told(start: Starter, path, sound, refused: bool) -> None:
    before = path.read_bytes()
    for verb in ("info", "verify"):
        done = start("featurize", verb, path, hang=40)
        assert done.code in (0, 2), done.said
        assert "Traceback" not in done.err, done.said
        assert "unexpected" not in done.err, done.said
        if refused and verb == "verify":
            assert done.code == 2, done.said
            assert str(path) in done.out + done.err, done.said
    assert path.read_bytes() == before


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK)
def test_a_lie(start: Starter, sound, name, tmp_path):
    path = shutil.copy(sound, tmp_path / "c.h5")
    REFUSED[name](path)
    told(start, path, sound, refused=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REFUSED, *EITHER])
def test_every_lie(start: Starter, sound, name, tmp_path):
    path = shutil.copy(sound, tmp_path / "c.h5")
    (REFUSED | EITHER)[name](path)
    told(start, path, sound, name in REFUSED)
    before = path.read_bytes()
    for words in (
        ("featurize", "export", path, "-o", tmp_path / "x.npz"),
        ("classify", "fit", path, "-o", tmp_path / "h", "--head", "ncm"),
    ):
        done = start(*words, hang=40)
        assert done.code in (0, 2), done.said
        assert "Traceback" not in done.err, done.said
    if name in REFUSED and start("featurize", "info", path).code == 2:
        images = sound.with_name("images")
        done = start("featurize", "run", images, "-o", path, hang=40)
        assert done.code == 2, done.said
        assert path.read_bytes() == before, "it was written over"


# Replaced, or cut, while it is open

READER = """
import hashlib, json, os, sys, time
import numpy as np
from classify import ClassifyError
from featurize import FeatureCache, FeaturizeError
path, go = sys.argv[1:3]
cache = FeatureCache(path)
cache.status
early = cache.features("stage2", [0, 1, 2])
print("open", flush=True)
while not os.path.exists(go):
    time.sleep(0.005)
ways = {
    "rows": lambda: cache.features("stage4", [0, 3, 5]),
    "same layer": lambda: cache.features("stage2", [0, 1, 2]),
    "all": lambda: np.array(cache.features("stage4")),
    "sha256": lambda: cache.column("sha256"),
    "status": lambda: cache.status,
    "paths": lambda: np.array(cache.paths),
    "verify": lambda: np.array(cache.verify()),
}
found = {}
for name, way in ways.items():
    try:
        found[name] = hashlib.sha256(way().tobytes()).hexdigest()
    except (FeaturizeError, ClassifyError) as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def other(start: Starter, tmp_path_factory):
    """A cache of the same shape, of the same names, with other images."""
    home = tmp_path_factory.mktemp("other")
    classes(home / "images", each=6, side=12)
    words = ("run", home / "images", "-o", home / "c.h5", *NETWORK, "--layers", "stage2,stage4")
    assert start("featurize", *words).code == 0
    return home / "c.h5"


def overwrite(path, data: bytes) -> None:
    """What `cp NEW C.h5` does: the same file, other bytes."""
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(data)


WAYS = {
    "cp": lambda path, other: overwrite(path, other.read_bytes()),
    "rsync --inplace": lambda path, other: path.write_bytes(other.read_bytes()),
    "cut": lambda path, other: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path, other: os.truncate(path, 0),
    "a page short": lambda path, other: os.truncate(path, path.stat().st_size - 4096),
    "zeros": lambda path, other: overwrite(path, bytes(path.stat().st_size)),
    "renamed over": lambda path, other: os.replace(shutil.copy(other, f"{path}.new"), path),
    "removed": lambda path, other: path.unlink(),
}
SOON = {"cp", "cut", "renamed over"}


@pytest.mark.parametrize(
    "way",
    [pytest.param(w, marks=() if w in SOON else pytest.mark.slow, id=w) for w in WAYS],
)
def test_a_reader_never_takes_other_numbers(start: Starter, sound, other, way, tmp_path):
    path, code, go = tmp_path / "c.h5", tmp_path / "code.py", tmp_path / "go"
    shutil.copy(sound, path)
    code.write_text(READER)
    go.touch()
    whole = start(str(code), path, go)
    right = json.loads(whole.out.splitlines()[1])
    go.unlink()
    reader = start.start(str(code), path, go)
    while "open" not in reader.out and reader.poll() is None:
        time.sleep(0.005)
    WAYS[way](path, other)
    go.touch()
    done = reader.wait(30)
    assert done.code == 0, done.said  # not -7: SIGBUS
    found = json.loads(done.out.splitlines()[1])
    if way in ("renamed over", "removed"):  # the file that was opened is the old one still
        assert found == right
        return
    for name, value in found.items():
        assert value == right[name] or not value.islower(), f"{name}: other numbers"
    assert not found["rows"].islower(), "nothing was noticed"


@pytest.mark.parametrize("way", ["cp", "cut"])
def test_it_is_noticed_at_whatever_instant(start: Starter, sound, other, way, tmp_path):
    path, code = tmp_path / "c.h5", tmp_path / "code.py"
    shutil.copy(sound, path)
    code.write_text(
        "import sys, time\n"
        "from featurize import FeatureCache, FeaturizeError\n"
        "cache = FeatureCache(sys.argv[1])\n"
        "right = cache.features('stage4', [0, 3, 5]).tobytes()\n"
        "print('open', flush=True)\n"
        "end = time.monotonic() + 20\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        if cache.features('stage4', [0, 3, 5]).tobytes() != right:\n"
        "            sys.exit('other numbers')\n"
        "    except FeaturizeError as error:\n"
        "        print(type(error).__name__)\n"
        "        break\n"
    )
    reader = start.start(str(code), path)
    while "open" not in reader.out and reader.poll() is None:
        time.sleep(0.005)
    WAYS[way](path, other)
    done = reader.wait(30)
    assert done.code == 0, done.said
    assert len(done.out.split()) == 2, "nothing was noticed"


@pytest.mark.long
def test_the_world_is_sound(world: World, sound):
    """What is attacked here is sound to begin with."""
    assert FeatureCache(sound).verify() == []
    assert np.isfinite(FeatureCache(sound).features()).all()

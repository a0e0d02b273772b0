"""What every attack needs: commands that start at once, a seed that is said, a small world."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .starting import Starter
from .world import World, classes

SEED = int(os.environ.get("HEADGRAFT_ATTACK_SEED", "13"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What everything random here is drawn from; a test that fails says how to repeat it."""
    print(f"repeat: HEADGRAFT_ATTACK_SEED={SEED} pytest '{request.node.nodeid}'")
    return SEED


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The library that makes system calls fail; None where nothing compiles it."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    target = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    words = [compiler, "-O1", "-shared", "-fPIC", "-o", str(target), str(source), "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, shim: Path | None) -> Iterator[Starter]:
    """Starts both commands in milliseconds: see `starting.Starter`."""
    starter = Starter(tmp_path_factory.mktemp("said"), shim)
    yield starter
    starter.end()


@pytest.fixture(scope="session")
def world(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(start, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def taught(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images`` of three classes, their cache ``c.h5`` and a head ``h``."""
    home = tmp_path_factory.mktemp("taught")
    classes(home / "images", each=20)
    words = ("--backbone", "seedling", "--layers", "stage2,stage4", "--device", "cpu")
    assert start("featurize", "run", home / "images", "-o", home / "c.h5", *words).code == 0
    assert start("classify", "fit", home / "c.h5", "-o", home / "h").code == 0
    return home

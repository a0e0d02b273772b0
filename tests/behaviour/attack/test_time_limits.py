"""`--max-time` is kept from the start of the command to its end, whatever the command is at."""

import json
import time
from pathlib import Path

import pytest

from classify import load_head

from .starting import Starter
from .world import classes

TOLERANCE = 3.0  # seconds, beside other tests on the same cores
SEEDLING = ("--backbone", "seedling", "--device", "cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return classes(tmp_path_factory.mktemp("timed") / "images", each=40)


@pytest.mark.slow
def test_finetune_does_the_epochs_that_fit_and_saves(start: Starter, images, tmp_path):
    target = tmp_path / "m"
    line = ("finetune", images, "-o", target, *SEEDLING, "--max-time", "8s", "--json")
    ended = start("classify", *line, "--epochs", "100000", "--patience", "100000")
    assert ended.code == 0, ended.said
    assert ended.seconds < 8 + TOLERANCE, ended.said
    record = ended.json()
    assert 1 <= record["epochs"] < 100000
    assert f"no room for another epoch: {record['epochs']} of 100000 are done" in ended.err
    assert load_head(target).network is not None
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("limit", [0.001, pytest.param(1.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", ["auto", "finetune"])
def test_a_limit_in_which_nothing_can_be_done_is_kept_and_said(
    start: Starter, images, tmp_path, verb, limit
):
    line = (verb, images, "-o", tmp_path / "m", *SEEDLING, "--max-time", f"{limit}s")
    ended = start("classify", *line, "--batch-size", "1", "--epochs", "100000", "--json")
    assert ended.code == 3, ended.said
    assert ended.seconds < limit + TOLERANCE, ended.said
    assert "--max-time" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["auto", "finetune"])
def test_the_installed_command_keeps_it_with_all_that_it_imports(command, images, tmp_path, verb):
    for attempt in range(3):
        line = (verb, images, "-o", tmp_path / f"{attempt}", *SEEDLING, "--epochs", "100000")
        more = ("--size", "large") if verb == "auto" else ("--patience", "100000")
        began = time.monotonic()
        done = command("classify", *line, *more, "--max-time", "20s", "--json", fresh=True)
        seconds = time.monotonic() - began
        assert seconds < 20 + TOLERANCE, done.stderr
        assert done.returncode in (0, 3), done.stderr
        assert done.returncode == 3 or json.loads(done.stdout)["epochs"] >= 0

"""Folders made to catch who walks through them: links that multiply, lead out, or never end."""

import os
import subprocess
from pathlib import Path

import pytest

from .starting import Starter
from .world import NETWORK, draw

SECONDS = 30.0
SOUND = 5


@pytest.fixture
def folder(tmp_path):
    """A folder of a few sound pictures; removed afterwards without Python's recursion."""
    for k in range(SOUND):
        draw(tmp_path / "images" / f"{k}.png", k)
    yield tmp_path / "images"
    subprocess.run(["rm", "-rf", str(tmp_path / "images")], check=True)


def counted(start: Starter, folder: Path, *options: object, hang: float = SECONDS) -> int:
    """How many rows a run over the folder would have."""
    words = ("run", folder, "-o", folder.parent / "c.h5", *NETWORK, "--dry-run", "--json")
    done = start("featurize", *words, *options, hang=hang)
    assert done.code == 0, done.said
    assert "Traceback" not in done.err, done.said
    return int(done.json()["rows"])


def bomb(folder: Path, levels: int) -> None:
    """Each folder has two links to the next: 2^levels ways to one picture."""
    for k in range(levels):
        (folder / f"level{k}").mkdir()
        for name in "ab":
            (folder / f"level{k}" / name).symlink_to(folder / f"level{k + 1}")
    draw(folder / f"level{levels}" / "x.png", 99)


def test_a_bomb_of_links(start: Starter, folder):
    bomb(folder, 24)
    assert SOUND + 1 <= counted(start, folder) <= SOUND + 60


def test_a_bomb_of_links_that_is_followed(start: Starter, folder):
    bomb(folder, 24)
    assert SOUND + 1 <= counted(start, folder, "--follow") <= SOUND + 60


def test_links_do_not_lead_out(start: Starter, folder, tmp_path):
    """A downloaded folder must not bring every picture of the disk into a cache, or a report."""
    for k in range(3):
        draw(tmp_path / "private" / f"{k}.png", k)
    (folder / "out").symlink_to(tmp_path / "private")
    (folder / "all").symlink_to("/")
    (folder / "up").symlink_to("..")
    (folder / "self").symlink_to(".")
    assert counted(start, folder) == SOUND


def test_they_do_when_asked(start: Starter, folder, tmp_path):
    for k in range(3):
        draw(tmp_path / "private" / f"{k}.png", k)
    (folder / "out").symlink_to(tmp_path / "private")
    assert counted(start, folder, "--follow") == SOUND + 3


def test_folders_that_cannot_be_listed(start: Starter, folder):
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("/nowhere/at/all")
    (folder / "file.d").symlink_to(folder / "0.png")
    for options in (("--follow",), ()):
        if not options:  # followed, it leads to the whole disk
            (folder / "proc").symlink_to("/proc/self")
        words = ("run", folder, "-o", folder.parent / "c.h5", *NETWORK, "--dry-run", "--json")
        done = start("featurize", *words, *options, hang=SECONDS)
        assert done.code == 0, done.said
        assert int(done.json()["rows"]) >= SOUND


@pytest.mark.parametrize("depth", [1200, pytest.param(1900, marks=pytest.mark.slow)])
def test_a_deep_tree(start: Starter, folder, depth):
    path = str(folder)
    for _ in range(depth):
        path += "/d"
        os.mkdir(path)
    draw(Path(path) / "x.png", 99)
    assert counted(start, folder) == SOUND + 1
    done = start("featurize", "run", folder, "-o", folder.parent / "c.h5", *NETWORK)
    assert done.code == 0, done.said


def test_a_path_longer_than_any_may_be(start: Starter, folder):
    """The rest is done all the same, and it is said."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    done = start("featurize", "run", folder, "-o", folder.parent / "c.h5", *NETWORK, hang=SECONDS)
    assert done.code == 0, done.said
    assert "Traceback" not in done.err, done.said
    assert f"{SOUND:,} computed" in done.out, done.said


def test_a_folder_that_must_not_be_listed(start: Starter, folder):
    if os.getuid() == 0:
        pytest.skip("root may list every folder")
    (folder / "closed").mkdir(mode=0)
    assert counted(start, folder) == SOUND


@pytest.mark.slow
def test_the_whole_disk_does_not_come_along(start: Starter, folder):
    """Even when asked for everything else, /proc and /sys must not hang it."""
    (folder / "proc").symlink_to("/proc")
    (folder / "sys").symlink_to("/sys")
    words = ("run", folder, "-o", folder.parent / "c.h5", *NETWORK, "--dry-run", "--json")
    done = start("featurize", *words, hang=SECONDS)
    assert done.code == 0, done.said
    assert int(done.json()["rows"]) == SOUND

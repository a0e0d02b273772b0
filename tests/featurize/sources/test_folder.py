"""What a folder holds: odd trees, odd names, and globs."""

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurize import FeatureCache, run
from featurize.errors import CallError
from featurize.sources import folder as folder_source
from featurize.sources.listing import read_images
from featurize.sources.patterns import GlobFilter

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="PATH_MAX and /proc are Linux's")


@pytest.fixture
def folder(draw, tmp_path):
    return draw(tmp_path / "images", [f"{name}.png" for name in "abc"])


@pytest.fixture
def descend(folder):
    """So many folders, each in the one before, an image in the last: ``descend(1200, "d")``.

    They are removed again, since pytest could not: no path is ever long here.
    """
    leaf, made = (folder / "a.png").read_bytes(), []

    def descend(count, name):
        at = os.open(folder, os.O_RDONLY)
        for _ in range(count):
            os.mkdir(name, dir_fd=at)
            at = step(name, at)
        with open(os.open("deep.png", os.O_CREAT | os.O_WRONLY, dir_fd=at), "wb") as file:
            file.write(leaf)
        made.append((count, name, at))

    def step(name, at):
        inside = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        return inside

    yield descend
    for count, name, at in made:
        os.unlink("deep.png", dir_fd=at)
        for _ in range(count):
            at = step("..", at)
            os.rmdir(name, dir_fd=at)
        os.close(at)


# --- odd trees -----------------------------------------------------------------------------


def test_a_tree_deeper_than_pythons_stack(folder, descend, toy, tmp_path):
    descend(1200, "d")
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="2")
    assert (done.rows, done.failed) == (4, 0)
    assert FeatureCache(tmp_path / "c.h5").paths[-1] == "d/" * 1200 + "deep.png"


@LINUX
def test_a_path_longer_than_the_system_takes_costs_itself_alone(folder, descend, toy, tmp_path):
    descend(30, "d" * 200)
    said = []
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="2", say=said.append)
    assert (done.rows, done.failed) == (3, 0)
    (line,) = [line for line in said if "passed over" in line]
    assert "file name too long" in line
    assert len(line) < 1000
    assert folder_source.list_images(folder).unlisted[0].startswith("d" * 200)


@LINUX
def test_a_linked_folder_that_cannot_be_listed_costs_itself_alone(folder, toy, tmp_path):
    (folder / "process").symlink_to("/proc/self")
    said = []
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="2", say=said.append)
    assert done.rows == 3
    assert any("process" in line and "leads out" in line for line in said)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_fails_costs_itself_alone(code, folder, draw, monkeypatch):
    draw(folder / "broken", ["d.png", "e.png"])
    listed, words = os.scandir, os.strerror(code).lower()

    def failing(path):
        if os.fsencode(path).endswith(b"broken"):
            raise OSError(code, os.strerror(code), path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", failing)
    found = folder_source.list_images(folder)
    assert found.paths == ["a.png", "b.png", "c.png"]
    assert found.skipped == [f"passed over broken/: the folder cannot be listed: {words}"]
    assert found.unlisted == ("broken",)
    with pytest.raises(CallError, match=rf"cannot list .*broken: {words}"):
        folder_source.list_images(folder / "broken")


@pytest.mark.parametrize("follow", [False, True])
def test_a_bomb_of_links_is_as_large_as_it_looks(folder, follow):
    for k in range(24):
        (folder / f"{k}").mkdir()
        for name in "xy":
            (folder / f"{k}" / name).symlink_to(f"../{k + 1}")
    (folder / "24").mkdir()
    (folder / "24" / "d.png").write_bytes((folder / "a.png").read_bytes())
    found = folder_source.list_images(folder, follow=follow)
    assert found.paths == ["24/d.png", "a.png", "b.png", "c.png"]
    assert len(found.skipped) == 4  # three by name, the others by number
    assert "45 more" in found.skipped[-1]


def test_where_everything_is_passed_over_the_reason_is_given(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(folder / "a.png")
    with pytest.raises(CallError, match=r"no image in .*leads out of the folder; `--follow`"):
        folder_source.list_images(tmp_path / "links")


# --- odd names -----------------------------------------------------------------------------


@pytest.mark.slow
def test_names_are_utf8_whatever_the_locale(draw, tmp_path):
    """In the C locale, without UTF-8 mode, a rerun finds every image, and decodes a new one."""
    draw(tmp_path / "bílder", ["a.png", "ö/ä.png", "日本.png", "é.png"])
    line = [Path(sys.executable).with_name("featurize"), "run", tmp_path / "bílder"]
    line += ["-o", tmp_path / "c.h5", "--backbone", "seedling"]
    subprocess.run(line, capture_output=True, timeout=180, check=True)
    draw(tmp_path / "bílder", ["ü.png"], seed=1)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        line, env={**os.environ, **plain}, capture_output=True, timeout=180, check=False
    )
    assert (done.returncode, b"passed over" in done.stderr) == (0, False), done.stderr
    cache = FeatureCache(tmp_path / "c.h5")
    assert cache.paths == ["a.png", "é.png", "ö/ä.png", "ü.png", "日本.png"]
    assert cache.counts == {"ok": 5, "failed": 0, "pending": 0}


# --- globs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.png", "a.png", True),
        ("*.png", "x/y/a.png", True),  # without /, the name is enough
        ("*.png", "a.PNG", False),
        ("a.png", "x/a.png", True),
        ("x/*.png", "x/a.png", True),
        ("x/*.png", "x/y/a.png", False),  # * is no /
        ("x/*.png", "y/x/a.png", False),  # from the folder on
        ("x/**", "x/a.png", True),
        ("x/**", "x/y/z/a.png", True),
        ("x/**", "y/a.png", False),
        ("**/x/*", "x/a.png", True),  # no folder is any number too
        ("**/x/*", "u/v/x/a.png", True),
        ("**/x/**/*.png", "u/x/v/w/a.png", True),
        ("**/x/**/*.png", "u/v/w/a.png", False),
        ("**/a/**/a/**/b", "a/a/a/a/a/a/c", False),
        ("**", "x/a.png", True),
        ("x/?.png", "x/a.png", True),
        ("x?a.png", "x/a.png", False),
        ("[ab].png", "b.png", True),
        ("[!ab].png", "b.png", False),
        ("[*].png", "*.png", True),
        ("[*].png", "a.png", False),
        ("[a.png", "[a.png", True),  # a bracket that is never closed is a bracket
        ("*_mask*", "x/photo_mask_2.png", True),
        ("a.b", "aXb", False),
    ],
)
def test_what_a_pattern_matches(pattern, path, matches):
    assert GlobFilter(include=[pattern]).accepts(path) is matches
    assert GlobFilter(exclude=[pattern]).accepts(path) is not matches


def test_patterns_agree_with_all_ways_to_match(tmp_path):
    """Against a definition that tries everything, on all short paths and patterns."""

    def simple(pattern, path):
        if not pattern or not path:
            return not path and all(part == "**" for part in pattern)
        if pattern[0] == "**":
            return simple(pattern[1:], path) or simple(pattern, path[1:])
        return (pattern[0] in ("*", path[0])) and simple(pattern[1:], path[1:])

    for length in (2, 3, 4):
        for pattern in itertools.product(["a", "b", "*", "**"], repeat=length):
            taken = GlobFilter(["/".join(pattern)])
            for depth in (1, 2, 3, 4, 5):
                for path in itertools.product("ab", repeat=depth):
                    assert taken.accepts("/".join(path)) is simple(pattern, path), (pattern, path)


@pytest.mark.parametrize("pattern", ["", "/a", "a/", "a//b", "../a", "a/./b", "a\0", "x" * 5000])
def test_what_is_no_pattern(pattern, folder, tmp_path):
    for option in ("include", "exclude"):
        with pytest.raises(CallError, match=f"--{option}"):
            run(folder, tmp_path / "c.h5", **{option: [pattern]})
    assert not (tmp_path / "c.h5").exists()


def test_a_pattern_may_be_as_nasty_as_it_likes():
    nasty = GlobFilter(["*a" * 500 + "b", "/".join(["**", "a"] * 500) + "/b"])
    assert not nasty.accepts("a" * 255)
    assert not nasty.accepts("a/" * 1000 + "c")


@pytest.mark.slow
def test_a_run_takes_the_images_that_are_asked_for(draw, tmp_path, command):
    names = ["ants/1.png", "ants/imageNotFound.gif", "bees/2.png", "bees/2_mask.png", "raw/3.png"]
    draw(tmp_path / "images", names)
    line = ["featurize", "run", tmp_path / "images", "-o", tmp_path / "c.h5"]
    line += ["--backbone", "seedling"]
    exclude = ["--exclude", "imageNotFound.*", "--exclude", "*_mask.png", "--exclude", "raw/**"]
    done = command(*line, *exclude)
    assert done.returncode == 0, done.stderr
    assert FeatureCache(tmp_path / "c.h5").paths == ["ants/1.png", "bees/2.png"]
    checked = command("featurize", "verify", tmp_path / "c.h5", tmp_path / "images")
    assert (checked.returncode, checked.stdout.split()[-1]) == (0, "sound")

    done = command(*line, "--include", "bees/*", "--exclude", "no such thing")
    assert done.returncode == 2  # half of the rows
    assert "1 rows of" in done.stderr
    assert "ants/1.png" in done.stderr
    assert "--prune" in done.stderr
    done = command(*line, "--include", "bees/*", "--exclude", "no such thing", "--prune")
    assert done.returncode == 0, done.stderr
    assert "'no such thing' matches no image" in done.stderr
    assert FeatureCache(tmp_path / "c.h5").paths == ["bees/2.png", "bees/2_mask.png"]
    told = command("featurize", "info", tmp_path / "c.h5").stdout.splitlines()
    assert {"include   bees/*", "exclude   no such thing"} <= set(told)
    told = json.loads(command("featurize", "info", tmp_path / "c.h5", "--json").stdout)
    assert (told["include"], told["exclude"]) == (["bees/*"], ["no such thing"])


def test_where_no_image_is_left(folder):
    with pytest.raises(CallError, match=r"none of the 3 images .* is left by --include"):
        folder_source.list_images(folder, include=["*.jpg"])


def test_a_listing_says_how_it_was_made(folder):
    found = folder_source.list_images(folder, ["*.png"], ["b.*"], follow=True)
    assert found.paths == ["a.png", "c.png"]
    assert (found.include, found.exclude) == (("*.png",), ("b.*",))
    assert isinstance(found.source, folder_source.FolderSource)
    assert found.source.options.follow
    [read] = read_images(found, [1])
    assert (read.row, read.image.data) == (1, (folder / "c.png").read_bytes())

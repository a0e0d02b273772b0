"""What each kind of source means to the verbs: dry runs, options, selecting, removing."""

import json
import shutil

import pytest

import featurize
from featurize.errors import CallError

from .conftest import COUNT, LOCAL_KINDS
from .making import (
    LABELS,
    age,
    draw_images,
    read_keys,
    write_folder,
    write_parquet,
    write_shards,
    write_zip,
)


def list_tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_dry_run_writes_nothing(toy, toy_run, kinds, tmp_path, kind):
    source, before = kinds[kind], list_tree(kinds[kind].parent)
    estimate = toy_run(source, tmp_path / "c.h5", dry_run=True)
    assert (estimate.rows, estimate.to_compute) == (COUNT, COUNT)
    assert list(tmp_path.iterdir()) == []
    assert list_tree(source.parent) == before
    # Of a cache that is there, and lacks something.
    toy_run(source, tmp_path / "c.h5")
    (tmp_path / "c.h5.lock").unlink(missing_ok=True)
    before = list_tree(tmp_path)
    again = featurize.run(source, tmp_path / "c.h5", backbone=toy, layers="0,1", dry_run=True)
    assert (again.rows, again.to_compute) == (COUNT, COUNT)
    assert list_tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_a_dry_run_of_the_command(command, kinds, tmp_path, kind):
    line = ("run", kinds[kind], "-o", tmp_path / "c.h5", "--backbone", "seedling", "--dry-run")
    done = command("featurize", *line, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["to_compute"] == COUNT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_verify_compares_with_the_source(made, kinds, kind):
    assert featurize.verify(made[kind], kinds[kind]) == []


@pytest.mark.parametrize("kind", ["zip", "shards", "parquet"])
def test_verify_finds_what_is_other_and_what_is_gone(made, pack, images, tmp_path, kind):
    """The cache of the images, beside a source of others."""
    names = list(images)
    others = {**images, names[5]: draw_images(1, seed=11)[f"{LABELS[0]}/000.jpg"]}
    source = pack(tmp_path)[kind]
    if kind == "shards":
        write_shards(source, others, 10)
    else:
        {"zip": write_zip, "parquet": write_parquet}[kind](source, others)
    key = "000000005" if kind == "parquet" else names[5].rpartition("/")[2]
    problems = featurize.verify(made[kind], source)
    assert [key in problem for problem in problems] == [True], problems


@pytest.mark.long
def test_verify_by_the_command(command, made, kinds):
    for kind in ("shards", "csv"):
        done = command("featurize", "verify", made[kind], kinds[kind], "--json")
        assert done.returncode == 0, done.stdout + done.stderr
    other = kinds["zip"]
    done = command("featurize", "verify", made["shards"], other)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("folder", {"column": "image"}),
        ("folder", {"split": "train"}),
        ("folder", {"component": "jpg"}),
        ("folder", {"root": "."}),
        ("folder", {"scratch": "."}),
        ("tar", {"column": "image"}),
        ("tar", {"root": "."}),
        ("shards", {"scratch": "."}),
        ("zip", {"column": "image"}),
        ("zip", {"split": "train"}),
        ("zip", {"component": "jpg"}),
        ("parquet", {"component": "jpg"}),
        ("parquet", {"root": "."}),
        ("saved", {"scratch": "."}),
        ("csv", {"component": "jpg"}),
        ("jsonl", {"scratch": "."}),
    ],
)
def test_options_that_mean_nothing_are_refused(toy_run, kinds, tmp_path, kind, options):
    (name,) = options
    with pytest.raises(CallError, match=f"--{name} means nothing for a"):
        toy_run(kinds[kind], tmp_path / "c.h5", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("parquet", {"column": "imag"}),
        ("parquet", {"column": "label"}),
        ("csv", {"column": "nosuch"}),
        ("csv", {"split": "train"}),
        ("saved", {"split": "nosuch"}),
        ("shards", {"split": "train"}),
        ("shards", {"component": "png"}),
        ("csv", {"root": "/nosuch"}),
    ],
)
def test_options_that_name_what_is_not_there(toy_run, kinds, tmp_path, kind, options):
    with pytest.raises(CallError) as caught:
        toy_run(kinds[kind], tmp_path / "c.h5", **options)
    assert next(iter(options.values())) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_globs_select_keys(toy_run, kinds, tmp_path, kind):
    if kind == "parquet":
        glob, count = "*00000000?", 10
    elif kind == "saved":
        glob, count = "train/data-00000*/*", COUNT // 2
    else:
        glob, count = "*00?.jpg", 10
    done = toy_run(kinds[kind], tmp_path / "c.h5", include=[glob])
    assert done.rows == count, read_keys(tmp_path / "c.h5")
    assert toy_run(kinds[kind], tmp_path / "c.h5").computed == 0
    assert len(read_keys(tmp_path / "c.h5")) == count  # the globs are the cache's
    more = toy_run(kinds[kind], tmp_path / "c.h5", include=["**"])
    assert (more.rows, more.computed) == (COUNT, COUNT - count)
    fewer = toy_run(kinds[kind], tmp_path / "c.h5", exclude=[glob], include=[], prune=True)
    assert (fewer.rows, fewer.computed) == (COUNT - count, 0)


def test_a_glob_of_a_shard_selects_the_shard(toy_run, kinds, tmp_path):
    done = toy_run(kinds["shards"], tmp_path / "c.h5", include=["shard-000001.tar"])
    assert (done.rows, read_keys(tmp_path / "c.h5")[0][:16]) == (10, "shard-000001.tar")


def test_a_shard_that_is_gone_is_not_believed(toy_run, images, tmp_path):
    shards, cache = write_shards(tmp_path / "shards", images, 8), tmp_path / "c.h5"
    toy_run(shards, cache)
    before = cache.read_bytes()
    (shards / "shard-000002.tar").unlink()
    with pytest.raises(CallError, match="--prune"):
        toy_run(shards, cache)
    assert cache.read_bytes() == before
    pruned = toy_run(shards, cache, prune=True)
    assert (pruned.rows, pruned.computed) == (16, 0)
    table = (tmp_path / "c.h5.labels.csv").read_text().splitlines()
    assert len(table) == 17


def test_a_shard_that_cannot_be_read_is_not_gone(toy_run, images, tmp_path):
    """It is there, damaged: its rows must not vanish without a word."""
    shards, cache = write_shards(tmp_path / "shards", images, 8), tmp_path / "c.h5"
    toy_run(shards, cache)
    before = cache.read_bytes()
    (shards / "shard-000001.tar").write_bytes(b"damaged" * 300)
    age(shards / "shard-000001.tar", seconds=60)
    with pytest.raises(CallError, match=r"shard-000001|--prune"):
        toy_run(shards, cache)
    assert cache.read_bytes() == before


def test_another_kind_where_the_source_was(toy_run, images, tmp_path):
    """Unpacked in its place: a folder of the name of the archive."""
    path, cache = tmp_path / "photos", tmp_path / "c.h5"
    write_shards(path, images, 12)
    toy_run(path, cache)
    shutil.rmtree(path)
    write_folder(path, images)
    moved = toy_run(path, cache)
    assert (moved.rows, moved.computed) == (COUNT, 0)
    assert read_keys(cache) == sorted(images)
    assert toy_run(path, cache).computed == 0


@pytest.mark.long
def test_info_says_what_the_source_is(command, made, kinds):
    words = {"tar": "tar", "zip": "zip", "parquet": "table", "csv": "list", "folder": "folder"}
    for kind, word in words.items():
        done = command("featurize", "info", made[kind], "--json")
        assert done.returncode == 0, done.stderr
        text = command("featurize", "info", made[kind]).stdout
        assert str(kinds[kind]) in text
        assert word in text or kind == "folder"

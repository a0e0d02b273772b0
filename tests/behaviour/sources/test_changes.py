"""Containers change: only what is new is computed, and every row is of its own image."""

import csv
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

import featurize
from featurize import FeatureCache

from .making import (
    LABELS,
    age,
    draw_images,
    hash_all,
    label_of,
    read_features,
    write_csv,
    write_folder,
    write_parquet,
    write_saved,
    write_shards,
    write_tar,
    write_zip,
)

COUNT = 20
NEW = f"{LABELS[0]}/new.jpg"
MORE = {f"{LABELS[i % 2]}/m{i}.jpg": d for i, d in enumerate(draw_images(5, 9).values())}


@pytest.fixture(scope="module")
def drawn():
    return draw_images(COUNT, seed=2)


@pytest.fixture(scope="module")
def other():
    """One image more."""
    return {NEW: draw_images(1, seed=3)[f"{LABELS[0]}/000.jpg"]}


@pytest.fixture(scope="module")
def reference(drawn, other, toy, tmp_path_factory):
    """The features of every image that the tests here know, by content."""
    home = tmp_path_factory.mktemp("reference")
    every = {**drawn, **other}
    every |= {f"altered/{Path(name).name}": alter(data) for name, data in drawn.items()}
    every |= {f"more/{Path(name).name}": data for name, data in MORE.items()}
    featurize.run(write_folder(home / "all", every), home / "c.h5", backbone=toy, layers="0")
    return read_features(home / "c.h5")


@pytest.fixture
def check(toy_run, reference, tmp_path):
    """Run; what was computed, when every row has the features and the label of its own image."""
    cache = tmp_path / "c.h5"

    def check(source, images, **options):
        done = toy_run(source, cache, **options)
        assert (done.rows, done.failed) == (len(images), 0)
        assert done.computed + done.reused == done.rows
        assert_rows_are_of(cache, images, reference)
        again = toy_run(source, cache)
        assert (again.computed, again.reused) == (0, len(images))
        assert_rows_are_of(cache, images, reference)
        return done.computed

    return check


def assert_rows_are_of(cache: Path, images, reference) -> None:
    """Compare the rows with the features of their contents, and the labels beside them."""
    found = read_features(cache)
    assert found.keys() == hash_all(images)
    for digest, features in found.items():
        np.testing.assert_allclose(features, reference[digest], rtol=1e-5, atol=1e-6)
    assert FeatureCache(cache).verify() == []
    assert_labels_are_of(cache, images)


def find_wrong_labels(cache: Path, images) -> list[str]:
    """Find the keys beside a cache that have another label than their image."""
    table = cache.with_name(f"{cache.name}.labels.csv")
    if not table.exists():
        return []
    label_by_digest = {hashlib.sha256(d).digest(): label_of(name) for name, d in images.items()}
    opened = FeatureCache(cache)
    digests = [row.tobytes() for row in opened.column("sha256")]
    wanted = {p: label_by_digest[d] for p, d in zip(opened.paths, digests, strict=True)}
    with table.open(newline="") as file:
        found = {row["path"]: row["label"] for row in csv.DictReader(file)}
    return [key for key in found if key in wanted and found[key] != wanted[key]]


def assert_labels_are_of(cache: Path, images) -> None:
    """Compare the labels beside a cache with those of the images, by content."""
    table = cache.with_name(f"{cache.name}.labels.csv")
    if table.exists():
        assert find_wrong_labels(cache, images) == []
        lines = table.read_text().splitlines()[1:]
        assert [line.partition(",")[0] for line in lines] == FeatureCache(cache).paths


def alter(data: bytes) -> bytes:
    """Another content of the same size."""
    mark = data.index(b"2:")
    return data[:mark] + b"x:" + data[mark + 2 :]


# --- archives --------------------------------------------------------------------------------


def test_a_shard_that_is_touched(check, drawn, tmp_path):
    shards = write_shards(tmp_path / "shards", drawn, 7)
    assert check(shards, drawn) == COUNT
    age(shards / "shard-000001.tar", seconds=60)
    assert check(shards, drawn) == 0


def test_a_shard_that_is_appended(check, drawn, other, tmp_path):
    shards = write_shards(tmp_path / "shards", drawn, 7)
    assert check(shards, drawn) == COUNT
    write_shards(shards, MORE, 5, first=8)
    assert check(shards, {**drawn, **MORE}) == len(MORE)
    # And one that comes before all others.
    write_tar(shards / "a.tar", other)
    assert check(shards, {**drawn, **MORE, **other}) == 1


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("same_size", [False, True])
def test_a_member_with_other_bytes(check, drawn, other, tmp_path, kind, same_size):
    path = tmp_path / f"all.{kind}"
    write = write_tar if kind == "tar" else write_zip
    assert check(write(path, drawn), drawn) == COUNT
    name = list(drawn)[4]
    changed = {**drawn, name: alter(drawn[name]) if same_size else other[NEW]}
    age(write(path, changed), seconds=60)
    assert check(path, changed) == 1


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_in_another_order(check, drawn, tmp_path, kind):
    path = tmp_path / f"all.{kind}"
    write = write_tar if kind == "tar" else write_zip
    assert check(write(path, drawn), drawn) == COUNT
    age(write(path, dict(reversed(drawn.items()))), seconds=60)
    assert check(path, drawn) == 0


def test_a_shard_that_is_renamed(check, drawn, tmp_path):
    shards = write_shards(tmp_path / "shards", drawn, 7)
    assert check(shards, drawn) == COUNT
    (shards / "shard-000000.tar").rename(shards / "z.tar")
    assert check(shards, drawn) == 0


def test_a_single_tar_that_is_renamed(check, drawn, tmp_path):
    write_tar(tmp_path / "one.tar", drawn)
    assert check(tmp_path / "one.tar", drawn) == COUNT
    (tmp_path / "one.tar").rename(tmp_path / "two.tar")
    assert check(tmp_path / "two.tar", drawn) == 0


# --- tables: images are known by the number of their row --------------------------------------


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_rows_are_reversed(check, drawn, tmp_path, form):
    import shutil

    path, reverse = tmp_path / f"all.{form}", dict(reversed(drawn.items()))
    if form == "parquet":
        assert check(write_parquet(path, drawn), drawn) == COUNT
        write_parquet(path, reverse, later=60)
    else:
        assert check(write_saved(path, drawn), drawn) == COUNT
        shutil.rmtree(path)
        for file in write_saved(path, reverse).rglob("*.arrow"):
            age(file, seconds=60)
    assert check(path, drawn) == 0


@pytest.mark.long
def test_rows_are_sorted_by_a_column(check, drawn, tmp_path):
    path = tmp_path / "all.parquet"
    assert check(write_parquet(path, drawn), drawn) == COUNT
    write_parquet(path, dict(sorted(drawn.items())), later=60)
    assert check(path, drawn) == 0
    write_parquet(path, dict(sorted(drawn.items(), key=lambda item: item[1][-9:])), later=120)
    assert check(path, drawn) == 0


@pytest.mark.long
def test_a_row_comes_in_front_and_goes_again(check, drawn, other, tmp_path):
    path = tmp_path / "all.parquet"
    assert check(write_parquet(path, drawn), drawn) == COUNT
    write_parquet(path, {**other, **drawn}, later=60)
    assert check(path, {**drawn, **other}) == 1
    write_parquet(path, drawn, later=120)
    assert check(path, drawn) == 0


def test_a_row_is_replaced_while_others_move(check, drawn, other, tmp_path):
    """The count stays: rows are completed where they are, or the cache grows."""
    path = tmp_path / "all.parquet"
    assert check(write_parquet(path, drawn), drawn) == COUNT
    kept = dict(list(drawn.items())[1:])
    write_parquet(path, {**kept, **other}, later=60)
    assert check(path, {**kept, **other}) == 1


def test_two_rows_of_many_change_places(toy_run, tmp_path):
    """Fewer than a hundredth of the rows: those of one small table among several."""
    images, cache = draw_images(240, seed=5, side=8), tmp_path / "c.h5"
    names = list(images)
    write_parquet(tmp_path / "t" / "a.parquet", {n: images[n] for n in names[:2]})
    write_parquet(tmp_path / "t" / "b.parquet", {n: images[n] for n in names[2:]})
    assert toy_run(tmp_path / "t", cache).computed == 240
    before = read_features(cache)
    write_parquet(tmp_path / "t" / "a.parquet", {n: images[n] for n in names[1::-1]}, later=60)
    assert toy_run(tmp_path / "t", cache).computed <= 2
    after = read_features(cache)
    assert after.keys() == before.keys()
    for digest, features in before.items():
        np.testing.assert_allclose(after[digest], features, rtol=1e-5, atol=1e-6)
    assert_labels_are_of(cache, images)


def test_lines_of_a_list_are_reversed(check, drawn, tmp_path):
    write_folder(tmp_path / "photos", drawn)
    lines = [f"photos/{name}" for name in drawn]
    assert check(write_csv(tmp_path / "l.csv", lines), drawn) == COUNT
    age(write_csv(tmp_path / "l.csv", lines[::-1]), seconds=60)
    assert check(tmp_path / "l.csv", drawn) == 0


# --- files that were written just now ---------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("form", ["tar", "zip", "parquet"])
def test_a_young_file_is_looked_at_again(toy_run, drawn, tmp_path, form):
    """It may change without a new time: same size, same nanosecond, other bytes."""
    path, cache = tmp_path / f"all.{form}", tmp_path / "c.h5"
    write = {"tar": write_tar, "zip": write_zip, "parquet": write_parquet}[form]
    write(path, drawn)
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    size = path.stat().st_size
    assert toy_run(path, cache).computed == COUNT
    name = list(drawn)[4]
    changed = {**drawn, name: alter(drawn[name])}
    write(path, changed)
    os.utime(path, ns=(now, now))
    if path.stat().st_size == size:
        assert toy_run(path, cache).computed == 1
        assert hashlib.sha256(changed[name]).digest() in read_features(cache)
    else:
        pytest.fail("the test's own archive has another size")
    assert toy_run(path, cache).computed == 0
    age(path)
    assert [toy_run(path, cache).computed for _ in range(2)] == [0, 0]
    assert_labels_are_of(cache, changed)

"""Containers change, and the run after that is killed: the next one ends what it began."""

import signal
import time

import numpy as np
import pytest

import featurize
from featurize import FeatureCache
from featurize.errors import HeadgraftError

from ..attack.starting import Starter
from .making import (
    age,
    draw_images,
    hash_all,
    label_of,
    read_features,
    write_folder,
    write_parquet,
    write_shards,
    write_tar,
)
from .test_changes import assert_labels_are_of, find_wrong_labels

COUNT = 160
LINE = {"backbone": "seedling", "layers": "stem:max,stage3", "engine": "eager", "device": "cpu"}


@pytest.fixture(scope="module")
def starter():
    starter = Starter()
    yield starter
    starter.end()


@pytest.fixture(scope="module")
def drawn():
    return draw_images(COUNT, seed=2, side=32)


@pytest.fixture(scope="module")
def new():
    images = draw_images(60, seed=3, side=32)
    return {f"{label_of(name)}/n{name[-7:]}": data for name, data in images.items()}


@pytest.fixture(scope="module")
def reference(drawn, new, tmp_path_factory):
    home = tmp_path_factory.mktemp("reference")
    folder = write_folder(home / "all", {**drawn, **new})
    featurize.run(folder, home / "c.h5", **LINE)
    return read_features(home / "c.h5", "stage3")


def touch(drawn, new, path):
    for shard in path.iterdir():
        age(shard, seconds=60)
    return drawn, 0


def append(drawn, new, path):
    write_shards(path, new, 20, first=50)
    return {**drawn, **new}, len(new)


def rewrite_one(drawn, new, path):
    names = list(drawn)
    changed = {**drawn, names[7]: list(new.values())[7]}  # of the same label
    write_tar(path / "shard-000000.tar", dict(list(changed.items())[:40]), later=60)
    return changed, 1


def reverse(drawn, new, path):
    write_parquet(path, dict(reversed(drawn.items())), later=60)
    return drawn, 0


def put_in_front(drawn, new, path):
    changed = {**new, **drawn}
    write_parquet(path, changed, later=60)
    return changed, len(new)


def sort(drawn, new, path):
    write_parquet(path, dict(sorted(drawn.items())), later=60)
    return drawn, 0


def count_done(partial):
    """Rows that are marked, or 0 while the file is being made or put in its place."""
    try:
        return FeatureCache(partial).counts["ok"]
    except (OSError, HeadgraftError):
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at once", "when it grows", "late"])
@pytest.mark.parametrize("change", [touch, append, rewrite_one, reverse, put_in_front, sort])
def test_a_kill_after_a_change(starter, drawn, new, reference, tmp_path, change, moment):
    cache, is_table = tmp_path / "c.h5", change in (reverse, put_in_front, sort)
    source = tmp_path / ("t.parquet" if is_table else "shards")
    (write_parquet(source, drawn) if is_table else write_shards(source, drawn, 40))
    featurize.run(source, cache, **LINE)
    images, n_new = change(drawn, new, source)
    started = starter.start("featurize", "run", source, "-o", cache, "--device", "cpu", often=True)
    partial, table = tmp_path / "c.h5.part", tmp_path / "c.h5.labels.csv"
    before = table.stat().st_mtime_ns
    end = time.monotonic() + 30
    while started.poll() is None and time.monotonic() < end:
        if moment == "at once" and table.stat().st_mtime_ns != before:
            break
        if moment == "when it grows" and partial.exists():
            break
        if moment == "late" and partial.exists() and count_done(partial) > COUNT // 2:
            break
        time.sleep(0.001)
    started.send(signal.SIGKILL)
    started.poll(10)
    # What is there now is right, if it is all there or not.
    assert FeatureCache(cache).verify() == []
    assert find_wrong_labels(cache, {**new, **images, **drawn}) == []
    done = featurize.run(source, cache, engine="eager")
    assert (done.rows, done.failed) == (len(images), 0)
    assert done.computed <= n_new
    found = read_features(cache, "stage3")
    assert found.keys() == hash_all(images)
    for digest, features in found.items():  # an image alone is another batch
        np.testing.assert_allclose(features, reference[digest], rtol=1e-5, atol=1e-6)
    assert FeatureCache(cache).verify() == []
    assert_labels_are_of(cache, images)
    assert not partial.exists()
    again = featurize.run(source, cache)
    assert (again.computed, again.reused) == (0, len(images))

"""Caches of earlier releases: of a folder they stay what they are, and grow out of any source."""

import shutil
import tarfile
from pathlib import Path

import h5py
import pytest

from featurize import FeatureCache

from .making import (
    LABELS,
    draw_images,
    read_features,
    read_keys,
    write_folder,
    write_shards,
    write_zip,
)

SPECIMENS = Path(__file__).parents[2] / "specimens"


@pytest.fixture
def former(tmp_path):
    """A cache that a former release wrote, its folder, and its images by name."""
    with tarfile.open(SPECIMENS / "images.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    cache = Path(shutil.copy(SPECIMENS / "cache.h5", tmp_path / "c.h5"))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    names = read_keys(cache)
    return cache, folder, {name: (folder / name).read_bytes() for name in names}


def read_version(cache):
    with h5py.File(cache) as file:
        return file.attrs["format_version"]


def test_a_folder_is_complete_and_keeps_its_version(run, former):
    cache, folder, images = former
    before = cache.read_bytes()
    done = run(folder, cache)
    assert (done.rows, done.computed, done.failed) == (len(images), 0, 1)
    assert cache.read_bytes() == before
    write_folder(folder, {"new.jpg": draw_images(1)[f"{LABELS[0]}/000.jpg"]})
    grown = run(folder, cache)
    assert (grown.rows, grown.computed) == (len(images) + 1, 1)
    assert read_version(cache) == "1.1"
    with h5py.File(cache) as file:
        assert ("source" in file.attrs, "containers" in file) == (False, False)


@pytest.mark.long
@pytest.mark.parametrize("form", ["shards", "zip", "back"])
def test_it_follows_its_images_into_archives(run, former, tmp_path, form):
    cache, folder, images = former
    layers = list(FeatureCache(cache).layers)
    before = {layer: read_features(cache, layer) for layer in layers}
    packed = (
        write_zip(tmp_path / "all.zip", images)
        if form == "zip"
        else write_shards(tmp_path / "shards", images, 25)
    )
    moved = run(packed, cache)
    assert (moved.rows, moved.computed, moved.failed) == (len(images), 0, 1)
    # The keys in a single zip are those of the folder: the rows are completed where they are.
    assert read_version(cache) == ("1.1" if form == "zip" else "1.3")
    assert run(packed, cache).computed == 0
    if form == "back":
        back = run(folder, cache)
        assert (back.rows, back.computed, back.failed) == (len(images), 0, 1)
        assert read_version(cache) == "1.1"
        assert read_keys(cache) == sorted(images)
    assert FeatureCache(cache).verify() == []
    for layer in layers:
        found = read_features(cache, layer)
        assert found.keys() == before[layer].keys()
        assert all((found[key] == before[layer][key]).all() for key in found)

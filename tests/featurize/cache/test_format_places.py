"""The clauses of docs/cache-format.md on images that are not files of a folder, since 1.3."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from zlib import crc32

import h5py
import numpy as np
import pytest

import featurize
from featurize import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.errors import CacheFormatError

NAMES = [f"{k}.png" for k in range(6)]
SHARDS = {"train-0.tar": NAMES[:4], "train-1.tar": NAMES[4:]}


def pack(path, folder, names):
    """Write files of a folder into a tar, at a time that proves something."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = (folder / name).stat().st_size
            archive.addfile(info, io.BytesIO((folder / name).read_bytes()))
    then = time.time_ns() - 10**10
    os.utime(path, ns=(then, then))


@pytest.fixture
def photos(draw, tmp_path):
    return draw(tmp_path / "photos", NAMES)


@pytest.fixture
def shards(photos, tmp_path):
    (tmp_path / "shards").mkdir()
    for name, members in SHARDS.items():
        pack(tmp_path / "shards" / name, photos, members)
    return tmp_path / "shards"


@pytest.fixture
def sharded(shards, toy, tmp_path):
    path = tmp_path / "sharded.h5"
    assert featurize.run(shards, path, backbone=toy, layers="0").computed == len(NAMES)
    return path


def alter(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def opened(path, monkeypatch):
    """Note which tars are opened from now on."""
    names = []
    plain = Path.open

    def watched(self, *args, **kwargs):
        if self.suffix == ".tar":
            names.append(self.name)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    return names


def test_c43_a_cache_of_shards_says_so(sharded, shards):
    with h5py.File(sharded) as file:
        assert file.attrs["format_version"] == "1.3"
        assert json.loads(file.attrs["required_features"]) == []
        assert file.attrs["root"] == str(shards)
        assert json.loads(file.attrs["source"])["kind"] == FeatureCache(sharded).source["kind"]
    cache = FeatureCache(sharded)
    keys = [f"{shard}/{name}" for shard, names in SHARDS.items() for name in names]
    assert cache.paths == keys
    assert cache.verify() == []
    assert (cache.column("mtime_ns") > 0).all()


def test_c43_a_cache_of_a_folder_stays_as_it_was(photos, toy, tmp_path):
    featurize.run(photos, tmp_path / "c.h5", backbone=toy, layers="0")
    with h5py.File(tmp_path / "c.h5") as file:
        assert file.attrs["format_version"] == "1.1"
        assert "source" not in file.attrs
        assert "containers" not in file
        assert "container" not in file["images"]


def test_c43_a_folder_has_the_rows_of_its_shards(photos, shards, sharded, toy, tmp_path):
    """The same bytes, from wherever they come, are never computed twice."""
    path = tmp_path / "c.h5"
    featurize.run(photos, path, backbone=toy, layers="0")
    moved = featurize.run(shards, path, backbone=toy)
    assert (moved.rows, moved.computed, moved.reused) == (len(NAMES), 0, len(NAMES))
    assert FeatureCache(path).paths == FeatureCache(sharded).paths
    assert np.array_equal(FeatureCache(path).features(), FeatureCache(sharded).features())


def test_c44_containers_and_places(sharded, shards):
    with h5py.File(sharded) as file:
        group = file["containers"]
        assert [name.decode() for name in group["name"][:]] == sorted(SHARDS)
        assert group["size"][:].tolist() == [(shards / n).stat().st_size for n in sorted(SHARDS)]
        assert (group["stamp"][:] != 0).all()
        assert file["images/container"][:].tolist() == [0, 0, 0, 0, 1, 1]
        offsets = file["images/offset"][:]
        sizes = file["images/size"][:]
    for row, key in enumerate(FeatureCache(sharded).paths):
        shard, _, name = key.partition("/")
        data = (shards / shard).read_bytes()[offsets[row] :][: sizes[row]]
        assert data == (shards.parent / "photos" / name).read_bytes()


def test_c44_unchanged_containers_are_not_opened(sharded, shards, photos, toy, monkeypatch):
    pack(shards / "train-1.tar", photos, NAMES[3:])
    names = opened(sharded, monkeypatch)
    again = featurize.run(shards, sharded, backbone=toy)
    assert (again.rows, again.computed) == (7, 0)
    assert set(names) == {"train-1.tar"}
    names.clear()
    assert featurize.run(shards, sharded, backbone=toy).reused == 7
    assert names == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["containers"].__delitem__("name"), "containers/name is missing"),
        (
            lambda file: file["containers"].__delitem__("check"),
            "column containers/check is missing",
        ),
        (lambda file: file["images"].__delitem__("offset"), "column images/offset is missing"),
        (
            lambda file: (
                file["images"].__delitem__("container"),
                file["images"].create_dataset("container", data=np.zeros(6, "<i8")),
            ),
            "images/container is int64",
        ),
        (
            lambda file: (
                file.__delitem__("containers"),
                file.create_dataset("containers", data=np.zeros(2)),
            ),
            "containers/name is missing",
        ),
    ],
)
def test_c44_all_are_there_or_none(sharded, change, message):
    alter(sharded, change)
    with pytest.raises(CacheFormatError, match=message):
        FeatureCache(sharded)


def test_c44_a_container_that_is_none_opens_them_all(sharded, shards, toy):
    """What is in the columns is a stranger's: a number beyond the list takes nothing on trust."""
    alter(sharded, lambda file: file["images/container"].write_direct(np.full(6, 99, "<i4")))
    assert featurize.run(shards, sharded, backbone=toy).computed == 0


def test_c45_the_check_is_of_stamps_and_offsets(sharded):
    with h5py.File(sharded) as file:
        for i, check in enumerate(file["containers/check"][:].tolist()):
            rows = np.flatnonzero(file["images/container"][:] == i)
            stamps = file["images/mtime_ns"][:][rows].astype("<i8").tobytes()
            offsets = file["images/offset"][:][rows].astype("<i8").tobytes()
            assert check == crc32(stamps + offsets)


def test_c45_rows_that_another_wrote_open_their_container(
    sharded, shards, photos, toy, monkeypatch
):
    """As a release that knows no containers does, which finds images of the same names."""
    with CacheWriter(sharded) as writer:
        writer.update_stat(np.array([1]), np.array([5]), np.array([10**18]))
    names = opened(sharded, monkeypatch)
    again = featurize.run(shards, sharded, backbone=toy)
    assert (again.computed, again.reused) == (0, len(NAMES))
    assert set(names) == {"train-0.tar"}
    names.clear()
    featurize.run(shards, sharded, backbone=toy)
    assert names == []


KILLED = """
import os, sys
import featurize
from featurize.cache.writer import CacheWriter
plain = CacheWriter._write_column
def killed(self, name, rows, values):
    if name == sys.argv[3]:
        os._exit(9)
    plain(self, name, rows, values)
CacheWriter._write_column = killed
featurize.run(sys.argv[1], sys.argv[2])
"""


@pytest.mark.long
@pytest.mark.parametrize("column", ["images/offset", "containers/size", "containers/check"])
def test_c46_a_kill_before_the_end_opens_the_container_again(photos, tmp_path, column):
    shards, path = tmp_path / "shards", tmp_path / "c.h5"
    shards.mkdir()
    pack(shards / "a.tar", photos, NAMES[:3])
    pack(shards / "b.tar", photos, NAMES[3:])
    featurize.run(shards, path, backbone="seedling", layers="stem:max")
    before = FeatureCache(path).features().copy()
    # The same images at other places: a member that is no image comes first.
    (photos / "note.txt").write_text("hello")
    pack(shards / "b.tar", photos, ["note.txt", *NAMES[3:]])
    done = subprocess.run([sys.executable, "-c", KILLED, shards, path, column], check=False)
    assert done.returncode == 9
    assert FeatureCache(path).verify() == []
    again = featurize.run(shards, path)
    assert (again.rows, again.computed) == (6, 0)
    cache = FeatureCache(path)
    assert np.array_equal(cache.features(), before)
    data = (shards / "b.tar").read_bytes()
    offset, size = int(cache.column("offset")[5]), int(cache.column("size")[5])
    assert data[offset : offset + size] == (photos / NAMES[5]).read_bytes()
    assert featurize.verify(path, shards) == []
    shutil.rmtree(shards)


def test_c46_what_says_unchanged_comes_after_a_sync(sharded, shards, photos, toy, tape):
    (photos / "note.txt").write_text("hello")
    pack(shards / "train-1.tar", photos, ["note.txt", *SHARDS["train-1.tar"]])
    recorded = tape()
    assert featurize.run(shards, sharded, backbone=toy).computed == 0
    writes = recorded.writes(sharded)
    first = min(i for i, name in enumerate(writes) if name.startswith("containers/"))
    last = max(i for i, name in enumerate(writes) if name in ("images/offset", "images/mtime_ns"))
    assert "sync" in writes[last:first]


def test_c44_other_globs_open_the_containers_again(sharded, shards, toy):
    """What was left out of a container is not in the cache."""
    fewer = featurize.run(shards, sharded, backbone=toy, exclude=["0.png"], prune=True)
    assert fewer.rows == 5
    assert featurize.run(shards, sharded, backbone=toy, exclude=[]).rows == 6

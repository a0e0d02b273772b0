"""A cache of parts is read as the single file with the same rows."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from featurize import FeatureCache, export
from featurize.cache.parts.index import PartRange, PartsIndex, read_index, write_index
from featurize.cache.writer import CacheWriter
from featurize.errors import (
    CacheFormatError,
    CacheReplacedError,
    RowNotReadyError,
    UnknownPathError,
)
from tests.parts import cut_cache

from .conftest import NAMES

COLUMNS = ("path", "sha256", "size", "mtime_ns", "status", "reason")
SCATTERED = [33, 7, 7, 0, 39, 8, -1]


@pytest.mark.long
def test_p1_the_whole_has_what_the_file_has(whole, folder):
    single, parts = FeatureCache(whole), FeatureCache(folder)
    for name in ("n_rows", "layers", "extractor", "root", "paths", "row_of", "counts", "failures"):
        assert getattr(parts, name) == getattr(single, name), name
    assert parts.path == folder
    assert [file.name for file in parts.files] == [f"part-{k:05}.h5" for k in range(4)]
    assert single.files == (whole,)
    assert (parts.index, single.index) == (read_index(folder), None)
    assert "4 parts, 40 rows" in repr(parts)
    assert parts.verify() == []
    assert not parts.damaged_rows().any()
    assert parts.unchecked_rows == 0


@pytest.mark.parametrize("rows", [None, SCATTERED, [], np.arange(5, 35)])
def test_p1_columns_and_features_are_equal(whole, folder, rows):
    single, parts = FeatureCache(whole), FeatureCache(folder)
    for name in COLUMNS:
        column = single.column(name, rows)
        assert np.array_equal(parts.column(name, rows), column), name
        everything = single.column(name)
        assert np.array_equal(
            column, everything if rows is None else everything[np.array(rows, int)]
        )
    if rows is not None:
        numbers = np.arange(40)[np.array(rows, int)]
        assert parts.paths_of(rows) == [NAMES[row] for row in numbers]
        for layer in single.layers:
            assert np.array_equal(parts.stored(layer, numbers), single.stored(layer, numbers))
            checksums = single.checksums(layer, numbers)
            assert np.array_equal(parts.checksums(layer, numbers), checksums)


def test_c27_only_marked_rows_are_handed_out(whole, folder):
    single, parts = FeatureCache(whole), FeatureCache(folder)
    for cache in (single, parts):
        assert cache.features("layer4", [8, -1, 0]).shape == (3, 4)
        for rows in ([7], [20], [0, 33], None):
            with pytest.raises(RowNotReadyError):
                cache.features("layer4", rows)
        for row in (40, -41):
            with pytest.raises(IndexError, match=f"row {row} is not one of the 40"):
                cache.features("layer4", [row])


def test_features_without_rows_are_those_of_all_parts(allocate, fill, tmp_path):
    path = allocate(tmp_path / "c.h5", paths=NAMES)
    with CacheWriter(path) as into:
        fill(into, np.arange(40))
    found = FeatureCache(cut_cache(path, tmp_path / "D", [0, 39])).features()
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, FeatureCache(path).features())


@pytest.mark.parametrize("kind", ["file", "parts"])
def test_rows_are_found_without_reading_every_key(whole, folder, kind, monkeypatch):
    cache = FeatureCache(whole if kind == "file" else folder)
    absent = ["", "a/1.png", "a/00.pn", "a/00.png\0", "zz", "\ud800", "中/99.png", "x" * 10_000]
    asked = [NAMES[30], *absent, NAMES[0], NAMES[39], NAMES[30], NAMES[7]]
    rows = cache.find_rows(asked)
    assert rows.dtype == np.intp
    assert rows.tolist() == [30, *[-1] * len(absent), 0, 39, 30, 7]
    assert cache.rows_for([NAMES[k] for k in (33, 2)]).tolist() == [33, 2]
    assert cache.find_rows([]).shape == (0,)
    with pytest.raises(
        UnknownPathError, match=r"8 of 13 images are not in .*paths look like 'a/00"
    ):
        cache.rows_for(asked)
    assert not {"paths", "row_of"} & set(vars(cache))
    for _ in (cache.paths, cache.row_of):  # once somebody has asked for them
        assert cache.find_rows(asked).tolist() == rows.tolist()
        assert cache.find_rows(asked[:1]).tolist() == [30]
    assert cache.find_rows(NAMES).tolist() == list(range(40))


def test_rows_are_found_among_many_blocks_of_keys(allocate, tmp_path):
    names = sorted(f"{k * 7919 % 10007:05}/{'é' * (k % 40)}.png" for k in range(10_000))
    cache = FeatureCache(allocate(tmp_path / "c.h5", paths=names))
    rng = np.random.default_rng(0)
    for count in (1, 50, 10_000):
        rows = rng.choice(10_000, count)
        assert cache.find_rows([names[row] for row in rows]).tolist() == rows.tolist()
        assert (cache.find_rows([names[row] + "x" for row in rows]) == -1).all()


@pytest.mark.parametrize("value", [b"a/00.png", b"\xff"])
def test_c5_a_search_refuses_keys_out_of_order(whole, value):
    import h5py

    with h5py.File(whole, "r+") as file:
        keys = file["images/path"][:]
        keys[20] = value
        file["images/path"][:] = keys
    with pytest.raises(CacheFormatError, match=r"out of order or repeated"):
        FeatureCache(whole).find_rows([NAMES[5]])


def test_mapped_rows_are_read_where_they_are_indexed(whole, folder):
    mapped, rows = (
        FeatureCache(folder).mapped("layer3@max"),
        FeatureCache(whole).mapped("layer3@max"),
    )
    assert (mapped.shape, mapped.dtype, mapped.ndim, len(mapped)) == ((40, 8), rows.dtype, 2, 40)
    for index in (
        3,
        np.int64(-1),
        slice(5, 35),
        slice(None, None, -7),
        [33, 7, -2],
        np.arange(40) > 6,
    ):
        assert np.array_equal(mapped[index], rows[index], equal_nan=True), index
    assert np.array_equal(np.asarray(mapped), rows)
    assert np.asarray(mapped, np.float64).dtype == np.float64
    assert sum(1 for _ in mapped) == 40
    for index in (40, [-41], (0, 1), np.ones(3, bool)):
        with pytest.raises(IndexError):
            mapped[index]
    again = pickle.loads(pickle.dumps(mapped))  # noqa: S301
    assert np.array_equal(again[39], rows[39])


def test_p4_a_missing_part_is_named(folder, command):
    (folder / "part-00002.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"part-00002\.h5 is missing: it was never made"):
        FeatureCache(folder)
    done = command("featurize", "export", folder, "-o", folder.parent / "x.npz")
    assert done.returncode == 2
    assert f"{folder}/part-00002.h5 is missing" in done.stderr
    assert f"-o {folder}/ makes it" in done.stderr


@pytest.mark.long
def test_p4_info_tells_of_the_parts_that_are_made(folder, command):
    def describe():
        return json.loads(command("featurize", "info", folder, "--json").stdout)

    found = describe()
    assert found["parts"] == {"total": 4, "made": 4, "part_rows": 22, "missing": []}
    assert (found["rows"], found["status"]) == (40, {"ok": 37, "failed": 2, "pending": 1})
    (folder / "part-00002.h5").unlink()
    found = describe()
    assert found["parts"] == {"total": 4, "made": 3, "part_rows": 22, "missing": ["part-00002.h5"]}
    assert found["rows"] == 18
    shown = command("featurize", "info", folder).stdout
    assert "4, of about 22 rows each: 3 are made" in shown
    for file in folder.glob("*.h5"):
        file.unlink()
    assert command("featurize", "info", folder).returncode == 2


def test_info_of_a_file_has_no_parts(whole, command):
    assert json.loads(command("featurize", "info", whole, "--json").stdout)["parts"] is None


def test_p5_parts_with_other_layers_are_refused(allocate, folder):
    path = folder / "part-00001.h5"
    path.unlink()
    allocate(path, layers=[("layer4", 4)], paths=[NAMES[7]])
    with pytest.raises(CacheFormatError, match=r"00001.* has the layers layer4 .*Run it again"):
        FeatureCache(folder)


@pytest.mark.long
def test_p5_parts_made_otherwise_are_refused(allocate, folder, toy, draw, tmp_path):
    import featurize

    images = draw(tmp_path / "photos", ["a/07.png"])
    (folder / "part-00001.h5").unlink()
    featurize.run(images, folder / "part-00001.h5", backbone=toy, layers="2")
    with pytest.raises(CacheFormatError, match=r"00001.* was made otherwise .*weights_sha256"):
        FeatureCache(folder)


@pytest.mark.long
@pytest.mark.parametrize("firsts", [["", "a/06.png"], ["", "a/075"]])
def test_p3_a_part_with_keys_out_of_its_range_is_refused(folder, firsts):
    index = read_index(folder)
    parts = [PartRange(p.file, f) for p, f in zip(index.parts, firsts, strict=False)]
    write_index(folder, PartsIndex((*parts, *index.parts[2:])))
    with pytest.raises(CacheFormatError, match=r"which is not in the range of this part"):
        FeatureCache(folder)


@pytest.mark.long
def test_p7_verify_finds_problems_of_every_part(folder, command):
    def damage(number, offset):
        path = folder / f"part-{number:05}.h5"
        from featurize.cache.layout import read_layout

        extent = read_layout(path).extents["features/layer4"]
        with path.open("r+b") as file:
            file.seek(extent.offset + offset * extent.row_bytes)
            file.write(b"\x01")

    assert command("featurize", "verify", folder).returncode == 0
    damage(0, 3)
    damage(2, 1)
    (folder / "part-00001.h5").unlink()
    os.truncate(folder / "part-00003.h5", 3000)
    done = command("featurize", "verify", folder, "--json")
    problems = json.loads(done.stdout)["problems"]
    assert done.returncode == 2
    assert len(problems) == 4
    for number, problem in enumerate(problems):
        assert f"part-{number:05}.h5" in problem
    assert "row 3" in problems[0]
    assert "row 1" in problems[2]


def test_p8_a_part_that_is_replaced_is_noticed(allocate, fill, folder, monkeypatch):
    from featurize.cache.parts import opening

    monkeypatch.setattr(opening, "MAX_OPEN_PARTS", 1)
    cache = FeatureCache(folder)
    copy = pickle.dumps(cache)
    assert cache.features("layer4", [0, 39]).shape == (2, 4)
    other = allocate(folder / "new.h5", paths=NAMES[:7])
    os.replace(other, folder / "part-00000.h5")
    for reader in (cache, pickle.loads(copy)):  # noqa: S301
        with pytest.raises(CacheReplacedError, match=r"part-00000\.h5 was .* open"):
            reader.column("status")
    (folder / "part-00000.h5").unlink()
    with pytest.raises(CacheReplacedError, match=r"part-00000\.h5 is gone"):
        cache.column("status")


FEW_FILES = """
import os, resource, sys
import numpy as np
from featurize import FeatureCache

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
cache = FeatureCache(sys.argv[1])
for _ in range(2):
    assert (cache.column("status") == 0).all() and cache.n_rows == 150
    assert cache.find_rows(cache.paths_of(np.arange(150))).tolist() == list(range(150))
print(len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.long
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
def test_p8_few_files_are_open_at_a_time(allocate, tmp_path):
    (tmp_path / "D").mkdir()
    names = [f"{k:03}.png" for k in range(150)]
    for k, name in enumerate(names):
        allocate(tmp_path / "D" / f"part-{k:05}.h5", layers=[("layer4", 2)], paths=[name])
    parts = [PartRange(f"part-{k:05}.h5", name if k else "") for k, name in enumerate(names)]
    write_index(tmp_path / "D", PartsIndex(tuple(parts)))
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, tmp_path / "D"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 60 < int(done.stdout) < 80


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_an_export_has_the_same_bytes(whole, folder, tmp_path, suffix):
    files = []
    for cache in (whole, folder):
        files.append(tmp_path / f"{cache.stem}.{suffix}")
        assert export(cache, files[-1]) == 37
    if suffix == "parquet":
        assert files[0].read_bytes() == files[1].read_bytes()
        return
    single, parts = (np.load(file) for file in files)
    assert single.files == parts.files == ["path", "layer3@max", "layer4"]
    for name in single.files:
        assert single[name].dtype == parts[name].dtype
        assert np.array_equal(single[name], parts[name])


def test_a_part_is_a_cache_by_itself(whole, folder):
    part, single = FeatureCache(folder / "part-00002.h5"), FeatureCache(whole)
    assert part.paths == NAMES[8:30]
    assert np.array_equal(
        part.stored("layer4", np.arange(22)), single.stored("layer4", np.arange(8, 30))
    )


@pytest.mark.long
def test_an_index_that_changes_meanwhile_is_read_again(folder, monkeypatch):
    from featurize.cache.parts import opening

    index = read_index(folder)
    shutil.move(folder / "part-00001.h5", folder / "part-00009.h5")
    moved = PartRange("part-00009.h5", index.parts[1].first)
    now = PartsIndex((index.parts[0], moved, *index.parts[2:]))
    write_index(folder, now)
    answers = iter([index])  # read before the move
    monkeypatch.setattr(opening, "read_index", lambda path: next(answers, None) or read_index(path))
    assert FeatureCache(folder).index == now

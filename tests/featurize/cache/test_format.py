"""The feature cache's format: one test, or a few, for each clause of docs/cache-format.md."""

import copy
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import featurize
from featurize import FeatureCache
from featurize.cache import format as cache_format
from featurize.cache import writer
from featurize.cache.layout import read_layout
from featurize.cache.lock import WriteLock
from featurize.cache.writer import CacheWriter
from featurize.errors import (
    CacheBusyError,
    CacheFormatError,
    CacheReplacedError,
    DiskFullError,
    FingerprintMismatchError,
    RowNotReadyError,
)
from featurize.files import hash_bytes
from featurize.fingerprint import canonical_json, compute_fingerprint, hash_weight_arrays
from featurize.images import reading, reasons

FIRST_RELEASE = Path(__file__).parents[1] / "data" / "first-release.h5"
DOCUMENT = Path(__file__).parents[3] / "docs" / "cache-format.md"
TEXT = DOCUMENT.read_text()
NAMES = ["a/1.png", "a/2.png", "b/3.png", "b/4.png", "c/5.png", "c/6.png"]
KINDS = {"text": str, "int64": np.int64}


def clause(number):
    return re.search(rf"^\*\*C{number}\.\*\*(.*?)(?=^\*\*C|^## |\Z)", TEXT, re.M | re.S).group(1)


def table(number):
    """The rows of a clause's table, without its head, in cells without their backquotes."""
    lines = [line for line in clause(number).splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def alter(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def refused(path, match):
    """Whether opening a file, or a look at its paths, gives an error that names the file."""
    with pytest.raises(CacheFormatError, match=match) as caught:
        _ = FeatureCache(path).paths
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def folder(draw, tmp_path_factory):
    folder = draw(tmp_path_factory.mktemp("ran") / "photos", NAMES)
    (folder / "c" / "gone.png").symlink_to("nowhere")
    return folder


@pytest.fixture(scope="module")
def ran_bytes(folder):
    path = folder.parent / "photos.h5"
    featurize.run(folder, path, backbone="seedling", layers="stem:max,stage1")
    return path.read_bytes()


@pytest.fixture
def ran(ran_bytes, tmp_path):
    """A cache made by ``featurize run`` with the seedling, one of its rows failed."""
    path = tmp_path / "ran.h5"
    path.write_bytes(ran_bytes)
    return path


def test_every_clause_has_a_test_and_every_test_a_clause():
    clauses = [int(number) for number in re.findall(r"^\*\*C(\d+)\.\*\*", TEXT, re.M)]
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_format*.py")]
    tests = set(map(int, re.findall(r"^def test_c(\d+)_", "".join(sources), re.M)))
    assert clauses == list(range(1, len(clauses) + 1))
    assert tests == set(clauses)


# The file


def test_c1_the_five_lines_read_it(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.S).group(1), found)
    assert found["paths"].tolist() == ["a/1.png", "a/2.png", "b/3.png"]
    assert np.array_equal(found["features"], FeatureCache(cache).features("layer4", [0, 1, 2]))


def test_c1_default_file_version(cache, ran):
    for path in (cache, ran):
        head = path.read_bytes()[:9]
        assert head == b"\x89HDF\r\n\x1a\n\0"  # superblock 0; "latest" writes 2 or 3


def test_c2_root_attributes(cache, ran):
    for path in (cache, ran):
        with h5py.File(path) as file:
            assert {name: type(value) for name, value in file.attrs.items()} == {
                name: KINDS[kind]
                for name, kind, what in table(2)
                if "there are any" not in what and "since 1.3" not in what
            }
            assert file.attrs["format"] == table(2)[0][2]
            assert file.attrs["format_version"] == "1.1"  # nothing in it asks for 1.2
            assert re.fullmatch("[0-9a-f]{32}", file.attrs["id"])
            assert json.loads(file.attrs["required_features"]) == []
            assert file.attrs["n_rows"] == len(file["images/path"])
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", file.attrs["created"])


def test_c3_extractor_attributes(cache, ran):
    for path in (cache, ran):
        with h5py.File(path) as file:
            attrs = dict(file["extractor"].attrs)
        assert set(attrs) == {row[0] for row in table(3)}
        assert all(type(value) is str for value in attrs.values())
        assert re.fullmatch("[0-9a-f]{64}", attrs["weights_sha256"])
        for name in ("preprocess", "environment"):
            assert canonical_json(json.loads(attrs[name])) == attrs[name]
        told = clause(3).split("canonical JSON: ")[1]
        listed = re.findall(r"`(\w+)`", re.split("[;|]", told)[0])
        assert set(json.loads(attrs["preprocess"])) == set(listed)


def test_c4_columns(cache, ran):
    for path in (cache, ran):
        with h5py.File(path) as file:
            assert set(file["images"]) == {row[0] for row in table(4)}
            for name, kind, shape, _ in table(4):
                column = file["images"][name]
                n_rows = int(file.attrs["n_rows"])
                assert column.shape == ((n_rows, 32) if "32" in shape else (n_rows,))
                assert column.dtype == kind if kind != "text" else column.dtype.kind == "S"
                assert (column.chunks, column.compression) == (None, None)


def test_c5_paths_as_written(cache, ran):
    for path in (cache, ran):
        with h5py.File(path) as file:
            kind = h5py.check_string_dtype(file["images/path"].dtype)
            assert (kind.encoding, kind.length) == ("utf-8", file["images/path"].dtype.itemsize)
            raw = file["images/path"][:].tolist()
        assert raw == sorted(set(raw))
        assert [path.decode() for path in raw] == FeatureCache(path).paths
    assert "b/ö.png" in FeatureCache(cache).paths


@pytest.mark.parametrize(
    ("row", "value", "match"),
    [
        (0, b"/etc/p", "leads out of the folder"),
        (0, b"../pic", "leads out of the folder"),
        (0, b"a/../p", "leads out of the folder"),
        (5, b"z/..", "leads out of the folder"),
        (1, b"a/1.png", "out of order or repeated"),
        (1, b"A", "out of order or repeated"),
        (0, b"", "out of order or repeated"),
        (2, b"b\xff", "not UTF-8"),
    ],
)
def test_c5_other_paths_are_refused(cache, cli, row, value, match):
    def change(file):
        paths = file["images/path"][:]
        paths[row] = value
        file["images/path"][:] = paths

    alter(cache, change)
    refused(cache, match)
    done = cli("verify", cache)
    assert done.exit_code == 2
    assert match in done.stdout


def test_c6_hash_size_and_time_are_those_of_the_file(ran, folder, allocate, tmp_path):
    found = FeatureCache(ran)
    for row, name in enumerate(NAMES):
        data, stat = (folder / name).read_bytes(), (folder / name).stat()
        assert found.column("sha256")[row].tobytes() == hashlib.sha256(data).digest()
        assert found.column("size")[row] == len(data)
        assert found.column("mtime_ns")[row] == stat.st_mtime_ns
    assert found.failures == {"c/gone.png": "vanished while running"}
    assert not found.column("sha256")[-1].any()
    assert not FeatureCache(allocate(tmp_path / "fresh.h5")).column("sha256").any()


def test_c6_size_and_time_are_those_of_the_read(toy, draw, tmp_path, monkeypatch):
    """Listed as one picture, read as another, and the first put back, with its time."""
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    place, other = folder / NAMES[0], draw(tmp_path / "other", ["x.png"], seed=9) / "x.png"
    kept, state, real = place.read_bytes(), place.stat(), reading.read_image_file

    def read(name):
        if os.fsdecode(name) != str(place):
            return real(name)
        place.write_bytes(other.read_bytes())
        os.utime(place, ns=(state.st_mtime_ns + 5, state.st_mtime_ns + 5))
        try:
            return real(name)
        finally:
            place.write_bytes(kept)
            os.utime(place, ns=(state.st_mtime_ns, state.st_mtime_ns))

    monkeypatch.setattr(reading, "read_image_file", read)
    featurize.run(folder, path, backbone=toy, layers="0")
    found = FeatureCache(path)
    assert found.column("sha256")[0].tobytes() == hash_bytes(other.read_bytes())
    assert found.column("mtime_ns")[0] == state.st_mtime_ns + 5
    monkeypatch.setattr(reading, "read_image_file", real)
    assert featurize.run(folder, path, backbone=toy).computed == 1
    assert FeatureCache(path).column("sha256")[0].tobytes() == hash_bytes(kept)


def test_c6_a_young_file_is_looked_at_again(toy, draw, tmp_path):
    """Within a tick of the clock it can change without another time, and of the same size."""
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    place = folder / NAMES[0]
    first = place.read_bytes()
    second = bytes([*first[:-1], first[-1] ^ 1])  # another file of the same size
    place.write_bytes(first)
    state = place.stat()
    featurize.run(folder, path, backbone=toy, layers="0")
    assert FeatureCache(path).column("mtime_ns")[0] == 0
    place.write_bytes(second)
    os.utime(place, ns=(state.st_mtime_ns, state.st_mtime_ns))
    featurize.run(folder, path, backbone=toy)
    assert FeatureCache(path).column("sha256")[0].tobytes() == hash_bytes(second)


def test_c7_status(cache, cli):
    codes = {int(code): meaning for code, meaning, _ in table(7)}
    assert set(codes) == {cache_format.PENDING, cache_format.MARKED, cache_format.FAILED}
    assert codes[0].startswith("pending")
    assert FeatureCache(cache).status.tolist() == [1, 1, 1, 2, 2, 0]
    assert FeatureCache(cache).counts == {"ok": 3, "failed": 2, "pending": 1}

    def change(file):
        file["images/status"][1] = 3

    alter(cache, change)
    assert "status of row 1 is not 0, 1 or 2" in cli("verify", cache).stdout
    with pytest.raises(RowNotReadyError):
        FeatureCache(cache).features("layer4", [1])


def test_c8_reasons(cache, cli):
    assert {int(code): reason for code, reason, _ in table(8)} == reasons.REASONS
    system = {int(code) for code, _, fault in table(8) if fault == "the system"}
    assert system == reasons.TRANSIENT
    assert FeatureCache(cache).column("reason").tolist() == [0, 0, 0, 3, 7, 0]


def test_c8_unknown_codes_are_failures(cache, cli):
    def change(file):
        file["images/reason"][3] = 77

    alter(cache, change)
    assert FeatureCache(cache).failures["c/4.png"] == "permission denied"
    assert FeatureCache(cache).failures["b/ö.png"] == "reason 77"
    assert cli("verify", cache).exit_code == 0
    with pytest.raises(RowNotReadyError):
        FeatureCache(cache).features("layer4", [3])


def test_c8_the_systems_faults_are_tried_again(toy, draw, tmp_path):
    folder = draw(tmp_path / "photos", NAMES)
    (folder / "a" / "bad.png").write_bytes(b"not an image")
    os.utime(folder / "a" / "bad.png", ns=(10**18, 10**18))
    (folder / "a" / "gone.png").symlink_to("later.data")
    path = tmp_path / "c.h5"
    assert featurize.run(folder, path, backbone=toy, layers="2").failed == 2
    with CacheWriter(path) as into:  # as if the file had been repaired without a trace
        row = np.array([FeatureCache(path).row_of["a/bad.png"]])
        now = FeatureCache(path).column("size")[row], FeatureCache(path).column("mtime_ns")[row]
        into.record_failures(row, np.array([4]), np.zeros((1, 32)), *now)
    draw(folder, ["a/x.png"]).joinpath("a/x.png").rename(folder / "a" / "later.data")
    os.utime(folder / "a" / "later.data", ns=(0, 0))
    assert featurize.run(folder, path, backbone=toy).failures == {"a/bad.png": "too large"}
    done = featurize.run(folder, path, backbone=toy, retry_failed=True)
    assert done.failures == {"a/bad.png": "not an image"}


def test_c9_arrays(cache, ran):
    for path in (cache, ran):
        with h5py.File(path) as file:
            assert len(file["features"]) == 2
            for array in file["features"].values():
                assert array.shape[0] == file.attrs["n_rows"]
                assert array.dtype.str in ("<f4", "<f2")
                assert (array.chunks, array.compression) == (None, None)
                offset = array.id.get_offset()
                assert offset % 4096 == 0
                values = array[:]
                raw = path.read_bytes()[offset : offset + values.nbytes]
                assert raw == values.tobytes()  # D numbers a row at a known place


def replace_array(name, **how):
    """A change to a file: an array of it stored otherwise."""

    def change(file):
        attrs = dict(file[name].attrs)
        options = {"data": file[name][:], **how}
        file.move(name, "before")  # its space stays taken
        file.create_dataset(name, **options).attrs.update(attrs)

    return change


ONE = np.ones((6, 4), "f4")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (replace_array("features/layer4", data=ONE.astype("f8")), "little-endian float32"),
        (replace_array("features/layer4", data=ONE.astype(">f4")), "little-endian float32"),
        (replace_array("features/layer4", data=ONE.astype("i4")), "little-endian float32"),
        (replace_array("features/layer4", data=ONE[:5]), "has shape"),
        (replace_array("features/layer4", data=ONE[:, :0]), "has shape"),
        (replace_array("features/layer4", data=ONE[:, 0]), "has shape"),
        (replace_array("features/layer4", data=ONE[:, :, None]), "has shape"),
        (replace_array("features/layer4", chunks=(2, 4)), "not contiguous and unfiltered"),
        (replace_array("features/layer4", compression="gzip"), "not contiguous and unfiltered"),
        (replace_array("features/layer4", fletcher32=True), "not contiguous and unfiltered"),
        (replace_array("features/layer4"), "not aligned to 4096"),
        (lambda file: file["features"].create_group("layer5"), "not a dataset"),
        (lambda file: [file["features"].pop(name) for name in list(file["features"])], "no feat"),
    ],
)
def test_c9_other_arrays_are_refused(cache, change, match):
    with h5py.File(cache, "r+") as file:
        file.create_dataset("odd", data=np.ones(3, "u1"))  # so that what follows is not aligned
        change(file)
    refused(cache, match)


def test_c10_names_and_attributes(cache, ran):
    for path in (cache, ran):
        with h5py.File(path) as file:
            for name, array in file["features"].items():
                attrs = dict(array.attrs)
                assert set(attrs) == {row[0] for row in table(10)}
                pool = "" if attrs["pool"] == "avg" else f"@{attrs['pool']}"
                assert name == attrs["layer"] + pool
                assert attrs["map_shape"].dtype.kind == "i"
                assert re.fullmatch("[0-9a-f]{64}", attrs["fingerprint"])
    found = FeatureCache(ran).layers
    assert list(found) == ["stem@max", "stage1"]
    assert (found["stem@max"].pool, found["stage1"].pool) == ("max", "avg")
    assert found["stem@max"].dim == found["stem@max"].map_shape[0]


@pytest.mark.parametrize("name", ["layer", "pool", "map_shape", "fingerprint"])
@pytest.mark.parametrize("value", [None, 1.5, "x"])
def test_c10_other_attributes_are_refused(cache, name, value):
    if (name, value) == ("fingerprint", "x"):
        return  # text; whether it is the right one is asked by C19

    def change(file):
        del file["features/layer4"].attrs[name]
        if value is not None:
            file["features/layer4"].attrs[name] = value

    alter(cache, change)
    refused(cache, "features/layer4")


def test_c11_by_depth(draw, toy, tmp_path):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="2:max,0")
    featurize.run(folder, path, backbone=toy, layers="1")  # grown: goes between them
    found = FeatureCache(path)
    assert list(found.layers) == ["0", "1", "2@max"]
    with h5py.File(path) as file:
        offsets = [file["features"][name].id.get_offset() for name in found.layers]
    assert offsets == sorted(offsets)
    assert found.layer().name == "2@max"
    assert np.array_equal(found.features(), found.features("2@max"))


# What is never in it


def test_c12_nothing_but_what_is_named(cache, ran):
    objects = {"extractor", "images", "features", "checksums"}
    objects |= {f"images/{row[0]}" for row in table(4)}
    for path in (cache, ran):
        with h5py.File(path) as file:
            names = []
            file.visit(names.append)
            layers = list(file["features"])
            assert set(names) == objects | {
                f"{group}/{name}" for group in ("features", "checksums") for name in layers
            }
            assert not any(len(file[name].attrs) for name in ("images", "features", "checksums"))
            assert not any(len(file[f"images/{row[0]}"].attrs) for row in table(4))


REFERENCE, REGION = h5py.ref_dtype, h5py.regionref_dtype
PAIR = np.dtype([("a", "i4"), ("b", "f4")])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (PAIR, None),
        (np.dtype("V5"), None),
        (h5py.opaque_dtype(np.dtype("M8[s]")), None),
        (h5py.vlen_dtype("i4"), None),
        (h5py.string_dtype(), None),
        (REFERENCE, lambda file: file["images"].ref),
        (REGION, lambda file: file["images/size"].regionref[:2]),
        (np.dtype(("i4", 3)), None),
    ],
)
@pytest.mark.parametrize("place", ["features/layer4", "images/status", "extra", "images/extra"])
def test_c13_other_arrays_are_refused(cache, kind, value, place):
    def change(file):
        if place in file:
            del file[place]
        made = file.create_dataset(place, (6,), kind)
        if value:
            made[0] = value(file)

    alter(cache, change)
    refused(cache, "neither numbers nor fixed-width text")


@pytest.mark.parametrize("place", ["/", "extractor", "images", "features/layer4", "images/size"])
@pytest.mark.parametrize("kind", [PAIR, np.dtype("V5"), h5py.vlen_dtype("i4"), REFERENCE, REGION])
def test_c13_other_attributes_are_refused(cache, place, kind):
    def change(file):
        kinds = h5py.h5t.py_create(kind, logical=True), h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(file[place].id, b"more", *kinds)

    alter(cache, change)
    refused(cache, "attribute more of .* is neither numbers nor text")


@pytest.mark.parametrize("place", ["more", "images/more", "features/more"])
def test_c13_stored_types_are_refused(cache, place):
    alter(cache, lambda file: file.__setitem__(place, np.dtype("f4")))
    refused(cache, "more is a stored type")


class Payload:
    """What a pickle may do to whoever loads it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_c13_no_pickle_is_loaded(cache, cli, tmp_path):
    trace = tmp_path / "was-here"
    data = pickle.dumps(Payload(trace), protocol=0)
    pickle.loads(data)  # noqa: S301 - it does work
    trace.unlink()

    def change(file):
        file["images"].create_dataset("labels", data=np.frombuffer(data, "u1"))
        file["images"].attrs["labels"] = np.frombuffer(data, "u1")
        file["extractor"].attrs["environment"] = data.decode()

    alter(cache, change)
    for verb in ("info", "verify", "export"):
        more = ["-o", tmp_path / "f.npz"] if verb == "export" else []
        cli(verb, cache, *more)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("place", "target", "match"),
    [
        ("images/status", h5py.SoftLink("/images/reason"), "images/status is a link"),
        ("images", h5py.SoftLink("/other"), "images is a link"),
        ("features/layer4", h5py.SoftLink("/features/layer3@max"), "layer4 is a link"),
        ("features/layer4", h5py.ExternalLink("secret.h5", "/x"), "layer4 is a link"),
        ("features", h5py.ExternalLink("secret.h5", "/"), "features is a link"),
        ("more", h5py.ExternalLink("secret.h5", "/x"), "more is a link"),
        ("extractor/more", h5py.ExternalLink("secret.h5", "/x"), "more is a link"),
        ("deep/er/more", h5py.SoftLink("/nowhere"), "more is a link"),
    ],
)
def test_c14_links_are_refused(cache, opened, place, target, match):
    with h5py.File(cache.parent / "secret.h5", "w") as file:
        file["x"] = ONE

    def change(file):
        if place == "images":
            file.move("images", "other")
        elif place in file:
            del file[place]
        file[place] = target

    alter(cache, change)
    with opened(cache.parent) as names:
        refused(cache, match)
    assert set(names) == {cache.name}


@pytest.mark.parametrize(
    ("place", "other"),
    [
        ("images/again", "/"),
        ("images/again", "images"),
        ("features/again", "features"),
        ("again", "images/status"),
        ("features/layer5", "features/layer4"),
        ("deep/a/b/c", "deep"),
    ],
)
def test_c14_second_names_are_refused(cache, place, other):
    def change(file):
        file.require_group("deep/a/b")
        file[place] = file[other]

    alter(cache, change)
    refused(cache, "is a second name")


def external(file):
    space = h5py.h5s.create_simple((6, 4))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_external(b"secret.raw", 0, 96)
    h5py.h5d.create(file["features"].id, b"layer4", h5py.h5t.IEEE_F32LE, space, plist)


def virtual(file):
    made = h5py.VirtualLayout((6, 4), "f4")
    made[...] = h5py.VirtualSource("secret.h5", "x", (6, 4))
    file["features"].create_virtual_dataset("layer4", made)


def virtual_without_end(file):
    # The size of such an array is found by opening the sources.
    made = h5py.VirtualLayout((6, 4), "f4", maxshape=(None, 4))
    source = h5py.VirtualSource("secret.h5", "x", (6, 4), maxshape=(None, 4))
    made[0 : h5py.h5s.UNLIMITED] = source[0 : h5py.h5s.UNLIMITED]
    file["features"].create_virtual_dataset("layer4", made)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (external, "lies in another file"),
        (virtual, "is a virtual dataset"),
        (virtual_without_end, "is a virtual dataset"),
    ],
)
def test_c15_no_other_file_is_opened(cache, opened, make, match):
    with h5py.File(cache.parent / "secret.h5", "w") as file:
        file.create_dataset("x", data=ONE, maxshape=(None, 4))
    (cache.parent / "secret.raw").write_bytes(ONE.tobytes())

    def change(file):
        attrs = dict(file["features/layer4"].attrs)
        del file["features/layer4"]
        make(file)
        file["features/layer4"].attrs.update(attrs)

    alter(cache, change)
    with opened(cache.parent) as names:
        refused(cache, match)
    assert set(names) == {cache.name}


def test_c15_a_sound_cache_opens_itself_alone(cache, opened):
    with opened(cache.parent) as names:
        FeatureCache(cache).features("layer4", [0])
    assert set(names) == {cache.name}


def test_c16_what_is_not_named_is_ignored(draw, toy, tmp_path):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="2")
    values = np.array(FeatureCache(path).features("2"))

    def change(file):
        file.attrs["note"] = "mine"
        file["extractor"].attrs["numbers"] = [1.5, 2.5]
        file["features/2"].attrs["note"] = np.bytes_(b"mine")
        file.create_dataset("mine/deep/packed", data=np.arange(100), chunks=(10,), compression=9)
        file["images"].create_dataset("names", data=np.array([b"a", b"bc"]))
        file["images"].create_dataset("empty", dtype="f4", shape=None)

    alter(path, change)
    found = FeatureCache(path)
    assert found.verify() == []
    assert list(found.layers) == ["2"]
    assert np.array_equal(found.features("2"), values)
    assert featurize.run(folder, path, backbone=toy).computed == 0
    draw(folder, ["new.png"], seed=9)
    assert featurize.run(folder, path, backbone=toy).computed == 1
    with h5py.File(path) as file:
        assert "mine" not in file
        assert "note" not in file.attrs
        assert set(file["images"]) == {row[0] for row in table(4)}


# The fingerprint


def test_c17_fingerprint(ran):
    with h5py.File(ran) as file:
        made = file["extractor"].attrs
        for array in file["features"].values():
            fields = {name: made[name] for name in ("backbone", "weights_sha256", "precision")}
            fields |= {name: array.attrs[name] for name in ("layer", "pool")}
            fields |= {"preprocess": json.loads(made["preprocess"]), "dtype": array.dtype.str}
            named = re.findall(r"`(\w+)`", clause(17).split("exactly the fields")[1].split("(")[0])
            assert set(fields) == set(named)
            text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            assert array.attrs["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()


def test_c17_canonical_json():
    assert canonical_json({"b": [1, 2.5], "a": "ö"}) == '{"a":"ö","b":[1,2.5]}'
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def test_c17_every_field_counts():
    fields = {
        **{"backbone": "a", "weights_sha256": "b", "preprocess": {"crop": 8}},
        **{"layer": "c", "pool": "d", "precision": "e", "dtype": "<f4"},
    }
    others = [{**fields, name: "x"} for name in fields if name != "preprocess"]
    others.append({**fields, "preprocess": {"crop": 9}})
    found = {compute_fingerprint(**chosen) for chosen in (fields, *others)}
    assert len(found) == 8


def test_c17_nothing_else_counts(folder, ran, tmp_path, monkeypatch):
    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    other = tmp_path / "other.h5"
    options = {"engine": "eager", "device": "cpu", "layers": "stage1,stage2,stem:max"}
    featurize.run(folder, other, backbone="seedling", **options)
    here, there = FeatureCache(ran), FeatureCache(other)
    for name, info in here.layers.items():
        assert there.layers[name].fingerprint == info.fingerprint
        rows = np.arange(len(NAMES))
        np.testing.assert_allclose(here.features(name, rows), there.features(name, rows), atol=1e-5)


def test_c18_digest_of_the_weights(ran):
    from safetensors.numpy import load_file

    tensors = load_file(
        Path(featurize.__file__).parent / "backbones" / "seedling" / "seedling.safetensors"
    )
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if not name.endswith("num_batches_tracked"):
            kind = tensor.dtype.kind
            tensor = tensor.astype("<f4") if kind == "f" else tensor
            header = json.dumps([name, tensor.dtype.str, list(tensor.shape)], separators=(",", ":"))
            whole.update(header.encode() + tensor.tobytes("C"))
    assert FeatureCache(ran).extractor.weights_sha256 == whole.hexdigest()


def test_c18_file_formats_agree(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from featurize import load_backbone

    shipped = Path(featurize.__file__).parent / "backbones" / "seedling" / "seedling.safetensors"
    tensors = load_file(shipped)
    torch.save(tensors, tmp_path / "w.pth")
    save_file(dict(reversed(tensors.items())), tmp_path / "w.safetensors")
    digests = {
        load_backbone("seedling", str(tmp_path / name)).weights_sha256
        for name in ("w.pth", "w.safetensors")
    }
    assert digests == {load_backbone("seedling").weights_sha256}


def test_c18_what_counts():
    weights = {"b": np.ones((2, 3), "f4"), "a": np.arange(3)}
    same = hash_weight_arrays(weights)
    assert hash_weight_arrays(dict(reversed(weights.items()))) == same
    assert hash_weight_arrays({**weights, "b": np.ones((2, 3), "f2")}) == same
    assert hash_weight_arrays({**weights, "b": np.ones((3, 2), "f4").T}) == same
    assert hash_weight_arrays({**weights, "x.num_batches_tracked": np.ones(1)}) == same
    for other in ({"b": np.ones((3, 2), "f4")}, {"c": np.ones(1)}, {"a": np.arange(3) + 1}):
        assert hash_weight_arrays({**weights, **other}) != same


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"backbone": "squeezenet1_1"}, "backbone"),
        ({"weights": "{other}"}, "weights_sha256"),
        ({"preprocess": "{recipe}"}, "preprocess.crop"),
        ({"decode": "fast"}, "preprocess.decode"),
        ({"precision": "bf16"}, "precision"),
        ({"dtype": "float16"}, "dtype"),
        ({"dtype": "float16", "precision": "bf16", "layers": "stage2"}, "precision.*dtype"),
    ],
)
def test_c19_other_extractors_are_refused(ran, ran_bytes, folder, tmp_path, options, field):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(
        Path(featurize.__file__).parent / "backbones" / "seedling" / "seedling.safetensors"
    )
    first = next(name for name, tensor in tensors.items() if tensor.dtype.kind == "f")
    save_file({**tensors, first: tensors[first] * 2}, tmp_path / "o.safetensors")
    recipe = {**FeatureCache(ran).extractor.preprocess, "crop": 16}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    places = {"{other}": str(tmp_path / "o.safetensors"), "{recipe}": str(tmp_path / "r.json")}
    options = {name: places.get(value, value) for name, value in options.items()}
    with pytest.raises(FingerprintMismatchError, match=field):
        featurize.run(folder, ran, **options)
    assert ran.read_bytes() == ran_bytes
    written = {path.name for path in tmp_path.glob("ran*")}
    assert written <= {"ran.h5", "ran.h5.lock"}


# How it is written


def test_c20_allocate(tape, allocate, tmp_path):
    recorder = tape()
    path = allocate(tmp_path / "c.h5")
    kinds = [event.kind for event in recorder.events]
    steps = [kind for k, kind in enumerate(kinds) if kind != kinds[k - 1]]
    assert [kind for kind in steps if kind not in ("write", "size")] == [
        *("create", "reserve", "sync", "rename", "sync folder")
    ]
    assert kinds[-3:] == ["sync", "rename", "sync folder"]
    names = [(event.name, event.new_name) for event in recorder.events if event.name]
    assert names == [("c.h5.tmp", ""), ("c.h5.tmp", "c.h5")]
    found = FeatureCache(path)
    assert found.counts == {"ok": 0, "failed": 0, "pending": 6}
    assert os.listdir(tmp_path) == ["c.h5"]
    with h5py.File(path) as file:
        for array in (*file["images"].values(), *file["features"].values()):
            plist = array.id.get_create_plist()
            assert plist.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY
            assert plist.get_fill_time() == h5py.h5d.FILL_TIME_NEVER


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="see C36")
def test_c20_where_there_is_no_room_nothing_is_left(allocate, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match=r"c\.h5"):
        allocate(tmp_path / "c.h5")
    assert os.listdir(tmp_path) == []


def test_c20_what_a_killed_run_left_is_removed(draw, toy, tmp_path):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    for _ in range(2):  # when the cache is made, and when it is there
        for name in ("c.h5.tmp", "c.h5.part.tmp"):
            (tmp_path / name).write_bytes(b"half a cache")
        featurize.run(folder, path, backbone=toy, layers="2")
        assert set(os.listdir(tmp_path)) == {"photos", "c.h5", "c.h5.lock"}


def outside(path):
    """A file's bytes between its arrays."""
    data = bytearray(path.read_bytes())
    for extent in read_layout(path).extents.values():
        size = extent.row_bytes * extent.shape[0]
        data[extent.offset : extent.offset + size] = bytes(size)
    return data


def test_c21_only_arrays_change(allocate, fill, draw, toy, tmp_path):
    path = allocate(tmp_path / "c.h5")
    before = outside(path)
    for shift in (0, 5):
        with CacheWriter(path) as into:
            fill(into, np.arange(5), shift)
            into.record_failures(
                np.array([5]), np.array([2]), np.ones((1, 32)), np.ones(1), np.ones(1)
            )
    assert outside(path) == before
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "ran.h5"
    featurize.run(folder, path, backbone=toy, layers="2")
    before = outside(path)
    draw(folder, NAMES[2:4], seed=1)
    assert featurize.run(folder, path, backbone=toy).computed == 2
    assert outside(path) == before


def test_c22_rows_then_sync_then_marks(allocate, fill, tape, tmp_path):
    path = allocate(tmp_path / "c.h5")
    recorder = tape()
    with CacheWriter(path) as into:
        fill(into, [0, 1])
        fill(into, [4])
        into.record_failures(np.array([5]), np.array([2]), np.ones((1, 32)), np.ones(1), np.ones(1))
        written = recorder.writes(path)
        assert not {"sync", "images/status"} & set(written)
        assert set(written) == set(read_layout(path).extents) - {
            "images/path",
            "images/status",
        }
        into.flush()
        assert recorder.writes(path)[len(written) :] == ["sync", *["images/status"] * 2]
    assert recorder.writes(path)[-1] == "sync"  # of the marks


def test_c22_one_sync_a_second(allocate, fill, tape, tmp_path, monkeypatch):
    path = allocate(tmp_path / "c.h5")
    recorder = tape()
    now = [100.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    with CacheWriter(path) as into:
        for row in range(6):
            fill(into, [row])
            into.flush_if_due()
            now[0] += 0.4
        found = recorder.writes(path)
    # At 0.8 s nothing was due; at 1.2 s it was.
    assert found.count("sync") == 1
    assert FeatureCache(path).counts["ok"] == 6


def test_c22_after_a_failed_sync_nothing_is_marked(allocate, fill, tmp_path, monkeypatch):
    path = allocate(tmp_path / "c.h5")
    real, fails = writer._fdatasync, [OSError(5, "Input/output error")]

    def sync(fd):
        if fails:  # as Linux does it: told once, and then the pages count as written
            raise fails.pop()
        real(fd)

    monkeypatch.setattr(writer, "_fdatasync", sync)
    with pytest.raises(OSError), CacheWriter(path) as into:  # noqa: PT012
        fill(into, [0, 1])
        into.flush()
    assert FeatureCache(path).counts["ok"] == 0


def test_c23_unmark_sync_write_sync_mark(cache, fill, tape, tmp_path):
    recorder = tape()
    with CacheWriter(cache) as into:
        fill(into, [1], shift=9)
        into.flush()
        found = recorder.writes(cache)
    assert found[:2] == ["images/status", "sync"]
    assert found[-2:] == ["sync", "images/status"]
    assert not {"sync", "images/status"} & set(found[2:-2])
    assert len(found) > 4


def test_c23_a_new_time_is_written_in_place(draw, toy, tape, tmp_path):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="2")
    os.utime(folder / NAMES[2], ns=(5, 5))
    recorder = tape()
    assert featurize.run(folder, path, backbone=toy).computed == 0
    assert set(recorder.writes(path)) <= {"images/size", "images/mtime_ns", "sync"}
    assert FeatureCache(path).column("mtime_ns")[2] == 5
    assert FeatureCache(path).counts["ok"] == 6


def test_c24_the_next_run_computes_what_is_pending(draw, toy, tmp_path):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="2")
    data = path.read_bytes()
    status = read_layout(path).extents["images/status"].offset
    features = read_layout(path).extents["features/2"]
    half = bytearray(data)  # killed while row 3 was written, before 2 to 5 were marked
    half[status + 2 : status + 6] = bytes(4)
    start = features.offset + 3 * features.row_bytes
    half[start + 8 : start + features.row_bytes] = b"\xff" * (features.row_bytes - 8)
    path.write_bytes(half)
    assert FeatureCache(path).counts == {"ok": 2, "failed": 0, "pending": 4}
    assert FeatureCache(path).verify() == []
    assert featurize.run(folder, path, backbone=toy).computed == 4
    np.testing.assert_allclose(
        FeatureCache(path).features("2"),
        np.frombuffer(data, "<f4", 6 * 6, features.offset).reshape(6, 6),
        atol=1e-5,
    )


def test_c25_one_writer(cache, draw, toy, tmp_path):
    folder = draw(tmp_path / "photos", NAMES)
    with WriteLock(cache) as lock:
        assert lock.path == tmp_path / "photos.h5.lock"
        with pytest.raises(CacheBusyError, match=r"another process is writing to .*photos\.h5;"):
            featurize.run(folder, cache, backbone=toy)
        assert FeatureCache(cache).features("layer4", [0]).shape == (1, 4)  # readers need none
        with h5py.File(cache) as file:
            assert file["images/status"][0] == 1
    assert lock.path.read_bytes() == b""
    with WriteLock(cache):
        pass


def test_c26_grow(draw, toy, tape, tmp_path):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="2")
    before = path.read_bytes()
    (folder / NAMES[0]).rename(folder / "a" / "renamed.png")
    draw(folder, ["new.png"], seed=1)
    recorder = tape()
    assert featurize.run(folder, path, backbone=toy).computed == 1
    disk, names = recorder.before, []
    for event in recorder.events:
        if event.kind == "rename":
            names.append((event.name, event.new_name))
            if event.new_name == "c.h5":
                part = disk.names["c.h5.part"]
                assert part not in disk.unsafe  # synced
                done = tmp_path / "part.h5"
                done.write_bytes(disk.now()["c.h5.part"])
                assert FeatureCache(done).counts == {"ok": 7, "failed": 0, "pending": 0}
                assert disk.now()["c.h5"] == before
        disk.apply(event)
    assert names == [("c.h5.part.tmp", "c.h5.part"), ("c.h5.part", "c.h5")]
    assert recorder.events[-1].kind == "sync folder"


def test_c26_where_locks_do_not_reach_the_other_host(draw, toy, tmp_path, monkeypatch):
    """Both grow the same part; one of them is the first to put it in place."""
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="2")
    part, replace = tmp_path / "c.h5.part", os.replace

    def be_second(source, target):
        if Path(source) == part:
            replace(source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", be_second)
    with pytest.raises(
        CacheBusyError, match=r"c\.h5\.part is gone: .*another host.*Nothing is lost"
    ):
        featurize.run(folder, path, backbone=toy, layers="2,0")
    monkeypatch.undo()
    assert featurize.run(folder, path, backbone=toy, layers="2,0").computed == 0
    assert FeatureCache(path).counts == {"ok": 6, "failed": 0, "pending": 0}


def test_c26_a_part_begun_for_others_is_a_source(draw, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)  # batches of 8
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="2")
    before = path.read_bytes()

    def stop(measure):
        if measure.images_run >= 8:
            raise KeyboardInterrupt

    draw(folder, [f"new/{k:02}.png" for k in range(60)], seed=1)
    with pytest.raises(featurize.FeaturizeError, match="goes on from there"):
        featurize.run(folder, path, backbone=toy, report=stop)
    part = tmp_path / "c.h5.part"
    kept = FeatureCache(part).counts["ok"]
    assert 6 + 8 <= kept < 66
    assert path.read_bytes() == before
    draw(folder, ["one-more.png"], seed=2)
    said = []
    done = featurize.run(folder, path, backbone=toy, say=said.append)
    assert done.computed == 67 - kept
    assert set(os.listdir(tmp_path)) == {"photos", "c.h5", "c.h5.lock"}


# How it is read


def test_c27_no_row_that_is_not_marked(cache):
    found = FeatureCache(cache)
    for rows in ([3], [5], [0, 4], None):
        with pytest.raises(RowNotReadyError, match="pending or failed"):
            found.features("layer4", rows)
    with pytest.raises(RowNotReadyError):
        found.features("layer4", [-1])  # counted from the end: the pending one
    with pytest.raises(IndexError):
        found.features("layer4", [6])
    assert found.features("layer4", []).shape == (0, 4)


def test_c27_marked_rows_are_finite(cache, cli, draw, tmp_path):
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    network[0].weight.data.fill_(float("inf"))
    recipe = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    odd = featurize.Backbone(network, name="odd", preprocess=recipe)
    path = tmp_path / "c.h5"
    folder = draw(tmp_path / "photos", NAMES)
    done = featurize.run(folder, path, backbone=odd, layers="0")
    assert done.failures == dict.fromkeys(NAMES, "features are not finite")

    def change(file):
        file["features/layer4"][1, 2] = np.nan
        file["features/layer4"][5, 2] = np.nan  # pending: no matter

    alter(cache, change)
    done = cli("verify", cache, "--json")
    not_finite, damaged = json.loads(done.stdout)["problems"]
    assert not_finite == "features/layer4: row 1 is marked but not finite"
    assert damaged.startswith("features/layer4: the numbers of row 1 are not those that were")
    assert done.exit_code == 2


def test_c28_readers_while_it_is_filled(allocate, fill, tmp_path):
    path = allocate(tmp_path / "c.h5")
    reader = FeatureCache(path)
    mapped = reader.mapped("layer4")
    with WriteLock(path), CacheWriter(path) as into:
        for row in range(6):
            values = fill(into, [row])["layer4"]
            with pytest.raises(RowNotReadyError):
                reader.features("layer4", [row])
            into.flush()
            assert reader.counts["ok"] == row + 1
            assert np.array_equal(reader.features("layer4", [row]), values)
            assert np.array_equal(mapped[row], values[0])
    assert len(reader.features("layer4")) == 6


@pytest.mark.parametrize("growths", [1, 2])
def test_c28_an_old_reader_and_a_grown_cache(draw, toy, tmp_path, growths):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="0,2")
    reader, rows = FeatureCache(path), np.arange(6)
    before = {name: FeatureCache(path).features(name, rows) for name in ("0", "2")}
    columns = {name: FeatureCache(path).column(name) for name in ("path", "size", "status")}
    for k in range(growths):
        draw(folder, [f"{k}/{n}.png" for n in range(40)], seed=k + 1)
        featurize.run(folder, path, backbone=toy)
    for what, asked in (
        (before, lambda name: reader.features(name, rows)),
        (columns, reader.column),
        (before, lambda name: reader.mapped(name)[rows]),
    ):
        for name, old in what.items():
            try:
                found = asked(name)
            except featurize.FeaturizeError:
                continue  # to say that it is gone is as good
            assert np.array_equal(found, old), name


def attribute(place, name, value):
    return lambda file: file[place].attrs.__setitem__(name, value)


def newer(version):
    return attribute("/", "format_version", version)


def test_c29_greater_major_versions_are_refused(cache, cli):
    alter(cache, newer("2.0"))
    refused(cache, "format version 2.0 is newer than this Headgraft; upgrade it")
    assert cli("info", cache).exit_code == 2


def test_c30_greater_minor_versions_are_read(cache):
    alter(cache, newer("1.17"))
    found = FeatureCache(cache)
    assert found.format_version == "1.17"
    assert found.features("layer4", [0, 1, 2]).shape == (3, 4)
    alter(cache, attribute("/", "required_features", '["sparse rows"]'))
    refused(cache, r"needs features unknown to this Headgraft \(sparse rows\)")


def test_c31_the_first_release_is_read():
    found = FeatureCache(FIRST_RELEASE)
    assert found.verify() == []
    assert found.format_version == "1.0"
    assert found.paths == ["a/1.png", "a/2.png", "b/3.png", "b/ö.png", "c/4.png", "c/5.png"]
    assert found.status.tolist() == [1, 1, 1, 2, 2, 0]
    assert found.failures == {"b/ö.png": "truncated or damaged", "c/4.png": "permission denied"}
    assert found.extractor == cache_format.Extractor(
        "toy",
        "V1",
        "5" * 64,
        {
            **{"resize": 8, "crop": 8, "interpolation": "bilinear", "decode": "exact"},
            **{"mean": [0.5] * 3, "std": [0.25] * 3},
        },
        "float32",
        {"torch": "2"},
    )
    assert [(info.name, info.dim, info.dtype) for info in found.layers.values()] == [
        ("layer3@max", 192, "<f4"),
        ("layer4", 320, "<f2"),
    ]
    digest = "4d4af05d21bcd2b309bb15d2be6986f8e89f34a46cad75f99c7bd6832057e29c"
    assert found.layers["layer4"].fingerprint == digest
    for info in found.layers.values():
        expected = np.arange(3)[:, None] + np.arange(info.dim) / 64
        assert np.array_equal(found.features(info.name, [0, 1, 2]), expected.astype(info.dtype))
    assert found.column("sha256")[:, 0].tolist() == [1, 2, 3, 7, 0, 0]
    assert found.column("size").tolist() == [100, 101, 102, 0, 0, 105]
    assert found.column("mtime_ns").tolist() == [10**18, 10**18 + 1, 10**18 + 2, 0, 0, 10**18 + 5]


def without(place, name):
    return lambda file: file[place].attrs.pop(name)


def replaced(name):
    def change(file):
        file.pop(name)
        file[name] = ONE

    return change


ROOT, MADE = ([row[0] for row in table(k) if "informative" not in row[2]] for k in (2, 3))
COLUMNS, GROUPS = [row[0] for row in table(4)], ("extractor", "images", "features")
ODD = {
    "format": ("thesis", np.bytes_(b"thesis")),
    "format_version": ("", "one", "1", "1.x", 1, 1.0),
    "required_features": ("", "{}", "null", "[1]", '"a"'),
    "n_rows": (0, -1, 5, 7, 2**40, 6.5, "6"),
}
BREAKS = {
    **{f"no {name}": without("/", name) for name in ROOT},
    **{f"no {name}": without("extractor", name) for name in MADE},
    **{f"many {name}": attribute("/", name, np.arange(3)) for name in ROOT},
    **{f"{name} {odd!r}": attribute("/", name, odd) for name, odds in ODD.items() for odd in odds},
    **{f"{name} no text": attribute("extractor", name, 7) for name in MADE},
    **{
        f"preprocess {odd!r}": attribute("extractor", "preprocess", odd)
        for odd in ("", "{", "[]", "{}", "NaN", '{"crop":"9"}')
    },
    **{f"no {name}": lambda file, name=name: file["images"].pop(name) for name in COLUMNS},
    **{f"{n} f4": replace_array(f"images/{n}", data=np.zeros(6, "f4")) for n in COLUMNS},
    **{f"{n} 5": replace_array(f"images/{n}", data=np.zeros((5, 32), "u1")) for n in COLUMNS},
    **{f"{n} chunked": replace_array(f"images/{n}", chunks=True) for n in COLUMNS},
    "path ASCII": replace_array("images/path", data=np.array([b"a", b"b", b"c", b"d", b"e", b"f"])),
    **{f"no group {name}": lambda file, name=name: file.pop(name) for name in GROUPS},
    **{f"{name} an array": replaced(name) for name in GROUPS},
}


@pytest.mark.parametrize("name", BREAKS)
def test_c32_what_breaks_a_clause_is_refused(cache, cli, name):
    alter(cache, BREAKS[name])
    refused(cache, ".")
    for verb in ("info", "verify"):
        assert cli(verb, cache).exit_code == 2


@pytest.mark.parametrize(
    "change",
    [
        *(
            without("/", row[0])
            for row in table(2)
            if "informative" in row[2] and not re.search("there are any|since 1.3", row[2])
        ),
        *(without("extractor", row[0]) for row in table(3) if "informative" in row[2]),
    ],
)
def test_c32_what_is_informative_may_be_missing(cache, cli, change):
    alter(cache, change)
    assert FeatureCache(cache).verify() == []
    assert cli("info", cache).exit_code == 0
    assert cli("info", cache, "--json").exit_code == 0


@pytest.mark.parametrize("value", ["", "{", "[]", "7", 7])
def test_c32_what_is_informative_may_be_nonsense(cache, toy, draw, tmp_path, value):
    alter(cache, attribute("extractor", "environment", value))
    alter(cache, attribute("/", "root", value))
    try:
        found = FeatureCache(cache)
    except CacheFormatError:
        return
    assert found.verify() == []
    with pytest.raises(FingerprintMismatchError):  # the toy's weights are not those of `cache`
        featurize.run(draw(tmp_path / "photos", NAMES), cache, backbone=toy)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 5000, b"\x89HDF\r\n\x1a\n", b"my thesis" * 1000, b"PK\3\4", b"\x89PNG"]
)
def test_c32_no_cache_at_all(tmp_path, data):
    path = tmp_path / "c.h5"
    path.write_bytes(data)
    refused(path, "is not a feature cache, or is damaged")


def test_c32_no_cache_but_a_folder_or_another_hdf5_file(tmp_path):
    (tmp_path / "folder.h5").mkdir()
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = ONE
    refused(tmp_path / "folder.h5", "is not a feature cache")
    refused(tmp_path / "other.h5", "is HDF5 but not a feature cache")
    with pytest.raises(FileNotFoundError, match="make it with `featurize run`"):
        FeatureCache(tmp_path / "none.h5")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_c32_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    code = "import signal, sys, featurize; signal.alarm(10); featurize.FeatureCache(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "pipe.h5"], capture_output=True)
    assert b"CacheFormatError" in done.stderr, done.returncode


@pytest.mark.slow
def test_c32_cut_short(small, cache):
    ends = {
        end
        for extent in read_layout(cache).extents.values()
        for start in (extent.offset, extent.offset + extent.row_bytes * extent.shape[0])
        for end in (start - 1, start, start + 1)
    }
    ends |= {*range(0, len(small), 2003), *range(0, 100, 7), *range(len(small) - 9, len(small))}
    for end in sorted(end for end in ends if end < len(small)):
        cache.write_bytes(small[:end])
        with pytest.raises(CacheFormatError, match=re.escape(str(cache))):
            FeatureCache(cache)


def test_c32_cut_short_with_a_forged_end(small, cache):
    last = max(extent.offset for extent in read_layout(cache).extents.values())
    for end in (last, last + 1, len(small) - 1):
        data = bytearray(small[:end])
        assert data[40:48] == len(small).to_bytes(8, "little")  # HDF5's own note of the end
        data[40:48] = end.to_bytes(8, "little")
        cache.write_bytes(data)
        refused(cache, ".")


@pytest.mark.parametrize("offset", [2**63 - 8, 2**64 - 2, 2**40, 94_300, 0, 4096])
def test_c32_arrays_elsewhere(small, cache, offset):
    # Outside the file: refused. Inside it, over others: numbers, be they what they are.
    extent = read_layout(cache).extents["features/layer4"]
    here = extent.offset.to_bytes(8, "little") + (96).to_bytes(8, "little")
    assert small.count(here) == 1
    data = bytearray(small.replace(here, offset.to_bytes(8, "little") + here[8:]))
    cache.write_bytes(data)
    if offset != 4096:
        refused(cache, ".")
    else:
        assert FeatureCache(cache).features("layer4", [0]).shape == (1, 4)


@pytest.mark.parametrize("rows", [7, 2**31, 2**40, 2**61, 2**64 - 1])
def test_c32_claims_of_size_are_refused(cache, rows):
    # Every shape and n_rows agree; only the file is too small for them.
    def change(file):
        file.attrs["n_rows"] = np.uint64(rows) if rows >= 2**63 else np.int64(rows)

    alter(cache, change)
    data = cache.read_bytes()
    six, many = (6).to_bytes(8, "little"), rows.to_bytes(8, "little")
    heads = (b"\x01\x02\x01\0\0\0\0\0", b"\x01\x01\x01\0\0\0\0\0")  # simple, with maximal sizes
    for head in heads:
        data = data.replace(head + six, head + many)
    data = re.sub(
        rb"(?s)(\x01[\x01\x02]\x01\0{5}" + re.escape(many) + rb"(?:.{8})?)" + six,
        lambda match: match[1] + many,
        data,
    )
    cache.write_bytes(data)
    refused(cache, ".")


DAMAGE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from featurize import FeatureCache
from featurize.cache.layout import read_layout
from featurize.errors import CacheFormatError

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
name = sys.argv[1]
sound = Path(name).read_bytes()
meta = np.frombuffer(sound, np.uint8) != 0
for extent in read_layout(name).extents.values():
    meta[extent.offset : extent.offset + extent.row_bytes * extent.shape[0]] = False
meta = np.flatnonzero(meta)
for seed in range(int(sys.argv[2]), int(sys.argv[3])):
    rng = np.random.default_rng(seed)
    data = bytearray(sound)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.choice(meta) if rng.random() < 0.8 else rng.integers(len(data)))
        kind = rng.integers(4)
        if kind < 2:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[place] = int(rng.integers(256))
        else:
            data[place : place + 8] = rng.choice([b"\\xff", b"\\0"]) * len(data[place : place + 8])
    Path(name).write_bytes(data)
    print(seed, flush=True)
    signal.alarm(20)  # kills, unlike a Python timeout, also what hangs in C
    try:
        found = FeatureCache(name)
        problems = found.verify()
        if not any("path" in problem for problem in problems):
            found.failures
        for layer in found.layers:
            found.features(layer, np.flatnonzero(found.status == 1))
    except CacheFormatError as error:
        assert name in str(error)
    signal.alarm(0)
"""


@pytest.mark.parametrize(
    ("first", "last"), [(0, 100), pytest.param(100, 400, marks=pytest.mark.slow)]
)
def test_c32_damage_never_crashes_or_hangs(cache, first, last):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DAMAGE, cache, str(first), str(last)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"seed {done.stdout.split()[-1:]}: {done.stderr}"


def test_c33_when_what_is_checked(cache, cli):
    def change(file):
        file["images/path"][2] = b"../x"
        file["images/status"][0] = 9
        file["images/reason"][3] = 0
        file["features/layer4"][1] = np.inf
        file["images/sha256"][2] = 0

    alter(cache, change)
    found = FeatureCache(cache)  # the layout is sound
    assert found.features("layer4", [2]).shape == (1, 4)
    with pytest.raises(CacheFormatError):
        _ = found.paths
    problems = json.loads(cli("verify", cache, "--json").stdout)["problems"]
    for word in ("path '../x'", "status of row 0", "no reason", "no sha256", "row 1 is marked"):
        assert any(word in problem for problem in problems), word


@pytest.mark.parametrize("verb", ["info", "verify"])
@pytest.mark.parametrize("make", ["text", "cut", "newer", "paths", "missing"])
def test_c34_a_line_and_exit_2(cache, command, verb, make):
    if make == "text":
        cache.write_text("my thesis")
    elif make == "cut":
        cache.write_bytes(cache.read_bytes()[:-50])
    elif make == "newer":
        alter(cache, newer("9.1"))
    elif make == "paths":
        alter(cache, lambda file: file["images/path"].__setitem__(0, b"/x"))
    else:
        cache.unlink()
    done = command("featurize", verb, cache)
    assert done.returncode == 2
    said = (done.stderr or done.stdout).strip().splitlines()
    assert str(cache) in said[0]
    assert len(said) <= 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["text", "hdf5", "newer", "nothing in it", "folder"])
def test_c35_what_is_not_a_cache_is_left_alone(cache, cli, draw, tmp_path, what):
    if what == "hdf5":
        alter(cache, lambda file: file.attrs.pop("format"))
    elif what == "newer":
        alter(cache, newer("2.0"))
    elif what == "folder":
        cache.unlink()
        cache.mkdir()
    else:
        cache.write_bytes(b"my thesis" if what == "text" else b"")
    before = cache.is_file() and cache.read_bytes()
    photos = draw(tmp_path / "photos", NAMES)
    done = cli("run", photos, "-o", cache, "--backbone", "seedling")
    assert done.exit_code == 2
    assert str(cache) in done.stderr
    assert (cache.is_file() and cache.read_bytes()) == before
    assert not list(tmp_path.glob("*.tmp"))


def replaced_checksums(name="layer4", shape=(6, 2), dtype="<u4", chunks=None):
    """Another array in the place of a layer's checksums."""

    def change(file):
        del file["checksums/layer4"]
        file["checksums"].create_dataset(name, data=np.zeros(shape, dtype), chunks=chunks)

    return change


# Checksums, and what else 1.1 is stricter in


def test_c37_checksums(cache, ran):
    for path in (cache, ran):
        with h5py.File(path) as file:
            assert set(file["checksums"]) == set(file["features"])
            marked = np.flatnonzero(file["images/status"][:] == 1)
            assert len(marked)
            for name, stored in file["checksums"].items():
                assert (stored.shape, stored.dtype) == (
                    (len(file["images/path"]), 2),
                    np.dtype("<u4"),
                )
                features, sha256 = file["features"][name][:], file["images/sha256"][:]
                for row in marked:
                    expected = [zlib.crc32(a[row].tobytes()) for a in (sha256, features)]
                    assert stored[row].tolist() == expected


@pytest.mark.parametrize(
    "change",
    [
        *(
            replaced_checksums(**how)
            for how in (
                {"shape": (6, 1)},
                {"dtype": "<i4"},
                {"chunks": (1, 2)},
                {"name": "elsewhere"},
            )
        ),
    ],
)
def test_c37_other_columns_are_refused(cache, change):
    alter(cache, change)
    refused(cache, "checksums/")


def flipped(path, name, row, byte=0):
    """Turn one bit of a row over, where it lies on disk."""
    extent = read_layout(path).extents[name]
    with open(path, "r+b") as file:
        file.seek(extent.offset + row * extent.row_bytes + byte)
        (before,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([before ^ 1]))


@pytest.mark.parametrize(("layer", "byte"), [("layer3@max", 0), ("layer3@max", 31), ("layer4", 9)])
def test_c38_verify_finds_a_bit_that_turned(cache, cli, layer, byte):
    assert cli("verify", cache).exit_code == 0
    flipped(cache, f"features/{layer}", 2, byte)
    done = cli("verify", cache)
    assert done.exit_code == 2
    assert f"features/{layer}: the numbers of row 2 are not those that were written" in done.stdout


def test_c38_rows_of_an_older_release_have_none(cache, cli):
    """It writes a row's hash and numbers, and leaves the checksum of before."""
    for name in ("images/sha256", "features/layer4"):
        flipped(cache, name, 1)
    assert FeatureCache(cache).verify() == []
    assert FeatureCache(cache).unchecked_rows == 1
    done = cli("verify", cache)
    assert (done.exit_code, "1 row has no checksum" in done.stderr) == (0, True)


def test_c38_rehash_and_growth_compute_damaged_rows_again(draw, toy, tmp_path):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="0", engine="eager")
    sound = np.array(FeatureCache(path).features("0"))
    flipped(path, "features/0", 3, 2)
    assert featurize.run(folder, path, backbone=toy).computed == 0
    assert featurize.run(folder, path, backbone=toy, rehash=True).computed == 1
    assert np.allclose(FeatureCache(path).features("0"), sound, atol=1e-6)
    flipped(path, "features/0", 3, 2)
    draw(folder, ["d/7.png"], seed=7)
    assert featurize.run(folder, path, backbone=toy).computed == 2
    assert np.allclose(FeatureCache(path).features("0")[:6], sound, atol=1e-6)
    assert FeatureCache(path).verify() == []


def test_c38_a_copied_row_takes_its_checksum_along(draw, toy, tmp_path):
    """A repeated image copies features within the file: damage must not come out as sound."""
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="0")
    flipped(path, "features/0", 0, 2)
    shutil.copy(folder / NAMES[0], folder / NAMES[1])  # now the same picture as the damaged one
    done = featurize.run(folder, path, backbone=toy)
    assert (done.computed, len(FeatureCache(path).verify())) == (0, 2)


def test_c38_fill(tmp_path, cli):
    path = Path(shutil.copy(FIRST_RELEASE, tmp_path / "old.h5"))
    before = FeatureCache(path)
    assert before.unchecked_rows == 3
    done = cli("verify", path, "--fill", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"ok": True, "problems": []}
    found = FeatureCache(path)
    assert (found.format_version, found.unchecked_rows, found.verify()) == ("1.1", 0, [])
    assert found.paths == before.paths
    for name in ("sha256", "size", "mtime_ns", "status", "reason"):
        assert np.array_equal(found.column(name), before.column(name))
    for name, info in before.layers.items():
        assert found.layers[name] == info
        assert np.array_equal(found.features(name, [0, 1, 2]), before.features(name, [0, 1, 2]))
    flipped(path, "features/layer4", 0)
    assert len(FeatureCache(path).verify()) == 1
    assert cli("verify", path, "--fill").exit_code == 2  # does not make damage look sound
    assert len(FeatureCache(path).verify()) == 1


def test_c38_an_old_cache_is_completed_and_grown_with_nothing_computed(draw, toy, tmp_path):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    featurize.run(folder, path, backbone=toy, layers="0")

    def age(file):
        file.attrs["format_version"] = "1.0"
        del file.attrs["id"]
        del file["checksums"]

    alter(path, age)
    features = np.array(FeatureCache(path).features("0"))
    assert featurize.run(folder, path, backbone=toy).computed == 0
    assert FeatureCache(path).format_version == "1.0"
    os.utime(folder / NAMES[0])
    assert featurize.run(folder, path, backbone=toy).computed == 0
    (folder / NAMES[0]).rename(folder / "a/0.png")
    assert featurize.run(folder, path, backbone=toy).computed == 0
    found = FeatureCache(path)
    assert (found.format_version, found.unchecked_rows, found.verify()) == ("1.1", 6, [])
    assert np.array_equal(found.features("0"), features)


@pytest.mark.parametrize(
    "pair",
    [
        ("features/layer4", "features/layer3@max"),
        ("images/sha256", "features/layer4"),
        ("checksums/layer4", "images/mtime_ns"),
        ("images/path", "images/status"),
    ],
)
def test_c39_no_byte_is_two_things(cache, pair):
    """The address of one array is set to that of another, in the file's own bytes."""
    extents = read_layout(cache).extents
    moved, onto = (extents[name] for name in pair)
    size = (moved.row_bytes * moved.shape[0]).to_bytes(8, "little")
    here, there = (extent.offset.to_bytes(8, "little") + size for extent in (moved, onto))
    data = cache.read_bytes()
    assert data.count(here) == 1
    cache.write_bytes(data.replace(here, there))
    refused(cache, "lies on the bytes of")


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("extractor", "backbone", "other"),
        ("extractor", "weights_sha256", "6" * 64),
        ("extractor", "precision", "fp16"),
        (
            "extractor",
            "preprocess",
            canonical_json(
                {
                    "resize": 9,
                    "crop": 8,
                    "interpolation": "bilinear",
                    "decode": "exact",
                    "mean": [0.5] * 3,
                    "std": [0.25] * 3,
                }
            ),
        ),
        ("features/layer4", "fingerprint", "0" * 64),
    ],
)
def test_c40_what_was_altered_is_refused(cache, place, name, value):
    alter(cache, lambda file: file[place].attrs.__setitem__(name, value))
    refused(cache, "its fingerprint is not that of")


def test_c41_an_overwritten_file_is_noticed(cache, allocate, fill, tmp_path):
    """As `cp NEW.h5 C.h5` does it: the same file, the same layout, other numbers."""
    reader = FeatureCache(cache)
    assert reader.features("layer4", [0]).shape == (1, 4)
    mapped = reader.mapped("layer4")
    assert mapped.shape == (6, 4)
    other = allocate(tmp_path / "other.h5")
    with CacheWriter(other) as into:
        fill(into, [0, 1, 2, 3, 4, 5], shift=7)
    assert other.stat().st_size == cache.stat().st_size
    cache.write_bytes(other.read_bytes())
    reads = (
        lambda: reader.features("layer4", [0]),
        lambda: reader.features("layer4"),
        lambda: reader.mapped("layer4"),
        lambda: reader.status,
        lambda: reader.column("sha256"),
    )
    for read in reads:
        with pytest.raises(CacheReplacedError, match=r"overwritten or cut short .* open it again"):
            read()
    assert FeatureCache(cache).features("layer4").shape == (6, 4)


def test_c41_a_file_cut_short_is_an_error_and_no_crash(cache, tmp_path):
    code = (
        "import sys, os\nfrom featurize import FeatureCache\n"
        "from featurize.errors import CacheReplacedError\n"
        "reader = FeatureCache(sys.argv[1])\nreader.features('layer4', [0])\n"
        "file = reader._joined.files[0]\n"
        "os.truncate(sys.argv[1], file.layout.extents['features/layer4'].offset)\n"
        "for rows in ([0, 1, 2], None):\n"
        "    try: reader.features('layer4', rows)\n"
        "    except CacheReplacedError as error: print(error)\n"
        "file._seal = file._compute_seal(file._hold())  # cut between the look and the read\n"
        "try: reader.stored('layer4', __import__('numpy').arange(3))\n"
        "except CacheReplacedError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, cache], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("open it again") == 3


# Other platforms

ELSEWHERE = """
import os, sys, types
import h5py, numpy, torch, featurize
for name in sys.argv[3].split():
    delattr(os, name)
import featurize.cache.writer as writer
assert writer._fdatasync is getattr(os, "fdatasync", os.fsync)
done = featurize.run(sys.argv[1], sys.argv[2], backbone="seedling", layers="stem:max,stage1")
assert (done.computed, done.failed) == (6, 1), done
"""


@pytest.mark.long
def test_c36_fallbacks_give_the_same(folder, ran, tmp_path):
    other = tmp_path / "other.h5"
    missing = "posix_fallocate fdatasync pwrite preadv sched_getaffinity"
    subprocess.run([sys.executable, "-c", ELSEWHERE, folder, other, missing], check=True)
    here, there = FeatureCache(ran), FeatureCache(other)
    assert there.verify() == []
    assert here.status.tolist() == there.status.tolist()
    for name in here.layers:
        rows = np.arange(6)
        assert np.allclose(here.features(name, rows), there.features(name, rows), atol=1e-5)


def test_c36_the_order_stays_without_pwrite(cache, fill, monkeypatch):
    monkeypatch.delattr(os, "pwrite")
    status = read_layout(cache).extents["images/status"].offset
    real, log, place = (os.lseek, os.write), [], [0]

    def seek(fd, offset, whence):
        place[0] = offset
        return real[0](fd, offset, whence)

    def write(fd, data):
        log.append("mark" if place[0] == status + 5 else "row")
        return real[1](fd, data[: max(1, len(data) // 2)])  # half of it, as it may

    monkeypatch.setattr(os, "lseek", seek)
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(writer, "_fdatasync", lambda fd: log.append("sync"))
    with CacheWriter(cache) as into:
        values = fill(into, [5])
    assert log == [*["row"] * (len(log) - 3), "sync", "mark", "sync"]
    assert np.array_equal(FeatureCache(cache).features("layer4", [5]), values["layer4"])


def test_c36_a_full_disk_without_reserved_space(allocate, fill, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path = allocate(tmp_path / "c.h5")
    real, left = os.pwrite, [50]

    def pwrite(fd, data, offset):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    full = pytest.raises(DiskFullError, match=r"no room to write .*c\.h5")
    with full, CacheWriter(path) as into:
        for row in range(6):
            fill(into, [row])
            into.flush()
    found = FeatureCache(path)
    assert found.verify() == []
    assert found.counts["ok"] == 5


WINDOWS = """
import fcntl, os, sys, types
from pathlib import Path
import h5py, numpy

def locking(fd, mode, count):
    assert (mode, count) == (2, 1)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
real, sys.platform = sys.platform, "win32"
from featurize.cache.lock import WriteLock
with WriteLock(Path(sys.argv[1])):
    try:
        WriteLock(Path(sys.argv[1])).__enter__()
    except OSError as error:
        assert type(error).__name__ == "CacheBusyError"
        sys.platform = real
        raise SystemExit(7)
"""


def test_c36_windows_locks_the_first_byte(tmp_path):
    done = subprocess.run([sys.executable, "-c", WINDOWS, tmp_path / "c.h5"])
    assert done.returncode == 7


def test_c36_folders_that_cannot_be_synced(allocate, tmp_path, monkeypatch):
    real = os.open

    def no_folders(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", no_folders)
    assert FeatureCache(allocate(tmp_path / "c.h5")).counts["pending"] == 6


# How an image that is not square becomes one, since 1.2


@pytest.mark.parametrize("fit", ["squash", "border"])
def test_c42_a_cache_that_does_not_crop_asks_for_a_reader_that_knows(
    draw, toy, tmp_path, cli, monkeypatch, fit
):
    folder, path = draw(tmp_path / "photos", NAMES), tmp_path / "c.h5"
    fitted = copy.copy(toy)
    fitted.preprocess = replace(toy.preprocess, fit=fit)
    featurize.run(folder, path, backbone=fitted, layers="0")
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == "1.2"
        assert json.loads(file.attrs["required_features"]) == ["preprocess.fit"]
        assert json.loads(file["extractor"].attrs["preprocess"])["fit"] == fit
    found = FeatureCache(path)
    assert (found.extractor.preprocess.fit, found.verify()) == (fit, [])
    assert cli("info", path, "--json").exit_code == 0
    draw(folder, ["new.png"], seed=1)
    assert featurize.run(folder, path, backbone=fitted).computed == 1
    with pytest.raises(FingerprintMismatchError, match=r"preprocess\.fit is .*, asked for 'crop'"):
        featurize.run(folder, path, backbone=toy)
    # A release that knows only 1.1 has no such feature.
    monkeypatch.setattr("featurize.cache.violations.SUPPORTED_FEATURES", frozenset())
    refused(path, r"needs features unknown to this Headgraft \(preprocess\.fit\); upgrade it")


@pytest.mark.parametrize(
    ("fit", "required", "message"),
    [
        ("crop", '["preprocess.fit"]', "fit is left out where it is crop"),
        ("squash", "[]", "names preprocess.fit where preprocess has it, and only there"),
        (None, '["preprocess.fit"]', "names preprocess.fit where preprocess has it, and only"),
        ("pad", '["preprocess.fit"]', "fit is one of crop, squash, border, not 'pad'"),
    ],
)
def test_c42_what_says_it_otherwise_is_refused(cache, fit, required, message):
    def change(file):
        fields = json.loads(file["extractor"].attrs["preprocess"]) | ({"fit": fit} if fit else {})
        file["extractor"].attrs["preprocess"] = canonical_json(fields)
        file.attrs["required_features"] = required

    alter(cache, change)
    refused(cache, message)

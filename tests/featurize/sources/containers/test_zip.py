"""Zip archives as sources: what is listed, what is read, and what strangers may put into them."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest

from featurize.errors import CallError, UnknownPathError
from featurize.images import reading
from featurize.images.reasons import (
    DAMAGED,
    EMPTY,
    NO_PERMISSION,
    READ_ERROR,
    TOO_LARGE,
    UNSUPPORTED,
    VANISHED,
)
from featurize.sources.containers import zip_source
from featurize.sources.containers.zip_source import ZipSource
from featurize.sources.listing import make_stamp

from .packing import FarStore, age, make_images, open_files, read_all

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def open_zips(folder, *names, **options):
    return open_files(ZipSource, folder, *names, **options)


def pack(path, members, method=STORED):
    """Write a zip archive of long ago."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    age(path)
    return path


def patch(path, *changes):
    """Write other bytes into the first place where some lie; a file of long ago."""
    data = path.read_bytes()
    for old, new in changes:
        assert len(old) == len(new)
        assert old in data
        data = data.replace(old, new)
    path.write_bytes(data)
    age(path)


# --- what is listed and read ---------------------------------------------------------------


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_archives_give_what_was_packed(tmp_path, method):
    contents = {}
    for name in ("a.zip", "b.zip"):
        images = [b"text " * 500, *make_images(30)]
        members = [(f"x/{k}.jpg", data) for k, data in enumerate(images)]
        pack(tmp_path / name, [*members, ("notes.txt", b"")], method)
        contents |= {f"{name}/{member}": data for member, data in members}
    listing = open_zips(tmp_path).list_images()
    assert listing.paths == sorted(contents)
    assert read_all(listing) == contents
    assert (listing.skipped, listing.unlisted, listing.columns) == ([], (), {})
    first = contents[listing.paths[0]]
    assert listing.stamps[0] == make_stamp(zlib.crc32(first), len(first))
    assert listing.source.kind == "zip archives"
    source = open_zips(tmp_path, "b.zip", is_single=True)
    single = source.list_images()
    assert read_all(single) == {p[6:]: d for p, d in contents.items() if p.startswith("b.zip")}
    assert (source.kind, source.root) == ("zip archive", str(tmp_path / "b.zip"))
    assert source.describe() == {"kind": "zip"}


def test_packing_anew_changes_no_stamp(tmp_path):
    members = [(f"{k}.jpg", data) for k, data in enumerate(make_images(5))]
    pack(tmp_path / "a.zip", members)
    before = open_zips(tmp_path).list_images()
    pack(tmp_path / "a.zip", members[::-1], DEFLATED)
    after = open_zips(tmp_path).list_images()
    assert (before.stamps == after.stamps).all()
    assert (before.places.offsets != after.places.offsets).any()


def test_archives_of_other_makers(tmp_path):
    """Written as a stream (sizes after the data), with zip64 fields, and data put before."""
    members = [(f"Größe/{k}.jpg", data) for k, data in enumerate(make_images(5))]
    with (
        (tmp_path / "a.zip").open("wb") as file,
        zipfile.ZipFile(Unseekable(file), "w", DEFLATED) as archive,
    ):
        for name, data in members:
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert read_all(open_zips(tmp_path, is_single=True).list_images()) == dict(members)
    pack(tmp_path / "a.zip", members)
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 50 + (tmp_path / "a.zip").read_bytes())
    assert read_all(open_zips(tmp_path, is_single=True).list_images()) == dict(members)


class Unseekable:
    def __init__(self, file):
        self.write, self.flush = file.write, file.flush


def test_known_archives_are_not_opened(tmp_path):
    for name in ("a.zip", "b.zip"):
        pack(tmp_path / name, [("1.jpg", name.encode())])
    source = open_zips(tmp_path)
    known = source.list_images()
    (tmp_path / "a.zip").unlink()
    listing = source.list_images(known)
    assert listing.reused == ("a.zip", "b.zip")
    assert listing.paths == known.paths
    assert read_all(listing) == {"a.zip/1.jpg": VANISHED, "b.zip/1.jpg": b"b.zip"}


def test_located_by_key_and_selected(tmp_path):
    pack(tmp_path / "a.zip", [(f"{k}.jpg", b"%d" % k) for k in range(5)])
    source = pickle.loads(pickle.dumps(open_zips(tmp_path, exclude=("3.jpg",))))  # noqa: S301
    assert len(source.list_images().paths) == 4
    assert read_all(source.locate(["a.zip/4.jpg", "a.zip/0.jpg"])) == {
        "a.zip/4.jpg": b"4",
        "a.zip/0.jpg": b"0",
    }
    with pytest.raises(UnknownPathError):
        source.locate(["a.zip/9.jpg"])
    with pytest.raises(CallError, match="none of the 5 images"):
        open_zips(tmp_path, include=("x",)).list_images()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_files_are_closed(tmp_path):
    pack(tmp_path / "a.zip", [("a.jpg", b"a")])
    (tmp_path / "b.zip").write_bytes(b"none")
    before = len(os.listdir("/proc/self/fd"))
    assert read_all(open_zips(tmp_path).list_images()) == {"a.zip/a.jpg": b"a"}
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_directory_is_read_once_a_reader(tmp_path, monkeypatch):
    pack(tmp_path / "a.zip", [(f"{k:04}.jpg", b"%d" % k) for k in range(2000)])
    listing = open_zips(tmp_path).list_images()
    opened = []
    real = zipfile.ZipFile

    def open_zip(*args):
        opened.append(args)
        return real(*args)

    monkeypatch.setattr(zip_source.zipfile, "ZipFile", open_zip)
    assert len(listing.source.split_rows(listing, np.arange(2000))) == 8
    assert len(read_all(listing)) == 2000
    assert len(opened) == 1


# --- what strangers put into them ----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_cannot_be_an_image_is_passed_over(tmp_path):
    members = [
        ("good.jpg", b"good"),
        ("./dot.jpg", b"dot"),
        ("twice.jpg", b"first"),
        ("../up.jpg", b"x"),
        ("/abs.jpg", b"x"),
        ("C:\\win\\a.jpg", b"x"),
        ("a\\b.jpg", b"x"),
        ("__MACOSX/._good.jpg", b"x"),
        (".hidden/a.jpg", b"x"),
        ("n" * 600 + ".jpg", b"x"),
        ("folder.jpg/", b""),
        ("twice.jpg", b"second"),
    ]
    pack(tmp_path / "a.zip", members)
    listing = open_zips(tmp_path, is_single=True).list_images()
    assert read_all(listing) == {"good.jpg": b"good", "dot.jpg": b"dot", "twice.jpg": b"second"}
    said = "\n".join(listing.skipped)
    for words in (
        "up.jpg: its name leads out",
        "/abs.jpg",
        "a\\b.jpg: its name has a backslash",
        "twice.jpg: another image has the same name",
        "604 bytes",
        "hidden",
    ):
        assert words in said, words


def test_members_that_cannot_be_read_fail_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.jpg", b"good")
        archive.writestr("bzip2.jpg", b"x" * 100, zipfile.ZIP_BZIP2)
        archive.writestr("lzma.jpg", b"x" * 100, zipfile.ZIP_LZMA)
        archive.writestr("secret.jpg", b"x")
        archive.writestr("empty.jpg", b"")
        archive.writestr("large.jpg", b"y" * 1000, DEFLATED)
        archive.writestr("wrong.jpg", b"wrong crc")
        archive.writestr("short.jpg", b"z" * 100, DEFLATED)
        infos = {info.filename: info for info in archive.infolist()}
    data = bytearray(path.read_bytes())
    for name, position, value in (("secret.jpg", 8, b"\1\0"), ("wrong.jpg", 16, b"abcd")):
        at = data.rindex(name.encode()) - 46
        data[at + position : at + position + len(value)] = value
    at = data.rindex(b"short.jpg") - 46
    data[at + 24 : at + 28] = struct.pack("<L", 90)  # yields more than declared
    data[at + 16 : at + 20] = struct.pack("<L", zlib.crc32(b"z" * 90))
    path.write_bytes(data)
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 500)
    assert infos["large.jpg"].compress_size < 500
    listing = open_zips(tmp_path, is_single=True).list_images()
    assert read_all(listing) == {
        "good.jpg": b"good",
        "bzip2.jpg": UNSUPPORTED,
        "lzma.jpg": UNSUPPORTED,
        "secret.jpg": NO_PERMISSION,
        "empty.jpg": EMPTY,
        "large.jpg": TOO_LARGE,
        "wrong.jpg": DAMAGED,
        "short.jpg": DAMAGED,
    }


@pytest.mark.parametrize("declared", [99, 101, 2**31])
@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_sizes_that_lie(tmp_path, declared, method):
    path = pack(tmp_path / "a.zip", [("a.jpg", b"a" * 100), ("b.jpg", b"b")], method)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"a.jpg") - 46
    data[at + 24 : at + 28] = struct.pack("<L", declared)
    path.write_bytes(data)
    reason = TOO_LARGE if declared > reading.MAX_FILE_BYTES else DAMAGED
    read = read_all(open_zips(tmp_path, is_single=True).list_images())
    assert read == {"a.jpg": reason, "b.jpg": b"b"}


def test_members_that_share_bytes_are_passed_over(tmp_path):
    """As in archives that unpack to millions of times their size."""
    path = pack(tmp_path / "a.zip", [("a.jpg", b"x" * 5000), ("b.jpg", b"x" * 5000)])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"b.jpg") - 46
    data[at + 42 : at + 46] = struct.pack("<L", 100)  # into the first one
    path.write_bytes(data)
    listing = open_zips(tmp_path, is_single=True).list_images()
    assert read_all(listing) == {"a.jpg": b"x" * 5000}
    assert "b.jpg: it lies over another member" in listing.skipped[0]


def test_a_directory_of_other_members(tmp_path):
    """The directory names one member, the header at its place another."""
    path = pack(tmp_path / "a.zip", [("a.jpg", b"A" * 100), ("b.jpg", b"B" * 100)])
    data = path.read_bytes()
    directory = data.index(b"PK\1\2")
    swapped = data[directory:].replace(b"a.jpg", b"c.jpg")
    path.write_bytes(data[:directory] + swapped)
    read = read_all(open_zips(tmp_path, is_single=True).list_images())
    assert read == {"c.jpg": DAMAGED, "b.jpg": b"B" * 100}


@pytest.mark.parametrize(
    "content",
    [b"", b"hello" * 100, b"PK\5\6" + bytes(18), b"PK\3\4" + bytes(3000), bytes(5000)],
)
def test_what_is_no_archive_is_said(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(CallError, match=r"no image in"):
        open_zips(tmp_path).list_images()
    pack(tmp_path / "b.zip", [("1.jpg", b"1")])
    listing = open_zips(tmp_path).list_images()
    assert read_all(listing) == {"b.zip/1.jpg": b"1"}
    assert listing.unlisted == (() if content.startswith(b"PK\5\6") else ("a.zip",))


def test_cut_short_and_with_a_huge_directory(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.zip", [(f"{k:05}.jpg", b"1") for k in range(10_000)])
    pack(tmp_path / "b.zip", [("1.jpg", b"1")])
    monkeypatch.setattr(zip_source, "MAX_DIRECTORY_BYTES", 100_000)
    listing = open_zips(tmp_path).list_images()
    assert (listing.paths, listing.unlisted) == (["b.zip/1.jpg"], ("a.zip",))
    monkeypatch.undo()
    assert len(open_zips(tmp_path).list_images().paths) == 10_001
    path.write_bytes(path.read_bytes()[:-1000])
    listing = open_zips(tmp_path).list_images()
    assert listing.unlisted == ("a.zip",)
    assert "cut short" in listing.skipped[0]


def test_a_bomb_takes_the_memory_it_declares(tmp_path):
    """A gigabyte of zeros that says it is small is stopped there."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", DEFLATED) as archive, archive.open("a.jpg", "w") as member:
        for _ in range(200):
            member.write(bytes(1 << 20))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"a.jpg") - 46
    data[at + 24 : at + 28] = struct.pack("<L", 1000)
    path.write_bytes(data)
    code = (
        "import resource\n"
        "from featurize.sources.containers.zip_source import ZipSource\n"
        "from featurize.sources.stores.local_store import LocalStore\n"
        "from featurize.sources.listing import read_images\n"
        f"store = LocalStore({str(tmp_path)!r})\n"
        "listing = ZipSource(store, (store.stat_file('a.zip'),)).list_images()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "(read,) = read_images(listing, [0])\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(read.image.reason, grown)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    reason, grown = map(int, done.stdout.split())
    assert reason == DAMAGED
    assert grown < 30_000


def test_flipped_bytes_never_change_an_image(tmp_path):
    contents = dict(zip("abcdef", make_images(6, 100, 300), strict=True))
    members = [(f"{name}.jpg", data) for name, data in contents.items()]
    path = pack(tmp_path / "a.zip", members, DEFLATED)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    n_read = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            read = read_all(open_zips(tmp_path, is_single=True).list_images())
        except CallError:
            continue
        read = {name: data for name, data in read.items() if isinstance(data, bytes)}
        n_read += len(read)
        assert set(read.values()) <= set(contents.values())
        assert {n: d for n, d in read.items() if n in dict(members)}.items() <= dict(
            members
        ).items()
    assert n_read > 1000


# --- an archive that changes, and one behind a network -------------------------------------


def test_a_changed_archive_gives_errors(tmp_path):
    path = pack(tmp_path / "a.zip", [("a.jpg", b"a" * 100), ("b.jpg", b"b" * 100)])
    listing = open_zips(tmp_path, is_single=True).list_images()
    pack(path, [("b.jpg", b"b" * 100), ("a.jpg", b"a" * 100)])  # the same size and time
    assert set(read_all(listing).values()) == {READ_ERROR}
    path.write_bytes(b"x")
    assert set(read_all(listing).values()) == {READ_ERROR}
    path.unlink()
    assert set(read_all(listing).values()) == {VANISHED}


def test_an_archive_that_changes_while_it_is_read(tmp_path):
    images = make_images(40, 100_000, 100_001)
    path = pack(tmp_path / "a.zip", [(f"{k:02}.jpg", data) for k, data in enumerate(images)])
    listing = open_zips(tmp_path, is_single=True).list_images()
    reader = listing.source.open_reader(listing)
    assert [image.data for _, image in reader.read(np.arange(3))] == images[:3]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert {image.reason for _, image in reader.read(np.arange(3, 40))} == {READ_ERROR}
    reader.close()


def test_few_requests_read_a_far_archive(tmp_path):
    images = make_images(1200, 25_000, 35_000)
    members = [(f"{k:04}.jpg", data) for k, data in enumerate(images)]
    pack(tmp_path / "a.zip", members)
    store = FarStore(str(tmp_path))
    source = open_zips(tmp_path, is_single=True, store=store)
    listing = source.list_images()
    assert len(store.requests) == 1
    store.requests.clear()
    assert read_all(listing) == dict(members)
    assert store.count("range", ".zip") <= 8
    assert len(store.requests) == store.count("range", ".zip")
    asked = sum(r[3] - r[2] for r in store.requests)
    assert asked < 1.05 * sum(map(len, images))
    store.requests.clear()
    assert source.list_images(listing).reused == ("a.zip",)
    assert store.requests == []
    store.trouble.refuses = ("a.zip",)
    assert set(read_all(listing).values()) == {READ_ERROR}
    with pytest.raises(CallError, match="cannot be read"):
        source.list_images()


def test_a_far_archive_of_unknown_size(tmp_path):
    pack(tmp_path / "a.zip", [("a.jpg", b"a")])
    store = FarStore(str(tmp_path))
    source = open_zips(tmp_path, is_single=True, store=store)
    source = replace(source, files=(source.files[0]._replace(size=-1),))
    listing = source.list_images()
    assert read_all(listing) == {"a.jpg": b"a"}
    assert source.list_images(listing).reused == ("a.zip",)

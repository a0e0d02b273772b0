"""Tar files as sources: what is listed, what is read, and what strangers may put into them."""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurize.errors import CallError, UnknownPathError
from featurize.files import hash_file
from featurize.images import reading
from featurize.images.reasons import EMPTY, READ_ERROR, TOO_LARGE, VANISHED
from featurize.sources.containers.archives import shard_copies
from featurize.sources.containers.archives.shard_copies import ShardCopies
from featurize.sources.containers.archives.tar_index import index_tar
from featurize.sources.containers.archives.window_file import TarHeaderFile
from featurize.sources.containers.tar_source import TarSource

from .packing import FarStore, age, make_images, open_files, pack, read_all


def open_tars(folder, *names, **options):
    return open_files(TarSource, folder, *names, **options)


@pytest.fixture
def shards(tmp_path):
    """Three shards of 40 images with labels; the contents by key."""
    contents = {}
    for s in range(3):
        members = []
        for k, data in enumerate(make_images(40, seed=s)):
            members += [(f"{s}{k:03}.cls", b"%d\n" % (k % 7)), (f"{s}{k:03}.jpg", data)]
            contents[f"train-{s:03}.tar/{s}{k:03}.jpg"] = data
        pack(tmp_path / "shards" / f"train-{s:03}.tar", members)
    return tmp_path / "shards", contents


# --- what is listed and read ---------------------------------------------------------------


def test_shards_give_what_was_packed(shards):
    folder, contents = shards
    listing = open_tars(folder).list_images()
    assert listing.paths == sorted(contents)
    assert listing.sizes.tolist() == [len(contents[path]) for path in listing.paths]
    assert (listing.stamps > 0).all()
    assert (listing.skipped, listing.unlisted, listing.reused) == ([], (), ())
    assert read_all(listing) == contents
    assert listing.columns["label"] == [str(int(p[-7:-4]) % 7) for p in listing.paths]
    assert set(listing.columns["split"]) == {"train"}
    assert listing.source.kind == "tar shards"
    assert listing.root == str(folder)


def test_one_tar_is_keyed_by_its_members(shards):
    folder, contents = shards
    source = open_tars(folder, "train-001.tar", is_single=True)
    listing = source.list_images()
    want = {k.split("/")[1]: data for k, data in contents.items() if k.startswith("train-001")}
    assert read_all(listing) == want
    assert listing.root == str(folder / "train-001.tar")
    assert source.describe() == {"kind": "tar"}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_of_any_length_and_script(tmp_path, form):
    names = ["./cats/a.jpg", "dogs/b.PNG", "./" + "d" * 90 + "/" + "n" * 80 + ".jpeg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["d/" * 60 + "x" * 150 + ".jpg", "Käse/Größe.jpg", "写真/猫.webp"]
    members = list(zip(names, make_images(len(names)), strict=True))
    pack(tmp_path / "a.tar", members, format=form)
    listing = open_tars(tmp_path, "a.tar", is_single=True).list_images()
    assert read_all(listing) == {name.removeprefix("./"): data for name, data in members}
    assert listing.skipped == []
    assert listing.columns == {}


def test_packed_by_tar_itself(tmp_path):
    """What GNU tar writes, of a folder, with its own long names and blocking."""
    folder = tmp_path / "photos"
    contents = {}
    for k, data in enumerate(make_images(30)):
        path = folder / ("long" * (k % 40)) / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        contents[path.relative_to(folder).as_posix()] = data
    subprocess.run(["tar", "-b", "100", "-cf", tmp_path / "a.tar", "-C", folder, "."], check=True)
    listing = open_tars(tmp_path, "a.tar", is_single=True).list_images()
    assert read_all(listing) == contents
    assert listing.skipped == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_listing_reads_no_image(tmp_path):
    """Only headers: a hundredth of the bytes."""
    data = bytes(1 << 20)
    pack(tmp_path / "a.tar", [(f"{k:02}.jpg", data) for k in range(50)])
    source = open_tars(tmp_path)

    def count_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count_read()
    assert len(source.list_images().paths) == 50
    assert count_read() - before < len(data)


def test_known_shards_are_not_opened(shards):
    folder, contents = shards
    source = open_tars(folder)
    known = source.list_images()
    (folder / "train-000.tar").rename(folder / "away")
    pack(folder / "train-001.tar", [("new.jpg", b"new"), ("new.cls", b"cat")])
    os.utime(folder / "train-001.tar", (1_800_000_000, 1_800_000_000))
    (folder / "away").rename(folder / "train-000.tar")
    source = open_tars(folder)
    (folder / "train-002.tar").rename(folder / "away")
    listing = source.list_images(known)
    assert listing.reused == ("train-000.tar", "train-002.tar")
    of_new = listing.paths.index("train-001.tar/new.jpg")
    assert [c for i, c in enumerate(listing.columns["label"]) if c] == ["cat"]
    assert listing.columns["label"][of_new] == "cat"
    assert len(listing.paths) == 81
    kept = [known.paths.index(p) for p in listing.paths if not p.startswith("train-001")]
    now = [i for i, p in enumerate(listing.paths) if not p.startswith("train-001")]
    assert (listing.stamps[now] == known.stamps[kept]).all()
    assert (listing.places.offsets[now] == known.places.offsets[kept]).all()
    read = read_all(listing)
    assert read["train-001.tar/new.jpg"] == b"new"
    assert read["train-000.tar/0007.jpg"] == contents["train-000.tar/0007.jpg"]
    assert read["train-002.tar/2000.jpg"] == VANISHED


def test_globs_select_by_key(shards):
    folder, contents = shards
    listing = open_tars(folder, include=("train-000.tar/**", "no*.jpg")).list_images()
    assert listing.paths == sorted(p for p in contents if p.startswith("train-000"))
    assert any("'no*.jpg' matches no image" in sentence for sentence in listing.skipped)
    with pytest.raises(CallError, match="none of the 120 images"):
        open_tars(folder, exclude=("*.jpg",)).list_images()


def test_located_by_key(shards):
    folder, contents = shards
    source = pickle.loads(pickle.dumps(open_tars(folder)))  # noqa: S301 - our own
    paths = ["train-002.tar/2003.jpg", "train-000.tar/0001.jpg"]
    (folder / "train-001.tar").unlink()  # is not opened
    listing = source.locate(paths)
    assert listing.paths == paths
    assert listing.source == source
    assert read_all(listing) == {path: contents[path] for path in paths}
    with pytest.raises(UnknownPathError, match=r"train-000.tar/none.jpg"):
        source.locate(["train-000.tar/none.jpg"])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_files_are_closed(shards, tmp_path):
    folder, contents = shards
    before = len(os.listdir("/proc/self/fd"))
    for store in (None, FarStore(str(folder))):
        source = open_tars(folder, store=store, scratch=str(tmp_path / "scratch"))
        assert read_all(source.list_images()) == contents
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reader_reads_rows_in_any_order(shards):
    folder, contents = shards
    listing = open_tars(folder).list_images()
    reader = listing.source.open_reader(listing)
    rows = np.random.default_rng(0).permutation(len(listing.paths))
    assert {listing.paths[r]: image.data for r, image in reader.read(rows)} == contents
    reader.close()
    assert list(reader.read(rows[:0])) == []


# --- samples -------------------------------------------------------------------------------


def test_several_images_a_sample_must_be_chosen(tmp_path):
    members = []
    for k, data in enumerate(make_images(20)):
        members += [(f"a/{k}.jpg", data), (f"a/{k}.seg.PNG", b"m%d" % k), (f"a/{k}.txt", b"text")]
    pack(tmp_path / "a.tar", members)
    with pytest.raises(CallError, match=r"jpg \(20\), seg\.png \(20\).*--component jpg.*all"):
        open_tars(tmp_path).list_images()
    chosen = read_all(open_tars(tmp_path, component="seg.png").list_images())
    assert chosen == {f"a.tar/a/{k}.seg.PNG": b"m%d" % k for k in range(20)}
    assert len(open_tars(tmp_path, component=".JPG").list_images().paths) == 20
    assert len(open_tars(tmp_path, component="all").list_images().paths) == 40
    with pytest.raises(CallError, match=r"did you mean 'seg\.png'"):
        open_tars(tmp_path, component="seg.pgn").list_images()
    # A glob leaves one of each, so nothing has to be chosen.
    assert len(open_tars(tmp_path, exclude=("*.seg.PNG",)).list_images().paths) == 20
    assert open_tars(tmp_path, component="jpg").describe() == {"kind": "tar", "component": "jpg"}


def test_dots_in_the_names_of_files_are_no_components(tmp_path):
    members = [(f"holiday.{k:03}.jpg", b"%d" % k) for k in range(40)] + [("x.png", b"x")]
    pack(tmp_path / "a.tar", members)
    assert len(open_tars(tmp_path).list_images().paths) == 41


def test_labels_come_along(tmp_path):
    huge = "9" * 5000
    members = [
        ("0.jpg", b"0"),
        ("0.cls", b" cat\n"),
        ("0.json", b'{"label": "not me", "lat": 1.50, "ok": true, "n": null, "in": {"x": 1}}'),
        ("1.json", b'\xef\xbb\xbf{"label": 3, "path": "/x", "list": [1], "lat": -0}'),
        ("1.jpg", b"1"),
        ("1.txt", b"a caption is no label"),
        ("d/2.jpg", b"2"),
        ("2.cls", b"of another folder"),
        ("3.jpg", b"3"),
        ("3.json", b'{"label": NaN}'),
        ("4.jpg", b"4"),
        ("4.cls", b"\xff\xfe"),
        ("5.jpg", b"5"),
        ("5.json", b"[" * 60_000),
        ("6.jpg", b"6"),
        ("6.json", b'{"label": ' + huge.encode() + b', "z": "' + b"y" * 201 + b'"}'),
        ("7.jpg", b"7"),
        ("7.json", b'{"a": "' + b"y" * 70_000 + b'"}'),
        ("8.jpg", b"8"),
        ("8.cls", b"x" * 2000),
        ("9.jpg", b"9"),
        ("9.json", json.dumps({f"f{k}": k for k in range(100)}).encode()),
    ]
    pack(tmp_path / "a.tar", members)
    listing = open_tars(tmp_path, is_single=True).list_images()
    columns = listing.columns
    assert listing.paths == [
        *(f"{k}.jpg" for k in range(2)),
        *(f"{k}.jpg" for k in range(3, 10)),
        "d/2.jpg",
    ]
    assert columns["label"] == ["cat", "3", "", "", "", "", "", "", "", ""]
    assert columns["lat"] == ["1.50", "-0", "", "", "", "", "", "", "", ""]
    assert columns["ok"][0] == "true"
    assert not {"n", "in", "path", "list", "a", "z"} & set(columns)
    assert len(columns) == 32
    assert "left out" in listing.skipped[-1]
    for name in ("3.json", "4.cls", "5.json", "7.json", "8.cls"):
        assert any(name in sentence for sentence in listing.skipped), name
    assert set(read_all(listing).values()) == {b"%d" % k for k in range(10)}


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["train-000", "val-000", "imagenet-test_000"], ["train", "val", "test"]),
        (["train/000", "validation/000", "test/x-000"], ["train", "val", "test"]),
        (["a-train-000", "a-001"], None),
        (["train-val-000", "test-000"], None),
        (["trainers-000", "contest-000"], None),
    ],
)
def test_splits_are_of_the_names_of_all_shards(tmp_path, names, want):
    for name in names:
        pack(tmp_path / f"{name}.tar", [("x.jpg", name.encode())])
    source = open_tars(tmp_path)
    listing = source.list_images()
    split_of = dict(zip(listing.paths, listing.columns.get("split", []), strict=False))
    if want is None:
        assert split_of == {}
        with pytest.raises(CallError, match=r"do not all say a split"):
            open_tars(tmp_path, split="train").list_images()
        return
    assert split_of == {f"{n}.tar/x.jpg": w for n, w in zip(names, want, strict=True)}
    validation = open_tars(tmp_path, split="validation").list_images()
    assert list(read_all(validation).values()) == [names[1].encode()]
    with pytest.raises(CallError, match="are of test, train, val"):
        open_tars(tmp_path, split="tain").list_images()


# --- what strangers put into them ----------------------------------------------------------


def test_what_cannot_be_an_image_is_passed_over(tmp_path):
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
    members = [
        ("good.jpg", b"good"),
        ("twice.jpg", b"first"),
        ("sym.jpg", b"", link),
        ("hard.jpg", b"", {"type": tarfile.LNKTYPE, "linkname": "good.jpg"}),
        ("pipe.jpg", b"", {"type": tarfile.FIFOTYPE}),
        ("device.jpg", b"", {"type": tarfile.CHRTYPE}),
        ("folder.jpg", b"", {"type": tarfile.DIRTYPE}),
        ("../up.jpg", b"x"),
        ("a/../../up.jpg", b"x"),
        ("/abs.jpg", b"x"),
        ("a//b.jpg", b"x"),
        (".hidden.jpg", b"x"),
        ("d/._mac.jpg", b"x"),
        ("__MACOSX/d/mac.jpg", b"x"),
        ("n" * 600 + ".jpg", b"x"),
        ("bad\udcff.jpg", b"x"),
        ("notes.txt", b"x"),
        (".jpg", b"x"),
        ("twice.jpg", b"second"),
        ("line\nbreak.jpg", b"odd"),
    ]
    pack(
        tmp_path / "a.tar",
        members,
        format=tarfile.GNU_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    )
    listing = open_tars(tmp_path, is_single=True).list_images()
    assert read_all(listing) == {
        "good.jpg": b"good",
        "twice.jpg": b"second",
        "line\nbreak.jpg": b"odd",
    }
    said = "\n".join(listing.skipped)
    for words in (
        "sym.jpg: it is a link",
        "hard.jpg: it is a hard link",
        "device.jpg",
        "up.jpg",
        "twice.jpg: another image has the same name",
        "UTF-8",
        "has 604 bytes",
        "hidden",
    ):
        assert words in said, words
    assert "\udcff" not in said
    assert listing.unlisted == ()


def test_sparse_files_are_passed_over(tmp_path):
    sparse = tmp_path / "s.jpg"
    with sparse.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    (tmp_path / "b.jpg").write_bytes(b"b")
    for form in ("gnu", "posix"):
        line = ["tar", "-S", f"--format={form}", "-cf", tmp_path / "a.tar", "s.jpg", "b.jpg"]
        subprocess.run(line, check=True, cwd=tmp_path)
        listing = open_tars(tmp_path, "a.tar", is_single=True).list_images()
        assert read_all(listing) == {"b.jpg": b"b"}
        assert "s.jpg: it is a sparse file" in listing.skipped[0]


@pytest.mark.parametrize("cut", [100, 512, 700, 1024, 1025, 1536, 2560, 4000])
def test_a_shard_that_is_cut_short(tmp_path, cut):
    members = [(f"{k}.jpg", bytes([k]) * 600) for k in range(4)]  # 1,536 bytes each
    whole = pack(tmp_path / "b.tar", members).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(members) * 1536 - cut])
    listing = open_tars(tmp_path).list_images()
    left = len(members) - -(-(cut - 424) // 1536)
    if cut <= 424:  # padding after the last image's bytes
        left = len(members)
    want = {f"b.tar/{name}": data for name, data in members}
    want |= {f"a.tar/{name}": data for name, data in members[:left]}
    assert read_all(listing) == want
    assert listing.unlisted == ("a.tar",)
    assert listing.skipped == [
        "passed over a.tar: it is cut short; images before the cut are taken"
    ]


def test_damage_in_the_middle(tmp_path):
    members = [(f"{k}.jpg", bytes([k]) * 600) for k in range(4)]
    path = pack(tmp_path / "a.tar", members)
    data = bytearray(path.read_bytes())
    data[2 * 1536 + 5] ^= 1
    path.write_bytes(data)
    listing = open_tars(tmp_path, is_single=True).list_images()
    assert read_all(listing) == dict(members[:2])
    assert listing.unlisted == ("a.tar",)
    assert "damaged about byte 3,072" in listing.skipped[0]


def test_archives_one_after_another(tmp_path):
    one = pack(tmp_path / "a.tar", [("1.jpg", b"1")]).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + one)
    listing = open_tars(tmp_path, is_single=True).list_images()
    assert read_all(listing) == {"1.jpg": b"1"}
    assert "a.tar: more follows after its end mark" in listing.skipped[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"x" * 5000), "compressed with gzip.*gzip -dc a.tar"),
        (b"BZh91AY" + bytes(600), "bzip2"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        (b"PK\3\4" + bytes(600), "zip archive"),
        (b"", "it is empty"),
        (b"hello" * 1000, "it is no tar file"),
        (b"\0" * 10240, ""),
    ],
    ids=["gzip", "bzip2", "zstd", "zip", "empty", "text", "zeros"],
)
def test_what_is_no_tar_is_said(tmp_path, content, words):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(CallError, match=f"(?s)no image in .*{words}"):
        open_tars(tmp_path).list_images()
    pack(tmp_path / "b.tar", [("1.jpg", b"1")])
    listing = open_tars(tmp_path).list_images()
    assert read_all(listing) == {"b.tar/1.jpg": b"1"}
    assert listing.unlisted == (() if not words else ("a.tar",))


def make_header(name, size_field, kind=tarfile.REGTYPE):
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = size_field, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size):
    return b"%011o\0" % size


def negative(size):
    return b"\xff" + (256**11 - size).to_bytes(11, "big")


PAX = b"30 mtime=" + b"1" * 20 + b"\n"
HOSTILE = {
    "a name of 8 GB": make_header("x", octal(8**11 - 1), tarfile.GNUTYPE_LONGNAME) + bytes(5000),
    "a PAX header of 8 GB": make_header("x", octal(8**11 - 1), tarfile.XHDTYPE) + bytes(5000),
    "a size that leads back": make_header("b.jpg", negative(2048)) + bytes(512),
    "a size that stays": make_header("b.jpg", negative(512)) + bytes(512),
    "a name of negative size": make_header("x", negative(512), tarfile.GNUTYPE_LONGNAME),
    "names of names": make_header("x", octal(0), tarfile.GNUTYPE_LONGNAME) * 3000,
    "a long number": make_header("x", octal(200_000), tarfile.XHDTYPE) + b"1" * 200_192,
    "PAX sizes": make_header("x", octal(20), tarfile.XHDTYPE)
    + b"19 size=-1000000000\n".ljust(512, b"\0")
    + make_header("b.jpg", octal(1))
    + bytes(512),
    "a sparse map without end": make_header("x", octal(60), tarfile.XHDTYPE)
    + (b"22 GNU.sparse.major=1\n" + b"22 GNU.sparse.minor=0\n").ljust(512, b"\0")
    + make_header("b.jpg", octal(10**7))
    + b"999999999\n"
    + b"1\n" * 2_000_000,
    "a size beyond all": make_header("b.jpg", b"\x80" + b"\x7f" * 11) + bytes(512),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("is_far", [False, True])
def test_hostile_headers_cost_what_follows_alone(tmp_path, name, is_far):
    good = make_header("a.jpg", octal(4)) + b"good".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(good + HOSTILE[name])
    store = FarStore(str(tmp_path)) if is_far else None
    start = time.perf_counter()
    listing = open_tars(tmp_path, is_single=True, store=store).list_images()
    assert time.perf_counter() - start < 5
    assert read_all(listing) == {"a.jpg": b"good"}
    assert listing.unlisted == ("a.tar",)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_read_no_further_than_headers_go(name):
    data, n_read = HOSTILE[name], 0

    def read_at(position, n_bytes):
        nonlocal n_read
        n_read += len(data[position : position + n_bytes])
        return data[position : position + n_bytes]

    assert index_tar(TarHeaderFile(read_at, len(data)), "a.tar").problem
    assert n_read < 600_000


def test_flipped_bits_never_swap_images(tmp_path):
    """Whatever is damaged in headers, a key gives its own image or none."""
    members = [(f"{k}.jpg", bytes([65 + k]) * (600 + k)) for k in range(8)]
    path = pack(tmp_path / "a.tar", members)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        data[int(rng.integers(8)) * 1536 + int(rng.integers(512))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            read = read_all(open_tars(tmp_path, is_single=True).list_images())
        except CallError:
            continue
        assert {n: d for n, d in read.items() if isinstance(d, bytes)}.items() <= dict(
            members
        ).items()


def test_large_and_empty_images_fail_alone(tmp_path, monkeypatch):
    pack(tmp_path / "a.tar", [("a.jpg", b"x" * 50), ("b.jpg", b""), ("c.jpg", b"y")])
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 40)
    listing = open_tars(tmp_path, is_single=True).list_images()
    assert read_all(listing) == {"a.jpg": TOO_LARGE, "b.jpg": EMPTY, "c.jpg": b"y"}


# --- a shard that changes ------------------------------------------------------------------


def test_a_changed_shard_gives_errors_not_images(shards):
    folder, contents = shards
    source = open_tars(folder)
    listing = source.list_images()
    path = folder / "train-001.tar"
    os.utime(path, (1_750_000_000, 1_750_000_000))
    read = read_all(listing)
    assert {data for p, data in read.items() if p.startswith("train-001")} == {READ_ERROR}
    assert {p: d for p, d in read.items() if d != READ_ERROR}.items() <= contents.items()
    path.unlink()
    assert list(read_all(listing).values()).count(VANISHED) == 40


def test_other_members_at_the_same_place(tmp_path):
    path = pack(tmp_path / "a.tar", [("a.jpg", b"A" * 600), ("b.jpg", b"B" * 600)])
    listing = open_tars(tmp_path, is_single=True).list_images()
    pack(path, [("b.jpg", b"B" * 600), ("a.jpg", b"A" * 600)])
    assert read_all(listing) == {"a.jpg": READ_ERROR, "b.jpg": READ_ERROR}


# --- behind a network ----------------------------------------------------------------------


def test_few_requests_read_many_images(tmp_path):
    """1,200 images of 30 kB in three shards: each is streamed once, then read by ranges."""
    contents = {}
    for s in range(3):
        images = make_images(400, 25_000, 35_000, seed=s)
        members = [(f"{s}{k:03}.jpg", data) for k, data in enumerate(images)]
        pack(tmp_path / f"{s}.tar", members)
        contents |= {f"{s}.tar/{name}": data for name, data in members}
    store = FarStore(str(tmp_path))
    source = open_tars(tmp_path, store=store)
    listing = source.list_images()
    assert (store.count("stream"), store.count("range")) == (3, 0)
    assert (source.is_remote, source.n_readers, source.root) == (True, 8, "s3://bucket/shards")
    assert read_all(listing) == contents
    assert store.count("range") <= 12
    store.requests.clear()
    assert source.list_images(listing).reused == ("0.tar", "1.tar", "2.tar")
    assert store.requests == []


def test_scattered_images_are_asked_for_apart(tmp_path):
    images = make_images(30, 100_000, 100_001)
    pack(tmp_path / "a.tar", [(f"{k:02}.jpg", data) for k, data in enumerate(images)])
    store = FarStore(str(tmp_path))
    listing = open_tars(tmp_path, is_single=True, store=store).list_images()
    reader = listing.source.open_reader(listing)
    assert [image.data for _, image in reader.read(np.array([3, 4, 20]))] == [
        images[3],
        images[4],
        images[20],
    ]
    ranges = [r[3] - r[2] for r in store.requests if r[0] == "range" and r[1] == "a.tar"]
    assert len(ranges) == 2
    assert sum(ranges) < 310_000


def test_far_labels_and_damage(shards):
    folder, contents = shards
    path = folder / "train-001.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    age(path)
    listing = open_tars(folder, store=FarStore(str(folder))).list_images()
    near = open_tars(folder).list_images()
    assert (listing.paths, listing.columns, listing.skipped, listing.unlisted) == (
        near.paths,
        near.columns,
        near.skipped,
        near.unlisted,
    )
    assert read_all(listing) == read_all(near)
    assert read_all(listing).items() <= contents.items()


@pytest.mark.parametrize("cut", [0, 700])
def test_a_far_shard_of_unknown_size(tmp_path, cut):
    members = [(f"{k}.jpg", bytes([k]) * 600) for k in range(4)]
    path = pack(tmp_path / "a.tar", members)
    path.write_bytes(path.read_bytes()[: 4 * 1536 - cut] + (b"" if cut else bytes(1024)))
    age(path)
    source = open_tars(tmp_path, is_single=True, store=FarStore(str(tmp_path)))
    source = replace(source, files=(source.files[0]._replace(size=-1),))
    listing = source.list_images()
    assert read_all(listing) == dict(members[: 4 - bool(cut)])
    assert listing.unlisted == (("a.tar",) if cut else ())
    assert source.list_images(listing).reused == ("a.tar",)


def test_a_broken_connection_costs_its_shard(shards):
    folder, _ = shards
    store = FarStore(str(folder))
    store.trouble.breaks_at = 5000
    with pytest.raises(CallError, match="RuntimeError") as caught:
        open_tars(folder, store=store).list_images()
    assert "secret" not in str(caught.value)
    store.trouble.breaks_at = None
    listing = open_tars(folder, store=store).list_images()
    store.trouble.refuses = ("train-002.tar",)
    assert list(read_all(listing).values()).count(READ_ERROR) == 40


def write_index(path, version="v1.2"):
    """As `wds2idx` writes it."""
    lines, last = [], None
    with tarfile.open(path) as archive:
        for member in archive:
            if not member.isreg():
                continue
            sample, _, component = member.name.removeprefix("./").partition(".")
            entry = f"{component} {member.offset_data} {member.size}"
            entry += f" {member.name}" if version == "v1.2" else ""
            if sample == last:
                lines[-1] += f" {entry}"
            else:
                lines.append(entry)
            last = sample
    index = path.with_suffix(".idx")
    index.write_text("\n".join([f"{version} {len(lines)}", *lines, ""]))
    return index


@pytest.fixture
def indexed(tmp_path):
    """A shard with DALI's index beside it, some of its samples with labels."""
    images = [(f"./{k:03}.jpg", data) for k, data in enumerate(make_images(60))]
    labels = [(f"./{k:03}.cls", b"%d" % k) for k in range(20)]
    path = pack(tmp_path / "a.tar", labels + images)
    write_index(path)
    return tmp_path, {f"a.tar/{name[2:]}": data for name, data in images}


def test_an_index_saves_reading_the_shard(indexed):
    folder, contents = indexed
    store = FarStore(str(folder))
    listing = open_tars(folder, store=store).list_images()
    assert store.count("stream") == 0
    assert sum(r[3] - r[2] for r in store.requests if r[1] == "a.tar") < 25_000
    near = open_tars(folder).list_images()
    assert (listing.paths, listing.skipped, listing.columns) == (near.paths, [], near.columns)
    assert (listing.stamps == near.stamps).all()
    assert read_all(listing) == contents


def test_an_index_without_names_is_of_no_use(indexed):
    folder, contents = indexed
    write_index(folder / "a.tar", "v1.1")
    store = FarStore(str(folder))
    assert read_all(open_tars(folder, store=store).list_images()) == contents
    assert store.count("stream") == 1


def test_many_scattered_labels_are_read_as_a_stream(tmp_path):
    members = []
    for k, data in enumerate(make_images(40, 70_000, 70_100)):
        members += [(f"{k:02}.jpg", data), (f"{k:02}.cls", b"%d" % k)]
    write_index(pack(tmp_path / "a.tar", members))
    store = FarStore(str(tmp_path))
    listing = open_tars(tmp_path, is_single=True, store=store).list_images()
    assert store.count("stream") == 1
    assert listing.columns["label"] == [str(k) for k in range(40)]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda text: text.replace("030.jpg", "031.jpg", 1).replace("000.jpg", "001.jpg", 1),
        lambda text: text[: len(text) // 2],
        lambda text: "v1.2 3\njpg 512 5 a b.jpg\n",
        lambda text: "not an index",
        lambda text: "",
        lambda text: text.replace("v1.2", "v9.9"),
        lambda text: text.replace(" 0", " -1", 3),
        lambda text: "v1.2 1\njpg " + "9" * 5000 + " 5 ./000.jpg\n",
        lambda text: "v1.2 1\n" + text.splitlines()[-1] + "\n",
        lambda text: "v1.2 1\n" + text.splitlines()[20] + "\n",
        lambda text: text + "\xff",
    ],
)
def test_an_untrue_index_is_not_believed(indexed, break_it):
    folder, contents = indexed
    index = folder / "a.idx"
    index.write_text(break_it(index.read_text()))
    store = FarStore(str(folder))
    listing = open_tars(folder, store=store).list_images()
    if store.count("stream"):
        assert "index file beside a.tar is not used" in listing.skipped[-1]
        assert read_all(listing) == contents
    read = read_all(listing)
    assert {p: d for p, d in read.items() if d != READ_ERROR}.items() <= contents.items()


def test_an_index_that_lies_in_the_middle(indexed):
    """Only two headers are compared at listing; the others are when they are read."""
    folder, _ = indexed
    index = folder / "a.idx"
    text = index.read_text().replace("./030.jpg", "./030x.jpg").replace("./031.jpg", "./030.jpg")
    index.write_text(text)
    store = FarStore(str(folder))
    listing = open_tars(folder, store=store).list_images()
    assert store.count("stream") == 0
    read = read_all(listing)
    wrong = {p for p, d in read.items() if d == READ_ERROR}
    assert wrong == {"a.tar/030x.jpg", "a.tar/030.jpg"}


def test_an_index_that_leaves_images_out(tmp_path):
    members = [(f"{k}.jpg", data) for k, data in enumerate(make_images(9, 9000, 9001))]
    index = write_index(pack(tmp_path / "a.tar", members))
    lines = index.read_text().splitlines()
    index.write_text("\n".join(["v1.2 8", *lines[1:5], *lines[6:], ""]))
    listing = open_tars(tmp_path, is_single=True, store=FarStore(str(tmp_path))).list_images()
    assert read_all(listing) == dict(members)
    assert "do not follow each other" in listing.skipped[-1]


def test_an_index_older_than_its_shard(indexed):
    folder, contents = indexed
    with tarfile.open(folder / "a.tar", "a") as archive:
        member = tarfile.TarInfo("new.jpg")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"new"))
    age(folder / "a.tar")
    listing = open_tars(folder, store=FarStore(str(folder))).list_images()
    assert read_all(listing) == contents | {"a.tar/new.jpg": b"new"}
    assert "further members" in listing.skipped[-1]


def test_a_copy_is_kept_of_what_was_indexed(shards, tmp_path):
    folder, contents = shards
    scratch, store = tmp_path / "deep" / "scratch", FarStore(str(folder))
    source = open_tars(folder, store=store, scratch=str(scratch))
    listing = source.list_images()
    copies = sorted(scratch.iterdir())
    assert sorted(map(hash_file, copies)) == sorted(map(hash_file, folder.iterdir()))
    assert {path.suffix for path in copies} == {".tar"}
    store.requests.clear()
    assert read_all(listing) == contents
    assert source.list_images().paths == listing.paths
    assert not [r for r in store.requests if r[0] == "stream" or r[1].endswith(".tar")]
    # Another version of a shard is another copy.
    os.utime(folder / "train-000.tar", (1_800_000_000, 1_800_000_000))
    os.utime(folder / "train-000.tar", (1_750_000_000, 1_750_000_000))
    open_tars(folder, store=store, scratch=str(scratch)).list_images()
    assert store.count("stream") == 1


def test_copies_are_bounded(shards, tmp_path, monkeypatch):
    folder, contents = shards
    scratch = tmp_path / "scratch"
    monkeypatch.setattr(ShardCopies.__init__, "__defaults__", (250_000,))
    source = open_tars(folder, store=FarStore(str(folder)), scratch=str(scratch))
    scratch.mkdir()
    (scratch / "mine.tar").write_bytes(bytes(300_000))
    left = scratch / f"{'0' * 40}.tar.00000000.tmp"
    left.write_bytes(b"of a process that was killed")
    age(left)
    listing = source.list_images()
    own = [path for path in scratch.iterdir() if path.name != "mine.tar"]
    assert 0 < sum(path.stat().st_size for path in own) <= 250_000
    assert not left.exists()
    assert (scratch / "mine.tar").exists()
    assert read_all(listing) == contents  # the others are read by ranges


def test_a_damaged_copy_is_dropped(shards, tmp_path):
    folder, contents = shards
    scratch = tmp_path / "scratch"
    source = open_tars(folder, store=FarStore(str(folder)), scratch=str(scratch))
    listing = source.list_images()
    for path in scratch.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert read_all(listing) == contents  # of another size, so no copy of it
    for path in scratch.iterdir():
        path.write_bytes(bytes(path.stat().st_size + 1))
    assert READ_ERROR in read_all(listing).values()
    assert read_all(listing) == contents


def test_a_full_disk_ends_the_copy_alone(shards, tmp_path, monkeypatch):
    folder, contents = shards
    real = shard_copies.os.fdopen

    def fdopen(fd, mode):
        real(fd, mode).close()
        return Path("/dev/full").open(mode, buffering=0)

    monkeypatch.setattr(shard_copies.os, "fdopen", fdopen)
    source = open_tars(folder, store=FarStore(str(folder)), scratch=str(tmp_path / "s"))
    assert read_all(source.list_images()) == contents
    assert list((tmp_path / "s").iterdir()) == []


def test_a_scratch_that_cannot_be_written(shards, tmp_path):
    folder, _ = shards
    (tmp_path / "file").write_text("x")
    source = open_tars(folder, store=FarStore(str(folder)), scratch=str(tmp_path / "file"))
    with pytest.raises(CallError, match="--scratch: cannot write"):
        source.list_images()


def test_interrupted_copies_leave_nothing(shards, tmp_path):
    folder, _ = shards
    store = FarStore(str(folder))
    store.trouble.breaks_at = 5000
    with pytest.raises(CallError):
        open_tars(folder, store=store, scratch=str(tmp_path / "s")).list_images()
    assert list((tmp_path / "s").iterdir()) == []

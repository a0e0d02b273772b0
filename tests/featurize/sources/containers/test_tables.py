"""Tables of images: real Parquet and Arrow files, compared by content; and hostile ones."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize.errors import CallError, ImageUnreadableError, UnknownPathError
from featurize.images import reasons
from featurize.images.reading import ImageFile
from featurize.sources.containers.table_source import TableSource
from featurize.sources.listing import make_stamp, read_images
from featurize.sources.opening import open_source
from featurize.sources.source import SourceOptions
from featurize.sources.stores.local_store import LocalStore

OLD = 1_700_000_000  # files this old have a version stamp
NAMES = ["cat", "dog", "frog"]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": NAMES},
}


def make_images(count, seed=0, size=60):
    rng = np.random.default_rng(seed)
    return [bytes([seed, k % 251]) + rng.bytes(int(rng.integers(size))) for k in range(count)]


def make_table(images, labels=None, features=FEATURES, **columns):
    """As Hugging Face lays it out."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = [{"bytes": image, "path": f"{k}.jpg"} for k, image in enumerate(images)]
    arrays = {"image": pa.array(structs, kind)}
    arrays["label"] = pa.array([k % 3 for k in range(len(images))] if labels is None else labels)
    table = pa.table(arrays | {name: pa.array(values) for name, values in columns.items()})
    metadata = json.dumps({"info": {"features": features}}) if features is not None else "{}"
    return table.replace_schema_metadata({"huggingface": metadata})


def write(table, path, group=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group)
    else:
        new = pa.ipc.new_file if path.stem.endswith("file") else pa.ipc.new_stream
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    os.utime(path, (OLD, OLD))
    return path


def open_tables(folder, *, is_single=False, **options):
    """The source of all tables in a folder, or of one file."""
    folder = Path(folder)
    store = LocalStore(str(folder if folder.is_dir() else folder.parent))
    files = [each for each in store.list_files() if each.name.endswith((".parquet", ".arrow"))]
    if not folder.is_dir():
        files = [store.stat_file(folder.name)]
    is_single = is_single or not folder.is_dir()
    return TableSource(store, tuple(files), is_single, SourceOptions(**options))


def read_all(listing, rows=None):
    rows = range(len(listing.paths)) if rows is None else rows
    found = dict(read_images(listing, rows))
    assert sorted(found) == sorted(rows)
    return [found[row] for row in rows]


def contents(listing):
    return [image.data for image in read_all(listing)]


def codes(listing):
    return [0 if isinstance(each, ImageFile) else each.reason for each in read_all(listing)]


@pytest.fixture
def broken(tmp_path):
    return write(make_table(make_images(40)), tmp_path / "t.parquet", 10)


FORMATS = ["t.parquet", "stream.arrow", "the-file.arrow"]


# --- what is in them is what comes out -----------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_gives_the_images_that_were_put_in(name, tmp_path):
    images = make_images(300)
    path = write(make_table(images), tmp_path / name, 70)
    listing = open_tables(path).list_images()
    assert listing.paths[:2] == ["000000000", "000000001"]
    assert listing.paths == sorted(listing.paths)
    assert contents(listing) == images
    assert listing.columns == {"label": [NAMES[k % 3] for k in range(300)]}
    assert listing.root == str(path)
    assert (listing.skipped, listing.unlisted) == ([], ())
    size, stamp = path.stat().st_size, path.stat().st_mtime_ns
    assert listing.stamps[:2].tolist() == [make_stamp(size, stamp, 0), make_stamp(size, stamp, 1)]
    is_exact = name.endswith(".arrow")
    assert listing.sizes.tolist() == [len(each) if is_exact else -1 for each in images]
    assert read_all(listing, [7])[0] == ImageFile(images[7], len(images[7]), listing.stamps[7])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_are_images_too(name, kind, tmp_path):
    images = make_images(20)
    table = pa.table({"id": list(range(20)), "picture": pa.array(images, kind)})
    listing = open_tables(write(table, tmp_path / name)).list_images()
    assert contents(listing) == images
    assert listing.columns == {"id": [str(k) for k in range(20)]}


def test_several_tables_are_keyed_by_file(tmp_path):
    first, second = make_images(5), make_images(4, seed=1)
    write(make_table(second), tmp_path / "data" / "train-00001-of-00002.parquet")
    write(make_table(first), tmp_path / "data" / "train-00000-of-00002.parquet")
    source = open_tables(tmp_path)
    listing = source.list_images()
    assert listing.paths[0] == "data/train-00000-of-00002.parquet/000000000"
    assert listing.paths[-1] == "data/train-00001-of-00002.parquet/000000003"
    assert contents(listing) == first + second
    assert listing.columns["split"] == ["train"] * 9
    assert source.kind == "Parquet tables"
    assert pickle.loads(pickle.dumps(source)).list_images().paths == listing.paths  # noqa: S301


def test_what_datasets_saves_to_disk_is_read_by_split(tmp_path):
    for split, seed in (("train", 0), ("test", 1), ("validation", 2)):
        table = make_table(make_images(6, seed))
        write(table, tmp_path / split / "data-00000-of-00001.arrow", 4)
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text("{}")
    listing = open_tables(tmp_path).list_images()
    assert listing.columns["split"] == ["test"] * 6 + ["train"] * 6 + ["val"] * 6
    assert contents(listing) == make_images(6, 1) + make_images(6, 0) + make_images(6, 2)
    for word in ("val", "validation"):
        chosen = open_tables(tmp_path, split=word).list_images()
        assert contents(chosen) == make_images(6, 2)
    with pytest.raises(CallError, match=r"no split 'tset', only 'test', 'train', 'val' .*'test'"):
        open_tables(tmp_path, split="tset").list_images()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_tables_are_opened_by_their_paths_and_urls(where, suffix, tmp_path):
    write(make_table(make_images(9)), tmp_path / "data" / f"train-00000-of-00001{suffix}", 4)
    write(make_table(make_images(9, 1)), tmp_path / "data" / f"test-00000-of-00001{suffix}", 4)
    root = str(tmp_path)
    if where == "memory":
        fsspec = pytest.importorskip("fsspec")
        root = f"memory://{tmp_path}"
        for path in tmp_path.rglob(f"*{suffix}"):
            fsspec.filesystem("memory").pipe(f"{path}", path.read_bytes())
    source = open_source(root)
    assert isinstance(source, TableSource)
    assert source.is_remote == (where == "memory")
    listing = source.list_images()
    assert listing.columns["split"] == ["test"] * 9 + ["train"] * 9
    assert contents(listing) == make_images(9, 1) + make_images(9)
    assert contents(open_source(root, SourceOptions(split="train")).list_images()) == make_images(9)


def test_where_one_file_has_no_split_there_is_no_column(tmp_path):
    write(make_table(make_images(2)), tmp_path / "train-00000-of-00001.parquet")
    write(make_table(make_images(2)), tmp_path / "more.parquet")
    assert "split" not in open_tables(tmp_path).list_images().columns
    assert len(open_tables(tmp_path, split="train").list_images().paths) == 2


def test_a_split_may_be_a_column(tmp_path):
    table = make_table(make_images(6), split=["train", "test", "valid"] * 2)
    listing = open_tables(write(table, tmp_path / "t.parquet"), split="val").list_images()
    assert listing.paths == ["000000002", "000000005"]
    assert contents(listing) == [make_images(6)[2], make_images(6)[5]]
    with pytest.raises(CallError, match="neither the names of files nor a column"):
        open_tables(
            write(make_table(make_images(2)), tmp_path / "u.parquet"), split="val"
        ).list_images()


# --- which column --------------------------------------------------------------------------


def two_columns(features=None):
    table = make_table(make_images(3), features=features)
    return table.append_column("mask", pa.array(make_images(3, 1)))


def test_of_several_columns_of_images_one_must_be_named(tmp_path):
    path = write(two_columns(), tmp_path / "t.parquet")
    with pytest.raises(CallError, match=r"'image', 'mask'; name one with --column"):
        open_tables(path).list_images()
    with pytest.raises(CallError, match=r"no column 'maks', only .* \(did you mean 'mask'\?\)"):
        open_tables(path, column="maks").list_images()
    with pytest.raises(CallError, match=r"'label' holds no images; columns of bytes: 'image'"):
        open_tables(path, column="label").list_images()
    assert contents(open_tables(path, column="mask").list_images()) == make_images(3, 1)
    assert contents(open_tables(path, column="image").list_images()) == make_images(3)


def test_the_schema_of_hugging_face_says_which(tmp_path):
    path = write(two_columns({"image": {"_type": "Image"}}), tmp_path / "t.parquet")
    listing = open_tables(path).list_images()
    assert contents(listing) == make_images(3)
    assert listing.skipped == [
        "passed over column mask: only text, numbers and truth values say something of an image"
    ]


def test_no_column_of_images_is_said(tmp_path):
    path = write(pa.table({"file_name": ["a.jpg"], "label": [1]}), tmp_path / "t.parquet")
    with pytest.raises(
        CallError, match=r"t\.parquet: no column of it holds images as bytes; it ha"
    ):
        open_tables(path).list_images()


# --- labels --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_labels_are_names_and_other_columns_are_text(name, tmp_path):
    table = make_table(
        make_images(4),
        [2, -1, None, 0],
        writer=pa.array(["ann", "böb", None, "ann"]).dictionary_encode(),
        age=pa.array([1, 2, None, -3], pa.int8()),
        ok=[True, False, None, True],
        weight=[0.5, float("nan"), 1e20, None],
        boxes=[[1, 2], [], None, [3]],
        caption=["c" * 201, "", "", ""],
        path=["a", "b", "c", "d"],
    )
    listing = open_tables(write(table, tmp_path / name, 3)).list_images()
    assert listing.columns == {
        "label": ["frog", "", "", "cat"],
        "writer": ["ann", "böb", "", "ann"],
        "age": ["1", "2", "", "-3"],
        "ok": ["true", "false", "", "true"],
        "weight": ["0.5", "", "1e+20", ""],
    }
    assert len(listing.skipped) == 3
    assert any("boxes" in line for line in listing.skipped)
    assert any("caption: it has text of more than 200" in line for line in listing.skipped)
    assert any("path: `path` is what" in line for line in listing.skipped)


def test_there_are_at_most_32_columns_and_the_label_is_among_them(tmp_path):
    others = {f"c{k:02}": [k] for k in range(40)}
    table = make_table(make_images(1), group=["g"], **others)
    order = [name for name in table.column_names if name != "label"]
    listing = open_tables(
        write(table.select([*order, "label"]), tmp_path / "t.parquet")
    ).list_images()
    assert len(listing.columns) == 32
    assert (listing.columns["label"], listing.columns["group"]) == (["cat"], ["g"])
    assert any("at most 32 columns" in line for line in listing.skipped)


def test_a_table_that_lacks_a_column_has_empty_text(tmp_path):
    write(make_table(make_images(2), extra=["x", "y"]), tmp_path / "a.parquet")
    write(make_table(make_images(2)), tmp_path / "b.parquet")
    assert open_tables(tmp_path).list_images().columns["extra"] == ["x", "y", "", ""]


@pytest.mark.parametrize(
    "metadata",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"info": 3}',
        b'{"info": {"features": [1, 2]}}',
        b'{"info": {"features": {"label": 7, "image": {"_type": ["Image"]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": "abc"}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["\\ud800"]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}',
        b'{"x": "' + b"a" * (17 << 20) + b'"}',
    ],
    ids=range(13),
)
def test_hostile_metadata_are_ignored(metadata, tmp_path):
    table = make_table(make_images(3)).replace_schema_metadata({"huggingface": metadata})
    listing = open_tables(write(table, tmp_path / "t.arrow")).list_images()
    assert contents(listing) == make_images(3)
    assert listing.columns == {"label": ["0", "1", "2"]}
    is_silent = metadata.startswith(b'{"info": {"features": {"label": 7')
    assert len(listing.skipped) == (0 if is_silent else 1)
    assert sum(map(len, listing.skipped)) < 300


# --- listing costs little ------------------------------------------------------------------


class CountingStore(LocalStore):
    """Not read as a folder of this machine, so that its requests are counted."""

    n_read = 0
    n_opened = 0

    def open_file(self, name):
        file = super().open_file(name)
        CountingStore.n_opened += 1

        class Counted:
            closed = False

            def read(self, size=-1):
                data = file.read(size)
                CountingStore.n_read += len(data)
                return data

            def __getattr__(self, name):
                return getattr(file, name)

        return Counted()


class RemoteStand(CountingStore):
    is_remote = True


@pytest.fixture
def remote(monkeypatch):
    """Tables of a folder, read as those of a network are."""
    for module in ("parquet_file", "arrow_file"):
        name = f"featurize.sources.containers.tables.{module}.LocalStore"
        monkeypatch.setattr(name, type("Nothing", (), {}))
    CountingStore.n_read = CountingStore.n_opened = 0

    def open_remote(folder, **options):
        local = open_tables(folder, **options)
        return TableSource(RemoteStand(local.store.root), local.files, options=local.options)

    return open_remote


@pytest.mark.parametrize("name", ["t.parquet", "the-file.arrow"])
def test_listing_does_not_read_the_images(name, remote, tmp_path):
    images = [os.urandom(50_000) for _ in range(200)]
    path = write(make_table(images), tmp_path / name, 20)
    source = remote(tmp_path)
    listing = source.list_images()
    assert listing.columns["label"][:3] == NAMES
    assert CountingStore.n_read < 400_000 < 5_000_000 < path.stat().st_size
    assert contents(listing) == images
    assert CountingStore.n_read > 10_000_000


def test_a_stream_from_a_network_is_read(remote, tmp_path):
    images = make_images(50)
    write(make_table(images), tmp_path / "s.arrow", 7)
    assert contents(remote(tmp_path).list_images()) == images


def test_an_unchanged_table_is_not_opened(remote, tmp_path):
    write(make_table(make_images(5)), tmp_path / "a.parquet")
    write(make_table(make_images(5, 1)), tmp_path / "b.parquet")
    before = remote(tmp_path).list_images()
    write(make_table(make_images(7, 2)), tmp_path / "b.parquet")
    CountingStore.n_opened = 0
    after = remote(tmp_path).list_images(before)
    assert CountingStore.n_opened == 1
    assert after.reused == ("a.parquet",)
    assert after.paths[:5] == before.paths[:5]
    assert after.stamps[:5].tolist() == before.stamps[:5].tolist()
    assert after.stamps[5] != before.stamps[5]
    assert after.columns["label"][:6] == [""] * 5 + ["cat"]
    assert contents(after) == make_images(5) + make_images(7, 2)


def test_a_table_without_a_stamp_gives_none(tmp_path):
    path = write(make_table(make_images(2)), tmp_path / "t.parquet")
    path.touch()
    listing = open_tables(path).list_images()
    assert listing.stamps.tolist() == [0, 0]
    again = open_tables(path).list_images(listing)
    assert again.reused == ()


def test_keys_are_found_without_listing(remote, tmp_path):
    write(make_table(make_images(5)), tmp_path / "a.parquet")
    source = remote(tmp_path)
    found = source.locate(["a.parquet/000000003", "a.parquet/000000001", "a.parquet/000000009"])
    assert CountingStore.n_opened == 0
    good, also, missing = read_all(found)
    assert [good.data, also.data] == [make_images(5)[3], make_images(5)[1]]
    assert missing.reason == reasons.VANISHED
    for key in ("a.parquet/3", "b.parquet/000000001", "000000001", "a.parquet/00000000x"):
        with pytest.raises(UnknownPathError, match=r"its images look like 'a\.parquet/000000000'"):
            source.locate([key])


def test_globs_select_rows(tmp_path):
    write(make_table(make_images(3)), tmp_path / "a.parquet")
    write(make_table(make_images(3)), tmp_path / "b.parquet")
    listing = open_tables(tmp_path, include=("a.parquet/**", "c/*")).list_images()
    assert listing.paths == [f"a.parquet/00000000{k}" for k in range(3)]
    assert listing.skipped == [f"the pattern 'c/*' matches no image in {tmp_path}"]
    assert contents(listing) == make_images(3)
    with pytest.raises(CallError, match="none of the 6 images"):
        open_tables(tmp_path, include=("*.jpg",)).list_images()


# --- chunks --------------------------------------------------------------------------------


def test_chunks_are_row_groups_and_several_readers_share_a_file(tmp_path):
    images = make_images(1000)
    path = write(make_table(images), tmp_path / "t.parquet", 100)
    source = open_tables(path)
    listing = source.list_images()
    chunks = source.split_rows(listing, np.arange(1000))
    assert [chunk.tolist() for chunk in chunks] == [
        list(range(start, start + 100)) for start in range(0, 1000, 100)
    ]
    some = np.arange(3, 1000, 7)
    chunks = source.split_rows(listing, some)
    assert np.concatenate(chunks).tolist() == some.tolist()
    groups = [set((chunk // 100).tolist()) for chunk in chunks]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10
    assert [image.data for image in read_all(listing, some.tolist())] == [images[k] for k in some]


def test_a_row_group_is_decoded_once(tmp_path, monkeypatch):
    path = write(make_table(make_images(3000)), tmp_path / "t.parquet")
    source = open_tables(path)
    listing, opened = source.list_images(), []
    iter_batches = pq.ParquetFile.iter_batches

    def count(self, *arguments, **options):
        opened.append(options["row_groups"])
        return iter_batches(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", count)
    assert len(contents(listing)) == 3000
    assert opened == [[0]]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_read_in_any_order(name, tmp_path):
    images = make_images(90)
    listing = open_tables(write(make_table(images), tmp_path / name, 8)).list_images()
    order = np.random.default_rng(0).permutation(90)
    reader = listing.source.open_reader(listing)
    for rows in np.array_split(order, 9):
        assert {row: image.data for row, image in reader.read(rows)} == {
            int(row): images[row] for row in rows
        }
    reader.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_large_row_group_does_not_fill_the_memory(tmp_path):
    """250 MiB in one row group cost less than 500 MiB, and labels of it next to nothing."""
    rng = np.random.default_rng(0)
    write(make_table([rng.bytes(100_000) for _ in range(2600)]), tmp_path / "t.parquet", 10**6)
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from featurize.sources.containers.table_source import TableSource\n"
        "from featurize.sources.stores.local_store import LocalStore\n"
        "from featurize.sources.listing import read_images\n"
        "from featurize.sources.containers.tables.schema import import_pyarrow\n"
        "import_pyarrow()\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) >> 10\n"
        "status = Path('/proc/self/status')\n"
        "store = LocalStore(sys.argv[1]); first = peak()\n"
        "listing = TableSource(store, (store.stat_file('t.parquet'),)).list_images()\n"
        "second = peak()\n"
        "size = sum(len(read.image.data) for read in read_images(listing, range(2600)))\n"
        "assert size == 260_000_000\n"
        "print(second - first, peak() - first)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    listed, read = map(int, done.stdout.split())
    assert listed < 40
    assert 100 < read < 500


# --- rows without bytes --------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_reference_leads_nowhere_but_below_the_tables_folder(name, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    home = tmp_path / "home"
    (home / "sub" / "inner").mkdir(parents=True)
    (home / "beside.jpg").write_bytes(b"beside")
    (home / "sub" / "inner" / "a.jpg").write_bytes(b"inside")
    (home / "sub" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (home / "sub" / "up").symlink_to(home)
    (home / "sub" / "loop").symlink_to(home / "sub" / "loop")
    (home / "sub" / "in.jpg").symlink_to("inner/a.jpg")
    paths = [
        "inner/a.jpg",
        "in.jpg",
        "../beside.jpg",
        str(tmp_path / "secret.jpg"),
        "out.jpg",
        "up/beside.jpg",
        "loop",
        "inner/../../beside.jpg",
        "none.jpg",
        "a\0.jpg",
        "",
        None,
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": path} for path in paths] + [None], kind)
    rows = pa.concat_arrays([rows, pa.array([{"bytes": b"", "path": "inner/a.jpg"}], kind)])
    write(pa.table({"image": rows}), home / "sub" / name)
    source = open_tables(home)
    listing = source.list_images()
    found = read_all(listing)
    assert [each.data for each in found[:2]] == [b"inside", b"inside"]
    assert [each.reason for each in found[2:10]] == [reasons.VANISHED] * 8
    assert [each.reason for each in found[10:]] == [reasons.EMPTY] * 4
    status = (home / "sub" / "inner" / "a.jpg").stat()
    assert found[0].stamp in (0, status.st_mtime_ns)  # not the row's: every run looks again


# --- damaged and hostile files -------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("damage", ["empty", "text", "header", "footer"])
def test_a_corrupt_table_is_named_and_passed_over(damage, name, tmp_path):
    path = write(make_table(make_images(40)), tmp_path / f"bad-{name}", 10)
    data = bytearray(path.read_bytes())
    if damage == "footer" and name == "stream.arrow":
        pytest.skip("a stream has no footer")
    path.write_bytes(
        {
            "empty": b"",
            "text": b"path,label\na.jpg,cat\n" * 9,
            "header": bytes(40) + data[40:] if name != "t.parquet" else bytes(len(data)),
            "footer": data[: len(data) // 2],
        }[damage]
    )
    write(make_table(make_images(4)), tmp_path / "good.parquet")
    listing = open_tables(tmp_path).list_images()
    assert contents(listing)[-4:] == make_images(4)
    assert listing.unlisted == (path.name,)
    (line,) = listing.skipped
    assert line.startswith(f"passed over {path.name}: it cannot be read as a table: ")
    with pytest.raises(CallError, match=rf"no images in .*{path.name}: it cannot be read"):
        open_tables(path).list_images()


def test_rows_before_the_cut_of_a_stream_are_kept(tmp_path):
    path = write(make_table(make_images(40)), tmp_path / "s.arrow", 10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    os.utime(path, (OLD, OLD))
    listing = open_tables(tmp_path).list_images()
    assert 10 <= len(listing.paths) <= 30
    assert listing.unlisted == ("s.arrow",)
    assert contents(listing) == make_images(40)[: len(listing.paths)]
    again = open_tables(tmp_path).list_images(listing)
    assert (again.reused, again.unlisted) == ((), ("s.arrow",))


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_byte_costs_rows_and_raises_nothing(name, tmp_path):
    """Any byte: rows are as they were, or fail, or hold other bytes of the same image."""
    images = [bytes([65 + k % 26]) * 90 for k in range(40)]
    path = write(make_table(images), tmp_path / name, 10)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(150):
        place, bit = int(rng.integers(len(data))), int(rng.integers(8))
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << bit
        path.write_bytes(spoilt)
        os.utime(path, (OLD, OLD))
        try:
            listing = open_tables(path).list_images()
        except CallError:
            seen.add("refused")
            continue
        found = read_all(listing)
        for image in found:
            assert isinstance(image, (ImageFile, ImageUnreadableError))
        seen.add("failed" if any(isinstance(e, ImageUnreadableError) for e in found) else "read")
    assert "read" in seen
    assert len(seen) > 1


def test_a_damaged_row_group_costs_itself_alone(broken):
    data = bytearray(broken.read_bytes())
    listing = open_tables(broken).list_images()
    column = pq.ParquetFile(broken).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    broken.write_bytes(data)
    os.utime(broken, (OLD, OLD))
    found = read_all(listing)
    assert [each.data for each in found[:10] + found[20:]] == (
        make_images(40)[:10] + make_images(40)[20:]
    )
    assert {each.reason for each in found[10:20]} == {reasons.DAMAGED}


def test_damaged_labels_cost_no_image(broken):
    data = bytearray(broken.read_bytes())
    metadata = pq.ParquetFile(broken).metadata
    for i in range(metadata.num_row_groups):
        column = metadata.row_group(i).column(2)
        assert column.path_in_schema == "label"
        start = column.dictionary_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    broken.write_bytes(data)
    listing = open_tables(broken).list_images()
    assert contents(listing) == make_images(40)
    assert listing.columns == {"label": [""] * 40}
    assert listing.skipped == [
        "passed over the columns of t.parquet: they are damaged, so its images have no labels"
    ]


def test_offsets_of_a_stranger_lead_nowhere(tmp_path):
    """A binary array whose offsets lead out of its buffer would read other memory."""
    path = write(pa.table({"image": pa.array([b"a" * 64, b"b" * 64])}), tmp_path / "s.arrow")
    data = bytearray(path.read_bytes())
    place = data.index(np.array([0, 64, 128], "<i4").tobytes())
    data[place : place + 12] = np.array([0, 1 << 30, 128], "<i4").tobytes()
    source, listing = open_tables(path), open_tables(path).list_images()
    path.write_bytes(data)
    os.utime(path, (OLD, OLD))
    assert codes(listing) == [reasons.DAMAGED] * 2
    with pytest.raises(CallError, match="cannot be read as a table"):
        source.list_images()


def test_names_that_are_no_text_are_damage(tmp_path):
    path = write(make_table(make_images(3)), tmp_path / "s.arrow")
    data = path.read_bytes().replace(b"label\0", b"\xff\xff\xffel\0")
    assert data != path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(CallError, match="cannot be read as a table: 'utf-8' codec"):
        open_tables(path).list_images()


def test_a_footer_that_claims_too_much_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pa.nulls(5_000_000, pa.binary())}), path)
    assert path.stat().st_size < 5_000_000
    start = time.monotonic()
    with pytest.raises(CallError, match="it claims 5,000,000 rows in"):
        open_tables(path).list_images()
    assert time.monotonic() - start < 2


def test_a_table_that_changes_after_listing_is_read_by_the_next_run(tmp_path):
    path = write(make_table(make_images(4)), tmp_path / "t.parquet")
    listing = open_tables(path).list_images()
    write(make_table(make_images(4, 9)), path)
    os.utime(path, (OLD + 50, OLD + 50))
    assert codes(listing) == [reasons.READ_ERROR] * 4
    path.unlink()
    assert codes(listing) == [reasons.VANISHED] * 4


def test_an_image_may_have_so_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("featurize.images.reading.MAX_FILE_BYTES", 100)
    for name in FORMATS:
        path = write(pa.table({"image": [b"a" * 100, b"b" * 101]}), tmp_path / name)
        assert codes(open_tables(path).list_images()) == [0, reasons.TOO_LARGE]


def test_no_type_of_a_stranger_runs_code(tmp_path):
    """As a pickled type of pyarrow below 14.0.1 did (CVE-2023-47248)."""
    stop = f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR."
    field = pa.field(
        "image",
        pa.binary(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": stop,
        },
    )
    table = pa.table([pa.array(make_images(2), pa.binary())], schema=pa.schema([field]))
    for name in FORMATS:
        listing = open_tables(write(table, tmp_path / name)).list_images()
        assert contents(listing) == make_images(2)
    assert not (tmp_path / "ran").exists()


def test_without_pyarrow_the_command_that_installs_it_is_given(broken, tmp_path):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from featurize.sources.containers.table_source import TableSource\n"
        "from featurize.sources.stores.local_store import LocalStore\n"
        "store = LocalStore(sys.argv[1])\n"
        "TableSource(store, (store.stat_file('t.parquet'),)).list_images()"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert 'CallError: Parquet and Arrow tables need pyarrow: pip install "headgraft[parquet]"' in (
        done.stderr
    )


def test_importing_the_source_imports_neither_pyarrow_nor_pandas():
    code = (
        "import sys, featurize.sources.containers.table_source\n"
        "assert not {'pyarrow', 'pandas', 'torch', 'fsspec'} & set(sys.modules)\n"
        "from featurize.sources.containers.tables.schema import import_pyarrow; import_pyarrow()\n"
        "assert not {'pyarrow.dataset', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Hostile archives, tables and lists: one row or one sentence each, neighbours equal, no file X."""

import gzip
import io
import json
import os
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .making import (
    Server,
    age,
    assert_same_features,
    read_features,
    read_keys,
    read_statuses,
    write_csv,
    write_folder,
    write_shards,
    write_tar,
)

SEEDLING = ("--backbone", "seedling")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "out" / "c.h5"


@pytest.fixture(autouse=True)
def _nothing_is_made(tmp_path):
    """Whatever is read, only the cache, its lock and its labels are written."""
    (tmp_path / "out").mkdir()
    yield
    assert not list(tmp_path.rglob("X*"))
    assert not (tmp_path.parent / "X").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {
        "c.h5",
        "c.h5.lock",
        "c.h5.labels.csv",
        "c.h5.labels.source",
    }


def check_neighbours(cache, truth, images, names):
    """The images named have the features that they always have."""
    import hashlib

    found = read_features(cache)
    digests = {hashlib.sha256(images[name]).digest() for name in names}
    assert digests <= found.keys()
    assert_same_features(
        {digest: found[digest] for digest in digests},
        {digest: truth[digest] for digest in digests},
    )


# --- archives --------------------------------------------------------------------------------


@pytest.mark.long
def test_a_shard_that_is_cut_short(run, images, truth, tmp_path, cache):
    shards = write_shards(tmp_path / "shards", images, 12)
    first = shards / "shard-000000.tar"
    data = first.read_bytes()
    with tarfile.open(first) as archive:
        members = [member for member in archive if member.name.endswith(".jpg")]
    first.write_bytes(data[: members[6].offset_data + members[6].size // 2])
    age(first)
    done = run(shards, cache, *SEEDLING)
    keys = read_keys(cache)
    before = [f"shard-000000.tar/{member.name}" for member in members[:6]]
    assert [key for key in keys if key.startswith("shard-000000")][:6] == before
    assert sum(key.startswith("shard-000001") for key in keys) == 12
    assert "shard-000000.tar" in done.said
    names = list(images)
    check_neighbours(cache, truth, images, names[:6] + names[12:])
    again = run(shards, cache)
    assert again.computed == 0


def test_members_that_lead_out_or_lead_elsewhere(run, images, truth, tmp_path, cache):
    path = tmp_path / "h.tar"
    names = list(images)
    with tarfile.open(path, "w") as archive:

        def add(name, data=b"", **fields):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))

        add("a.jpg", images[names[0]])
        add("../X1.jpg", images[names[1]])
        add("/X2.jpg", images[names[1]])
        add("d/../../X3.jpg", images[names[1]])
        add("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        add("pipe.jpg", type=tarfile.FIFOTYPE)
        add("device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add("b.jpg", images[names[1]])
        add("twice.jpg", images[names[2]])
        add("twice.jpg", images[names[3]])
        add("z.jpg", images[names[4]])
    age(path)
    done = run(path, cache, *SEEDLING)
    assert set(read_keys(cache)) - {"hard.jpg", "link.jpg"} == {
        "a.jpg",
        "b.jpg",
        "twice.jpg",
        "z.jpg",
    }
    assert done.rows - done.failed == 4
    for name in ("X1.jpg", "X2.jpg", "X3.jpg", "link.jpg", "twice.jpg"):
        assert name in done.said or "more for that reason" in done.said
    assert "root:" not in done.said + done.out
    check_neighbours(cache, truth, images, [names[0], names[1], names[4]])


def test_a_compressed_file_that_is_called_tar(run, images, truth, tmp_path, cache, command):
    shards = write_shards(tmp_path / "shards", images, 12)
    second = shards / "shard-000001.tar"
    second.write_bytes(gzip.compress(second.read_bytes()))
    age(second)
    done = run(shards, cache, *SEEDLING)
    assert (done.rows, done.computed, done.failed) == (12, 12, 0)
    assert "shard-000001.tar" in done.said
    check_neighbours(cache, truth, images, list(images)[:12])
    # Alone it is an error in one sentence.
    line = ("run", second, "-o", tmp_path / "out" / "none.h5", *SEEDLING)
    alone = command("featurize", *line)
    assert alone.returncode == 2
    assert "shard-000001.tar" in alone.stderr
    assert not (tmp_path / "out" / "none.h5").exists()
    (tmp_path / "out" / "none.h5.lock").unlink(missing_ok=True)


def test_a_zip_with_hostile_members(run, images, truth, tmp_path, cache):
    path, names = tmp_path / "h.zip", list(images)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", images[names[0]])
        archive.writestr("../X1.jpg", images[names[1]])
        archive.writestr("/X2.jpg", images[names[1]])
        archive.writestr("bomb.jpg", bytes(30_000_000))
        archive.writestr("damaged.jpg", images[names[2]])
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("z.jpg", images[names[3]])
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("damaged.jpg").header_offset
    data[start + 60 : start + 90] = b"\xff" * 30
    path.write_bytes(data)
    age(path)
    done = run(path, cache, *SEEDLING)
    statuses = read_statuses(cache)
    assert {key for key, (status, _) in statuses.items() if status == 1} == {"a.jpg", "z.jpg"}
    assert set(statuses) <= {"a.jpg", "bomb.jpg", "damaged.jpg", "link.jpg", "z.jpg"}
    assert statuses["damaged.jpg"][1] == 3
    assert "X1.jpg" in done.said
    assert "X2.jpg" in done.said
    check_neighbours(cache, truth, images, [names[0], names[3]])


# --- tables ----------------------------------------------------------------------------------


def test_a_table_with_null_bytes_and_labels_of_another_type(run, images, truth, tmp_path, cache):
    names = list(images)
    rows = [
        {"bytes": images[names[0]], "path": None},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": "../X.jpg"},
        {"bytes": b"", "path": "a.jpg"},
        {"bytes": b"no image", "path": "a.jpg"},
        {"bytes": images[names[1]], "path": "../../X.jpg"},
    ]
    image = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": image, "label": pa.array([[k] for k in range(8)])})
    schema = {
        "huggingface": json.dumps({"info": {"features": {"label": {"names": 5}, "image": 3}}})
    }
    pq.write_table(table.replace_schema_metadata(schema), tmp_path / "t.parquet")
    age(tmp_path / "t.parquet")
    done = run(tmp_path / "t.parquet", cache, *SEEDLING)
    statuses = [status for status, _ in read_statuses(cache).values()]
    assert sum(status == 1 for status in statuses) == 2
    assert done.rows == done.computed + done.failed
    assert "root:" not in done.said + done.out
    assert "label" in done.said
    check_neighbours(cache, truth, images, names[:2])


def test_label_numbers_without_names_and_names_without_numbers(run, images, tmp_path, cache):
    features = {"label": {"_type": "ClassLabel", "names": ["one"]}, "image": {"_type": "Image"}}
    image = [{"bytes": data, "path": None} for data in list(images.values())[:4]]
    table = pa.table({"image": image, "label": pa.array([0, 7, -1, None], pa.int64())})
    schema = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(schema), tmp_path / "t.parquet")
    age(tmp_path / "t.parquet")
    assert run(tmp_path / "t.parquet", cache, *SEEDLING).computed == 4
    labels = (tmp_path / "out" / "c.h5.labels.csv").read_text().splitlines()[1:]
    assert labels[0].endswith(",one")
    assert labels[3].endswith(",")
    assert not labels[1].endswith(",one")
    assert not labels[2].endswith(",one")


@pytest.mark.parametrize("what", ["cut", "empty", "text", "no images"])
def test_a_table_that_is_none(command, images, tmp_path, cache, what):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"n": [1, 2]}), path)
    if what != "no images":
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-10], "empty": b"", "text": b"hello"}[what])
    done = command("featurize", "run", path, "-o", cache, *SEEDLING)
    assert done.returncode == 2, done.stderr
    assert "t.parquet" in done.stderr
    assert "Traceback" not in done.stderr
    assert not cache.exists()


# --- lists -----------------------------------------------------------------------------------


def test_a_list_of_hostile_lines(run, images, truth, tmp_path, cache):
    names = list(images)
    folder = write_folder(tmp_path / "photos", dict(list(images.items())[:3]))
    os.symlink("/etc/passwd", folder / "link.jpg")
    lines = [
        names[0],
        "pipe:touch X",
        f"pipe:touch {tmp_path}/X",
        "reference::memory://X",
        "simplecache::https://127.0.0.1:1/X.jpg",
        "filecache::file:///etc/passwd",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "a/../../X.jpg",
        "link.jpg",
        "ssh://localhost/X.jpg",
        "github://a:b@c/X.jpg",
        f"https://127.0.0.1:1/{'x' * 3000}.jpg",
        "local:///etc/passwd",
        "`touch X`.jpg",
        names[1],
    ]
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps({"path": line}) + "\n" for line in lines))
    age(path)
    done = run(path, cache, *SEEDLING, cwd=tmp_path)
    statuses = read_statuses(cache)
    assert {key for key, (status, _) in statuses.items() if status == 1} == set(names[:2])
    assert set(statuses) - set(names[:2]) <= {"`touch X`.jpg"}
    assert "root:" not in done.said + done.out
    assert done.said.count("\n") < 60
    assert len(done.said) < 8000
    check_neighbours(cache, truth, images, names[:2])


@pytest.mark.long
def test_a_server_that_refuses(run, images, truth, tmp_path, cache):
    pytest.importorskip("aiohttp")
    names = list(images)
    with Server({f"photos/{name}": images[name] for name in names[:6]}) as server:
        bad = {"gone": 404, "forbidden": 403, "broken": 500, "teapot": 418}
        server.statuses = {f"/photos/{name}.jpg": status for name, status in bad.items()}
        urls = [f"{server.url}/photos/{name}" for name in names[:6]]
        urls += [f"{server.url}/photos/{name}.jpg" for name in bad]
        urls += ["http://127.0.0.1:9/photos/refused.jpg"]
        path = write_csv(tmp_path / "l.csv", urls, ("url", "label"))
        done = run(path, cache, *SEEDLING)
        assert (done.rows, done.computed, done.failed) == (11, 6, 5)
        reasons = {
            key.rpartition("/")[2]: reason
            for key, (status, reason) in read_statuses(cache).items()
            if status == 2
        }
        assert reasons["gone.jpg"] == 9
        assert reasons["forbidden.jpg"] == 7
        assert reasons["broken.jpg"] == reasons["refused.jpg"] == 8
        check_neighbours(cache, truth, images, names[:6])
        # What is the system's fault is tried again, and nothing else.
        server.paths.clear()
        server.statuses = {}
        server.files |= {f"/photos/{name}.jpg": images[names[6]] for name in bad}
        again = run(path, cache)
        assert (again.rows, again.failed) == (11, 1)
        assert again.computed == 1
        assert {p.rpartition("/")[2] for p in server.paths} == {f"{name}.jpg" for name in bad}


def test_of_a_list_with_nothing_to_read_it_is_said_why(command, tmp_path, cache):
    path = tmp_path / "l.csv"
    path.write_text("path\npipe:touch X\nfile:///etc/passwd\n")
    done = command("featurize", "run", path, "-o", cache, *SEEDLING, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("passed over") == 2
    assert not cache.exists()


def test_a_tar_of_nothing(command, tmp_path, cache):
    done = command("featurize", "run", write_tar(tmp_path / "e.tar", {}), "-o", cache, *SEEDLING)
    assert done.returncode == 2
    assert "e.tar" in done.stderr

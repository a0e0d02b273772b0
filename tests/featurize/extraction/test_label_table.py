"""Labels that come with images: the table beside the cache, and whose cells stand in it."""

import csv
import io
import os
import tarfile
import time
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurize
from featurize import FeatureCache

NAMES = [f"{k}.png" for k in range(8)]


@pytest.fixture
def photos(draw, tmp_path):
    return draw(tmp_path / "photos", NAMES)


def write_parquet(path, photos, names, labels=None):
    """Rows of images in the order given, each with a label that tells its name."""
    labels = labels or [f"is {name}" for name in names]
    images = [{"bytes": (photos / name).read_bytes(), "path": name} for name in names]
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    then = time.time_ns() - 10**10 + len(names)
    os.utime(path, ns=(then, then))


def read_table(path):
    with path.open(newline="") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def labels_are_right(cache, photos):
    """Whether each row's label tells the image whose bytes it was made from."""
    from featurize.files import hash_bytes

    names = {hash_bytes((photos / name).read_bytes()): name for name in NAMES}
    found = FeatureCache(cache)
    told = read_table(cache.with_name(cache.name + ".labels.csv"))
    digests = [row.tobytes() for row in found.column("sha256")]
    return told == {
        path: f"is {names[digest]}" for path, digest in zip(found.paths, digests, strict=True)
    }


@pytest.mark.parametrize(
    "names", [NAMES[::-1], [NAMES[0], *NAMES], NAMES[2:], [*NAMES[4:], *NAMES[:4]]]
)
def test_labels_move_with_the_rows_of_a_table(photos, toy, tmp_path, names):
    table, cache = tmp_path / "train.parquet", tmp_path / "c.h5"
    write_parquet(table, photos, NAMES)
    featurize.run(table, cache, backbone=toy, layers="0")
    assert labels_are_right(cache, photos)
    write_parquet(table, photos, names)
    again = featurize.run(table, cache, backbone=toy, prune=True)
    assert (again.rows, again.computed) == (len(names), 0)
    assert labels_are_right(cache, photos)
    assert not cache.with_name("c.h5.labels.csv.old").exists()  # nothing was corrected


def test_corrected_labels_stay(photos, toy, tmp_path):
    table, cache, said = tmp_path / "train.parquet", tmp_path / "c.h5", []
    write_parquet(table, photos, NAMES)
    featurize.run(table, cache, backbone=toy, layers="0")
    labels = tmp_path / "c.h5.labels.csv"
    labels.write_text(labels.read_text().replace("is 3.png", "corrected"))
    corrected = labels.read_bytes()
    featurize.run(table, cache, backbone=toy, say=said.append)
    assert labels.read_bytes() == corrected
    assert any("differs from what came with the images in 1 cell" in text for text in said)


def write_shard(path, photos, names, labels=None):
    """Images under numbers, each with a label that tells its name."""
    with tarfile.open(path, "w") as archive:
        for k, name in enumerate(names):
            label = (labels or {}).get(name, f"is {name}").encode()
            for suffix, data in (("cls", label), ("png", (photos / name).read_bytes())):
                info = tarfile.TarInfo(f"{k:04}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    then = time.time_ns() - 10**10 + zlib.crc32(path.read_bytes())
    os.utime(path, ns=(then, then))


def test_labels_move_with_the_members_of_a_shard(photos, toy, tmp_path):
    """Packed anew, another image has the number of an earlier one."""
    shard, cache = tmp_path / "a.tar", tmp_path / "c.h5"
    write_shard(shard, photos, NAMES)
    featurize.run(shard, cache, backbone=toy, layers="0")
    assert labels_are_right(cache, photos)
    write_shard(shard, photos, NAMES[::-1])
    assert featurize.run(shard, cache, backbone=toy).computed == 0
    assert labels_are_right(cache, photos)
    assert not (tmp_path / "c.h5.labels.csv.old").exists()  # nothing was corrected


def test_a_label_that_the_source_corrects_arrives(photos, toy, tmp_path):
    shard, cache, labels = tmp_path / "a.tar", tmp_path / "c.h5", tmp_path / "c.h5.labels.csv"
    write_shard(shard, photos, NAMES)
    featurize.run(shard, cache, backbone=toy, layers="0")
    labels.write_text(labels.read_text().replace("is 5.png", "mine"))
    write_shard(shard, photos, NAMES, {"3.png": "corrected"})
    featurize.run(shard, cache, backbone=toy)
    told = read_table(labels)
    assert told["0003.png"] == "corrected"
    assert told["0005.png"] == "mine"  # the source says of it what it said before


def test_a_correction_that_the_source_contradicts_is_kept_aside(photos, toy, tmp_path):
    shard, cache, labels = tmp_path / "a.tar", tmp_path / "c.h5", tmp_path / "c.h5.labels.csv"
    said = []
    write_shard(shard, photos, NAMES)
    featurize.run(shard, cache, backbone=toy, layers="0")
    labels.write_text(labels.read_text().replace("is 5.png", "mine"))
    write_shard(shard, photos, NAMES, {"5.png": "corrected"})
    featurize.run(shard, cache, backbone=toy, say=said.append)
    assert read_table(labels)["0005.png"] == "corrected"
    assert read_table(tmp_path / "c.h5.labels.csv.old")["0005.png"] == "mine"
    assert any("that the source says something else of now" in text for text in said)


def test_columns_of_ones_own_stay(photos, toy, tmp_path):
    shard, cache, labels = tmp_path / "a.tar", tmp_path / "c.h5", tmp_path / "c.h5.labels.csv"
    write_shard(shard, photos, NAMES[:6])
    featurize.run(shard, cache, backbone=toy, layers="0")
    lines = labels.read_text().splitlines()
    groups = ["group", *map(str, range(1, 7))]
    labels.write_text("\n".join(map(",".join, zip(lines, groups, strict=True))))
    write_shard(shard, photos, NAMES)
    featurize.run(shard, cache, backbone=toy)
    with labels.open(newline="") as file:
        groups = {row["path"]: row["group"] for row in csv.DictReader(file)}
    assert [groups[f"{k:04}.png"] for k in range(8)] == ["1", "2", "3", "4", "5", "6", "", ""]
    assert labels_are_right(cache, photos)


def test_a_source_without_labels_takes_the_table_along(photos, toy, tmp_path):
    """Or heads would be trained on keys that are gone."""
    shard, cache, labels = tmp_path / "a.tar", tmp_path / "c.h5", tmp_path / "c.h5.labels.csv"
    write_shard(shard, photos, NAMES)
    featurize.run(shard, cache, backbone=toy, layers="0")
    labels.write_text(labels.read_text().replace("is 5.png", "mine"))
    assert featurize.run(photos, cache, backbone=toy, prune=True).computed == 0
    assert not labels.exists()
    assert read_table(tmp_path / "c.h5.labels.csv.old")["0005.png"] == "mine"
    assert featurize.run(photos, cache, backbone=toy).labels == ""


def test_a_table_that_is_gone_is_written_again(photos, toy, tmp_path):
    table, cache = tmp_path / "train.parquet", tmp_path / "c.h5"
    write_parquet(table, photos, NAMES)
    featurize.run(table, cache, backbone=toy, layers="0")
    (tmp_path / "c.h5.labels.csv").unlink()
    assert featurize.run(table, cache, backbone=toy).computed == 0
    assert labels_are_right(cache, photos)


def test_a_table_in_another_form_is_left_alone(photos, toy, tmp_path):
    table, cache, said = tmp_path / "train.parquet", tmp_path / "c.h5", []
    write_parquet(table, photos, NAMES)
    featurize.run(table, cache, backbone=toy, layers="0")
    labels = tmp_path / "c.h5.labels.csv"
    labels.write_text("image;label\n0;mine\n")
    featurize.run(table, cache, backbone=toy, say=said.append)
    assert labels.read_text() == "image;label\n0;mine\n"
    assert any("is left as it is" in sentence for sentence in said)


def test_a_folder_has_no_table(photos, toy, tmp_path):
    featurize.run(photos, tmp_path / "c.h5", backbone=toy, layers="0")
    assert not (tmp_path / "c.h5.labels.csv").exists()

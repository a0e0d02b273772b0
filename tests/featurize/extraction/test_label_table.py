"""Labels that come with images: the table beside the cache, and whose cells stand in it."""

import csv
import os
import time

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
    assert cache.with_name("c.h5.labels.csv.old").exists()


def test_corrected_labels_stay(photos, toy, tmp_path):
    table, cache, said = tmp_path / "train.parquet", tmp_path / "c.h5", []
    write_parquet(table, photos, NAMES)
    featurize.run(table, cache, backbone=toy, layers="0")
    labels = tmp_path / "c.h5.labels.csv"
    labels.write_text(labels.read_text().replace("is 3.png", "corrected"))
    corrected = labels.read_bytes()
    featurize.run(table, cache, backbone=toy, say=said.append)
    assert labels.read_bytes() == corrected
    assert not [sentence for sentence in said if "labels.csv" in sentence]


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

"""Labels that came with the images: names, splits, numbers; where they are kept, and what wins."""

import csv
import json
import os

import pytest

from .conftest import COUNT
from .making import (
    LABELS,
    age,
    draw_images,
    label_of,
    read_keys,
    write_parquet,
    write_tar,
)

FIT = ("--head", "ncm", "--json")


@pytest.fixture(scope="module")
def fit(command, tmp_path_factory):
    """Call ``classify fit``; its record, and what it said."""

    def fit(cache, *options):
        head = tmp_path_factory.mktemp("head") / "h.head"
        done = command("classify", "fit", cache, "-o", head, *FIT, *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    return fit


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_gives_the_names_of_its_classes(fit, made, images):
    table = read_table(made["parquet"].with_name("parquet.h5.labels.csv"))
    assert [row["label"] for row in table] == [label_of(name) for name in images]
    assert [row["path"] for row in table] == read_keys(made["parquet"])
    record, said = fit(made["parquet"])
    assert record["classes"] == sorted(LABELS)
    assert "labels came with the images" in said


@pytest.mark.parametrize("kind", ["tar", "shards", "saved", "csv", "jsonl"])
def test_labels_beside_the_cache_are_those_of_the_images(made, images, kind):
    table = read_table(made[kind].with_name(f"{kind}.h5.labels.csv"))
    assert len(table) == COUNT
    number_of = {name.rpartition("/")[2]: label_of(name) for name in images}
    if kind == "saved":
        wanted = [label_of(name) for name in images]
    else:
        wanted = [number_of[row["path"].rpartition("/")[2]] for row in table]
    assert [row["label"] for row in table] == wanted
    assert [row["path"] for row in table] == read_keys(made[kind])


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_folder_names_need_no_table(fit, made, kind):
    assert not made[kind].with_name(f"{kind}.h5.labels.csv").exists()
    assert fit(made[kind])[0]["classes"] == sorted(LABELS)


def test_the_cache_holds_no_label(made):
    for kind in ("parquet", "saved", "tar", "shards"):
        content = made[kind].read_bytes()
        for label in LABELS:
            assert label.encode() not in content, kind
            assert label.encode() in made[kind].with_name(f"{kind}.h5.labels.csv").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_splits_are_of_the_names_of_files(run, fit, tmp_path, form):
    images = draw_images(32, seed=4)
    names = list(images)
    write = write_parquet if form == "parquet" else write_tar
    for split, part in (("train", names[:20]), ("test", names[20:])):
        name = f"{split}-00000-of-00001.parquet" if form == "parquet" else f"{split}-000000.tar"
        write(tmp_path / "data" / name, {name: images[name] for name in part})
    cache = tmp_path / "c.h5"
    assert (
        run(tmp_path / "data", cache, "--backbone", "seedling", "--layers", "stem:max").rows == 32
    )
    rows = read_table(tmp_path / "c.h5.labels.csv")
    assert {(row["path"].partition("-")[0], row["split"]) for row in rows} == {
        ("train", "train"),
        ("test", "test"),
    }
    record, _ = fit(cache)
    assert (record["n_train"] + record.get("n_val", 0), record["n_test"]) == (20, 12)
    # Of one split alone.
    one = run(
        tmp_path / "data", tmp_path / "one.h5", *("--backbone", "seedling", "--split", "test")
    )
    assert one.rows == 12


def test_numbers_of_classes(run, fit, tmp_path):
    images = draw_images(16, seed=6)
    numbered = {f"{i % 2 + 3}/{i:03}.jpg": data for i, data in enumerate(images.values())}
    shard = write_tar(tmp_path / "n.tar", numbered)
    assert (
        run(shard, tmp_path / "c.h5", "--backbone", "seedling", "--layers", "stem:max").rows == 16
    )
    assert fit(tmp_path / "c.h5")[0]["classes"] == ["3", "4"]


def test_labels_that_are_given_win(fit, made, images, tmp_path):
    given = tmp_path / "given.csv"
    keys = read_keys(made["parquet"])
    lines = [f"{key},{'low' if i < COUNT // 2 else 'high'}\n" for i, key in enumerate(keys)]
    given.write_text("path,label\n" + "".join(lines))
    record, said = fit(made["parquet"], "--labels", given)
    assert record["classes"] == ["high", "low"]
    assert "came with the images" not in said


# --- a table that somebody has edited ---------------------------------------------------------


@pytest.fixture
def edited(toy_run, tmp_path):
    """A cache of a table, and beside it labels of which one was corrected: its key and content."""
    images, cache = draw_images(12, seed=7), tmp_path / "c.h5"
    write_parquet(tmp_path / "t.parquet", images)
    toy_run(tmp_path / "t.parquet", cache)
    table = tmp_path / "c.h5.labels.csv"
    text = table.read_text().replace(f"000000003,{LABELS[1]}", "000000003,corrected")
    assert "corrected" in text
    table.write_text(text)
    return images, cache, table


def labels_by_name(table, images):
    """Labels of a table's rows, by the names of the images that are in these rows now."""
    rows = read_table(table)
    assert len(rows) == len(images)
    return {name: row["label"] for name, row in zip(images, rows, strict=True)}


def test_an_edited_table_is_kept_and_it_is_said(toy_run, edited, tmp_path):
    _, cache, table = edited
    before = table.read_bytes()
    toy_run(tmp_path / "t.parquet", cache)
    assert table.read_bytes() == before
    age(tmp_path / "t.parquet", seconds=60)
    assert toy_run(tmp_path / "t.parquet", cache).computed == 0
    assert table.read_bytes() == before
    assert any("in 1 cell, which stay" in sentence for sentence in toy_run.said)


@pytest.mark.parametrize("change", ["reversed", "in front", "sorted", "fewer"])
def test_a_correction_goes_with_its_image(toy_run, edited, tmp_path, change):
    images, cache, table = edited
    corrected = list(images)[3]
    new = {f"{LABELS[0]}/new.jpg": draw_images(1, seed=8)[f"{LABELS[0]}/000.jpg"]}
    images = {
        "reversed": dict(reversed(images.items())),
        "in front": {**new, **images},
        "sorted": dict(sorted(images.items())),
        "fewer": dict(list(images.items())[1:]),
    }[change]
    write_parquet(tmp_path / "t.parquet", images, later=60)
    toy_run(tmp_path / "t.parquet", cache)
    found = labels_by_name(table, images)
    assert found.pop(corrected) == "corrected"
    assert found == {name: label_of(name) for name in images if name != corrected}


def test_a_run_that_fails_leaves_the_corrections(toy_run, edited, tmp_path, monkeypatch):
    """Stopped while rows are looked at: what is there is right for the cache that is there."""
    from featurize.extraction.completion.complete import CacheCompletion

    images, cache, table = edited
    write_parquet(tmp_path / "t.parquet", dict(reversed(images.items())), later=60)
    seen = []

    def stop(self):
        seen.append(read_table(table))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CacheCompletion, "run", stop)
        with pytest.raises(Exception, match="stopped"):
            toy_run(tmp_path / "t.parquet", cache)
    assert seen == [[]]  # a kill here leaves no label, rather than another image's
    assert labels_by_name(table, images)[list(images)[3]] == "corrected"
    toy_run(tmp_path / "t.parquet", cache)
    found = labels_by_name(table, dict(reversed(images.items())))
    assert found[list(images)[3]] == "corrected"


def test_a_table_with_missing_lines_is_completed(toy_run, edited, tmp_path):
    """As a kill leaves it, when the rows of the cache are all done."""
    images, cache, table = edited
    table.write_text("path,label\n000000003,corrected\n")
    assert toy_run(tmp_path / "t.parquet", cache).computed == 0
    found = labels_by_name(table, images)
    assert found.pop(list(images)[3]) == "corrected"
    assert found == {name: label_of(name) for name in images if name != list(images)[3]}


def test_what_is_no_such_table_is_left(toy_run, edited, tmp_path):
    _, cache, table = edited
    table.write_text("notes of mine\n")
    toy_run(tmp_path / "t.parquet", cache)
    assert table.read_text() == "notes of mine\n"
    assert any("left as it is" in sentence for sentence in toy_run.said)
    os.remove(table)
    toy_run(tmp_path / "t.parquet", cache)
    assert len(read_table(table)) == 12

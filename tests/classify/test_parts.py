"""A cache of parts gives what the single file with the same rows gives."""

import json
import os
import time

import numpy as np
import pytest

from classify import CachedFeatures, compare, fit, load_head, predict
from classify.data.features import open_cache
from classify.data.sets.cache_set import CacheSet
from classify.data.targets.spec import TaskSpec
from classify.errors import LabelError, UnknownPathError
from featurize import FeatureCache
from featurize.cache.parts.index import read_index, write_index
from tests.parts import cut_cache

from .conftest import write_cache

STARTS = [0, 1, 250, 251, 590]
TIMES = {"seconds", "seconds_training", "cache", "output", "started", "finished"}


@pytest.fixture(scope="module")
def folder(cache, tmp_path_factory):
    """The digits of `cache` in parts."""
    return cut_cache(cache.path, tmp_path_factory.mktemp("parts") / "digits", STARTS)


def drop_times(value, path):
    """Results without times, and without where the cache is."""
    if isinstance(value, dict):
        return {k: drop_times(v, path) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [drop_times(each, path) for each in value]
    return value.replace(str(path), "CACHE") if isinstance(value, str) else value


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--head", "softmax"),
        ("compare", "--heads", "lda,ncm,knn", "--layers", "each,joined"),
        ("advise",),
    ],
    ids=lambda words: words[0],
)
def test_verbs_give_the_same_json(cache, folder, table, command, tmp_path, words):
    verb, *options = words
    results = []
    for number, path in enumerate((cache.path, folder)):
        output = ["-o", tmp_path / f"{number}.head"] if verb == "fit" else []
        done = command("classify", verb, path, "--labels", table, *options, *output, "--json")
        assert done.returncode == 0, done.stderr
        results.append(drop_times(json.loads(done.stdout), path))
    single, parts = results
    assert parts == single
    assert (folder.parent / "digits.kept").is_dir()
    if verb == "fit":
        heads = [load_head(tmp_path / f"{number}.head") for number in (0, 1)]
        assert np.array_equal(heads[0].seen, heads[1].seen)
        for column in ("labels", "values"):
            found = [getattr(predict(heads[0], p), column) for p in (cache.path, folder)]
            assert np.array_equal(*found)
        done = command("classify", "predict", tmp_path / "1.head", folder)
        assert done.stdout.count("\n") == 601


def test_a_set_of_parts_and_a_file_is_one_of_files(cache, folder, table, tmp_path, digits):
    other = write_cache(
        tmp_path / "other.h5", {"top": digits[0][:500, ::-1].copy()}, cache.paths[:500]
    )
    sets = [CacheSet([path, other]) for path in (cache.path, folder)]
    for name in ("sha256", "status", "path"):
        assert np.array_equal(
            sets[0].column(name, [3, 499, -2]), sets[1].column(name, [3, 499, -2])
        )
    asked = [cache.paths[k] for k in (499, 0, 560)]
    assert sets[1].find_rows(asked).tolist() == [499, 0, -1]
    assert sets[1].paths_of([499, 0]) == asked[:2]
    results = [
        compare([path, other], table_of(cache, digits, tmp_path), heads="lda", layers="last")
        for path in (cache.path, folder)
    ]
    scores = [[(r.record.layer, r.record.accuracy) for r in each.results] for each in results]
    assert scores[0] == scores[1]


def table_of(cache, digits, tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"{p},{d}" for p, d in zip(cache.paths[:500], digits[1], strict=False)]
    path.write_text("\n".join(["path,label", *lines]))
    return path


def test_features_are_looked_up_by_path(cache, folder):
    paths = np.array([cache.paths[k] for k in (590, 0, 250)], object)
    found = [CachedFeatures(path).fit_transform(paths) for path in (cache.path, folder)]
    assert np.array_equal(*found)
    opened = FeatureCache(folder)
    below = np.array([f"/images/{paths[0]}", f"./{paths[1]}"], object)
    assert np.array_equal(CachedFeatures(opened).transform(below), found[0][:2])
    with pytest.raises(UnknownPathError, match=r"1 of 3 images are not in .*'nobody'"):
        CachedFeatures(opened).transform(np.array([*below, "nobody"], object))
    assert "paths" not in vars(opened)


def test_an_open_cache_is_opened_again_when_a_part_changes(cache, tmp_path):
    folder = cut_cache(cache.path, tmp_path / "D", STARTS)
    first = open_cache(folder)
    assert open_cache(f"{folder}/") is first
    now = time.time_ns()
    os.utime(folder / "part-00003.h5", ns=(now, now))
    second = open_cache(folder)
    assert second is not first
    write_index(folder, read_index(folder))
    assert open_cache(folder) is not second
    (folder / "part-00003.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"part-00003\.h5 is missing"):
        open_cache(folder)


@pytest.fixture
def labelled(tmp_path, digits):
    """A cache with the table that came with its images, whole and in parts."""
    paths = [f"{k:04}" for k in range(60)]
    cache = write_cache(tmp_path / "c.h5", {"fine": digits[0][:60]}, paths)
    lines = [f"{path},{k % 3},{'test' if k % 5 == 0 else 'train'}" for k, path in enumerate(paths)]
    (tmp_path / "c.h5.labels.csv").write_text("\n".join(["path,label,split", *lines, ""]))
    return cache.path, cut_cache(cache.path, tmp_path / "D", [0, 20, 40])


def test_labels_beside_the_parts_are_those_beside_the_file(labelled):
    _, folder = labelled
    single, parts = (TaskSpec().read_table(FeatureCache(each)) for each in labelled)
    for name in ("name", "paths", "labels", "splits", "groups"):
        assert getattr(parts, name) == getattr(single, name)
    assert parts.notice == f"labels came with the images: {folder}/*.h5.labels.csv"
    records = [fit(each, layer="fine").record for each in labelled]
    assert records[0].accuracy == records[1].accuracy


def test_parts_without_labels_are_said(labelled):
    _, folder = labelled
    (folder / "part-00001.h5.labels.csv").unlink()
    table = TaskSpec().read_table(FeatureCache(folder))
    assert len(table) == 40
    assert "1 of 3 parts have no such table ('part-00001.h5.labels.csv')" in table.notice
    notices = TaskSpec().make_task(FeatureCache(folder)).notices
    assert any("not used: 20 images of the cache without a label" in text for text in notices)
    assert any("(first: '0020')" in text for text in notices)


def test_tables_of_parts_may_have_columns_of_their_own(labelled):
    _, folder = labelled
    beside = folder / "part-00001.h5.labels.csv"
    lines = [line.split(",") for line in beside.read_text().splitlines()]
    beside.write_text(
        "".join(f"{path},x,{split},{label}\n" for path, label, split in lines).replace(
            "path,x", "path,colour"
        )
    )
    table = TaskSpec().read_table(FeatureCache(folder))
    assert (len(table), set(table.labels), set(table.splits)) == (60, set("012"), {"train", "test"})
    colours = TaskSpec(column="colour").read_table(FeatureCache(folder))
    assert colours.paths == [f"{k:04}" for k in range(20, 40)]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("0000,1,train", r"00001\.h5\.labels\.csv: path '0000' is there already, in .*00000\.h5"),
        ("0099,1", r"00001\.h5\.labels\.csv, line 22: 2 fields where the header has 3"),
    ],
)
def test_errors_name_the_table_of_the_part(labelled, line, match):
    _, folder = labelled
    with (folder / "part-00001.h5.labels.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(LabelError, match=match):
        TaskSpec().read_table(FeatureCache(folder))

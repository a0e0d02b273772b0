"""Labels that came with the images lie beside the cache; folders of containers are no classes."""

import json

import numpy as np
import pytest

from classify import compare, fit
from classify.data.sets.cache_set import CacheSet
from classify.data.sets.shared_images import keep_shared_images
from classify.data.targets.spec import TaskSpec
from classify.errors import LabelError
from classify.labels.source_labels import resolve_labels, resolve_listing_labels
from classify.labels.table import labels_from_folders, read_labels
from featurize.sources.listing import Container, ImageListing, ImagePlaces

from ..conftest import write_cache

SHARDS = ["train-0.tar", "train-1.tar"]


@pytest.fixture
def make_cache(tmp_path, digits):
    """A cache of some paths, and beside it the table that came with its images."""

    def make(paths, table=None, name="c.h5"):
        cache = write_cache(tmp_path / name, {"fine": digits[0][: len(paths)]}, list(paths))
        if table is not None:
            (tmp_path / f"{name}.labels.csv").write_text(table)
        return cache

    return make


def write_columns(paths, header, *columns) -> str:
    rows = zip(paths, *columns, strict=True)
    return "".join(f"{','.join(row)}\n" for row in [header.split(","), *rows])


def name_images(n: int, folder: str = "") -> list[str]:
    return [f"{folder}{i:09}" for i in range(n)]


def test_they_are_used_and_said_and_rows_without_one_are_counted(make_cache, tmp_path):
    paths = name_images(12)
    labels = ["01", "1"] * 5 + ["", ""]
    splits = ["train"] * 8 + ["validation", "test", "", ""]
    groups = [f"g{i}" for i in range(12)]
    table = write_columns(paths, "path,group,label,split", groups, labels, splits)
    cache = make_cache(paths, table)
    found = TaskSpec().read_table(cache)
    assert (found.name, found.source) == ("labels", f"{tmp_path / 'c.h5'}.labels.csv")
    assert found.notice == f"labels came with the images: {found.source}"
    assert found.paths == paths[:10]
    assert found.labels == ["01", "1"] * 5
    assert found.splits == ["train"] * 8 + ["val", "test"]
    assert found.groups == groups[:10]
    notices = TaskSpec().make_task(cache).notices
    assert found.notice in notices
    assert any("not used: 2 images of the cache without a label" in text for text in notices)


def test_a_table_that_is_given_wins_and_a_level_asks_for_folders(make_cache, tmp_path):
    paths = name_images(4, "cat/") + name_images(4, "dog/")
    cache = make_cache(paths, write_columns(paths, "path,label", ["owl", "elk"] * 4))
    assert set(resolve_labels(cache, None).labels) == {"owl", "elk"}
    assert set(resolve_labels(cache, None, level=1).labels) == {"cat", "dog"}
    given = tmp_path / "given.csv"
    given.write_text(write_columns(paths, "path,label", ["one", "two"] * 4))
    assert set(resolve_labels(cache, given).labels) == {"one", "two"}


def test_the_column_is_the_one_asked_for_or_the_only_one(make_cache):
    paths = name_images(2, "x/") + name_images(2, "y/")
    cells = ["a", "b"] * 2
    only = make_cache(paths, write_columns(paths, "path,species", cells), "only.h5")
    found = resolve_labels(only, None)
    assert (found.name, found.labels) == ("species", cells)
    assert found.notice.endswith("only.h5.labels.csv, column 'species'")
    two = make_cache(paths, write_columns(paths, "path,species,sex", cells, cells[::-1]), "two.h5")
    assert resolve_labels(two, None, "sex").labels == cells[::-1]
    folders = resolve_labels(two, None)
    assert (folders.name, folders.labels) == ("folders", ["x", "x", "y", "y"])
    assert "has the columns 'species', 'sex': one of them with --column" in folders.notice
    with pytest.raises(LabelError, match=r"no column 'sexx', only .*did you mean 'sex'"):
        resolve_labels(two, None, "sexx")


def test_without_folders_the_columns_are_listed(make_cache):
    paths = name_images(2)
    cache = make_cache(paths, write_columns(paths, "path,species,sex", ["a", "b"], ["m", "f"]))
    with pytest.raises(LabelError, match=r"only 'path', 'species', 'sex'; .*--column"):
        resolve_labels(cache, None)


def test_a_column_that_says_nothing_counts_as_none(make_cache):
    paths = name_images(2, "x/") + name_images(2, "y/")
    cache = make_cache(paths, write_columns(paths, "path,label", [""] * 4))
    found = resolve_labels(cache, None)
    assert (found.name, found.labels) == ("folders", ["x", "x", "y", "y"])
    assert "--column" not in found.notice


def test_images_without_folders_and_labels_are_refused_with_the_remedy(make_cache):
    message = "have no folder names .*'000000000'.* no labels came with them; give a table with"
    with pytest.raises(LabelError, match=message):
        resolve_labels(make_cache(name_images(4)), None)


def test_images_of_shards_lie_in_no_image_folder(make_cache, tmp_path):
    """The remedy is not to sort what lies in shards into folders."""
    cache = make_cache([f"{shard}/{i}.jpg" for shard in SHARDS for i in range(2)])
    cache.root, cache.containers = str(tmp_path), [Container(shard, 9, 1) for shard in SHARDS]
    with pytest.raises(LabelError, match="no labels came with them"):
        resolve_labels(cache, None)


def test_a_container_is_no_folder():
    paths = [f"{shard}/{label}/{i}.jpg" for shard in SHARDS for label in "ab" for i in range(2)]
    found = labels_from_folders(paths, containers=SHARDS)
    assert found.paths == paths
    assert found.labels == ["a", "a", "b", "b"] * 2
    assert found.splits is None
    assert labels_from_folders(paths, 1, SHARDS).labels == found.labels
    nested = [f"deep/{path}" for path in paths]
    assert labels_from_folders(nested, containers=[f"deep/{s}" for s in SHARDS]).paths == nested


def test_its_name_gives_no_split(tmp_path):
    shards = ["train-0.parquet", "test-0.parquet"]
    paths = [f"{shard}/{i:09}" for shard in shards for i in range(2)]
    table = tmp_path / "t.csv"
    table.write_text(write_columns(paths, "path,label", ["a", "b"] * 2))
    assert read_labels(table).splits is not None  # as folders they are one
    assert read_labels(table, containers=shards).splits is None


@pytest.mark.parametrize("columns", [{}, {"label": ["owl", "", "elk", "owl"]}])
def test_images_in_no_cache_bring_theirs_too(columns):
    class Source:
        root = "/data/shards"

    paths = [f"{shard}/{i}" for shard in SHARDS for i in range(2)]
    containers = [Container(shard, 9, 1) for shard in SHARDS]
    places = ImagePlaces(containers, np.array([0, 0, 1, 1]), np.arange(4))
    listing = ImageListing(
        Source(), paths, np.zeros(4), np.zeros(4), places=places, columns=columns
    )
    if not columns:
        with pytest.raises(LabelError, match="no labels came with them"):
            resolve_listing_labels(listing, None)
        return
    found = resolve_listing_labels(listing, None)
    assert found.paths == [paths[0], *paths[2:]]
    assert found.labels == ["owl", "elk", "owl"]
    assert found.notice == "labels came with the images: /data/shards"


@pytest.mark.long
def test_of_several_caches_the_first_brings_them(make_cache, digits, tmp_path):
    paths = name_images(12)
    first = make_cache(paths, write_columns(paths, "path,label", ["a", "b"] * 6), "first.h5")
    write_cache(tmp_path / "second.h5", {"fine": digits[0][:12]}, paths, failed=(3,))
    both = CacheSet([first.path, tmp_path / "second.h5"])
    found = keep_shared_images(both, TaskSpec().read_table(both))
    assert len(found) == 11
    assert "labels came with the images" in found.notice
    assert "1 images are left out" in found.notice
    assert compare(both, heads="ncm").tasks[0].name == "labels"


def test_kept_results_follow_the_labels(make_cache, digits):
    paths = name_images(200)
    labels = [str(digit) for digit in digits[1][:200] % 2]
    cache = make_cache(paths, write_columns(paths, "path,label", labels))
    options = {"heads": "ncm", "layers": "fine"}
    assert compare(cache, **options).n_reused == 0
    first = compare(cache, **options)
    assert first.n_reused == 1
    table = cache.path.with_name("c.h5.labels.csv")
    table.write_text(write_columns(paths, "path,label", labels[::-1]))
    second = compare(cache, **options)
    assert second.n_reused == 0
    assert second.best.accuracy != first.best.accuracy


@pytest.mark.long
def test_the_command_says_so(make_cache, digits, run_cli, tmp_path):
    paths = name_images(200)
    labels = [str(digit) for digit in digits[1][:200] % 2]
    cache = make_cache(paths, write_columns(paths, "path,label", labels))
    done = run_cli("fit", cache.path, "-o", tmp_path / "h", "--head", "ncm", "--json")
    assert done.returncode == 0, done.stderr
    assert "labels came with the images: " in done.stderr
    record = json.loads(done.stdout)
    assert (record["task"], record["classes"]) == ("labels", ["0", "1"])
    assert fit(cache, head="ncm").record.accuracy == record["accuracy"]
    table = cache.path.with_name("c.h5.labels.csv")
    assert done.stderr.count(str(table)) == 1


def test_a_download_of_one_split_says_nothing_about_what_to_hold_out(make_cache):
    paths = name_images(12)
    cache = make_cache(paths, write_columns(paths, "path,label,split", "ab" * 6, ["train"] * 12))
    found = TaskSpec().read_table(cache)
    assert found.splits is None
    assert "all are of the split 'train', so what is held out is drawn" in found.notice

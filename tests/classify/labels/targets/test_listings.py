"""Labels of every kind that came with images which are in no cache, or are given for them."""

import numpy as np
import pytest

from classify.errors import LabelError
from classify.labels.targets.kinds import KindOptions
from classify.labels.targets.resolve import resolve_listing_targets
from featurize.sources.listing import ImageListing

PATHS = ["a/1.png", "a/2.png", "b/3.png", "b/4.png"]
COLUMNS = {
    "label": ["red|round", "", "red", "round"],
    "size": ["1.5", "2.5", "?", "4"],
    "wear": ["low", "high", "low", "high"],
    "red": ["1", "0", "?", "0"],
    "round": ["1", "0", "0", "1"],
}


class Source:
    root = "/data/shards"


def make_listing(columns):
    return ImageListing(Source(), PATHS, np.zeros(4), np.zeros(4), columns=columns)


def resolve(column="label", labels=None, columns=COLUMNS, **options):
    chosen = KindOptions.from_options(**options)
    return resolve_listing_targets(make_listing(columns), labels, chosen, column)


def test_labels_that_came_with_the_images_are_of_any_kind():
    found = resolve("size", kind="number")
    assert (found.kind, found.paths) == ("number", [PATHS[0], PATHS[1], PATHS[3]])
    assert found.values[:, 0].tolist() == [1.5, 2.5, 4]
    assert "labels came with the images: /data/shards" in found.notice
    grades = resolve("wear", order="low,high")
    assert (grades.kind, grades.names) == ("grade", ("low", "high"))
    assert grades.values[:, 0].tolist() == [0, 1, 0, 1]
    several = resolve(columns=COLUMNS, kind="multi")
    assert several.names == ("red", "round")
    assert several.paths == [PATHS[0], PATHS[2], PATHS[3]]  # an empty cell says nothing here


def test_columns_that_came_with_the_images_are_labels_each():
    chosen = KindOptions.from_options(columns="red,round")
    found = resolve_listing_targets(make_listing(COLUMNS), None, chosen)
    assert found.names == ("red", "round")
    assert found.paths == PATHS
    assert np.array_equal(found.values, [[1, 1], [0, 0], [np.nan, 0], [0, 1]], equal_nan=True)
    with pytest.raises(LabelError, match="no column 'blue'"):
        resolve_listing_targets(
            make_listing(COLUMNS), None, KindOptions.from_options(columns="red,blue")
        )


def test_a_table_is_read_as_over_a_cache(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"{p},{k}.5\n" for k, p in enumerate(PATHS)))
    found = resolve(labels=table, columns={}, kind="number")
    assert found.values[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert resolve(labels=table, columns={}).labels == ["0.5", "1.5", "2.5", "3.5"]  # four classes
    assert resolve(labels=found, columns={}) is found


def test_folders_are_classes():
    with pytest.raises(LabelError, match="names of folders are classes; labels of the kind number"):
        resolve(columns={}, kind="number")
    assert resolve(columns={}).labels == ["a", "a", "b", "b"]

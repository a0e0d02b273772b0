"""A label table over a cache: rows, classes, split, and what is said about them."""

import numpy as np
import pytest

from classify.data.tasks import make_task
from classify.errors import CallError, LabelError, TooFewImagesError, UnknownPathError
from classify.labels.table import LabelTable


def labelled(labels, **more) -> LabelTable:
    labels = list(labels)
    paths = [f"{i:04}.png" for i in range(len(labels))]
    return LabelTable("t", "t.csv", paths, labels, **more)


@pytest.fixture
def small(make_cache, tmp_path):
    def make(n=10, **more):
        return make_cache(tmp_path / "small.h5", {"l": np.eye(n, dtype=np.float32)}, **more)

    return make


def test_rows_classes_and_a_stratified_fifth(cache, digits):
    _, y = digits
    task = make_task(cache, labelled(map(str, y)))
    assert task.classes == [str(d) for d in range(10)]
    assert (task.y == y).all()
    assert (task.rows == np.arange(len(y))).all()
    assert (task.split == "test").sum() == 120
    assert task.notices == ()


def test_the_order_of_the_table_does_not_matter(cache, digits):
    _, y = digits
    table = labelled(map(str, y))
    turned = LabelTable("t", "t.csv", table.paths[::-1], table.labels[::-1])
    one, two = make_task(cache, table), make_task(cache, turned)
    assert (one.rows == two.rows).all()
    assert (one.y == two.y).all()
    assert (one.split == two.split).all()


def test_images_absent_from_the_cache_are_counted_and_the_first_three_named(small):
    table = LabelTable("t", "t.csv", [f"x{i}.png" for i in range(5)] + ["0000.png"], list("ababab"))
    message = r"5 of 6 images are not in .*'x0\.png', 'x1\.png', 'x2\.png', \.\.\.;.* t\.csv"
    with pytest.raises(UnknownPathError, match=message):
        make_task(small(), table)


def test_rows_without_features_are_left_out_and_said_so(small):
    cache = small(10, failed=(0, 3), pending=(9,))
    task = make_task(cache, labelled("aabbaabbab"))
    assert task.rows.tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert any("left out: 3 labelled images" in n and "2 failed, 1 pend" in n for n in task.notices)


def test_images_without_a_label_are_said_to_be_unused(small):
    task = make_task(small(10), labelled("aabbaabb"))
    assert any(
        "not used: 2 images of the cache without a label" in notice for notice in task.notices
    )


def test_the_tables_split_is_used_as_it_is(small):
    splits = ["train"] * 4 + ["val"] * 3 + ["test"] * 3
    task = make_task(small(10), labelled("ababababab", splits=splits), test_size=0.5)
    assert task.split.tolist() == splits


def test_groups_are_numbered_and_held_out_whole(small):
    task = make_task(small(12), labelled("ab" * 6, groups=list("qqwweerrttyy")))
    assert len(np.unique(task.groups)) == 6
    test = task.split == "test"
    assert test.any()
    assert not set(task.groups[test]) & set(task.groups[~test])


def test_one_class_is_refused(small):
    with pytest.raises(
        TooFewImagesError, match=r"every training image of t\.csv has the label 'a'"
    ):
        make_task(small(10), labelled("a" * 10))


def test_no_training_images_are_refused(small):
    with pytest.raises(TooFewImagesError, match="no training images"):
        make_task(small(4), labelled("abab", splits=["test"] * 4))
    with pytest.raises(TooFewImagesError, match="no training images"):
        make_task(small(4, failed=(0, 1), pending=(2, 3)), labelled("abab"))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_test_size_that_is_no_share_is_refused(small, share):
    with pytest.raises(CallError, match="share from 0 to below 1"):
        make_task(small(4), labelled("abab"), test_size=share)


def test_weak_spots_are_named(small):
    splits = ["train"] * 7 + ["test"] * 3
    task = make_task(small(10), labelled("aaabbbcabd", splits=splits))
    assert any("1 class ('c') with training images of one image only" in n for n in task.notices)
    assert any("1 class ('d') with no training image" in n for n in task.notices)
    task = make_task(small(4), labelled("abab"), test_size=0)
    assert task.notices == ("there are no test images, so no test accuracy",)


def test_a_split_that_tears_groups_is_refused_with_how_many_and_the_first(small):
    splits = ["train", "test", "train", "val", "val", "test", "train", "train", "val", "test"]
    groups = ["ann", "ann", "bob", "bob", "cid", "cid", "dan", "dan", "eve", "eve"]
    table = labelled("ababababab", splits=splits, groups=groups)
    message = (
        r"tears 4 of 5 groups apart \(1 in train and test, 1 in train and val, 2 in val and "
        r"test\), the first 'ann' \('0000\.png' in train and '0001\.png' in test\)"
    )
    with pytest.raises(LabelError, match=message):
        make_task(small(10), table)


def test_groups_that_are_whole_where_there_are_features_are_taken(small):
    table = labelled("ab" * 4, splits=["train"] * 6 + ["test"] * 2, groups=list("qqqqqqqw"))
    assert (make_task(small(8, failed=(6,)), table).split == "test").sum() == 1

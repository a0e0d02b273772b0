"""Kinds of labels: recognised by their cells, or as the user says; cells as numbers."""

import numpy as np
import pytest

from classify.data.targets.spec import TaskSpec
from classify.errors import CallError, LabelError, TooFewImagesError
from classify.labels.table import LabelTable
from classify.labels.targets.kinds import KindOptions, parse_number, recognise_kind
from classify.labels.targets.table import TargetTable


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["a", "b", "a"], "class"),
        (["0", "1", "2"] * 20, "class"),  # digits are classes, as ever
        ([str(i) for i in range(500)], "class"),
        ([f"{i}.5" for i in range(20)], "number"),
        ([f"{i}.5" for i in range(9)], "class"),  # too few values to be sure
        ([*(f"{i}.5" for i in range(20)), "x"], "class"),
        ([*(f"{i}.5" for i in range(20)), "NA", ""], "number"),
        (["a|b", "a", ""], "multi"),
        (["a|b", "c|d"], "class"),  # no part is there twice
        (["a|b", "b|a"], "multi"),
    ],
)
def test_the_cells_say_what_kind_it_is(cells, kind):
    assert recognise_kind(cells) == kind


@pytest.mark.parametrize(
    ("cell", "number"),
    [("1", 1), ("-0.5", -0.5), ("1e3", 1000), ("", None), ("1_000", None), ("nan", None),
     ("inf", None), ("١٢", None), ("1,5", None), ("0x10", None)],
)  # fmt: skip
def test_numbers_are_written_plainly(cell, number):
    assert parse_number(cell) == number


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mutli"}, r"class, multi, number, grade, not 'mutli'.*did you mean 'multi'"),
        ({"kind": "number", "columns": "a,b"}, "--columns is for labels of the kind multi"),
        ({"kind": "multi", "order": "a,b"}, "--order is for labels of the kind grade"),
        ({"columns": "a,a"}, "names each once"),
        ({"order": "a"}, "two grades or more"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(CallError, match=message):
        KindOptions.from_options(**options)


def read(cache, path, **options) -> TargetTable:
    table = TaskSpec(path, **options).read_any_table(cache)
    assert isinstance(table, TargetTable)
    return table


def test_several_labels_in_one_cell(cache, make_table, tmp_path):
    rows = [(p, cell) for p, cell in zip(cache.paths, ["b|a", "", "a | b", "?", "b"], strict=False)]
    table = read(cache, make_table(tmp_path / "t.csv", "path,label", rows))
    assert (table.kind, table.names) == ("multi", ("a", "b"))
    assert table.paths == [*cache.paths[:3], cache.paths[4]]  # of one nothing is known
    assert table.values.tolist() == [[1, 1], [0, 0], [1, 1], [0, 1]]
    assert "t.csv is taken for 2 labels (--kind multi); 1 image left out" in table.notice


def test_a_column_for_each_label(cache, make_table, tmp_path):
    rows = [
        (p, *cells)
        for p, cells in zip(
            cache.paths, [("1", "0"), ("", "yes"), ("NA", "1"), ("?", "nan")], strict=False
        )
    ]
    path = make_table(tmp_path / "t.csv", "path,cat,dog", rows)
    table = read(cache, path, columns="dog,cat")
    assert table.names == ("dog", "cat")
    expected = [[0, 1], [1, 0], [1, np.nan]]
    np.testing.assert_array_equal(table.values, expected)
    assert "1 empty cell taken for 0" in table.notice
    assert "1 label not known" in table.notice
    with pytest.raises(LabelError, match=r"no column 'dig', only .*did you mean 'dog'"):
        read(cache, path, columns="dig,cat")
    bad = make_table(tmp_path / "b.csv", "path,cat", [(cache.paths[0], "2")])
    with pytest.raises(LabelError, match=r"line 2: column 'cat' holds '2'"):
        read(cache, bad, columns="cat")


def test_grades_in_the_order_given_or_their_own(cache, make_table, tmp_path):
    cells = ["mild", "severe", "", "mild"]
    rows = list(zip(cache.paths, cells, strict=False))
    path = make_table(tmp_path / "t.csv", "path,label", rows)
    table = read(cache, path, order="mild,moderate,severe")
    assert (table.kind, table.names) == ("grade", ("mild", "moderate", "severe"))
    assert table.values[:, 0].tolist() == [0, 2, 0]
    with pytest.raises(LabelError, match=r"nothing tells the order of the grades 'mild', 'severe'"):
        read(cache, path, kind="grade")
    with pytest.raises(LabelError, match=r"line 2: 'mild' is none of the grades milt, severe.*did"):
        read(cache, path, order="milt,severe")
    numbers = make_table(
        tmp_path / "n.csv", "path,label", list(zip(cache.paths, ["10", "9", "10"], strict=False))
    )
    assert read(cache, numbers, kind="grade").names == ("9", "10")


def test_numbers_and_what_is_none(cache, make_table, tmp_path):
    rows = list(zip(cache.paths, ["1.5", "", "-2"], strict=False))
    table = read(cache, make_table(tmp_path / "t.csv", "path,label", rows), kind="number")
    assert table.values[:, 0].tolist() == [1.5, -2]
    bad = make_table(tmp_path / "b.csv", "path,label", [(cache.paths[0], "1k000")])
    with pytest.raises(LabelError, match=r"line 2: '1k000' is no number"):
        read(cache, bad, kind="number")
    empty = make_table(tmp_path / "e.csv", "path,label", [(cache.paths[0], "?")])
    with pytest.raises(TooFewImagesError, match="no image whose label is known"):
        read(cache, empty, kind="number")


def test_classes_stay_what_they_were(cache, make_table, tmp_path):
    path = make_table(tmp_path / "t.csv", "path,label", [(cache.paths[0], "a|b")])
    table = TaskSpec(path, kind="class").read_any_table(cache)
    assert isinstance(table, LabelTable)
    assert table.labels == ["a|b"]
    empty = make_table(tmp_path / "e.csv", "path,label", [(cache.paths[0], "")])
    with pytest.raises(LabelError, match=r"line 2: the label is empty; .*--kind multi"):
        TaskSpec(empty).read_any_table(cache)


def test_folders_name_classes_only(cache):
    with pytest.raises(LabelError, match="names of folders are classes"):
        TaskSpec(None, kind="number").read_any_table(cache)

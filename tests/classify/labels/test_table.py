"""Label tables: read as written, or refused with the line and the column."""

import os
from pathlib import Path
from threading import Thread

import pytest

from classify.errors import LabelError
from classify.labels.table import labels_from_folders, read_labels
from classify.labels.table_rows import MAX_TABLE_BYTES


def table(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "birds.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_reads_text_as_it_stands(tmp_path):
    found = read_labels(table(tmp_path, "path,label\na/1.png,01\n./b 2.png, 1 \n\n"))
    assert found.name == "birds"
    assert found.paths == ["a/1.png", "b 2.png"]
    assert found.labels == ["01", "1"]
    assert found.splits is None
    assert found.groups is None


def test_columns_in_any_order_quotes_bom_and_windows_lines(tmp_path):
    text = '\ufeffgroup,label,split,extra,path\r\nann,"cat, big",Validation,x,"a,1.png"\r\n'
    text += "bob,dog,train,,b.png\r\neve,dog,TEST,,c.png\r\n"
    found = read_labels(table(tmp_path, text))
    assert found.paths == ["a,1.png", "b.png", "c.png"]
    assert found.labels == ["cat, big", "dog", "dog"]
    assert found.splits == ["val", "train", "test"]
    assert found.groups == ["ann", "bob", "eve"]


def test_another_column_may_hold_the_labels(tmp_path):
    path = table(tmp_path, "path,label,species\na.png,x,owl\n")
    assert read_labels(path, "species").labels == ["owl"]
    assert read_labels(path, "species", name="mine").name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,labl,kind\na,b,c\n",
            r"line 1: no column 'label', only 'path', 'labl', 'kind'.*did you mean 'labl'",
        ),
        ("path,kind,x\na,b,c\n", r"no column 'label', only .*; name the column with --column"),
        (
            "where,label\na,b\n",
            r"no column 'path', only 'where', 'label'; rename that of the images: path or ",
        ),
        ("", r"no column 'path', only nothing"),
        ("path,label,label\n", r"column 'label' is there twice"),
        ("path,label\n", r"has a header but no images"),
        ("path,label\na,x\nb,\n", r"line 3: the label is empty"),
        ("path,label\na,x\nb,  \n", r"line 3: the label is empty"),
        ("path,label\n,x\n", r"line 2: the path is empty"),
        ("path,label,group\na,x,\n", r"line 2: the group is empty"),
        ("path,label\na,x\nb,y\n./a,x\n", r"line 4: path 'a' is there already, on line 2"),
        ("path,label\n/a,x\n", r"line 2: path '/a' is not relative"),
        ("path,label\nb/../../a,x\n", r"line 2: path 'b/../../a' is not relative"),
        ("path,label\na,x,y\n", r"line 2: 3 fields where the header has 2"),
        ("path,label\na\n", r"line 2: 1 fields where the header has 2"),
        ("path,label,split\na,x,dev\n", r"line 2: split 'dev' is none of train, val"),
        ("path,label,split\na,x,\n", r"line 2: the split is empty"),
        ('path,label\na,"x\n', r"line 2: unexpected end of data"),
        ("path,label\na," + "x" * 200_000 + "\n", r"line 2: field larger than field limit"),
        (b"path,label\na,caf\xe9\n", r"not UTF-8.*iconv"),
        (b"path,label\n\x00\xff\xd8", r"not UTF-8"),
    ],
)
def test_refuses_with_file_line_and_column(tmp_path, text, message):
    with pytest.raises(LabelError, match=message) as caught:
        read_labels(table(tmp_path, text))
    assert str(tmp_path / "birds.csv") in str(caught.value)


def test_refuses_a_file_too_large_to_be_a_table_without_reading_it(tmp_path):
    path = table(tmp_path, "path,label\n")
    with open(path, "r+b") as file:
        file.truncate(MAX_TABLE_BYTES + 1)  # sparse
    with pytest.raises(LabelError, match="larger than 1 GB"):
        read_labels(path)


def test_a_missing_table_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"label table .*none\.csv does not exist"):
        read_labels(tmp_path / "none.csv")


def test_folders_are_labels():
    found = labels_from_folders(["cat/1.png", "cat/deep/2.png", "dog/1.png", "train/3.png"])
    assert found.labels == ["cat", "cat", "dog", "train"]
    assert found.splits is None


def test_top_folders_that_are_all_splits_are_the_split():
    paths = ["train/cat/1.png", "train/cat/deep/2.png", "valid/dog/3.png", "test/dog/4.png"]
    found = labels_from_folders(paths)
    assert found.labels == ["cat", "cat", "dog", "dog"]
    assert found.splits == ["train", "train", "val", "test"]


@pytest.mark.parametrize(
    "paths", [["val/a/1", "test/a/1"], ["train/a/1", "other/a/1"], ["train/a/1", "1"]]
)
def test_top_folders_are_no_split_without_train_or_with_another_name(paths, tmp_path):
    rows = "".join(f"{path},{label}\n" for label, path in enumerate(paths))
    assert read_labels(table(tmp_path, "path,label\n" + rows)).splits is None


def test_a_table_without_split_column_is_split_by_its_top_folders(tmp_path):
    found = read_labels(table(tmp_path, "path,label\ntrain/1,x\nvalidation/2,y\n"))
    assert found.splits == ["train", "val"]
    assert found.notice == "split from folder level 1: 1 train, 1 val (validation)"


@pytest.mark.parametrize(
    ("paths", "where"),
    [(["1.png"], "the image folder itself"), (["train/1.png", "test/x/2.png"], "folder 'train'")],
)
def test_images_outside_every_label_folder_need_a_table(paths, where):
    with pytest.raises(LabelError, match=f"lies directly in .*{where}.*--labels"):
        labels_from_folders(paths)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na,caf\u00e9\nb,x\nc,cafe\u0301\n", r"line 2\) and 'cafe\\u0301' \(line 4\)"),
        ("path,label\na,cat\nb,\u200bcat\n", r"'cat' \(line 2\) and '\\u200bcat' \(line 3\)"),
        ("path,label\na,cat\nb,\ufeffcat\n", r"'\\ufeffcat' \(line 3\) look the same and are not"),
        ("path,label\na,big cat\nb,big\u00a0cat\n", r"'big\\xa0cat' \(line 3\) look the same"),
        ("path,label\na,\u200b\n", r"\(line 2\): the label '\\u200b' is invisible"),
        (
            "path,label,group\na,x,ann\nb,y,ann\u200d\n",
            r"the groups 'ann' \(line 2\) and 'ann\\u200d",
        ),
        ("path,label\na\0,cat\n", r"line 2: the path 'a\\x00' holds a NUL character"),
        ("path,label\na,c\0at\n", r"line 2: the label 'c\\x00at' holds a NUL character"),
        ("path,label\na,cat\n".encode("utf-16"), r"iconv -f utf-16 -t utf-8"),
        ("path,label\na,cat\n".encode("utf-16le"), r"iconv -f utf-16le -t utf-8"),
        ("path,label\na,cat\n".encode("utf-16be"), r"iconv -f utf-16be -t utf-8"),
        ("path,label\na,cat\n".encode("utf-32"), r"iconv -f utf-32 -t utf-8"),
        ("path,label\na,caf\u00e9\n".encode("latin1"), r"iconv -f latin1 -t utf-8"),
    ],
    ids=ascii,
)
def test_what_cannot_be_seen_is_said(tmp_path, text, message):
    with pytest.raises(LabelError, match=message):
        read_labels(table(tmp_path, text))


def test_labels_that_look_different_may_be_near_each_other(tmp_path):
    text = "path,label\na,cat\nb,Cat\nc,cats\nd,c a t\ne,\u2764\ufe0f\u200d\U0001f525\n"
    assert len(set(read_labels(table(tmp_path, text)).labels)) == 5


def test_what_is_long_is_not_quoted_whole(tmp_path):
    for text in (
        ",".join(f"column{i}" for i in range(1_000_000)),
        "path,label\n" + "/" + "x" * 100_000 + ",a\n",
        "path,label,split\na,b," + "x" * 100_000 + "\n",
    ):
        with pytest.raises(LabelError) as caught:
            read_labels(table(tmp_path, text))
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (
            "filename,animal\na.jpg,cat\nb.jpg,dog\n",
            "images from column 'filename', labels from col",
        ),
        ("path;animal;split\na.jpg;cat;train\nb.jpg;dog;test\n", "labels from column 'animal'"),
        ("file_name\tlabel\na.jpg\tcat\nb.jpg\tdog\n", "images from column 'file_name'"),
        ("\ufeffpath;label\na.jpg;cat\nb.jpg;dog\n", None),
    ],
)
def test_a_spreadsheets_export_is_understood_and_said(tmp_path, text, taken):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    table = read_labels(tmp_path / "t.csv")
    assert (table.paths, table.labels) == (["a.jpg", "b.jpg"], ["cat", "dog"])
    assert table.notice is None if taken is None else taken in table.notice


def test_a_table_that_comes_through_a_pipe_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    writer = Thread(target=(tmp_path / "t.csv").write_text, args=("path;label\na;x\nb;y\n",))
    writer.start()
    assert read_labels(tmp_path / "t.csv").labels == ["x", "y"]
    writer.join()

"""Label tables: the label of each image, from a CSV file or from folder names."""

import csv
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from classify.errors import CallError, LabelError, TooFewImagesError
from classify.labels.folders import TEST, TRAIN, VAL, infer_folder_labels, infer_folder_split
from featurize.cache.reader import FeatureCache
from featurize.text import did_you_mean, is_invisible

__all__ = [
    "TEST",
    "TRAIN",
    "VAL",
    "LabelTable",
    "labels_from_folders",
    "read_given_labels",
    "read_labels",
]

MAX_TABLE_BYTES = 1 << 30
MAX_SUGGESTED_COLUMNS = 1000  # columns among which a mistyped name is looked for
MAX_LISTED = 8  # columns in a message
MAX_CELL_CHARS = 100  # characters of a cell in a message
PATH_TITLES = ("path", "filename", "file_name", "file", "image", "photo", "picture")
DELIMITERS = ",;\t"  # of a spreadsheet's export; the first one that is in the header
SPLIT_ALIASES = {TRAIN: TRAIN, VAL: VAL, "valid": VAL, "validation": VAL, TEST: TEST}


@dataclass(frozen=True)
class LabelTable:
    """A label for each of some images. Over a cache it becomes a task.

    Attributes
    ----------
    name : str
        Name of the task: the file's name without its suffix, or ``folders``.
    source : str
        Where the table comes from, for messages.
    paths : list of str
        POSIX, relative to the image folder, each once.
    labels : list of str
        Text as written: ``01`` stays ``01``.
    splits : list of str, or None
        ``train``, ``val`` or ``test`` for each path, where the table or the folders name a split.
    groups : list of str, or None
        Groups of images that no split may separate: a patient, a writer, a scene.
    notice : str, or None
        Which folder levels were used, where folder names give the labels or the split.
    """

    name: str
    source: str
    paths: list[str]
    labels: list[str]
    splits: list[str] | None = None
    groups: list[str] | None = None
    notice: str | None = None

    def __len__(self) -> int:
        return len(self.paths)


LabelsLike = LabelTable | str | PathLike[str] | None


def labels_from_folders(paths: Sequence[str], level: int | None = None) -> LabelTable:
    """Label images by their folders, see `classify.labels.folders.infer_folder_labels`.

    Parameters
    ----------
    paths : sequence of str
        As in a feature cache.
    level : int, optional
        Which folder names the label, 1 for the topmost. Inferred if not given.

    Returns
    -------
    LabelTable
        Of the images that have a label.

    Raises
    ------
    CallError
        If `level` is below 1.
    LabelError
        If the level is ambiguous, an image lies in too few folders, or two labels look the same.
    """
    folder_labels = infer_folder_labels(paths, level)
    labelled = [i for i, label in enumerate(folder_labels.labels or ()) if label]
    labels = [folder_labels.labels[i] for i in labelled] if folder_labels.labels else []
    _check_lookalikes("the folder names", "label", dict.fromkeys(labels, 0))
    return LabelTable(
        "folders",
        "the folder names",
        [paths[i] for i in labelled],
        labels,
        None if folder_labels.splits is None else [folder_labels.splits[i] for i in labelled],
        notice=folder_labels.notice,
    )


def read_given_labels(
    labels: LabelTable | str | os.PathLike[str] | None, column: str, level: int | None
) -> LabelTable | None:
    """Return the label table that the user gives; read it where it is a path.

    Parameters
    ----------
    labels : LabelTable or path, optional
    column : str
        The column that holds the labels.
    level : int, optional
        Which folder names the label; not with `labels`.

    Returns
    -------
    LabelTable, or None
        None where none is given, so that folders name the labels.

    Raises
    ------
    CallError
        If both a table and a folder level are given.
    FileNotFoundError
        If there is no such file.
    LabelError
        If it is not a label table.
    """
    if labels is None:
        return None
    if level is not None:
        raise CallError("--labels-level is for labels from folder names; leave it or --labels out")
    return labels if isinstance(labels, LabelTable) else read_labels(labels, column)


def read_labels(
    path: str | os.PathLike[str], column: str = "label", *, name: str | None = None
) -> LabelTable:
    """Read a label table: CSV with a header, ``path,label[,split][,group]`` in any order.

    Semicolons or tabs may separate the columns. The column of the images may also be called
    ``filename``, ``file_name``, ``file``, ``image``, ``photo`` or ``picture``. Where no column is
    called ``label`` and one is left over, it holds the labels. A notice says what was taken.

    Parameters
    ----------
    path : path
        UTF-8, with or without a byte order mark.
    column : str
        The column that holds the labels.
    name : str, optional
        Name of the task; the file's name without its suffix if not given.

    Returns
    -------
    LabelTable
        The labels, and their splits and groups where there are any.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    LabelError
        If it is not such a table. The message names the line and the column.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"label table {path} does not exist")
    if path.is_file() and path.stat().st_size > MAX_TABLE_BYTES:
        raise LabelError(f"{path} is larger than {MAX_TABLE_BYTES >> 30} GB: not a label table")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader([])
        try:
            start = file.readline()
            delimiter = next((mark for mark in DELIMITERS if mark in start), ",")
            # Not `seek`: the table may come through a pipe.
            reader = csv.reader(chain([start], file), strict=True, delimiter=delimiter)
            header = [field.strip() for field in next(reader, [])]
            if "\0" in "".join(header[:MAX_LISTED]):
                raise LabelError(_describe_encoding_error(path, "it holds NUL characters"))
            column_index = _find_columns(path, header, column)
            records = list(_iter_records(path, reader, len(header), column_index))
        except UnicodeDecodeError as error:
            where = f"near line {reader.line_num + 1}: {error.reason}"
            raise LabelError(_describe_encoding_error(path, where)) from error
        except csv.Error as error:
            raise LabelError(f"{path}, line {reader.line_num}: {error}") from error
    if not records:
        raise LabelError(f"{path} has a header but no images below it")
    lines, *rest = map(list, zip(*records, strict=True))
    columns = dict(zip(column_index, rest, strict=True))
    for use in ("label", "group"):
        first: dict[str, int] = {}
        for text, line in zip(columns.get(use, ()), lines, strict=False):
            first.setdefault(text, line)
        _check_lookalikes(str(path), use, first)
    paths, splits, notice = columns["path"], columns.get("split"), None
    if splits is None and (folder_split := infer_folder_split(paths)):
        splits, notice = folder_split.splits, folder_split.notice
    path_title, label_title = (header[column_index[use]] for use in ("path", "label"))
    if (path_title, label_title) != ("path", column):
        taken = f"images from column {path_title!r}, labels from column {label_title!r}"
        notice = taken if notice is None else f"{taken}; {notice}"
    # A file name that the locale cannot decode is read as UTF-8, other bytes as escapes.
    name = name or os.fsencode(path.stem).decode(errors="backslashreplace")
    return LabelTable(
        name, str(path), paths, columns["label"], splits, columns.get("group"), notice
    )


def _describe_encoding_error(path: Path, where: str) -> str:
    """Describe that a table is not UTF-8, with a command that converts it."""
    with path.open("rb") as file:
        start = file.read(4)
    encodings = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
    encodings |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    guess = next((name for mark, name in encodings.items() if start.startswith(mark)), "latin1")
    if guess == "latin1" and b"\0" in start:
        guess = "utf-16le" if start.endswith(b"\0") else "utf-16be"
    return (
        f"{path} is not UTF-8 ({where}); convert it, for example: "
        f"iconv -f {guess} -t utf-8 {path} > utf8.csv"
    )


def _check_lookalikes(source: str, use: str, first: Mapping[str, int]) -> None:
    """Refuse texts that look the same but differ: they would become two classes.

    Parameters
    ----------
    source, use : str
        The table and the column, for the message.
    first : mapping of str to int
        The line of the table that each text is first on; 0 where there are no lines.
    """
    seen: dict[str, str] = {}
    for text, line in first.items():
        appearance = " ".join(_strip_invisible(text).split())
        if not appearance:
            raise LabelError(f"{source}{_format_line(line)}: the {use} {text!a} is invisible")
        other = seen.setdefault(appearance, text)
        if other != text:
            raise LabelError(
                f"{source}: the {use}s {_quote_ascii(other)}{_format_line(first[other])} and "
                f"{_quote_ascii(text)}{_format_line(line)} look the same and are not; "
                "write both in one way"
            )


def _strip_invisible(text: str) -> str:
    """Compose a text, and remove its invisible characters."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in unicodedata.normalize("NFC", text) if not is_invisible(c))


def _quote_ascii(text: str) -> str:
    return ascii(text if len(text) <= MAX_CELL_CHARS else text[:MAX_CELL_CHARS] + "...")


def _format_line(number: int) -> str:
    return f" (line {number:,})" if number else ""


def _find_columns(path: Path, header: list[str], column: str) -> dict[str, int]:
    """Find the index of each column in use: path, label, and split and group if present."""
    column_index = {}
    path_title = next((title for title in PATH_TITLES if title in header), "path")
    rest = [title for title in header if title not in (path_title, "split", "group")]
    if column == "label" and column not in header and len(rest) == 1 and path_title in header:
        column = rest[0]
    titles = {"path": path_title, "label": column, "split": "split", "group": "group"}
    for use, title in titles.items():
        if header.count(title) > 1:
            raise LabelError(f"{path}, line 1: column {title!r} is there twice")
        if title in header:
            column_index[use] = header.index(title)
        elif use in ("path", "label"):
            hint = did_you_mean(title, header[:MAX_SUGGESTED_COLUMNS])
            option = "" if hint else "; name the column with --column, one for all tables"
            if use == "path":
                option = f"; rename that of the images: {' or '.join(PATH_TITLES)}"
            shown = ", ".join(map(_quote_cell, header[:MAX_LISTED])) or "nothing"
            shown += f", ... ({len(header):,} columns)" if len(header) > MAX_LISTED else ""
            raise LabelError(f"{path}, line 1: no column {title!r}, only {shown}{hint}{option}")
    return column_index


def _iter_records(
    file: Path, reader: Iterator[list[str]], width: int, column_index: dict[str, int]
) -> Iterator[list[Any]]:
    first_line: dict[str, int] = {}
    for row in reader:
        if not row:
            continue  # a blank line
        line: int = reader.line_num  # type: ignore[attr-defined]
        where = f"{file}, line {line}"
        if len(row) != width:
            raise LabelError(f"{where}: {len(row)} fields where the header has {width}")
        values = {use: row[index] for use, index in column_index.items()}
        # Spaces around a label are invisible; those of a path may belong to the file's name.
        values |= {use: text.strip() for use, text in values.items() if use != "path"}
        for use, text in values.items():
            if not text.strip():
                raise LabelError(f"{where}: the {use} is empty")
            if "\0" in text:
                raise LabelError(f"{where}: the {use} {_quote_cell(text)} holds a NUL character")
        path = values["path"] = values["path"].removeprefix("./")
        if path.startswith("/") or ".." in path.split("/"):
            raise LabelError(
                f"{where}: path {_quote_cell(path)} is not relative to, and in, the image folder"
            )
        if path in first_line:
            raise LabelError(
                f"{where}: path {_quote_cell(path)} is there already, on line {first_line[path]}; "
                "an image has one label"
            )
        first_line[path] = line
        if "split" in values:
            if values["split"].lower() not in SPLIT_ALIASES:
                raise LabelError(
                    f"{where}: split {_quote_cell(values['split'])} is none of "
                    f"{', '.join(SPLIT_ALIASES)}"
                )
            values["split"] = SPLIT_ALIASES[values["split"].lower()]
        yield [line, *values.values()]


def _quote_cell(text: str) -> str:
    """Quote a cell, shortened to `MAX_CELL_CHARS`."""
    return repr(text if len(text) <= MAX_CELL_CHARS else text[:MAX_CELL_CHARS] + "...")


def resolve_labels(
    cache: FeatureCache, labels: LabelsLike, column: str = "label", level: int | None = None
) -> LabelTable:
    """Resolve a labels option to a label table over a cache.

    Parameters
    ----------
    cache : FeatureCache
    labels : LabelTable or path, optional
        A path is read. The cache's folder names if not given.
    column : str
        The column that holds the labels.
    level : int, optional
        Which folder names the label, 1 for the topmost. Inferred if not given.

    Returns
    -------
    LabelTable

    Raises
    ------
    CallError
        If both a table and a folder level are given, or the level is below 1.
    FileNotFoundError
        If there is no such file.
    LabelError
        If the file is not a label table, or folders name no labels.
    """
    return read_given_labels(labels, column, level) or labels_from_folders(cache.paths, level)


def check_several_classes(table: LabelTable, classes: Collection[str] | None = None) -> None:
    """Refuse labels of one class, from which no head can learn.

    Parameters
    ----------
    table : LabelTable
    classes : collection of str, optional
        Those of its training images; by default of all.

    Raises
    ------
    TooFewImagesError
        If there is only one.
    """
    classes = set(table.labels) if classes is None else classes
    if len(classes) < 2:
        raise TooFewImagesError(
            f"every training image of {table.source} has the label {''.join(classes)!r}; "
            "a head needs at least two classes. Add images of another one, each class in a folder "
            "of its own, or give a table with --labels T.csv (columns path,label)"
        )

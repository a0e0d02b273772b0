"""Label tables: the label of each image, from a CSV file or from folder names."""

import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Protocol

from classify.errors import CallError, LabelError, TooFewImagesError
from classify.labels.containers import strip_containers
from classify.labels.folders import TEST, TRAIN, VAL, infer_folder_labels, infer_folder_split
from classify.labels.table_rows import MAX_CELL_CHARS, TableRows, read_rows
from featurize.text import is_invisible

__all__ = [
    "TEST",
    "TRAIN",
    "VAL",
    "LabelTable",
    "labels_from_folders",
    "read_given_labels",
    "read_labels",
]

FOLDER_SOURCE = "the folder names"


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


class ImageTable(Protocol):
    """What tables of all kinds of labels have: see `LabelTable`."""

    @property
    def name(self) -> str:
        """Name of the task."""

    @property
    def source(self) -> str:
        """Where the table comes from, for messages."""

    @property
    def paths(self) -> list[str]:
        """Paths of the images."""

    @property
    def splits(self) -> list[str] | None:
        """Split of each image, where there is one."""

    @property
    def groups(self) -> list[str] | None:
        """Group of each image, where there is one."""

    @property
    def notice(self) -> str | None:
        """Message for the user."""

    def __len__(self) -> int:
        """Return the number of images."""


LabelsLike = LabelTable | str | PathLike[str] | None


def labels_from_folders(
    paths: Sequence[str], level: int | None = None, containers: Collection[str] = ()
) -> LabelTable:
    """Label images by their folders, see `classify.labels.folders.infer_folder_labels`.

    Parameters
    ----------
    paths : sequence of str
        As in a feature cache.
    level : int, optional
        Which folder names the label, 1 for the topmost. Inferred if not given.
    containers : collection of str
        Files that hold images, such as shards. Where a path begins with the name of one, folders
        are counted after it.

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
    folder_labels = infer_folder_labels(strip_containers(paths, containers), level)
    labelled = [i for i, label in enumerate(folder_labels.labels or ()) if label]
    labels = [folder_labels.labels[i] for i in labelled] if folder_labels.labels else []
    _check_lookalikes(FOLDER_SOURCE, "label", dict.fromkeys(labels, 0))
    return LabelTable(
        "folders",
        FOLDER_SOURCE,
        [paths[i] for i in labelled],
        labels,
        None if folder_labels.splits is None else [folder_labels.splits[i] for i in labelled],
        notice=folder_labels.notice,
    )


def read_given_labels(
    labels: LabelsLike, column: str, level: int | None, containers: Collection[str] = ()
) -> LabelTable | None:
    """Return the label table that the user gives; read it where it is a path.

    Parameters
    ----------
    labels : LabelTable or path, optional
    column : str
        The column that holds the labels.
    level : int, optional
        Which folder names the label; not with `labels`.
    containers : collection of str
        As in `read_labels`.

    Returns
    -------
    LabelTable, or None
        None where none is given.

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
    if isinstance(labels, LabelTable):
        return labels
    return read_labels(labels, column, containers=containers)


def read_labels(
    path: str | os.PathLike[str],
    column: str = "label",
    *,
    name: str | None = None,
    containers: Collection[str] = (),
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
    containers : collection of str
        As in `labels_from_folders`, for a split by folder names.

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
    table, _ = read_cells(Path(path), column, name=name, containers=containers)
    return table


def read_cells(
    path: Path,
    column: str,
    *,
    columns: Sequence[str] = (),
    may_be_empty: bool = False,
    name: str | None = None,
    containers: Collection[str] = (),
) -> tuple[LabelTable, TableRows]:
    """Read a label table, and return its rows too.

    Parameters
    ----------
    path, column, name, containers
        As in `read_labels`.
    columns, may_be_empty
        As in `classify.labels.table_rows.parse_rows`.

    Returns
    -------
    table : LabelTable
        Its labels are the cells of `column`; empty where `columns` are given.
    rows : TableRows

    Raises
    ------
    FileNotFoundError, LabelError
        As `read_labels` does.
    """
    if not path.exists():
        raise FileNotFoundError(f"label table {path} does not exist")
    rows = read_rows(path, column, columns=columns, may_be_empty=may_be_empty)
    if not rows.lines:
        raise LabelError(f"{path} has a header but no images below it")
    # A file name that the locale cannot decode is read as UTF-8, other bytes as escapes.
    name = name or os.fsencode(path.stem).decode(errors="backslashreplace")
    table = make_label_table(name, str(path), rows, containers)
    path_title, label_title = rows.titles["path"], rows.titles.get("label", column)
    if (path_title, label_title) == ("path", column):
        return table, rows
    taken = f"images from column {path_title!r}, labels from column {label_title!r}"
    notice = taken if table.notice is None else f"{taken}; {table.notice}"
    return replace(table, notice=notice), rows


def make_label_table(
    name: str, source: str, rows: TableRows, containers: Collection[str] = ()
) -> LabelTable:
    """Make a label table of the rows of one.

    Parameters
    ----------
    name : str
        Name of the task.
    source : str
        Where the table comes from, for messages.
    rows : TableRows
    containers : collection of str
        As in `read_labels`.

    Returns
    -------
    LabelTable
        Where no column has a split, folder names may give one; then its notice says so.

    Raises
    ------
    LabelError
        If two labels or groups look the same.
    """
    columns = rows.columns
    for use in ("label", "group"):
        first: dict[str, int] = {}
        for text, line in zip(columns.get(use, ()), rows.lines, strict=False):
            if text:  # an empty cell is one that may be empty
                first.setdefault(text, line)
        _check_lookalikes(source, use, first)
    paths, splits, notice = columns["path"], columns.get("split"), None
    if splits is None and (found := infer_folder_split(strip_containers(paths, containers))):
        splits, notice = found.splits, found.notice
    labels = columns.get("label", [""] * len(paths))
    return LabelTable(name, source, paths, labels, splits, columns.get("group"), notice)


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


def refuse_lookalikes(source: str, use: str, texts: Collection[str]) -> None:
    """Refuse texts that look the same but differ.

    Parameters
    ----------
    source : str
        The table, for the message.
    use : str
        What the texts are: ``label``.
    texts : collection of str

    Raises
    ------
    LabelError
        If two of them look the same, or one is invisible.
    """
    _check_lookalikes(source, use, dict.fromkeys(texts, 0))


def _strip_invisible(text: str) -> str:
    """Compose a text, and remove its invisible characters."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in unicodedata.normalize("NFC", text) if not is_invisible(c))


def _quote_ascii(text: str) -> str:
    return ascii(text if len(text) <= MAX_CELL_CHARS else text[:MAX_CELL_CHARS] + "...")


def _format_line(number: int) -> str:
    return f" (line {number:,})" if number else ""


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

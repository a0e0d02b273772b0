"""Label tables: which image has which label, from a CSV file or from folder names."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from classify.errors import LabelError

MAX_TABLE_BYTES = 1 << 30
TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = {TRAIN: TRAIN, VAL: VAL, "valid": VAL, "validation": VAL, TEST: TEST}


@dataclass(frozen=True)
class LabelTable:
    """A label for each of some images. Over a cache it becomes a task.

    Attributes
    ----------
    name : str
        What the task is called: the file's name without its suffix, or ``folders``.
    source : str
        Where it comes from, for messages.
    paths : list of str
        POSIX, relative to the image folder, each once.
    labels : list of str
        Text as written: ``01`` stays ``01``.
    splits : list of str, or None
        ``train``, ``val`` or ``test`` for each path, where the table or the folders say so.
    groups : list of str, or None
        What must not be torn apart by a split: a patient, a writer, a scene.
    """

    name: str
    source: str
    paths: list[str]
    labels: list[str]
    splits: list[str] | None = None
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)


def from_folders(paths: Sequence[str]) -> LabelTable:
    """Label every image by its top folder.

    Where the top folders are a split (`splits_of`), the next folder is the label.

    Parameters
    ----------
    paths : sequence of str
        As in a feature cache.

    Raises
    ------
    LabelError
        If an image lies in no folder that could name its label.
    """
    splits = splits_of(paths)
    depth = 0 if splits is None else 1
    labels = []
    for path in paths:
        folders = path.split("/")[:-1]
        if len(folders) <= depth:
            where = "the image folder itself" if depth == 0 else f"the split folder {folders[0]!r}"
            raise LabelError(
                f"image {path!r} lies directly in {where}, so no folder names its label; "
                "give a table with --labels T.csv (columns path,label)"
            )
        labels.append(folders[depth])
    return LabelTable("folders", "the folder names", list(paths), labels, splits)


def splits_of(paths: Iterable[str]) -> list[str] | None:
    """Split by top folders, if all of them are names of splits and ``train`` is one.

    The names are train, val, valid, validation and test; one folder of another name, or
    an image outside every folder, and the folders are no split.

    Returns
    -------
    list of str, or None
        ``train``, ``val`` or ``test`` for each path.
    """
    tops = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    if TRAIN not in tops or not SPLITS.keys() >= set(tops):
        return None
    return [SPLITS[top] for top in tops]


def read_table(
    path: str | os.PathLike[str], column: str = "label", *, name: str | None = None
) -> LabelTable:
    """Read a label table: CSV with a header, ``path,label[,split][,group]`` in any order.

    Parameters
    ----------
    path : path
        UTF-8, with or without a byte order mark.
    column : str
        The column that holds the labels.
    name : str, optional
        What to call the task; the file's name without its suffix if not given.

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
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [field.strip() for field in next(reader, [])]
            wanted = _wanted(path, header, column)
            records = list(_records(path, reader, len(header), wanted))
        except UnicodeDecodeError as error:
            raise LabelError(
                f"{path} is not UTF-8 (after line {reader.line_num}: {error.reason}); "
                f"convert it, for example: iconv -f latin1 -t utf-8 {path}"
            ) from error
        except csv.Error as error:
            raise LabelError(f"{path}, line {reader.line_num}: {error}") from error
    if not records:
        raise LabelError(f"{path} has a header but no images below it")
    columns = dict(zip(wanted, map(list, zip(*records, strict=True)), strict=True))
    paths, labels = columns["path"], columns["label"]
    splits = columns.get("split") or splits_of(paths)
    return LabelTable(name or path.stem, str(path), paths, labels, splits, columns.get("group"))


def _wanted(path: Path, header: list[str], column: str) -> dict[str, int]:
    """The position of each column we use: path, label, and split and group if present."""
    wanted = {}
    for use, title in (("path", "path"), ("label", column), ("split", "split"), ("group", "group")):
        if header.count(title) > 1:
            raise LabelError(f"{path}, line 1: column {title!r} is there twice")
        if title in header:
            wanted[use] = header.index(title)
        elif use in ("path", "label"):
            near = get_close_matches(title, header, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            option = "; name the column with --column" if use == "label" and not near else ""
            there = ", ".join(map(repr, header)) or "nothing"
            raise LabelError(f"{path}, line 1: no column {title!r}, only {there}{hint}{option}")
    return wanted


def _records(
    file: Path, reader: Iterator[list[str]], width: int, wanted: dict[str, int]
) -> Iterator[list[str]]:
    first_line: dict[str, int] = {}
    for row in reader:
        if not row:
            continue  # a blank line
        line: int = reader.line_num  # type: ignore[attr-defined]
        where = f"{file}, line {line}"
        if len(row) != width:
            raise LabelError(f"{where}: {len(row)} fields where the header has {width}")
        values = {use: row[position] for use, position in wanted.items()}
        # Spaces around a label cannot be seen; those of a path may be in the file's name.
        values |= {use: text.strip() for use, text in values.items() if use != "path"}
        for use, text in values.items():
            if not text.strip():
                raise LabelError(f"{where}: the {use} is empty")
        path = values["path"] = values["path"].removeprefix("./")
        if path.startswith("/") or ".." in path.split("/"):
            raise LabelError(f"{where}: path {path!r} is not relative to, and in, the image folder")
        if path in first_line:
            raise LabelError(
                f"{where}: path {path!r} is there already, on line {first_line[path]}; "
                "an image has one label"
            )
        first_line[path] = line
        if "split" in values:
            if values["split"].lower() not in SPLITS:
                raise LabelError(
                    f"{where}: split {values['split']!r} is none of {', '.join(SPLITS)}"
                )
            values["split"] = SPLITS[values["split"].lower()]
        yield list(values.values())

"""The rows of a label table: which columns are used, and what may stand in them."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from classify.errors import LabelError
from classify.labels.folders import TEST, TRAIN, VAL
from featurize.sources.listing import make_key
from featurize.text import did_you_mean

MAX_TABLE_BYTES = 1 << 30
MAX_SUGGESTED_COLUMNS = 1000  # columns among which a mistyped name is looked for
MAX_LISTED = 8  # columns in a message
MAX_CELL_CHARS = 100  # characters of a cell in a message
PATH_TITLES = ("path", "filename", "file_name", "file", "image", "photo", "picture")
DELIMITERS = ",;\t"  # of a spreadsheet's export; the first one that is in the header
LABEL_PREFIX = "label:"
"""How the use of a column begins where several columns hold labels; then its title."""
SPLIT_ALIASES = {TRAIN: TRAIN, VAL: VAL, "valid": VAL, "validation": VAL, TEST: TEST}


class TableRows(NamedTuple):
    """What a label table says, checked.

    Attributes
    ----------
    titles : dict of str to str
        Title of the column of each use: ``path`` and ``label``, and ``split`` and ``group`` where
        there are such columns. Where several columns hold labels, their uses are ``label:TITLE``.
    lines : list of int
        Number of the line of each image.
    columns : dict of str to list of str
        The cells by use.
    """

    titles: dict[str, str]
    lines: list[int]
    columns: dict[str, list[str]]


def read_rows(
    path: Path,
    column: str,
    *,
    columns: Sequence[str] = (),
    is_sparse: bool = False,
    may_be_empty: bool = False,
) -> TableRows:
    """Read the rows of a label table.

    Parameters
    ----------
    path : Path
        UTF-8, with or without a byte order mark.
    column : str
        The column that holds the labels.
    columns, is_sparse, may_be_empty
        As in `parse_rows`.

    Returns
    -------
    TableRows

    Raises
    ------
    LabelError
        If it is not such a table. The message names the line and the column.
    """
    with open_table(path) as (header, numbered):
        return parse_rows(
            str(path),
            header,
            numbered,
            column,
            columns=columns,
            is_sparse=is_sparse,
            may_be_empty=may_be_empty,
        )


def read_header(path: Path) -> list[str]:
    """Read the titles of a label table.

    Parameters
    ----------
    path : Path

    Returns
    -------
    list of str

    Raises
    ------
    LabelError
        If it is not a table in UTF-8.
    """
    with open_table(path) as (header, _):
        return header


@contextmanager
def open_table(path: Path) -> Iterator[tuple[list[str], Iterator[tuple[int, list[str]]]]]:
    """Open a label table.

    Parameters
    ----------
    path : Path

    Yields
    ------
    titles : list of str
    numbered : iterator of (int, list of str)
        The number of a line, and its cells.

    Raises
    ------
    LabelError
        If it is not a table in UTF-8.
    """
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
            yield header, ((reader.line_num, row) for row in reader)
        except UnicodeDecodeError as error:
            where = f"near line {reader.line_num + 1}: {error.reason}"
            raise LabelError(_describe_encoding_error(path, where)) from error
        except csv.Error as error:
            raise LabelError(f"{path}, line {reader.line_num}: {error}") from error


def parse_rows(
    source: str,
    header: Sequence[str],
    numbered: Iterable[tuple[int, Sequence[str]]],
    column: str,
    *,
    columns: Sequence[str] = (),
    is_sparse: bool = False,
    may_be_empty: bool = False,
) -> TableRows:
    """Check the rows of a label table.

    Parameters
    ----------
    source : str
        Where the table comes from, for messages.
    header : sequence of str
        The titles.
    numbered : iterable of (int, sequence of str)
        The number of a line, and its cells.
    column : str
        The column that holds the labels.
    columns : sequence of str
        Columns that each hold one label, instead of `column`.
    is_sparse : bool
        Whether lines without a label are left out, and not refused.
    may_be_empty : bool
        Whether the cells of labels may be empty.

    Returns
    -------
    TableRows

    Raises
    ------
    LabelError
        As `read_rows` does.
    """
    column_index = _find_columns(source, header, column, columns)
    lines, rest = list[int](), [list[str]() for _ in column_index]
    for line, *cells in _iter_records(
        source, numbered, len(header), column_index, is_sparse, may_be_empty
    ):
        lines.append(line)
        for cells_of_use, cell in zip(rest, cells, strict=True):
            cells_of_use.append(cell)
    titles = {use: header[index] for use, index in column_index.items()}
    return TableRows(titles, lines, dict(zip(column_index, rest, strict=True)))


def find_label_title(header: Sequence[str], column: str) -> str | None:
    """Find the column that holds the labels.

    Parameters
    ----------
    header : sequence of str
        The titles.
    column : str
        The title asked for.

    Returns
    -------
    str or None
        `column`; where that is ``label`` and missing, the one that is left over. None if there is
        no such column.
    """
    if column in header:
        return column
    path_title = _find_path_title(header)
    rest = [title for title in header if title not in (path_title, "split", "group")]
    return rest[0] if column == "label" and len(rest) == 1 and path_title in header else None


def _find_path_title(header: Sequence[str]) -> str:
    return next((title for title in PATH_TITLES if title in header), "path")


def _find_columns(
    source: str, header: Sequence[str], column: str, columns: Sequence[str]
) -> dict[str, int]:
    """Find the index of each column in use: path, label, and split and group if present."""
    column_index = {}
    titles = {"path": _find_path_title(header)}
    if columns:
        titles |= {f"{LABEL_PREFIX}{title}": title for title in columns}
    else:
        titles["label"] = find_label_title(header, column) or column
    titles |= {"split": "split", "group": "group"}
    for use, title in titles.items():
        if header.count(title) > 1:
            raise LabelError(f"{source}, line 1: column {title!r} is there twice")
        if title in header:
            column_index[use] = header.index(title)
        elif use not in ("split", "group"):
            hint = did_you_mean(title, header[:MAX_SUGGESTED_COLUMNS])
            option = (
                "" if hint or columns else "; name the column with --column, one for all tables"
            )
            if use == "path":
                option = f"; rename that of the images: {' or '.join(PATH_TITLES)}"
            shown = ", ".join(map(_quote_cell, header[:MAX_LISTED])) or "nothing"
            shown += f", ... ({len(header):,} columns)" if len(header) > MAX_LISTED else ""
            raise LabelError(f"{source}, line 1: no column {title!r}, only {shown}{hint}{option}")
    return column_index


def _iter_records(
    source: str,
    numbered: Iterable[tuple[int, Sequence[str]]],
    width: int,
    column_index: dict[str, int],
    is_sparse: bool,
    may_be_empty: bool,
) -> Iterator[list[Any]]:
    first_line: dict[str, int] = {}
    label_uses = [use for use in column_index if use not in ("path", "split", "group")]
    for line, row in numbered:
        if not row:
            continue  # a blank line
        where = f"{source}, line {line}"
        if len(row) != width:
            raise LabelError(f"{where}: {len(row)} fields where the header has {width}")
        # Spaces around a label are invisible; those of a path may belong to the file's name.
        values = {
            use: row[index] if use == "path" else row[index].strip()
            for use, index in column_index.items()
        }
        if is_sparse and not any(values[use] for use in label_uses):
            continue
        for use, text in values.items():
            if not text.strip() and not (may_be_empty and use in label_uses):
                raise LabelError(f"{where}: the {use} is empty")
            if "\0" in text:
                raise LabelError(f"{where}: the {use} {_quote_cell(text)} holds a NUL character")
        path = values["path"] = make_key(values["path"].removeprefix("./"))
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

"""Read the rows of a list of images: CSV, JSON lines or Parquet, each cell as text."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from featurize.errors import CallError, ImageUnreadableError
from featurize.sources.containers.tables import schema as table_schema
from featurize.sources.containers.tables.parquet_file import ParquetFile
from featurize.sources.containers.tables.schema import (
    FIRST_COLUMNS,
    MAX_TEXT_CHARS,
    TOO_LONG,
    TOO_MANY,
    is_encodable,
)
from featurize.sources.containers.tables.table_file import TABLE_ERRORS
from featurize.sources.folder import IMAGE_SUFFIXES
from featurize.sources.stores.addresses import is_address
from featurize.sources.stores.store import Store, StoredFile
from featurize.text import did_you_mean, to_printable

MAX_LIST_BYTES = 1 << 30
MAX_ROWS = 10_000_000
MAX_LINE_CHARS = 1 << 20
MAX_OTHER_COLUMNS = 64  # that are kept while reading, beside those with a use
MAX_INTERNED = 100_000  # equal texts are one object
MAX_LISTED = 8  # columns in a message
N_LOOKED_AT = 20  # cells that tell whether a column holds paths

# Those of label tables mean the same here: `classify.labels.table_rows.PATH_TITLES`.
PATH_TITLES = (
    *("path", "url", "filename", "file_name", "file", "image", "image_path", "image_url"),
    *("photo", "picture"),
)
ID_TITLE = "id"
VERSION_TITLES = ("etag", "sha256")
DELIMITERS = ",;\t"  # of a spreadsheet's export; the first one that is in the header

NESTED = "lists and objects say nothing of an image"


@dataclass
class ManifestRows:
    """The rows of a list, column by column.

    Attributes
    ----------
    where : str
        The list, for messages.
    columns : dict of str to list of str
        Cells as text, empty where there is nothing.
    n_rows : int
    left_out : dict of str to str
        Why a column is not among them.
    """

    where: str
    columns: dict[str, list[str]] = field(default_factory=dict)
    n_rows: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    def choose_image_column(self, column: str | None) -> str:
        """Choose the column of paths or URLs.

        Parameters
        ----------
        column : str, optional
            Its name.

        Returns
        -------
        str

        Raises
        ------
        CallError
            If there is none.
        """
        names = [*self.columns, *self.left_out]
        shown = ", ".join(repr(to_printable(name, 100)) for name in names[:MAX_LISTED]) or "none"
        shown += f", ... ({len(names):,} columns)" if len(names) > MAX_LISTED else ""
        if column is not None:
            if column not in self.columns:
                hint = did_you_mean(column, names[:MAX_OTHER_COLUMNS])
                raise CallError(f"{self.where} has no column {column!r}, only {shown}{hint}")
            return column
        found = [title for title in PATH_TITLES if title in self.columns]
        if not found and len(names) == 1:
            cells = next(iter(self.columns.values()), [])
            found = [names[0]] if any(map(looks_like_path, cells[:N_LOOKED_AT])) else []
        if not found:
            raise CallError(
                f"{self.where} has no column `path` or `url`, only {shown}; name the column of the "
                "images' paths or URLs with --column"
            )
        return found[0]


def looks_like_path(text: str) -> bool:
    """Tell whether a cell is the path or URL of an image.

    Parameters
    ----------
    text : str

    Returns
    -------
    bool
    """
    suffix = "." + text.rpartition(".")[2].lower()
    return suffix in IMAGE_SUFFIXES or is_address(text)


def read_manifest(store: Store, file: StoredFile, where: str, column: str | None) -> ManifestRows:
    """Read a list of images.

    Parameters
    ----------
    store : Store
    file : StoredFile
        Its suffix says the format: ``.jsonl``, ``.ndjson`` and ``.parquet``; others are CSV.
    where : str
        The list, for messages.
    column : str, optional
        The column of paths or URLs, which may be long.

    Returns
    -------
    ManifestRows

    Raises
    ------
    CallError
        If it cannot be read, or is no such list. The message names the line.
    """
    if file.size > MAX_LIST_BYTES:
        raise CallError(f"{where} is larger than {MAX_LIST_BYTES >> 30} GB: not a list of images")
    builder = _RowsBuilder(where, column)
    suffix = file.name.lower().rpartition(".")[2]
    try:
        if suffix in ("parquet", "pq"):
            _read_parquet(builder, store, file.name)
        else:
            with store.open_file(file.name) as raw:
                lines = _LineReader(io.TextIOWrapper(raw, "utf-8-sig", newline=""), where)
                try:
                    read = _read_json_lines if suffix in ("jsonl", "ndjson") else _read_csv
                    read(builder, lines)
                except UnicodeDecodeError as error:
                    problem = f"near line {lines.number + 1}: {error.reason}"
                    raw.seek(0)
                    raise _make_encoding_error(where, raw.read(4), problem) from error
    except ImageUnreadableError as error:
        raise CallError(str(error)) from error
    except OSError as error:
        raise CallError(f"{where} cannot be read: {error}") from error
    return builder.finish()


class _RowsBuilder:
    """Collects cells; columns of long text are dropped as soon as that is known."""

    def __init__(self, where: str, column: str | None) -> None:
        self.where, self._rows = where, ManifestRows(where)
        self._paths = {*PATH_TITLES, ID_TITLE, *VERSION_TITLES, column}
        self._n_others = 0
        self._interned: dict[str, str] = {}

    def admit(self, name: str) -> bool:
        """Tell whether a column's cells are kept."""
        rows = self._rows
        if name in rows.columns:
            return True
        if name in rows.left_out:
            return False
        is_used = name in self._paths or name in FIRST_COLUMNS
        if not is_used and self._n_others >= MAX_OTHER_COLUMNS:
            # Lists of strangers may have a million; the first ones are named.
            if len(rows.left_out) < MAX_OTHER_COLUMNS:
                rows.left_out[name] = TOO_MANY
            return False
        self._n_others += not is_used
        rows.columns[name] = []
        return True

    def add_cell(self, name: str, text: str) -> None:
        """Add a cell of the row that is begun; `name` is admitted."""
        column = self._rows.columns.get(name)
        if column is None:
            return
        if name not in self._paths:
            text = text.strip()
            if len(text) > MAX_TEXT_CHARS:
                self.leave_out(name, TOO_LONG)
                return
            if not is_encodable(text):
                text = ""
        if len(self._interned) > MAX_INTERNED:
            self._interned.clear()
        column += [""] * (self._rows.n_rows - len(column))
        column.append(self._interned.setdefault(text, text))

    def add_array(self, name: str, array: Any) -> None:
        """Add a column's cells of several rows at once."""
        column = self._rows.columns.get(name)
        if column is None:
            return
        max_chars = MAX_LINE_CHARS if name in self._paths else MAX_TEXT_CHARS
        try:
            column += table_schema.to_texts(array, max_chars=max_chars)
        except ValueError as error:
            self.leave_out(name, str(error))

    def leave_out(self, name: str, reason: str) -> None:
        """Drop a column."""
        was_kept = self._rows.columns.pop(name, None) is not None
        if was_kept or len(self._rows.left_out) < MAX_OTHER_COLUMNS:
            self._rows.left_out[name] = reason

    def end_rows(self, count: int = 1) -> None:
        """End a row, or several."""
        self._rows.n_rows += count
        if self._rows.n_rows > MAX_ROWS:
            raise CallError(
                f"{self._rows.where} has more than {MAX_ROWS:,} rows; split it into several lists"
            )

    def finish(self) -> ManifestRows:
        """Return what was collected, every column of the same length."""
        rows = self._rows
        if not rows.n_rows:
            raise CallError(f"{rows.where} has no rows: there are no images in it")
        for column in rows.columns.values():
            column += [""] * (rows.n_rows - len(column))
        return rows


class _LineReader:
    """Iterates over lines of bounded length, and counts them."""

    def __init__(self, file: io.TextIOWrapper, where: str) -> None:
        self._file, self.where = file, where
        self.number, self._n_chars = 0, 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE_CHARS):
            self.number += 1
            self._n_chars += len(line)
            if len(line) == MAX_LINE_CHARS:
                raise self.make_error(f"the line has more than {MAX_LINE_CHARS:,} characters")
            if self._n_chars > MAX_LIST_BYTES:
                raise CallError(f"{self.where} is larger than {MAX_LIST_BYTES >> 30} GB")
            yield line

    def make_error(self, problem: object) -> CallError:
        """Make an error that names the line."""
        return CallError(f"{self.where}, line {self.number:,}: {problem}")


def _read_csv(builder: _RowsBuilder, lines: _LineReader) -> None:
    iterator = iter(lines)
    start = next(iterator, "")
    delimiter = next((mark for mark in DELIMITERS if mark in start), ",")

    def iter_all() -> Iterator[str]:
        yield start
        yield from iterator

    reader = csv.reader(iter_all(), strict=True, delimiter=delimiter)
    try:
        header = [title.strip() for title in next(reader, [])]
        _check_header(header, lines)
        admitted = [(i, name) for i, name in enumerate(header) if name and builder.admit(name)]
        for row in reader:
            if not row:
                continue  # a blank line
            if len(row) != len(header):
                raise lines.make_error(f"{len(row)} fields where the header has {len(header)}")
            for i, name in admitted:
                builder.add_cell(name, row[i])
            builder.end_rows()
    except csv.Error as error:
        raise lines.make_error(error) from error


def _check_header(header: list[str], lines: _LineReader) -> None:
    if any("\0" in title for title in header[:MAX_LISTED]):
        start = "".join(header[:MAX_LISTED]).encode()[:4]
        raise _make_encoding_error(lines.where, start, "it holds NUL characters")
    seen: set[str] = set()
    for title in header:
        if title in seen and title:
            raise lines.make_error(f"column {to_printable(title, 100)!r} is there twice")
        seen.add(title)
        if looks_like_path(title):
            raise lines.make_error(
                f"{to_printable(title, 100)!r} is no name of a column; begin the list with a line "
                "that names them, as path,label"
            )


def _read_json_lines(builder: _RowsBuilder, lines: _LineReader) -> None:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise lines.make_error(f"it is no JSON: {to_printable(error, 100)}") from error
        if not isinstance(row, dict):
            raise lines.make_error('a line is a JSON object, as {"path": "a.jpg", "label": "cat"}')
        for name, value in row.items():
            text = _to_text(value)
            if not (name and is_encodable(name)):
                continue
            if text is None:
                builder.leave_out(name, NESTED)
            elif builder.admit(name):
                builder.add_cell(name, text)
        builder.end_rows()


def _to_text(value: Any) -> str | None:
    """Convert a JSON value as tables are; None for lists and objects."""
    if isinstance(value, (dict, list)):
        return None
    if value is None or value != value:  # not a number
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _read_parquet(builder: _RowsBuilder, store: Store, name: str) -> None:
    where = builder.where
    try:
        table = ParquetFile(store, name)
    except (ImageUnreadableError, CallError):
        raise
    except TABLE_ERRORS as error:
        raise CallError(f"{where} cannot be read: {to_printable(error, 150)}") from error
    try:
        names, counts = [], Counter(table.schema.names)
        for column in table.schema:
            problem = table_schema.find_type_problem(column.type)
            if problem or counts[column.name] > 1:
                builder.leave_out(column.name, problem or table_schema.NO_NAME)
            elif column.name and builder.admit(column.name):
                names.append(column.name)
        for batch in table.iter_columns(names):
            for each in names:
                builder.add_array(each, batch.column(batch.schema.get_field_index(each)))
            builder.end_rows(batch.num_rows)
    except CallError:
        raise
    except TABLE_ERRORS as error:
        raise CallError(f"{where} is damaged: {to_printable(error, 150)}") from error
    finally:
        table.close()


def _make_encoding_error(where: str, start: bytes, problem: str) -> CallError:
    """Make an error for a list that is not UTF-8, with a command that converts it."""
    marks = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
    marks |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    guess = next((name for mark, name in marks.items() if start.startswith(mark)), "latin1")
    if guess == "latin1" and b"\0" in start:
        guess = "utf-16be" if start.startswith(b"\0") else "utf-16le"
    return CallError(
        f"{where} is not UTF-8 ({problem}); convert it, for example: "
        f"iconv -f {guess} -t utf-8 {where} > utf8.csv"
    )

"""Labels that came with the images of a cache of parts: a table beside each part, read as one."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from classify.errors import LabelError
from classify.labels.table_rows import TableRows, open_table, parse_rows, read_header
from featurize.text import list_first


def read_joined_header(paths: Sequence[Path]) -> list[str]:
    """Read the titles of several label tables.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    list of str
        Those of all tables, each once where no table has it twice.

    Raises
    ------
    LabelError
        If one is not a table in UTF-8.
    """
    header: list[str] = []
    for path in paths:
        header += [title for title in read_header(path) if title not in header]
    return header


def read_joined_rows(
    paths: Sequence[Path], header: Sequence[str], column: str, columns: Sequence[str] = ()
) -> TableRows:
    """Read the rows of several label tables as those of one; lines without a label are left out.

    Parameters
    ----------
    paths : sequence of Path
        At least one.
    header : sequence of str
        The titles of all tables. A table that lacks one has empty cells there.
    column : str
        The column that holds the labels.
    columns : sequence of str
        Columns that each hold one label, instead of `column`.

    Returns
    -------
    TableRows
        The numbers of lines are 0 if there are several tables.

    Raises
    ------
    LabelError
        If one is not a label table, or an image is in two of them.
    """
    tables = []
    for path in paths:
        with open_table(path) as (titles, numbered):
            lines = numbered if titles == list(header) else _reorder(path, titles, header, numbered)
            tables.append(
                parse_rows(
                    str(path),
                    header,
                    lines,
                    column,
                    columns=columns,
                    is_sparse=True,
                    may_be_empty=bool(columns),
                )
            )
    if len(tables) == 1:
        return tables[0]
    joined: dict[str, list[str]] = {}
    for table in tables:
        for use, cells in table.columns.items():
            joined.setdefault(use, []).extend(cells)
    _check_repeated(paths, tables)
    return TableRows(tables[0].titles, [0] * len(joined.get("path", ())), joined)


def _reorder(
    path: Path,
    titles: Sequence[str],
    header: Sequence[str],
    numbered: Iterable[tuple[int, list[str]]],
) -> Iterator[tuple[int, list[str]]]:
    """Yield lines with their cells in the order of another header."""
    for line, row in numbered:
        if row and len(row) != len(titles):
            raise LabelError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(titles)}"
            )
        cells = dict(zip(titles, row, strict=False))
        yield line, [cells.get(title, "") for title in header] if row else row


def _check_repeated(paths: Sequence[Path], tables: Sequence[TableRows]) -> None:
    """Refuse an image that is in two tables: each part has images of its own."""
    number_of: dict[str, int] = {}
    for number, table in enumerate(tables):
        for key in table.columns.get("path", ()):
            other = number_of.setdefault(key, number)
            if other != number:
                raise LabelError(
                    f"{paths[number]}: path {key!r} is there already, in {paths[other]}; "
                    "an image has one label"
                )


def describe_missing_tables(files: Sequence[Path], missing: Sequence[Path]) -> str:
    """Describe that labels came with the images of some parts only.

    Parameters
    ----------
    files : sequence of Path
        The parts.
    missing : sequence of Path
        The label tables that are not there.

    Returns
    -------
    str
        A sentence; empty if none is missing.
    """
    if not missing:
        return ""
    names = list_first([path.name for path in missing])
    return (
        f"{len(missing):,} of {len(files):,} parts have no such table ({names}), so their images "
        "have no label; `featurize run` writes it if the source has labels for them"
    )

"""Tables of several labels, numbers or grades: their cells as numbers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from classify.errors import CallError, LabelError, TooFewImagesError
from classify.kinds import KIND_NOUNS, MULTI, NUMBER
from classify.labels.table import LabelTable, refuse_lookalikes
from classify.labels.table_rows import LABEL_PREFIX, TableRows
from classify.labels.targets.kinds import (
    LABEL_SEPARATOR,
    MAX_GRADES,
    KindOptions,
    is_unknown,
    parse_number,
    split_labels,
)
from featurize.text import did_you_mean, format_count, list_first

MAX_LABELS = 20_000  # of a table of several labels
MAX_VALUES = 1 << 28  # images x labels, 2 GB
TRUE_CELLS, FALSE_CELLS = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no")


@dataclass(frozen=True, eq=False)
class TargetTable:
    """The labels of some images as numbers.

    Attributes
    ----------
    name, source : str
        As in `classify.labels.table.LabelTable`.
    paths : list of str
        Paths of the n images whose labels are known.
    kind : str
        ``multi``, ``number`` or ``grade``.
    names : tuple of str
        ``multi``: names of the T labels. ``number``: the column's title. ``grade``: the grades,
        from the lowest.
    values : float64 array of shape (n, T)
        ``multi``: 1 where an image has the label, 0 where not, NaN where it is not known.
        ``number``: the numbers; T is 1. ``grade``: positions in `names`; T is 1.
    splits, groups, notice
        As in `classify.labels.table.LabelTable`.
    """

    name: str
    source: str
    paths: list[str]
    kind: str
    names: tuple[str, ...]
    values: np.ndarray
    splits: list[str] | None = None
    groups: list[str] | None = None
    notice: str | None = None

    def __len__(self) -> int:
        return len(self.paths)


AnyTable = TypeVar("AnyTable", LabelTable, TargetTable)


def make_target_table(
    table: LabelTable, kind: str, options: KindOptions, *, lines: Sequence[int] = ()
) -> TargetTable:
    """Turn the cells of one column into numbers.

    Parameters
    ----------
    table : LabelTable
        Its labels are the cells; an empty one is allowed.
    kind : str
        ``multi``: cells hold labels separated by ``|``, an empty one none of them. ``number`` and
        ``grade``: an empty cell is not known.
    options : KindOptions
        The order of grades. Grades without one are numbers, in their order.
    lines : sequence of int
        The line of each image, for messages.

    Returns
    -------
    TargetTable
        Without the images whose label is not known; its notice counts them.

    Raises
    ------
    LabelError
        If a cell is not of this kind.
    TooFewImagesError
        If no label is known.
    """
    cells = table.labels
    known = [i for i, cell in enumerate(cells) if not is_unknown(cell) and (cell or kind == MULTI)]
    where = {i: f"{table.source}, line {lines[i]}" for i in known if lines and lines[i]}
    if kind == MULTI:
        names, values = _encode_several(table.source, [cells[i] for i in known])
    elif kind == NUMBER:
        names = (table.name,)
        values = _parse_numbers(table.source, cells, known, where)
    else:
        names, values = _encode_grades(table.source, cells, known, where, options.order)
    return _make_table(table, kind, names, known, values)


def make_table_of_columns(
    table: LabelTable, rows: TableRows, columns: Sequence[str]
) -> TargetTable:
    """Turn columns of 0 and 1, one for each label, into numbers.

    Parameters
    ----------
    table : LabelTable
        Paths, splits and groups of the same images; its labels do not count.
    rows : TableRows
        The cells, with a use ``label:TITLE`` for each column.
    columns : sequence of str
        Titles of the columns.

    Returns
    -------
    TargetTable
        An empty cell is 0, and the notice counts them; ``?``, ``NA`` and the like are not known.

    Raises
    ------
    LabelError
        If a cell is neither 0 nor 1.
    TooFewImagesError
        If no label is known.
    """
    n, n_empty = len(rows.lines), 0
    _check_size(table.source, n, len(columns))
    values = np.full((n, len(columns)), np.nan)
    for column, title in enumerate(columns):
        for i, cell in enumerate(rows.columns[f"{LABEL_PREFIX}{title}"]):
            text = cell.lower()
            if text in TRUE_CELLS:
                values[i, column] = 1
            elif text in FALSE_CELLS:
                values[i, column] = 0
                n_empty += not text
            elif not is_unknown(cell):
                line = f", line {rows.lines[i]}" if rows.lines[i] else ""
                raise LabelError(
                    f"{table.source}{line}: column {title!r} holds {cell[:100]!r}, which is "
                    "neither 0 nor 1 (nor ? where it is not known)"
                )
    known = np.flatnonzero(~np.isnan(values).all(axis=1))
    made = _make_table(table, MULTI, tuple(columns), known.tolist(), values[known])
    if n_empty:
        made = _add_notice(
            made, f"{format_count(n_empty, 'empty cell')} taken for 0; write ? where it is unknown"
        )
    n_unknown = int(np.isnan(made.values).sum())
    if n_unknown:
        made = _add_notice(
            made, f"{format_count(n_unknown, 'label')} not known, and left out for that label"
        )
    return made


def _make_table(
    table: LabelTable, kind: str, names: tuple[str, ...], known: list[int], values: np.ndarray
) -> TargetTable:
    if not known:
        raise TooFewImagesError(f"{table.source} has no image whose label is known")

    def take(texts: list[str] | None) -> list[str] | None:
        return None if texts is None else [texts[i] for i in known]

    made = TargetTable(
        table.name,
        table.source,
        [table.paths[i] for i in known],
        kind,
        names,
        values,
        take(table.splits),
        take(table.groups),
        table.notice,
    )
    noun = f"{len(names):,} {KIND_NOUNS[kind]}" if kind != NUMBER else "numbers"
    made = _add_notice(made, f"{table.source} is taken for {noun} (--kind {kind})")
    n_unknown = len(table.paths) - len(known)
    if n_unknown:
        what = format_count(n_unknown, "image")
        made = _add_notice(
            made, f"{what} left out, as nothing is known of {'it' if n_unknown == 1 else 'them'}"
        )
    return made


def _add_notice(table: TargetTable, notice: str) -> TargetTable:
    return replace(table, notice=f"{table.notice}; {notice}" if table.notice else notice)


def _encode_several(source: str, cells: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    split = [split_labels(cell) for cell in cells]
    names = sorted({label for labels in split for label in labels})
    if not names:
        raise TooFewImagesError(f"{source} has no label: every cell is empty")
    refuse_lookalikes(source, "label", names)
    _check_size(source, len(cells), len(names))
    values, number = np.zeros((len(cells), len(names))), {name: k for k, name in enumerate(names)}
    for i, labels in enumerate(split):
        values[i, [number[label] for label in labels]] = 1
    return tuple(names), values


def _check_size(source: str, n: int, n_labels: int) -> None:
    if n_labels > MAX_LABELS or n * n_labels > MAX_VALUES:
        raise LabelError(
            f"{source} has {n_labels:,} labels of {n:,} images, more than can be held; are the "
            f"cells texts, and {LABEL_SEPARATOR!r} no separator? Then give --kind class"
        )


def _parse_numbers(
    source: str, cells: Sequence[str], known: Collection[int], where: dict[int, str]
) -> np.ndarray:
    numbers = []
    for i in known:
        number = parse_number(cells[i])
        if number is None:
            raise LabelError(
                f"{where.get(i, source)}: {cells[i][:100]!r} is no number (with a point, and "
                "without separators of thousands)"
            )
        numbers.append(number)
    return np.array(numbers, np.float64).reshape(-1, 1)


def _encode_grades(
    source: str,
    cells: Sequence[str],
    known: Collection[int],
    where: dict[int, str],
    order: Sequence[str],
) -> tuple[tuple[str, ...], np.ndarray]:
    if not order:
        present = {cells[i] for i in known}
        numbers = {cell: parse_number(cell) for cell in present}
        texts = sorted(cell for cell, number in numbers.items() if number is None)
        if texts:
            raise LabelError(
                f"{source}: nothing tells the order of the grades {list_first(texts)}; name them "
                "from the lowest with --order a,b,c, or write numbers"
            )
        order = sorted(present, key=lambda cell: numbers[cell] or 0.0)
        values = [numbers[cell] for cell in order]
        if len(set(values)) < len(values):
            raise LabelError(f"{source}: a grade is written in two ways, among {list_first(order)}")
    number_of = {grade: k for k, grade in enumerate(order)}
    if len(order) > MAX_GRADES:
        raise LabelError(
            f"{source} has {len(order):,} grades, more than {MAX_GRADES}; are these numbers "
            "(--kind number)?"
        )
    for i in known:
        if cells[i] not in number_of:
            raise LabelError(
                f"{where.get(i, source)}: {cells[i][:100]!r} is none of the grades "
                f"{', '.join(order)}{did_you_mean(cells[i], order)}"
            )
    return tuple(order), np.array([[float(number_of[cells[i]])] for i in known])


def make_names_unique(tables: list[AnyTable]) -> list[AnyTable]:
    """Rename tables of the same name by their paths, so that task names are unique.

    Parameters
    ----------
    tables : list of LabelTable, or of TargetTable

    Returns
    -------
    list of LabelTable, or of TargetTable

    Raises
    ------
    CallError
        If the same labels are given twice.
    """
    names = [table.name for table in tables]
    tables = [
        replace(table, name=table.source) if names.count(table.name) > 1 else table
        for table in tables
    ]
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise CallError(f"the same labels are given twice: {', '.join(names)}")
    return tables

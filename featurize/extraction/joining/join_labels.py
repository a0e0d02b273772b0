"""The labels beside the parts become one table beside the joined cache."""

import csv
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from featurize.errors import OutputError
from featurize.extraction.completion.label_cells import PATH_COLUMN, LabelCells
from featurize.extraction.completion.label_table import label_table_path, told_table_path
from featurize.files import atomic_write
from featurize.text import format_count

_ERRORS = (OSError, ValueError, csv.Error)


def join_label_tables(files: Sequence[Path], output: Path, say: Callable[[str], None]) -> None:
    """Write the labels of all parts beside the joined cache.

    A table that is there from an earlier join is replaced. Cells that were corrected in it stay,
    unless the parts say something else of the image now; then the table as it was is kept as
    ``OUTPUT.labels.csv.old``.

    Parameters
    ----------
    files : sequence of Path
        The parts, in the order of their ranges.
    output : Path
        The joined cache.
    say : callable
        Called with a sentence about what was done.

    Raises
    ------
    OutputError
        If a table cannot be written.
    """
    tables = [label_table_path(file) for file in files]
    told_tables = [told_table_path(file) for file in files]
    if not any(path.exists() for path in (*tables, *told_tables)):
        return
    table_path = label_table_path(output)
    try:
        corrections = _Corrections(table_path, told_table_path(output))
    except _ERRORS as error:
        say(f"{table_path} is left as it is; it cannot be read as the table of a run: {error}")
        return
    told_columns = _collect_columns(told_tables, say)
    columns = [*_collect_columns(tables, say), *corrections.added_columns]
    columns = list(dict.fromkeys(columns))
    with ExitStack() as stack:
        told_lines = _open_table(stack, told_table_path(output), told_columns)
        lines = _open_table(stack, table_path, columns)
        for table, told_table in zip(tables, told_tables, strict=True):
            present, told = _read_table(table), _read_table(told_table)
            for key in told.rows:
                told_lines.writerow([key, *(told.find(key, told_columns) or [])])
            for key in present.rows:
                cells = list(present.find(key, columns) or [])
                source_cells = told.find(key, columns) or [""] * len(columns)
                lines.writerow([key, *corrections.apply(key, columns, cells, source_cells)])
        corrections.conclude(say)


def _read_table(path: Path) -> LabelCells:
    try:
        return LabelCells.read(path)
    except _ERRORS:
        return LabelCells()


def _collect_columns(paths: Sequence[Path], say: Callable[[str], None]) -> list[str]:
    columns: dict[str, None] = {}
    for path in paths:
        try:
            columns |= dict.fromkeys(LabelCells.read(path).columns)
        except FileNotFoundError:
            continue
        except _ERRORS as error:
            say(f"{path} is left out; it cannot be read as the table of a run: {error}")
    return list(columns)


def _open_table(stack: ExitStack, path: Path, columns: Sequence[str]) -> Any:
    """Open a table that is written whole or not at all; return its writer of rows."""
    file: IO[str] = stack.enter_context(
        atomic_write(path, "w", encoding="utf-8", errors="replace", newline="")
    )
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([PATH_COLUMN, *columns])
    return writer


class _Corrections:
    """Cells of an earlier joined table that differ from what the source said.

    Parameters
    ----------
    table, told_table : Path
        As the earlier join left them, perhaps corrected since; they need not exist.

    Attributes
    ----------
    added_columns : list of str
        Those that the source did not have.
    """

    def __init__(self, table: Path, told_table: Path) -> None:
        self._path, self._told = table, LabelCells()
        self._present, self._content = LabelCells(), b""
        if table.exists():
            self._present, self._content = LabelCells.read(table), table.read_bytes()
            self._told = _read_table(told_table)
        self.added_columns = [
            name for name in self._present.columns if name not in self._told.columns
        ]
        self._n_kept = self._n_lost = 0

    def apply(
        self, key: str, columns: Sequence[str], cells: list[str], told_cells: list[str]
    ) -> list[str]:
        """Put the corrections of an image into its cells.

        Parameters
        ----------
        key : str
        columns : sequence of str
        cells, told_cells : list of str
            Of its part, in the order of `columns`: as they stand, and as the source told them.

        Returns
        -------
        list of str
        """
        corrected = self._present.find(key, columns)
        self._present.rows.pop(key, None)
        if corrected is None:
            return cells
        before = self._told.find(key, columns) or [""] * len(columns)
        for i, cell in enumerate(corrected):
            if cell in (before[i], cells[i]):
                continue
            if cells[i] == told_cells[i] == before[i]:
                cells[i] = cell
                self._n_kept += 1
            else:
                self._n_lost += 1
        return cells

    def conclude(self, say: Callable[[str], None]) -> None:
        """Say what became of the corrections; keep the earlier table if some are lost.

        Raises
        ------
        OutputError
            If it cannot be kept.
        """
        for key in self._present.rows:  # no part has a line of that image
            told = self._told.find(key, self._present.columns)
            self._n_lost += self._present.rows[key] != told
        if self._n_kept:
            cells = format_count(self._n_kept, "cell")
            say(f"{self._path}: {cells} that were corrected stay as they are")
        if self._n_lost:
            old_path = self._path.with_name(self._path.name + ".old")
            with atomic_write(old_path, error=OutputError) as file:
                file.write(self._content)
            cells = format_count(self._n_lost, "cell")
            say(
                f"{self._path}: the parts say something else now of {cells} that were corrected; "
                f"{old_path} is the table as it was"
            )

"""Tables of text by key, as CSV files that a run writes and people may edit."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featurize.files import atomic_write

PATH_COLUMN = "path"


@dataclass
class LabelCells:
    """Cells by key and column; what is not in it is empty.

    Attributes
    ----------
    columns : list of str
        Without that of the keys.
    rows : dict of str to list of str
        The cells of each key, in the order of `columns`.
    """

    columns: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "LabelCells":
        """Read a table.

        Parameters
        ----------
        path : Path

        Returns
        -------
        LabelCells

        Raises
        ------
        OSError
            If the file is missing or cannot be read.
        ValueError, csv.Error
            If it has another form than `write` gives it.
        """
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if header[:1] != [PATH_COLUMN]:
                raise ValueError(f"its first column is not {PATH_COLUMN}")
            cells = cls(header[1:])
            for row in reader:
                if len(row) != len(header):
                    raise ValueError(f"line {reader.line_num} has {len(row)} cells")
                cells.rows[row[0]] = row[1:]
        return cells

    def find(self, key: str, columns: Sequence[str]) -> list[str] | None:
        """Find the cells of a key.

        Parameters
        ----------
        key : str
        columns : sequence of str

        Returns
        -------
        list of str, or None
            In the order of `columns`; None if the key is not there.
        """
        cells = self.rows.get(key)
        if cells is None or columns == self.columns:
            return cells
        by_name = dict(zip(self.columns, cells, strict=True))
        return [by_name.get(name, "") for name in columns]

    def select(self, keys: Iterable[str]) -> "LabelCells":
        """Select the rows of some keys, as far as they are there.

        Parameters
        ----------
        keys : iterable of str

        Returns
        -------
        LabelCells
        """
        return LabelCells(self.columns, {key: self.rows[key] for key in keys if key in self.rows})

    def write(self, path: Path) -> bool:
        """Write the table, if the file holds another.

        Parameters
        ----------
        path : Path

        Returns
        -------
        bool
            Whether it was written.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([PATH_COLUMN, *self.columns])
        writer.writerows([key, *cells] for key, cells in self.rows.items())
        content = text.getvalue().encode("utf-8", "replace")
        if path.exists() and path.read_bytes() == content:
            return False
        with atomic_write(path) as file:
            file.write(content)
        return True

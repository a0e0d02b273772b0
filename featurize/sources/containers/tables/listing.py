"""List the rows of tables: their keys, stamps and labels."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurize.errors import CallError, NoImagesError
from featurize.sources.containers.split_names import SPLIT_WORDS, find_split
from featurize.sources.containers.tables.opening import open_table
from featurize.sources.containers.tables.schema import (
    TOO_MANY,
    TableSchema,
    choose_columns,
    read_table_schema,
    to_texts,
)
from featurize.sources.containers.tables.splits import (
    is_of_split,
    is_split_by_name,
)
from featurize.sources.containers.tables.table_file import TABLE_ERRORS, TableFile
from featurize.sources.listing import (
    UNKNOWN_SIZE,
    Container,
    ImageListing,
    ImagePlaces,
    SkippedNames,
    make_stamp,
)
from featurize.sources.patterns import select_images
from featurize.sources.source import ImageSource, SourceOptions
from featurize.sources.stores.store import Store, StoredFile
from featurize.text import to_printable

ROW_DIGITS = 9  # of a row's number in its key, or more in a file of more rows

UNREADABLE_COLUMNS = "they are damaged, so its images have no labels"
NOT_TEXT = "its values are not text, or cannot be written as such"


@dataclass
class _ListedTable:
    """The rows of one table.

    Attributes
    ----------
    container : Container
    paths : list of str
    numbers, sizes : int64 arrays of shape (n,)
        Of the rows.
    columns : dict of str to list of str
    """

    container: Container
    paths: list[str]
    numbers: np.ndarray
    sizes: np.ndarray
    columns: dict[str, list[str]] = field(default_factory=dict)


class TableLister:
    """Makes the listing of several tables, one after another.

    Parameters
    ----------
    store : Store
    root : str
        For messages.
    is_single : bool
        Whether keys are row numbers alone.
    options : SourceOptions
    """

    def __init__(self, store: Store, root: str, is_single: bool, options: SourceOptions) -> None:
        self._store, self._root, self._is_single, self._options = store, root, is_single, options
        self._tables: list[_ListedTable] = []
        self._skipped = SkippedNames()
        self._unlisted: list[str] = []
        self._reused: list[str] = []
        self._left_out: dict[str, str] = {}
        self._problem = ""

    def add_known(self, file: StoredFile, known: ImageListing, rows: np.ndarray) -> None:
        """Take the rows of a table that is unchanged.

        Parameters
        ----------
        file : StoredFile
        known : ImageListing
        rows : int array
            Of the table, in `known`.
        """
        if known.places is None:
            raise ValueError("a listing of tables has places")
        paths = [known.paths[row] for row in rows.tolist()]
        numbers, sizes = known.places.offsets[rows], known.sizes[rows]
        self._tables.append(_ListedTable(Container(*file), paths, numbers, sizes))
        self._reused.append(file.name)

    def add_table(self, file: StoredFile) -> None:
        """List the rows of a table; of a damaged one those before the damage.

        Parameters
        ----------
        file : StoredFile
        """
        try:
            table = open_table(self._store, file.name)
        except TABLE_ERRORS as error:
            self._note_damage(file, error)
            return
        try:
            schema = read_table_schema(table.schema, self._options.column)
            self._list_rows(file, table, schema)
        except CallError as error:  # none of its columns, or several
            self._problem = self._problem or f"{file.name}: {error}"
            self._skipped.add(file.name, str(error))
        except TABLE_ERRORS as error:  # names that are no text
            self._note_damage(file, error)
        finally:
            table.close()

    def _list_rows(self, file: StoredFile, table: TableFile, schema: TableSchema) -> None:
        for note in schema.notes:
            self._skipped.add(f"metadata of {file.name}", note)
        rows, container = _ColumnTexts(schema), Container(*file)
        try:
            for n_rows, batch, sizes in table.list_columns(schema.columns, schema.image_column):
                rows.add(n_rows, batch, sizes)
        except TABLE_ERRORS as error:
            self._note_damage(file, error)
            container = Container(file.name, file.size, 0)  # it is opened again next time
        if rows.is_incomplete:
            self._skipped.add(f"the columns of {file.name}", UNREADABLE_COLUMNS)
        self._left_out |= schema.left_out | rows.left_out
        digits = max(ROW_DIGITS, len(str(rows.n_rows - 1)))
        prefix = "" if self._is_single else f"{file.name}/"
        self._tables.append(
            _ListedTable(
                container,
                [f"{prefix}{number:0{digits}}" for number in range(rows.n_rows)],
                np.arange(rows.n_rows, dtype=np.int64),
                np.concatenate([np.zeros(0, np.int64), *rows.sizes]),
                rows.columns,
            )
        )

    def _note_damage(self, file: StoredFile, error: Exception) -> None:
        lines = str(error).splitlines() or [type(error).__name__]
        problem = f"it cannot be read as a table: {to_printable(lines[0], 150)}"
        self._problem = self._problem or f"{file.name}: {problem}"
        self._skipped.add(file.name, problem)
        self._unlisted.append(file.name)

    def build(self, source: ImageSource) -> ImageListing:
        """Build the listing of the rows that are selected.

        Parameters
        ----------
        source : ImageSource
            Of the tables.

        Returns
        -------
        ImageListing

        Raises
        ------
        CallError
            If there is no table, or no row is selected.
        """
        tables = sorted(self._tables, key=lambda table: f"{table.container.name}/")
        if not any(table.paths for table in tables):
            problem = self._problem or "its tables have no rows"
            raise NoImagesError(f"no images in {self._root}; {problem}")
        none = np.zeros(0, np.int64)
        counts = [len(table.paths) for table in tables]
        columns = self._join_columns(tables)
        for name, reason in self._left_out.items():
            self._skipped.add(f"column {name}", reason)
        container_of = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
        listing = ImageListing(
            source,
            [path for table in tables for path in table.paths],
            np.concatenate([none, *(table.sizes for table in tables)]),
            np.concatenate([none, *map(_make_stamps, tables)]),
            self._skipped.describe(),
            tuple(self._unlisted),
            places=ImagePlaces(
                [table.container for table in tables],
                container_of,
                np.concatenate([none, *(table.numbers for table in tables)]),
            ),
            columns=columns,
            has_row_numbers=True,
            reused=tuple(self._reused),
        )
        keep = np.ones(len(listing.paths), bool)
        names = [table.container.name for table in tables]
        if self._options.split and not is_split_by_name(names, self._options.split):
            # A known row has been selected before, and its columns are not read again.
            is_known = np.array([name in set(self._reused) for name in names], bool)
            keep = is_known[container_of] | is_of_split(listing, self._options.split)
        return select_images(listing, self._options.include, self._options.exclude, keep)

    def _join_columns(self, tables: list[_ListedTable]) -> dict[str, list[str]]:
        names = dict.fromkeys(name for table in tables for name in table.columns)
        taken, others = choose_columns([name for name in names if name not in self._left_out])
        self._left_out |= dict.fromkeys(others, TOO_MANY)
        columns: dict[str, list[str]] = {name: [] for name in taken}
        for table in tables:
            nothing = [""] * len(table.paths)
            for name, texts in columns.items():
                texts += table.columns.get(name, nothing)
        splits = [find_split(table.container.name) for table in tables]
        if "split" not in columns and set(splits) <= set(SPLIT_WORDS.values()):
            columns["split"] = [
                split for split, table in zip(splits, tables, strict=True) for _ in table.paths
            ]
        return columns


class _ColumnTexts:
    """The columns of one table as text, batch by batch.

    Attributes
    ----------
    n_rows : int
    sizes : list of int64 array
    columns : dict of str to list of str
    left_out : dict of str to str
        Why a column is not among them.
    is_incomplete : bool
        Whether columns could not be read to the end.
    """

    def __init__(self, schema: TableSchema) -> None:
        self._schema = schema
        self.n_rows = 0
        self.sizes: list[np.ndarray] = []
        self.columns: dict[str, list[str]] = {name: [] for name in schema.columns}
        self.left_out: dict[str, str] = {}
        self.is_incomplete = False

    def add(self, n_rows: int, batch: Any, sizes: np.ndarray | None) -> None:
        self.n_rows += n_rows
        self.sizes.append(np.full(n_rows, UNKNOWN_SIZE, np.int64) if sizes is None else sizes)
        self.is_incomplete |= batch is None and bool(self.columns)
        for name in list(self.columns):
            if batch is None:
                self.columns[name] += [""] * n_rows
                continue
            try:
                array = batch.column(batch.schema.get_field_index(name))
                self.columns[name] += to_texts(array, self._schema.class_names.get(name))
            except TABLE_ERRORS as error:
                is_known = type(error) is ValueError
                self.left_out[name] = str(error) if is_known else NOT_TEXT
                del self.columns[name]


def _make_stamps(table: _ListedTable) -> np.ndarray:
    container = table.container
    if not container.stamp:
        return np.zeros(len(table.paths), np.int64)
    numbers = table.numbers.tolist()
    stamps = (make_stamp(container.size, container.stamp, number) for number in numbers)
    return np.fromiter(stamps, np.int64, len(numbers))

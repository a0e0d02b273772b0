"""Read images of tables."""

import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from featurize.errors import CallError, ImageUnreadableError
from featurize.images import reading, reasons
from featurize.images.reading import ImageFile
from featurize.sources.containers.tables.opening import open_table
from featurize.sources.containers.tables.schema import read_table_schema
from featurize.sources.containers.tables.table_file import TABLE_ERRORS, TableFile, TableRow
from featurize.sources.listing import Container, ImageListing, ImageRead, find_key_problem
from featurize.sources.stores.local_store import LocalStore
from featurize.sources.stores.store import Store
from featurize.text import to_printable


class TableReader:
    """Reads images of tables; it keeps the table open that it read last.

    Parameters
    ----------
    store : Store
    listing : ImageListing
    column : str, optional
        The column of images, as given.
    """

    def __init__(self, store: Store, listing: ImageListing, column: str | None) -> None:
        self._store, self._listing, self._column = store, listing, column
        self._table: TableFile | None = None
        self._image_column = ""
        self._open_index = -1

    def read(self, rows: np.ndarray) -> Iterator[ImageRead]:
        """Read images; see `ImageReader.read`."""
        places = self._listing.places
        if places is None:
            raise ValueError("a listing of tables has places")
        rows = rows[np.lexsort((places.offsets[rows], places.container_of[rows]))]
        for run in np.split(rows, np.flatnonzero(np.diff(places.container_of[rows])) + 1):
            if len(run):
                index = int(places.container_of[run[0]])
                yield from self._read_table(index, places.containers[index], run)

    def close(self) -> None:
        """Close the table that is open."""
        table, self._table, self._open_index = self._table, None, -1
        if table is not None:
            table.close()

    def _read_table(
        self, index: int, container: Container, rows: np.ndarray
    ) -> Iterator[ImageRead]:
        offsets = self._offsets_of(rows)
        try:
            table = self._open(index, container)
        except TABLE_ERRORS as error:
            failure = _to_unreadable_error(error, container.name)
            yield from (ImageRead(row, failure) for row in rows.tolist())
            return
        row_of = dict(zip(offsets.tolist(), rows.tolist(), strict=True))
        for numbers in table.split_numbers(offsets):
            failure = ImageUnreadableError(f"{container.name} has no such row", reasons.VANISHED)
            missing = dict.fromkeys(numbers.tolist())
            try:
                for row in table.read_rows(self._image_column, numbers):
                    missing.pop(row.number)
                    number = row_of[row.number]
                    yield ImageRead(number, self._read_row(container, row, number))
            except TABLE_ERRORS as error:
                failure = _to_unreadable_error(error, container.name)
            yield from (ImageRead(row_of[number], failure) for number in missing)

    def _offsets_of(self, rows: np.ndarray) -> np.ndarray:
        places = self._listing.places
        return np.zeros(0, np.int64) if places is None else places.offsets[rows]

    def _open(self, index: int, container: Container) -> TableFile:
        if self._table is not None and index == self._open_index:
            return self._table
        self.close()
        self._check_unchanged(container)
        table = open_table(self._store, container.name)
        try:
            self._image_column = read_table_schema(table.schema, self._column).image_column
        except BaseException:
            table.close()
            raise
        self._table, self._open_index = table, index
        return table

    def _check_unchanged(self, container: Container) -> None:
        if self._store.is_remote:
            return
        try:
            now = self._store.stat_file(container.name)
        except CallError as error:
            raise ImageUnreadableError(f"{container.name} is gone", reasons.VANISHED) from error
        is_other_version = bool(now.stamp and container.stamp) and now.stamp != container.stamp
        if now.size != container.size or is_other_version:
            raise ImageUnreadableError(
                f"{container.name} has changed since it was listed", reasons.READ_ERROR
            )

    def _read_row(
        self, container: Container, row: TableRow, number: int
    ) -> ImageFile | ImageUnreadableError:
        name = f"row {row.number} of {container.name}"
        if row.data is None and row.path:
            return self._read_reference(container, row.path)
        size = 0 if row.data is None else row.data.size
        if not size:
            return ImageUnreadableError(f"{name} is empty", reasons.EMPTY)
        if size > reading.MAX_FILE_BYTES:
            return ImageUnreadableError(f"{name} has {size:,} bytes", reasons.TOO_LARGE)
        return ImageFile(row.data.to_pybytes(), size, int(self._listing.stamps[number]))

    def _read_reference(self, container: Container, path: str) -> ImageFile | ImageUnreadableError:
        """Read a file that a row names; a stranger's row leads nowhere but below its folder."""
        folder = posixpath.dirname(container.name)
        is_inside = not (find_key_problem(path) or find_key_problem(unquote(path)))
        if is_inside and isinstance(self._store, LocalStore):
            root = Path(self._store.root, folder)
            try:
                is_inside = LocalStore(str(root)).holds(root / path)
            except (OSError, RuntimeError):  # a link to itself
                is_inside = False
        if not is_inside:
            return ImageUnreadableError(
                f"{to_printable(path)} is not below the folder of {container.name}",
                reasons.VANISHED,
            )
        ((_, image),) = self._store.read_files([posixpath.join(folder, path)], [0])
        return image


def _to_unreadable_error(error: Exception, name: str) -> ImageUnreadableError:
    """Tell damage of a table from errors of the system and the store."""
    if isinstance(error, ImageUnreadableError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
        return reading.to_unreadable_error(error, name)
    message = to_printable((str(error).splitlines() or [type(error).__name__])[0])
    return ImageUnreadableError(f"{name} is damaged: {message}", reasons.DAMAGED)

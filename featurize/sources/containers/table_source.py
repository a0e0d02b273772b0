"""Images in the rows of Parquet and Arrow tables, as Hugging Face lays them out."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurize.errors import UnknownPathError
from featurize.sources.containers.container_source import ContainerSource
from featurize.sources.containers.tables.listing import ROW_DIGITS, TableLister
from featurize.sources.containers.tables.opening import is_parquet
from featurize.sources.containers.tables.parquet_file import ParquetFile
from featurize.sources.containers.tables.reader import TableReader
from featurize.sources.containers.tables.schema import import_pyarrow
from featurize.sources.containers.tables.splits import select_split
from featurize.sources.containers.tables.table_file import TABLE_ERRORS
from featurize.sources.listing import UNKNOWN_SIZE, Container, ImageListing, ImagePlaces
from featurize.sources.stores.store import StoredFile
from featurize.text import to_printable

MIN_CHUNK_ROWS = 64  # so many small row groups are read as one chunk


@dataclass(frozen=True)
class TableSource(ContainerSource):
    """Images in the rows of tables; see `ContainerSource`.

    The suffix ``.parquet`` tells Parquet from Arrow. An image's key is its file and row number.
    Where a row has the path of a file in place of bytes, that file is read if it lies below the
    table's folder; such rows are looked at by every run.
    """

    @property
    def kind(self) -> str:
        """What it was taken for."""
        form = "Parquet" if is_parquet(self.files[0].name) else "Arrow"
        return f"{form} table" if len(self.files) == 1 else f"{form} tables"

    def list_images(self, known: ImageListing | None = None) -> ImageListing:
        """List the rows; see `ImageSource.list_images`. Columns of images are not read.

        Raises
        ------
        CallError
            If pyarrow is missing, no table has a column of images, several columns may be it, or
            no row is selected.
        """
        import_pyarrow()
        lister = TableLister(self.store, self.root, self.is_single, self.options)
        for file, rows in self.list_unchanged(known):
            if rows is None or known is None:
                lister.add_table(file)
            else:
                lister.add_known(file, known, rows)
        return lister.build(self)

    def select_files(self) -> list[StoredFile]:
        """Select the tables of the wanted split; see `ContainerSource.select_files`."""
        names = select_split(self.names, self.options.split)
        return [file for file in self.files if file.name in names]

    def locate(self, paths: Sequence[str]) -> ImageListing:
        """List images by their keys, without opening a table; rows that are not there fail."""
        files = {self.make_key(file.name, ""): file for file in self.files}
        index_of = {prefix: i for i, prefix in enumerate(files)}
        numbers, container_of = [], []
        for path in paths:
            folder, slash, digits = path.rpartition("/")
            is_number = digits.isascii() and digits.isdecimal() and ROW_DIGITS <= len(digits) <= 18
            if not is_number or folder + slash not in index_of:
                raise UnknownPathError(
                    f"{self.root} has no image {to_printable(path)!r}; its images look like "
                    f"{self.make_key(self.files[0].name, '0' * ROW_DIGITS)!r}"
                )
            numbers.append(int(digits))
            container_of.append(index_of[folder + slash])
        return ImageListing(
            self,
            list(paths),
            np.full(len(paths), UNKNOWN_SIZE),
            np.zeros(len(paths), np.int64),
            places=ImagePlaces(
                [Container(*file) for file in files.values()],
                np.array(container_of, np.int32),
                np.array(numbers, np.int64),
            ),
        )

    def split_rows(self, listing: ImageListing, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into runs of one table; those of one Parquet row group stay together."""
        if listing.places is None or not len(rows):
            return []
        places = listing.places
        rows = rows[np.lexsort((places.offsets[rows], places.container_of[rows]))]
        bounds = np.flatnonzero(np.diff(places.container_of[rows])) + 1
        runs = np.split(rows, bounds)
        with ThreadPoolExecutor(self.n_readers) as pool:  # a request each, behind a network
            names = [places.containers[places.container_of[run[0]]].name for run in runs]
            ends = list(pool.map(self._read_group_ends, names))
        chunks: list[np.ndarray] = []
        for run, group_ends in zip(runs, ends, strict=True):
            if group_ends is None:
                chunks += super().split_rows(listing, run)
            else:
                chunks += _split_by_groups(run, places.offsets[run], group_ends)
        return chunks

    def open_reader(self, listing: ImageListing) -> TableReader:
        """Open a reader; see `ImageSource.open_reader`."""
        return TableReader(self.store, listing, self.options.column)

    def describe(self) -> dict[str, Any]:
        """Describe the source; see `ImageSource.describe`."""
        options = {"column": self.options.column, "split": self.options.split}
        return {"kind": "table"} | {name: text for name, text in options.items() if text}

    def _read_group_ends(self, name: str) -> np.ndarray | None:
        if not is_parquet(name):
            return None
        try:
            table = ParquetFile(self.store, name)
        except TABLE_ERRORS:
            return None  # reading will say why
        table.close()
        return table.group_ends


def _split_by_groups(
    rows: np.ndarray, numbers: np.ndarray, group_ends: np.ndarray
) -> list[np.ndarray]:
    """Split a table's rows between row groups, as soon as there are enough for a chunk."""
    groups = np.searchsorted(group_ends, numbers, side="right")
    bounds = [0]
    for bound in (np.flatnonzero(np.diff(groups)) + 1).tolist():
        if bound - bounds[-1] >= MIN_CHUNK_ROWS:
            bounds.append(bound)
    return np.split(rows, bounds[1:])

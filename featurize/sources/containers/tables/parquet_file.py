"""Parquet files, read by row groups within bounded memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from featurize.images import reading
from featurize.sources.containers.tables.schema import import_pyarrow
from featurize.sources.containers.tables.table_file import (
    TABLE_ERRORS,
    TableRow,
    check_row_count,
    iter_rows,
)
from featurize.sources.stores.local_store import LocalStore, join_path
from featurize.sources.stores.store import Store
from featurize.system import memory

BUFFER_BYTES = 1 << 20
BATCH_BYTES = 4 << 20  # of images decoded at a time, but for a larger page
MAX_BATCH_ROWS = 256
MAX_LABEL_ROWS = 1 << 16  # of columns without images, at a time


class ParquetFile:
    """A Parquet file, read by row groups; of a row group few rows are in memory.

    Parameters
    ----------
    store : Store
    name : str

    Attributes
    ----------
    schema : pyarrow.Schema
    n_bytes : int
    group_ends : int64 array
        For each row group the number of the row behind it.

    Raises
    ------
    CallError
        If pyarrow is missing.
    TABLE_ERRORS
        If it is no such file.
    """

    def __init__(self, store: Store, name: str) -> None:
        pa = import_pyarrow()
        if isinstance(store, LocalStore):
            self._file = pa.OSFile(join_path(store.root, name))
        else:
            self._file = pa.PythonFile(store.open_file(name), mode="r")
        try:
            self.n_bytes = self._file.size()
            # `pre_buffer` would read whole row groups ahead.
            self._parquet = pa.parquet.ParquetFile(
                self._file,
                pre_buffer=False,
                buffer_size=BUFFER_BYTES,
                page_checksum_verification=True,
            )
            self.schema = self._parquet.schema_arrow
            metadata = self._parquet.metadata
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
                raise ValueError("its row groups do not add up")
            check_row_count(metadata.num_rows, self.n_bytes)
        except BaseException:
            self._file.close()
            raise
        self.group_ends = np.cumsum(np.array(counts, np.int64))

    @property
    def n_rows(self) -> int:
        """As the file's end says."""
        return int(self.group_ends[-1]) if len(self.group_ends) else 0

    def list_columns(self, names: list[str], image_column: str) -> Iterator[tuple[int, Any, Any]]:
        """Read columns; see `TableFile.list_columns`."""
        start = 0
        if names:
            try:
                for batch in self.iter_columns(names):
                    yield batch.num_rows, batch, None
                    start += batch.num_rows
            except TABLE_ERRORS:  # the images may be sound
                pass
        if start < self.n_rows:
            yield self.n_rows - start, None, None

    def iter_columns(self, names: list[str]) -> Iterator[Any]:
        """Read columns from the first row on.

        Parameters
        ----------
        names : list of str

        Yields
        ------
        pyarrow.RecordBatch

        Raises
        ------
        TABLE_ERRORS
            If they are damaged.
        """
        yield from self._parquet.iter_batches(MAX_LABEL_ROWS, columns=names, use_threads=False)

    def split_numbers(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Split rows by row groups."""
        groups = np.searchsorted(self.group_ends, numbers, side="right")
        return np.split(numbers, np.flatnonzero(np.diff(groups)) + 1)

    def read_rows(self, column: str, numbers: np.ndarray) -> Iterator[TableRow]:
        """Read the images of rows of one row group; see `TableFile.read_rows`."""
        group = int(np.searchsorted(self.group_ends, numbers[0], side="right"))
        if group == len(self.group_ends):
            return
        metadata = self._parquet.metadata.row_group(group)
        start = int(self.group_ends[group]) - metadata.num_rows
        mean_bytes = max(1, min(metadata.total_byte_size, 4 * self.n_bytes) // metadata.num_rows)
        n_batch = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // mean_bytes))
        n_reserved = min(2 * n_batch * mean_bytes, reading.MAX_FILE_BYTES)
        batches = self._parquet.iter_batches(
            n_batch, row_groups=[group], columns=[column], use_threads=False
        )
        while start <= numbers[-1]:
            with memory.reserve(n_reserved, "images of a table"):
                batch = next(batches, None)
            if batch is None:
                return
            stop = start + batch.num_rows
            wanted = numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, stop)]
            yield from iter_rows(batch, column, wanted, start)
            start = stop

    def close(self) -> None:
        """Close the file."""
        self._parquet.close(force=True)
        self._file.close()

"""Arrow files and streams, mapped where they lie on this machine."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from featurize.sources.containers.tables.schema import import_pyarrow
from featurize.sources.containers.tables.table_file import (
    TableRow,
    check_row_count,
    iter_rows,
    split_column,
)
from featurize.sources.stores.local_store import LocalStore, join_path
from featurize.sources.stores.store import Store

ARROW_MAGIC = b"ARROW1"  # of the file format; streams have none


class ArrowFile:
    """An Arrow file or stream; one of this machine is mapped, and its images are not copied.

    It is read forwards, as a stream has no index; a row before the last one begins it again.

    Parameters
    ----------
    store : Store
    name : str

    Attributes
    ----------
    schema : pyarrow.Schema
    n_bytes : int

    Raises
    ------
    CallError
        If pyarrow is missing.
    TABLE_ERRORS
        If it is no such file.
    """

    def __init__(self, store: Store, name: str) -> None:
        pa = import_pyarrow()
        self._mapped: Any = None
        if isinstance(store, LocalStore):
            file = pa.memory_map(os.fsdecode(join_path(store.root, name)))
            self._mapped = file.read_buffer()
            self._file = pa.BufferReader(self._mapped)
        else:
            self._file = pa.PythonFile(store.open_file(name), mode="r")
        self._batches: Iterator[tuple[int, Any]] | None = None
        self._last: tuple[int, Any] | None = None
        self._column = ""
        try:
            self.n_bytes = self._file.size()
            self._is_stream = self._file.read(len(ARROW_MAGIC)) != ARROW_MAGIC
            self.schema = self._open(None).schema
        except BaseException:
            self._file.close()
            raise

    def list_columns(self, names: list[str], image_column: str) -> Iterator[tuple[int, Any, Any]]:
        """Read columns; see `TableFile.list_columns`."""
        fields = names if names and self._mapped is None else [*names, image_column]
        n_rows = 0
        for start, batch in self._iter_batches(fields):
            n_rows = start + batch.num_rows
            check_row_count(n_rows, self.n_bytes)
            _validate(batch, fields)
            yield batch.num_rows, batch, self._measure(batch, image_column)

    def split_numbers(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Do not split rows."""
        return [numbers]

    def read_rows(self, column: str, numbers: np.ndarray) -> Iterator[TableRow]:
        """Read the images of rows; see `TableFile.read_rows`."""
        if self._last is None or numbers[0] < self._last[0] or column != self._column:
            self._batches, self._last, self._column = self._iter_batches([column]), None, column
        while True:
            if self._last is not None:
                start, batch = self._last
                stop = start + batch.num_rows
                wanted = numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, stop)]
                if len(wanted):
                    _validate(batch, [column])
                    yield from iter_rows(batch, column, wanted, start)
                if stop > numbers[-1]:
                    return
            self._last = None  # a damaged stream begins again
            self._last = next(self._batches, None) if self._batches else None
            if self._last is None:
                return

    def close(self) -> None:
        """Close the file."""
        self._batches = self._last = None
        self._file.close()
        self._mapped = None

    def _open(self, fields: list[str] | None) -> Any:
        pa = import_pyarrow()
        self._file.seek(0)
        options = pa.ipc.IpcReadOptions(use_threads=False)
        # Of a mapped file all fields are views; some of them would be copied.
        if fields is not None and self._mapped is None:
            options.included_fields = sorted(map(self.schema.get_field_index, fields))
        open_format = pa.ipc.open_stream if self._is_stream else pa.ipc.open_file
        return open_format(self._file, options=options)

    def _iter_batches(self, fields: list[str]) -> Iterator[tuple[int, Any]]:
        reader, start = self._open(fields), 0
        batches = (
            iter(reader)
            if self._is_stream
            else map(reader.get_batch, range(reader.num_record_batches))
        )
        for batch in batches:
            yield start, batch
            start += batch.num_rows

    def _measure(self, batch: Any, column: str) -> np.ndarray | None:
        """Return the images' sizes, where they are not compressed within the file."""
        index = batch.schema.get_field_index(column)
        if self._mapped is None or index < 0:
            return None
        data, _ = split_column(batch.column(index))
        pa = import_pyarrow()
        if pa.types.is_null(data.type):
            return None
        content = data.buffers()[-1]
        first = self._mapped.address
        if content is None or not first <= content.address < first + self._mapped.size:
            return None
        lengths = pa.compute.fill_null(pa.compute.binary_length(data), -1)
        return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)


def _validate(batch: Any, fields: list[str]) -> None:
    """Check columns of a batch: a stranger's offsets would lead to any memory."""
    for name in fields:
        batch.column(batch.schema.get_field_index(name)).validate(full=True)

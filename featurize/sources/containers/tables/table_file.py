"""What an open table is, and what its files of both formats share."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from featurize.sources.containers.tables.schema import import_pyarrow

# What pyarrow raises of damaged files; its own errors derive from these, but for two.
TABLE_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
)


class TableRow(NamedTuple):
    """What a table has of one image.

    Attributes
    ----------
    number : int
        Row of the table.
    data : pyarrow.Buffer, optional
        The encoded image.
    path : str, optional
        The name of a file, where the image is not in the table.
    """

    number: int
    data: Any
    path: str | None


class TableFile(Protocol):
    """A table that is open, for one thread."""

    schema: Any
    """`pyarrow.Schema`."""

    n_bytes: int

    def list_columns(self, names: list[str], image_column: str) -> Iterator[tuple[int, Any, Any]]:
        """Read columns from the first row on, without the images.

        Parameters
        ----------
        names : list of str
        image_column : str

        Yields
        ------
        n_rows : int
            Of a further batch.
        batch : pyarrow.RecordBatch, optional
            With those columns; None where they cannot be read.
        sizes : int64 array of shape (n_rows,), optional
            Of the images in bytes; None where that would cost reading them.
        """
        ...

    def split_numbers(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Split rows into those that are damaged together.

        Parameters
        ----------
        numbers : int array
            Ascending row numbers.

        Returns
        -------
        list of int array
        """
        ...

    def read_rows(self, column: str, numbers: np.ndarray) -> Iterator[TableRow]:
        """Read the images of some rows.

        Parameters
        ----------
        column : str
        numbers : int array
            Ascending, one of what `split_numbers` gives. Those the table does not have are left
            out.

        Yields
        ------
        TableRow
            Valid until the next.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def check_row_count(n_rows: int, n_bytes: int) -> None:
    """Check that a file does not claim more rows than it has bytes.

    Parameters
    ----------
    n_rows, n_bytes : int

    Raises
    ------
    ValueError
        If it does: its listing would fill the memory.
    """
    if n_rows > n_bytes:
        raise ValueError(f"it claims {n_rows:,} rows in {n_bytes:,} bytes")


def iter_rows(batch: Any, column: str, numbers: np.ndarray, start: int) -> Iterator[TableRow]:
    """Iterate over the images of a batch.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
    column : str
    numbers : int array
        Rows of the table that lie in the batch.
    start : int
        The batch's first row.

    Yields
    ------
    TableRow
    """
    data, paths = split_column(batch.column(batch.schema.get_field_index(column)))
    for number in numbers.tolist():
        content = data[number - start]
        path = None if paths is None else paths[number - start].as_py()
        yield TableRow(number, content.as_buffer() if content.is_valid else None, path)


def split_column(array: Any) -> tuple[Any, Any]:
    """Return the bytes of a column of images, and their paths or None."""
    pa = import_pyarrow()
    if not pa.types.is_struct(array.type):
        return array, None
    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    parts = array.flatten()  # where the struct is null, so are its parts
    return parts[names.index("bytes")], parts[names.index("path")] if "path" in names else None

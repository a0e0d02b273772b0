"""Rows of a layer that lie in several files, as an array that is read where it is indexed."""

from typing import Any

import numpy as np

from featurize.cache.parts.joined_files import JoinedFiles


class StackedRows:
    """All rows of a layer of a cache of parts, one part below the other.

    It is no array in memory: an index reads the rows asked for.

    Parameters
    ----------
    joined : JoinedFiles
    name : str
        Dataset path, as ``features/layer4``.

    Attributes
    ----------
    shape : (int, int)
    dtype : numpy.dtype
    ndim : int
        2.
    """

    ndim = 2

    def __init__(self, joined: JoinedFiles, name: str) -> None:
        self._joined, self._name = joined, name
        extent = joined.files[0].layout.extents[name]
        self.shape = (joined.n_rows, extent.shape[1])
        self.dtype: np.dtype[Any] = extent.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read some rows.

        Parameters
        ----------
        rows : int, slice, int array or bool array
            Negative ones count from the end.

        Returns
        -------
        array
            A copy, of the shape that an array would give.

        Raises
        ------
        IndexError
            If there is no such row, or columns are asked for.
        """
        if isinstance(rows, tuple):
            raise IndexError("take rows first, then columns: features[rows][:, columns]")
        if isinstance(rows, slice):
            numbers = np.arange(*rows.indices(len(self)))
        else:
            numbers = np.asarray(rows)
            if numbers.dtype == bool and numbers.shape != self.shape[:1]:
                raise IndexError(f"a mask of shape {numbers.shape} for {len(self):,} rows")
            numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers.astype(np.intp)
        values = self._joined.read(self._name, wrap_rows(numbers.reshape(-1), len(self)))
        return values.reshape(*numbers.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the rows lie in several files: an array of them is a copy")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)


def wrap_rows(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Count negative row numbers from the end, and refuse those of no row.

    Parameters
    ----------
    rows : int array of shape (n,)
    n_rows : int

    Returns
    -------
    int array of shape (n,)
        Numbers from 0.

    Raises
    ------
    IndexError
        If there is no such row.
    """
    if not len(rows):
        return rows
    lowest, highest = int(rows.min()), int(rows.max())
    if lowest < -n_rows or highest >= n_rows:
        outside = lowest if lowest < -n_rows else highest
        raise IndexError(f"row {outside:,} is not one of the {n_rows:,}")
    return rows if lowest >= 0 else np.where(rows < 0, rows + n_rows, rows)

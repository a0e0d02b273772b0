"""The files of a cache one below the other, as one table of rows."""

from collections.abc import Iterator, Sequence

import numpy as np

from featurize.cache.format import CHECKSUMS_GROUP, PLACE_DTYPES
from featurize.cache.parts.cache_file import PATH_COLUMN, CacheFile

_CONTAINER_COLUMN = "images/container"


class JoinedFiles:
    """Files of a cache one below the other, sorted by key. A single one is the usual case.

    Parameters
    ----------
    files : sequence of CacheFile
        At least one, in the order of their keys.
    firsts : sequence of str
        Where the range of keys of each file begins.

    Attributes
    ----------
    files : tuple of CacheFile
    starts : intp array of shape (n_files + 1,)
        The first row of each file, and the number of all rows.
    """

    def __init__(self, files: Sequence[CacheFile], firsts: Sequence[str]) -> None:
        self.files = tuple(files)
        self.starts = np.cumsum([0, *(file.n_rows for file in files)]).astype(np.intp)
        self._firsts = np.array([first.encode() for first in firsts], bytes)
        n_containers = [len(file.layout.containers) for file in files]
        self._container_starts = np.cumsum([0, *n_containers])

    @property
    def n_rows(self) -> int:
        """Number of all rows."""
        return int(self.starts[-1])

    def read(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Read rows of an array.

        Parameters
        ----------
        name : str
            Dataset path, as ``images/status``.
        rows : int array of shape (n,), optional
            Row numbers from 0, in any order; default all rows.

        Returns
        -------
        array of shape (n, ...)
            A copy. Of places of images, -1 in files that have none; of checksums, zeros.

        Raises
        ------
        KeyError
            If no file has such an array.
        CacheReplacedError, CacheUnreachableError
            If a file was overwritten, truncated or replaced, or cannot be read now.
        """
        if len(self.files) == 1:
            rows = np.arange(self.n_rows) if rows is None else rows
            return self.files[0].read_rows(name, rows)
        extents = [file.layout.extents[name] for file in self.files if file.has(name)]
        if not extents:
            raise KeyError(name)
        dtype = np.result_type(*{extent.dtype.str for extent in extents})
        n_rows = self.n_rows if rows is None else len(rows)
        values = np.empty((n_rows, *extents[0].shape[1:]), dtype)
        for number, chosen, inside in self._iter_files(rows):
            values[chosen] = self._read_file(number, name, inside)
        return values

    def _read_file(self, number: int, name: str, rows: np.ndarray) -> np.ndarray | int:
        file = self.files[number]
        if not file.has(name) and name.startswith(CHECKSUMS_GROUP):
            return 0
        if not file.has(name) and name.removeprefix("images/") in PLACE_DTYPES:
            return -1
        values = file.read_rows(name, rows)
        return values + self._container_starts[number] if name == _CONTAINER_COLUMN else values

    def _iter_files(
        self, rows: np.ndarray | None
    ) -> Iterator[tuple[int, slice | np.ndarray, np.ndarray]]:
        """Yield each file's number, the positions of its rows, and the rows inside it."""
        if rows is None:
            for number, file in enumerate(self.files):
                chosen = slice(int(self.starts[number]), int(self.starts[number + 1]))
                yield number, chosen, np.arange(file.n_rows)
            return
        numbers = np.searchsorted(self.starts, rows, "right") - 1
        order = np.argsort(numbers, kind="stable")
        for number, part in _iter_groups(numbers[order]):
            positions = order[part]
            yield number, positions, rows[positions] - self.starts[number]

    def find_rows(self, paths: Sequence[str]) -> np.ndarray:
        """Look up the rows of images by binary search.

        Parameters
        ----------
        paths : sequence of str
            n paths, in any order.

        Returns
        -------
        intp array of shape (n,)
            Row numbers, marked or not; -1 where there is no such image.

        Raises
        ------
        CacheFormatError
            If keys that were read are out of order.
        CacheReplacedError, CacheUnreachableError
            As `read`.
        """
        widest = max(file.layout.extents[PATH_COLUMN].row_bytes for file in self.files)
        keys = [_encode_key(path, widest) for path in paths]
        asked = np.array(keys, bytes)  # no key is empty, so an empty one is never found
        rows = np.full(len(keys), -1, np.intp)
        order = np.argsort(asked, kind="stable")
        order = order[np.searchsorted(asked, b"", "right", sorter=order) :]
        in_order = asked[order]
        numbers = np.maximum(np.searchsorted(self._firsts, in_order, "right") - 1, 0)
        for number, part in _iter_groups(numbers):
            found = self.files[number].find_keys(in_order[part])
            found[found >= 0] += self.starts[number]
            rows[order[part]] = found
        return rows


def _iter_groups(numbers: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yield each of some ascending numbers, and where it stands."""
    used, starts = np.unique(numbers, return_index=True)
    stops = np.append(starts, len(numbers))[1:]
    for number, start, stop in zip(used.tolist(), starts.tolist(), stops.tolist(), strict=True):
        yield number, slice(start, stop)


def _encode_key(path: object, widest: int) -> bytes:
    """Encode what may be a key; empty where it cannot be one."""
    # Arrays of bytes do not tell zeros at the end from none.
    if not isinstance(path, str) or len(path) > widest or path.endswith("\0"):
        return b""
    key = path.encode(errors="surrogatepass")
    return key if len(key) <= widest else b""

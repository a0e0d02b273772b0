"""One file of a cache, open for reading: rows by their offsets, keys by binary search."""

import os
import weakref
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from featurize.cache import integrity
from featurize.cache.format import Layout, read_rows
from featurize.cache.layout import identify_file, read_layout, to_unreachable_error
from featurize.errors import CacheFormatError, CacheReplacedError

PATH_COLUMN = "images/path"
SEARCHED_BYTES = 32 << 10  # keys between two that are kept in memory for a search
MAX_SEARCHED_BLOCKS = 256  # read at once: 8 MB


class _Descriptor:
    """An open file. It is closed when nobody holds this any more, so never under a read."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.number)


class OpenFiles:
    """The files of a cache that are open: few, those that were read last.

    Parameters
    ----------
    limit : int
        How many are kept open, besides those that are being read.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._descriptors: OrderedDict[Path, _Descriptor] = OrderedDict()
        self._lock = Lock()

    def find(self, path: Path) -> _Descriptor | None:
        """Find the descriptor of a file.

        Parameters
        ----------
        path : Path

        Returns
        -------
        _Descriptor or None
            None if the file is not open.
        """
        with self._lock:
            if path in self._descriptors:
                self._descriptors.move_to_end(path)
            return self._descriptors.get(path)

    def keep(self, path: Path, descriptor: _Descriptor) -> None:
        """Keep a file open, in place of the one that was not read for the longest time.

        Parameters
        ----------
        path : Path
        descriptor : _Descriptor
        """
        with self._lock:
            self._descriptors[path] = descriptor
            if len(self._descriptors) > self._limit:
                self._descriptors.popitem(last=False)

    def __getstate__(self) -> int:
        return self._limit

    def __setstate__(self, limit: int) -> None:
        self.__init__(limit)  # type: ignore[misc]


class CacheFile:
    """One file of a cache, opened for reading.

    HDF5 reads the layout and is closed again. Rows are read by their offsets.

    Parameters
    ----------
    path : Path
    open_files : OpenFiles, optional
        If given, the descriptor is closed where too many others are open, and the file is opened
        anew when it is read again. If not, it stays open: a grown cache is another file of that
        name, with other rows there.

    Attributes
    ----------
    path : Path
    layout : Layout

    Raises
    ------
    FileNotFoundError, CacheFormatError, CacheUnreachableError
        If there is no such file, it is not a feature cache, or it cannot be read now.
    """

    def __init__(self, path: Path, open_files: OpenFiles | None = None) -> None:
        self.path, self._open_files = path, open_files
        self._identity: tuple[int, int] | None = None  # None in another process: perhaps elsewhere
        self._open()

    def __repr__(self) -> str:
        return f"CacheFile({str(self.path)!r})"

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.layout.n_rows

    def _open(self) -> None:
        while True:
            self.layout: Layout = read_layout(self.path)
            descriptor = _Descriptor(self.path)
            status = os.fstat(descriptor.number)
            if self.layout.identity == identify_file(status):
                break  # else it was replaced between the two calls
        self._identity = self.layout.identity
        self._gaps = integrity.find_gaps(self.layout.extents.values(), status.st_size)
        self._seal = self._compute_seal(descriptor)
        self._maps: dict[str, np.ndarray] = {}
        self._fences: np.ndarray | None = None
        if self._open_files is None:
            self._descriptor = descriptor
        else:
            self._open_files.keep(self.path, descriptor)

    def _hold(self) -> _Descriptor:
        """Return the open file; it stays open for as long as the caller has it."""
        if self._open_files is None:
            return self._descriptor
        descriptor = self._open_files.find(self.path)
        if descriptor is None:
            descriptor = self._reopen()
            self._open_files.keep(self.path, descriptor)
        return descriptor

    def _reopen(self) -> _Descriptor:
        try:
            descriptor = _Descriptor(self.path)
        except FileNotFoundError as error:
            raise CacheReplacedError(
                f"{self.path} is gone since it was opened; open the cache again"
            ) from error
        except OSError as error:
            raise to_unreachable_error(self.path, error) from error
        found = identify_file(os.fstat(descriptor.number))
        if self._identity not in (None, found):
            raise CacheReplacedError(
                f"{self.path} was replaced since it was opened; open the cache again"
            )
        self._check_seal(descriptor)
        return descriptor

    def _compute_seal(self, descriptor: _Descriptor) -> tuple[int, int]:
        """Return the file's size and a checksum of the bytes between its arrays.

        A run that fills the cache changes neither.
        """
        try:
            checksum = integrity.checksum_gaps(descriptor.number, self._gaps)
        except OSError as error:
            raise to_unreachable_error(self.path, error) from error
        return os.fstat(descriptor.number).st_size, checksum

    def _check_seal(self, descriptor: _Descriptor) -> None:
        if self._compute_seal(descriptor) != self._seal:
            raise CacheReplacedError(
                f"{self.path} was overwritten or cut short while it was open; open it again"
            )

    def check_unchanged(self) -> None:
        """Check that the file is still the one that was opened.

        Raises
        ------
        CacheReplacedError
            If it was overwritten, truncated or, where it had to be opened again, replaced.
        """
        self._check_seal(self._hold())

    def has(self, name: str) -> bool:
        """Tell whether the file has an array.

        Parameters
        ----------
        name : str
            Dataset path, as ``images/status``.

        Returns
        -------
        bool
        """
        return name in self.layout.extents

    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read rows of an array as they are in the file now.

        Parameters
        ----------
        name : str
            Dataset path, as ``images/status``.
        rows : int array of shape (n,)
            Row numbers from 0, in any order.

        Returns
        -------
        array of shape (n, ...)
            A copy.

        Raises
        ------
        CacheReplacedError, CacheUnreachableError
            If the file was overwritten or truncated, or cannot be read now.
        """
        descriptor = self._hold()
        try:
            values = read_rows(descriptor.number, self.layout.extents[name], rows)
        except CacheReplacedError as error:
            raise CacheReplacedError(f"{self.path}: {error}; open it again") from error
        except OSError as error:
            raise to_unreachable_error(self.path, error) from error
        self._check_seal(descriptor)  # after reading, so the rows are of the file that was opened
        return values

    def map_rows(self, name: str) -> np.ndarray:
        """Map all rows of an array.

        Parameters
        ----------
        name : str
            Dataset path, as ``features/layer4``.

        Returns
        -------
        read-only memory map of shape (N, ...)

        Raises
        ------
        CacheReplacedError
            If the file was overwritten or truncated.
        """
        descriptor = self._hold()
        self._check_seal(descriptor)
        if name not in self._maps:
            extent = self.layout.extents[name]
            with os.fdopen(os.dup(descriptor.number), "rb") as file:
                self._maps[name] = np.memmap(file, extent.dtype, "r", extent.offset, extent.shape)
        return self._maps[name]

    def find_keys(self, keys: np.ndarray) -> np.ndarray:
        """Look up the rows of images by binary search.

        A key in so many stays in memory. Between two of them the keys are read, where one of those
        asked for is there.

        Parameters
        ----------
        keys : bytes array of shape (n,)
            Paths in UTF-8, ascending.

        Returns
        -------
        intp array of shape (n,)
            Row numbers; -1 where there is no such image.

        Raises
        ------
        CacheFormatError
            If keys that were read are out of order.
        CacheReplacedError, CacheUnreachableError
            As `read_rows`.
        """
        block_rows = max(1, SEARCHED_BYTES // self.layout.extents[PATH_COLUMN].row_bytes)
        if self._fences is None:
            fences = self.read_rows(PATH_COLUMN, np.arange(0, self.n_rows, block_rows))
            self._check_order(fences)
            self._fences = fences
        rows = np.full(len(keys), -1, np.intp)
        blocks = np.searchsorted(self._fences, keys, "right") - 1
        for start, stop in _group_blocks(blocks):
            first = int(blocks[start]) * block_rows
            lines = np.arange(first, min((int(blocks[stop - 1]) + 1) * block_rows, self.n_rows))
            stored = self.read_rows(PATH_COLUMN, lines)
            self._check_order(stored)
            found = np.minimum(np.searchsorted(stored, keys[start:stop]), len(stored) - 1)
            rows[start:stop] = np.where(stored[found] == keys[start:stop], first + found, -1)
        return rows

    def _check_order(self, keys: np.ndarray) -> None:
        unordered = np.flatnonzero(keys[1:] <= keys[:-1])
        if len(unordered):
            path = bytes(keys[unordered[0] + 1]).decode(errors="backslashreplace")
            raise CacheFormatError(f"{self.path}: path {path!r} is out of order or repeated")

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the file and the maps itself; pickling would copy them.
        state = {name: value for name, value in self.__dict__.items() if name != "_descriptor"}
        return state | {"_identity": None, "_maps": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._open_files is not None:
            return  # opened and compared when it is first read
        extents, seal = self.layout.extents, self._seal
        self._open()
        if self.layout.extents != extents or self._seal != seal:
            raise CacheReplacedError(f"{self.path} was replaced since it was opened; open it again")


def _group_blocks(blocks: np.ndarray) -> list[tuple[int, int]]:
    """Group positions of ascending block numbers whose blocks are read at once.

    Blocks of a group follow one another, and are few; -1 is no block.
    """
    start = int(np.searchsorted(blocks, 0))
    is_gap = np.diff(blocks[start:], prepend=-2) > 1
    if not len(is_gap):
        return []
    run_first = blocks[start:][is_gap][np.cumsum(is_gap) - 1]
    piece = (blocks[start:] - run_first) // MAX_SEARCHED_BLOCKS
    starts = start + np.flatnonzero(is_gap | (np.diff(piece, prepend=0) != 0))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(blocks)], strict=True))

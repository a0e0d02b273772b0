"""Write rows of a feature cache and mark them. `builder` allocates the file.

HDF5 is not used, and only bytes inside existing arrays change. The order is rows, sync, marks, so
the file is valid if the process is killed at any time.
"""

import os
import time
from pathlib import Path

import numpy as np

from featurize.cache.format import (
    CHECKSUMS_GROUP,
    CONTAINER_DTYPES,
    CONTAINERS_GROUP,
    FAILED,
    MARKED,
    PENDING,
    Extent,
    iter_row_runs,
    list_container_records,
    read_rows,
)
from featurize.cache.integrity import compute_checksums
from featurize.cache.layout import read_layout, to_unreachable_error
from featurize.errors import CacheReplacedError
from featurize.files import pwrite_all, to_write_error
from featurize.sources.listing import ImagePlaces
from featurize.system import signals

SYNC_INTERVAL_SECONDS = 1.0
_fdatasync = getattr(os, "fdatasync", os.fsync)


class CacheWriter:
    """Writes rows of an allocated cache and marks them; a context manager.

    The caller holds the cache's `WriteLock`.

    Parameters
    ----------
    path : Path
        A cache allocated by `builder.allocate_cache`.

    Attributes
    ----------
    path : Path
    layout : Layout
    status : uint8 array of shape (N,)
        As in the file: 0 pending, 1 ok, 2 failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = read_layout(path)
        self._fd = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        extent = self.layout.extents["images/status"]
        self.status = self._read(extent, np.arange(extent.shape[0]))
        self._pending_marks: dict[int, int] = {}  # rows written since the last sync -> their mark
        self._last_flush = time.monotonic()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Mark the rows that were written, sync, and close the file."""
        if self._fd >= 0:
            try:
                self.flush()
                self._sync_file()
            finally:
                os.close(self._fd)
                self._fd = -1

    def fill(
        self,
        rows: np.ndarray,
        features: dict[str, np.ndarray],
        sha256: np.ndarray,
        sizes: np.ndarray,
        mtimes_ns: np.ndarray,
        checksums: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Write finished rows; the next `flush` marks them.

        Parameters
        ----------
        rows : int array of shape (n,)
        features : dict of str to array of shape (n, D)
            By dataset name, finite. Other datasets are not changed.
        sha256 : uint8 array of shape (n, 32)
            Hash of each image.
        sizes, mtimes_ns : int64 arrays of shape (n,)
            Size in bytes and modification time of each image.
        checksums : dict of str to uint32 array of shape (n, 2), optional
            For rows copied from a cache, their checksums there, so that damaged rows do not look
            sound. Default computed from `features`.
        """
        self._write_image_columns(rows, sha256, sizes, mtimes_ns, np.zeros(len(rows), np.uint8))
        self._write_features(rows, features, sha256, checksums)
        self._pending_marks.update(dict.fromkeys(rows.tolist(), MARKED))

    def write_partial(
        self,
        rows: np.ndarray,
        features: dict[str, np.ndarray],
        sha256: np.ndarray,
        checksums: dict[str, np.ndarray],
    ) -> None:
        """Write features of rows that stay pending because other layers are missing.

        Parameters
        ----------
        rows : int array of shape (n,)
        features : dict of str to array of shape (n, D)
            By dataset name.
        sha256 : uint8 array of shape (n, 32)
        checksums : dict of str to uint32 array of shape (n, 2)
            By dataset name.
        """
        self._write_features(rows, features, sha256, checksums)

    def write_checksums(self, rows: np.ndarray, name: str, values: np.ndarray) -> None:
        """Write checksums of a layer's rows; do nothing in a cache without checksums.

        Parameters
        ----------
        rows : int array of shape (n,)
        name : str
            Dataset name of the layer.
        values : uint32 array of shape (n, 2)
        """
        if f"{CHECKSUMS_GROUP}/{name}" in self.layout.extents:
            self._write_column(f"{CHECKSUMS_GROUP}/{name}", rows, values)

    def _write_features(
        self,
        rows: np.ndarray,
        features: dict[str, np.ndarray],
        sha256: np.ndarray,
        checksums: dict[str, np.ndarray] | None,
    ) -> None:
        for name, values in features.items():
            values = np.ascontiguousarray(values, self.layout.extents[f"features/{name}"].dtype)
            self._write_column(f"features/{name}", rows, values)
            row_checksums = (
                compute_checksums(sha256, values) if checksums is None else checksums[name]
            )
            self.write_checksums(rows, name, row_checksums)

    def record_failures(
        self,
        rows: np.ndarray,
        reasons: np.ndarray,
        sha256: np.ndarray,
        sizes: np.ndarray,
        mtimes_ns: np.ndarray,
    ) -> None:
        """Record rows that failed; the next `flush` marks them.

        Parameters
        ----------
        rows : int array of shape (n,)
        reasons : uint8 array of shape (n,)
            Codes of `featurize.images.reasons`.
        sha256 : uint8 array of shape (n, 32)
            Zeros for an image that could not be read.
        sizes, mtimes_ns : int64 arrays of shape (n,)
        """
        self._write_image_columns(rows, sha256, sizes, mtimes_ns, reasons)
        self._pending_marks.update(dict.fromkeys(rows.tolist(), FAILED))

    def update_stat(self, rows: np.ndarray, sizes: np.ndarray, mtimes_ns: np.ndarray) -> None:
        """Update size and time of images whose bytes are unchanged.

        Parameters
        ----------
        rows : int array of shape (n,)
        sizes, mtimes_ns : int64 arrays of shape (n,)
        """
        self._write_column("images/size", rows, sizes)
        self._write_column("images/mtime_ns", rows, mtimes_ns)

    def write_places(self, places: ImagePlaces, stamps: np.ndarray) -> None:
        """Record where the images lie now, after every row was looked at.

        The containers' stamps come last, after a sync: until then the next run opens them again.
        Nothing is written if the cache has other containers.

        Parameters
        ----------
        places : ImagePlaces
        stamps : int64 array of shape (N,)
            Of the images, as listed.
        """
        records = list_container_records(places, stamps)
        if [c.name for c in records] != [c.name for c in self.layout.containers]:
            return
        rows = np.arange(len(stamps))
        self._write_column("images/container", rows, places.container_of)
        self._write_column("images/offset", rows, places.offsets)
        self.flush()
        self._sync_file()
        for name in CONTAINER_DTYPES:
            values = np.array([getattr(record, name) for record in records])
            self._write_column(f"{CONTAINERS_GROUP}/{name}", np.arange(len(records)), values)

    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read rows of an array.

        Parameters
        ----------
        name : str
            ``images/COLUMN``, ``features/LAYER`` or ``checksums/LAYER``.
        rows : int array of shape (n,)

        Returns
        -------
        array of shape (n, ...)
            A copy; zeros for checksums in a cache without them.

        Raises
        ------
        CacheReplacedError, CacheUnreachableError
            If the file was truncated, or cannot be read now.
        """
        extent = self.layout.extents.get(name)
        if extent is None and name.startswith(f"{CHECKSUMS_GROUP}/"):
            return np.zeros((len(rows), 2), np.uint32)
        return self._read(self.layout.extents[name], rows)

    def _read(self, extent: Extent, rows: np.ndarray) -> np.ndarray:
        try:
            return read_rows(self._fd, extent, rows)
        except CacheReplacedError:
            raise
        except OSError as error:
            raise to_unreachable_error(self.path, error) from error

    def flush_if_due(self) -> bool:
        """Mark the written rows if the last flush was `SYNC_INTERVAL_SECONDS` ago or more.

        Returns
        -------
        bool
            Whether rows were flushed.
        """
        if time.monotonic() - self._last_flush < SYNC_INTERVAL_SECONDS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Sync the rows that were written, then mark them.

        Raises
        ------
        DiskFullError, OutputError
            If the system cannot write.
        """
        if self._pending_marks:
            self._sync_file()
            rows = np.array(sorted(self._pending_marks), np.intp)
            self._mark(
                rows, np.array([self._pending_marks[row] for row in rows.tolist()], np.uint8)
            )
            self._pending_marks.clear()
        self._last_flush = time.monotonic()

    def _sync_file(self) -> None:
        """Sync the file; after a failure, drop the marks of all rows written so far.

        The system reports a lost write only once, so a later sync that succeeds proves nothing.
        """
        try:
            with signals.delay_exit(f"the disk to take what was written to {self.path}"):
                _fdatasync(self._fd)
        except BaseException as error:
            self._pending_marks.clear()
            if isinstance(error, OSError):
                raise to_write_error(error, self.path) from error
            raise

    def _write_image_columns(
        self,
        rows: np.ndarray,
        sha256: np.ndarray,
        sizes: np.ndarray,
        mtimes_ns: np.ndarray,
        reasons: np.ndarray,
    ) -> None:
        stale = rows[self.status[rows] != PENDING]
        if len(stale):
            # A row must not be marked while it holds a part of its new values.
            self._mark(stale, np.zeros(len(stale), np.uint8))
            self._sync_file()
        self._write_column("images/sha256", rows, sha256)
        self._write_column("images/size", rows, sizes)
        self._write_column("images/mtime_ns", rows, mtimes_ns)
        self._write_column("images/reason", rows, reasons)

    def _mark(self, rows: np.ndarray, marks: np.ndarray) -> None:
        self._write_column("images/status", rows, marks)
        self.status[rows] = marks

    def _write_column(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        if not len(rows):
            return
        extent = self.layout.extents[name]
        values = np.ascontiguousarray(values, extent.dtype)
        try:
            for run in iter_row_runs(rows):
                offset = extent.offset + int(rows[run.start]) * extent.row_bytes
                pwrite_all(self._fd, values[run].data.cast("B"), offset)
        except OSError as error:
            raise to_write_error(error, self.path) from error

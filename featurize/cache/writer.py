"""Write a feature cache: fill, mark. `builder` allocates it.

HDF5 is closed and only bytes inside existing arrays change, in an order that
a kill at any instant leaves valid: rows first, then a sync, then their marks.
"""

import os
import time
from pathlib import Path

import numpy as np

from featurize.cache.format import (
    CHECKSUMS_GROUP,
    FAILED,
    MARKED,
    PENDING,
    Extent,
    iter_row_runs,
    read_rows,
)
from featurize.cache.integrity import compute_checksums
from featurize.cache.layout import read_layout, to_unreachable_error
from featurize.errors import CacheReplacedError
from featurize.files import pwrite_all, to_write_error
from featurize.system import signals

SYNC_INTERVAL_SECONDS = 1.0
_fdatasync = getattr(os, "fdatasync", os.fsync)


class CacheWriter:
    """Fill rows of a laid-out cache and mark them; to be used with the `WriteLock` held.

    Parameters
    ----------
    path : Path
        A cache made by `builder.allocate_cache`.
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
        """Mark what is written and let go of the file."""
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
        """Write finished rows; their marks follow with the next `flush`.

        Parameters
        ----------
        rows : int array of shape (n,)
        features : dict of str to array of shape (n, D)
            By dataset name, finite. Datasets not named keep what they hold.
        sha256 : uint8 array of shape (n, 32)
        sizes, mtimes_ns : int64 arrays of shape (n,)
        checksums : dict of str to uint32 array of shape (n, 2), optional
            Those that rows taken over had: what was damaged before must not look sound here.
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
        """Write features of rows that stay pending, because other layers are still missing."""
        self._write_features(rows, features, sha256, checksums)

    def write_checksums(self, rows: np.ndarray, name: str, values: np.ndarray) -> None:
        """Write checksums of a layer's rows, uint32 (n, 2); a cache without a place has none."""
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
            sums = compute_checksums(sha256, values) if checksums is None else checksums[name]
            self.write_checksums(rows, name, sums)

    def record_failures(
        self,
        rows: np.ndarray,
        reasons: np.ndarray,
        sha256: np.ndarray,
        sizes: np.ndarray,
        mtimes_ns: np.ndarray,
    ) -> None:
        """Record rows that failed, with the code of their reason: uint8 (n,)."""
        self._write_image_columns(rows, sha256, sizes, mtimes_ns, reasons)
        self._pending_marks.update(dict.fromkeys(rows.tolist(), FAILED))

    def update_stat(self, rows: np.ndarray, sizes: np.ndarray, mtimes_ns: np.ndarray) -> None:
        """Note that files were found to hold the same bytes under a new time."""
        self._write_column("images/size", rows, sizes)
        self._write_column("images/mtime_ns", rows, mtimes_ns)

    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read rows back, of ``images/COLUMN`` or ``features/LAYER``: a copy of shape (n, ...).

        Of ``checksums/LAYER`` in a cache that has none: zeros.
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
        """Mark the written rows if the last time was about a second ago."""
        if time.monotonic() - self._last_flush < SYNC_INTERVAL_SECONDS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Sync the rows that were written, then mark them."""
        if self._pending_marks:
            self._sync_file()
            rows = np.array(sorted(self._pending_marks), np.intp)
            self._mark(
                rows, np.array([self._pending_marks[row] for row in rows.tolist()], np.uint8)
            )
            self._pending_marks.clear()
        self._last_flush = time.monotonic()

    def _sync_file(self) -> None:
        """Sync; after a failure nothing that was written is marked any more.

        The system reports a lost write once: the next sync would succeed and prove nothing.
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
            # A marked row must never hold half of its new numbers.
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

"""Write a feature cache: allocate, fill, mark.

A cache is laid out whole under a temporary name and put in place by one rename. From
then on HDF5 is closed and only bytes inside existing arrays change, in an order that
a kill at any instant leaves valid: rows first, then a sync, then their marks.
"""

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from featurize.cache import format as cache_format
from featurize.cache.builder import build_empty_file
from featurize.cache.checksums import compute_checksums
from featurize.cache.format import FAILED, MARKED, PENDING, Extractor, LayerInfo
from featurize.cache.violations import CHECKSUMS_GROUP, PAGE_BYTES
from featurize.errors import CacheReplacedError, DiskFullError, FeaturizeError
from featurize.files import to_write_error
from featurize.system import signals
from featurize.text import format_bytes

SYNC_INTERVAL_SECONDS = 1.0
_fdatasync = getattr(os, "fdatasync", os.fsync)


def estimate_cache_bytes(layers: Sequence[LayerInfo], n_rows: int) -> int:
    """About how large a cache of so many rows will be."""
    rows = sum(info.dim * np.dtype(info.dtype).itemsize for info in layers)
    return (
        n_rows * (rows + 32 + 8 + 8 + 2 + 64 + 8 * len(layers)) + len(layers) * PAGE_BYTES + 16384
    )


def check_free_space(path: Path, needed: int) -> None:
    """Refuse early what will not fit.

    Raises
    ------
    DiskFull
    """
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DiskFullError(
            f"{path} needs {format_bytes(needed)} but {format_bytes(free)} are free on its disk; "
            "free some, use --dtype float16, fewer layers, or another -o"
        )


def allocate_cache(
    path: Path,
    extractor: Extractor,
    layers: Sequence[LayerInfo],
    paths: Sequence[str],
    sizes: np.ndarray,
    mtimes_ns: np.ndarray,
    *,
    root: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    created_by: str,
) -> None:
    """Put a whole, empty cache at `path`, its disk space reserved; all or nothing.

    Raises
    ------
    DiskFull
        If its space cannot be reserved; nothing is left behind.
    """
    check_free_space(path, estimate_cache_bytes(layers, len(paths)))
    temporary = path.with_name(path.name + ".tmp")
    size, pieces = build_empty_file(
        extractor,
        layers,
        paths,
        sizes,
        mtimes_ns,
        root=root,
        include=include,
        exclude=exclude,
        created_by=created_by,
    )
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        fd = os.open(temporary, flags, 0o644)
        try:
            os.ftruncate(fd, size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            for offset, data in pieces:
                _pwrite_all(fd, memoryview(data), offset)
            os.fsync(fd)
        finally:
            os.close(fd)
        replace_durably(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, FeaturizeError):
            raise to_write_error(error, path) from error
        raise


def remove_temporary_files(path: Path) -> None:
    """Remove what a killed run left of a layout it had not finished; with the `Lock` held."""
    for name in (path.name, path.name + ".part"):
        path.with_name(name + ".tmp").unlink(missing_ok=True)


def replace_durably(source: Path, target: Path) -> None:
    """Rename over `target` so that the rename itself outlives a power cut."""
    os.replace(source, target)
    with suppress(OSError):  # folders cannot be opened for syncing everywhere
        fd = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class CacheWriter:
    """Fill rows of a laid-out cache and mark them; to be used with the `Lock` held.

    Parameters
    ----------
    path : Path
        A cache made by `allocate_cache`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = cache_format.read_layout(path)
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

    def _read(self, extent: cache_format.Extent, rows: np.ndarray) -> np.ndarray:
        try:
            return cache_format.read_rows(self._fd, extent, rows)
        except CacheReplacedError:
            raise
        except OSError as error:
            raise cache_format.to_unreachable_error(self.path, error) from error

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
        # Neighbouring rows go in one write.
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            offset = extent.offset + int(rows[start]) * extent.row_bytes
            self._write_at(offset, values[start:stop].data.cast("B"))

    def _write_at(self, offset: int, data: memoryview) -> None:
        try:
            _pwrite_all(self._fd, data, offset)
        except OSError as error:
            raise to_write_error(error, self.path) from error


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        if hasattr(os, "pwrite"):
            written = os.pwrite(fd, data, offset)
        else:
            os.lseek(fd, offset, os.SEEK_SET)  # one thread writes, so the two steps are safe
            written = os.write(fd, data)
        data, offset = data[written:], offset + written

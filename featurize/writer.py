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

from featurize import layout, signals
from featurize.checksums import checksums_of
from featurize.clauses import CHECKSUMS, PAGE
from featurize.errors import CacheReplaced, DiskFull, FeaturizeError
from featurize.files import explained
from featurize.layout import FAILED, MARKED, PENDING, Extractor, LayerInfo
from featurize.sketch import draw
from featurize.text import in_bytes

SYNC_SECONDS = 1.0
_sync = getattr(os, "fdatasync", os.fsync)


def bytes_needed(layers: Sequence[LayerInfo], n_rows: int) -> int:
    """About how large a cache of so many rows will be."""
    rows = sum(info.dim * np.dtype(info.dtype).itemsize for info in layers)
    return n_rows * (rows + 32 + 8 + 8 + 2 + 64 + 8 * len(layers)) + len(layers) * PAGE + 16384


def check_room(path: Path, needed: int) -> None:
    """Refuse early what will not fit.

    Raises
    ------
    DiskFull
    """
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DiskFull(
            f"{path} needs {in_bytes(needed)} but {in_bytes(free)} are free on its disk; "
            "free some, use --dtype float16, fewer layers, or another -o"
        )


def allocate(
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
    check_room(path, bytes_needed(layers, len(paths)))
    temporary = path.with_name(path.name + ".tmp")
    size, pieces = draw(
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
                _write(fd, memoryview(data), offset)
            os.fsync(fd)
        finally:
            os.close(fd)
        replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, FeaturizeError):
            raise explained(error, path) from error
        raise


def sweep(path: Path) -> None:
    """Remove what a killed run left of a layout it had not finished; with the `Lock` held."""
    for name in (path.name, path.name + ".part"):
        path.with_name(name + ".tmp").unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
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
        A cache made by `allocate`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = layout.read(path)
        self._fd = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        extent = self.layout.extents["images/status"]
        self.status = self._read(extent, np.arange(extent.shape[0]))
        self._unmarked: dict[int, int] = {}  # rows written since the last sync -> their mark
        self._flushed = time.monotonic()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Mark what is written and let go of the file."""
        if self._fd >= 0:
            try:
                self.flush()
                self._synced()
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
        self._write_rows(rows, sha256, sizes, mtimes_ns, np.zeros(len(rows), np.uint8))
        self._put_features(rows, features, sha256, checksums)
        self._unmarked.update(dict.fromkeys(rows.tolist(), MARKED))

    def preset(
        self,
        rows: np.ndarray,
        features: dict[str, np.ndarray],
        sha256: np.ndarray,
        checksums: dict[str, np.ndarray],
    ) -> None:
        """Write features of rows that stay pending, because other layers are still missing."""
        self._put_features(rows, features, sha256, checksums)

    def put_checksums(self, rows: np.ndarray, name: str, values: np.ndarray) -> None:
        """Write checksums of a layer's rows, uint32 (n, 2); a cache without a place has none."""
        if f"{CHECKSUMS}/{name}" in self.layout.extents:
            self._put(f"{CHECKSUMS}/{name}", rows, values)

    def _put_features(
        self,
        rows: np.ndarray,
        features: dict[str, np.ndarray],
        sha256: np.ndarray,
        checksums: dict[str, np.ndarray] | None,
    ) -> None:
        for name, values in features.items():
            values = np.ascontiguousarray(values, self.layout.extents[f"features/{name}"].dtype)
            self._put(f"features/{name}", rows, values)
            sums = checksums_of(sha256, values) if checksums is None else checksums[name]
            self.put_checksums(rows, name, sums)

    def fail(
        self,
        rows: np.ndarray,
        reasons: np.ndarray,
        sha256: np.ndarray,
        sizes: np.ndarray,
        mtimes_ns: np.ndarray,
    ) -> None:
        """Record rows that failed, with the code of their reason: uint8 (n,)."""
        self._write_rows(rows, sha256, sizes, mtimes_ns, reasons)
        self._unmarked.update(dict.fromkeys(rows.tolist(), FAILED))

    def touch(self, rows: np.ndarray, sizes: np.ndarray, mtimes_ns: np.ndarray) -> None:
        """Note that files were found to hold the same bytes under a new time."""
        self._put("images/size", rows, sizes)
        self._put("images/mtime_ns", rows, mtimes_ns)

    def rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read rows back, of ``images/COLUMN`` or ``features/LAYER``: a copy of shape (n, ...).

        Of ``checksums/LAYER`` in a cache that has none: zeros.
        """
        extent = self.layout.extents.get(name)
        if extent is None and name.startswith(f"{CHECKSUMS}/"):
            return np.zeros((len(rows), 2), np.uint32)
        return self._read(self.layout.extents[name], rows)

    def _read(self, extent: layout.Extent, rows: np.ndarray) -> np.ndarray:
        try:
            return layout.read_rows(self._fd, extent, rows)
        except CacheReplaced:
            raise
        except OSError as error:
            raise layout.unreachable(self.path, error) from error

    def flush_if_due(self) -> bool:
        """Mark the written rows if the last time was about a second ago."""
        if time.monotonic() - self._flushed < SYNC_SECONDS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Sync the rows that were written, then mark them."""
        if self._unmarked:
            self._synced()
            rows = np.array(sorted(self._unmarked), np.intp)
            self._mark(rows, np.array([self._unmarked[row] for row in rows.tolist()], np.uint8))
            self._unmarked.clear()
        self._flushed = time.monotonic()

    def _synced(self) -> None:
        """Sync; after a failure nothing that was written is marked any more.

        The system reports a lost write once: the next sync would succeed and prove nothing.
        """
        try:
            with signals.unhurried(f"the disk to take what was written to {self.path}"):
                _sync(self._fd)
        except BaseException as error:
            self._unmarked.clear()
            if isinstance(error, OSError):
                raise explained(error, self.path) from error
            raise

    def _write_rows(
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
            self._synced()
        self._put("images/sha256", rows, sha256)
        self._put("images/size", rows, sizes)
        self._put("images/mtime_ns", rows, mtimes_ns)
        self._put("images/reason", rows, reasons)

    def _mark(self, rows: np.ndarray, marks: np.ndarray) -> None:
        self._put("images/status", rows, marks)
        self.status[rows] = marks

    def _put(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        if not len(rows):
            return
        extent = self.layout.extents[name]
        values = np.ascontiguousarray(values, extent.dtype)
        # Neighbouring rows go in one write.
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            offset = extent.offset + int(rows[start]) * extent.row_bytes
            self._write(offset, values[start:stop].data.cast("B"))

    def _write(self, offset: int, data: memoryview) -> None:
        try:
            _write(self._fd, data, offset)
        except OSError as error:
            raise explained(error, self.path) from error


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        if hasattr(os, "pwrite"):
            written = os.pwrite(fd, data, offset)
        else:
            os.lseek(fd, offset, os.SEEK_SET)  # one thread writes, so the two steps are safe
            written = os.write(fd, data)
        data, offset = data[written:], offset + written

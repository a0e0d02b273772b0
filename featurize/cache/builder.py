"""Lay out a new cache, whole, under a temporary name, and put it in place by one rename.

HDF5 draws the layout in memory and never meets the disk it will lie on.
"""

import io
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featurize.cache.format import (
    CHECKSUM_DTYPE,
    CHECKSUMS_GROUP,
    EXTRACTOR_TEXT_ATTRS,
    FORMAT_NAME,
    FORMAT_VERSION,
    PAGE_BYTES,
    Extractor,
    LayerInfo,
)
from featurize.errors import DiskFullError, FeaturizeError
from featurize.files import pwrite_all, replace_durably, to_write_error
from featurize.fingerprint import canonical_json
from featurize.text import format_bytes
from featurize.version import CREATED_BY


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
    DiskFullError
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
) -> None:
    """Put a whole, empty cache at `path`, its disk space reserved; all or nothing.

    Raises
    ------
    DiskFullError
        If its space cannot be reserved; nothing is left behind.
    """
    check_free_space(path, estimate_cache_bytes(layers, len(paths)))
    temporary = path.with_name(path.name + ".tmp")
    size, pieces = _build_empty_file(
        extractor,
        layers,
        paths,
        sizes,
        mtimes_ns,
        root=root,
        include=include,
        exclude=exclude,
    )
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        fd = os.open(temporary, flags, 0o644)
        try:
            os.ftruncate(fd, size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            for offset, data in pieces:
                pwrite_all(fd, data, offset)
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
    """Remove what a killed run left of a layout it had not finished; with the `WriteLock` held."""
    for name in (path.name, path.name + ".part"):
        path.with_name(name + ".tmp").unlink(missing_ok=True)


class _SparseFile(io.RawIOBase):
    """A file that HDF5 draws a layout into: what it writes is kept, the rest is a hole."""

    def __init__(self) -> None:
        self.size = 0
        self.written: list[tuple[int, bytes]] = []  # in order: the later counts
        self._position = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def writable(self) -> bool:
        """And written."""
        return True

    def seekable(self) -> bool:
        """Anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        )
        return self._position

    def tell(self) -> int:
        """Where it is."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        self.size = self._position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        """Keep some bytes."""
        data = bytes(data)
        self.written.append((self._position, data))
        self._position += len(data)
        self.size = max(self.size, self._position)
        return len(data)

    def readinto(self, into: Any) -> int:
        """Give back what was written, and zeros from the holes."""
        view = memoryview(into).cast("B")
        count = max(0, min(len(view), self.size - self._position))
        view[:count] = bytes(count)
        for start, data in self.written:
            first, last = max(start, self._position), min(start + len(data), self._position + count)
            if first < last:
                view[first - self._position : last - self._position] = data[
                    first - start : last - start
                ]
        self._position += count
        return count


def _build_empty_file(
    extractor: Extractor,
    layers: Sequence[LayerInfo],
    paths: Sequence[str],
    sizes: np.ndarray,
    mtimes_ns: np.ndarray,
    *,
    root: str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[int, list[tuple[int, bytes]]]:
    """Lay a cache out: all rows pending, all space allocated, nothing computed.

    HDF5 draws in memory and never meets a disk, which it would crash on when that is full.

    Parameters
    ----------
    paths : sequence of str
        Sorted, unique, relative, POSIX.
    include, exclude : sequence of str
        The patterns that chose them.

    Returns
    -------
    size : int
        Of the file, in bytes.
    pieces : list of (offset, bytes)
        What is in it; everything else is zero.
    """
    n_rows = len(paths)
    encoded = [path.encode() for path in paths]
    path_type = h5py.string_dtype("utf-8", max(map(len, encoded)))
    # Every features array is at least this large, so all of them are aligned to pages.
    smallest = n_rows * min(info.dim * np.dtype(info.dtype).itemsize for info in layers)
    # The default libver, never "latest": with that, a killed writer leaves a file that
    # refuses to open.
    sketch = _SparseFile()
    with h5py.File(
        sketch, "w", alignment_threshold=smallest, alignment_interval=PAGE_BYTES
    ) as file:
        file.attrs["format"] = FORMAT_NAME
        file.attrs["format_version"] = f"{FORMAT_VERSION[0]}.{FORMAT_VERSION[1]}"
        file.attrs["required_features"] = "[]"
        file.attrs["n_rows"] = np.int64(n_rows)
        file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        file.attrs["created_by"] = CREATED_BY
        file.attrs["root"] = root.encode("utf-8", "replace").decode()
        file.attrs["id"] = secrets.token_hex(16)
        for name, patterns in (("include", include), ("exclude", exclude)):
            if patterns:
                file.attrs[name] = json.dumps(list(patterns))
        group = file.create_group("extractor")
        for name in EXTRACTOR_TEXT_ATTRS:
            group.attrs[name] = getattr(extractor, name)
        group.attrs["preprocess"] = canonical_json(extractor.preprocess.to_dict())
        group.attrs["environment"] = canonical_json(extractor.environment)

        images = file.create_group("images")
        columns = [
            (_create_dataset(images, "path", (n_rows,), path_type), np.array(encoded, path_type)),
            (_create_dataset(images, "sha256", (n_rows, 32), "u1"), None),
            (_create_dataset(images, "size", (n_rows,), "<i8"), np.asarray(sizes, "<i8")),
            (_create_dataset(images, "mtime_ns", (n_rows,), "<i8"), np.asarray(mtimes_ns, "<i8")),
            (_create_dataset(images, "status", (n_rows,), "u1"), None),  # zero is pending
            (_create_dataset(images, "reason", (n_rows,), "u1"), None),
        ]
        features = file.create_group("features")
        for info in layers:
            dataset = _create_dataset(features, info.name, (n_rows, info.dim), info.dtype)
            dataset.attrs["layer"] = info.layer
            dataset.attrs["pool"] = info.pool
            dataset.attrs["map_shape"] = np.array(info.map_shape, np.int64)
            dataset.attrs["fingerprint"] = info.fingerprint
        checksums = file.create_group(CHECKSUMS_GROUP)
        for info in layers:
            _create_dataset(checksums, info.name, (n_rows, 2), CHECKSUM_DTYPE)  # zeros are none
        pieces = [
            (dataset.id.get_offset(), values.tobytes())
            for dataset, values in columns
            if values is not None
        ]
    return sketch.size, [*sketch.written, *pieces]


def _create_dataset(group: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return group.create_dataset(name, shape, dtype, dcpl=plist)

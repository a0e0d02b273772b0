"""Build a new, empty cache under a temporary name, and put it in place by one rename.

HDF5 builds the layout in memory and never writes to the disk.
"""

import io
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featurize.cache.format import (
    CHECKSUM_DTYPE,
    CHECKSUMS_GROUP,
    CONTAINER_DTYPES,
    CONTAINERS_GROUP,
    EXTRACTOR_TEXT_ATTRS,
    FORMAT_NAME,
    PAGE_BYTES,
    PLACE_DTYPES,
    Extractor,
    LayerInfo,
    choose_version,
    list_container_records,
)
from featurize.errors import DiskFullError, FeaturizeError
from featurize.files import pwrite_all, replace_durably, to_write_error
from featurize.fingerprint import canonical_json
from featurize.sources.listing import ImagePlaces
from featurize.text import format_bytes
from featurize.version import CREATED_BY


def estimate_cache_bytes(layers: Sequence[LayerInfo], n_rows: int) -> int:
    """Estimate the size of a cache file.

    Parameters
    ----------
    layers : sequence of LayerInfo
    n_rows : int

    Returns
    -------
    int
        Bytes.
    """
    features_bytes = sum(info.dim * np.dtype(info.dtype).itemsize for info in layers)
    return (
        n_rows * (features_bytes + 32 + 8 + 8 + 2 + 64 + 8 * len(layers))
        + len(layers) * PAGE_BYTES
        + 16384
    )


def check_free_space(path: Path, needed: int) -> None:
    """Check that the disk of a new file has enough free space.

    Parameters
    ----------
    path : Path
        The file to be written; its folder exists.
    needed : int
        Bytes.

    Raises
    ------
    DiskFullError
        If less is free.
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
    source: Mapping[str, Any] | None = None,
    places: ImagePlaces | None = None,
) -> None:
    """Write an empty cache to `path` and reserve its disk space, atomically.

    All rows are pending. After an error no file is left behind.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    extractor : Extractor
    layers : sequence of LayerInfo
        Shallowest first.
    paths : sequence of str
        N image paths, relative to `root`, POSIX, sorted and unique.
    sizes, mtimes_ns : int64 arrays of shape (N,)
        Size in bytes, or -1, and version stamp of each image; that of a file is its modification
        time in nanoseconds.
    root : str
        The image folder, or where else the images are; informative.
    include, exclude : sequence of str
        The patterns that selected the images; informative.
    source : mapping of str to object, optional
        How another source than a folder was read, as JSON values; informative.
    places : ImagePlaces, optional
        In which containers the images lie.

    Raises
    ------
    DiskFullError
        If the space cannot be reserved.
    OutputError
        If the file cannot be written for another reason.
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
        source=source,
        places=places,
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
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, FeaturizeError):
            raise to_write_error(error, path) from error
        raise


def remove_temporary_files(path: Path) -> None:
    """Remove the temporary files of a run that was killed while it allocated a cache.

    Parameters
    ----------
    path : Path
        The cache file. The caller holds its `WriteLock`.
    """
    for name in (path.name, path.name + ".part"):
        path.with_name(name + ".tmp").unlink(missing_ok=True)


class _SparseFile(io.RawIOBase):
    """A sparse file in memory that HDF5 writes a layout to: written pieces and holes."""

    def __init__(self) -> None:
        self.size = 0
        self.written: list[tuple[int, bytes]] = []  # a later piece overrides an earlier one
        self._position = 0

    def readable(self) -> bool:
        """Return True: the file is readable."""
        return True

    def writable(self) -> bool:
        """Return True: the file is writable."""
        return True

    def seekable(self) -> bool:
        """Return True: the file is seekable."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position; see `io.IOBase.seek`."""
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        )
        return self._position

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size in bytes; see `io.IOBase.truncate`."""
        self.size = self._position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        """Store a piece at the position; see `io.RawIOBase.write`."""
        data = bytes(data)
        self.written.append((self._position, data))
        self._position += len(data)
        self.size = max(self.size, self._position)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Read written pieces, and zeros from holes; see `io.RawIOBase.readinto`."""
        view = memoryview(buffer).cast("B")
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
    source: Mapping[str, Any] | None,
    places: ImagePlaces | None,
) -> tuple[int, list[tuple[int, bytes]]]:
    """Build the bytes of a cache whose rows are all pending.

    HDF5 writes in memory because it would crash on a full disk.

    Parameters
    ----------
    extractor, layers, paths, sizes, mtimes_ns, root, include, exclude, source, places
        As in `allocate_cache`.

    Returns
    -------
    size : int
        Of the file, in bytes.
    pieces : list of (int, bytes)
        Offset and content of each piece; everything else is zero.
    """
    n_rows = len(paths)
    encoded = [path.encode() for path in paths]
    path_type = h5py.string_dtype("utf-8", max(map(len, encoded)))
    # Every features array is at least this large, so all of them are aligned to pages.
    min_features_bytes = n_rows * min(info.dim * np.dtype(info.dtype).itemsize for info in layers)
    # The default libver: with "latest" a killed writer leaves a file that cannot be opened.
    sparse_file = _SparseFile()
    with h5py.File(
        sparse_file, "w", alignment_threshold=min_features_bytes, alignment_interval=PAGE_BYTES
    ) as h5_file:
        h5_file.attrs["format"] = FORMAT_NAME
        version, required_features = choose_version(extractor.preprocess, source is None)
        h5_file.attrs["format_version"] = version
        h5_file.attrs["required_features"] = json.dumps(required_features)
        h5_file.attrs["n_rows"] = np.int64(n_rows)
        h5_file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        h5_file.attrs["created_by"] = CREATED_BY
        h5_file.attrs["root"] = root.encode("utf-8", "replace").decode()
        h5_file.attrs["id"] = secrets.token_hex(16)
        for name, patterns in (("include", include), ("exclude", exclude)):
            if patterns:
                h5_file.attrs[name] = json.dumps(list(patterns))
        if source is not None:
            h5_file.attrs["source"] = canonical_json(source)
        group = h5_file.create_group("extractor")
        for name in EXTRACTOR_TEXT_ATTRS:
            group.attrs[name] = getattr(extractor, name)
        group.attrs["preprocess"] = canonical_json(extractor.preprocess.to_dict())
        group.attrs["environment"] = canonical_json(extractor.environment)

        images = h5_file.create_group("images")
        columns = [
            (_create_dataset(images, "path", (n_rows,), path_type), np.array(encoded, path_type)),
            (_create_dataset(images, "sha256", (n_rows, 32), "u1"), None),
            (_create_dataset(images, "size", (n_rows,), "<i8"), np.asarray(sizes, "<i8")),
            (_create_dataset(images, "mtime_ns", (n_rows,), "<i8"), np.asarray(mtimes_ns, "<i8")),
            (_create_dataset(images, "status", (n_rows,), "u1"), None),  # zero is pending
            (_create_dataset(images, "reason", (n_rows,), "u1"), None),
        ]
        if places is not None:
            columns += _create_place_columns(h5_file, places, np.asarray(mtimes_ns))
        features = h5_file.create_group("features")
        for info in layers:
            dataset = _create_dataset(features, info.name, (n_rows, info.dim), info.dtype)
            dataset.attrs["layer"] = info.layer
            dataset.attrs["pool"] = info.pool
            dataset.attrs["map_shape"] = np.array(info.map_shape, np.int64)
            dataset.attrs["fingerprint"] = info.fingerprint
        checksums = h5_file.create_group(CHECKSUMS_GROUP)
        for info in layers:
            _create_dataset(checksums, info.name, (n_rows, 2), CHECKSUM_DTYPE)  # zeros: none
        pieces = [
            (dataset.id.get_offset(), values.tobytes())
            for dataset, values in columns
            if values is not None
        ]
    return sparse_file.size, [*sparse_file.written, *pieces]


def _create_place_columns(
    h5_file: Any, places: ImagePlaces, stamps: np.ndarray
) -> list[tuple[Any, np.ndarray]]:
    """Create the arrays that say where images lie; return them with their values."""
    images, group = h5_file["images"], h5_file.create_group(CONTAINERS_GROUP)
    names = [container.name.encode() for container in places.containers]
    name_type = h5py.string_dtype("utf-8", max(map(len, names)))
    records = list_container_records(places, stamps)
    count = (len(names),)
    columns = [(_create_dataset(group, "name", count, name_type), np.array(names, name_type))]
    for name, dtype in CONTAINER_DTYPES.items():
        values = np.array([getattr(record, name) for record in records], dtype)
        columns.append((_create_dataset(group, name, count, dtype), values))
    for name, place_values in (("container", places.container_of), ("offset", places.offsets)):
        dataset = _create_dataset(images, name, place_values.shape, PLACE_DTYPES[name])
        columns.append((dataset, place_values.astype(PLACE_DTYPES[name])))
    return columns


def _create_dataset(group: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return group.create_dataset(name, shape, dtype, dcpl=plist)

"""The file format: where everything lies in a feature cache, and what a reader refuses.

The specification is docs/cache-format.md. HDF5 is used twice only: to draw a layout, in
memory, and to look at a file's. Everything else is bytes at known offsets.
"""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import h5py
import numpy as np

from featurize.cache import crash_guard
from featurize.cache.violations import (
    CHECKSUMS_GROUP,
    COLUMN_DTYPES,
    EXTRACTOR_TEXT_ATTRS,
    find_violations,
)
from featurize.errors import CacheFormatError, CacheReplacedError, CacheUnreachableError
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec

PENDING, MARKED, FAILED = 0, 1, 2
MAX_READ_BYTES = 8 << 20
MAX_SEALED_BYTES = 1 << 18  # between the arrays: kilobytes, in any cache of ours


@dataclass(frozen=True)
class Extractor:
    """What made the features: the backbone, its weights and its preprocessing.

    `environment` is informative; everything else decides the numbers.
    """

    backbone: str
    weights: str
    weights_sha256: str
    preprocess: Preprocess
    precision: str
    environment: Mapping[str, Any]

    def differences(self, other: "Extractor") -> dict[str, tuple[Any, Any]]:
        """Find what decides the features and is not the same in another extractor.

        Returns
        -------
        dict of str to (value here, value there)
            By name: ``backbone``, ``weights_sha256``, ``preprocess.crop``, ``precision``, ...
        """
        ours, theirs = self._deciding_fields(), other._deciding_fields()
        return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}

    def _deciding_fields(self) -> dict[str, Any]:
        preprocess = {f"preprocess.{key}": value for key, value in self.preprocess.items()}
        return {
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            **preprocess,
            "precision": self.precision,
        }


@dataclass(frozen=True)
class LayerInfo:
    """One layer's features: `dim` numbers of `dtype` a row, pooled by `pool` from `map_shape`."""

    layer: str
    pool: str
    dim: int
    dtype: str
    map_shape: tuple[int, ...]
    fingerprint: str

    @property
    def spec(self) -> LayerSpec:
        """The layer and its pool."""
        return LayerSpec(self.layer, self.pool)

    @property
    def name(self) -> str:
        """The dataset's name: the layer, or ``LAYER@POOL`` where the pool is not ``avg``."""
        return self.spec.key


@dataclass(frozen=True)
class Extent:
    """A contiguous array inside the file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


@dataclass(frozen=True)
class Layout:
    """Everything in a cache but its rows."""

    version: str
    created: str
    created_by: str
    root: str
    include: list[str]
    exclude: list[str]
    n_rows: int
    extractor: Extractor
    layers: dict[str, LayerInfo]
    extents: dict[str, Extent]  # "images/status", "features/layer3", "checksums/layer3", ...
    identity: tuple[int, int]  # of the file that was read

    @property
    def has_checksums(self) -> bool:
        """Whether every layer has a column of checksums."""
        return all(f"{CHECKSUMS_GROUP}/{name}" in self.extents for name in self.layers)


# What the system says where nothing is wrong with the file. A damaged address gives others.
_SYSTEM_ERRNOS = {
    getattr(errno, name, 0)
    for name in (
        *("EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOLCK", "EAGAIN"),
        *("ENODEV", "ENXIO", "EREMOTEIO", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH"),
    )
} - {0}
_safe_files: set[tuple[int, ...]] = set()  # files, as they stood, that need no second trial


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Look at a cache's layout. Follows no link, runs nothing, reads no other file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CacheFormatError
        If it is not a feature cache, or one that breaks the specification.
    """
    try:
        # A pipe would be waited for, a device read for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CacheFormatError(f"{path} is not a feature cache: it is no regular file")
        state = os.stat(path)
        known = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if known not in _safe_files:
            outcome = crash_guard.probe_in_child(lambda: _check_and_parse(path))
            if outcome == crash_guard.TIMED_OUT:
                raise CacheUnreachableError(
                    f"{path} did not answer within {crash_guard.MAX_WALL_SECONDS:.0f} s; is its "
                    "disk there? It may be sound: try again"
                )
            if outcome == crash_guard.CRASHED:
                raise CacheFormatError(f"{path} is damaged: HDF5 crashes on it, or never ends")
            _safe_files.add(known)
        return _check_and_parse(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; make it with `featurize run`") from None
    except (PermissionError, CacheFormatError, CacheUnreachableError):
        raise
    except Exception as error:  # HDF5 raises anything on hostile bytes
        number = _find_system_errno(error)
        if number:
            raise to_unreachable_error(path, OSError(number, os.strerror(number))) from error
        raise CacheFormatError(f"{path} is not a feature cache, or is damaged: {error}") from error


def to_unreachable_error(path: str | os.PathLike[str], error: OSError) -> CacheUnreachableError:
    """What the system said when a cache was to be read, as an error that names the cache."""
    return CacheUnreachableError(
        f"{path} cannot be read: {error.strerror}. It may be sound: try again"
    )


def _find_system_errno(error: Exception) -> int:
    """The system's own number of what went wrong, where it was the system; else 0."""
    said = re.search(r"errno = (\d+)", str(error))  # how HDF5 passes it on
    number = int(said.group(1)) if said else getattr(error, "errno", None) or 0
    return number if number in _SYSTEM_ERRNOS else 0


def _check_and_parse(path: str | os.PathLike[str]) -> Layout:
    with h5py.File(path, "r") as file:
        for problem in find_violations(file, os.path.getsize(path)):
            raise CacheFormatError(f"{path}: {problem}")
        return _parse_layout(file)


def _parse_layout(file: Any) -> Layout:
    group = file["extractor"].attrs
    extents = {}
    for folder in ("images", "features", CHECKSUMS_GROUP):
        for name, dataset in file.get(folder, {}).items():
            if folder != "images" or name == "path" or name in COLUMN_DTYPES:
                extents[f"{folder}/{name}"] = Extent(
                    dataset.id.get_offset(), dataset.dtype, dataset.shape
                )
    layers = {}
    for name, dataset in file["features"].items():
        layers[name] = LayerInfo(
            layer=dataset.attrs["layer"],
            pool=dataset.attrs["pool"],
            dim=dataset.shape[1],
            dtype=dataset.dtype.str,
            map_shape=tuple(int(n) for n in dataset.attrs["map_shape"]),
            fingerprint=dataset.attrs["fingerprint"],
        )
    # In the order of the file, which is the order they were asked for: by depth.
    layers = dict(sorted(layers.items(), key=lambda item: extents[f"features/{item[0]}"].offset))
    return Layout(
        version=file.attrs["format_version"],
        created=str(file.attrs.get("created", "")),
        created_by=str(file.attrs.get("created_by", "")),
        root=str(file.attrs.get("root", "")),
        include=_parse_json_texts(file.attrs.get("include")),
        exclude=_parse_json_texts(file.attrs.get("exclude")),
        n_rows=int(file.attrs["n_rows"]),
        extractor=Extractor(
            **{name: group[name] for name in EXTRACTOR_TEXT_ATTRS},
            preprocess=Preprocess.from_dict(json.loads(group["preprocess"])),
            environment=_parse_json_object(group.get("environment")),
        ),
        layers=layers,
        extents=extents,
        identity=identify_file(os.fstat(file.id.get_vfd_handle())),
    )


def identify_file(found: os.stat_result) -> tuple[int, int]:
    """What tells one file from another, whatever they are called."""
    return found.st_dev, found.st_ino


def _parse_json_object(text: object) -> dict[str, Any]:
    """A JSON object that nothing depends on: empty where it is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _parse_json_texts(text: object) -> list[str]:
    """A JSON list of texts that nothing depends on: empty where it is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else []
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(t, str) for t in found) else []


def read_rows(fd: int, extent: Extent, rows: np.ndarray) -> np.ndarray:
    """Read rows of an array by their places in the file: a copy of shape (n, ...).

    Not through a memory map: where a file is cut short under a map the system ends the process.

    Parameters
    ----------
    fd : int
        The open file.
    extent : Extent
    rows : int array of shape (n,)
        In any order, from 0.

    Raises
    ------
    CacheReplaced
        If the file ends before them.
    """
    found = np.empty((len(rows), *extent.shape[1:]), extent.dtype)
    size = max(1, MAX_READ_BYTES // max(extent.row_bytes, 1))
    for start in range(0, len(rows), size):
        _read_block(fd, extent, rows[start : start + size], found[start : start + size])
    return found


def _read_block(fd: int, extent: Extent, rows: np.ndarray, into: np.ndarray) -> None:
    first, last = int(rows.min()), int(rows.max())
    if last - first < 4 * len(rows):  # nearly neighbours: one long read is quicker than many
        span = into
        if last - first != len(rows) - 1 or not (np.diff(rows) == 1).all():
            span = np.empty((last - first + 1, *extent.shape[1:]), extent.dtype)
        _read_into(fd, span, extent.offset + first * extent.row_bytes)
        if span is not into:
            into[:] = span[rows - first]
        return
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        _read_into(fd, into[start:stop], extent.offset + int(rows[start]) * extent.row_bytes)


def _read_into(fd: int, array: np.ndarray, offset: int) -> None:
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        if hasattr(os, "preadv"):
            count = os.preadv(fd, [rest], offset)  # leaves alone the position that threads share
        else:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(rest))
            count = len(data)
            rest[:count] = data
        if not count:
            raise CacheReplacedError("it was cut short while it was open")
        rest, offset = rest[count:], offset + count


def find_gaps(extents: Iterable[Extent], file_bytes: int) -> list[tuple[int, int]]:
    """Find where a file holds something other than arrays: `MAX_SEALED_BYTES` at most.

    Returns
    -------
    list of (start, stop)
        Offsets in bytes, ascending.
    """
    gaps, end, left = [], 0, MAX_SEALED_BYTES
    for extent in sorted(extents, key=lambda extent: extent.offset):
        start = min(extent.offset, end + left)
        if start > end:
            gaps.append((end, start))
            left -= start - end
        end = max(end, extent.offset + extent.row_bytes * extent.shape[0])
    if min(file_bytes, end + left) > end:
        gaps.append((end, min(file_bytes, end + left)))
    return gaps


def compute_seal(fd: int, gaps: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Size of an open cache, and a CRC-32 of what lies between its arrays: no run changes those.

    Raises
    ------
    OSError
    """
    seal = 0
    for start, stop in gaps:
        seal = crc32(_read_bytes(fd, stop - start, start), seal)
    return os.fstat(fd).st_size, seal


def _read_bytes(fd: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, count, offset)  # leaves alone the position that threads share
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, count)

"""The file format: its names and numbers, what a cache says of itself, and rows by their places.

The specification is docs/cache-format.md. HDF5 is used twice only: to draw a layout, in
memory (`builder`), and to look at a file's (`layout`). Everything else is bytes at known offsets.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurize.errors import CacheReplacedError
from featurize.files import pread_into
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec

FORMAT_NAME = "headgraft-feature-cache"
FORMAT_VERSION = (1, 1)
SUPPORTED_FEATURES: frozenset[str] = frozenset()
PAGE_BYTES = 4096
CHECKSUMS_GROUP = "checksums"  # since 1.1: a group with a column for each layer
CHECKSUM_DTYPE = "<u4"
COLUMN_DTYPES = {"sha256": "u1", "size": "<i8", "mtime_ns": "<i8", "status": "u1", "reason": "u1"}
EXTRACTOR_TEXT_ATTRS = ("backbone", "weights", "weights_sha256", "precision")
PENDING, MARKED, FAILED = 0, 1, 2
MAX_READ_BYTES = 8 << 20


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
        _read_array(fd, span, extent.offset + first * extent.row_bytes)
        if span is not into:
            into[:] = span[rows - first]
        return
    for run in iter_row_runs(rows):
        _read_array(fd, into[run], extent.offset + int(rows[run.start]) * extent.row_bytes)


def _read_array(fd: int, array: np.ndarray, offset: int) -> None:
    data = array.reshape(-1).view(np.uint8).data
    if pread_into(fd, data, offset) < len(data):
        raise CacheReplacedError("it was cut short while it was open")


def iter_row_runs(rows: np.ndarray) -> Iterator[slice]:
    """Find runs of neighbouring rows, which go in one read or one write.

    Parameters
    ----------
    rows : int array of shape (n,)
        In any order.

    Yields
    ------
    slice
        Of `rows`: from there on each is the one before and one more.
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=False):  # no rows, no run
        yield slice(start, stop)

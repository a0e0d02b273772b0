"""The file format: its constants, the metadata of a cache, and rows read by offset.

The specification is docs/cache-format.md. HDF5 is used only to build a layout in memory
(`builder`) and to read the layout of a file (`layout`). All other access is to bytes at known
offsets.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from featurize.errors import CacheReplacedError
from featurize.files import pread_into
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec
from featurize.sources.listing import Container, ImagePlaces

FORMAT_NAME = "headgraft-feature-cache"
FORMAT_VERSION = (1, 4)
FIT_FEATURE = "preprocess.fit"  # since 1.2; a release that does not know it would crop instead
DECODE_FEATURE = "preprocess.decode"  # since 1.4: other ways to decode than exact and fast
SUPPORTED_FEATURES = frozenset({FIT_FEATURE, DECODE_FEATURE})
PAGE_BYTES = 4096
CHECKSUMS_GROUP = "checksums"  # since 1.1: a group with a column for each layer
CHECKSUM_DTYPE = "<u4"
CONTAINERS_GROUP = "containers"  # since 1.3: the files that hold several images each
CONTAINER_DTYPES = {"size": "<i8", "stamp": "<i8", "check": "<u4"}
PLACE_DTYPES = {"container": "<i4", "offset": "<i8"}  # since 1.3: columns of images
COLUMN_DTYPES = {"sha256": "u1", "size": "<i8", "mtime_ns": "<i8", "status": "u1", "reason": "u1"}
EXTRACTOR_TEXT_ATTRS = ("backbone", "weights", "weights_sha256", "precision")
PENDING, MARKED, FAILED = 0, 1, 2
MAX_READ_BYTES = 8 << 20
CALL_BYTES = 2048  # reading so many takes about as long as one call


@dataclass(frozen=True)
class Extractor:
    """What computed the features: the backbone, its weights and its preprocessing.

    Attributes
    ----------
    backbone, weights : str
        Their names.
    weights_sha256 : str
        SHA-256 of the weights, in hexadecimal.
    preprocess : Preprocess
    precision : str
        One of `featurize.engines.base.PRECISIONS`.
    environment : mapping of str to object
        Versions and the weights file; informative. All other fields determine the features.
    """

    backbone: str
    weights: str
    weights_sha256: str
    preprocess: Preprocess
    precision: str
    environment: Mapping[str, Any]

    def differences(self, other: "Extractor") -> dict[str, tuple[Any, Any]]:
        """Find the fields that determine the features and differ from another extractor's.

        Parameters
        ----------
        other : Extractor

        Returns
        -------
        dict of str to (object, object)
            The two values, this extractor's first, by field name: ``backbone``,
            ``weights_sha256``, ``preprocess.crop``, ``precision``, ...
        """
        own_fields, other_fields = self._deciding_fields(), other._deciding_fields()
        return {
            name: (own_fields[name], other_fields[name])
            for name in own_fields
            if own_fields[name] != other_fields[name]
        }

    def _deciding_fields(self) -> dict[str, Any]:
        values = self.preprocess.to_dict() | {"fit": self.preprocess.fit}  # there or not: the same
        preprocess = {f"preprocess.{key}": values[key] for key in sorted(values)}
        return {
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            **preprocess,
            "precision": self.precision,
        }


def choose_version(preprocess: Preprocess, is_folder: bool) -> tuple[str, list[str]]:
    """Choose the lowest format version that can say what made a cache.

    So every release since 1.0 reads the caches whose images are cropped.

    Parameters
    ----------
    preprocess : Preprocess
    is_folder : bool
        Whether the images are files of a folder.

    Returns
    -------
    version : str
        Major, dot, minor.
    required_features : list of str
        What a reader must understand.
    """
    required = list_required_features(preprocess.fit, preprocess.decode)
    if DECODE_FEATURE in required:
        return "1.4", required
    return "1.3" if not is_folder else "1.2" if required else "1.1", required


def list_required_features(fit: str, decode: str) -> list[str]:
    """List what a reader must understand of a preprocessing.

    Parameters
    ----------
    fit, decode : str
        Of the preprocessing.

    Returns
    -------
    list of str
        Names of `SUPPORTED_FEATURES`, sorted.
    """
    required = [] if decode in ("exact", "fast") else [DECODE_FEATURE]
    return required if fit == "crop" else [*required, FIT_FEATURE]


@dataclass(frozen=True)
class ContainerRecord(Container):
    """A file that holds images of a cache, as it was when it was listed.

    Attributes
    ----------
    check : int
        `compute_place_check` of its rows.
    """

    check: int


@dataclass(frozen=True)
class LayerInfo:
    """Metadata of one layer's features.

    Attributes
    ----------
    layer, pool : str
    dim : int
        Numbers per row.
    dtype : str
        ``<f4`` or ``<f2``.
    map_shape : tuple of int
        Shape of one image's activations before pooling.
    fingerprint : str
        See `featurize.fingerprint.compute_fingerprint`.
    """

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
        """Name of the dataset: the layer, or ``LAYER@POOL`` if the pool is not ``avg``."""
        return self.spec.key


@dataclass(frozen=True)
class Extent:
    """A contiguous array inside the file.

    Attributes
    ----------
    offset : int
        Of the first byte in the file.
    dtype : numpy.dtype
    shape : tuple of int
    """

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


@dataclass(frozen=True)
class Layout:
    """Everything in a cache except its rows.

    Attributes
    ----------
    version : str
        Of the format, as ``1.1``.
    created_by, root : str
        Program and image folder; informative.
    include, exclude : list of str
        The patterns that selected the images; informative.
    source : dict of str to object
        How the source of the images was read; informative, empty before 1.3.
    containers : list of ContainerRecord
        Empty where each image is a file of its own.
    n_rows : int
    extractor : Extractor
    layers : dict of str to LayerInfo
        By dataset name, shallowest first.
    extents : dict of str to Extent
        By dataset path: ``images/status``, ``features/layer3``, ``checksums/layer3``, ...
    identity : (int, int)
        Of the file that was read, see `featurize.cache.layout.identify_file`.
    """

    version: str
    created_by: str
    root: str
    include: list[str]
    exclude: list[str]
    source: dict[str, Any]
    containers: list[ContainerRecord]
    n_rows: int
    extractor: Extractor
    layers: dict[str, LayerInfo]
    extents: dict[str, Extent]
    identity: tuple[int, int]

    @property
    def has_checksums(self) -> bool:
        """Whether every layer has a column of checksums."""
        return all(f"{CHECKSUMS_GROUP}/{name}" in self.extents for name in self.layers)


def compute_place_check(stamps: np.ndarray, offsets: np.ndarray) -> int:
    """Compute what tells that a container's rows are as its index said.

    A release that knows no containers, or a run on files of the same names, changes the rows'
    stamps and leaves the container as it was.

    Parameters
    ----------
    stamps, offsets : int64 arrays of shape (n,)
        Of the container's rows, ascending by row.

    Returns
    -------
    int
        CRC-32 of the stamps, then the offsets, little-endian.
    """
    return crc32(offsets.astype("<i8").tobytes(), crc32(stamps.astype("<i8").tobytes()))


def list_container_records(places: ImagePlaces, stamps: np.ndarray) -> list[ContainerRecord]:
    """List what a cache records of each container.

    Parameters
    ----------
    places : ImagePlaces
    stamps : int64 array of shape (N,)
        Of the images.

    Returns
    -------
    list of ContainerRecord
        In the order of `places`.
    """
    return [
        ContainerRecord(
            container.name,
            container.size,
            container.stamp,
            compute_place_check(stamps[rows], places.offsets[rows]),
        )
        for container, rows in zip(places.containers, places.group_rows(), strict=True)
    ]


def read_rows(fd: int, extent: Extent, rows: np.ndarray) -> np.ndarray:
    """Read rows of an array by their offsets in the file.

    No memory map is used: the system kills a process that reads a map of a truncated file.

    Parameters
    ----------
    fd : int
        The open file.
    extent : Extent
    rows : int array of shape (n,)
        Row numbers from 0, in any order.

    Returns
    -------
    array of shape (n, ...)
        A copy, of the extent's dtype.

    Raises
    ------
    CacheReplacedError
        If the file ends before one of the rows.
    """
    values = np.empty((len(rows), *extent.shape[1:]), extent.dtype)
    block_rows = max(1, MAX_READ_BYTES // max(extent.row_bytes, 1))
    for start in range(0, len(rows), block_rows):
        _read_block(
            fd, extent, rows[start : start + block_rows], values[start : start + block_rows]
        )
    return values


def _read_block(fd: int, extent: Extent, rows: np.ndarray, out: np.ndarray) -> None:
    first, last = int(rows.min()), int(rows.max())
    span_bytes = (last - first + 1) * extent.row_bytes
    # Close together: one long read is faster than many short ones.
    is_dense = span_bytes <= len(rows) * (4 * extent.row_bytes + CALL_BYTES)
    if is_dense and span_bytes > 4 * MAX_READ_BYTES and len(rows) > 1:
        half = len(rows) // 2
        _read_block(fd, extent, rows[:half], out[:half])
        _read_block(fd, extent, rows[half:], out[half:])
        return
    if is_dense:
        span = out
        if last - first != len(rows) - 1 or not (np.diff(rows) == 1).all():
            span = np.empty((last - first + 1, *extent.shape[1:]), extent.dtype)
        _read_array(fd, span, extent.offset + first * extent.row_bytes)
        if span is not out:
            out[:] = span[rows - first]
        return
    for run in iter_row_runs(rows):
        _read_array(fd, out[run], extent.offset + int(rows[run.start]) * extent.row_bytes)


def _read_array(fd: int, array: np.ndarray, offset: int) -> None:
    data = array.reshape(-1).view(np.uint8).data
    if pread_into(fd, data, offset) < len(data):
        raise CacheReplacedError("it was cut short while it was open")


def iter_row_runs(rows: np.ndarray) -> Iterator[slice]:
    """Split rows into runs of consecutive numbers, which take one read or one write each.

    Parameters
    ----------
    rows : int array of shape (n,)
        Row numbers, in any order.

    Yields
    ------
    slice
        Of `rows`: each number is the previous one plus one.
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=False):  # no rows give no run
        yield slice(start, stop)

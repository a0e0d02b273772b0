"""Read a feature cache: rows by memory map, and only rows that are marked."""

import os
import re
import weakref
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from featurize.cache import integrity
from featurize.cache.format import (
    CHECKSUMS_GROUP,
    FAILED,
    MARKED,
    PENDING,
    Extent,
    Extractor,
    LayerInfo,
    Layout,
    read_rows,
)
from featurize.cache.layout import identify_file, read_layout, to_unreachable_error
from featurize.errors import (
    CacheFormatError,
    CacheReplacedError,
    RowNotReadyError,
    UnknownLayerError,
    UnknownPathError,
)
from featurize.files import pread_into
from featurize.images.reasons import REASONS
from featurize.text import list_first

# A part that is empty, . or ..; a zero byte.
_NON_PLAIN_PATH = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|\0")
MAX_SEALED_BYTES = 1 << 18  # of what lies between the arrays: kilobytes, in any cache of ours


class FeatureCache:
    """A feature cache, opened for reading.

    Opening looks at the layout alone; HDF5 is closed again before this returns, so a
    cache can be sent to worker processes and read while a run is still filling it. A file that
    is overwritten or cut short while it is open is noticed: then reading raises
    `CacheReplacedError`.

    Parameters
    ----------
    path : path
        The cache file.

    Attributes
    ----------
    extractor : Extractor
        Backbone, weights, preprocessing.
    layers : dict of str to LayerInfo
        By dataset name, shallowest first.
    n_rows : int
    root : str
        The image folder it was made from; informative.
    include, exclude : list of str
        The patterns that chose its images; informative.

    Raises
    ------
    FileNotFoundError, CacheFormatError
        If there is no such file, or it is not a feature cache.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        found = self._open()
        self.format_version = found.version
        self.created_by = found.created_by
        self.root = found.root
        self.include, self.exclude = found.include, found.exclude
        self.n_rows = found.n_rows
        self.extractor: Extractor = found.extractor
        self.layers: dict[str, LayerInfo] = found.layers
        self._extents = found.extents
        self.has_checksums = found.has_checksums
        self._maps: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return (
            f"FeatureCache({str(self.path)!r}: {self.n_rows} rows, "
            f"{self.extractor.backbone}, layers {', '.join(self.layers)})"
        )

    def _open(self) -> Layout:
        # The file itself is held, not its name: a cache that is grown is another file of the
        # same name, in which other rows lie in these places.
        while True:
            found = read_layout(self.path)
            fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            if found.identity == identify_file(os.fstat(fd)):
                break
            os.close(fd)  # replaced in between
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        self._gaps = _find_gaps(found.extents.values(), os.fstat(fd).st_size)
        self._seal = self._compute_seal()
        return found

    def _compute_seal(self) -> tuple[int, int]:
        """Compute the file's size and a checksum of what lies between its arrays."""
        seal = 0  # no run changes either
        try:
            for start, stop in self._gaps:
                data = memoryview(bytearray(stop - start))
                seal = crc32(data[: pread_into(self._fd, data, start)], seal)
        except OSError as error:
            raise to_unreachable_error(self.path, error) from error
        return os.fstat(self._fd).st_size, seal

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that is no longer the one that was opened.

        Raises
        ------
        CacheReplaced
        """
        if self._compute_seal() != self._seal:
            raise CacheReplacedError(
                f"{self.path} was overwritten or cut short while it was open; open it again"
            )

    def _open_memmap(self, name: str) -> np.ndarray:
        extent = self._extents[name]
        with os.fdopen(os.dup(self._fd), "rb") as file:
            return np.memmap(file, extent.dtype, "r", extent.offset, extent.shape)

    def column(self, name: str) -> np.ndarray:
        """One column of ``images/`` as it stands in the file now, copied: shape (N, ...)."""
        # A plain read, not the map: columns change while a run fills the cache.
        return self._read_rows(f"images/{name}", np.arange(self.n_rows))

    def _read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        try:
            found = read_rows(self._fd, self._extents[name], rows)
        except CacheReplacedError as error:
            raise CacheReplacedError(f"{self.path}: {error}; open it again") from error
        except OSError as error:
            raise to_unreachable_error(self.path, error) from error
        self.check_unchanged()  # afterwards: what was read is of the file that was opened
        return found

    def checksums(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Checksums of some rows of a layer, as in the file: uint32 (n, 2); zeros are none."""
        name = f"{CHECKSUMS_GROUP}/{self.layer(layer).name}"
        if name not in self._extents:
            return np.zeros((len(rows), 2), np.uint32)
        return self._read_rows(name, rows)

    @cached_property
    def paths(self) -> list[str]:
        """Every row's image, relative to the folder, sorted: the row key.

        Raises
        ------
        CacheFormatError
            If one is absolute, leads out of the folder, is repeated or out of order.
        """
        column = self.column("path")
        try:
            paths = [path.decode() for path in column.tolist()]
        except UnicodeDecodeError as error:
            raise CacheFormatError(f"{self.path}: a path is not UTF-8: {error}") from error
        for before, path in zip(["", *paths], paths, strict=False):
            if path <= before:
                raise CacheFormatError(f"{self.path}: path {path!r} is out of order or repeated")
            if not _NON_PLAIN_PATH.search(path):
                continue
            if path.startswith("/") or ".." in path.split("/"):
                raise CacheFormatError(f"{self.path}: path {path!r} leads out of the folder")
            raise CacheFormatError(f"{self.path}: path {path!r} is not the plain one of a file")
        return paths

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number by path."""
        return {path: row for row, path in enumerate(self.paths)}

    def rows_for(self, paths: Sequence[str]) -> np.ndarray:
        """Look up the rows of images, marked or not.

        Parameters
        ----------
        paths : sequence of str
            n of them, written as in `paths`, in any order.

        Returns
        -------
        intp array of shape (n,)

        Raises
        ------
        UnknownPathError
            If some are not in the cache; the message lists the first three.
        """
        row_of = self.row_of
        absent = [path for path in paths if path not in row_of]
        if absent:
            raise UnknownPathError(
                f"{len(absent):,} of {len(paths):,} images are not in {self.path}: "
                f"{list_first(absent)}; its paths look like {self.paths[0]!r}, below {self.root}"
            )
        return np.array([row_of[path] for path in paths], np.intp)

    @property
    def status(self) -> np.ndarray:
        """uint8 (N,): 0 pending, 1 ok, 2 failed; read afresh at every access."""
        return self.column("status")

    @property
    def counts(self) -> dict[str, int]:
        """How many rows are ``ok``, ``failed`` and ``pending``."""
        count = np.bincount(self.status, minlength=3)
        return {
            "ok": int(count[MARKED]),
            "failed": int(count[FAILED]),
            "pending": int(count[PENDING]),
        }

    @property
    def failures(self) -> dict[str, str]:
        """Why each failed row failed, by path."""
        reason = self.column("reason")
        return {
            self.paths[row]: REASONS.get(int(reason[row]), f"reason {reason[row]}")
            for row in np.flatnonzero(self.status == FAILED)
        }

    def layer(self, name: str | None = None) -> LayerInfo:
        """One layer by its dataset name; without a name, the deepest.

        Raises
        ------
        UnknownLayer
        """
        if name is None:
            return next(reversed(self.layers.values()))
        if name not in self.layers:
            raise UnknownLayerError(
                f"{self.path} has no layer {name!r}; it has {', '.join(self.layers)}. "
                f"Add one with `featurize run ... --layers {name.replace('@', ':')}`"
            )
        return self.layers[name]

    def features(
        self, layer: str | None = None, rows: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Features of marked rows.

        Parameters
        ----------
        layer : str, optional
            Dataset name; the deepest if not given.
        rows : int array of shape (n,), optional
            Row numbers. Not given means every row, which all have to be marked.

        Returns
        -------
        float32 or float16 array of shape (n, D)
            For every row at once a read-only memory map, shared by all processes that
            open it; else a copy of the rows asked for. The system ends a process that reads a
            map whose file was cut short; a copy is made without one.

        Raises
        ------
        RowNotReady
            If a row asked for is pending or failed.
        CacheReplaced
            If the file was overwritten or cut short since it was opened.
        UnknownLayer
        """
        info = self.layer(layer)
        self.check_ready(rows)
        if rows is None:
            return self.mapped(info.name)
        return self.stored(info.name, np.arange(self.n_rows)[np.asarray(rows, np.intp)])

    def stored(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """What a layer holds of some rows, marked or not: a copy of shape (n, D).

        Parameters
        ----------
        rows : int array of shape (n,)
            In any order, from 0.

        Raises
        ------
        CacheReplaced, UnknownLayer
        """
        return self._read_rows(f"features/{self.layer(layer).name}", rows)

    def check_ready(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """Refuse rows that have no features.

        Raises
        ------
        RowNotReady
            If one of `rows`, or of all rows where none are given, is pending or failed.
        """
        status = self.status
        wanted = status if rows is None else status[np.asarray(rows, np.intp)]
        if (wanted != MARKED).any():
            raise RowNotReadyError(
                f"{self.path}: {int((wanted != MARKED).sum())} of {len(wanted)} rows asked for "
                "are pending or failed; `featurize info` lists them, `featurize run` completes them"
            )

    def mapped(self, layer: str) -> np.ndarray:
        """Map every row of a layer, marked or not: for callers that look at `status` themselves.

        Returns
        -------
        read-only memory map of shape (N, D)

        Raises
        ------
        CacheReplaced, UnknownLayer
        """
        info = self.layer(layer)
        self.check_unchanged()
        if info.name not in self._maps:
            self._maps[info.name] = self._open_memmap(f"features/{info.name}")
        return self._maps[info.name]

    def __getstate__(self) -> dict[str, Any]:
        # Maps are opened anew in another process, rather than copied into it.
        return {k: v for k, v in self.__dict__.items() if k != "_fd"} | {"_maps": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        seal = self._seal
        if self._open().extents != self._extents or self._seal != seal:
            raise CacheReplacedError(f"{self.path} was replaced since it was opened; open it again")

    def verify(self) -> list[str]:
        """Check the rows against the specification; the layout was checked on opening.

        Returns
        -------
        list of str
            What is wrong; empty where nothing is.
        """
        return integrity.find_row_violations(self)

    def damaged_rows(self) -> np.ndarray:
        """Marked rows whose numbers, in some layer, are not those that were written: bool (N,)."""
        return integrity.find_damaged_rows(self)

    @property
    def unchecked_rows(self) -> int:
        """How many marked rows lack a checksum in some layer: those of format 1.0 have none."""
        return integrity.count_unchecked_rows(self)


def _find_gaps(extents: Iterable[Extent], size: int) -> list[tuple[int, int]]:
    """Where a file holds something other than the arrays, `MAX_SEALED_BYTES` bytes at most."""
    gaps, end, left = [], 0, MAX_SEALED_BYTES
    for extent in sorted(extents, key=lambda extent: extent.offset):
        start = min(extent.offset, end + left)
        if start > end:
            gaps.append((end, start))
            left -= start - end
        end = max(end, extent.offset + extent.row_bytes * extent.shape[0])
    if min(size, end + left) > end:
        gaps.append((end, min(size, end + left)))
    return gaps


def find_cache_violations(path: str | os.PathLike[str]) -> list[str]:
    """Everything that breaks the specification in a file, its layout and its rows.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    try:
        return FeatureCache(path).verify()
    except CacheFormatError as error:
        return [str(error)]

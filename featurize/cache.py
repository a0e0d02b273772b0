"""Read a feature cache: rows by memory map, and only rows that are marked."""

import os
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featurize import layout
from featurize.errors import CacheFormatError, RowNotReady, UnknownLayer
from featurize.images import REASONS
from featurize.layout import FAILED, MARKED, PENDING, Extractor, LayerInfo

BLOCK_BYTES = 64 << 20  # how much a pass over features holds at a time


class FeatureCache:
    """A feature cache, opened for reading.

    Opening looks at the layout alone; HDF5 is closed again before this returns, so a
    cache can be sent to worker processes and read while a run is still filling it.

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
        self.n_rows = found.n_rows
        self.extractor: Extractor = found.extractor
        self.layers: dict[str, LayerInfo] = found.layers
        self._extents = found.extents
        self._maps: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return (
            f"FeatureCache({str(self.path)!r}: {self.n_rows} rows, "
            f"{self.extractor.backbone}, layers {', '.join(self.layers)})"
        )

    def _open(self) -> layout.Layout:
        # The file itself is held, not its name: a cache that is grown is another file of the
        # same name, in which other rows lie in these places.
        while True:
            found = layout.read(self.path)
            fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            if found.identity == layout.identity(os.fstat(fd)):
                break
            os.close(fd)  # replaced in between
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        return found

    def _map(self, name: str) -> np.ndarray:
        extent = self._extents[name]
        with os.fdopen(os.dup(self._fd), "rb") as file:
            return np.memmap(file, extent.dtype, "r", extent.offset, extent.shape)

    def column(self, name: str) -> np.ndarray:
        """One column of ``images/`` as it stands in the file now, copied: shape (N, ...)."""
        # A plain read, not the map: columns change while a run fills the cache.
        extent = self._extents[f"images/{name}"]
        data = bytearray()
        while len(data) < extent.row_bytes * self.n_rows:
            missing = extent.row_bytes * self.n_rows - len(data)
            found = _read_at(self._fd, min(missing, BLOCK_BYTES), extent.offset + len(data))
            if not found:
                raise CacheFormatError(f"{self.path} was cut short while it was open")
            data += found
        return np.frombuffer(data, extent.dtype).reshape(extent.shape)

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
            if path.startswith("/") or ".." in path.split("/"):
                raise CacheFormatError(f"{self.path}: path {path!r} leads out of the folder")
        return paths

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number by path."""
        return {path: row for row, path in enumerate(self.paths)}

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
            raise UnknownLayer(
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
            open it; else a copy of the rows asked for.

        Raises
        ------
        RowNotReady
            If a row asked for is pending or failed.
        UnknownLayer
        """
        info = self.layer(layer)
        status = self.status
        wanted = status if rows is None else status[np.asarray(rows, np.intp)]
        if (wanted != MARKED).any():
            raise RowNotReady(
                f"{self.path}: {int((wanted != MARKED).sum())} of {len(wanted)} rows asked for "
                "are pending or failed; `featurize info` lists them, `featurize run` completes them"
            )
        mapped = self.mapped(info.name)
        return mapped if rows is None else mapped[np.asarray(rows, np.intp)]

    def mapped(self, layer: str) -> np.ndarray:
        """Map every row of a layer, marked or not: for callers that look at `status` themselves.

        Returns
        -------
        read-only memory map of shape (N, D)
        """
        info = self.layer(layer)
        if info.name not in self._maps:
            self._maps[info.name] = self._map(f"features/{info.name}")
        return self._maps[info.name]

    def __getstate__(self) -> dict[str, Any]:
        # Maps are opened anew in another process, rather than copied into it.
        return {k: v for k, v in self.__dict__.items() if k != "_fd"} | {"_maps": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._open().extents != self._extents:
            raise CacheFormatError(f"{self.path} was replaced since it was opened; open it again")

    def verify(self) -> list[str]:
        """Check the rows against the specification; the layout was checked on opening.

        Returns
        -------
        list of str
            What is wrong; empty where nothing is.
        """
        found = []
        try:
            _ = self.paths
        except CacheFormatError as error:
            found.append(str(error))
        status, reason = self.status, self.column("reason")
        if (status > FAILED).any():
            found.append(f"status of row {int(np.argmax(status > FAILED))} is not 0, 1 or 2")
        if (reason[status == FAILED] == 0).any():
            found.append("a failed row gives no reason")
        if not self.column("sha256")[status == MARKED].any(axis=1).all():
            found.append("a marked row has no sha256")
        for name in self.layers:
            mapped = self.mapped(name)
            step = max(1, BLOCK_BYTES // self._extents[f"features/{name}"].row_bytes)
            for start in range(0, self.n_rows, step):
                marked = np.flatnonzero(status[start : start + step] == MARKED)
                finite = np.isfinite(mapped[start + marked]).all(axis=1)
                for row in start + marked[~finite]:
                    found.append(f"features/{name}: row {row} is marked but not finite")
        return found


def _read_at(fd: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, count, offset)  # leaves alone the position that threads share
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, count)


def problems_of(path: str | os.PathLike[str]) -> list[str]:
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

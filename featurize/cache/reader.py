"""Read a feature cache; features of marked rows only."""

import os
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featurize.cache import integrity
from featurize.cache.format import (
    CHECKSUMS_GROUP,
    FAILED,
    MARKED,
    PENDING,
    Extractor,
    LayerInfo,
    Layout,
    read_rows,
)
from featurize.cache.layout import identify_file, read_layout, to_unreachable_error
from featurize.errors import (
    CacheReplacedError,
    RowNotReadyError,
    UnknownLayerError,
    UnknownPathError,
)
from featurize.images.reasons import REASONS
from featurize.text import did_you_mean, list_first


class FeatureCache:
    """A feature cache, opened for reading.

    Opening reads the layout only, and closes HDF5 again. So a cache can be pickled for worker
    processes, and read while a run fills it. If the file is overwritten or truncated while it is
    open, reading raises `CacheReplacedError`.

    Parameters
    ----------
    path : path
        The cache file.

    Attributes
    ----------
    extractor : Extractor
        What made the features.
    layers : dict of str to LayerInfo
        By dataset name, shallowest first.
    n_rows : int
        Number of rows N.
    root : str
        The image folder, or where else the images are; informative.
    include, exclude : list of str
        The patterns that selected the images; informative.
    source : dict of str to object
        How the source of the images was read; informative.
    containers : list of ContainerRecord
        Shards, archives or tables that hold the images; empty where each is a file.
    format_version, created_by : str
        As ``1.1``, and the program that wrote the file.
    has_checksums : bool
        Whether every layer has a column of checksums.

    Raises
    ------
    FileNotFoundError, CacheFormatError, CacheUnreachableError
        If there is no such file, it is not a feature cache, or it cannot be read now.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        layout = self._open()
        self.format_version, self.created_by = layout.version, layout.created_by
        self.root, self.source = layout.root, layout.source
        self.include, self.exclude = layout.include, layout.exclude
        self.containers = layout.containers
        self.n_rows = layout.n_rows
        self.extractor: Extractor = layout.extractor
        self.layers: dict[str, LayerInfo] = layout.layers
        self._extents, self.has_checksums = layout.extents, layout.has_checksums
        self._maps: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return (
            f"FeatureCache({str(self.path)!r}: {self.n_rows} rows, "
            f"{self.extractor.backbone}, layers {', '.join(self.layers)})"
        )

    def _open(self) -> Layout:
        while True:
            layout = read_layout(self.path)
            fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            if layout.identity == identify_file(os.fstat(fd)):
                break
            os.close(fd)  # replaced between the two calls
        self._fd = fd  # kept: a grown cache is another file of that name, with other rows there
        weakref.finalize(self, os.close, fd)
        self._gaps = integrity.find_gaps(layout.extents.values(), os.fstat(fd).st_size)
        self._seal = self._compute_seal()
        return layout

    def _compute_seal(self) -> tuple[int, int]:
        """Return the file's size and a checksum of the bytes between its arrays.

        A run that fills the cache changes neither.
        """
        try:
            checksum = integrity.checksum_gaps(self._fd, self._gaps)
        except OSError as error:
            raise to_unreachable_error(self.path, error) from error
        return os.fstat(self._fd).st_size, checksum

    def check_unchanged(self) -> None:
        """Check that the file is still the one that was opened.

        Raises
        ------
        CacheReplacedError
            If it was overwritten or truncated.
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
        """Read a column of ``images/`` as it is in the file now.

        Parameters
        ----------
        name : {"path", "sha256", "size", "mtime_ns", "status", "reason", "container", "offset"}
            The last two only with `containers`.

        Returns
        -------
        array of shape (N, ...)
            A copy, as a run may fill the cache meanwhile.
        """
        return self._read_rows(f"images/{name}", np.arange(self.n_rows))

    def _read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        try:
            values = read_rows(self._fd, self._extents[name], rows)
        except CacheReplacedError as error:
            raise CacheReplacedError(f"{self.path}: {error}; open it again") from error
        except OSError as error:
            raise to_unreachable_error(self.path, error) from error
        self.check_unchanged()  # after reading, so the rows are of the file that was opened
        return values

    def checksums(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Read the stored checksums of some rows of a layer.

        Parameters
        ----------
        layer : str
            Dataset name.
        rows : int array of shape (n,)
            Row numbers from 0.

        Returns
        -------
        uint32 array of shape (n, 2)
            See `featurize.cache.integrity`; zeros where there is none.
        """
        name = f"{CHECKSUMS_GROUP}/{self.layer(layer).name}"
        if name not in self._extents:
            return np.zeros((len(rows), 2), np.uint32)
        return self._read_rows(name, rows)

    @cached_property
    def paths(self) -> list[str]:
        """Path of every row's image, relative to the folder, sorted: the row key.

        Raises
        ------
        CacheFormatError
            If a path is absolute, leads out of the folder, is repeated or out of order.
        """
        return integrity.decode_paths(self.column("path"), self.path)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number by path."""
        return {path: row for row, path in enumerate(self.paths)}

    def rows_for(self, paths: Sequence[str]) -> np.ndarray:
        """Look up the rows of images, marked or not.

        Parameters
        ----------
        paths : sequence of str
            n paths, written as in `paths`, in any order.

        Returns
        -------
        intp array of shape (n,)
            Row numbers, in the order of `paths`.

        Raises
        ------
        UnknownPathError
            If any is not in the cache; the message lists the first three.
        """
        row_of = self.row_of
        unknown = [path for path in paths if path not in row_of]
        if unknown:
            raise UnknownPathError(
                f"{len(unknown):,} of {len(paths):,} images are not in {self.path}: "
                f"{list_first(unknown)}; its paths look like {self.paths[0]!r}, below {self.root}"
            )
        return np.array([row_of[path] for path in paths], np.intp)

    @property
    def status(self) -> np.ndarray:
        """Status of each row, uint8 (N,): 0 pending, 1 ok, 2 failed; read at every access."""
        return self.column("status")

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows that are ``ok``, ``failed`` and ``pending``."""
        count = np.bincount(self.status, minlength=3).item
        return {"ok": count(MARKED), "failed": count(FAILED), "pending": count(PENDING)}

    @property
    def failures(self) -> dict[str, str]:
        """Reason of each failed row, by path."""
        reasons = self.column("reason")
        return {
            self.paths[row]: REASONS.get(int(reasons[row]), f"reason {reasons[row]}")
            for row in np.flatnonzero(self.status == FAILED)
        }

    def layer(self, name: str | None = None) -> LayerInfo:
        """Return the metadata of a layer.

        Parameters
        ----------
        name : str, optional
            Dataset name; default the deepest layer.

        Returns
        -------
        LayerInfo
            Where it is cut and pooled, and the shape of its maps.

        Raises
        ------
        UnknownLayerError
            If the cache has no such layer.
        """
        if name is None:
            return next(reversed(self.layers.values()))
        if name not in self.layers:
            raise UnknownLayerError(
                f"{self.path} has no layer {name!r}{did_you_mean(name, self.layers)}; "
                f"it has {', '.join(self.layers)}. "
                f"Add one with `featurize run ... --layers {name.replace('@', ':')}`"
            )
        return self.layers[name]

    def features(
        self, layer: str | None = None, rows: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Return features of marked rows.

        Parameters
        ----------
        layer : str, optional
            Dataset name; default the deepest layer.
        rows : int array of shape (n,), optional
            Row numbers; default all rows, which must then all be marked.

        Returns
        -------
        float32 or float16 array of shape (n, D)
            With `rows` a copy. Without, a read-only memory map that all processes share; the system
            kills a process that reads a map of a truncated file.

        Raises
        ------
        RowNotReadyError
            If one of the rows is pending or failed.
        CacheReplacedError, UnknownLayerError
            If the file was overwritten or truncated since it was opened, or lacks the layer.
        """
        info = self.layer(layer)
        self.check_ready(rows)
        if rows is None:
            return self.mapped(info.name)
        return self.stored(info.name, np.arange(self.n_rows)[np.asarray(rows, np.intp)])

    def stored(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Read a layer's stored values of some rows, marked or not.

        Parameters
        ----------
        layer : str
            Dataset name.
        rows : int array of shape (n,)
            Row numbers from 0, in any order.

        Returns
        -------
        float32 or float16 array of shape (n, D)
            A copy.

        Raises
        ------
        CacheReplacedError, UnknownLayerError
            As in `features`.
        """
        return self._read_rows(f"features/{self.layer(layer).name}", rows)

    def check_ready(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """Check that rows have features.

        Parameters
        ----------
        rows : int array of shape (n,), optional
            Row numbers; default all rows.

        Raises
        ------
        RowNotReadyError
            If one of the rows is pending or failed.
        """
        status = self.status if rows is None else self.status[np.asarray(rows, np.intp)]
        if (status != MARKED).any():
            raise RowNotReadyError(
                f"{self.path}: {int((status != MARKED).sum())} of {len(status)} rows asked for "
                "are pending or failed; `featurize info` lists them, `featurize run` completes them"
            )

    def mapped(self, layer: str) -> np.ndarray:
        """Map all rows of a layer, marked or not, for callers that check `status` themselves.

        Parameters
        ----------
        layer : str
            Dataset name.

        Returns
        -------
        read-only memory map of shape (N, D)
            A line for each row.

        Raises
        ------
        CacheReplacedError, UnknownLayerError
            As in `features`.
        """
        info = self.layer(layer)
        self.check_unchanged()
        if info.name not in self._maps:
            self._maps[info.name] = self._open_memmap(f"features/{info.name}")
        return self._maps[info.name]

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the maps itself; pickling would copy them.
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
            One sentence per violation; empty for a sound cache.
        """
        return integrity.find_row_violations(self)

    def damaged_rows(self) -> np.ndarray:
        """Find marked rows whose features, in any layer, differ from what was written.

        Returns
        -------
        bool array of shape (N,)
            True where a row is damaged.
        """
        return integrity.find_damaged_rows(self)

    @property
    def unchecked_rows(self) -> int:
        """Number of marked rows without a checksum in some layer; format 1.0 has none."""
        return integrity.count_unchecked_rows(self)

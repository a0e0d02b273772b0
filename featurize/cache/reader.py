"""Read a feature cache, of one file or of parts; features of marked rows only."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from featurize.cache import integrity
from featurize.cache.format import (
    CHECKSUMS_GROUP,
    FAILED,
    MARKED,
    PENDING,
    Extractor,
    LayerInfo,
)
from featurize.cache.parts.cache_file import CacheFile
from featurize.cache.parts.index import PartsIndex
from featurize.cache.parts.joined_files import JoinedFiles
from featurize.cache.parts.keyed_rows import KeyedRows
from featurize.cache.parts.opening import open_parts
from featurize.cache.parts.stacked_rows import StackedRows, wrap_rows
from featurize.errors import RowNotReadyError, UnknownLayerError
from featurize.images.reasons import REASONS
from featurize.text import did_you_mean


class FeatureCache(KeyedRows):
    """A feature cache, opened for reading: a file, or a folder of parts.

    Opening reads the layout only, and closes HDF5 again. So a cache can be pickled for worker
    processes, and read while a run fills it. If a file is overwritten or truncated while it is
    open, reading raises `CacheReplacedError`. Of a folder of parts, 64 files are open at most.

    Parameters
    ----------
    path : path
        The cache file, or the folder of its parts.

    Attributes
    ----------
    extractor : Extractor
        What made the features.
    layers : dict of str to LayerInfo
        By dataset name, shallowest first.
    n_rows : int
        Number of rows N, of all parts.
    files : tuple of Path
        The cache file, or those of its parts in the order of their rows.
    index : PartsIndex or None
        Which part has which images; None for a single file.
    root : str
        The image folder, or where else the images are; informative.
    include, exclude : list of str
        The patterns that selected the images; informative.
    source : dict of str to object
        How the source of the images was read; informative.
    containers : list of ContainerRecord
        Shards, archives or tables that hold the images; empty where each is a file. One that lies
        in two parts is there twice.
    format_version, created_by : str
        As ``1.1``, and the program that wrote the file, or the first part.
    has_checksums : bool
        Whether every layer has a column of checksums.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a part is missing.
    CacheFormatError
        If it is not a feature cache, or its parts are not of one cache.
    CacheUnreachableError
        If it cannot be read now.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        if path.is_dir():
            self._take(path, *open_parts(path))
        else:
            self._take(path, None, JoinedFiles([CacheFile(path)], [""]))

    @classmethod
    def open_some(cls, folder: str | os.PathLike[str], parts: Collection[str]) -> "FeatureCache":
        """Open some parts of a cache of parts, as if there were no others.

        Parameters
        ----------
        folder : path
            The cache of parts.
        parts : collection of str
            Their names, at least one, as ``part-00000.h5``.

        Returns
        -------
        FeatureCache
            Of the rows of these parts.

        Raises
        ------
        FileNotFoundError, CacheFormatError, CacheUnreachableError
            As opening the whole does.
        """
        cache = cls.__new__(cls)
        cache._take(Path(folder), *open_parts(Path(folder), parts))
        return cache

    def _take(self, path: Path, index: PartsIndex | None, joined: JoinedFiles) -> None:
        self.path, self.index, self._joined = path, index, joined
        self.files = tuple(file.path for file in joined.files)
        layouts = [file.layout for file in joined.files]
        layout = layouts[0]
        self.format_version, self.created_by = layout.version, layout.created_by
        self.root, self.source = layout.root, layout.source
        self.include, self.exclude = layout.include, layout.exclude
        self.containers = [record for each in layouts for record in each.containers]
        self.n_rows = joined.n_rows
        self.extractor: Extractor = layout.extractor
        self.layers: dict[str, LayerInfo] = layout.layers
        self.has_checksums = all(each.has_checksums for each in layouts)

    def __repr__(self) -> str:
        n_parts = "" if self.index is None else f"{len(self.files)} parts, "
        return (
            f"FeatureCache({str(self.path)!r}: {n_parts}{self.n_rows} rows, "
            f"{self.extractor.backbone}, layers {', '.join(self.layers)})"
        )

    def check_unchanged(self) -> None:
        """Check that every file is still the one that was opened.

        Raises
        ------
        CacheReplacedError
            If one was overwritten or truncated.
        """
        for file in self._joined.files:
            file.check_unchanged()

    def column(self, name: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Read a column of ``images/`` as it is in the file now.

        Parameters
        ----------
        name : {"path", "sha256", "size", "mtime_ns", "status", "reason", "container", "offset"}
            The last two only with `containers`; -1 in parts that have none.
        rows : int array of shape (n,), optional
            Row numbers; default all rows.

        Returns
        -------
        array of shape (n, ...)
            A copy, as a run may fill the cache meanwhile.
        """
        if rows is not None:
            rows = wrap_rows(np.asarray(rows, np.intp), self.n_rows)
        return self._joined.read(f"images/{name}", rows)

    def _search(self, paths: Sequence[str]) -> np.ndarray:
        return self._joined.find_rows(paths)

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
        if not any(file.has(name) for file in self._joined.files):
            return np.zeros((len(rows), 2), np.uint32)
        return self._joined.read(name, rows)

    @property
    def status(self) -> np.ndarray:
        """Status of each row, uint8 (N,): 0 pending, 1 ok, 2 failed; read at every access."""
        return self.column("status")

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows that are ``ok``, ``failed`` and ``pending``."""
        counts = np.zeros(3, int)
        for rows in integrity.iter_row_blocks(self.n_rows):
            counts += np.bincount(self.column("status", rows), minlength=3)[:3]
        count = counts.item
        return {"ok": count(MARKED), "failed": count(FAILED), "pending": count(PENDING)}

    @property
    def failures(self) -> dict[str, str]:
        """Reason of each failed row, by path."""
        failures: dict[str, str] = {}
        for block in integrity.iter_row_blocks(self.n_rows):
            rows = block[self.column("status", block) == FAILED]
            for path, reason in zip(
                self.paths_of(rows), self.column("reason", rows).tolist(), strict=True
            ):
                failures[path] = REASONS.get(reason, f"reason {reason}")
        return failures

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
            With `rows` a copy, and without as well if there are several parts. Of a single file
            then a read-only memory map that all processes share; the system kills a process that
            reads a map of a truncated file.

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
            return np.asanyarray(self.mapped(info.name))
        return self.stored(info.name, wrap_rows(np.asarray(rows, np.intp), self.n_rows))

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
        return self._joined.read(f"features/{self.layer(layer).name}", rows)

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
        status = self.column("status", rows)
        if (status != MARKED).any():
            raise RowNotReadyError(
                f"{self.path}: {int((status != MARKED).sum())} of {len(status)} rows asked for "
                "are pending or failed; `featurize info` lists them, `featurize run` completes them"
            )

    def mapped(self, layer: str) -> np.ndarray | StackedRows:
        """Return all rows of a layer, marked or not, for callers that check `status` themselves.

        Parameters
        ----------
        layer : str
            Dataset name.

        Returns
        -------
        read-only memory map of shape (N, D), or StackedRows of that shape
            A line for each row. Of several parts, what is indexed is read.

        Raises
        ------
        CacheReplacedError, UnknownLayerError
            As in `features`.
        """
        name = f"features/{self.layer(layer).name}"
        if len(self._joined.files) == 1:
            return self._joined.files[0].map_rows(name)
        return StackedRows(self._joined, name)

    def verify(self) -> list[str]:
        """Check the rows against the specification; the layout was checked on opening.

        Returns
        -------
        list of str
            One sentence per violation, which names the part if there are several; empty for a
            sound cache.
        """
        if len(self.files) == 1:
            return integrity.find_row_violations(self)
        return [
            f"{file.name}: {text}" for file in self.files for text in FeatureCache(file).verify()
        ]

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

"""Features of a cache by row number, read where they lie."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from classify.data.preparation import ROOT_L2, root_l2
from classify.errors import CallError, UnknownPathError
from featurize import errors
from featurize.cache.parts.opening import list_cache_files
from featurize.cache.reader import FeatureCache

BLOCK_BYTES = 8 << 20
CacheOrPath = FeatureCache | str | os.PathLike[str]


def open_cache(cache: CacheOrPath) -> FeatureCache:
    """Open a cache; an open one is returned as it is, and an unchanged file is parsed once.

    Parameters
    ----------
    cache : FeatureCache or path

    Returns
    -------
    FeatureCache

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CacheFormatError
        If it is not a feature cache.
    """
    if isinstance(cache, FeatureCache):
        return cache
    path = Path(os.path.normpath(Path(cache).absolute()))  # Path.resolve would follow links
    try:
        return _open_unchanged(path, *(_read_state(file) for file in list_cache_files(path)))
    except (OSError, ValueError):
        if path.exists():
            raise
        missing = f"{cache} does not exist; make it with `featurize run`"
        raise FileNotFoundError(missing) from None


@lru_cache(maxsize=4)
def _open_unchanged(path: Path, *_states: tuple[int, ...]) -> FeatureCache:
    # Grid searches clone estimators and pickle them: that should not parse HDF5 each time.
    return FeatureCache(path)


def _read_state(file: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to; empty if there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def find_rows(cache: FeatureCache, paths: Sequence[str], advice: str) -> np.ndarray:
    """Look up the rows of images, with advice in the error where some are not in the cache.

    Parameters
    ----------
    cache : FeatureCache
    paths : sequence of str
        n image paths.
    advice : str
        The last sentence of the error's message.

    Returns
    -------
    intp array of shape (n,)
        Rows, marked or not.

    Raises
    ------
    UnknownPathError
        If an image is not in the cache.
    """
    try:
        return cache.rows_for(paths)
    except errors.UnknownPathError as error:
        raise UnknownPathError(f"{error}. {advice}") from None


def resolve_layers(
    cache: FeatureCache, layer: str | Sequence[str] | None = None
) -> tuple[str, ...]:
    """Resolve a layer option to names of layers of the cache.

    Parameters
    ----------
    cache : FeatureCache
    layer : str or sequence of str, optional
        One layer, or several to be joined: a sequence, ``"a,b"``, ``"a+b"``, or ``"joined"``
        for all of the cache. The deepest if not given.

    Returns
    -------
    tuple of str

    Raises
    ------
    UnknownLayerError
        If the cache lacks one of them.
    CallError
        If one is named twice, or none is named.
    """
    if layer is None:
        return (cache.layer().name,)
    if layer == "joined":
        return tuple(cache.layers)
    names = [layer] if isinstance(layer, str) else list(layer)
    if isinstance(layer, str) and layer not in cache.layers:
        names = [name.strip() for name in layer.replace("+", ",").split(",")]
    if not names or len(set(names)) < len(names):
        raise CallError(f"layers to join are named once each, not {', '.join(names) or 'none'}")
    return tuple(cache.layer(name).name for name in names)


def resolve_layer_sets(cache: FeatureCache, layers: str | Sequence[str]) -> list[tuple[str, ...]]:
    """Resolve an option to the sets of layers that a comparison goes through.

    Parameters
    ----------
    cache : FeatureCache
    layers : str or sequence of str
        Of ``each`` (every layer of the cache by itself), ``joined`` (all of them together),
        ``last`` (the deepest), names (that layer by itself) and ``a+b`` (those joined); a text is
        split at its commas.

    Returns
    -------
    list of tuple of str
        Each set once.

    Raises
    ------
    UnknownLayerError
        If the cache lacks one of them.
    CallError
        If one is named twice in a set.
    """
    sets: list[tuple[str, ...]] = []
    for word in layers.split(",") if isinstance(layers, str) else layers:
        word = word.strip()
        if word == "each":
            sets += [(name,) for name in cache.layers]
        elif word == "last":
            sets.append(resolve_layers(cache))
        else:
            sets.append(resolve_layers(cache, word))
    return list(dict.fromkeys(sets))  # with one layer, "each" and "joined" are the same


class _LayerArray:
    """A layer of a cache as an array of shape (N, D) that is read when it is indexed.

    It is not a memory map. There the system would end the process if the file were cut short, and
    the numbers would change silently if it were overwritten. Here both raise `CacheReplacedError`.
    """

    def __init__(self, cache: FeatureCache, name: str) -> None:
        self._cache, self._name = cache, name
        self.shape = (cache.n_rows, cache.layer(name).dim)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        return self._cache.stored(self._name, rows)


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Features of some images: n rows of D columns, read where they lie.

    Parameters
    ----------
    parts : tuple of arrays of shape (N, D_i)
        Layers to be joined side by side: of a cache, which are read on use, or an array in memory.
    rows : int array of shape (n,)
        Which of the N rows.
    is_root_l2 : bool
        Whether each layer is prepared by `classify.data.preparation.root_l2` as it is read.
    """

    parts: "tuple[np.ndarray | _LayerArray, ...]"
    rows: np.ndarray
    is_root_l2: bool = False

    @classmethod
    def from_cache(
        cls, cache: FeatureCache, layers: Sequence[str], rows: np.ndarray
    ) -> "FeatureRows":
        """Take rows of a cache.

        Parameters
        ----------
        cache : FeatureCache
        layers : sequence of str
            Layers to be joined.
        rows : int array of shape (n,)
            All of them marked.

        Returns
        -------
        FeatureRows

        Raises
        ------
        RowNotReadyError
            If a row is not marked.
        UnknownLayerError
            If the cache lacks a layer.
        """
        cache.check_ready(rows)
        return cls(tuple(_LayerArray(cache, cache.layer(name).name) for name in layers), rows)

    @classmethod
    def from_array(cls, X: np.ndarray) -> "FeatureRows":
        """Take every row of an array in memory.

        Parameters
        ----------
        X : float array of shape (n, D)

        Returns
        -------
        FeatureRows
        """
        return cls((X,), np.arange(len(X)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """The number of columns, D."""
        return sum(part.shape[1] for part in self.parts)

    @property
    def nbytes(self) -> int:
        """The bytes of a float32 copy of all n rows."""
        return len(self) * self.dim * 4

    def subset(self, positions: np.ndarray) -> "FeatureRows":
        """Take some of the rows.

        Parameters
        ----------
        positions : int or bool array
            Positions among the n.

        Returns
        -------
        FeatureRows
        """
        return replace(self, rows=self.rows[positions])

    def with_preparation(self, prepare: str) -> "FeatureRows":
        """Return the same rows with a preparation applied as they are read.

        Only ``root-l2`` is applied here. Standardised columns need statistics of the training
        images, which the caller computes.

        Parameters
        ----------
        prepare : str
            One of `classify.data.preparation.PREPARATIONS`.

        Returns
        -------
        FeatureRows
        """
        return replace(self, is_root_l2=prepare == ROOT_L2)

    def to_array(self) -> np.ndarray:
        """Copy the rows into memory.

        Returns
        -------
        float32 array of shape (n, D)
            A copy, which may be changed.
        """
        features = self._gather()
        return features if features.flags.owndata else features.copy()

    def iter_blocks(self, n_outputs: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the rows in blocks of about 8 MB.

        Parameters
        ----------
        n_outputs : int
            How many numbers the caller computes from each row; these are at most 8 MB a block as
            well.

        Yields
        ------
        part : slice
            Of the n rows.
        block : float32 array of shape (m, D)
            Their features; not to be changed.
        """
        size = max(1, BLOCK_BYTES // (4 * max(self.dim, n_outputs)))
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, replace(self, rows=self.rows[part])._gather()

    def check_finite(self, cache: FeatureCache) -> None:
        """Refuse features that are not finite numbers; the message names the image.

        Parameters
        ----------
        cache : FeatureCache
            The cache of the rows.

        Raises
        ------
        CallError
            If a feature is NaN or infinite.
        """
        for part, block in self.iter_blocks():
            finite = np.isfinite(block)
            if not finite.all():
                row = self.rows[part][np.argmin(finite.all(axis=1))]
                (path,) = cache.paths_of([int(row)])
                raise CallError(
                    f"the features of {path!r} in {cache.path} are not all finite "
                    "numbers; take the image out of the label table, or make the cache anew"
                )

    def _gather(self) -> np.ndarray:
        """Read the rows as float32 (n, D): a view where no copy is needed."""
        rows = self.rows
        # A contiguous range is read at once, which is far faster than row by row.
        is_contiguous = len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1
        is_contiguous = is_contiguous and bool((np.diff(rows) == 1).all())
        index = slice(int(rows[0]), int(rows[-1]) + 1) if is_contiguous else rows
        if len(self.parts) == 1:
            return self._prepare(self.parts[0][index])
        joined = np.empty((len(rows), sum(part.shape[1] for part in self.parts)), np.float32)
        start = 0
        for part in self.parts:
            stop = start + part.shape[1]
            joined[:, start:stop] = self._prepare(part[index])
            start = stop
        return joined

    def _prepare(self, X: np.ndarray) -> np.ndarray:
        return root_l2(X) if self.is_root_l2 else X.astype(np.float32, copy=False)


def check_paths(X: Any) -> np.ndarray:
    """Check image paths as scikit-learn passes them on.

    Parameters
    ----------
    X : array of str of shape (n,) or (n, 1)

    Returns
    -------
    object array of shape (n,)

    Raises
    ------
    CallError
        If `X` is of another shape.
    """
    paths = np.asarray(X, object)
    if paths.ndim != 1 and paths.shape[1:] != (1,):
        raise CallError(f"X is one path for each image, shape (n,), not {paths.shape}")
    return paths.ravel()


def total_dim(cache: FeatureCache, layers: Sequence[str]) -> int:
    """Return how many columns some layers have together.

    Parameters
    ----------
    cache : FeatureCache
    layers : sequence of str

    Returns
    -------
    int
    """
    return sum(cache.layer(name).dim for name in layers)

"""Features out of a cache, by row number: read where they lie."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from classify.data.preparation import ROOT_L2, root_l2
from classify.errors import CallError, UnknownPathError
from featurize import errors
from featurize.cache.reader import FeatureCache

BLOCK_BYTES = 8 << 20
CacheOrPath = FeatureCache | str | os.PathLike[str]


def open_cache(cache: CacheOrPath) -> FeatureCache:
    """Open a cache, unless it is open; a file that has not changed is looked at once.

    Raises
    ------
    FileNotFoundError, CacheFormatError
    """
    if isinstance(cache, FeatureCache):
        return cache
    path = os.path.abspath(cache)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{cache} does not exist; make it with `featurize run`")
    found = os.stat(path)
    return _open_unchanged(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)
def _open_unchanged(path: str, *_state: int) -> FeatureCache:
    # Grid searches clone and worker processes start over: neither should parse HDF5 each time.
    return FeatureCache(path)


def find_rows(cache: FeatureCache, paths: Sequence[str], advice: str) -> np.ndarray:
    """Look up images with `FeatureCache.rows_for`; say what to do where some are not there.

    Parameters
    ----------
    cache : FeatureCache
    paths : sequence of str
        n of them.
    advice : str
        The last part of the error's message.

    Returns
    -------
    intp array of shape (n,)
        Rows, marked or not.

    Raises
    ------
    UnknownPathError
    """
    try:
        return cache.rows_for(paths)
    except errors.UnknownPathError as error:
        raise UnknownPathError(f"{error}. {advice}") from None


def resolve_layers(
    cache: FeatureCache, layer: str | Sequence[str] | None = None
) -> tuple[str, ...]:
    """The layers meant by an option, checked.

    Parameters
    ----------
    layer : str or sequence of str, optional
        One layer, or several to be joined: a sequence, ``"a,b"``, ``"a+b"``, or ``"joined"``
        for all of the cache. The deepest if not given.

    Raises
    ------
    UnknownLayer
        If the cache lacks one of them.
    CallError
        If one is named twice.
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
    """The sets of layers that a comparison goes through.

    Parameters
    ----------
    layers : str or sequence of str
        Of ``each`` (every layer of the cache by itself), ``joined`` (all of them at once), names
        (that layer by itself) and ``a+b`` (those joined); a text is split at its commas.

    Raises
    ------
    UnknownLayer, CallError
    """
    sets: list[tuple[str, ...]] = []
    for word in layers.split(",") if isinstance(layers, str) else layers:
        word = word.strip()
        if word == "each":
            sets += [(name,) for name in cache.layers]
        else:
            sets.append(resolve_layers(cache, word))
    return list(dict.fromkeys(sets))  # with one layer, "each" and "joined" are the same


class _LayerArray:
    """A layer of a cache as an array of shape (N, D) that is read where it is indexed.

    No memory map: where a file is cut short under one the system ends the process, and where it is
    overwritten the numbers change without a word. Here both are `CacheReplaced`.
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
        Layers to be joined side by side: of a cache, read when they are asked for, or an array.
    rows : int array of shape (n,)
        Which of the N.
    rooted : bool
        Whether each layer is prepared by `classify.data.preparation.root_l2` as it is read.
    """

    parts: "tuple[np.ndarray | _LayerArray, ...]"
    rows: np.ndarray
    is_root_l2: bool = False

    @classmethod
    def from_cache(
        cls, cache: FeatureCache, layers: Sequence[str], rows: np.ndarray
    ) -> "FeatureRows":
        """Rows of a cache, all of which have to be marked.

        Raises
        ------
        RowNotReady, UnknownLayer
        """
        cache.check_ready(rows)
        return cls(tuple(_LayerArray(cache, cache.layer(name).name) for name in layers), rows)

    @classmethod
    def from_array(cls, X: np.ndarray) -> "FeatureRows":
        """Every row of an array (n, D) in memory."""
        return cls((X,), np.arange(len(X)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """D."""
        return sum(part.shape[1] for part in self.parts)

    @property
    def nbytes(self) -> int:
        """How large a float32 copy of them all would be."""
        return len(self) * self.dim * 4

    def subset(self, positions: np.ndarray) -> "FeatureRows":
        """Some of them: positions are among the n."""
        return replace(self, rows=self.rows[positions])

    def with_preparation(self, prepare: str) -> "FeatureRows":
        """The same by a preparation. Standardised columns take training statistics: not here."""
        return replace(self, is_root_l2=prepare == ROOT_L2)

    def to_array(self) -> np.ndarray:
        """A copy: float32 (n, D)."""
        found = self._gather()
        return found if found.flags.owndata else found.copy()

    def iter_blocks(self, n_outputs: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """About 8 MB each, one after the other; not to be changed.

        Parameters
        ----------
        n_outputs : int
            How many numbers are made of each row, which are to be no more than 8 MB either.

        Yields
        ------
        slice, float32 array of shape (m, D)
            The slice is of the n rows.
        """
        size = max(1, BLOCK_BYTES // (4 * max(self.dim, n_outputs)))
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, replace(self, rows=self.rows[part])._gather()

    def check_finite(self, cache: FeatureCache) -> None:
        """Refuse features that are no numbers; the message names the image.

        Parameters
        ----------
        cache : FeatureCache
            That they are rows of.

        Raises
        ------
        CallError
        """
        for where, block in self.iter_blocks():
            finite = np.isfinite(block)
            if not finite.all():
                row = self.rows[where][np.argmin(finite.all(axis=1))]
                raise CallError(
                    f"the features of {cache.paths[row]!r} in {cache.path} are not all finite "
                    "numbers; take the image out of the label table, or make the cache anew"
                )

    def _gather(self) -> np.ndarray:
        """Float32 (n, D): a view where that is all it takes."""
        rows = self.rows
        # Neighbouring rows are read at once, far quicker than one by one.
        together = len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1
        together = together and bool((np.diff(rows) == 1).all())
        where = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
        if len(self.parts) == 1:
            return self._prepare(self.parts[0][where])
        joined = np.empty((len(rows), sum(part.shape[1] for part in self.parts)), np.float32)
        start = 0
        for part in self.parts:
            stop = start + part.shape[1]
            joined[:, start:stop] = self._prepare(part[where])
            start = stop
        return joined

    def _prepare(self, X: np.ndarray) -> np.ndarray:
        return root_l2(X) if self.is_root_l2 else X.astype(np.float32, copy=False)


def check_paths(X: Any) -> np.ndarray:
    """Image paths as scikit-learn hands them on: object (n,), from text (n,) or (n, 1).

    Raises
    ------
    CallError
    """
    paths = np.asarray(X, object)
    if paths.ndim != 1 and paths.shape[1:] != (1,):
        raise CallError(f"X is one path for each image, shape (n,), not {paths.shape}")
    return paths.ravel()


def total_dim(cache: FeatureCache, layers: Sequence[str]) -> int:
    """How many numbers these layers have together."""
    return sum(cache.layer(name).dim for name in layers)

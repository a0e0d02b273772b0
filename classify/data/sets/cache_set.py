"""Several caches of the same images, read as one: layers of several backbones side by side."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from classify.data.features import CacheOrPath, open_cache
from classify.data.sets.cache_names import name_caches
from classify.errors import CallError
from featurize.cache.format import MARKED, LayerInfo
from featurize.cache.reader import FeatureCache
from featurize.errors import UnknownLayerError
from featurize.text import did_you_mean

CachesLike = CacheOrPath | Sequence[CacheOrPath]


class CacheSet(FeatureCache):
    """Several caches as one cache over the images that are finished in all of them.

    Its rows are these images, sorted by path. Its layers are those of all caches, as
    ``CACHE:LAYER``. The deepest layer of the first cache stands for the whole: it tells which
    images are copies of each other. What is stored for layers of several caches lies beside the
    first.

    Parameters
    ----------
    caches : sequence of FeatureCache or path
        Two or more.

    Attributes
    ----------
    caches : dict of str to FeatureCache
        By short name: the file's name without its suffix, with as many folders before it as make it
        unique.
    rows_in : dict of str to int array of shape (n_rows,)
        By short name, the row in that cache of each image, ascending.
    unfinished, changed : set of str
        Paths of the images that are left out: those not finished in every cache, and those whose
        bytes differ from one cache to another.

    Raises
    ------
    CallError
        If a cache is given twice, or no image is finished in all of them.
    CacheFormatError, FileNotFoundError
        If a file is not a cache, or missing.
    """

    def __init__(self, caches: Sequence[CacheOrPath]) -> None:
        # Worker processes may have been started in another folder, so paths must be absolute.
        opened = [
            open_cache(cache.path)
            if isinstance(cache, FeatureCache) and not cache.path.is_absolute()
            else open_cache(cache)
            for cache in caches
        ]
        self.caches = dict(zip(name_caches([c.path for c in opened]), opened, strict=True))
        first = opened[0]
        self.path, self.root, self.extractor = first.path, first.root, first.extractor
        self.include, self.exclude = first.include, first.exclude
        self.containers, self.source = first.containers, first.source
        self.files, self.index = first.files, first.index
        self.format_version, self.created_by = first.format_version, first.created_by
        self.has_checksums = all(cache.has_checksums for cache in opened)
        self._places = {
            f"{cache_name}:{layer}": (cache_name, layer)
            for cache_name, cache in self.caches.items()
            for layer in cache.layers
        }
        self.layers: dict[str, LayerInfo] = {
            name: replace(info := self.caches[cache].layer(layer), layer=f"{cache}:{info.layer}")
            for name, (cache, layer) in self._places.items()
        }
        self._match_images()

    def __repr__(self) -> str:
        return f"CacheSet({', '.join(self.caches)}: {self.n_rows} rows)"

    def _match_images(self) -> None:
        """Match the finished images of all caches by path and content."""
        opened = list(self.caches.values())
        finished = [
            {cache.paths[row]: row for row in np.flatnonzero(cache.status == MARKED).tolist()}
            for cache in opened
        ]
        shared = sorted(set.intersection(*map(set, finished)))
        rows = [np.array([row_of[path] for path in shared], np.intp) for row_of in finished]
        contents = [
            cache.column("sha256", in_cache) for cache, in_cache in zip(opened, rows, strict=True)
        ]
        same = np.ones(len(shared), bool)
        for hashes in contents[1:]:
            same &= (hashes == contents[0]).all(axis=1)
        if not same.any():
            examples = " and ".join(repr(cache.paths_of([0])[0]) for cache in opened)
            raise CallError(
                f"no image is finished in each of {', '.join(str(c.path) for c in opened)}; their "
                f"paths look like {examples}. Make all from one image folder with `featurize run`"
            )
        self.unfinished = set().union(*(cache.paths for cache in opened)) - {*shared}
        self.changed = {path for path, is_same in zip(shared, same, strict=True) if not is_same}
        self.rows_in = {
            name: in_cache[same] for name, in_cache in zip(self.caches, rows, strict=True)
        }
        self.n_rows = int(same.sum())

    @cached_property
    def paths(self) -> list[str]:
        """Path of every row's image, sorted."""
        name, rows = next(iter(self.rows_in.items()))
        return self.caches[name].paths_of(rows)

    def check_unchanged(self) -> None:
        """Check that every file is still the one that was opened.

        Raises
        ------
        CacheReplacedError
            If one was overwritten or truncated.
        """
        for cache in self.caches.values():
            cache.check_unchanged()

    def column(self, name: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Read a column of ``images/`` as it is in the first file now.

        Parameters
        ----------
        name : {"path", "sha256", "size", "mtime_ns", "status", "reason"}
        rows : int array of shape (n,), optional
            Row numbers of the set; default all rows.

        Returns
        -------
        array of shape (n, ...)
            A copy. A status is that of the first cache in which the image is not finished.
        """
        first, *others = self.rows_in
        values = self.caches[first].column(name, self._find_rows_in(first, rows))
        for other in others if name == "status" else ():
            column = self.caches[other].column(name, self._find_rows_in(other, rows))
            values = np.where(values == MARKED, column, values)
        return values

    def _find_rows_in(self, cache: str, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
        rows_in = self.rows_in[cache]
        return rows_in if rows is None else rows_in[np.asarray(rows, np.intp)]

    def _search(self, paths: Sequence[str]) -> np.ndarray:
        name, rows_in = next(iter(self.rows_in.items()))
        found = self.caches[name].find_rows(paths)
        rows = np.minimum(np.searchsorted(rows_in, found), len(rows_in) - 1)
        return np.where(rows_in[rows] == found, rows, -1)

    def layer(self, name: str | None = None) -> LayerInfo:
        """Return the metadata of a layer.

        Parameters
        ----------
        name : str, optional
            ``CACHE:LAYER``; default the deepest layer of the first cache.

        Returns
        -------
        LayerInfo

        Raises
        ------
        UnknownLayerError
            If no cache has such a layer.
        """
        if name is None:
            name = self.last_layers[0]
        if name not in self.layers:
            raise UnknownLayerError(
                f"no layer {name!r} in these caches{did_you_mean(name, self.layers)}; "
                f"there are {', '.join(self.layers)}"
            )
        return self.layers[name]

    def stored(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Read a layer's stored values of some rows, marked or not.

        Parameters
        ----------
        layer : str
            ``CACHE:LAYER``.
        rows : int array of shape (n,)
            Row numbers of the set.

        Returns
        -------
        float32 or float16 array of shape (n, D)
            A copy.

        Raises
        ------
        CacheReplacedError, UnknownLayerError
            As in `FeatureCache.stored`.
        """
        cache, name = self._places[self.layer(layer).name]
        return self.caches[cache].stored(name, self.rows_in[cache][rows])

    def mapped(self, layer: str) -> np.ndarray:
        """Read all rows of a layer; they lie apart in the file, so this is a copy and no map.

        Parameters
        ----------
        layer : str
            ``CACHE:LAYER``.

        Returns
        -------
        float32 or float16 array of shape (N, D)
        """
        return self.stored(layer, np.arange(self.n_rows))

    def checksums(self, layer: str, rows: np.ndarray) -> np.ndarray:
        """Read the stored checksums of some rows of a layer.

        Parameters
        ----------
        layer : str
            ``CACHE:LAYER``.
        rows : int array of shape (n,)

        Returns
        -------
        uint32 array of shape (n, 2)
            As `FeatureCache.checksums` returns them.
        """
        cache, name = self._places[self.layer(layer).name]
        return self.caches[cache].checksums(name, self.rows_in[cache][rows])

    def __getstate__(self) -> dict[str, Any]:
        # Each cache opens its file anew; the paths can be read again.
        return {k: v for k, v in self.__dict__.items() if k not in ("paths", "row_of")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def layers_by_cache(self) -> dict[str, tuple[str, ...]]:
        """All layers of each cache as ``CACHE:LAYER``, shallowest first, by short name."""
        return {
            name: tuple(f"{name}:{layer}" for layer in cache.layers)
            for name, cache in self.caches.items()
        }

    @property
    def last_layers(self) -> tuple[str, ...]:
        """The deepest layer of every cache as ``CACHE:LAYER``."""
        return tuple(layers[-1] for layers in self.layers_by_cache.values())

    def sum_gmacs(self, layers: Sequence[str]) -> float | None:
        """Sum up what the networks cost an image up to some layers.

        Parameters
        ----------
        layers : sequence of str
            Each as ``CACHE:LAYER``.

        Returns
        -------
        float or None
            1e9 multiply-accumulate operations: of each cache up to the dearest of its layers. None
            if a cache does not record them.
        """
        costs: dict[str, float] = {}
        for name in layers:
            cache_name, layer = self._places[name]
            cache = self.caches[cache_name]
            recorded = cache.extractor.environment.get("gmacs")
            cost = recorded.get(cache.layer(layer).layer) if isinstance(recorded, dict) else None
            if not isinstance(cost, (int, float)):
                return None
            costs[cache_name] = max(costs.get(cache_name, 0.0), cost)
        return round(sum(costs.values()), 4)

    def locate(self, layers: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
        """Find the caches of some layers.

        Parameters
        ----------
        layers : sequence of str
            Each as ``CACHE:LAYER``.

        Returns
        -------
        caches : list of str
            Short names, each once.
        names : tuple of str
            The layers by their names in their caches.
        """
        places = [self._places[name] for name in layers]
        return list(dict.fromkeys(k for k, _ in places)), tuple(layer for _, layer in places)


def open_caches(caches: CachesLike) -> FeatureCache:
    """Open one cache, or several as a set.

    Parameters
    ----------
    caches : FeatureCache or path, or several

    Returns
    -------
    FeatureCache
        A `CacheSet` for several.

    Raises
    ------
    CallError
        If none is given.
    CallError, CacheFormatError, FileNotFoundError
        As `CacheSet` and `classify.data.features.open_cache` do.
    """
    if not isinstance(caches, (list, tuple)):
        return open_cache(caches)  # type: ignore[arg-type]
    if not caches:
        raise CallError("no feature cache is given; make one with `featurize run`")
    return open_cache(caches[0]) if len(caches) == 1 else CacheSet(caches)


def list_caches(cache: FeatureCache) -> dict[str, FeatureCache]:
    """List the caches of a set by short name.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    dict of str to FeatureCache
        A single cache has an empty name.
    """
    return cache.caches if isinstance(cache, CacheSet) else {"": cache}


def list_files(cache: FeatureCache) -> dict[str, str]:
    """List the files of a set by short name.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    dict of str to str
        Empty for a single cache.
    """
    return {name: str(each.path) for name, each in list_caches(cache).items() if name}


def find_deepest_layer(cache: FeatureCache, place: str) -> str:
    """Find the deepest layer of the cache that a head is trained on.

    Parameters
    ----------
    cache : FeatureCache
    place : str
        The head's layers, as `classify.heads.record.HeadResult.place` has them.

    Returns
    -------
    str
        A name of a layer of `cache`. Where layers of several caches are joined, that of the first
        of them.
    """
    if not isinstance(cache, CacheSet):
        return cache.layer().name
    names, _ = cache.locate(place.split("+"))
    return cache.layers_by_cache[names[0]][-1]


def label_joined_layers(cache: FeatureCache) -> dict[str, str]:
    """Label the joined layers whose names are too long for a table.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    dict of str to str
        ``all 4 joined`` for all layers of a cache, and ``last of each`` for the last layers
        of several, by `classify.heads.record.HeadResult.place`.
    """
    layers, labels = [tuple(cache.layers)], {}
    if isinstance(cache, CacheSet):
        layers = list(cache.layers_by_cache.values())
        labels["+".join(cache.last_layers)] = "last of each"
    return labels | {
        "+".join(names): f"all {len(names)} joined" for names in layers if len(names) > 1
    }

"""Features out of a cache, for scikit-learn: by row number, or by image path."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from classify.errors import CallError, UnknownPath
from featurize.cache import FeatureCache

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
    return _opened(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: str, *_state: int) -> FeatureCache:
    # Grid searches clone and worker processes start over: neither should parse HDF5 each time.
    return FeatureCache(path)


def layer_names(cache: FeatureCache, layer: str | Sequence[str] | None = None) -> tuple[str, ...]:
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


def layer_sets(cache: FeatureCache, layers: str | Sequence[str]) -> list[tuple[str, ...]]:
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
            sets.append(layer_names(cache, word))
    return list(dict.fromkeys(sets))  # with one layer, "each" and "joined" are the same


def matrix(cache: FeatureCache, layers: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """The features of some rows, several layers side by side.

    Parameters
    ----------
    layers : sequence of str
        Names of layers, as in the cache.
    rows : int array of shape (n,)
        Row numbers; all of them marked.

    Returns
    -------
    float32 array of shape (n, D)
        D is the sum of the layers' dimensions.

    Raises
    ------
    RowNotReady, UnknownLayer
    """
    joined = np.empty((len(rows), dim(cache, layers)), np.float32)
    start = 0
    for name in layers:
        stop = start + cache.layer(name).dim
        joined[:, start:stop] = cache.features(name, rows)
        start = stop
    return joined


def dim(cache: FeatureCache, layers: Sequence[str]) -> int:
    """How many numbers these layers have together."""
    return sum(cache.layer(name).dim for name in layers)


class CachedFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer from image paths to their cached features.

    It learns nothing; it looks rows up. So a layer is a hyper-parameter like any other, and
    ``GridSearchCV`` can choose it.

    Parameters
    ----------
    cache : path or FeatureCache
        A path is the better choice where estimators are cloned or sent to workers.
    layer : str or sequence of str, optional
        A layer of the cache, or several to be joined; the deepest if not given.

    Examples
    --------
    ``make_pipeline(CachedFeatures("photos.h5", layer="layer3"), RidgeClassifier())``
    """

    def __init__(self, cache: CacheOrPath, layer: str | Sequence[str] | None = None) -> None:
        self.cache = cache
        self.layer = layer

    def fit(self, X: Any = None, y: Any = None) -> "CachedFeatures":
        """Check that the cache and its layers are there.

        Raises
        ------
        FileNotFoundError, CacheFormatError, UnknownLayer
        """
        layer_names(open_cache(self.cache), self.layer)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Look up images.

        Parameters
        ----------
        X : array of str of shape (n,) or (n, 1)
            Paths as in the cache: relative to its image folder, POSIX.

        Returns
        -------
        float32 array of shape (n, D)

        Raises
        ------
        UnknownPath
            If an image is not in the cache.
        RowNotReady
            If it has no features there.
        CallError
            If `X` is of another shape.
        """
        cache = open_cache(self.cache)
        paths = np.asarray(X, object)
        if paths.ndim != 1 and paths.shape[1:] != (1,):
            raise CallError(f"X is one path for each image, shape (n,), not {paths.shape}")
        paths = paths.ravel()
        absent = [path for path in paths if path not in cache.row_of]
        if absent:
            raise UnknownPath(
                f"{len(absent):,} of {len(paths):,} images are not in {cache.path}: "
                f"{', '.join(map(repr, absent[:3]))}; its paths look like {cache.paths[0]!r}"
            )
        rows = np.array([cache.row_of[path] for path in paths], np.intp)
        return matrix(cache, layer_names(cache, self.layer), rows)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        return tags

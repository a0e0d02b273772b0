"""A scikit-learn transformer that looks up features of a cache by image path."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from classify.data.features import (
    CacheOrPath,
    FeatureRows,
    check_paths,
    find_rows,
    open_cache,
    resolve_layers,
)
from featurize.cache.reader import FeatureCache
from featurize.sources.listing import make_key

ADVICE = "Give paths of that folder; `featurize run` adds images that are new there"


class CachedFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer from image paths to their cached features.

    It has nothing to fit. The layer is a hyper-parameter like any other, which ``GridSearchCV`` can
    select.

    Parameters
    ----------
    cache : path or FeatureCache
        The cache. A path is better where estimators are cloned or sent to workers.
    layer : str or sequence of str, optional
        A layer of the cache, or several layers to join; the deepest if not given.

    Attributes
    ----------
    n_features_in_ : int
        1 once fitted: the column of paths.

    Examples
    --------
    ``make_pipeline(CachedFeatures("photos.h5", layer="layer3"), RidgeClassifier())``
    """

    def __init__(self, cache: CacheOrPath, layer: str | Sequence[str] | None = None) -> None:
        self.cache = cache
        self.layer = layer

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Check that the cache and its layers exist.

        Parameters
        ----------
        X, y : object
            Not used.

        Returns
        -------
        self
            The transformer.

        Raises
        ------
        FileNotFoundError
            If there is no cache.
        CacheFormatError
            If the file is not a cache.
        UnknownLayerError
            If the cache lacks a layer.
        """
        resolve_layers(open_cache(self.cache), self.layer)
        self.n_features_in_ = 1
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Look up the features of images.

        Parameters
        ----------
        X : array of str or path of shape (n,) or (n, 1)
            Paths as in the cache: relative to where its images are, POSIX. Absolute paths and URLs
            below that folder, file or URL, and paths with ``./`` or ``..``, are converted.

        Returns
        -------
        float32 array of shape (n, D)
            Features in the order of `X`; a data frame after ``set_output``.

        Raises
        ------
        UnknownPathError
            If an image is not in the cache.
        RowNotReadyError
            If an image has no features in the cache.
        CallError
            If `X` has another shape.
        """
        cache, paths = open_cache(self.cache), check_paths(X)
        rows = _find_rows(cache, paths)
        return FeatureRows.from_cache(cache, resolve_layers(cache, self.layer), rows).to_array()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return a name for each column: the layer and the column's number in it.

        Parameters
        ----------
        input_features : object
            Not used.

        Returns
        -------
        object array of shape (D,)
            ``layer4_0``, ``layer4_1``, ...; joined layers follow one another.
        """
        cache = open_cache(self.cache)
        layers = resolve_layers(cache, self.layer)
        names = [f"{layer}_{i}" for layer in layers for i in range(cache.layer(layer).dim)]
        return np.array(names, object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True  # `fit` does not use X
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # float32 always
        return tags


def _find_rows(cache: FeatureCache, paths: np.ndarray) -> np.ndarray:
    """Look up images by their paths as they are, or else in the form that the cache gives them."""
    rows = np.full(len(paths), -1, np.intp)
    texts = {
        i: os.fspath(path) for i, path in enumerate(paths) if isinstance(path, str | os.PathLike)
    }
    # Of a list of URLs, keys are written otherwise; so are paths of a folder with the folder's own.
    for convert in (str, make_key, partial(_make_relative, cache.root)):
        found = cache.find_rows([convert(text) for text in texts.values()])
        rows[list(texts)] = found
        texts = {i: text for (i, text), row in zip(texts.items(), found, strict=True) if row < 0}
        if not texts:
            break
    if (rows < 0).any():
        known = iter(cache.paths_of(rows[rows >= 0]))
        keys = [path if row < 0 else next(known) for path, row in zip(paths, rows, strict=True)]
        return find_rows(cache, keys, ADVICE)  # raises, and names those that are unknown
    return rows


def _make_relative(root: str, text: str) -> str:
    if "://" in text:  # a URL below that of the cache; nothing of it is resolved
        return text.removeprefix(root.rstrip("/") + "/")
    if Path(text).is_absolute() and "://" not in root:
        text = os.path.relpath(text, root)
    return os.path.normpath(text).replace(os.sep, "/")

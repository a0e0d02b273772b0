"""Features out of a cache by image path, as a scikit-learn transformer."""

import os
from collections.abc import Sequence
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
        """Check that the cache and its layers are there.

        Raises
        ------
        FileNotFoundError, CacheFormatError, UnknownLayer
        """
        resolve_layers(open_cache(self.cache), self.layer)
        self.n_features_in_ = 1
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Look up images.

        Parameters
        ----------
        X : array of str or path of shape (n,) or (n, 1)
            Paths as in the cache: relative to its image folder, POSIX. Absolute ones below that
            folder, and ones with ``./`` or ``..``, are brought into that form.

        Returns
        -------
        float32 array of shape (n, D)
            A data frame instead after ``set_output``.

        Raises
        ------
        UnknownPath
            If an image is not in the cache.
        RowNotReady
            If it has no features there.
        CallError
            If `X` is of another shape.
        """
        cache, paths = open_cache(self.cache), check_paths(X)
        advice = "Give paths of that folder; `featurize run` adds images that are new there"
        rows = find_rows(cache, [_as_in_cache(cache, path) for path in paths], advice)
        return FeatureRows.from_cache(cache, resolve_layers(cache, self.layer), rows).to_array()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """A name for each column, known without `fit`: the layer's, and the number in it.

        Parameters
        ----------
        input_features : object
            Not used: what goes in is a path.

        Returns
        -------
        object array of shape (D,)
            ``layer4_0``, ``layer4_1``, ...; of joined layers one after the other.
        """
        cache = open_cache(self.cache)
        names = resolve_layers(cache, self.layer)
        found = [f"{name}_{i}" for name in names for i in range(cache.layer(name).dim)]
        return np.array(found, object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True  # `fit` learns nothing from X, and does not look at it
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # float32 always
        return tags


def _as_in_cache(cache: FeatureCache, path: Any) -> Any:
    """Write a path as the cache does; one that is not in the cache stays as it is."""
    if not isinstance(path, str | os.PathLike):
        return path
    text = os.fspath(path)
    if text in cache.row_of:
        return text
    if os.path.isabs(text):
        text = os.path.relpath(text, cache.root)
    text = os.path.normpath(text).replace(os.sep, "/")
    return text if text in cache.row_of else path

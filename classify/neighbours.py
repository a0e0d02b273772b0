"""Nearest neighbours: found once for every k, and kept beside the cache for further tasks."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import Pipeline

from classify.choice import Step
from classify.features import Rows
from classify.kept import digest, identity_of, keep, recall
from classify.scaling import scaled
from classify.scorers import SMOOTHED, Fitted, smoothed, spread
from classify.splits import Folding
from featurize.cache import FeatureCache

VERSION = 1
MOST = 100  # neighbours of a row: the greatest k of the grid
SMALL = 64 << 20  # bytes that may always be kept
SMOOTHING = 2.0
"""So many neighbours are added to those found, the same share of each class.

This is Laplace's rule with fewer counts; `benchmarks/kernels_and_neighbours.py` has it beside raw
counts. With the classes as frequent as in training, the frequent ones would win where as many
neighbours speak for each.
"""


def nearest(rows: Rows, folding: Folding) -> list[np.ndarray]:
    """The nearest training rows of every held-out row, fold by fold.

    Distances are Euclidean, between features scaled by the training rows of the fold. scikit-learn
    multiplies them in float64.

    Parameters
    ----------
    rows : Rows
        n of them.
    folding : Folding
        Of the same rows.

    Returns
    -------
    list of int32 arrays of shape (m, k)
        Positions among the n, the nearest first; a row for each that the fold holds out. k is
        `MOST`, or all that the fold trains on.
    """
    X, found = rows.take(), []
    for train, held in folding.folds:
        scaler, Z = scaled(X[train], whole=rows.rooted)
        search = NearestNeighbors(n_neighbors=min(MOST, len(train)), algorithm="brute").fit(Z)
        near = search.kneighbors(scaler.transform(X[held]), return_distance=False)
        found.append(train[near].astype(np.int32))
    return found


def nearest_kept(
    cache: FeatureCache, layers: Sequence[str], rows: Rows, folding: Folding
) -> list[np.ndarray]:
    """What `nearest` gives, recalled from beside the cache, or kept there.

    Labels have no part in it but by the folds. The key is the layers, the contents of the rows,
    their parts and which of them are held out.

    Parameters
    ----------
    cache : FeatureCache
    layers : sequence of str
    rows : Rows
        n rows of the cache.
    folding : Folding
        Of the same rows.
    """
    about = [VERSION, identity_of(cache, layers), rows.rooted, MOST]
    contents, part = cache.column("sha256")[rows.rows], folding.part.astype(np.int64)
    sizes = [len(held) for held in folding.held_by]
    key = digest(about, sizes, contents, part, folding.held.astype(np.int64))
    kept = recall(cache, "neighbours", key)
    found = None if kept is None else _unpacked(kept.arrays, folding)
    if found is None:
        found = nearest(rows, folding)
        if sum(near.nbytes for near in found) <= max(rows.nbytes, SMALL):
            arrays = {str(i): near for i, near in enumerate(found)}
            keep(cache, "neighbours", key, arrays, {"layers": list(layers), "rows": len(rows)})
    return found


def held_out(
    grid: Sequence[float | None],
    near: Sequence[np.ndarray],
    y: np.ndarray,
    folding: Folding,
    n_classes: int,
) -> Iterator[Step]:
    """Walk the values of k: every one is a count among the neighbours that were found.

    Parameters
    ----------
    grid : sequence of float
        From many neighbours to few.
    near : sequence of int arrays
        As `nearest` gives them.
    y : int array of shape (n,)
    folding : Folding
    n_classes : int
        K; positions in `y` are below it.

    Yields
    ------
    Step
        Logarithms of smoothed shares, in the order of the folds.
    """
    known = [np.unique(y[train]) for train, _ in folding.folds]
    for k in grid:
        parts = [
            _scored(y[fold[:, : int(k or 1)]], classes, n_classes)
            for fold, classes in zip(near, known, strict=True)
        ]
        yield Step(k, np.concatenate(parts))


def fit(
    k: float | None, X: np.ndarray, y: np.ndarray, n_classes: int, *, whole: bool = False
) -> Fitted:
    """The classifier with k neighbours, or with all rows where there are fewer.

    Parameters
    ----------
    k : float
    X : float32 array of shape (n, D)
        Scaled in place: give a copy.
    y : int array of shape (n,)
    n_classes : int
    whole : bool
        As in `classify.scaling.scaled`.
    """
    scaler, Z = scaled(X, whole=whole)
    model = KNeighborsClassifier(n_neighbors=min(int(k or 1), len(Z)), algorithm="brute").fit(Z, y)
    # scikit-learn does not smooth: `Fitted` does, by what is noted down in the object.
    setattr(model, SMOOTHED, SMOOTHING)
    return Fitted(Pipeline([("scale", scaler), ("classify", model)]), X.shape[1], n_classes)


def _scored(labels: np.ndarray, known: np.ndarray, n_classes: int) -> np.ndarray:
    """Logarithms of smoothed shares (m, K) by the labels (m, k) of the neighbours."""
    m, k = labels.shape
    places = labels + n_classes * np.arange(m)[:, None]
    counts = np.bincount(places.ravel(), minlength=m * n_classes).reshape(m, n_classes)
    return spread(np.log(smoothed(counts[:, known] / k, k, SMOOTHING)), known, n_classes)


def _unpacked(arrays: Mapping[str, np.ndarray], folding: Folding) -> list[np.ndarray] | None:
    """What was kept, or None if it is not what it should be."""
    folds = folding.folds
    if set(arrays) != {str(i) for i in range(len(folds))}:
        return None
    found = [arrays[str(i)] for i in range(len(folds))]
    for near, (train, held) in zip(found, folds, strict=True):
        shape = (len(held), min(MOST, len(train)))
        if near.dtype != np.int32 or near.shape != shape or not np.isin(near, train).all():
            return None
    return found

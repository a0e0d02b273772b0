"""Nearest neighbours: found once for every k, and kept beside the cache for further tasks."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import Pipeline

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan
from classify.heads.models import SMOOTHING_ATTR, SklearnModel, expand_to_all_classes, smooth_shares
from classify.solvers.selection import PathPoint
from classify.solvers.sklearn_heads import fit_and_scale
from classify.store import compute_digest, fingerprint_layers, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache

VERSION = 1
MAX_NEIGHBOURS = 100  # neighbours of a row: the greatest k of the grid
ALWAYS_STORED_BYTES = 64 << 20  # bytes that may always be kept
SMOOTHING = 2.0
"""So many neighbours are added to those found, the same share of each class.

This is Laplace's rule with fewer counts; `benchmarks/kernels_and_neighbours.py` has it beside raw
counts. With the classes as frequent as in training, the frequent ones would win where as many
neighbours speak for each.
"""


def find_neighbours(rows: FeatureRows, fold_plan: FoldPlan) -> list[np.ndarray]:
    """The nearest training rows of every held-out row, fold by fold.

    Distances are Euclidean, between features scaled by the training rows of the fold. scikit-learn
    multiplies them in float64.

    Parameters
    ----------
    rows : FeatureRows
        n of them.
    fold_plan : FoldPlan
        Of the same rows.

    Returns
    -------
    list of int32 arrays of shape (m, k)
        Positions among the n, the nearest first; a row for each that the fold holds out. k is
        `MAX_NEIGHBOURS`, or all that the fold trains on.
    """
    X, found = rows.to_array(), []
    for train, held in fold_plan.folds:
        scaler, Z = fit_and_scale(X[train], global_scale=rows.is_root_l2)
        search = NearestNeighbors(
            n_neighbors=min(MAX_NEIGHBOURS, len(train)), algorithm="brute"
        ).fit(Z)
        near = search.kneighbors(scaler.transform(X[held]), return_distance=False)
        found.append(train[near].astype(np.int32))
    return found


def load_or_find_neighbours(
    cache: FeatureCache, layers: Sequence[str], rows: FeatureRows, fold_plan: FoldPlan
) -> list[np.ndarray]:
    """What `find_neighbours` gives, recalled from beside the cache, or kept there.

    Labels have no part in it but by the folds. The key is the layers, the contents of the rows,
    their parts and which of them are held out.

    Parameters
    ----------
    cache : FeatureCache
    layers : sequence of str
    rows : FeatureRows
        n rows of the cache.
    fold_plan : FoldPlan
        Of the same rows.
    """
    about = [VERSION, fingerprint_layers(cache, layers), rows.is_root_l2, MAX_NEIGHBOURS]
    contents, part = cache.column("sha256")[rows.rows], fold_plan.part.astype(np.int64)
    sizes = [len(held) for held in fold_plan.val_indices]
    key = compute_digest(about, sizes, contents, part, fold_plan.held_out.astype(np.int64))
    kept = load_artifact(cache, "neighbours", key)
    found = None if kept is None else _decode_neighbours(kept.arrays, fold_plan)
    if found is None:
        found = find_neighbours(rows, fold_plan)
        if sum(near.nbytes for near in found) <= max(rows.nbytes, ALWAYS_STORED_BYTES):
            arrays = {str(i): near for i, near in enumerate(found)}
            save_artifact(
                cache, "neighbours", key, arrays, {"layers": list(layers), "rows": len(rows)}
            )
    return found


def cross_val_path(
    grid: Sequence[float | None],
    neighbour_rows: Sequence[np.ndarray],
    y: np.ndarray,
    fold_plan: FoldPlan,
    n_classes: int,
) -> Iterator[PathPoint]:
    """Walk the values of k: every one is a count among the neighbours that were found.

    Parameters
    ----------
    grid : sequence of float
        From many neighbours to few.
    neighbour_rows : sequence of int arrays
        As `find_neighbours` gives them.
    y : int array of shape (n,)
    folding : FoldPlan
    n_classes : int
        K; positions in `y` are below it.

    Yields
    ------
    PathPoint
        Logarithms of smoothed shares, in the order of the folds.
    """
    known = [np.unique(y[train]) for train, _ in fold_plan.folds]
    for k in grid:
        parts = [
            _score_neighbours(y[fold[:, : int(k or 1)]], classes, n_classes)
            for fold, classes in zip(neighbour_rows, known, strict=True)
        ]
        yield PathPoint(k, np.concatenate(parts))


def fit_neighbours(
    k: float | None, X: np.ndarray, y: np.ndarray, n_classes: int, *, global_scale: bool = False
) -> SklearnModel:
    """The classifier with k neighbours, or with all rows where there are fewer.

    Parameters
    ----------
    k : float
    X : float32 array of shape (n, D)
        Scaled in place: give a copy.
    y : int array of shape (n,)
    n_classes : int
    global_scale : bool
        As in `classify.scaling.fit_and_scale`.
    """
    scaler, Z = fit_and_scale(X, global_scale=global_scale)
    model = KNeighborsClassifier(n_neighbors=min(int(k or 1), len(Z)), algorithm="brute").fit(Z, y)
    # scikit-learn does not smooth: `SklearnModel` does, by what is noted down in the object.
    setattr(model, SMOOTHING_ATTR, SMOOTHING)
    return SklearnModel(Pipeline([("scale", scaler), ("classify", model)]), X.shape[1], n_classes)


def _score_neighbours(labels: np.ndarray, known: np.ndarray, n_classes: int) -> np.ndarray:
    """Logarithms of smoothed shares (m, K) by the labels (m, k) of the neighbours."""
    m, k = labels.shape
    places = labels + n_classes * np.arange(m)[:, None]
    counts = np.bincount(places.ravel(), minlength=m * n_classes).reshape(m, n_classes)
    return expand_to_all_classes(
        np.log(smooth_shares(counts[:, known] / k, k, SMOOTHING)), known, n_classes
    )


def _decode_neighbours(
    arrays: Mapping[str, np.ndarray], fold_plan: FoldPlan
) -> list[np.ndarray] | None:
    """What was kept, or None if it is not what it should be."""
    folds = fold_plan.folds
    if set(arrays) != {str(i) for i in range(len(folds))}:
        return None
    found = [arrays[str(i)] for i in range(len(folds))]
    for near, (train, held) in zip(found, folds, strict=True):
        shape = (len(held), min(MAX_NEIGHBOURS, len(train)))
        if near.dtype != np.int32 or near.shape != shape or not np.isin(near, train).all():
            return None
    return found

"""Nearest neighbours: found once for all k, and stored next to the cache for further tasks."""

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
MAX_NEIGHBOURS = 100  # of a row: the largest k of the grid
ALWAYS_STORED_BYTES = 64 << 20  # neighbours of at most this size are always stored
SMOOTHING = 2.0
"""Number of neighbours added as pseudo-counts, the same share of each class.

This is additive (Laplace) smoothing with smaller counts; `benchmarks/kernels_and_neighbours.py`
compares it with raw counts. Pseudo-counts in proportion to the class frequencies would let frequent
classes win every tie.
"""


def find_neighbours(rows: FeatureRows, fold_plan: FoldPlan) -> list[np.ndarray]:
    """Find the nearest training rows of every held-out row, fold by fold.

    Distances are Euclidean, between features scaled by the training rows of the fold. scikit-learn
    computes them in float64.

    Parameters
    ----------
    rows : FeatureRows
        n rows.
    fold_plan : FoldPlan
        Folds of these rows.

    Returns
    -------
    list of int32 arrays of shape (m, k)
        For each fold, positions among the n rows, nearest first: a line for each of its m held-out
        rows. k is `MAX_NEIGHBOURS`, or the number of training rows if that is smaller.
    """
    X, neighbour_rows = rows.to_array(), []
    for train, held_out in fold_plan.folds:
        scaler, Z = fit_and_scale(X[train], global_scale=rows.is_root_l2)
        search = NearestNeighbors(
            n_neighbors=min(MAX_NEIGHBOURS, len(train)), algorithm="brute"
        ).fit(Z)
        nearest = search.kneighbors(scaler.transform(X[held_out]), return_distance=False)
        neighbour_rows.append(train[nearest].astype(np.int32))
    return neighbour_rows


def load_or_find_neighbours(
    cache: FeatureCache, layers: Sequence[str], rows: FeatureRows, fold_plan: FoldPlan
) -> list[np.ndarray]:
    """Load the result of `find_neighbours` from next to the cache, or compute and store it.

    The result depends on labels only through the folds. The key is made of the layers, the contents
    of the rows, their parts and which of them are held out.

    Parameters
    ----------
    cache : FeatureCache
        The cache that the rows are from.
    layers : sequence of str
        Layers of the cache that the rows have.
    rows : FeatureRows
        n rows of the cache.
    fold_plan : FoldPlan
        Folds of these rows.

    Returns
    -------
    list of int32 arrays of shape (m, k)
        As `find_neighbours` returns them.
    """
    description = [VERSION, fingerprint_layers(cache, layers), rows.is_root_l2, MAX_NEIGHBOURS]
    contents, part = cache.column("sha256", rows.rows), fold_plan.part.astype(np.int64)
    sizes = [len(held_out_rows) for held_out_rows in fold_plan.val_indices]
    key = compute_digest(description, sizes, contents, part, fold_plan.held_out.astype(np.int64))
    artifact = load_artifact(cache, "neighbours", key)
    neighbour_rows = None if artifact is None else _decode_neighbours(artifact.arrays, fold_plan)
    if neighbour_rows is None:
        neighbour_rows = find_neighbours(rows, fold_plan)
        if sum(nearest.nbytes for nearest in neighbour_rows) <= max(
            rows.nbytes, ALWAYS_STORED_BYTES
        ):
            arrays = {str(i): nearest for i, nearest in enumerate(neighbour_rows)}
            save_artifact(
                cache, "neighbours", key, arrays, {"layers": list(layers), "rows": len(rows)}
            )
    return neighbour_rows


def cross_val_path(
    grid: Sequence[float | None],
    neighbour_rows: Sequence[np.ndarray],
    y: np.ndarray,
    fold_plan: FoldPlan,
    n_classes: int,
) -> Iterator[PathPoint]:
    """Compute held-out decision values for every k, from neighbours found once.

    Parameters
    ----------
    grid : sequence of float
        From many neighbours to few.
    neighbour_rows : sequence of int arrays
        As `find_neighbours` returns them.
    y : int array of shape (n,)
        Class numbers below `n_classes`.
    fold_plan : FoldPlan
        The folds that the neighbours were found for.
    n_classes : int
        K.

    Yields
    ------
    PathPoint
        Decision values are log shares with smoothing, in the order of the folds.
    """
    known_classes = [np.unique(y[train]) for train, _ in fold_plan.folds]
    for k in grid:
        blocks = [
            _score_neighbours(y[nearest[:, : int(k or 1)]], classes, n_classes)
            for nearest, classes in zip(neighbour_rows, known_classes, strict=True)
        ]
        yield PathPoint(k, np.concatenate(blocks))


def fit_neighbours(
    k: float | None, X: np.ndarray, y: np.ndarray, n_classes: int, *, global_scale: bool = False
) -> SklearnModel:
    """Fit a classifier with k neighbours, or with all rows if there are fewer.

    Parameters
    ----------
    k : float, or None
        Number of neighbours; None is 1.
    X : float32 array of shape (n, D)
        Scaled in place: give a copy.
    y : int array of shape (n,)
        Class numbers below `n_classes`.
    n_classes : int
        K.
    global_scale : bool, default False
        As in `classify.solvers.sklearn_heads.fit_and_scale`.

    Returns
    -------
    SklearnModel
        The scaler and the classifier; it smooths its shares.
    """
    scaler, Z = fit_and_scale(X, global_scale=global_scale)
    model = KNeighborsClassifier(n_neighbors=min(int(k or 1), len(Z)), algorithm="brute").fit(Z, y)
    # scikit-learn does not smooth. `SklearnModel` does, if the object has this attribute.
    setattr(model, SMOOTHING_ATTR, SMOOTHING)
    return SklearnModel(Pipeline([("scale", scaler), ("classify", model)]), X.shape[1], n_classes)


def _score_neighbours(labels: np.ndarray, known: np.ndarray, n_classes: int) -> np.ndarray:
    """Compute log shares (m, K) with smoothing from the labels (m, k) of the neighbours."""
    m, k = labels.shape
    cells = labels + n_classes * np.arange(m)[:, None]
    counts = np.bincount(cells.ravel(), minlength=m * n_classes).reshape(m, n_classes)
    return expand_to_all_classes(
        np.log(smooth_shares(counts[:, known] / k, k, SMOOTHING)), known, n_classes
    )


def _decode_neighbours(
    arrays: Mapping[str, np.ndarray], fold_plan: FoldPlan
) -> list[np.ndarray] | None:
    """Decode stored neighbours; None if they do not fit the folds."""
    folds = fold_plan.folds
    if set(arrays) != {str(i) for i in range(len(folds))}:
        return None
    neighbour_rows = [arrays[str(i)] for i in range(len(folds))]
    for nearest, (train, held_out) in zip(neighbour_rows, folds, strict=True):
        shape = (len(held_out), min(MAX_NEIGHBOURS, len(train)))
        if nearest.dtype != np.int32 or nearest.shape != shape or not np.isin(nearest, train).all():
            return None
    return neighbour_rows

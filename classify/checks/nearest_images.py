"""The training images nearest to an image, in a given class."""

from collections.abc import Sequence

import numpy as np

from classify.data.features import FeatureRows
from classify.data.preparation import ROOT_L2
from classify.data.tasks import Task
from classify.labels.folders import TRAIN
from featurize.cache.reader import FeatureCache


def find_nearest_images(
    cache: FeatureCache,
    task: Task,
    layers: Sequence[str],
    prepare: str,
    queries: Sequence[tuple[int, int]],
) -> list[int | None]:
    """Find the nearest training image of a class, for each of some images.

    The search is exact. Features are prepared as a head sees them and compared by cosine. Training
    images are read once, in blocks of 8 MB.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    layers : sequence of str
        Joined.
    prepare : str
        One of `classify.data.preparation.PREPARATIONS`.
    queries : sequence of (int, int)
        Row of an image, and the number of a class.

    Returns
    -------
    list of int or None
        A row of the cache for each query, never its own; None if the class has no other training
        image.

    Raises
    ------
    RowNotReadyError
        If an image has no features.
    UnknownLayerError
        If the cache lacks a layer.
    """
    if not queries:
        return []
    query_rows, query_classes = np.array(queries, np.int64).T
    is_candidate = (task.split == TRAIN) & np.isin(task.y, query_classes)
    candidate_rows, candidate_classes = task.rows[is_candidate], task.y[is_candidate]
    unique_rows, query_of = np.unique(query_rows, return_inverse=True)
    candidates = FeatureRows.from_cache(cache, layers, candidate_rows).with_preparation(prepare)
    query_features = FeatureRows.from_cache(cache, layers, unique_rows).with_preparation(prepare)
    mean, scale = np.zeros(candidates.dim), np.ones(candidates.dim)
    if prepare != ROOT_L2:
        mean, scale = _compute_moments(
            FeatureRows.from_cache(cache, layers, task.rows[task.split == TRAIN])
        )
    queried = _to_unit_rows(query_features.to_array(), mean, scale)
    best_cosine = np.full(len(queries), -np.inf)
    best_row = np.full(len(queries), -1)
    for part, block in candidates.iter_blocks(len(unique_rows)):
        cosines = (queried @ _to_unit_rows(block, mean, scale).T)[query_of]
        is_other_class = candidate_classes[part] != query_classes[:, None]
        cosines[is_other_class | (candidate_rows[part] == query_rows[:, None])] = -np.inf
        nearest = cosines.argmax(axis=1)
        cosine = cosines[np.arange(len(queries)), nearest]
        is_better = cosine > best_cosine
        best_cosine[is_better] = cosine[is_better]
        best_row[is_better] = candidate_rows[part][nearest[is_better]]
    return [int(row) if row >= 0 else None for row in best_row]


def _compute_moments(rows: FeatureRows) -> tuple[np.ndarray, np.ndarray]:
    """Compute each column's mean, and the inverse of its standard deviation; 0 where constant."""
    total, squares = np.zeros(rows.dim), np.zeros(rows.dim)
    for _, block in rows.iter_blocks():
        total += block.sum(axis=0, dtype=np.float64)
        squares += np.square(block, dtype=np.float64).sum(axis=0)
    mean = total / max(1, len(rows))
    deviation = np.sqrt(np.maximum(squares / max(1, len(rows)) - mean**2, 0))
    return mean, np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)


def _to_unit_rows(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardise columns, then divide each row by its length; rows of zeros stay zero."""
    X = ((X - mean) * scale).astype(np.float32)
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(length > 0, length, 1))

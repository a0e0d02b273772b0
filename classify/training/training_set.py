"""From arrays to what a head learns from: folds, copies, weights."""

from dataclasses import replace
from hashlib import blake2b
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.model_selection import check_cv

from classify.data.features import FeatureRows
from classify.data.folds import MAX_FOLDS, FoldPlan, plan_folds
from classify.data.units import link_same_bytes, number_units
from classify.errors import CallError
from classify.heads.registry import HeadSpec
from classify.solvers.gram_cache import compute_fold_bases
from classify.training.class_weights import count_repeats, resolve_class_weights
from classify.training.train import TrainingSet, limit_folds


def make_training_set(
    spec: HeadSpec,
    X: np.ndarray,
    y: np.ndarray,
    classes: np.ndarray,
    used: np.ndarray,
    *,
    class_weight: object = None,
    row_weights: np.ndarray | None = None,
    cv: Any = None,
    groups: Any = None,
    seed: int = 0,
) -> TrainingSet:
    """Prepare everything that `classify.training.train.train` asks for.

    Rows that are the same belong together: folds that are drawn never tear them apart. Of linear
    heads they are then one row that weighs as much as all of them, so that weights and repetitions
    are the same thing to the last digit.

    Parameters
    ----------
    spec : HeadSpec
    X : float32 array of shape (n, D)
    y : int array of shape (m,)
        Positions in `classes`, of the rows used.
    classes : array of shape (K,)
    used : int array of shape (m,)
        Which of the n rows to learn from.
    class_weight : None, "balanced" or mapping
    row_weights : float array of shape (m,), optional
        Above 0; for linear heads only. A held-out row is judged as often as it weighs.
    cv : None, int, splitter or iterable of (train, held out)
        None is five. A number of folds is that of stratified ones, which keep groups whole.
        Splitters and iterables give positions among the n.
    groups : array of shape (n,), optional
    seed : int
        Of the folds that are drawn.

    Raises
    ------
    CallError, ValueError
    """
    contents = _hash_rows(X, used)
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != (len(X),):
            raise CallError(f"groups is one a row, shape ({len(X)},), not {groups.shape}")
    if cv is None or isinstance(cv, Integral):
        n_folds = MAX_FOLDS if cv is None else int(cv)
        if n_folds < 2:
            raise CallError(f"cv is a number of folds from 2 on, not {cv}")
        of = None if groups is None else np.unique(groups[used], return_inverse=True)[1]
        unit = number_units(of, len(y), link_same_bytes(contents))
        alone = unit.max(initial=0) == len(y) - 1
        found = plan_folds(y, seed, None if alone else unit, max_folds=n_folds)
    else:
        found = _plan_given_folds(cv, X, y, classes, used, groups)
    rows, each = (
        FeatureRows((X,), used),
        resolve_class_weights(class_weight, classes, y, row_weights),
    )
    if spec.solver in ("solved", "minimised"):
        first, row_weights = _merge_duplicate_rows(contents, y, row_weights, found)
        rows, y, found = rows.subset(first), y[first], found.subset(first)
        if row_weights is not None:
            often = count_repeats(row_weights)
            found = replace(found, val_indices=[np.repeat(h, often[h]) for h in found.val_indices])
    found = limit_folds(spec, rows, found, len(classes))
    lesson = TrainingSet(rows, y, len(classes), found, (), each, row_weights)
    if spec.solver not in ("solved", "minimised"):
        return lesson
    return replace(
        lesson, fold_bases=compute_fold_bases(None, (), rows, found, lesson.gram_weights(spec))
    )


def _plan_given_folds(
    cv: Any, X: np.ndarray, y: np.ndarray, classes: np.ndarray, used: np.ndarray, groups: Any
) -> FoldPlan:
    """The folds of a splitter or an iterable, for the rows used."""
    labels, every = np.full(len(X), classes[0]), np.arange(len(X))
    labels[used] = classes[y]
    splits = check_cv(cv, labels, classifier=True).split(X, labels, groups)
    pairs = [(every[train], every[held]) for train, held in splits]
    trains, held_by = [train for train, _ in pairs], [held for _, held in pairs]
    found = FoldPlan(np.zeros(len(X), np.int16), held_by, train_indices=trains).subset(used)
    # Nothing is learnt from one class, and nothing judged by no rows.
    fine = [(t, h) for t, h in found.folds if len(h) and len(np.unique(y[t])) > 1]
    return replace(
        found, train_indices=[train for train, _ in fine], val_indices=[held for _, held in fine]
    )


def _hash_rows(X: np.ndarray, used: np.ndarray) -> np.ndarray:
    """A hash of each row used: uint8 (m, 16)."""
    hashes = (blake2b((X[i] + 0).tobytes(), digest_size=16).digest() for i in used)  # -0 is 0
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(used), 16)


def _merge_duplicate_rows(
    contents: np.ndarray, y: np.ndarray, weights: np.ndarray | None, fold_plan: FoldPlan
) -> tuple[np.ndarray, np.ndarray | None]:
    """One of each kind of row, in an order that does not depend on theirs; and its weight.

    Rows are of one kind that have the same features and label, and are trained on and held out by
    the same folds.
    """
    pairs = fold_plan.folds
    sides = np.zeros((len(y), 2 * len(pairs)), bool)
    for i, (train, held) in enumerate(pairs):
        sides[train, 2 * i] = sides[held, 2 * i + 1] = True
    numbers = y.astype("<i8")[:, None].view(np.uint8)
    key = np.concatenate([contents, numbers, np.packbits(sides, axis=1)], axis=1)
    whole = np.ascontiguousarray(key).view(f"V{key.shape[1]}")[:, 0]
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    found = np.bincount(which, weights).astype(np.float64)
    return first, None if (found == 1).all() else found

"""What a head learns from: rows, labels, folds, weights, and the bases of its Gram statistics."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.model_selection import check_cv

from classify.data.features import FeatureRows
from classify.data.folds import MAX_FOLDS, FoldPlan, plan_folds
from classify.data.units import link_same_bytes, number_units
from classify.errors import CallError
from classify.heads.registry import HeadSpec
from classify.solvers import lbfgs, neighbours, rbf_svm
from classify.solvers.gram import PrincipalBasis
from classify.solvers.gram_cache import compute_fold_bases
from classify.solvers.selection import PathPoint, SelectedParam, SelectionLoss, select_param
from classify.training.class_weights import count_repeats, resolve_class_weights
from featurize.cache.reader import FeatureCache

MAX_IN_MEMORY_BYTES = 1 << 30
"""Bytes of float32 features up to which a copy of them may be made."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a head learns from.

    Attributes
    ----------
    rows : FeatureRows
        n of them.
    y : int array of shape (n,)
        Class numbers below `n_classes`; -1 for a class that the final rows lack.
    n_classes : int
        K.
    fold_plan : FoldPlan
    fold_bases : sequence of PrincipalBasis
        One for each fold and one for the final rows, as
        `classify.solvers.gram_cache.compute_fold_bases` gives them. Only heads that `uses_gram`
        need them.
    class_weights : float array of shape (K,), optional
        How much a row of each class counts.
    row_weights : float64 array of shape (n,), optional
        How often each row counts, for heads that `uses_gram`.
    find_neighbours : callable
        `classify.solvers.neighbours.find_neighbours`, or one that loads what it found before.
    selection_loss : callable, optional
        What params are selected by instead of the head's own loss, from held-out decision values
        and class numbers.
    loss_tol : float
        As in `classify.solvers.selection.select_param`.
    """

    rows: FeatureRows
    y: np.ndarray
    n_classes: int
    fold_plan: FoldPlan
    fold_bases: Sequence[PrincipalBasis] = ()
    class_weights: np.ndarray | None = None
    row_weights: np.ndarray | None = None
    find_neighbours: Callable[[FeatureRows, FoldPlan], list[np.ndarray]] = (
        neighbours.find_neighbours
    )
    selection_loss: SelectionLoss | None = None
    loss_tol: float = 0.0

    @classmethod
    def prepare(
        cls,
        spec: HeadSpec,
        rows: FeatureRows,
        y: np.ndarray,
        fold_plan: FoldPlan,
        *,
        n_classes: int,
        cache: FeatureCache | None = None,
        layers: Sequence[str] = (),
        save_stats: bool = True,
        **options: Any,
    ) -> Self:
        """Limit the folds to what the head can afford, and compute the bases it needs.

        Parameters
        ----------
        spec : HeadSpec
        rows, y, fold_plan, n_classes
            As the attributes; the folds before they are limited.
        cache : FeatureCache, optional
            Where the rows are from. Without it nothing is stored.
        layers : sequence of str
            Of the cache.
        save_stats : bool
            Whether to store the bases beside the cache.
        **options
            Further attributes: `class_weights`, `row_weights`, `find_neighbours`,
            `selection_loss`, `loss_tol`.

        Returns
        -------
        TrainingSet

        Raises
        ------
        CallError
            If the head cannot have so many classes and columns.
        """
        fold_plan = limit_folds(spec, rows, fold_plan, n_classes)
        training_set = cls(rows, y, n_classes, fold_plan, **options)
        if not spec.uses_gram:
            return training_set
        weights = training_set.gram_weights(spec)
        bases = compute_fold_bases(cache, layers, rows, fold_plan, weights, save_stats=save_stats)
        return replace(training_set, fold_bases=bases)

    def select_param(self, points: Iterable[PathPoint], y: np.ndarray, loss: str) -> SelectedParam:
        """Select a param by this training set's loss: `classify.solvers.selection.select_param`."""
        return select_param(points, y, loss, self.selection_loss, self.loss_tol)

    @property
    def weights(self) -> np.ndarray:
        """The weight of each row, that of its class included: float64 (n,)."""
        known = self.y >= 0
        weights = known * (1.0 if self.row_weights is None else self.row_weights)
        if self.class_weights is not None:
            weights = weights * np.where(known, self.class_weights[self.y], 0.0)
        return weights

    def gram_weights(self, spec: HeadSpec) -> np.ndarray | None:
        """The weights of a head's Gram statistics and class sums: float64 (n,), or None."""
        weighted = spec.weights_gram and self.class_weights is not None
        return self.weights if weighted else self.row_weights

    @property
    def class_weight(self) -> dict[int, float] | None:
        """The weights of the classes as scikit-learn takes them."""
        weights = self.class_weights
        return None if weights is None else dict(enumerate(weights.tolist()))

    def weights_at(self, positions: np.ndarray) -> np.ndarray:
        """The weights of some rows, zero for all others: float64 (n,)."""
        weights = np.zeros(len(self.y))
        weights[positions] = self.weights[positions]
        return weights


def fits_in_memory(n_bytes: int) -> bool:
    """Whether a copy of features of so many bytes may be made."""
    return n_bytes <= MAX_IN_MEMORY_BYTES


def is_exact_svm_feasible(rows: FeatureRows, n_train: int, n_classes: int) -> bool:
    """Whether an RBF SVM can compare all pairs of training rows."""
    few = n_train <= rbf_svm.MAX_EXACT_ROWS and n_classes <= rbf_svm.MAX_EXACT_CLASSES
    return few and fits_in_memory(rows.nbytes)


def limit_folds(spec: HeadSpec, rows: FeatureRows, fold_plan: FoldPlan, n_classes: int) -> FoldPlan:
    """Limit the folds to the first where an iterative solver reads its rows in blocks.

    Heads in closed form use all folds: theirs cost no pass over the rows.

    Parameters
    ----------
    spec : HeadSpec
    rows : FeatureRows
    fold_plan : FoldPlan
    n_classes : int

    Returns
    -------
    FoldPlan

    Raises
    ------
    CallError
        If the head cannot have so many classes and columns. It is raised before bases are computed.
    """
    if spec.solver == "lbfgs":
        lbfgs.check_solver_memory(n_classes, rows.dim, min(len(rows), rows.dim))
    if spec.solver == "rbf_svm" and not is_exact_svm_feasible(rows, len(rows), n_classes):
        lbfgs.check_solver_memory(n_classes, rbf_svm.MAX_LANDMARKS, rbf_svm.MAX_LANDMARKS)
    iterates = spec.solver in ("lbfgs", "rbf_svm")
    if iterates and fold_plan.val_indices and not fits_in_memory(rows.nbytes):
        return fold_plan.select_fold(0)
    return fold_plan


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
    loss_tol: float = 0.0,
) -> TrainingSet:
    """Prepare a training set from arrays, as `classify.training.train.train` takes it.

    Rows that are the same belong together: folds that are drawn never tear them apart. For a head
    that `uses_gram` they become one row that weighs as much as all of them. Weights and repetitions
    are thus the same thing to the last digit.

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
        Above 0; for heads that `uses_gram` only. A held-out row is judged as often as it weighs.
    cv : None, int, splitter or iterable of (train, held out)
        A number is that of stratified folds, which keep groups whole; None is five. Splitters and
        iterables give positions among the n.
    groups : array of shape (n,), optional
    seed : int
        Of the folds that are drawn.
    loss_tol : float
        As in `classify.solvers.selection.select_param`.

    Returns
    -------
    TrainingSet

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
        fold_plan = _draw_folds(cv, y, contents, None if groups is None else groups[used], seed)
    else:
        fold_plan = _plan_given_folds(cv, X, y, classes, used, groups)
    rows = FeatureRows((X,), used)
    class_weights = resolve_class_weights(class_weight, classes, y, row_weights)
    if spec.uses_gram:
        first, row_weights = _merge_duplicate_rows(contents, y, row_weights, fold_plan)
        rows, y, fold_plan = rows.subset(first), y[first], fold_plan.subset(first)
        if row_weights is not None:
            repeats = count_repeats(row_weights)
            repeated = [np.repeat(held, repeats[held]) for held in fold_plan.val_indices]
            fold_plan = replace(fold_plan, val_indices=repeated)
    return TrainingSet.prepare(
        spec,
        rows,
        y,
        fold_plan,
        n_classes=len(classes),
        class_weights=class_weights,
        row_weights=row_weights,
        loss_tol=loss_tol,
    )


def _draw_folds(
    cv: Any, y: np.ndarray, contents: np.ndarray, groups: np.ndarray | None, seed: int
) -> FoldPlan:
    """Draw stratified folds; rows of one group, or that are the same, stay together."""
    n_folds = MAX_FOLDS if cv is None else int(cv)
    if n_folds < 2:
        raise CallError(f"cv is a number of folds from 2 on, not {cv}")
    unit = number_units(groups, len(y), link_same_bytes(contents))
    all_single = unit.max(initial=0) == len(y) - 1
    return plan_folds(y, seed, None if all_single else unit, max_folds=n_folds)


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

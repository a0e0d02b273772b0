"""Training sets: rows, labels, folds, weights, and the principal bases of the folds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.model_selection import check_cv

from classify.data.features import FeatureRows
from classify.data.folds import MAX_FOLDS, FoldPlan, plan_folds
from classify.data.units import hash_rows, link_same_bytes, number_units
from classify.errors import CallError
from classify.heads.registry import HeadSpec
from classify.solvers import lbfgs, neighbours, rbf_svm
from classify.solvers.gram import PrincipalBasis
from classify.solvers.gram_cache import compute_fold_bases
from classify.solvers.selection import PathPoint, SelectedParam, SelectionLoss, select_param
from classify.training.class_weights import count_repeats, resolve_class_weights
from featurize.cache.reader import FeatureCache

MAX_IN_MEMORY_BYTES = 1 << 30  # largest size of float32 features that may be copied


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The rows, labels, folds and weights that a head is trained on.

    Attributes
    ----------
    rows : FeatureRows
        n rows.
    y : int array of shape (n,)
        Class numbers below `n_classes`; -1 for a class that the final rows lack.
    n_classes : int
        K.
    fold_plan : FoldPlan
        Training and held-out rows of each fold, and the final training rows.
    fold_bases : sequence of PrincipalBasis
        One for each fold and one for the final rows, for heads with `HeadSpec.uses_gram`: see
        `classify.solvers.gram_cache.compute_fold_bases`.
    class_weights : float array of shape (K,), optional
        Weight of each class.
    row_weights : float64 array of shape (n,), optional
        Weight of each row, for heads with `HeadSpec.uses_gram`.
    find_neighbours : callable
        `classify.solvers.neighbours.find_neighbours`, or a function that stores its result.
    selection_loss : callable, optional
        Replaces the head's own loss in selection; takes decision values and class numbers.
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
        """Limit the folds for the head's solver, and compute the bases that it needs.

        Parameters
        ----------
        spec : HeadSpec
            The kind of head.
        rows, y, fold_plan, n_classes
            As the attributes; the folds before they are limited.
        cache : FeatureCache, optional
            The cache that the rows are from. Without it nothing is stored.
        layers : sequence of str
            Names of the rows' layers.
        save_stats : bool, default True
            Whether to store the bases next to the cache.
        **options
            Further attributes: `class_weights`, `row_weights`, `find_neighbours`,
            `selection_loss`, `loss_tol`.

        Returns
        -------
        TrainingSet
            With bases for heads with `HeadSpec.uses_gram`.

        Raises
        ------
        CallError
            If the solver cannot hold so many classes and columns.
        """
        fold_plan = limit_folds(spec, rows, fold_plan, n_classes)
        training_set = cls(rows, y, n_classes, fold_plan, **options)
        if not spec.uses_gram:
            return training_set
        weights = training_set.gram_weights(spec)
        bases = compute_fold_bases(cache, layers, rows, fold_plan, weights, save_stats=save_stats)
        return replace(training_set, fold_bases=bases)

    def select_param(self, points: Iterable[PathPoint], y: np.ndarray, loss: str) -> SelectedParam:
        """Select a param, by `selection_loss` if there is one.

        Parameters
        ----------
        points : iterable of PathPoint
            From strong to weak regularisation.
        y : int array of shape (m,)
            Class numbers of the held-out rows.
        loss : str
            The head's own loss.

        Returns
        -------
        SelectedParam
            As `classify.solvers.selection.select_param` returns it.
        """
        return select_param(points, y, loss, self.selection_loss, self.loss_tol)

    @property
    def weights(self) -> np.ndarray:
        """Weight of each row times that of its class: float64 (n,)."""
        known = self.y >= 0
        weights = known * (1.0 if self.row_weights is None else self.row_weights)
        if self.class_weights is not None:
            weights = weights * np.where(known, self.class_weights[self.y], 0.0)
        return weights

    def gram_weights(self, spec: HeadSpec) -> np.ndarray | None:
        """Return the row weights of a head's Gram statistics and class sums.

        Parameters
        ----------
        spec : HeadSpec
            The kind of head.

        Returns
        -------
        float64 array of shape (n,), or None
            None if all weights are 1.
        """
        weighted = spec.weights_gram and self.class_weights is not None
        return self.weights if weighted else self.row_weights

    @property
    def class_weight(self) -> dict[int, float] | None:
        """Weights of the classes in scikit-learn's form."""
        weights = self.class_weights
        return None if weights is None else dict(enumerate(weights.tolist()))

    def weights_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the weights of the rows at some positions.

        Parameters
        ----------
        positions : int array of shape (m,)
            Positions among the n rows.

        Returns
        -------
        float64 array of shape (n,)
            0 at all other positions.
        """
        weights = np.zeros(len(self.y))
        weights[positions] = self.weights[positions]
        return weights


def fits_in_memory(n_bytes: int) -> bool:
    """Return whether features may be copied into memory.

    Parameters
    ----------
    n_bytes : int
        Size of the features.

    Returns
    -------
    bool
        True up to `MAX_IN_MEMORY_BYTES`.
    """
    return n_bytes <= MAX_IN_MEMORY_BYTES


def is_exact_svm_feasible(rows: FeatureRows, n_train: int, n_classes: int) -> bool:
    """Return whether an RBF SVM can use the exact kernel of all pairs of training rows.

    Parameters
    ----------
    rows : FeatureRows
        Training and held-out rows.
    n_train : int
        Number of training rows.
    n_classes : int
        K.

    Returns
    -------
    bool
        True if rows and classes are few, and the features fit into memory.
    """
    is_small = n_train <= rbf_svm.MAX_EXACT_ROWS and n_classes <= rbf_svm.MAX_EXACT_CLASSES
    return is_small and fits_in_memory(rows.nbytes)


def limit_folds(spec: HeadSpec, rows: FeatureRows, fold_plan: FoldPlan, n_classes: int) -> FoldPlan:
    """Limit the folds to the first where an iterative solver reads its rows in blocks.

    Closed-form heads use all folds, which cost them no further pass over the rows.

    Parameters
    ----------
    spec : HeadSpec
        The kind of head.
    rows : FeatureRows
        All rows.
    fold_plan : FoldPlan
        Folds of these rows.
    n_classes : int
        K.

    Returns
    -------
    FoldPlan
        The given folds, or the first of them.

    Raises
    ------
    CallError
        If the solver cannot hold so many classes and columns. Raised before bases are computed.
    """
    if spec.uses_lbfgs:
        lbfgs.check_solver_memory(n_classes, rows.dim, min(len(rows), rows.dim))
    if spec.solver == "rbf_svm" and not is_exact_svm_feasible(rows, len(rows), n_classes):
        lbfgs.check_solver_memory(n_classes, rbf_svm.MAX_LANDMARKS, rbf_svm.MAX_LANDMARKS)
    is_iterative = spec.uses_lbfgs or spec.solver == "rbf_svm"
    if is_iterative and fold_plan.val_indices and not fits_in_memory(rows.nbytes):
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

    Folds drawn here keep identical rows together. For a head with `HeadSpec.uses_gram` they are
    merged and their weights summed, so that weights and repetitions give exactly the same result.

    Parameters
    ----------
    spec : HeadSpec
        The kind of head.
    X : float32 array of shape (n, D)
        Features.
    y : int array of shape (m,)
        Positions in `classes` of the rows used.
    classes : array of shape (K,)
        Labels of the classes.
    used : int array of shape (m,)
        Positions of the training rows among the n rows.
    class_weight : None, "balanced" or mapping
        As in `classify.training.class_weights.resolve_class_weights`.
    row_weights : float array of shape (m,), optional
        Above 0; for heads with `HeadSpec.uses_gram` only. Held-out rows are repeated by weight.
    cv : None, int, splitter or iterable of (train, held out)
        A number of stratified folds, which keep groups whole; None is five. Splitters and iterables
        give positions among the n rows.
    groups : array of shape (n,), optional
        Rows of one group are never on both sides of a fold.
    seed : int, default 0
        Seed of the folds drawn here.
    loss_tol : float, default 0
        As in `classify.solvers.selection.select_param`.

    Returns
    -------
    TrainingSet
        As `TrainingSet.prepare` returns it.

    Raises
    ------
    CallError, ValueError
        If `cv`, `groups` or `class_weight` is wrong, or the solver cannot hold the problem.
    """
    contents = hash_rows(X, used)
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
    """Draw stratified folds that keep groups and identical rows together."""
    n_folds = MAX_FOLDS if cv is None else int(cv)
    if n_folds < 2:
        raise CallError(f"cv is a number of folds from 2 on, not {cv}")
    unit = number_units(groups, len(y), link_same_bytes(contents))
    all_single = unit.max(initial=0) == len(y) - 1
    return plan_folds(y, seed, None if all_single else unit, max_folds=n_folds)


def _plan_given_folds(
    cv: Any, X: np.ndarray, y: np.ndarray, classes: np.ndarray, used: np.ndarray, groups: Any
) -> FoldPlan:
    """Make a plan of the folds of a splitter or an iterable, for the rows used."""
    labels, all_rows = np.full(len(X), classes[0]), np.arange(len(X))
    labels[used] = classes[y]
    splits = check_cv(cv, labels, classifier=True).split(X, labels, groups)
    pairs = [(all_rows[train], all_rows[held_out]) for train, held_out in splits]
    train_indices, val_indices = [train for train, _ in pairs], [held_out for _, held_out in pairs]
    fold_plan = FoldPlan(
        np.zeros(len(X), np.int16), val_indices, train_indices=train_indices
    ).subset(used)
    # Folds with one class to train on, or without held-out rows, are left out.
    usable = [(t, h) for t, h in fold_plan.folds if len(h) and len(np.unique(y[t])) > 1]
    return replace(
        fold_plan, train_indices=[train for train, _ in usable], val_indices=[h for _, h in usable]
    )


def _merge_duplicate_rows(
    contents: np.ndarray, y: np.ndarray, weights: np.ndarray | None, fold_plan: FoldPlan
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the first of each set of duplicates, in an order independent of theirs, and weights.

    Duplicates have the same features and label, and are on the same sides of all folds.
    """
    folds = fold_plan.folds
    sides = np.zeros((len(y), 2 * len(folds)), bool)
    for i, (train, held_out) in enumerate(folds):
        sides[train, 2 * i] = sides[held_out, 2 * i + 1] = True
    label_bytes = y.astype("<i8")[:, None].view(np.uint8)
    key = np.concatenate([contents, label_bytes, np.packbits(sides, axis=1)], axis=1)
    row_keys = np.ascontiguousarray(key).view(f"V{key.shape[1]}")[:, 0]
    _, first, key_index = np.unique(row_keys, return_index=True, return_inverse=True)
    merged_weights = np.bincount(key_index, weights).astype(np.float64)
    return first, None if (merged_weights == 1).all() else merged_weights

"""Train one head on some rows: its setting by validation, then the head itself."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from sklearn.pipeline import Pipeline

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan
from classify.errors import CallError
from classify.heads.models import LinearModel, SklearnModel
from classify.heads.registry import EstimatorFactory, HeadSpec, Param
from classify.solvers import closed_form, lbfgs, neighbours, rbf_svm, sklearn_heads
from classify.solvers.gram import SCALE_NONE, GramStats, PrincipalBasis
from classify.solvers.lbfgs import Problem
from classify.solvers.selection import PathPoint, SelectedParam, SelectionLoss, select_param

MAX_IN_MEMORY_BYTES = 1 << 30
"""Bytes of float32 features up to which a copy of them may be made."""
SAMPLE_ABOVE_VALUES = (
    1_000_000  # held-out scores; beyond, a sample of the held-out images is scored,
)
MIN_HELD_OUT_ROWS = (
    20_000  # though of no fewer images: a worker holds them for several settings at once,
)
MAX_HELD_OUT_VALUES = 100_000_000  # unless these would be more, 400 MB


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A head, and what was learnt on the way.

    Attributes
    ----------
    scorer : LinearModel or Fitted
    setting : float, or None
        The chosen one.
    choice : EngineSelector, or None
        None where nothing could be validated.
    held : int array of shape (m,)
        Positions of the validated images; `choice.scores` has a row for each.
    probabilistic : bool
    notices : list of str
    further : dict of str to float
        What was chosen beside the setting, by name: a kernel's ``gamma``.
    """

    scorer: LinearModel | SklearnModel
    param: float | None
    selected: SelectedParam | None
    held_out: np.ndarray
    probabilistic: bool
    notices: list[str] = field(default_factory=list)
    extra_params: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a head learns from.

    Attributes
    ----------
    rows : FeatureRows
        n of them.
    y : int array of shape (n,)
        Positions below `n_classes`; -1 for a class that the final rows lack.
    n_classes : int
    folding : FoldPlan
    spectra : sequence of PrincipalBasis
        One for each fold and one for the final rows, as `classify.solvers.gram_cache.compute_fold_bases` gives them.
        Delegated heads, kernels and neighbours do without.
    class_weights : float array of shape (K,), optional
        How much a row of each class counts.
    row_weights : float64 array of shape (n,), optional
        How often each row counts. Delegated heads and the statistics of kernels do without.
    nearest : callable
        Finds neighbours: `classify.solvers.neighbours.find_neighbours`, or one that recalls what it found.
    judge : callable, optional
        What settings are chosen by instead of a head's own loss, from held-out scores and labels.
    slack : float
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

    def select_param(self, points: Iterable[PathPoint], y: np.ndarray, loss: str) -> SelectedParam:
        """`classify.solvers.selection.select_param`, by what this lesson is judged by."""
        return select_param(points, y, loss, self.selection_loss, self.loss_tol)

    @property
    def weights(self) -> np.ndarray:
        """The weight of each row, by its class too: float64 (n,)."""
        known = self.y >= 0
        each = known * (1.0 if self.row_weights is None else self.row_weights)
        if self.class_weights is not None:
            each = each * np.where(known, self.class_weights[self.y], 0.0)
        return each

    def gram_weights(self, spec: HeadSpec) -> np.ndarray | None:
        """What a head's spectra and class sums are weighted by: float64 (n,), or None.

        The weights of classes have a part in ridge's alone: they shift the bias of softmax and
        hinge, and the priors of LDA.
        """
        weighs = spec.name == "ridge" and self.class_weights is not None
        return self.weights if weighs else self.row_weights

    @property
    def class_weight(self) -> dict[int, float] | None:
        """As scikit-learn has it."""
        each = self.class_weights
        return None if each is None else dict(enumerate(each.tolist()))

    def weights_at(self, positions: np.ndarray) -> np.ndarray:
        """The weights, zero but for some rows."""
        chosen = np.zeros(len(self.y))
        chosen[positions] = self.weights[positions]
        return chosen


def limit_folds(spec: HeadSpec, rows: FeatureRows, fold_plan: FoldPlan, n_classes: int) -> FoldPlan:
    """The folds that a head goes through: the first alone where the rows are read in blocks.

    Heads in closed form use all of them: theirs cost no pass over the rows.

    Raises
    ------
    CallError
        If a head cannot have so many classes and columns; better now than after the spectra.
    """
    if spec.solver == "minimised":
        lbfgs.check_solver_memory(n_classes, rows.dim, min(len(rows), rows.dim))
    if spec.solver == "kernel" and not _is_exact_svm_feasible(rows, len(rows), n_classes):
        lbfgs.check_solver_memory(n_classes, rbf_svm.MAX_LANDMARKS, rbf_svm.MAX_LANDMARKS)
    if (
        spec.solver in ("minimised", "kernel")
        and rows.nbytes > MAX_IN_MEMORY_BYTES
        and fold_plan.val_indices
    ):
        return fold_plan.select_fold(0)
    return fold_plan


def train(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    """Choose a setting by held-out loss, then train on all final rows with it.

    Raises
    ------
    CallError
        If the head cannot be trained on so many rows.
    """
    training_set, notices = _sample_held_out(training_set)
    if training_set.class_weights is not None and not spec.uses_class_weight:
        notices.append("it takes no class weights, so that option changes nothing")
    trained = SOLVERS[spec.solver](spec, training_set)
    trained.notices[:0] = notices
    trained.notices.extend(_list_notices(spec, trained))
    return trained


def _train_lbfgs(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    rows = training_set.rows
    if rows.nbytes <= MAX_IN_MEMORY_BYTES:
        rows = FeatureRows.from_array(rows.to_array())  # gone through often: gathered once
    problems = [
        Problem(rows, training_set.weights_at(train), training_set.fold_bases[i], rows.subset(held))
        for i, (train, held) in enumerate(training_set.fold_plan.folds)
    ]
    final = Problem(
        rows,
        training_set.weights_at(training_set.fold_plan.final_indices),
        training_set.fold_bases[-1],
        rows.subset(_NO_ROWS),
    )
    return _fit_path(spec, training_set, problems, final)


def _train_rbf_svm(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    """By all pairs of rows where they are few, else by similarities to some of them."""
    if _is_exact_svm_feasible(
        training_set.rows, len(training_set.fold_plan.final_indices), training_set.n_classes
    ):
        return _train_exact_svm(spec, training_set)
    return _train_nystroem_svm(spec, training_set)


def _is_exact_svm_feasible(rows: FeatureRows, n: int, n_classes: int) -> bool:
    few = n <= rbf_svm.MAX_EXACT_ROWS and n_classes <= rbf_svm.MAX_EXACT_CLASSES
    return few and rows.nbytes <= MAX_IN_MEMORY_BYTES


def _train_exact_svm(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    X, y, folding, final = (
        training_set.rows.to_array(),
        training_set.y,
        training_set.fold_plan,
        training_set.fold_plan.final_indices,
    )
    K, weight, whole = (
        training_set.n_classes,
        training_set.class_weight,
        training_set.rows.is_root_l2,
    )
    choice, setting, times = None, _pick_middle(spec.grid), _pick_middle(spec.gamma_factors)
    if folding.val_indices:
        walks = rbf_svm.cross_val_paths(
            spec.grid, spec.gamma_factors, X, y, folding.folds, K, weight, global_scale=whole
        )
        choices = [
            training_set.select_param(walk, y[folding.held_out], spec.loss) for walk in walks
        ]
        best = int(np.argmin([choice.loss for choice in choices]))
        choice, times = choices[best], spec.gamma_factors[best]
        setting = choice.param
    scorer, gamma, fine = rbf_svm.fit_exact_svm(
        setting, times, X[final], y[final], K, weight, global_scale=whole
    )
    notices = [] if fine else [_describe_unconverged(spec, setting)]
    further = {"gamma": gamma}
    return TrainResult(scorer, setting, choice, folding.held_out, False, notices, further)


def _train_nystroem_svm(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    """The width is chosen on the first fold alone: to map rows takes most of the time."""
    folding, y, K = training_set.fold_plan, training_set.y, training_set.n_classes
    spec, times = replace(spec, loss="hinge"), _pick_middle(spec.gamma_factors)
    if folding.val_indices:
        (fold, *_), means = folding.folds, []
        for width in spec.gamma_factors:
            _, problem = _map_rows(training_set, *fold, width)
            steps = lbfgs.cross_val_path(spec.loss, spec.grid, [problem], y, K)
            means.append(training_set.select_param(steps, y[fold[1]], spec.loss).loss)
        times = spec.gamma_factors[int(np.argmin(means))]
    problems = [_map_rows(training_set, *fold, times)[1] for fold in folding.folds]
    kernel, final = _map_rows(training_set, folding.final_indices, _NO_ROWS, times)
    trained = _fit_path(spec, training_set, problems, final)
    notice = (
        f"not all pairs of {len(folding.final_indices):,} images of {K:,} classes are compared: those "
        f"with {rbf_svm.MAX_LANDMARKS:,} of them take their place"
    )
    scorer = rbf_svm.to_sklearn_model(kernel, cast(LinearModel, trained.scorer), K)
    further = {"gamma": float(kernel[-1].gamma)}
    return replace(trained, scorer=scorer, notices=[notice, *trained.notices], extra_params=further)


def _map_rows(
    training_set: TrainingSet, train_rows: np.ndarray, held: np.ndarray, gamma_factor: float
) -> tuple[Pipeline, Problem]:
    """A kernel map of some rows, and what is to be minimised behind it."""
    kernel = rbf_svm.fit_rbf_map(training_set.rows.subset(train_rows), gamma_factor)
    mapped: FeatureRows = rbf_svm.KernelRows(
        training_set.rows.parts, training_set.rows.rows, training_set.rows.is_root_l2, kernel
    )
    if (len(training_set.fold_plan.val_indices) + 1) * mapped.nbytes <= MAX_IN_MEMORY_BYTES:
        mapped = FeatureRows.from_array(mapped.to_array())
    # Similarities are left as they are: to scale them would change the kernel.
    spectrum = PrincipalBasis.from_gram(
        *GramStats.from_rows(mapped.subset(train_rows)).compute_centred(), SCALE_NONE
    )
    return kernel, Problem(
        mapped, training_set.weights_at(train_rows), spectrum, mapped.subset(held)
    )


def _fit_path(
    spec: HeadSpec, training_set: TrainingSet, problems: list[Problem], final: Problem
) -> TrainResult:
    folding, notices = training_set.fold_plan, []
    if training_set.rows.nbytes > MAX_IN_MEMORY_BYTES and problems:
        notices.append(
            f"features of over {MAX_IN_MEMORY_BYTES >> 30} GB are gone through in blocks, and "
            f"{spec.param_name} is chosen on one fold of {len(folding.held_out):,} images"
        )
    choice, setting = None, _pick_middle(spec.grid)
    if problems:
        steps = lbfgs.cross_val_path(
            spec.loss, spec.grid, problems, training_set.y, training_set.n_classes
        )
        choice = training_set.select_param(steps, training_set.y[folding.held_out], spec.loss)
        setting = choice.param
    scorer, fine = lbfgs.fit_linear(
        spec.loss, float(setting or 1), final, training_set.y, training_set.n_classes
    )
    if not fine:
        notices.append(_describe_unconverged(spec, setting))
    return TrainResult(scorer, setting, choice, folding.held_out, spec.probabilistic, notices)


def _train_closed_form(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    folding, y = training_set.fold_plan, training_set.y
    weights = training_set.gram_weights(spec)
    sums = closed_form.sum_classes_for_folds(
        training_set.rows, y, training_set.n_classes, folding, weights
    )
    choice, setting = None, _pick_middle(spec.grid)
    if folding.val_indices:
        folds = list(zip(training_set.fold_bases[:-1], folding.val_indices, strict=True))
        steps = closed_form.cross_val_path(
            spec.name, spec.grid, training_set.rows, folds, sums, training_set.class_weights
        )
        choice = training_set.select_param(steps, y[folding.held_out], spec.loss)
        setting = choice.param
    final = sums.sum_without(0 if folding.has_val_split else None)
    (scorer,) = closed_form.fit_closed_form(
        spec.name, training_set.fold_bases[-1], final, [setting], training_set.class_weights
    )
    return TrainResult(scorer, setting, choice, folding.held_out, spec.probabilistic)


def _train_neighbours(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    _check_memory(spec, training_set.rows)
    y, folding, final = training_set.y, training_set.fold_plan, training_set.fold_plan.final_indices
    choice, setting = None, _pick_middle(spec.grid)
    if folding.val_indices:
        near = training_set.find_neighbours(training_set.rows, folding)
        steps = neighbours.cross_val_path(spec.grid, near, y, folding, training_set.n_classes)
        choice = training_set.select_param(steps, y[folding.held_out], spec.loss)
        setting = choice.param
    scorer = neighbours.fit_neighbours(
        setting,
        training_set.rows.subset(final).to_array(),
        y[final],
        training_set.n_classes,
        global_scale=training_set.rows.is_root_l2,
    )
    return TrainResult(scorer, setting, choice, folding.held_out, spec.probabilistic)


def _train_sklearn(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    rows = training_set.rows
    _check_memory(spec, rows)
    folding, final, weight = (
        training_set.fold_plan,
        training_set.fold_plan.final_indices,
        training_set.class_weight,
    )
    build, X, y, K = (
        cast(EstimatorFactory, spec.make_estimator),
        rows.to_array(),
        training_set.y,
        training_set.n_classes,
    )
    choice = None
    if folding.val_indices:
        step = sklearn_heads.cross_val_point(
            build, X, y, folding.folds, K, weight, global_scale=rows.is_root_l2
        )
        choice = training_set.select_param([step], y[folding.held_out], spec.loss)
    scorer, fine = sklearn_heads.fit_sklearn_head(
        build, X[final], y[final], K, weight, global_scale=rows.is_root_l2
    )
    notices = [] if fine else [_describe_unconverged(spec, None)]
    return TrainResult(scorer, None, choice, folding.held_out, scorer.probabilistic, notices)


def _check_memory(spec: HeadSpec, rows: FeatureRows) -> None:
    if rows.nbytes > MAX_IN_MEMORY_BYTES:
        raise CallError(
            f"{spec.name} needs a copy of all features, and {len(rows):,} rows of {rows.dim:,} are "
            f"over {MAX_IN_MEMORY_BYTES >> 30} GB; use another head"
        )


SOLVERS = {
    "minimised": _train_lbfgs,
    "kernel": _train_rbf_svm,
    "solved": _train_closed_form,
    "neighbours": _train_neighbours,
    "delegated": _train_sklearn,
}
_NO_ROWS = np.zeros(0, np.intp)


def _sample_held_out(training_set: TrainingSet) -> tuple[TrainingSet, list[str]]:
    """Fewer held-out images where their scores would not fit; training keeps them all."""
    folding = training_set.fold_plan
    n_held = len(folding.held_out)
    most = max(
        SAMPLE_ABOVE_VALUES // training_set.n_classes,
        min(MIN_HELD_OUT_ROWS, MAX_HELD_OUT_VALUES // training_set.n_classes),
    )
    if n_held <= most:
        return training_set, []
    rng, share = np.random.default_rng(0), most / n_held
    held_by = []
    for held in folding.val_indices:
        some = rng.choice(len(held), max(1, int(share * len(held))), replace=False)
        held_by.append(held[np.sort(some)])
    fewer = replace(folding, val_indices=held_by)
    notice = f"validated on {len(fewer.held_out):,} of {n_held:,} images"
    return replace(training_set, fold_plan=fewer), [notice]


def _pick_middle(values: Sequence[Any]) -> Any:
    """What is taken where nothing can be chosen by."""
    return values[len(values) // 2]


def _describe_unconverged(spec: HeadSpec, param: Param) -> str:
    return f"the final fit with {_describe_param(spec, param)} did not converge"


def _describe_param(spec: HeadSpec, param: float | None) -> str:
    return "its defaults" if param is None else f"{spec.param_name} = {param:g}"


def _list_notices(spec: HeadSpec, trained: TrainResult) -> list[str]:
    notices, choice, called = [], trained.selected, _describe_param(spec, trained.param)
    if choice is None and len(spec.grid) > 1:
        notices.append(f"nothing to validate with, so {called} was not chosen")
    if choice is not None and choice.unconverged:
        notices.append(f"{len(choice.unconverged)} settings left out: a fit did not converge")
    if choice is not None and choice.is_at_grid_edge:
        notices.append(f"{called} is the end of its grid")
    return notices

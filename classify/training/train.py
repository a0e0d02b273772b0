"""Train one head: select its param by validation, then fit it on the final rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from sklearn.pipeline import Pipeline

from classify.data.features import FeatureRows
from classify.errors import CallError
from classify.evaluation.temperature import fit_temperature
from classify.heads.models import LinearModel, SklearnModel
from classify.heads.registry import EstimatorFactory, HeadSpec, Param, get_head_spec
from classify.solvers import averaging, closed_form, lbfgs, neighbours, rbf_svm, sklearn_heads
from classify.solvers.gram import SCALE_NONE, GramStats, PrincipalBasis
from classify.solvers.lbfgs import Problem
from classify.solvers.selection import PathPoint, SelectedParam
from classify.training.training_set import (
    MAX_IN_MEMORY_BYTES,
    TrainingSet,
    fits_in_memory,
    is_exact_svm_feasible,
)

SAMPLE_ABOVE_VALUES = 1_000_000
"""Held-out decision values above which a sample of the held-out images is scored."""
MIN_HELD_OUT_ROWS = 20_000
"""Smallest number of rows in that sample."""
MAX_HELD_OUT_VALUES = 100_000_000
"""Largest number of its decision values, 400 MB: a worker holds them for several params."""
GRID_EDGE = "is the end of its grid"
"""How a notice ends that says so of the selected param."""
_NO_ROWS = np.zeros(0, np.intp)


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained head, and the selection of its param.

    Attributes
    ----------
    scorer : LinearModel or SklearnModel
        The trained model.
    param : float, or None
        The value that was selected or given; None for a head without a param.
    selected : SelectedParam, or None
        The validation; None where nothing could be held out.
    held_out : int array of shape (m,)
        Positions of the validated rows; `selected.decision_values` has a row for each.
    probabilistic : bool
        Whether the softmax of the decision values gives the model's own probabilities.
    notices : list of str
        Messages for the user.
    extra_params : dict of str to float
        Further selected params by name: ``gamma`` of the RBF kernel, those of the members of an
        average.
    """

    scorer: LinearModel | SklearnModel
    param: float | None
    selected: SelectedParam | None
    held_out: np.ndarray
    probabilistic: bool
    notices: list[str] = field(default_factory=list)
    extra_params: dict[str, float] = field(default_factory=dict)


def train(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    """Select a param by held-out loss, then train on all final rows with it.

    Parameters
    ----------
    spec : HeadSpec
        The kind of head.
    training_set : TrainingSet
        With fold bases for heads with `HeadSpec.uses_gram`.

    Returns
    -------
    TrainResult
        The trained head with the notices of its fit.

    Raises
    ------
    CallError
        If the head cannot be trained on so many rows.
    """
    training_set, notices = _sample_held_out(training_set)
    if training_set.class_weights is not None and not spec.uses_class_weight:
        notices.append("it takes no class weights, so that option changes nothing")
    result = SOLVERS[spec.solver](spec, training_set)
    result.notices[:0] = notices
    result.notices.extend(_list_notices(spec, result))
    return result


def _train_lbfgs(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    rows = training_set.rows
    if fits_in_memory(rows.nbytes):
        rows = FeatureRows.from_array(rows.to_array())  # read many times, so copied once
    problems = [
        Problem(rows, training_set.weights_at(train), basis, rows.subset(held_out))
        for (train, held_out), basis in zip(
            training_set.fold_plan.folds, training_set.fold_bases[:-1], strict=True
        )
    ]
    final_weights = training_set.weights_at(training_set.fold_plan.final_indices)
    final = Problem(rows, final_weights, training_set.fold_bases[-1], rows.subset(_NO_ROWS))
    return _fit_path(spec, training_set, problems, final)


def _train_rbf_svm(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    """Train with the exact kernel if rows are few, else with a Nystroem approximation."""
    n_train = len(training_set.fold_plan.final_indices)
    if is_exact_svm_feasible(training_set.rows, n_train, training_set.n_classes):
        return _train_exact_svm(spec, training_set)
    return _train_nystroem_svm(spec, training_set)


def _train_exact_svm(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    X, y, fold_plan = training_set.rows.to_array(), training_set.y, training_set.fold_plan
    K, class_weight = training_set.n_classes, training_set.class_weight
    global_scale, final = training_set.rows.is_root_l2, fold_plan.final_indices
    selected, param, gamma_factor = None, _pick_middle(spec.grid), _pick_middle(spec.gamma_factors)
    if fold_plan.val_indices:
        paths = rbf_svm.cross_val_paths(
            spec.grid,
            spec.gamma_factors,
            X,
            y,
            fold_plan.folds,
            K,
            class_weight,
            global_scale=global_scale,
        )
        choices = [
            training_set.select_param(path, y[fold_plan.held_out], spec.loss) for path in paths
        ]
        best = int(np.argmin([choice.loss for choice in choices]))
        selected, gamma_factor = choices[best], spec.gamma_factors[best]
        param = selected.param
    scorer, gamma, converged = rbf_svm.fit_exact_svm(
        param, gamma_factor, X[final], y[final], K, class_weight, global_scale=global_scale
    )
    notices = [] if converged else [_describe_unconverged(spec, param)]
    extra_params = {"gamma": gamma}
    return TrainResult(scorer, param, selected, fold_plan.held_out, False, notices, extra_params)


def _train_nystroem_svm(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    """Select gamma on the first fold only, because mapping the rows takes most of the time."""
    fold_plan, y, K = training_set.fold_plan, training_set.y, training_set.n_classes
    spec, gamma_factor = replace(spec, loss="hinge"), _pick_middle(spec.gamma_factors)
    if fold_plan.val_indices:
        (fold, *_), losses = fold_plan.folds, []
        for candidate in spec.gamma_factors:
            _, problem = _map_rows(training_set, *fold, candidate)
            path = lbfgs.cross_val_path(spec.loss, spec.grid, [problem], y, K)
            losses.append(training_set.select_param(path, y[fold[1]], spec.loss).loss)
        gamma_factor = spec.gamma_factors[int(np.argmin(losses))]
    problems = [_map_rows(training_set, *fold, gamma_factor)[1] for fold in fold_plan.folds]
    kernel, final = _map_rows(training_set, fold_plan.final_indices, _NO_ROWS, gamma_factor)
    result = _fit_path(spec, training_set, problems, final)
    notice = (
        f"not all pairs of {len(fold_plan.final_indices):,} images of {K:,} classes are compared: "
        f"those with {rbf_svm.MAX_LANDMARKS:,} of them take their place"
    )
    return replace(
        result,
        scorer=rbf_svm.to_sklearn_model(kernel, cast(LinearModel, result.scorer), K),
        notices=[notice, *result.notices],
        extra_params={"gamma": float(kernel[-1].gamma)},
    )


def _map_rows(
    training_set: TrainingSet, train: np.ndarray, held_out: np.ndarray, gamma_factor: float
) -> tuple[Pipeline, Problem]:
    """Fit a kernel map to training rows; also return the linear problem on mapped rows."""
    rows = training_set.rows
    kernel = rbf_svm.fit_rbf_map(rows.subset(train), gamma_factor)
    mapped: FeatureRows = rbf_svm.KernelRows(rows.parts, rows.rows, rows.is_root_l2, kernel)
    if fits_in_memory((len(training_set.fold_plan.val_indices) + 1) * mapped.nbytes):
        mapped = FeatureRows.from_array(mapped.to_array())
    # Mapped rows are not scaled, which would change the kernel.
    stats = GramStats.from_rows(mapped.subset(train)).compute_centred()
    basis = PrincipalBasis.from_gram(*stats, SCALE_NONE)
    return kernel, Problem(mapped, training_set.weights_at(train), basis, mapped.subset(held_out))


def _fit_path(
    spec: HeadSpec, training_set: TrainingSet, problems: list[Problem], final: Problem
) -> TrainResult:
    """Select the param along a path of solutions, then solve the final problem with it."""
    y, K, held_out = training_set.y, training_set.n_classes, training_set.fold_plan.held_out
    selected, param, notices = None, _pick_middle(spec.grid), []
    if problems and not fits_in_memory(training_set.rows.nbytes):
        notices.append(
            f"features of over {MAX_IN_MEMORY_BYTES >> 30} GB are gone through in blocks, and "
            f"{spec.param_name} is chosen on one fold of {len(held_out):,} images"
        )
    if problems:
        path = lbfgs.cross_val_path(spec.loss, spec.grid, problems, y, K)
        selected = training_set.select_param(path, y[held_out], spec.loss)
        param = selected.param
    scorer, converged = lbfgs.fit_linear(spec.loss, float(param or 1), final, y, K)
    if not converged:
        notices.append(_describe_unconverged(spec, param))
    return TrainResult(scorer, param, selected, held_out, spec.probabilistic, notices)


def _train_closed_form(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    fold_plan, y = training_set.fold_plan, training_set.y
    sums = closed_form.sum_classes_for_folds(
        training_set.rows, y, training_set.n_classes, fold_plan, training_set.gram_weights(spec)
    )
    selected, param = None, _pick_middle(spec.grid)
    if fold_plan.val_indices:
        folds = list(zip(training_set.fold_bases[:-1], fold_plan.val_indices, strict=True))
        path = closed_form.cross_val_path(
            spec.name, spec.grid, training_set.rows, folds, sums, training_set.class_weights
        )
        selected = training_set.select_param(path, y[fold_plan.held_out], spec.loss)
        param = selected.param
    final_sums = sums.sum_without(0 if fold_plan.has_val_split else None)
    (scorer,) = closed_form.fit_closed_form(
        spec.name, training_set.fold_bases[-1], final_sums, [param], training_set.class_weights
    )
    return TrainResult(scorer, param, selected, fold_plan.held_out, spec.probabilistic)


def _train_averaged(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    """Train each member with a param of its own, then average them as calibrated heads."""
    y, held_out = training_set.y, training_set.fold_plan.held_out
    members = {name: train(get_head_spec(name), training_set) for name in spec.members}
    validated = [result.selected for result in members.values() if result.selected is not None]
    selected, temperatures = None, [1.0] * len(members)
    if validated:
        values = [choice.decision_values for choice in validated]
        temperatures = [fit_temperature(of_member, y[held_out]) for of_member in values]
        averaged = averaging.average_decision_values(values, temperatures).astype(np.float32)
        selected = training_set.select_param([PathPoint(None, averaged)], y[held_out], spec.loss)
    models = [cast(LinearModel, result.scorer) for result in members.values()]
    scorer = averaging.average_linear_models(models, temperatures)
    notices = [notice for result in members.values() for notice in result.notices]
    params: dict[str, float] = {}
    for name, result in members.items():
        params |= get_head_spec(name).as_params(result.param)
    return TrainResult(
        scorer, None, selected, held_out, spec.probabilistic, notices, extra_params=params
    )


def _train_neighbours(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    rows, y, K = training_set.rows, training_set.y, training_set.n_classes
    fold_plan, final = training_set.fold_plan, training_set.fold_plan.final_indices
    _check_memory(spec, rows)
    selected, param = None, _pick_middle(spec.grid)
    if fold_plan.val_indices:
        nearest = training_set.find_neighbours(rows, fold_plan)
        path = neighbours.cross_val_path(spec.grid, nearest, y, fold_plan, K)
        selected = training_set.select_param(path, y[fold_plan.held_out], spec.loss)
        param = selected.param
    X = rows.subset(final).to_array()
    scorer = neighbours.fit_neighbours(param, X, y[final], K, global_scale=rows.is_root_l2)
    return TrainResult(scorer, param, selected, fold_plan.held_out, spec.probabilistic)


def _train_sklearn(spec: HeadSpec, training_set: TrainingSet) -> TrainResult:
    rows, y, K = training_set.rows, training_set.y, training_set.n_classes
    fold_plan, final = training_set.fold_plan, training_set.fold_plan.final_indices
    _check_memory(spec, rows)
    make_estimator = cast(EstimatorFactory, spec.make_estimator)
    X, class_weight, global_scale = rows.to_array(), training_set.class_weight, rows.is_root_l2
    selected = None
    if fold_plan.val_indices:
        point = sklearn_heads.cross_val_point(
            make_estimator, X, y, fold_plan.folds, K, class_weight, global_scale=global_scale
        )
        selected = training_set.select_param([point], y[fold_plan.held_out], spec.loss)
    scorer, converged = sklearn_heads.fit_sklearn_head(
        make_estimator, X[final], y[final], K, class_weight, global_scale=global_scale
    )
    notices = [] if converged else [_describe_unconverged(spec, None)]
    return TrainResult(scorer, None, selected, fold_plan.held_out, scorer.probabilistic, notices)


SOLVERS = {
    "lbfgs": _train_lbfgs,
    "rbf_svm": _train_rbf_svm,
    "closed_form": _train_closed_form,
    "averaged": _train_averaged,
    "neighbours": _train_neighbours,
    "sklearn": _train_sklearn,
}


def _check_memory(spec: HeadSpec, rows: FeatureRows) -> None:
    if not fits_in_memory(rows.nbytes):
        raise CallError(
            f"{spec.name} needs a copy of all features, and {len(rows):,} rows of {rows.dim:,} are "
            f"over {MAX_IN_MEMORY_BYTES >> 30} GB; use another head"
        )


def _sample_held_out(training_set: TrainingSet) -> tuple[TrainingSet, list[str]]:
    """Hold out a sample if the decision values would not fit; training rows stay the same."""
    fold_plan, n_classes = training_set.fold_plan, training_set.n_classes
    n_held_out = len(fold_plan.held_out)
    max_held_out = max(
        SAMPLE_ABOVE_VALUES // n_classes,
        min(MIN_HELD_OUT_ROWS, MAX_HELD_OUT_VALUES // n_classes),
    )
    if n_held_out <= max_held_out:
        return training_set, []
    rng, fraction = np.random.default_rng(0), max_held_out / n_held_out
    val_indices = []
    for indices in fold_plan.val_indices:
        chosen = rng.choice(len(indices), max(1, int(fraction * len(indices))), replace=False)
        val_indices.append(indices[np.sort(chosen)])
    sampled = replace(fold_plan, val_indices=val_indices)
    notice = f"validated on {len(sampled.held_out):,} of {n_held_out:,} images"
    return replace(training_set, fold_plan=sampled), [notice]


def _pick_middle(values: Sequence[Any]) -> Any:
    """Return the value to use if nothing can be validated."""
    return values[len(values) // 2]


def _describe_unconverged(spec: HeadSpec, param: Param) -> str:
    return f"the final fit with {_describe_param(spec, param)} did not converge"


def _describe_param(spec: HeadSpec, param: Param) -> str:
    return "its defaults" if param is None else f"{spec.param_name} = {param:g}"


def _list_notices(spec: HeadSpec, result: TrainResult) -> list[str]:
    notices, selected, param = [], result.selected, _describe_param(spec, result.param)
    if selected is None and len(spec.grid) > 1:
        notices.append(f"nothing to validate with, so {param} was not chosen")
    if selected is not None and selected.unconverged:
        notices.append(f"{len(selected.unconverged)} settings left out: a fit did not converge")
    if selected is not None and selected.is_at_grid_edge:
        notices.append(f"{param} {GRID_EDGE}")
    return notices

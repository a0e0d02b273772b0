"""Fit one head on one choice of layers of a task: plan, train, calibrate, test, record."""

import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan, plan_task_folds
from classify.data.preparation import list_preparations
from classify.data.tasks import Task
from classify.doubt.conformal import fit_set_threshold
from classify.doubt.measured import DoubtCollector, list_missing_doubt
from classify.doubt.novelty import Novelty
from classify.evaluation.calibration import choose_calibration
from classify.evaluation.metrics import compute_metrics, estimate_proportion
from classify.evaluation.predictions import (
    HeldOutPredictions,
    renumber,
    summarise_decision_values,
)
from classify.evaluation.recall import ClassRecalls, compute_class_recall
from classify.evaluation.selection_metric import ACCURACY
from classify.experiments.results import FitOptions, FitResult
from classify.heads.fitted import FittedHead
from classify.heads.models import LinearModel, SklearnModel, add_offset
from classify.heads.record import HeadResult
from classify.heads.registry import HeadSpec
from classify.heads.source import FeatureSource
from classify.labels.folders import TEST, VAL
from classify.solvers.neighbours import find_neighbours, load_or_find_neighbours
from classify.solvers.selection import SelectionLoss
from classify.training.class_weights import resolve_class_weights
from classify.training.novelty import fit_head_novelty
from classify.training.train import TrainResult, train
from classify.training.training_set import TrainingSet
from featurize.cache.reader import FeatureCache

MAX_DECISION_VALUES = 20_000_000
"""Maximum number of test decision values (images x classes) kept in memory for the test
metric. Above it there is no test metric."""
_NO_HASHES = np.zeros(0, np.uint64)


def fit_task(
    cache: FeatureCache,
    task: Task,
    head: HeadSpec,
    layers: tuple[str, ...],
    options: FitOptions,
    persist: bool = True,
    *,
    with_novelty: bool = False,
) -> tuple[FittedHead, FitResult]:
    """Fit one head on one choice of layers of a task.

    It is the part of `classify.experiments.fit.fit` that follows once all options are resolved.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    head : HeadSpec
    layers : tuple of str
        Joined if there are several.
    options : FitOptions
    persist : bool
        Whether to store statistics of the features next to the cache.
    with_novelty : bool
        Whether the head shall tell images that are unlike all that it was trained on.

    Returns
    -------
    fitted : FittedHead
        Its ``seen`` is empty.
    result : FitResult

    Raises
    ------
    CallError
        If the head cannot be trained on so many rows, columns or classes.
    """
    started = time.perf_counter()
    plan = _Plan.from_task(cache, task, layers, options)
    prepare, trained = _train(cache, layers, head, plan, options.prepare, persist)
    model = _calibrate(plan, trained, options, with_novelty)
    novelty = None
    if with_novelty and model.held_out_proba is not None:
        prepared = plan.rows.with_preparation(prepare)
        novelty = fit_head_novelty(
            cache,
            layers,
            prepared,
            plan.y,
            len(plan.known),
            plan.fold_plan,
            trained.held_out,
            model.held_out_proba,
            task.units[plan.dev[trained.held_out]],
        )
    model = replace(model, novelty=novelty)
    test = _test(cache, layers, prepare, plan, model, options)
    settings = head.as_params(trained.param) | trained.extra_params
    validation, validation_ci = None, None
    if model.predictions is not None:
        units = task.units_for(model.predictions.rows)
        validation, validation_ci = estimate_proportion(
            model.predictions.correct, units, options.seed
        )
    scores = dict(test.metrics)
    record = HeadResult(
        task=task.name,
        head=head.name,
        layer="+".join(layers),
        classes=plan.classes,
        n_train=len(plan.fold_plan.final_indices),
        n_test=len(plan.test),
        accuracy=scores.pop("accuracy", None),
        accuracy_ci=scores.pop("accuracy_ci", None),
        validation=validation,
        validation_ci=validation_ci,
        C=settings.get("C"),
        settings=settings,
        class_weight=options.class_weight,
        prepare=prepare,
        metric=options.metric.name,
        validation_metric=model.metric,
        test_metric=test.metric,
        temperature=model.temperature,
        scores=scores,
        recall=test.recall,
        bias=None if model.bias is None else model.bias.tolist(),
        doubt=None if model.predictions is None else {"coverage": options.coverage, **test.doubt},
        seconds=round(time.perf_counter() - started, 3),
    )
    notices = list(trained.notices)
    if with_novelty:
        n_held_out = 0 if model.predictions is None else len(model.predictions)
        has_sets, has_novelty = model.set_threshold is not None, novelty is not None
        notices += list_missing_doubt(n_held_out, has_sets, has_novelty, options.coverage)
    notices = [f"{head.name} on {record.layer}: {notice}" for notice in notices]
    fitted = FittedHead(
        head=head.name,
        classes=plan.classes,
        prepare=prepare,
        scorer=model.scorer,
        probabilistic=model.probabilistic,
        temperature=model.temperature,
        settings=settings,
        task=task.name,
        source=FeatureSource.from_cache(cache, layers),
        record=record.to_dict(),
        seen=_NO_HASHES,
        notices=tuple(notices),
        coverage=None if model.predictions is None else options.coverage,
        set_threshold=model.set_threshold,
        novelty=model.novelty,
    )
    return fitted, FitResult(record, model.predictions, test.predictions, tuple(notices))


@dataclass(frozen=True, eq=False)
class _Plan:
    """A task prepared for training.

    Attributes
    ----------
    task : Task
    dev, test : int arrays
        Positions in the task of the training and validation images, and of the test images.
    known : int array of shape (K,)
        Class numbers in the task that the final head knows.
    classes : list of str
        Their names.
    rows : FeatureRows
        Features of `dev`, as stored in the cache.
    y : int array of shape (n,)
        Class of each row of `dev` as a position in `known`; -1 for an unknown class.
    fold_plan : FoldPlan
    class_weights : float array of shape (K,), or None
    selection_loss : callable, or None
        None where each head's own loss selects its param.
    """

    task: Task
    dev: np.ndarray
    test: np.ndarray
    known: np.ndarray
    classes: list[str]
    rows: FeatureRows
    y: np.ndarray
    fold_plan: FoldPlan
    class_weights: np.ndarray | None
    selection_loss: SelectionLoss | None

    @classmethod
    def from_task(
        cls, cache: FeatureCache, task: Task, layers: tuple[str, ...], options: FitOptions
    ) -> Self:
        """Plan the folds of a task, and number its classes."""
        dev, test = np.flatnonzero(task.split != TEST), np.flatnonzero(task.split == TEST)
        rows = FeatureRows.from_cache(cache, layers, task.rows[dev])
        rows.check_finite(cache)
        fold_plan = plan_task_folds(
            task.y[dev],
            cache.column("sha256", task.rows[dev]),
            options.seed,
            task.units[dev],
            task.split[dev] == VAL,
        )
        known = np.unique(task.y[dev[fold_plan.final_indices]])
        classes, metric = [task.classes[i] for i in known], options.metric
        y = renumber(task.y[dev], known)
        return cls(
            task=task,
            dev=dev,
            test=test,
            known=known,
            classes=classes,
            rows=rows,
            y=y,
            fold_plan=fold_plan,
            class_weights=resolve_class_weights(options.class_weight, known, y),
            selection_loss=(
                None if metric == ACCURACY else partial(metric.compute_loss, classes=classes)
            ),
        )


@dataclass(frozen=True, eq=False)
class _CalibratedModel:
    """A trained model with its calibration, and its predictions on the held-out images."""

    scorer: LinearModel | SklearnModel
    probabilistic: bool
    temperature: float | None = None
    bias: np.ndarray | None = None
    predictions: HeldOutPredictions | None = None
    metric: float | None = None
    set_threshold: float | None = None
    novelty: Novelty | None = None
    held_out_proba: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _TestResult:
    """Predictions on the test images and their metrics; empty without test images."""

    predictions: HeldOutPredictions | None = None
    metric: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    doubt: dict[str, Any] = field(default_factory=dict)
    recall: ClassRecalls | None = None


def _train(
    cache: FeatureCache,
    layers: tuple[str, ...],
    head: HeadSpec,
    plan: _Plan,
    prepare: str | None,
    persist: bool,
) -> tuple[str, TrainResult]:
    """Train with each possible preparation; return the one that validates best."""
    nearest = partial(load_or_find_neighbours, cache, layers) if persist else find_neighbours
    results: dict[str, TrainResult] = {}
    for name in list_preparations(prepare, len(plan.dev), plan.rows.dim):
        training_set = TrainingSet.prepare(
            head,
            plan.rows.with_preparation(name),
            plan.y,
            plan.fold_plan,
            n_classes=len(plan.known),
            cache=cache,
            layers=layers,
            save_stats=persist,
            class_weights=plan.class_weights,
            find_neighbours=nearest,
            selection_loss=plan.selection_loss,
        )
        results[name] = train(head, training_set)

    def loss(name: str) -> float:
        selected = results[name].selected
        return 0.0 if selected is None else selected.loss

    best = min(results, key=loss)
    return best, results[best]


def _calibrate(
    plan: _Plan, trained: TrainResult, options: FitOptions, keep_proba: bool
) -> _CalibratedModel:
    """Calibrate a trained model on its held-out decision values, if it has any."""
    if trained.selected is None:
        return _CalibratedModel(trained.scorer, trained.probabilistic)
    held_out, y = plan.dev[trained.held_out], plan.y[trained.held_out]
    calibration = choose_calibration(
        trained.selected.decision_values,
        y,
        plan.task.units[held_out],
        plan.class_weights is not None,
        plan.selection_loss,
    )
    bias, temperature = calibration.bias, calibration.temperature
    model = _CalibratedModel(
        trained.scorer if bias is None else add_offset(trained.scorer, bias),
        trained.probabilistic,
        temperature,
        bias,
        metric=options.metric.compute(calibration.decision_values, y, plan.classes, temperature),
    )
    predictions = _collect_predictions(plan, held_out, calibration.decision_values, model)
    own_proba = np.exp(-predictions.calibrated_loss.astype(np.float64))
    unit = plan.task.units_for(predictions.rows)
    proba = None
    if keep_proba:
        proba = softmax(calibration.decision_values.astype(np.float64) / temperature, axis=1)
    return replace(
        model,
        predictions=predictions,
        set_threshold=fit_set_threshold(own_proba, unit, options.coverage),
        held_out_proba=proba,
    )


def _test(
    cache: FeatureCache,
    layers: tuple[str, ...],
    prepare: str,
    plan: _Plan,
    model: _CalibratedModel,
    options: FitOptions,
) -> _TestResult:
    """Predict the test images block by block, to avoid holding all features in memory."""
    task, test_positions, n_classes = plan.task, plan.test, len(plan.known)
    if not len(test_positions):
        return _TestResult()
    rows = FeatureRows.from_cache(cache, layers, task.rows[test_positions])
    rows.check_finite(cache)
    prediction_blocks, decision_value_blocks = [], []
    doubt = DoubtCollector(model.set_threshold, model.novelty, model.temperature)
    for block_slice, features in rows.with_preparation(prepare).iter_blocks(n_classes):
        decision_values = model.scorer.decision_values(features)
        prediction_blocks.append(
            _collect_predictions(plan, test_positions[block_slice], decision_values, model)
        )
        if len(test_positions) * n_classes <= MAX_DECISION_VALUES:
            decision_value_blocks.append(decision_values)
        doubt.add(features, decision_values)
    predictions = HeldOutPredictions.concatenate(prediction_blocks)
    metric: float | None = None
    if decision_value_blocks:
        y = renumber(task.y[test_positions], plan.known)
        metric = options.metric.compute(
            np.concatenate(decision_value_blocks), y, plan.classes, model.temperature
        )
    unit = task.units_for(predictions.rows)
    return _TestResult(
        predictions,
        metric,
        asdict(compute_metrics(predictions, len(task.classes), unit, seed=options.seed)),
        doubt.measure(predictions, unit),
        compute_class_recall(predictions, task.classes, unit, options.seed),
    )


def _collect_predictions(
    plan: _Plan, positions: np.ndarray, decision_values: np.ndarray, model: _CalibratedModel
) -> HeldOutPredictions:
    """Summarise decision values in row order, so that two heads can be compared."""
    order = np.argsort(plan.task.rows[positions])
    ordered = positions[order]
    return summarise_decision_values(
        plan.task.rows[ordered],
        plan.task.y[ordered],
        decision_values[order],
        plan.known,
        temperature=model.temperature,
        probabilistic=model.probabilistic,
    )

"""Fit one head on one choice of layers of a task whose labels are not one class."""

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from classify.data.features import FeatureRows
from classify.data.preparation import list_preparations
from classify.data.targets.stratify import plan_target_folds
from classify.data.targets.task import TargetTask
from classify.doubt.conformal import fit_margin
from classify.evaluation.targets.calibration import fit_label_calibration
from classify.evaluation.targets.metrics import choose_thresholds, compute_target_metric
from classify.evaluation.targets.predictions import TargetPredictions
from classify.experiments.targets.results import TargetFit, TargetFitOptions
from classify.heads.source import FeatureSource
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.record import TargetResult
from classify.heads.targets.registry import LOGISTIC, ORDINAL, TargetHeadSpec
from classify.heads.targets.tested import describe_test
from classify.kinds import GRADE, MULTI, NUMBER
from classify.labels.folders import TEST, VAL
from classify.solvers.neighbours import find_neighbours, load_or_find_neighbours
from classify.training.targets.selection import TrainedTargets
from classify.training.targets.target_set import TargetSet
from classify.training.targets.train import train_targets
from featurize.cache.reader import FeatureCache

_NO_HASHES = np.zeros(0, np.uint64)


def fit_target_task(
    cache: FeatureCache,
    task: TargetTask,
    head: TargetHeadSpec,
    layers: tuple[str, ...],
    options: TargetFitOptions,
    persist: bool = True,
) -> tuple[FittedTargets, TargetFit]:
    """Fit one head on one choice of layers of a task.

    Parameters
    ----------
    cache : FeatureCache
    task : TargetTask
    head : TargetHeadSpec
    layers : tuple of str
        Joined if there are several.
    options : TargetFitOptions
    persist : bool
        Whether to store statistics of the features next to the cache.

    Returns
    -------
    fitted : FittedTargets
        Its ``seen`` is empty.
    result : TargetFit

    Raises
    ------
    CallError
        If the head cannot be trained on so many rows, columns or labels.
    """
    started = time.perf_counter()
    dev = np.flatnonzero(task.split != TEST)
    rows = FeatureRows.from_cache(cache, layers, task.rows[dev])
    rows.check_finite(cache)
    prepare, trained = _train(cache, task, head, layers, rows, dev, options, persist)
    fitted = FittedTargets(
        head=head.name,
        kind=task.kind,
        names=task.names,
        prepare=prepare,
        scorer=trained.model,
        settings=trained.settings,
        task=task.name,
        source=FeatureSource.from_cache(cache, layers),
        record={},
        seen=_NO_HASHES,
        grades=trained.grades,
        cutpoints=trained.cutpoints,
    )
    decided = _Decided.from_held_out(task, trained, dev, fitted, options)
    fitted, validation = decided.head, decided.validation
    test = _predict_test(cache, task, layers, fitted)
    record = TargetResult(
        task=task.name,
        kind=task.kind,
        head=head.name,
        layer="+".join(layers),
        names=list(task.names),
        n_train=len(trained_rows := dev[_final_positions(task, dev)]),
        n_test=0 if test is None else len(test),
        metric=options.metric,
        validation_metric=None if validation is None else _measure(validation, task, options),
        test_metric=None if test is None else _measure(test, task, options),
        settings=trained.settings,
        prepare=prepare,
        seconds=0.0,
    )
    if test is not None:
        described = describe_test(task, test, task.values[trained_rows], fitted, options.seed)
        record = replace(record, **described)
    record = replace(record, seconds=round(time.perf_counter() - started, 3))
    notices = tuple(f"{head.name} on {record.layer}: {text}" for text in trained.notices)
    fitted = replace(fitted, record=record.to_dict(), notices=notices)
    return fitted, TargetFit(record, trained.loss, validation, test, notices)


def _final_positions(task: TargetTask, dev: np.ndarray) -> np.ndarray:
    """Return which of the images outside the test the final head is trained on."""
    return np.flatnonzero(task.split[dev] != VAL)


def _train(
    cache: FeatureCache,
    task: TargetTask,
    head: TargetHeadSpec,
    layers: tuple[str, ...],
    rows: FeatureRows,
    dev: np.ndarray,
    options: TargetFitOptions,
    persist: bool,
) -> tuple[str, TrainedTargets]:
    """Train with each possible preparation; return the one that validates best."""
    fold_plan = plan_target_folds(
        task.kind,
        task.values[dev],
        cache.column("sha256", task.rows[dev]),
        options.seed,
        task.units[dev],
        task.split[dev] == VAL,
    )
    nearest = partial(load_or_find_neighbours, cache, layers) if persist else find_neighbours
    results: dict[str, TrainedTargets] = {}
    for name in list_preparations(options.prepare, len(dev), rows.dim):
        target_set = TargetSet(
            task.kind,
            rows.with_preparation(name),
            task.values[dev],
            task.n_grades,
            fold_plan,
            cache,
            layers,
            persist,
            nearest,
        )
        results[name] = train_targets(head, target_set)
    best = min(results, key=lambda name: results[name].loss)
    return best, results[best]


@dataclass(frozen=True, eq=False)
class _Decided:
    """A head with what is decided on held-out images, and its predictions for them."""

    head: FittedTargets
    validation: TargetPredictions | None

    @classmethod
    def from_held_out(
        cls,
        task: TargetTask,
        trained: TrainedTargets,
        dev: np.ndarray,
        head: FittedTargets,
        options: TargetFitOptions,
    ) -> "_Decided":
        if task.kind == GRADE and trained.grades is None and trained.cutpoints is None:
            head = replace(head, cutpoints=np.arange(len(task.names) - 1) + 0.5)
        if trained.outputs is None or not len(trained.held_out):
            return cls(head, None)
        positions = dev[trained.held_out]
        order = np.argsort(task.rows[positions])
        positions, outputs = positions[order], trained.outputs[order]
        truth = task.values[positions]
        if task.kind == MULTI and head.head != LOGISTIC:
            head = replace(head, calibration=fit_label_calibration(outputs, truth))
        if head.head == ORDINAL:  # held-out outputs are log probabilities of all grades
            above = np.cumsum(np.exp(outputs.astype(np.float64)), axis=1)[:, :-1] < 0.5
            values = above.sum(axis=1).astype(np.float64)[:, None]
        else:
            values = head.values_of(outputs)
        if task.kind == MULTI:
            head = replace(head, thresholds=choose_thresholds(truth, values))
        if task.kind == NUMBER:
            errors = np.abs(values - truth)[:, 0]
            margin = fit_margin(errors, task.units[positions], options.coverage)
            head = replace(head, margin=margin, coverage=options.coverage)
        predictions = TargetPredictions(
            task.kind, task.rows[positions].astype(np.int64), truth, values, head.thresholds
        )
        return cls(head, predictions)


def _predict_test(
    cache: FeatureCache, task: TargetTask, layers: tuple[str, ...], head: FittedTargets
) -> TargetPredictions | None:
    """Predict the test images block by block, to avoid holding all features in memory."""
    positions = np.flatnonzero(task.split == TEST)
    if not len(positions):
        return None
    rows = FeatureRows.from_cache(cache, layers, task.rows[positions])
    rows.check_finite(cache)
    blocks = [
        head.values_of(head.scorer.decision_values(block))
        for _, block in rows.with_preparation(head.prepare).iter_blocks(len(task.names))
    ]
    return TargetPredictions(
        task.kind,
        task.rows[positions].astype(np.int64),
        task.values[positions],
        np.concatenate(blocks),
        head.thresholds,
    )


def _measure(
    predictions: TargetPredictions, task: TargetTask, options: TargetFitOptions
) -> float | None:
    return compute_target_metric(
        options.metric, predictions.truth, predictions.values, predictions.thresholds, task.n_grades
    )

"""Fit one head and score it: settings by validation, the score by test images alone."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from classify.data.features import (
    CacheOrPath,
    FeatureRows,
    open_cache,
    resolve_layer_sets,
    resolve_layers,
    total_dim,
)
from classify.data.folder_labels import TEST, VAL
from classify.data.folds import FoldPlan, hash_prefixes, plan_content_folds, plan_folds
from classify.data.labels import LabelsLike, resolve_labels
from classify.data.preparation import check_preparation, list_preparations
from classify.data.tasks import Task, describe_leaking_copies, make_task
from classify.errors import CallError
from classify.evaluation.calibration import Calibration, calibrate
from classify.evaluation.metrics import compute_metrics, estimate_proportion
from classify.evaluation.predictions import HeldOutPredictions, summarise_decision_values
from classify.evaluation.recall import ClassRecalls, compute_class_recall
from classify.evaluation.selection_metric import ACCURACY, SelectionMetric, resolve_metric
from classify.evaluation.temperature import fit_temperature
from classify.experiments.results import FitOptions, FitResult, load_result, result_key, save_result
from classify.heads.fitted import FeatureSource, FittedHead
from classify.heads.models import add_offset
from classify.heads.record import HeadResult
from classify.heads.registry import HeadSpec, get_head_spec
from classify.solvers.gram_cache import compute_fold_bases
from classify.solvers.neighbours import find_neighbours, load_or_find_neighbours
from classify.solvers.selection import SelectionLoss
from classify.training.class_weights import resolve_class_weights
from classify.training.train import TrainingSet, TrainResult, limit_folds, train
from featurize.cache.reader import FeatureCache

MAX_JOINED_VALUES = 1 << 26
"""Numbers in all layers together, up to which they are tried joined where no layer is named: beyond
it that would take longer than all else."""
MAX_DECISION_VALUES = 20_000_000  # on the test images, held at once for a metric of all of them
_NO_HASHES = np.zeros(0, np.uint64)


def fit(
    cache: CacheOrPath,
    labels: LabelsLike = None,
    head: str = "softmax",
    layer: str | Sequence[str] | None = None,
    *,
    column: str = "label",
    labels_level: int | None = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    test_size: float = 0.2,
    seed: int = 0,
) -> tuple[FittedHead, HeadResult]:
    """Train one head on cached features, its setting chosen by validation, and score it.

    Without `layer` so are its layers: the deepest of the cache or all of them joined, whichever has
    the lower log loss on held-out images. Earlier layers by themselves are hardly ever better than
    all joined: `compare` tries them too. Where joined layers would be over 67 million numbers
    (30,000 images of SqueezeNet), it is the deepest layer.

    The setting (C of softmax and the SVMs, alpha of ridge, ...) is chosen by stratified folds of
    the training images, or on the ``val`` images where the table has such a split. Images of one
    group, and copies of an image, are never on both sides of a fold or of a split that is drawn,
    and count as one in every interval. The head is then trained on the training images with it;
    ``val`` images are never trained on. Test images give the final accuracy and decide nothing.

    Parameters
    ----------
    cache : path or FeatureCache
    labels : LabelTable or path of a CSV, optional
        Folder names, if not given.
    head : str
        ``softmax``, ``linear-svm``, ``rbf-svm``, ``ridge``, ``lda``, ``ncm``, ``knn``, or a
        scikit-learn classifier as ``package.module:Class``.
    layer : str or sequence of str, optional
        Several are joined. The deepest or all joined, if not given: what validates better.
    column : str
        The column of the CSV that holds the labels.
    labels_level : int, optional
        Which folder names the label, 1 for the topmost; found out if not given.
    class_weight : str, optional
        ``balanced``: every class counts alike, however many images it has.
    prepare : str, optional
        ``root-l2`` (see `classify.data.preparation.root_l2`) or ``standardise``. If not given it is
        root-l2, and where there are more than 20 images a column, the one of the two with the lower
        held-out loss.
    metric : str, optional
        What the setting and the layers are chosen by: ``accuracy``, ``balanced_accuracy``,
        ``macro_f1``, ``log_loss``, ``auroc`` or ``average_precision`` (means over classes, one
        against the rest), or the path of a CSV with the columns truth, predicted and cost. Under
        accuracy, which it is if not given, the setting is chosen by the head's own loss.
    test_size, seed
        For the held-out images, where neither table nor folders have a split.

    Returns
    -------
    FittedHead, Record

    Raises
    ------
    ClassifyError, FeaturizeError, FileNotFoundError
    """
    kind = get_head_spec(head)
    options = make_fit_options(seed, class_weight, prepare, metric)
    cache = open_cache(cache)
    sets = None if layer is None else [resolve_layers(cache, layer)]
    table = resolve_labels(cache, labels, column, labels_level)
    task = make_task(cache, table, test_size=test_size, seed=seed)
    options.metric.check_classes(task.classes)
    narrow = sets is None and not can_join_layers(cache, task)
    if sets is None:
        deepest = resolve_layers(cache)
        sets = resolve_layer_sets(cache, deepest if narrow else [*deepest, "joined"])
    # Measured: on two cores of which one is busy, a second thread makes the solver 20 times
    # slower and worse, because the threads of BLAS wait for each other by spinning.
    with threadpool_limits(1):
        fitted, result, told = _fit_best_layers(cache, task, kind, sets, options)
    if narrow and len(cache.layers) > 1:
        told.append(
            f"only {sets[0][0]}, the deepest layer, was tried, as there are many images; all "
            "layers joined are often better: --layer joined"
        )
    notices = (*task.notices, *describe_leaking_copies(task, cache.paths), *told, *fitted.notices)
    return replace(fitted, seen=_collect_seen_hashes(cache, task), notices=notices), result.record


def _selection_loss(result: FitResult, options: FitOptions) -> float:
    """What is least for the best choice of layers; infinite where nothing was validated.

    Where nothing else was asked for, the log loss: of few images it tells more than their errors.
    """
    if result.validation is None or result.record.validation_metric is None:
        return np.inf
    if options.metric == ACCURACY:
        return result.validation.calibrated_log_loss
    return -options.metric.sign * result.record.validation_metric


def can_join_layers(cache: FeatureCache, task: Task) -> bool:
    """Whether all layers of a task's images are few enough numbers to try them joined."""
    return len(task.rows) * total_dim(cache, list(cache.layers)) <= MAX_JOINED_VALUES


def _fit_best_layers(
    cache: FeatureCache,
    task: Task,
    head: HeadSpec,
    sets: Sequence[tuple[str, ...]],
    options: FitOptions,
) -> tuple[FittedHead, FitResult, list[str]]:
    """The head on the layers that validation finds best, and what a user should know of that."""
    if len(sets) == 1:
        return *fit_task(cache, task, head, sets[0], options), []
    heads: dict[tuple[str, ...], FittedHead] = {}
    found: dict[tuple[str, ...], FitResult] = {}
    told = []
    for layers in sets:
        key = result_key(cache, task, head.name, layers, options)
        result = load_result(cache, key, task, head.name, layers)
        if result is None:
            try:
                heads[layers], result = fit_task(cache, task, head, layers, options)
            except CallError as error:
                told.append(f"{head.name} on {'+'.join(layers)} left out: {error}")
                continue
            save_result(cache, key, result)
        found[layers] = result
    if not found:
        raise CallError("; ".join(told))
    judged = {
        layers: loss
        for layers in found
        if (loss := _selection_loss(found[layers], options)) < np.inf
    }
    deepest = resolve_layers(cache) if resolve_layers(cache) in found else next(iter(found))
    best = deepest
    if judged:
        best = max(judged, key=lambda layers: (-judged[layers], -total_dim(cache, layers)))
        which = best[0] if len(best) == 1 else f"all {len(best)} layers joined"
        value = found[best].record.validation_metric
        told.append(
            f"{which} validates best of {len(judged)} choices of layers, with "
            f"{options.metric.title} {value:.3f}"
        )
        if best != deepest in judged:
            value = found[deepest].record.validation_metric
            told[-1] += f"; {deepest[0]}, the deepest, has {value:.3f}"
    if best not in heads:  # its result was kept, not the head
        heads[best], found[best] = fit_task(cache, task, head, best, options)
    return heads[best], found[best], told


def _collect_seen_hashes(cache: FeatureCache, task: Task) -> np.ndarray:
    used = task.rows[task.split != TEST]
    return np.unique(hash_prefixes(cache.column("sha256")[used]))


def make_fit_options(
    seed: int, class_weight: str | None, prepare: str | None, metric: str | None
) -> FitOptions:
    """What was asked for, checked.

    Raises
    ------
    CallError, LabelError, FileNotFoundError
    """
    check_class_weight(class_weight)
    check_preparation(prepare)
    return FitOptions(seed, class_weight, prepare, resolve_metric(metric))


def _compute_metric_loss(
    metric: SelectionMetric, classes: Sequence[str], scores: np.ndarray, y: np.ndarray
) -> float:
    """What is to be least where a metric is to be best."""
    heat = fit_temperature(scores, y) if metric.name == "log_loss" else 1.0
    value = metric.compute(scores, y, classes, heat)
    return 0.0 if value is None else -metric.sign * value


def check_class_weight(class_weight: str | None) -> None:
    """Refuse what is neither None nor ``balanced``: CallError."""
    if class_weight not in (None, "balanced"):
        raise CallError(f"the class weight is balanced or nothing, not {class_weight!r}")


def fit_task(
    cache: FeatureCache,
    task: Task,
    head: HeadSpec,
    layers: tuple[str, ...],
    options: FitOptions,
    persist: bool = True,
) -> tuple[FittedHead, FitResult]:
    """`fit` of one choice of layers, once everything is looked up.

    What is computed of the features alone is kept beside the cache if `persist`.
    """
    started, seed, metric = time.perf_counter(), options.seed, options.metric
    dev, test = np.flatnonzero(task.split != TEST), np.flatnonzero(task.split == TEST)
    rows = FeatureRows.from_cache(cache, layers, task.rows[dev])
    rows.check_finite(cache)
    found = _plan_task_folds(cache, task, dev, seed)
    found = limit_folds(head, rows, found, len(np.unique(task.y[dev])))
    known = np.unique(task.y[dev[found.final_indices]])
    number = np.full(len(task.classes), -1)
    number[known] = np.arange(len(known))
    y = number[task.y[dev]]
    weights = resolve_class_weights(options.class_weight, known, y)
    near = partial(load_or_find_neighbours, cache, layers) if persist else find_neighbours
    names = [task.classes[i] for i in known]
    judge = None if metric == ACCURACY else partial(_compute_metric_loss, metric, names)
    lesson = TrainingSet(
        rows, y, len(known), found, (), weights, find_neighbours=near, selection_loss=judge
    )
    prepare, trained = min(
        (
            (
                name,
                _train_with_bases(
                    cache, layers, head, replace(lesson, rows=rows.with_preparation(name)), persist
                ),
            )
            for name in list_preparations(options.prepare, len(dev), rows.dim)
        ),
        key=lambda one: 0 if one[1].selected is None else one[1].selected.loss,
    )

    heat, shift, scorer, validation, validated = None, None, trained.scorer, None, None
    if trained.selected is not None:
        held = dev[trained.held_out]
        balanced, unit = weights is not None, task.units[held]
        told = _calibrate_held_out(
            trained.selected.decision_values, y[trained.held_out], unit, balanced, judge
        )
        heat, shift = told.temperature, told.bias
        validated = metric.compute(told.decision_values, y[trained.held_out], names, heat)
        validation = _collect_predictions(task, held, told.decision_values, known, heat, trained)
        if shift is not None:
            scorer = add_offset(scorer, shift)
    answers, scores = None, {}
    recall: ClassRecalls | None = None
    tested_metric: float | None = None
    if len(test):
        tested = FeatureRows.from_cache(cache, layers, task.rows[test])
        tested.check_finite(cache)
        # Block by block: the scores of all would be images times classes.
        parts, whole = [], []
        for where, block in tested.with_preparation(prepare).iter_blocks(len(known)):
            made = scorer.decision_values(block)
            parts.append(_collect_predictions(task, test[where], made, known, heat, trained))
            if len(test) * len(known) <= MAX_DECISION_VALUES:
                whole.append(made)
        answers = HeldOutPredictions.concatenate(parts)
        if whole:
            tested_metric = metric.compute(np.concatenate(whole), number[task.y[test]], names, heat)
        unit = task.units_for(answers.rows)
        scores = asdict(compute_metrics(answers, len(task.classes), unit, seed=seed))
        recall = compute_class_recall(answers, task.classes, unit, seed)
    settings = head.as_params(trained.param) | trained.extra_params
    right, interval = None, None
    if validation is not None:
        right, interval = estimate_proportion(
            validation.correct, task.units_for(validation.rows), seed
        )
    record = HeadResult(
        task=task.name,
        head=head.name,
        layer="+".join(layers),
        classes=names,
        n_train=len(found.final_indices),
        n_test=len(test),
        accuracy=scores.pop("accuracy", None),
        accuracy_ci=scores.pop("accuracy_ci", None),
        validation=right,
        validation_ci=interval,
        C=settings.get("C"),
        settings=settings,
        class_weight=options.class_weight,
        prepare=prepare,
        metric=metric.name,
        validation_metric=validated,
        test_metric=tested_metric,
        temperature=heat,
        scores=scores,
        recall=recall,
        bias=None if shift is None else shift.tolist(),
        seconds=round(time.perf_counter() - started, 3),
    )
    notices = tuple(f"{head.name} on {record.layer}: {notice}" for notice in trained.notices)
    fitted = FittedHead(
        head=head.name,
        classes=record.classes,
        prepare=prepare,
        scorer=scorer,
        probabilistic=trained.probabilistic,
        temperature=heat,
        settings=settings,
        task=task.name,
        source=FeatureSource.from_cache(cache, layers),
        record=record.to_dict(),
        seen=_NO_HASHES,
        notices=notices,
    )
    return fitted, FitResult(record, validation, answers, notices)


def _train_with_bases(
    cache: FeatureCache,
    layers: tuple[str, ...],
    head: HeadSpec,
    training_set: TrainingSet,
    persist: bool,
) -> TrainResult:
    if head.solver in ("solved", "minimised"):
        weights = training_set.gram_weights(head)
        basis = compute_fold_bases(
            cache, layers, training_set.rows, training_set.fold_plan, weights, save_stats=persist
        )
        training_set = replace(training_set, fold_bases=basis)
    return train(head, training_set)


def _plan_task_folds(cache: FeatureCache, task: Task, dev: np.ndarray, seed: int) -> FoldPlan:
    """The task's folds, the same for every head, and where images allow it for every task."""
    y, val = task.y[dev], task.split[dev] == VAL
    unit = task.units[dev]
    if not val.any():
        by_content = plan_content_folds(y, cache.column("sha256")[task.rows[dev]], seed, unit)
        if by_content is not None:
            return by_content
    return plan_folds(y, seed, unit, val)


def _calibrate_held_out(
    scores: np.ndarray, y: np.ndarray, unit: np.ndarray, balanced: bool, loss: SelectionLoss | None
) -> Calibration:
    """Held-out scores, calibrated: by temperature alone where a bias would do harm.

    A bias has each class predicted as often as it comes. That would undo the balancing where the
    classes are to count alike; and it may be worse by the metric that was asked for.
    """
    if not balanced:
        found = calibrate(scores, y, unit)
        if loss is None or loss(found.decision_values, y) <= loss(scores, y):
            return found
    return Calibration(fit_temperature(scores, y), None, scores)


def _collect_predictions(
    task: Task,
    positions: np.ndarray,
    scores: np.ndarray,
    known: np.ndarray,
    temperature: float | None,
    trained: TrainResult,
) -> HeldOutPredictions:
    """Outcomes by row, so that those of two heads can be laid beside each other."""
    order = np.argsort(task.rows[positions])
    at = positions[order]
    return summarise_decision_values(
        task.rows[at],
        task.y[at],
        scores[order],
        known,
        temperature=temperature,
        probabilistic=trained.probabilistic,
    )

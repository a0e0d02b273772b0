"""Fit one head and score it: settings by validation, the score by test images alone."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from os import PathLike

import numpy as np
from threadpoolctl import threadpool_limits

from classify.bias import Calibration, calibrate
from classify.calibration import outcomes, temperature
from classify.choice import Judge
from classify.errors import CallError
from classify.features import CacheOrPath, Rows, dim, layer_names, layer_sets, open_cache
from classify.fitted import FittedHead, Source
from classify.heads import Head, named
from classify.labels import TEST, VAL, LabelTable, from_folders, given_table
from classify.metrics import ACCURACY, Metric, metric_of
from classify.neighbours import nearest, nearest_kept
from classify.outcomes import Outcomes
from classify.preparation import check_preparation, preparations
from classify.recalls import Recalls, recalls
from classify.records import Record
from classify.results import FitOptions, Result, keep_result, key_of, recall_result
from classify.scorers import shifted
from classify.scores import share, summarise
from classify.splits import Folding, beginnings, folding, shared
from classify.statistics import spectra
from classify.tasks import Task, copies_across, make_task
from classify.training import Lesson, Trained, affordable, train
from classify.weights import weigh
from featurize.cache import FeatureCache

MOST_JOINED = 1 << 26
"""Numbers in all layers together, up to which they are tried joined where no layer is named: beyond
it that would take longer than all else."""
MOST_SCORES = 20_000_000  # on the test images, held at once for a metric of all of them
_NONE = np.zeros(0, np.uint64)
Labels = LabelTable | str | PathLike[str] | None


def fit(
    cache: CacheOrPath,
    labels: Labels = None,
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
) -> tuple[FittedHead, Record]:
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
        ``root-l2`` (see `classify.preparation.root_l2`) or ``standardise``. If not given it is
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
    kind = named(head)
    options = fit_options(seed, class_weight, prepare, metric)
    cache = open_cache(cache)
    sets = None if layer is None else [layer_names(cache, layer)]
    table = table_of(cache, labels, column, labels_level)
    task = make_task(cache, table, test_size=test_size, seed=seed)
    options.metric.check(task.classes)
    narrow = sets is None and not may_join(cache, task)
    if sets is None:
        deepest = layer_names(cache)
        sets = layer_sets(cache, deepest if narrow else [*deepest, "joined"])
    # Measured: on two cores of which one is busy, a second thread makes the solver 20 times
    # slower and worse, because the threads of BLAS wait for each other by spinning.
    with threadpool_limits(1):
        fitted, result, told = _best(cache, task, kind, sets, options)
    if narrow and len(cache.layers) > 1:
        told.append(
            f"only {sets[0][0]}, the deepest layer, was tried, as there are many images; all "
            "layers joined are often better: --layer joined"
        )
    notices = (*task.notices, *copies_across(task, cache.paths), *told, *fitted.notices)
    return replace(fitted, seen=_seen(cache, task), notices=notices), result.record


def _loss(result: Result, options: FitOptions) -> float:
    """What is least for the best choice of layers; infinite where nothing was validated.

    Where nothing else was asked for, the log loss: of few images it tells more than their errors.
    """
    if result.validation is None or result.record.validation_metric is None:
        return np.inf
    if options.metric == ACCURACY:
        return result.validation.calibrated_log_loss
    return -options.metric.sign * result.record.validation_metric


def may_join(cache: FeatureCache, task: Task) -> bool:
    """Whether all layers of a task's images are few enough numbers to try them joined."""
    return len(task.rows) * dim(cache, list(cache.layers)) <= MOST_JOINED


def _best(
    cache: FeatureCache,
    task: Task,
    head: Head,
    sets: Sequence[tuple[str, ...]],
    options: FitOptions,
) -> tuple[FittedHead, Result, list[str]]:
    """The head on the layers that validation finds best, and what a user should know of that."""
    if len(sets) == 1:
        return *graft(cache, task, head, sets[0], options), []
    heads: dict[tuple[str, ...], FittedHead] = {}
    found: dict[tuple[str, ...], Result] = {}
    told = []
    for layers in sets:
        key = key_of(cache, task, head.name, layers, options)
        result = recall_result(cache, key, task, head.name, layers)
        if result is None:
            try:
                heads[layers], result = graft(cache, task, head, layers, options)
            except CallError as error:
                told.append(f"{head.name} on {'+'.join(layers)} left out: {error}")
                continue
            keep_result(cache, key, result)
        found[layers] = result
    if not found:
        raise CallError("; ".join(told))
    judged = {layers: loss for layers in found if (loss := _loss(found[layers], options)) < np.inf}
    deepest = layer_names(cache) if layer_names(cache) in found else next(iter(found))
    best = deepest
    if judged:
        best = max(judged, key=lambda layers: (-judged[layers], -dim(cache, layers)))
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
        heads[best], found[best] = graft(cache, task, head, best, options)
    return heads[best], found[best], told


def _seen(cache: FeatureCache, task: Task) -> np.ndarray:
    used = task.rows[task.split != TEST]
    return np.unique(beginnings(cache.column("sha256")[used]))


def fit_options(
    seed: int, class_weight: str | None, prepare: str | None, metric: str | None
) -> FitOptions:
    """What was asked for, checked.

    Raises
    ------
    CallError, LabelError, FileNotFoundError
    """
    check_class_weight(class_weight)
    check_preparation(prepare)
    return FitOptions(seed, class_weight, prepare, metric_of(metric))


def _minus(metric: Metric, classes: Sequence[str], scores: np.ndarray, y: np.ndarray) -> float:
    """What is to be least where a metric is to be best."""
    heat = temperature(scores, y) if metric.name == "log_loss" else 1.0
    value = metric.of(scores, y, classes, heat)
    return 0.0 if value is None else -metric.sign * value


def check_class_weight(class_weight: str | None) -> None:
    """Refuse what is neither None nor ``balanced``: CallError."""
    if class_weight not in (None, "balanced"):
        raise CallError(f"the class weight is balanced or nothing, not {class_weight!r}")


def table_of(
    cache: FeatureCache, labels: Labels, column: str = "label", level: int | None = None
) -> LabelTable:
    """The label table meant by an option: a path is read, none means the folder names."""
    return given_table(labels, column, level) or from_folders(cache.paths, level)


def graft(
    cache: FeatureCache,
    task: Task,
    head: Head,
    layers: tuple[str, ...],
    options: FitOptions,
    lasting: bool = True,
) -> tuple[FittedHead, Result]:
    """`fit` of one choice of layers, once everything is looked up.

    What is computed of the features alone is kept beside the cache if `lasting`.
    """
    started, seed, metric = time.perf_counter(), options.seed, options.metric
    dev, test = np.flatnonzero(task.split != TEST), np.flatnonzero(task.split == TEST)
    rows = Rows.of_cache(cache, layers, task.rows[dev])
    rows.check_finite(cache)
    found = _folding(cache, task, dev, seed)
    found = affordable(head, rows, found, len(np.unique(task.y[dev])))
    known = np.unique(task.y[dev[found.final]])
    number = np.full(len(task.classes), -1)
    number[known] = np.arange(len(known))
    y = number[task.y[dev]]
    weights = weigh(options.class_weight, known, y)
    near = partial(nearest_kept, cache, layers) if lasting else nearest
    names = [task.classes[i] for i in known]
    judge = None if metric == ACCURACY else partial(_minus, metric, names)
    lesson = Lesson(rows, y, len(known), found, (), weights, nearest=near, judge=judge)
    prepare, trained = min(
        (
            (name, _train(cache, layers, head, replace(lesson, rows=rows.prepared(name)), lasting))
            for name in preparations(options.prepare, len(dev), rows.dim)
        ),
        key=lambda one: 0 if one[1].choice is None else one[1].choice.loss,
    )

    heat, shift, scorer, validation, validated = None, None, trained.scorer, None, None
    if trained.choice is not None:
        held = dev[trained.held]
        balanced, unit = weights is not None, task.units[held]
        told = _calibrated(trained.choice.scores, y[trained.held], unit, balanced, judge)
        heat, shift = told.temperature, told.shift
        validated = metric.of(told.held, y[trained.held], names, heat)
        validation = _answers(task, held, told.held, known, heat, trained)
        if shift is not None:
            scorer = shifted(scorer, shift)
    answers, scores = None, {}
    recall: Recalls | None = None
    tested_metric: float | None = None
    if len(test):
        tested = Rows.of_cache(cache, layers, task.rows[test])
        tested.check_finite(cache)
        # Block by block: the scores of all would be images times classes.
        parts, whole = [], []
        for where, block in tested.prepared(prepare).blocks(len(known)):
            made = scorer.scores(block)
            parts.append(_answers(task, test[where], made, known, heat, trained))
            if len(test) * len(known) <= MOST_SCORES:
                whole.append(made)
        answers = Outcomes.joined(parts)
        if whole:
            tested_metric = metric.of(np.concatenate(whole), number[task.y[test]], names, heat)
        unit = task.unit_of(answers.rows)
        scores = asdict(summarise(answers, len(task.classes), unit, seed=seed))
        recall = recalls(answers, task.classes, unit, seed)
    settings = head.settings(trained.setting) | trained.further
    right, interval = None, None
    if validation is not None:
        right, interval = share(validation.correct, task.unit_of(validation.rows), seed)
    record = Record(
        task=task.name,
        head=head.name,
        layer="+".join(layers),
        classes=names,
        n_train=len(found.final),
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
        source=Source.of(cache, layers),
        record=record.to_json(),
        seen=_NONE,
        notices=notices,
    )
    return fitted, Result(record, validation, answers, notices)


def _train(
    cache: FeatureCache, layers: tuple[str, ...], head: Head, lesson: Lesson, lasting: bool
) -> Trained:
    if head.way in ("solved", "minimised"):
        weights = lesson.measured_by(head)
        basis = spectra(cache, layers, lesson.rows, lesson.folding, weights, lasting=lasting)
        lesson = replace(lesson, spectra=basis)
    return train(head, lesson)


def _folding(cache: FeatureCache, task: Task, dev: np.ndarray, seed: int) -> Folding:
    """The task's folds, the same for every head, and where images allow it for every task."""
    y, val = task.y[dev], task.split[dev] == VAL
    unit = task.units[dev]
    if not val.any():
        by_content = shared(y, cache.column("sha256")[task.rows[dev]], seed, unit)
        if by_content is not None:
            return by_content
    return folding(y, seed, unit, val)


def _calibrated(
    scores: np.ndarray, y: np.ndarray, unit: np.ndarray, balanced: bool, judge: Judge | None
) -> Calibration:
    """Held-out scores, calibrated: by temperature alone where a bias would do harm.

    A bias has each class predicted as often as it comes. That would undo the balancing where the
    classes are to count alike; and it may be worse by the metric that was asked for.
    """
    if not balanced:
        found = calibrate(scores, y, unit)
        if judge is None or judge(found.held, y) <= judge(scores, y):
            return found
    return Calibration(temperature(scores, y), None, scores)


def _answers(
    task: Task,
    positions: np.ndarray,
    scores: np.ndarray,
    known: np.ndarray,
    heat: float | None,
    trained: Trained,
) -> Outcomes:
    """Outcomes by row, so that those of two heads can be laid beside each other."""
    order = np.argsort(task.rows[positions])
    at = positions[order]
    return outcomes(
        task.rows[at],
        task.y[at],
        scores[order],
        known,
        temperature=heat,
        probabilistic=trained.probabilistic,
    )

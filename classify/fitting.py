"""Fit one head and score it: settings by validation, the score by test images alone."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from os import PathLike

import numpy as np
from threadpoolctl import threadpool_limits

from classify.bias import Calibration, calibrate
from classify.calibration import outcomes, temperature
from classify.errors import CallError
from classify.features import CacheOrPath, Rows, layer_names, open_cache
from classify.fitted import FittedHead, Source, beginnings
from classify.heads import Head, named
from classify.labels import TEST, VAL, LabelTable, from_folders, given_table
from classify.outcomes import Outcomes
from classify.recalls import Recalls, recalls
from classify.records import Record
from classify.results import Result
from classify.scorers import shifted
from classify.scores import share, summarise
from classify.spectrum import Spectrum
from classify.splits import Folding, folding, shared
from classify.statistics import spectra
from classify.tasks import Task, copies_across, make_task
from classify.training import Lesson, Trained, affordable, balanced_weights, train
from featurize.cache import FeatureCache

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
    test_size: float = 0.2,
    seed: int = 0,
) -> tuple[FittedHead, Record]:
    """Train one head on cached features, its setting chosen by validation, and score it.

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
        Several are joined; the deepest if not given.
    column : str
        The column of the CSV that holds the labels.
    labels_level : int, optional
        Which folder names the label, 1 for the topmost; found out if not given.
    class_weight : str, optional
        ``balanced``: every class counts alike, however many images it has.
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
    check_class_weight(class_weight)
    cache = open_cache(cache)
    names = layer_names(cache, layer)
    table = table_of(cache, labels, column, labels_level)
    task = make_task(cache, table, test_size=test_size, seed=seed)
    # Measured: on two cores of which one is busy, a second thread makes the solver 20 times
    # slower and worse, because the threads of BLAS wait for each other by spinning.
    with threadpool_limits(1):
        fitted, result = graft(cache, task, kind, names, seed=seed, class_weight=class_weight)
    notices = (*task.notices, *copies_across(task, cache.paths), *fitted.notices)
    return replace(fitted, seen=_seen(cache, task), notices=notices), result.record


def _seen(cache: FeatureCache, task: Task) -> np.ndarray:
    used = task.rows[task.split != TEST]
    return np.unique(beginnings(cache.column("sha256")[used]))


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
    *,
    seed: int,
    class_weight: str | None = None,
) -> tuple[FittedHead, Result]:
    """`fit`, once everything is looked up."""
    started = time.perf_counter()
    dev, test = np.flatnonzero(task.split != TEST), np.flatnonzero(task.split == TEST)
    rows = Rows.of_cache(cache, layers, task.rows[dev])
    rows.check_finite(cache)
    found = _folding(cache, task, dev, seed)
    found = affordable(head, rows, found, len(np.unique(task.y[dev])))
    known = np.unique(task.y[dev[found.final]])
    number = np.full(len(task.classes), -1)
    number[known] = np.arange(len(known))
    y, balanced = number[task.y[dev]], class_weight == "balanced"
    basis: list[Spectrum] = []
    if head.way in ("solved", "minimised"):
        weights = balanced_weights(y, len(known)) if balanced and head.name == "ridge" else None
        basis = spectra(cache, layers, rows, found, weights)
    trained = train(head, Lesson(rows, y, len(known), found, basis, balanced))

    heat, shift, scorer, validation = None, None, trained.scorer, None
    if trained.choice is not None:
        held = dev[trained.held]
        told = _calibrated(trained.choice.scores, y[trained.held], task.units[held], balanced)
        heat, shift = told.temperature, told.shift
        validation = _answers(task, held, told.held, known, heat, trained)
        if shift is not None:
            scorer = shifted(scorer, shift)
    answers, scores = None, {}
    recall: Recalls | None = None
    if len(test):
        tested = Rows.of_cache(cache, layers, task.rows[test])
        tested.check_finite(cache)
        # Block by block: the scores of all would be images times classes.
        answers = Outcomes.joined(
            [
                _answers(task, test[where], scorer.scores(block), known, heat, trained)
                for where, block in tested.blocks(len(known))
            ]
        )
        unit = task.unit_of(answers.rows)
        scores = asdict(summarise(answers, len(task.classes), unit, seed=seed))
        recall = recalls(answers, task.classes, unit, seed)
    settings = head.settings(trained.setting)
    right, interval = None, None
    if validation is not None:
        right, interval = share(validation.correct, task.unit_of(validation.rows), seed)
    record = Record(
        task=task.name,
        head=head.name,
        layer="+".join(layers),
        classes=[task.classes[i] for i in known],
        n_train=len(found.final),
        n_test=len(test),
        accuracy=scores.pop("accuracy", None),
        accuracy_ci=scores.pop("accuracy_ci", None),
        validation=right,
        validation_ci=interval,
        C=settings.get("C"),
        settings=settings,
        class_weight=class_weight,
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


def _folding(cache: FeatureCache, task: Task, dev: np.ndarray, seed: int) -> Folding:
    """The task's folds, the same for every head, and where images allow it for every task."""
    y, val = task.y[dev], task.split[dev] == VAL
    unit = task.units[dev]
    if not val.any():
        by_content = shared(y, cache.column("sha256")[task.rows[dev]], seed, unit)
        if by_content is not None:
            return by_content
    return folding(y, seed, unit, val)


def _calibrated(scores: np.ndarray, y: np.ndarray, unit: np.ndarray, balanced: bool) -> Calibration:
    """Held-out scores, calibrated: by temperature alone where the classes are to count alike.

    A bias would have each class predicted as often as it comes, and undo the balancing.
    """
    if balanced:
        return Calibration(temperature(scores, y), None, scores)
    return calibrate(scores, y, unit)


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

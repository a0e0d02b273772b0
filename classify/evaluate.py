"""Fit one head and score it: settings by validation, the score by test images alone."""

import time
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike

import numpy as np
from threadpoolctl import threadpool_limits

from classify.features import CacheOrPath, layer_names, matrix, open_cache
from classify.fitted import FittedHead, Source
from classify.heads import Choice, Head, choose, fit_quietly, named
from classify.labels import TEST, TRAIN, VAL, LabelTable, from_folders, read_table
from classify.records import Record, wilson
from classify.splits import folds
from classify.tasks import Task, make_task
from featurize.cache import FeatureCache

Labels = LabelTable | str | PathLike[str] | None


def fit(
    cache: CacheOrPath,
    labels: Labels = None,
    head: str = "softmax",
    layer: str | Sequence[str] | None = None,
    *,
    column: str = "label",
    test_size: float = 0.2,
    seed: int = 0,
) -> tuple[FittedHead, Record]:
    """Train one head on cached features, its C chosen by validation, and score it.

    C is chosen by stratified folds of the training images (whole groups, where the table has
    them), or on the ``val`` images where the table has such a split. The head is then trained on
    the training images with that C; ``val`` images are never trained on. Test images give the
    final accuracy and decide nothing.

    Parameters
    ----------
    cache : path or FeatureCache
    labels : LabelTable or path of a CSV, optional
        Folder names, if not given.
    head : str
        ``softmax`` or ``linear-svm``.
    layer : str or sequence of str, optional
        Several are joined; the deepest if not given.
    column : str
        The column of the CSV that holds the labels.
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
    cache = open_cache(cache)
    names = layer_names(cache, layer)
    task = make_task(cache, table_of(cache, labels, column), test_size=test_size, seed=seed)
    # Measured: on two cores of which one is busy, a second thread makes the solver 20 times
    # slower and worse, because the threads of BLAS wait for each other by spinning.
    with threadpool_limits(1):
        fitted, record = graft(cache, task, kind, names, seed=seed)
    return replace(fitted, notices=(*task.notices, *fitted.notices)), record


def table_of(cache: FeatureCache, labels: Labels, column: str = "label") -> LabelTable:
    """The label table meant by an option: a path is read, none means the folder names."""
    if labels is None:
        return from_folders(cache.paths)
    return labels if isinstance(labels, LabelTable) else read_table(labels, column)


def graft(
    cache: FeatureCache, task: Task, head: Head, layers: tuple[str, ...], *, seed: int
) -> tuple[FittedHead, Record]:
    """`fit`, once everything is looked up; the notices are those of the training alone."""
    started = time.perf_counter()
    train, val, test = (np.flatnonzero(task.split == part) for part in (TRAIN, VAL, TEST))
    X, y = matrix(cache, layers, task.rows[train]), task.y[train]
    if len(val):
        both = np.concatenate([X, matrix(cache, layers, task.rows[val])])
        parts = [(np.arange(len(train)), np.arange(len(train), len(both)))]
        choice = choose(head, both, np.concatenate([y, task.y[val]]), parts)
        del both
    else:
        groups = None if task.groups is None else task.groups[train]
        choice = choose(head, X, y, folds(y, seed, groups))
    model = head.build(choice.C, X.shape)
    converged = fit_quietly(model, X, y)

    classes = [task.classes[number] for number in model.classes_]
    accuracy, interval = None, None
    if len(test):
        found = model.predict(matrix(cache, layers, task.rows[test]))
        correct = int((found == task.y[test]).sum())
        accuracy, interval = correct / len(test), wilson(correct, len(test))
    record = Record(
        task=task.name,
        head=head.name,
        layer="+".join(layers),
        classes=classes,
        n_train=len(train),
        n_test=len(test),
        accuracy=accuracy,
        accuracy_ci=interval,
        validation=choice.validation,
        C=choice.C,
        seconds=round(time.perf_counter() - started, 3),
    )
    scale, linear = model["scale"], model["classify"]
    fitted = FittedHead(
        head=head.name,
        classes=classes,
        mean=scale.mean_,
        scale=scale.scale_,
        coef=linear.coef_,
        intercept=linear.intercept_,
        C=choice.C,
        task=task.name,
        source=Source.of(cache, layers),
        record=record.to_json(),
        notices=tuple(_notices(record, choice, converged)),
    )
    return fitted, record


def _notices(record: Record, choice: Choice, converged: bool) -> list[str]:
    where = f"{record.head} on {record.layer}"
    notices = []
    if choice.validation is None:
        notices.append(f"{where}: nothing to validate with, so C = {choice.C:g} was not chosen")
    if choice.unconverged:
        notices.append(f"{where}: {choice.unconverged} fits while choosing C did not converge")
    if not converged:
        notices.append(f"{where}: the final fit with C = {choice.C:g} did not converge")
    return notices

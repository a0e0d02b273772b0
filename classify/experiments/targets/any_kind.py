"""Fit and compare heads on tasks of any kind of labels."""

import os
from collections.abc import Callable, Sequence
from typing import Any, cast, overload

from classify.data.features import CacheOrPath, open_cache, resolve_layers
from classify.data.preparation import check_preparation
from classify.data.sets.cache_set import CachesLike, open_caches
from classify.data.sets.layer_words import DEFAULT_LAYERS, list_layer_sets
from classify.data.targets.spec import TaskSpec
from classify.data.targets.task import make_target_task
from classify.errors import CallError
from classify.experiments.compare import Comparison, compare_classes
from classify.experiments.fit import (
    HeadFit,
    check_class_weight,
    check_single,
    fit_classes,
    list_layer_choices,
    refuse_class_weight,
)
from classify.experiments.repeats import RepeatedComparison
from classify.experiments.targets.compare import TargetComparison, compare_targets
from classify.experiments.targets.fit import TargetHeadFit, fit_targets
from classify.experiments.targets.results import TargetFitOptions
from classify.heads.record import HeadCallback
from classify.heads.targets.registry import check_head_names
from classify.labels.table import LabelTable
from classify.labels.targets.kinds import WordsLike, split_words
from classify.labels.targets.resolve import TargetsLike
from classify.labels.targets.table import TargetTable, make_names_unique
from featurize.progress import ignore

AnyComparison = Comparison | TargetComparison | RepeatedComparison


def fit(
    cache: CacheOrPath,
    labels: TargetsLike = None,
    head: str | None = None,
    layer: str | Sequence[str] | None = None,
    *,
    column: str = "label",
    labels_level: int | None = None,
    kind: str | None = None,
    columns: WordsLike = None,
    order: WordsLike = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    coverage: float | None = None,
    test_size: float = 0.2,
    seed: int = 0,
) -> HeadFit | TargetHeadFit:
    """Train one head on cached features, select its param by validation, and test it.

    Without `layer` the layers are selected too: the deepest layer of the cache, the three deepest
    joined or all joined, whichever has the lowest log loss on held-out images. For ``softmax-lda``
    it is the loss of ``lda``, which takes a fraction of the time. Earlier layers alone are hardly
    ever better than all joined; `compare` tries them too. Where the joined layers have over 67
    million values (30,000 images of SqueezeNet), only the deepest layer is tried.

    The param (C of softmax and the SVMs, alpha of ridge, ...) is selected by stratified folds of
    the training images, or on the ``val`` images where the table has such a split. Images of one
    group, and copies of one image, are never on both sides of a fold or of a drawn split, and
    count as one in every interval. The head is then trained on all training images with that
    param; it is never trained on ``val`` images. Test images give the final accuracy and are used
    for no choice.

    Parameters
    ----------
    cache : path or FeatureCache
        One only, as a head file has one backbone.
    labels : LabelTable or path of a CSV, optional
        By default those that came with the images, else the folder names.
    head : str, optional
        ``softmax-lda`` (the average of these two, as calibrated heads; the default for classes),
        ``softmax``, ``linear-svm``, ``rbf-svm``, ``ridge``, ``lda``, ``ncm``, ``knn``, or a
        scikit-learn classifier as ``package.module:Class``. For other kinds of labels see
        `classify.heads.targets.registry.HEADS_OF`: ``softmax`` (a logistic regression of each
        label), ``linear-svm``, ``ridge``, ``kernel-ridge``, ``knn``, ``ordinal``, or an estimator
        of scikit-learn. The default for grades is the one of ``ordinal``, ``softmax-lda`` and
        ``ridge`` that validates best.
    layer : str or sequence of str, optional
        Several layers are joined. By default the deepest layer, the three deepest joined or all
        joined, whichever validates best.
    column : str
        The column of the CSV that holds the labels.
    labels_level : int, optional
        Depth of the folders that name the labels, 1 for the topmost; detected by default.
    kind : str, optional
        ``class``, ``multi`` (any number of labels an image), ``number`` or ``grade`` (ordered
        classes); recognised if not given.
    columns : str or sequence of str, optional
        Columns of 0 and 1, one for each of several labels, in place of `column`.
    order : str or sequence of str, optional
        The grades, from the lowest; numbers are in their own order.
    class_weight : str, optional
        ``balanced``: every class has the same total weight, whatever its number of images.
    prepare : str, optional
        ``root-l2`` (see `classify.data.preparation.root_l2`) or ``standardise``. By default
        root-l2; with more than 20 images per column, the one of the two with the lower held-out
        loss.
    metric : str, optional
        Metric that selects the param and the layers: ``accuracy`` (default),
        ``balanced_accuracy``, ``macro_f1``, ``log_loss``, ``auroc`` or ``average_precision`` (means
        over classes, one against the rest), or the path of a CSV with the columns truth, predicted
        and cost. With accuracy, the param is selected by the head's own loss.
    coverage : float, optional
        Share of new images that prediction sets of classes, and intervals of numbers, shall cover;
        0.9 if not given.
    test_size : float
        Fraction of each class held out for testing, where neither table nor folders have a split.
    seed : int
        Seed of that split, of the folds and of the bootstrap.

    Returns
    -------
    HeadFit or TargetHeadFit
        ``head, record = fit(...)``; the second for labels that are not one class.

    Raises
    ------
    CallError
        If an option is invalid, or the head cannot be trained on so many rows, columns or classes.
    ClassifyError, FeaturizeError, FileNotFoundError
        If cache or labels cannot be read or used.
    """
    check_single(cache)
    check_head_names([] if head is None else [head])
    check_class_weight(class_weight)
    check_preparation(prepare)
    opened = open_cache(cache)
    spec = TaskSpec(labels, column, labels_level, test_size, seed, kind, columns, order)
    layer_sets = None if layer is None else [resolve_layers(opened, layer)]
    table = spec.read_any_table(opened)
    if isinstance(table, LabelTable):
        return fit_classes(
            opened,
            table,
            head,
            layer,
            class_weight=class_weight,
            prepare=prepare,
            metric=metric,
            coverage=coverage,
            test_size=test_size,
            seed=seed,
        )
    refuse_class_weight(table.kind, class_weight)
    options = TargetFitOptions.from_options(
        table.kind, seed, metric=metric, prepare=prepare, coverage=coverage
    )
    task = make_target_task(opened, table, test_size=test_size, seed=seed)
    return fit_targets(opened, task, head, layer_sets or list_layer_choices(opened, task), options)


@overload
def compare(
    cache: CachesLike,
    labels: TargetsLike | Sequence[TargetsLike] = None,
    heads: str | Sequence[str] | None = ...,
    layers: str | Sequence[str] = ...,
    *,
    column: str = "label",
    labels_level: int | None = None,
    kind: None = None,
    columns: None = None,
    order: None = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    coverage: float | None = None,
    test_size: float = 0.2,
    seed: int = 0,
    repeats: None = None,
    shots: None = None,
    folds: None = None,
    zeroshot: Sequence[str | os.PathLike[str]] = (),
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: Callable[[Any], None] = ignore,
) -> Comparison: ...


@overload
def compare(
    cache: CachesLike,
    labels: TargetsLike | Sequence[TargetsLike] = None,
    heads: str | Sequence[str] | None = ...,
    layers: str | Sequence[str] = ...,
    *,
    column: str = "label",
    labels_level: int | None = None,
    kind: str | None = None,
    columns: WordsLike = None,
    order: WordsLike = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    coverage: float | None = None,
    test_size: float = 0.2,
    seed: int = 0,
    repeats: int | None = None,
    shots: str | Sequence[int] | None = None,
    folds: int | None = None,
    zeroshot: Sequence[str | os.PathLike[str]] = (),
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: Callable[[Any], None] = ignore,
) -> AnyComparison: ...


def compare(
    cache: CachesLike,
    labels: TargetsLike | Sequence[TargetsLike] = None,
    heads: str | Sequence[str] | None = None,
    layers: str | Sequence[str] = DEFAULT_LAYERS,
    *,
    column: str = "label",
    labels_level: int | None = None,
    kind: str | None = None,
    columns: WordsLike = None,
    order: WordsLike = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    coverage: float | None = None,
    test_size: float = 0.2,
    seed: int = 0,
    repeats: int | None = None,
    shots: str | Sequence[int] | None = None,
    folds: int | None = None,
    zeroshot: Sequence[str | os.PathLike[str]] = (),
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: Callable[[Any], None] = ignore,
) -> AnyComparison:
    """Train every head on every choice of layers for every task.

    Each result is stored next to the cache as soon as it is available. An interrupted comparison
    resumes where it stopped, and a larger one trains only what is new.

    Parameters
    ----------
    cache : path or FeatureCache, or several
        Worker processes map its features into memory; nothing is copied between processes. Several
        caches of the same images, matched by path, are compared on those that are finished in all
        of them: one split, one leaderboard, paired differences. Which images are copies of each
        other is told from the first.
    labels : LabelTable, TargetTable or path of a CSV, or several, optional
        One task each, all of classes or all of other kinds; by default one, of the labels that came
        with the images or the folder names.
    heads : str or sequence of str, optional
        Names; a string is split at its commas. For classes the linear heads if not given; for other
        kinds `classify.heads.targets.registry.COMPARED_HEADS_OF`.
    layers : str or sequence of str
        ``each`` (every layer alone), ``joined`` (all layers concatenated), layer names, and
        ``a+b``. For several caches see `classify.data.sets.layer_words.list_layer_sets`.
    column, labels_level, kind, columns, order, class_weight, prepare, metric, coverage
        As in `fit`.
    test_size, seed
        As in `fit`; every head of a task gets the same split.
    repeats : int, optional
        Number of random splits, 2 or more, with `seed` and the seeds that follow it. With `shots`
        the number of draws of each size (default 5), with `folds` the number of repetitions.
    shots : str or sequence of int, optional
        Numbers of training images per class, as ``1,2,4,8,16``, drawn by seed. All draws are tested
        on the same images: the table's own test images, or those held out by `seed`. Each draw
        selects its params among its own images only.
    folds : int, optional
        Number of test folds, 2 or more. Every image is tested once, by a head trained on the other
        folds.
    zeroshot : sequence of path
        Heads of `make_zero_shot_head`, scored beside the trained ones on the tasks of their
        classes.
    jobs : int, optional
        Number of worker processes of one thread each; by default the number of cores.
    progress : callable, optional
        Called with each record, the number of heads done, and the total.
    report : callable
        Called with the same as one `classify.heads.record.HeadProgress`.

    Returns
    -------
    Comparison, TargetComparison or RepeatedComparison
        The second for labels that are not one class. The last with `repeats`, `shots` or `folds`,
        which are for classes.

    Raises
    ------
    CallError
        If an option is invalid, nothing is to be compared, or no head of a task could be trained.
    ClassifyError, FeaturizeError, FileNotFoundError
        As in `fit`.
    """
    check_head_names([] if heads is None else split_words(heads))
    check_class_weight(class_weight)
    check_preparation(prepare)
    opened = open_caches(cache)
    is_single = labels is None or isinstance(labels, (LabelTable, TargetTable, str, os.PathLike))
    inputs = [labels] if is_single else list(cast(Sequence[TargetsLike], labels))
    tables = [
        TaskSpec(
            cast(TargetsLike, given), column, labels_level, kind=kind, columns=columns, order=order
        ).read_any_table(opened)
        for given in inputs
    ]
    of_classes = [table for table in tables if isinstance(table, LabelTable)]
    others = [table for table in tables if isinstance(table, TargetTable)]
    if not others:
        return compare_classes(
            opened,
            of_classes,
            heads,
            layers,
            class_weight=class_weight,
            prepare=prepare,
            metric=metric,
            test_size=test_size,
            seed=seed,
            repeats=repeats,
            shots=shots,
            folds=folds,
            zeroshot=zeroshot,
            jobs=jobs,
            progress=progress,
            report=report,
        )
    if of_classes:
        raise CallError(
            f"{of_classes[0].source} holds classes and {others[0].source} labels of the kind "
            f"{others[0].kind}: compare them one after the other; the cache serves both"
        )
    if repeats is not None or shots is not None or folds is not None or zeroshot:
        raise CallError("--repeats, --shots, --folds and --zeroshot are for classes")
    refuse_class_weight(others[0].kind, class_weight)
    tasks = [
        make_target_task(opened, table, test_size=test_size, seed=seed)
        for table in make_names_unique(others)
    ]
    return compare_targets(
        opened,
        tasks,
        None if heads is None else split_words(heads),
        list_layer_sets(opened, layers),
        metric=metric,
        prepare=prepare,
        coverage=coverage,
        seed=seed,
        jobs=jobs,
        report=report,
    )

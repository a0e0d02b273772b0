"""Fit one head: select its param by validation, and test it on images used for nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from classify.checks.groups import describe_evident_groups
from classify.data.features import (
    CacheOrPath,
    open_cache,
    resolve_layers,
    total_dim,
)
from classify.data.folds import hash_prefixes
from classify.data.preparation import check_preparation
from classify.data.sets.cache_set import CacheSet
from classify.data.targets.spec import TaskSpec
from classify.data.targets.task import TargetTask
from classify.data.task_notices import describe_leaking_copies
from classify.data.tasks import Task
from classify.doubt.conformal import check_coverage
from classify.errors import CallError
from classify.evaluation.selection_metric import ACCURACY, resolve_metric
from classify.experiments.fit_task import fit_task
from classify.experiments.results import FitOptions, FitResult, load_result, result_key, save_result
from classify.heads.fitted import FittedHead
from classify.heads.record import HeadResult
from classify.heads.registry import DEFAULT_HEAD, HeadSpec, get_head_spec
from classify.kinds import CLASS
from classify.labels.folders import TEST
from classify.labels.targets.resolve import TargetsLike
from featurize.backbones.licences import find_licence_warning
from featurize.cache.reader import FeatureCache

UPPER_LAYERS = 3
"""So many of the deepest layers joined are one of the choices of layers that `fit` tries."""
MAX_JOINED_VALUES = 1 << 26
"""Maximum number of feature values (images x columns of all layers) for which `fit` tries the
joined layers by default. Above it, that one fit would dominate the run time."""


class HeadFit(NamedTuple):
    """Result of `fit`; unpacks into head and record.

    Attributes
    ----------
    head : FittedHead
        The trained head.
    record : HeadResult
        Its scores and how it was selected.
    """

    head: FittedHead
    record: HeadResult

    @property
    def notices(self) -> list[str]:
        """Notices for the user."""
        return list(self.head.notices)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dict for JSON.

        Returns
        -------
        dict
            See `classify.heads.record.HeadResult.to_dict`.
        """
        return self.record.to_dict()


def fit_classes(
    cache: CacheOrPath,
    labels: TargetsLike = None,
    head: str | None = None,
    layer: str | Sequence[str] | None = None,
    *,
    column: str = "label",
    labels_level: int | None = None,
    class_weight: str | None = None,
    prepare: str | None = None,
    metric: str | None = None,
    coverage: float | None = None,
    test_size: float = 0.2,
    seed: int = 0,
) -> HeadFit:
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
        scikit-learn classifier as ``package.module:Class``.
    layer : str or sequence of str, optional
        Several layers are joined. By default the deepest layer, the three deepest joined or all
        joined, whichever validates best.
    column : str
        The column of the CSV that holds the labels.
    labels_level : int, optional
        Depth of the folders that name the labels, 1 for the topmost; detected by default.
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
        Share of new images whose class the prediction sets shall hold; 0.9 if not given.
    test_size : float
        Fraction of each class held out for testing, where neither table nor folders have a split.
    seed : int
        Seed of that split, of the folds and of the bootstrap.

    Returns
    -------
    HeadFit
        ``head, record = fit_classes(...)``.

    Raises
    ------
    CallError
        If an option is invalid, or the head cannot be trained on so many rows, columns or classes.
    ClassifyError, FeaturizeError, FileNotFoundError
        If cache or labels cannot be read or used.
    """
    check_single(cache)
    task_spec = TaskSpec(labels, column, labels_level, test_size, seed, CLASS)
    head_spec = get_head_spec(DEFAULT_HEAD if head is None else head)
    options = make_fit_options(seed, class_weight, prepare, metric, coverage)
    cache = open_cache(cache)
    layer_sets = None if layer is None else [resolve_layers(cache, layer)]
    task = task_spec.make_task(cache)
    options.metric.check_classes(task.classes)
    deepest_only = layer_sets is None and not can_join_layers(cache, task)
    if layer_sets is None:
        layer_sets = list_layer_choices(cache, task)
    # One BLAS thread: on two cores of which one was busy, a second thread made the solver 20 times
    # slower (measured), because BLAS threads wait for each other by spinning.
    with threadpool_limits(1):
        fitted, result, layer_notices = _fit_best_layers(
            cache, task, head_spec, layer_sets, options
        )
    if deepest_only and len(cache.layers) > 1:
        layer_notices.append(
            f"only {layer_sets[0][0]}, the deepest layer, was tried, as there are many images; all "
            "layers joined are often better: --layer joined"
        )
    copies = describe_leaking_copies(task, cache.paths_of)
    if task.groups is None:
        copies += describe_evident_groups(cache, task.rows, task.y)
    source = fitted.source
    if source.licence:
        warning = find_licence_warning(source.licence, source.weights)
        layer_notices += [warning] if warning else []
    notices = (*task.notices, *copies, *layer_notices, *fitted.notices)
    head_on_task = replace(fitted, seen=_collect_seen_hashes(cache, task), notices=notices)
    return HeadFit(head_on_task, result.record)


def check_single(cache: object) -> None:
    """Refuse several caches: a head file has one backbone.

    Parameters
    ----------
    cache : object
        What was given for a cache.

    Raises
    ------
    CallError
        If it is several.
    """
    if isinstance(cache, (list, tuple, CacheSet)):
        raise CallError(
            "a head is saved with the one backbone that its features come from, so fit takes one "
            "cache: `classify compare A.h5 B.h5` says which backbone is best, then fit on its cache"
        )


def list_layer_choices(cache: FeatureCache, task: Task | TargetTask) -> list[tuple[str, ...]]:
    """List the choices of layers that validation decides among.

    Parameters
    ----------
    cache : FeatureCache
    task : Task or TargetTask

    Returns
    -------
    list of tuple of str
        The deepest layer, the three deepest and all; the first alone where the joined layers are
        too large.
    """
    names = tuple(cache.layers)
    if not can_join_layers(cache, task):
        return [names[-1:]]
    # With few layers some of them are the same.
    return list(dict.fromkeys([names[-1:], names[-UPPER_LAYERS:], names]))


def can_join_layers(cache: FeatureCache, task: Task | TargetTask) -> bool:
    """Return whether the joined layers of a task are small enough to be tried by default.

    Parameters
    ----------
    cache : FeatureCache
    task : Task or TargetTask

    Returns
    -------
    bool
        Whether images x columns is at most `MAX_JOINED_VALUES`.
    """
    return len(task.rows) * total_dim(cache, list(cache.layers)) <= MAX_JOINED_VALUES


def _fit_best_layers(
    cache: FeatureCache,
    task: Task,
    head: HeadSpec,
    layer_sets: Sequence[tuple[str, ...]],
    options: FitOptions,
) -> tuple[FittedHead, FitResult, list[str]]:
    """Fit the head on the layers that validate best; also return notices on that choice."""
    if len(layer_sets) == 1:
        return *fit_task(cache, task, head, layer_sets[0], options, with_novelty=True), []
    search = get_head_spec(head.layer_head or head.name)
    heads: dict[tuple[str, ...], FittedHead] = {}
    results: dict[tuple[str, ...], FitResult] = {}
    notices = []
    for layers in layer_sets:
        key = result_key(cache, task, search.name, layers, options)
        result = load_result(cache, key, task, search.name, layers)
        if result is None:
            try:
                heads[layers], result = fit_task(
                    cache, task, search, layers, options, with_novelty=search == head
                )
            except CallError as error:
                notices.append(f"{search.name} on {'+'.join(layers)} left out: {error}")
                continue
            save_result(cache, key, result)
        results[layers] = result
    losses = {layers: _selection_loss(result, options) for layers, result in results.items()}
    for layers in sorted(results, key=lambda layers: (losses[layers], total_dim(cache, layers))):
        fitted, result = heads.get(layers), results[layers]
        # Another head searched, or the result was stored and not the head.
        if fitted is None or search != head:
            try:
                fitted, result = fit_task(cache, task, head, layers, options, with_novelty=True)
            except CallError as error:
                notices.append(f"{head.name} on {'+'.join(layers)} left out: {error}")
                continue
        if losses[layers] < np.inf:
            by_head = "" if search == head else f" of {search.name}"
            notices.append(
                _describe_layer_choice(cache, layers, results, losses, options) + by_head
            )
        return fitted, result, notices
    raise CallError("; ".join(notices))


def _describe_layer_choice(
    cache: FeatureCache,
    best: tuple[str, ...],
    results: Mapping[tuple[str, ...], FitResult],
    losses: Mapping[tuple[str, ...], float],
    options: FitOptions,
) -> str:
    """Describe which layers validate best, and by how much."""
    shown: Mapping[tuple[str, ...], float | None] = losses
    title = "log loss"
    if options.metric != ACCURACY:
        shown = {layers: result.record.validation_metric for layers, result in results.items()}
        title = options.metric.title
    which = "all" if len(best) == len(cache.layers) else "the deepest"
    choice_text = best[0] if len(best) == 1 else f"{which} {len(best)} layers joined"
    n_choices = sum(loss < np.inf for loss in losses.values())
    text = f"{choice_text} validates best of {n_choices} choices of layers, with {title} "
    deepest = resolve_layers(cache)
    if best == deepest or losses.get(deepest, np.inf) == np.inf:
        return text + f"{shown[best]:.3f}"
    return text + f"{shown[best]:.3f}; {deepest[0]}, the deepest, has {shown[deepest]:.3f}"


def _selection_loss(result: FitResult, options: FitOptions) -> float:
    """Return the loss that selects the layers; infinite where nothing was validated.

    With the default metric it is the log loss: with few images it is more precise than accuracy.
    """
    if result.validation is None or result.record.validation_metric is None:
        return np.inf
    if options.metric == ACCURACY:
        return result.validation_loss
    return -options.metric.sign * result.record.validation_metric


def _collect_seen_hashes(cache: FeatureCache, task: Task) -> np.ndarray:
    """Return hash prefixes of all images that the head was trained or validated on."""
    used = task.rows[task.split != TEST]
    return np.unique(hash_prefixes(cache.column("sha256", used)))


def make_fit_options(
    seed: int,
    class_weight: str | None,
    prepare: str | None,
    metric: str | None,
    coverage: float | None = None,
) -> FitOptions:
    """Check the options of a fit and collect them.

    Parameters
    ----------
    seed : int
    class_weight, prepare, metric : str, optional
    coverage : float, optional
        As in `fit_classes`.

    Returns
    -------
    FitOptions

    Raises
    ------
    CallError, LabelError, FileNotFoundError
        If an option is invalid, or the table of costs is missing or malformed.
    """
    check_class_weight(class_weight)
    check_preparation(prepare)
    return FitOptions(seed, class_weight, prepare, resolve_metric(metric), check_coverage(coverage))


def refuse_class_weight(kind: str, class_weight: str | None) -> None:
    """Refuse a class weight for labels that are not classes.

    Parameters
    ----------
    kind : str
    class_weight : str, optional

    Raises
    ------
    CallError
        If one is given.
    """
    if class_weight is not None:
        raise CallError(f"--class-weight is for classes, and these labels are of the kind {kind}")


def check_class_weight(class_weight: str | None) -> None:
    """Refuse an unknown class weight.

    Parameters
    ----------
    class_weight : str, optional
        None or ``balanced``.

    Raises
    ------
    CallError
        If it is anything else.
    """
    if class_weight not in (None, "balanced"):
        raise CallError(f"the class weight is balanced or nothing, not {class_weight!r}")

"""Fit one head and score it: settings by validation, the score by test images alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from classify.data.features import (
    CacheOrPath,
    open_cache,
    resolve_layer_sets,
    resolve_layers,
    total_dim,
)
from classify.data.folder_labels import TEST
from classify.data.folds import hash_prefixes
from classify.data.labels import LabelsLike
from classify.data.preparation import check_preparation
from classify.data.tasks import Task, TaskSpec, describe_leaking_copies
from classify.errors import CallError
from classify.evaluation.selection_metric import ACCURACY, resolve_metric
from classify.experiments.fit_task import fit_task
from classify.experiments.results import FitOptions, FitResult, load_result, result_key, save_result
from classify.heads.fitted import FittedHead
from classify.heads.record import HeadResult
from classify.heads.registry import HeadSpec, get_head_spec
from featurize.cache.reader import FeatureCache

MAX_JOINED_VALUES = 1 << 26
"""Numbers in all layers together, up to which they are tried joined where no layer is named: beyond
it that would take longer than all else."""


class HeadFit(NamedTuple):
    """What `fit` made; unpacks into head and record.

    Attributes
    ----------
    head : FittedHead
    record : HeadResult
    """

    head: FittedHead
    record: HeadResult

    @property
    def notices(self) -> list[str]:
        """What a user should know."""
        return list(self.head.notices)

    def to_dict(self) -> dict[str, Any]:
        """The record as a dict."""
        return self.record.to_dict()


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
) -> HeadFit:
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
    HeadFit
        ``head, record = fit(...)``.

    Raises
    ------
    ClassifyError, FeaturizeError, FileNotFoundError
    """
    head_spec = get_head_spec(head)
    task_spec = TaskSpec(labels, column, labels_level, test_size, seed)
    options = make_fit_options(seed, class_weight, prepare, metric)
    cache = open_cache(cache)
    sets = None if layer is None else [resolve_layers(cache, layer)]
    task = task_spec.make_task(cache)
    options.metric.check_classes(task.classes)
    deepest_only = sets is None and not can_join_layers(cache, task)
    if sets is None:
        deepest = resolve_layers(cache)
        sets = resolve_layer_sets(cache, deepest if deepest_only else [*deepest, "joined"])
    # Measured: on two cores of which one is busy, a second thread makes the solver 20 times
    # slower and worse, because the threads of BLAS wait for each other by spinning.
    with threadpool_limits(1):
        fitted, result, layer_notices = _fit_best_layers(cache, task, head_spec, sets, options)
    if deepest_only and len(cache.layers) > 1:
        layer_notices.append(
            f"only {sets[0][0]}, the deepest layer, was tried, as there are many images; all "
            "layers joined are often better: --layer joined"
        )
    copies = describe_leaking_copies(task, cache.paths)
    notices = (*task.notices, *copies, *layer_notices, *fitted.notices)
    head_on_task = replace(fitted, seen=_collect_seen_hashes(cache, task), notices=notices)
    return HeadFit(head_on_task, result.record)


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
    """Fit the head on the layers that validate best; also return notices on that choice."""
    if len(sets) == 1:
        return *fit_task(cache, task, head, sets[0], options), []
    heads: dict[tuple[str, ...], FittedHead] = {}
    results: dict[tuple[str, ...], FitResult] = {}
    notices = []
    for layers in sets:
        key = result_key(cache, task, head.name, layers, options)
        result = load_result(cache, key, task, head.name, layers)
        if result is None:
            try:
                heads[layers], result = fit_task(cache, task, head, layers, options)
            except CallError as error:
                notices.append(f"{head.name} on {'+'.join(layers)} left out: {error}")
                continue
            save_result(cache, key, result)
        results[layers] = result
    if not results:
        raise CallError("; ".join(notices))
    deepest = resolve_layers(cache)
    best = deepest if deepest in results else next(iter(results))
    losses = {layers: _selection_loss(result, options) for layers, result in results.items()}
    losses = {layers: loss for layers, loss in losses.items() if loss < np.inf}
    if losses:
        best = max(losses, key=lambda layers: (-losses[layers], -total_dim(cache, layers)))
        metrics = {layers: results[layers].record.validation_metric for layers in losses}
        which = best[0] if len(best) == 1 else f"all {len(best)} layers joined"
        notice = (
            f"{which} validates best of {len(losses)} choices of layers, with "
            f"{options.metric.title} {metrics[best]:.3f}"
        )
        if best != deepest in losses:
            notice += f"; {deepest[0]}, the deepest, has {metrics[deepest]:.3f}"
        notices.append(notice)
    if best not in heads:  # its result was stored, not the head
        heads[best], results[best] = fit_task(cache, task, head, best, options)
    return heads[best], results[best], notices


def _selection_loss(result: FitResult, options: FitOptions) -> float:
    """What is least for the best choice of layers; infinite where nothing was validated.

    Where nothing else was asked for, the log loss: of few images it tells more than their errors.
    """
    if result.validation is None or result.record.validation_metric is None:
        return np.inf
    if options.metric == ACCURACY:
        return result.validation_loss
    return -options.metric.sign * result.record.validation_metric


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


def check_class_weight(class_weight: str | None) -> None:
    """Refuse what is neither None nor ``balanced``: CallError."""
    if class_weight not in (None, "balanced"):
        raise CallError(f"the class weight is balanced or nothing, not {class_weight!r}")

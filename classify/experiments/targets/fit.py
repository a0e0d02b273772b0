"""Fit a head on several labels, numbers or grades; the head and its layers by validation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from classify.checks.groups import describe_evident_groups
from classify.data.features import total_dim
from classify.data.folds import hash_prefixes
from classify.data.targets.task import TargetTask
from classify.data.task_notices import describe_leaking_copies
from classify.errors import CallError, ClassifyError
from classify.evaluation.targets.metrics import LOWER_IS_BETTER
from classify.evaluation.targets.titles import format_metric_name
from classify.experiments.targets.fit_task import fit_target_task
from classify.experiments.targets.results import (
    TargetFit,
    TargetFitOptions,
    load_target_result,
    save_target_result,
    target_result_key,
)
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.record import TargetResult
from classify.heads.targets.registry import (
    DEFAULT_HEADS_OF,
    LAYER_HEAD,
    TargetHeadSpec,
    get_target_head_spec,
)
from classify.labels.folders import TEST
from featurize.backbones.licences import find_licence_warning
from featurize.cache.reader import FeatureCache


class TargetHeadFit(NamedTuple):
    """Result of `classify.fit` on labels that are not one class; unpacks into head and record.

    Attributes
    ----------
    head : FittedTargets
        The trained head.
    record : TargetResult
        Its metrics and how it was selected.
    """

    head: FittedTargets
    record: TargetResult

    @property
    def notices(self) -> list[str]:
        """Notices for the user."""
        return list(self.head.notices)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dict for JSON.

        Returns
        -------
        dict
            See `classify.heads.targets.record.TargetResult.to_dict`.
        """
        return self.record.to_dict()


def fit_targets(
    cache: FeatureCache,
    task: TargetTask,
    head: str | None,
    layer_sets: Sequence[tuple[str, ...]],
    options: TargetFitOptions,
) -> TargetHeadFit:
    """Train a head, its layers and its param selected by validation, and test it.

    Parameters
    ----------
    cache : FeatureCache
    task : TargetTask
    head : str, or None
        If not given, those of `DEFAULT_HEADS_OF` are tried.
    layer_sets : sequence of tuple of str
        Choices of layers, of which ridge chooses one for all heads.
    options : TargetFitOptions

    Returns
    -------
    TargetHeadFit

    Raises
    ------
    CallError
        If an option does not go with the kind, or no head can be trained.
    """
    names = DEFAULT_HEADS_OF[task.kind] if head is None else (head,)
    specs = [get_target_head_spec(name, task.kind) for name in names]
    notices: list[str] = []
    # One BLAS thread, as for classes: see `classify.experiments.fit.fit`.
    with threadpool_limits(1):
        layers = _choose_layers(cache, task, layer_sets, options, notices)
        fits = {}
        for spec in specs:
            try:
                fits[spec.name] = fit_target_task(cache, task, spec, layers, options)
            except ClassifyError as error:
                if len(specs) == 1:
                    raise
                notices.append(f"{spec.name} left out: {error}")
    if not fits:
        raise CallError("; ".join(notices))
    best = min(fits, key=lambda name: _rank(fits[name][1].record))
    fitted, result = fits[best]
    if len(fits) > 1:
        shown = ", ".join(
            f"{name} {value:.3f}"
            for name, (_, other) in fits.items()
            if (value := other.record.validation_metric) is not None
        )
        notices.append(f"{best} validates best by {format_metric_name(options.metric)}: {shown}")
    source = fitted.source
    warning = find_licence_warning(source.licence, source.weights) if source.licence else None
    copies = describe_leaking_copies(task, cache.paths_of)
    if task.groups is None:
        copies += describe_evident_groups(cache, task.rows, np.zeros(len(task.rows), np.intp))
    all_notices = (*task.notices, *copies, *notices, *([warning] if warning else []))
    used = task.rows[task.split != TEST]
    seen = np.unique(hash_prefixes(cache.column("sha256", used)))
    fitted = replace(fitted, seen=seen, notices=(*all_notices, *result.notices))
    return TargetHeadFit(fitted, result.record)


def _rank(record: TargetResult) -> float:
    """Return a number that is lower for a head that validates better."""
    value = record.validation_metric
    if value is None:
        return np.inf
    return value if record.metric in LOWER_IS_BETTER else -value


def _choose_layers(
    cache: FeatureCache,
    task: TargetTask,
    layer_sets: Sequence[tuple[str, ...]],
    options: TargetFitOptions,
    notices: list[str],
) -> tuple[str, ...]:
    """Choose the layers on which ridge has the lowest held-out error."""
    if len(layer_sets) == 1:
        return layer_sets[0]
    spec = get_target_head_spec(LAYER_HEAD, task.kind)
    losses: dict[tuple[str, ...], float] = {}
    for layers in layer_sets:
        try:
            losses[layers] = fit_or_load(cache, task, spec, layers, options).loss
        except CallError as error:
            notices.append(f"{spec.name} on {'+'.join(layers)} left out: {error}")
    if not losses:
        raise CallError("; ".join(notices))
    best = min(losses, key=lambda layers: (losses[layers], total_dim(cache, layers)))
    if losses[best] < np.inf:
        which = "all" if len(best) == len(cache.layers) else "the deepest"
        name = best[0] if len(best) == 1 else f"{which} {len(best)} layers joined"
        notices.append(
            f"{name} validates best of {len(losses)} choices of layers, by the error of ridge"
        )
    return best


def fit_or_load(
    cache: FeatureCache,
    task: TargetTask,
    spec: TargetHeadSpec,
    layers: tuple[str, ...],
    options: TargetFitOptions,
    persist: bool = True,
) -> TargetFit:
    """Load a kept result, or fit the head and keep it.

    Parameters
    ----------
    cache : FeatureCache
    task : TargetTask
    spec : TargetHeadSpec
    layers : tuple of str
    options : TargetFitOptions
    persist : bool
        Whether to store statistics of the features next to the cache.

    Returns
    -------
    TargetFit

    Raises
    ------
    CallError
        As `fit_target_task` does.
    """
    key = target_result_key(cache, task, spec.name, layers, options)
    kept = load_target_result(cache, key, task, spec.name, layers)
    if kept is not None:
        return kept
    _, result = fit_target_task(cache, task, spec, layers, options, persist)
    save_target_result(cache, key, result)
    return result

"""The result of a head on a task: its settings, metrics and confidence intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from classify.evaluation.selection_metric import LOWER_IS_BETTER

CACHE_FIELDS = ("cache", "columns", "row_bytes", "gmacs")
"""Fields that only a comparison of several caches fills."""


@dataclass(frozen=True)
class HeadResult:
    """The result of one head on one task.

    Attributes
    ----------
    task, head : str
        Names of the task and of the kind of head.
    layer : str
        Name of the layer; joined layers as ``a+b``.
    classes : list of str
        Classes that the head knows.
    n_train, n_test : int
        Numbers of images in the final training set and in the test set.
    accuracy : float, or None
        On the test images; None if there are none.
    accuracy_ci : (float, float), or None
        95 % interval, see `classify.evaluation.metrics.estimate_proportion`. It covers the draw of
        test images, not the draw of training images.
    validation : float, or None
        Accuracy on the held-out images that the param was selected on; None if no class could be
        validated.
    validation_ci : (float, float), or None
        95 % interval of `validation`.
    C : float, or None
        Selected C; None for a head without a C.
    settings : dict of str to float
        Selected params by name: ``C``, ``alpha``, ``shrinkage``, ``n_neighbors``, and ``gamma`` of
        the RBF kernel.
    class_weight : str, or None
        ``balanced``, or None.
    prepare : str
        Preparation of the features: ``root-l2`` or ``standardise``.
    metric : str
        Metric that params are selected and heads ranked by: ``accuracy``, or the one passed to
        `classify.fit`.
    validation_metric, test_metric : float, or None
        Value of `metric` on the held-out images and on the test images.
    temperature : float, or None
        Divisor of the decision values for calibrated probabilities, fitted on held-out images.
    recall : dict, or None
        Recall by class with test images, lowest first: ``value``, ``ci`` (95 %) and ``n``, see
        `classify.evaluation.recall`.
    bias : list of float, or None
        Offsets added to the decision values of each class, fitted on held-out images; their mean is
        0. They are part of the head and change its predictions. None where temperature alone is as
        good, or where classes have equal weight.
    scores : dict of str to number, interval or None
        Further test metrics: ``balanced_accuracy``, ``macro_f1``, ``log_loss``,
        ``calibration_error`` and the last two after calibration, each with its interval.
    seconds : float
        Seconds for reading features, selection, training and evaluation.
    distinguishable : bool, or None
        In a comparison: whether the test accuracy differs significantly from that of the task's
        best head, in a paired test without correction for the number of heads. The truly best head
        stays indistinguishable in 95 of 100 comparisons; of 20 equally good heads about one differs
        by chance. None for the best itself.
    worse : bool, or None
        In a comparison: whether it is significantly worse than the best head, corrected for the
        number of heads (Holm). None for the best itself.
    doubt : dict, or None
        What is known of the head's doubt, see `classify.doubt.measured`: the ``coverage``
        asked for, and with test images its ``realised`` share, the mean ``set_size``,
        the share taken for ``unknown`` (by `fit` alone), and ``risk``, accuracy by share of the
        most confident. None where nothing was held out.
    cache : str, or None
        In a comparison of several caches: the short name of the cache, or several as ``a+b`` where
        layers of several are joined. Else None.
    columns, row_bytes : int, or None
        In a comparison of several caches: numbers per image in these layers, and their bytes in the
        cache.
    gmacs : float, or None
        In a comparison of several caches: what the network costs an image up to these layers, in
        1e9 multiply-accumulate operations. None if a cache does not record it.
    """

    task: str
    head: str
    layer: str
    classes: list[str]
    n_train: int
    n_test: int
    accuracy: float | None
    accuracy_ci: tuple[float, float] | None
    validation: float | None
    validation_ci: tuple[float, float] | None
    C: float | None
    settings: dict[str, float]
    class_weight: str | None
    prepare: str
    metric: str
    validation_metric: float | None
    test_metric: float | None
    temperature: float | None
    scores: dict[str, Any]
    seconds: float
    distinguishable: bool | None = None
    worse: bool | None = None
    recall: dict[str, dict[str, Any]] | None = None
    bias: list[float] | None = None
    doubt: dict[str, Any] | None = None
    cache: str | None = None
    columns: int | None = None
    row_bytes: int | None = None
    gmacs: float | None = None

    @property
    def place(self) -> str:
        """The layers as ``layer``, or ``CACHE:LAYER`` where several caches are compared."""
        return qualify_layers(self.layer, self.cache)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a flat dict for JSON, with `scores` merged in.

        Returns
        -------
        dict
            Tuples become lists. The keys ``cache``, ``columns``, ``row_bytes`` and ``gmacs`` are
            there where several caches are compared.
        """
        values = asdict(self)
        values |= values.pop("scores")
        if self.cache is None:
            values = {k: v for k, v in values.items() if k not in CACHE_FIELDS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def qualify_layers(layer: str, cache: str | None) -> str:
    """Name the cache of every layer, where several caches are compared.

    Parameters
    ----------
    layer : str
        One layer or several as ``a+b``; of several caches, with their names already.
    cache : str, or None
        Short name of the cache; of several caches as ``a+b``. None for a single cache.

    Returns
    -------
    str
        Each layer as ``CACHE:LAYER``; `layer` for a single cache.
    """
    if cache is None or "+" in cache:
        return layer
    return "+".join(f"{cache}:{name}" for name in layer.split("+"))


def shorten_cache(cache: str) -> str:
    """Shorten the names of several caches for a table cell, whose layers name them.

    Parameters
    ----------
    cache : str
        Short name of a cache, or several as ``a+b``.

    Returns
    -------
    str
        ``2 caches``, or `cache`.
    """
    return f"{cache.count('+') + 1} caches" if "+" in cache else cache


def describe_place(layer: str, cache: str | None, joined: Mapping[str, str]) -> str:
    """Name cache and layers of a head for a sentence.

    Parameters
    ----------
    layer, cache
        As in `qualify_layers`.
    joined : mapping of str to str
        Labels of joined layers, by the name that `qualify_layers` gives them.

    Returns
    -------
    str
        ``stage4`` or ``all 4 joined``; where several caches are compared, ``stage4 of CACHE``, and
        every layer of several caches by name.
    """
    if cache is not None and "+" in cache:
        return layer
    layers = joined.get(qualify_layers(layer, cache), layer)
    return layers if cache is None else f"{layers} of {cache}"


HeadCallback = Callable[[HeadResult, int, int], None]


@dataclass(frozen=True)
class HeadProgress:
    """Progress of training several heads, as a `featurize.progress.Progress`.

    Attributes
    ----------
    result : HeadResult
        Result of the latest head.
    done, total : int
        Numbers of heads trained so far and in all.
    """

    result: HeadResult
    done: int
    total: int

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return "heads"

    @property
    def note(self) -> str:
        """Task, name and layer of the latest head, and its validation accuracy."""
        result = self.result
        accuracy = "" if result.validation is None else f" {result.validation:.3f}"
        return f"{result.task}: {result.head} on {result.place}{accuracy}"


HeadReport = Callable[[HeadProgress], None]


def report_to(report: HeadReport, progress: HeadCallback | None) -> HeadReport:
    """Combine both callbacks of a comparison into one.

    Parameters
    ----------
    report : callable
        Takes a `HeadProgress`.
    progress : callable, or None
        Takes the result, the number done and the total as three arguments.

    Returns
    -------
    callable
        Takes a `HeadProgress` and calls `progress`, then `report`.
    """
    if progress is None:
        return report

    def report_to_both(step: HeadProgress) -> None:
        progress(step.result, step.done, step.total)
        report(step)

    return report_to_both


def rank_results(results: Sequence[HeadResult], best: HeadResult) -> list[HeadResult]:
    """Sort a task's results by their validation metric, the best head first.

    Parameters
    ----------
    results : sequence of HeadResult
        Results of one task.
    best : HeadResult
        One of `results`. It comes first whatever its metric.

    Returns
    -------
    list of HeadResult
        Results without a validation metric come last.
    """
    sign = -1 if best.metric in LOWER_IS_BETTER else 1

    def rank(result: HeadResult) -> tuple[bool, float]:
        value = result.validation_metric
        return result is not best, math.inf if value is None else -sign * value

    return sorted(results, key=rank)

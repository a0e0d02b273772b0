"""Advice on a comparison of several caches: on the backbone of each task's best head."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from classify.data.sets.cache_set import CacheSet
from classify.evaluation.predictions import HeldOutPredictions
from classify.experiments.compare import Comparison
from classify.experiments.results import FitResult
from classify.strategy.advise import Advice, advise_from_comparison
from featurize.cache.reader import FeatureCache


def advise_on_best(
    cache: FeatureCache,
    comparison: Comparison,
    tables: Sequence[str | os.PathLike[str]] = (),
    **options: Any,
) -> tuple[dict[str, Advice], list[str]]:
    """Advise on the tasks of a comparison, each on the cache of its best head.

    Parameters
    ----------
    cache : FeatureCache
        The cache of the comparison, or the set.
    comparison : Comparison
    tables : sequence of path
        The tasks' label tables, for the commands; none for folder names.
    **options
        As `classify.strategy.advise.advise_from_comparison` takes them.

    Returns
    -------
    advice : dict of str to Advice
        By task name.
    notices : list of str
        Why a task has no advice.
    """
    if not isinstance(cache, CacheSet):
        return advise_from_comparison(cache, comparison, tables, **options)
    advice: dict[str, Advice] = {}
    notices: list[str] = []
    for number, task in enumerate(comparison.tasks):
        name = comparison.best_per_task[task.name].cache or ""
        if name not in cache.caches:
            notices.append(
                f"{task.name}: no advice on the strategy: its best head joins layers of several "
                "caches, and a network has one backbone"
            )
            continue
        advised, left_out = advise_from_comparison(
            cache.caches[name],
            _select_cache(cache, comparison, number, name),
            tables[number : number + 1],
            **options,
        )
        advice |= advised
        notices += left_out
    return advice, notices


def _select_cache(caches: CacheSet, comparison: Comparison, number: int, name: str) -> Comparison:
    """Return a task and its results on one cache, by the rows of that cache."""
    rows, task = caches.rows_in[name], comparison.tasks[number]

    def renumber(predictions: HeldOutPredictions | None) -> HeldOutPredictions | None:
        return None if predictions is None else replace(predictions, rows=rows[predictions.rows])

    results = [
        FitResult(result.record, renumber(result.validation), renumber(result.test), result.notices)
        for result in comparison.results
        if (result.record.task, result.record.cache) == (task.name, name)
    ]
    local_rows: np.ndarray = rows[task.rows]
    return replace(comparison, tasks=[replace(task, rows=local_rows)], results=results)

"""Predict several labels, numbers or grades with a saved head, or evaluate it on labelled rows."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from classify.data.features import CacheOrPath, FeatureRows, open_cache
from classify.data.targets.spec import TaskSpec
from classify.errors import CallError
from classify.evaluation.targets.metrics import (
    compute_label_scores,
    compute_target_metrics,
    count_grade_confusions,
)
from classify.evaluation.targets.predictions import TargetPredictions
from classify.heads.inference.classes import Evaluation
from classify.heads.inference.images import embed_or_open
from classify.heads.inference.unseen_rows import select_unseen_rows
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.predictions import PredictedTargets
from classify.kinds import GRADE, MULTI, NUMBER
from classify.labels.targets.kinds import WordsLike
from classify.labels.targets.resolve import TargetsLike
from classify.labels.targets.table import TargetTable
from featurize.cache.format import MARKED
from featurize.cache.reader import FeatureCache
from featurize.progress import Say, ignore
from featurize.text import did_you_mean, list_first


def predict_targets(
    head: FittedTargets,
    images: str | os.PathLike[str],
    *,
    weights: str | None = None,
    say: Say = ignore,
    report: Callable[[Any], None] = ignore,
) -> PredictedTargets:
    """Predict labels, numbers or grades for images, or for every finished row of a cache.

    Parameters
    ----------
    head : FittedTargets
    images, weights, say, report
        As in `classify.heads.inference.classes.predict_classes`.

    Returns
    -------
    PredictedTargets

    Raises
    ------
    HeadMismatchError, CallError, FileNotFoundError, FeaturizeError
        As `predict_classes` does.
    """
    with embed_or_open(head, os.fspath(images), weights, say, report) as cache:
        head.check_against(cache)
        rows = np.flatnonzero(cache.status == MARKED)
        n_columns = len(head.names) if head.kind == MULTI else 1
        values, proba = np.zeros((0, n_columns)), np.zeros(0)
        if len(rows):
            outputs = list(_iter_outputs(head, cache, rows))
            values = np.concatenate([head.values_of(block) for block in outputs])
            if head.kind == GRADE and head.has_probabilities:
                of_grades = np.concatenate([head.probabilities(block) for block in outputs])
                proba = of_grades[np.arange(len(values)), values[:, 0].astype(np.intp)]
        return PredictedTargets(
            kind=head.kind,
            paths=cache.paths_of(rows),
            names=head.names,
            values=values,
            thresholds=head.thresholds,
            margin=head.margin,
            failures=cache.failures,
            proba=proba if head.kind == GRADE and head.has_probabilities else None,
        )


def _iter_outputs(
    head: FittedTargets, cache: FeatureCache, rows: np.ndarray
) -> Iterator[np.ndarray]:
    features = FeatureRows.from_cache(cache, [layer.name for layer in head.source.layers], rows)
    for _, block in features.iter_blocks(len(head.names)):
        try:
            outputs = head.outputs(block)
        except CallError:
            features.check_finite(cache)  # names the image if the features are the cause
            raise
        yield outputs


def evaluate_targets(
    head: FittedTargets,
    cache: CacheOrPath,
    labels: TargetsLike = None,
    *,
    column: str = "label",
    columns: WordsLike = None,
    seed: int = 0,
) -> Evaluation:
    """Score a saved head on labelled rows that it has not seen.

    Parameters
    ----------
    head : FittedTargets
    cache : path or FeatureCache
    labels : TargetTable, LabelTable or path, optional
    column, columns
        As in `classify.fit`; the kind, and the order of grades, are those of the head.
    seed : int
        Of the intervals.

    Returns
    -------
    Evaluation
        The metrics of the kind with their intervals; ``labels`` of several labels, ``confusion`` of
        grades, ``realised`` coverage of intervals of numbers.

    Raises
    ------
    HeadMismatchError, LabelError, UnknownPathError, CallError, FileNotFoundError
        As `classify.heads.inference.classes.evaluate_classes` does.
    """
    cache = open_cache(cache)
    head.check_against(cache)
    order = head.names if head.kind == GRADE else None
    spec = TaskSpec(labels, column, kind=head.kind, columns=columns, order=order)
    table = spec.read_any_table(cache)
    if not isinstance(table, TargetTable) or table.kind != head.kind:
        raise CallError(f"this head is for labels of the kind {head.kind}")
    rows, position, unit, notices = select_unseen_rows(head, cache, table)
    truth, more = _align_labels(head, table, table.values[position])
    predictions = TargetPredictions(
        head.kind,
        rows.astype(np.int64),
        truth,
        np.concatenate([head.values_of(block) for block in _iter_outputs(head, cache, rows)]),
        head.thresholds,
    )
    n_grades = len(head.names) if head.kind == GRADE else None
    metrics: dict[str, Any] = {
        "task": table.name,
        "kind": head.kind,
        "head": head.head,
        "layer": "+".join(layer.name for layer in head.source.layers),
        "n_test": len(rows),
    }
    metrics |= compute_target_metrics(predictions, n_grades, unit, seed=seed)
    if head.kind == MULTI:
        metrics["labels"] = compute_label_scores(predictions, head.names, unit, seed)
    if head.kind == GRADE:
        metrics["confusion"] = count_grade_confusions(predictions, len(head.names)).tolist()
    if head.kind == NUMBER and head.margin is not None:
        metrics["coverage"] = head.coverage
        metrics["realised"] = float((predictions.losses <= head.margin).mean())
    return Evaluation(metrics, [*notices, *more])


def _align_labels(
    head: FittedTargets, table: TargetTable, values: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Put the labels of a table into the order of the head's."""
    if head.kind != MULTI:
        return values, []
    number = {name: k for k, name in enumerate(table.names)}
    unknown = [name for name in table.names if name not in head.names]
    if len(unknown) == len(table.names):
        raise CallError(
            f"{table.source} has no label that this head knows, but "
            f"{list_first(unknown)}{did_you_mean(unknown[0], head.names)}; the head's labels are "
            f"{list_first(list(head.names))}"
        )
    aligned = np.zeros((len(values), len(head.names)))
    for k, name in enumerate(head.names):
        if name in number:
            aligned[:, k] = values[:, number[name]]
    notices = []
    if unknown:
        notices.append(f"labels the head does not know, left out: {list_first(unknown)}")
    absent = [name for name in head.names if name not in number]
    if absent:
        notices.append(f"no image of {table.source} has the labels {list_first(absent)}")
    return aligned, notices

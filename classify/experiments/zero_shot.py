"""A head from class names alone, and its scores beside those of trained heads."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from classify.data.features import CacheOrPath, FeatureRows, open_cache
from classify.data.folds import hash_prefixes
from classify.data.targets.spec import TaskSpec
from classify.data.tasks import Task
from classify.errors import CallError, HeadMismatchError
from classify.evaluation.metrics import compute_metrics, estimate_proportion
from classify.evaluation.predictions import (
    HeldOutPredictions,
    sample_rows,
    summarise_decision_values,
)
from classify.evaluation.recall import compute_class_recall
from classify.evaluation.selection_metric import ACCURACY, SelectionMetric
from classify.evaluation.temperature import fit_temperature
from classify.experiments.fit import HeadFit
from classify.experiments.results import FitResult
from classify.heads.fitted import FittedHead
from classify.heads.io import load_head
from classify.heads.record import HeadResult
from classify.labels.folders import TEST
from classify.labels.table import LabelsLike
from classify.training.zero_shot import PROMPTS, ZERO_SHOT, build_zero_shot_head
from featurize.cache.reader import FeatureCache

MAX_DECISION_VALUES = 20_000_000  # images x classes; above it only accuracy ranks


def make_zero_shot_head(
    cache: CacheOrPath,
    labels: LabelsLike = None,
    *,
    text: str | os.PathLike[str],
    text_model: str,
    classes: Sequence[str] | None = None,
    prompts: Sequence[str] = PROMPTS,
    column: str = "label",
    labels_level: int | None = None,
    test_size: float = 0.2,
    seed: int = 0,
) -> HeadFit:
    """Make a linear head of class names, by the text tower of the network that made a cache.

    No image is read, and none is learnt from. Labelled images are of use in two ways: the test
    images are scored, with the same split as in `classify.fit`, and the others give the temperature
    of the probabilities, which changes no prediction. Without labels the head has scores only.

    Parameters
    ----------
    cache : path or FeatureCache
        Made with a CLIP-like network; it has the layer ``pre_logits``.
    labels : LabelTable or path of a CSV, optional
        Its labels are the class names; by default those that came with the images, else the folder
        names.
    text : path or str
        A checkpoint of open_clip that holds both towers, or a tag of open_clip whose weights are in
        the local cache of the hub. Nothing is downloaded, and no code in a file is run.
    text_model : str
        Name of its architecture in open_clip, as ``ViT-B-32``.
    classes : sequence of str, optional
        The class names, in place of labels.
    prompts : sequence of str
        Templates with ``{}`` for the class name; by default `PROMPTS`.
    column, labels_level, test_size, seed
        As in `classify.fit`.

    Returns
    -------
    HeadFit
        The head is called ``zero-shot``, and its record has 0 training images.

    Raises
    ------
    TextTowerError
        If the text tower cannot be read, or is not of the network that made the cache.
    CallError
        If open_clip is not installed, or classes or prompts are invalid.
    ClassifyError, FeaturizeError, FileNotFoundError
        If cache, labels or checkpoint cannot be read or used.
    """
    started = time.perf_counter()
    cache = open_cache(cache)
    task = None
    if classes is None:
        task = TaskSpec(labels, column, labels_level, test_size, seed).make_task(cache)
        classes = task.classes
    elif labels is not None:
        raise CallError("class names come from labels or from --classes: give one of the two")
    head = build_zero_shot_head(cache, classes, text=text, text_model=text_model, prompts=prompts)
    notices = head.notices
    if task is None:
        record = _make_record(head, ACCURACY, {})
    else:
        with threadpool_limits(1):
            result = score_zero_shot(cache, task, head, ACCURACY, seed)
        record, dev = result.record, task.rows[task.split != TEST]
        seen = np.unique(hash_prefixes(cache.column("sha256", dev)))
        head = replace(head, task=task.name, temperature=record.temperature, seen=seen)
        notices = (*task.notices, *notices)
    record = replace(record, seconds=round(time.perf_counter() - started, 3))
    details = {"prompts": list(prompts), "text": str(text), "text_model": text_model}
    head = replace(head, record=record.to_dict() | details, notices=notices)
    return HeadFit(head, record)


def load_zero_shot_head(path: str | os.PathLike[str]) -> FittedHead:
    """Load a head of `make_zero_shot_head`, to be scored beside trained ones.

    Parameters
    ----------
    path : path
        The head's file.

    Returns
    -------
    FittedHead

    Raises
    ------
    CallError
        If it is a head that was trained: it has seen the images that it would be validated on.
    FileNotFoundError, HeadFileError
        If there is no such file, or it is not a head.
    """
    head = load_head(path)
    if head.head != ZERO_SHOT:
        raise CallError(
            f"{path} is a trained {head.head} head; --zeroshot takes one of `classify zeroshot`, "
            "and `classify evaluate` scores any"
        )
    return head


def find_tasks_of(head: FittedHead, tasks: Sequence[Task]) -> list[Task]:
    """Find the tasks that have the classes of a zero-shot head.

    Parameters
    ----------
    head : FittedHead
    tasks : sequence of Task

    Returns
    -------
    list of Task
        At least one.

    Raises
    ------
    HeadMismatchError
        If there is none.
    """
    found = [task for task in tasks if set(task.classes) == set(head.classes)]
    if not found:
        raise HeadMismatchError(
            f"the zero-shot head knows {', '.join(head.classes[:5])}, which are not the classes of "
            f"{', '.join(task.name for task in tasks)}; make one of these labels with "
            "`classify zeroshot`"
        )
    return found


def score_zero_shot(
    cache: FeatureCache, task: Task, head: FittedHead, metric: SelectionMetric, seed: int
) -> FitResult:
    """Score a zero-shot head on a task, in the same way as trained heads.

    It was trained on no image, so all images of training and validation are held out. They give the
    temperature.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
        Its classes are those of the head, in any order.
    head : FittedHead
    metric : SelectionMetric
    seed : int
        Of the intervals.

    Returns
    -------
    FitResult

    Raises
    ------
    HeadMismatchError
        If the cache has other features.
    """
    started = time.perf_counter()
    head.check_against(cache)
    dev, test = np.flatnonzero(task.split != TEST), np.flatnonzero(task.split == TEST)
    temperature = _fit_temperature(cache, task, head, dev)
    validation, validation_metric = _predict(cache, task, head, dev, temperature, metric)
    found: dict[str, Any] = {"temperature": temperature, "validation_metric": validation_metric}
    if validation is not None:
        accuracy, interval = estimate_proportion(
            validation.correct, task.units_for(validation.rows), seed
        )
        found |= {"validation": accuracy, "validation_ci": interval}
    predictions, found["test_metric"] = _predict(cache, task, head, test, temperature, metric)
    if predictions is not None:
        units = task.units_for(predictions.rows)
        scores = asdict(compute_metrics(predictions, len(task.classes), units, seed=seed))
        found |= {name: scores.pop(name) for name in ("accuracy", "accuracy_ci")}
        recall = compute_class_recall(predictions, task.classes, units, seed)
        found |= {"n_test": len(test), "scores": scores, "recall": recall}
    found["seconds"] = round(time.perf_counter() - started, 3)
    record = replace(_make_record(head, metric, found), task=task.name)
    return FitResult(record, validation, predictions, ())


def _make_record(head: FittedHead, metric: SelectionMetric, found: dict[str, Any]) -> HeadResult:
    """Make a record of a head that was trained on nothing; `found` has what was measured."""
    unknown = dict.fromkeys(
        ("accuracy", "accuracy_ci", "validation", "validation_ci", "C", "class_weight")
    )
    unknown |= dict.fromkeys(("validation_metric", "test_metric", "temperature"))
    values = {
        "task": head.task,
        "head": ZERO_SHOT,
        "layer": "+".join(layer.name for layer in head.source.layers),
        "classes": head.classes,
        "n_train": 0,
        "n_test": 0,
        "settings": {},
        "prepare": head.prepare,
        "metric": metric.name,
        "scores": {},
        "seconds": 0.0,
    }
    return HeadResult(**{**unknown, **values, **found})


def _fit_temperature(
    cache: FeatureCache, task: Task, head: FittedHead, dev: np.ndarray
) -> float | None:
    if not len(dev):
        return None
    # The sample that `fit_temperature` would draw of all decision values, which may not fit.
    placeholder = np.broadcast_to(np.float32(0), (len(dev), len(task.classes)))
    sample = dev[sample_rows(placeholder, task.y[dev])]
    values = [values for _, values in _iter_decision_values(cache, task, head, sample)]
    return fit_temperature(np.concatenate(values), task.y[sample])


def _predict(
    cache: FeatureCache,
    task: Task,
    head: FittedHead,
    positions: np.ndarray,
    temperature: float | None,
    metric: SelectionMetric,
) -> tuple[HeldOutPredictions | None, float | None]:
    """Predict images of a task in the order of their rows; also compute the metric."""
    if not len(positions):
        return None, None
    blocks, all_values = [], []
    for part, values in _iter_decision_values(cache, task, head, positions):
        blocks.append(
            summarise_decision_values(
                task.rows[part],
                task.y[part],
                values,
                np.arange(len(task.classes)),
                temperature=temperature,
                probabilistic=False,
            )
        )
        if len(positions) * len(task.classes) <= MAX_DECISION_VALUES:
            all_values.append(values)
    predictions = HeldOutPredictions.concatenate(blocks)
    if not all_values:
        return predictions, float(predictions.correct.mean()) if metric == ACCURACY else None
    decision_values = np.concatenate(all_values)
    return predictions, metric.compute(
        decision_values, task.y[positions], task.classes, temperature
    )


def _iter_decision_values(
    cache: FeatureCache, task: Task, head: FittedHead, positions: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions in the task and their decision values, a column for each of its classes."""
    columns = [head.classes.index(name) for name in task.classes]
    layers = [layer.name for layer in head.source.layers]
    rows = FeatureRows.from_cache(cache, layers, task.rows[positions])
    rows.check_finite(cache)
    for block, features in rows.iter_blocks(len(columns)):
        yield positions[block], head.scores(features)[:, columns]

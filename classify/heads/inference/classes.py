"""Predict classes of images or cache rows with a saved head, or evaluate it on labelled rows."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from classify.data.features import CacheOrPath, FeatureRows, open_cache
from classify.data.targets.spec import TaskSpec
from classify.doubt.measured import DoubtCollector
from classify.errors import CallError
from classify.evaluation.metrics import compute_metrics
from classify.evaluation.predictions import HeldOutPredictions, summarise_decision_values
from classify.evaluation.recall import compute_class_recall
from classify.heads.fitted import FittedHead
from classify.heads.inference.images import embed_or_open
from classify.heads.inference.unseen_rows import select_unseen_rows
from classify.heads.predictions import Predictions
from classify.kinds import CLASS
from classify.labels.table import LabelsLike, LabelTable
from featurize.cache.format import MARKED
from featurize.cache.reader import FeatureCache
from featurize.progress import Say, ignore
from featurize.text import did_you_mean, list_first


def predict_classes(
    head: FittedHead,
    images: str | os.PathLike[str],
    *,
    weights: str | None = None,
    top: int = 1,
    abstain: bool = False,
    say: Say = ignore,
    report: Callable[[Any], None] = ignore,
) -> Predictions:
    """Predict labels for images of any source, an image file, or every finished row of a cache.

    For images, the head's backbone is loaded and run once. Its features are not stored.

    Parameters
    ----------
    head : FittedHead
        The trained head.
    images : path or URL
        A folder of images or any other source that `featurize.run` takes, an image file or a
        feature cache.
    weights : str, optional
        The weights file, where the head's backbone came from one.
    top : int, default 1
        Number of labels for each image, best first.
    abstain : bool, default False
        Whether images of which the head is not sure get no label: those that are unlike all that
        it was trained on, and those whose prediction set is not one class.
    say, report : callable
        As in `featurize.run`.

    Returns
    -------
    Predictions
        Labels with their probabilities, or with decision values where the head has no
        probabilities.

    Raises
    ------
    HeadMismatchError
        If cache or weights are not those that the head was trained on.
    CallError
        If `top` is below 1, a weights file is needed but not given, or features are not finite.
    featurize.errors.CallError
        If what is at `images` is of no known kind.
    FileNotFoundError
        If `images` does not exist.
    FeaturizeError
        If the cache cannot be read, or the images cannot be embedded.
    """
    if top < 1:
        raise CallError(f"every image gets at least one label, not {top}")
    if abstain and head.set_threshold is None:
        raise CallError(
            "this head cannot abstain: it has no prediction sets, as nothing was held out when it "
            "was trained, or an older release did; train it again with `classify fit`"
        )
    with embed_or_open(head, os.fspath(images), weights, say, report) as cache:
        head.check_against(cache)
        rows = np.flatnonzero(cache.status == MARKED)
        kind = "probability" if head.probabilistic or head.temperature is not None else "score"
        n_labels = min(top, len(head.classes))
        empty = np.zeros((0, n_labels))
        best_classes, values = [empty.astype(np.intp)], [empty]
        sets, unknown = list[list[str]](), [np.zeros(0, bool)]
        for _, block, decision_values in _iter_decision_values(head, cache, rows):
            order = decision_values.argmax(axis=1)[:, None]
            if n_labels > 1:  # copy: a view would keep the whole order in memory
                order = np.argsort(-decision_values, axis=1, kind="stable")[:, :n_labels].copy()
            if kind == "probability":
                class_values = head.probabilities(decision_values)
            else:
                class_values = decision_values.astype(np.float64)
            best_classes.append(order)
            values.append(np.take_along_axis(class_values, order, axis=1))
            in_set, is_unknown = head.find_doubt(block, decision_values)
            if in_set is not None:
                sets += [[head.classes[k] for k in np.flatnonzero(row)] for row in in_set]
            if is_unknown is not None:
                unknown.append(is_unknown)
        return Predictions(
            paths=cache.paths_of(rows),
            labels=np.array(head.classes, object)[np.concatenate(best_classes)],
            values=np.concatenate(values),
            kind=kind,
            failures=cache.failures,
            sets=None if head.set_threshold is None else sets,
            unknown=None if head.novelty is None else np.concatenate(unknown),
            abstain=abstain,
        )


def _iter_decision_values(
    head: FittedHead, cache: FeatureCache, rows: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield decision values in blocks, with their slice of the rows and their features.

    All together may not fit in memory.
    """
    features = FeatureRows.from_cache(cache, [layer.name for layer in head.source.layers], rows)
    # Blocks have at most 64 MB. With smaller ones the head's work per block would dominate.
    for positions, block in features.iter_blocks(len(head.classes) // 8):
        try:
            decision_values = head.scores(block)
        except CallError:
            features.check_finite(cache)  # names the image if the features are the cause
            raise
        yield positions, block, decision_values


class Evaluation(NamedTuple):
    """The result of a saved head on labelled rows; unpacks into metrics and notices.

    Attributes
    ----------
    metrics : dict
        ``task``, ``head``, ``layer``, ``n_test``, ``accuracy``, ``accuracy_ci``, more metrics, and
        ``recall`` of each class as in a `HeadResult`.
    notices : list of str
        Messages for the user.
    """

    metrics: dict[str, Any]
    notices: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics.

        Returns
        -------
        dict
            `metrics` itself.
        """
        return self.metrics


class _EvaluatedRows(NamedTuple):
    """Rows of a cache to evaluate a head on.

    Attributes
    ----------
    rows, y, unit : int arrays of shape (n,)
        Row numbers, positions in `classes`, and unit numbers.
    classes : list of str
        Classes of the head, then labels that the head does not know.
    """

    rows: np.ndarray
    y: np.ndarray
    unit: np.ndarray
    classes: list[str]


def evaluate_classes(
    head: FittedHead,
    cache: CacheOrPath,
    labels: LabelsLike = None,
    *,
    column: str = "label",
    labels_level: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a saved head on labelled rows: the test part where there is a split, else all.

    Images that the head was trained or its param selected on are recognised by content and left
    out. Labels that the head does not know count as wrong.

    Parameters
    ----------
    head : FittedHead
        The trained head.
    cache : path or FeatureCache
        Features from the same backbone and layers as the head's.
    labels : LabelTable or path of a CSV, optional
        Labels of the images; those that came with them if not given, else folder names.
    column, labels_level, seed
        As in `classify.fit`.

    Returns
    -------
    Evaluation
        Metrics with 95 % intervals, and notices.

    Raises
    ------
    HeadMismatchError
        If the cache has other features than the head was trained on.
    LabelError
        If the labels cannot be read.
    UnknownPathError
        If a labelled image is not in the cache.
    CallError
        If no image is left to evaluate on, or features are not finite.
    FileNotFoundError
        If the cache or the labels do not exist.
    """
    cache = open_cache(cache)
    head.check_against(cache)
    table = TaskSpec(labels, column, labels_level, kind=CLASS).read_table(cache)
    (rows, y, unit, classes), notices = _select_rows(head, cache, table)
    parts = []
    doubt = DoubtCollector(head.set_threshold, head.novelty, head.temperature)
    for positions, block, decision_values in _iter_decision_values(head, cache, rows):
        doubt.add(head.prepare_features(block), decision_values)
        parts.append(
            summarise_decision_values(
                rows[positions],
                y[positions],
                decision_values,
                np.arange(len(head.classes)),
                temperature=head.temperature,
                probabilistic=head.probabilistic,
            )
        )
    predictions = HeldOutPredictions.concatenate(parts)
    description = {
        "task": table.name,
        "head": head.head,
        "layer": "+".join(layer.name for layer in head.source.layers),
        "n_test": len(rows),
    }
    metrics = compute_metrics(predictions, len(classes), unit, seed=seed).to_dict()
    recall = compute_class_recall(predictions, classes, unit, seed)
    metrics |= {"recall": recall, "doubt": None}
    if head.coverage is not None:
        metrics["doubt"] = {"coverage": head.coverage} | doubt.measure(predictions, unit)
    return Evaluation(description | metrics, notices)


def _select_rows(
    head: FittedHead, cache: FeatureCache, table: LabelTable
) -> tuple[_EvaluatedRows, list[str]]:
    """Select the labelled rows that the head has not seen; also return notices about the rest."""
    rows, label_index, unit, notices = select_unseen_rows(head, cache, table)
    chosen_names = [table.labels[i] for i in label_index]
    unknown = sorted({*chosen_names} - {*head.classes})
    if unknown:
        shown = ", ".join(f"{name}{did_you_mean(name, head.classes)}" for name in unknown[:5])
        if not {*chosen_names} & {*head.classes}:
            raise CallError(
                f"{table.source} has no label that this head knows, but {shown}; the head's "
                f"classes are {list_first(head.classes)}"
            )
        notices.append(f"labels the head does not know, counted as wrong: {shown}")
    classes = [*head.classes, *unknown]
    number = {name: k for k, name in enumerate(classes)}
    y = np.array([number[name] for name in chosen_names])
    return _EvaluatedRows(rows, y, unit, classes), notices

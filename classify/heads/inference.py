"""Use a saved head: predict labels of images or cache rows, or evaluate it on labelled rows."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classify.data.features import CacheOrPath, FeatureRows, open_cache
from classify.data.targets.spec import TaskSpec
from classify.data.tasks import check_groups, find_labelled_rows
from classify.data.units import find_copies
from classify.errors import CallError, HeadMismatchError
from classify.evaluation.metrics import compute_metrics
from classify.evaluation.predictions import HeldOutPredictions, summarise_decision_values
from classify.evaluation.recall import compute_class_recall
from classify.heads.fitted import FittedHead
from classify.heads.predictions import Predictions
from classify.labels.folders import TEST
from classify.labels.table import LabelsLike, LabelTable
from classify.labels.targets.kinds import WordsLike
from featurize.backbones.names import is_file_path
from featurize.cache.format import MARKED
from featurize.cache.parts.index import has_index
from featurize.cache.reader import FeatureCache
from featurize.errors import CallError as SourceError
from featurize.errors import RunInterruptedError, UnknownWeightsError
from featurize.progress import Say, ignore
from featurize.sources.folder import IMAGE_SUFFIXES
from featurize.sources.opening import open_source
from featurize.sources.stores.addresses import is_address
from featurize.system import signals
from featurize.text import did_you_mean, list_first

HDF5_SIGNATURE, CACHE_SUFFIXES = b"\x89HDF\r\n\x1a\n", (".h5", ".hdf5")
USUAL_SIDE, LARGE_SIDE = 224, 1024  # pixels along a side; above the second a message is shown


def predict(
    head: FittedHead,
    images: str | os.PathLike[str],
    *,
    weights: str | None = None,
    top: int = 1,
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
    with _embed_or_open(head, os.fspath(images), weights, say, report) as cache:
        head.check_against(cache)
        rows = np.flatnonzero(cache.status == MARKED)
        kind = "probability" if head.probabilistic or head.temperature is not None else "score"
        n_labels = min(top, len(head.classes))
        empty = np.zeros((0, n_labels))
        best_classes, values = [empty.astype(np.intp)], [empty]
        for _, decision_values in _iter_decision_values(head, cache, rows):
            order = decision_values.argmax(axis=1)[:, None]
            if n_labels > 1:  # copy: a view would keep the whole order in memory
                order = np.argsort(-decision_values, axis=1, kind="stable")[:, :n_labels].copy()
            if kind == "probability":
                class_values = head.probabilities(decision_values)
            else:
                class_values = decision_values.astype(np.float64)
            best_classes.append(order)
            values.append(np.take_along_axis(class_values, order, axis=1))
        return Predictions(
            paths=cache.paths_of(rows),
            labels=np.array(head.classes, object)[np.concatenate(best_classes)],
            values=np.concatenate(values),
            kind=kind,
            failures=cache.failures,
        )


@contextmanager
def _embed_or_open(
    head: FittedHead, images: str, weights: str | None, say: Say, report: Callable[[Any], None]
) -> Iterator[FeatureCache]:
    path = Path(images)
    is_file = path.is_file()
    is_image = is_file and path.suffix.lower() in IMAGE_SUFFIXES
    if has_index(path) or (is_file and not is_image and _looks_like_cache(path)):
        yield open_cache(path)
        return
    if not is_image:
        _check_source(images)
    signals.import_uninterrupted("torchvision")  # slow, so only when it is needed
    from featurize import load_backbone, run

    source = head.source
    weights = weights or (None if head.network is None else str(head.network))
    missing_weights = CallError(
        f"this head's backbone, {source.backbone}, came from the weights file {source.weights}: "
        "give it with --weights"
    )
    if weights is None and is_file_path(source.weights):
        raise missing_weights  # a file of that name here need not be the same file
    if source.weights == "own":
        raise CallError(
            f"this head's backbone was a network of its own ({source.backbone}): embed the images "
            "in Python, featurize.run(..., backbone=Backbone(...)), and predict from that cache"
        )
    with tempfile.TemporaryDirectory(prefix="headgraft-") as temporary:
        try:
            backbone = load_backbone(
                source.backbone, weights or source.weights, preprocess=source.preprocess
            )
        except UnknownWeightsError:
            raise missing_weights from None
        if backbone.weights_sha256 != source.weights_sha256:
            raise HeadMismatchError(
                f"the weights {weights or source.weights} of {source.backbone} are not those that "
                f"this head was trained on (digest {backbone.weights_sha256[:12]}..., the head's "
                f"{source.weights_sha256[:12]}...); give the right file with --weights"
            )
        crop = backbone.preprocess.crop
        if crop > LARGE_SIDE:
            say(
                f"this head takes images of {crop:,} x {crop:,} pixels, which is "
                f"{(crop / USUAL_SIDE) ** 2:,.0f} times the work of the usual "
                f"{USUAL_SIDE} x {USUAL_SIDE}"
            )
        if is_image:
            folder = Path(temporary) / "image"
            folder.mkdir()
            (folder / path.name).symlink_to(path.absolute())
            images = str(folder)

        def say_of_images(sentence: str) -> None:
            if temporary not in sentence:  # what is written there is for this once
                say(sentence)

        layers = ",".join(layer.spec.option for layer in source.layers)
        try:
            run(
                images,
                Path(temporary) / "images.h5",
                backbone=backbone,
                layers=layers,
                dtype={"<f4": "float32", "<f2": "float16"}[source.layers[0].dtype],
                precision=source.precision,
                follow=is_image,  # the image is behind our own symlink
                say=say_of_images,
                report=report,
            )
        except RunInterruptedError as error:
            raise RunInterruptedError(
                "interrupted, and nothing is kept: the images' features were for this once. A "
                "cache made by `featurize run` is kept, and `predict` takes it too"
            ) from error
        yield FeatureCache(Path(temporary) / "images.h5")


def _check_source(images: str) -> None:
    """Refuse what is no source of images, before torch is imported."""
    try:
        open_source(images)
    except SourceError as error:
        if is_address(images) or Path(images).exists():
            raise
        raise FileNotFoundError(f"{error}; or give a cache") from None


def _looks_like_cache(path: Path) -> bool:
    """Tell whether a file is HDF5, or is called so: then the cache's own error says what it is."""
    if path.suffix.lower() in CACHE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError:
        return True


def _iter_decision_values(
    head: FittedHead, cache: FeatureCache, rows: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield decision values in blocks, with their slice of the rows: all may not fit in memory."""
    features = FeatureRows.from_cache(cache, [layer.name for layer in head.source.layers], rows)
    # Blocks have at most 64 MB. With smaller ones the head's work per block would dominate.
    for positions, block in features.iter_blocks(len(head.classes) // 8):
        try:
            decision_values = head.scores(block)
        except CallError:
            features.check_finite(cache)  # names the image if the features are the cause
            raise
        yield positions, decision_values


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


def evaluate(
    head: FittedHead,
    cache: CacheOrPath,
    labels: LabelsLike = None,
    *,
    column: str = "label",
    labels_level: int | None = None,
    kind: str | None = None,
    columns: WordsLike = None,
    order: WordsLike = None,
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
    column, labels_level, kind, columns, order, seed
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
    table = TaskSpec(
        labels, column, labels_level, kind=kind, columns=columns, order=order
    ).read_table(cache)
    (rows, y, unit, classes), notices = _select_rows(head, cache, table)
    predictions = HeldOutPredictions.concatenate(
        [
            summarise_decision_values(
                rows[positions],
                y[positions],
                decision_values,
                np.arange(len(head.classes)),
                temperature=head.temperature,
                probabilistic=head.probabilistic,
            )
            for positions, decision_values in _iter_decision_values(head, cache, rows)
        ]
    )
    description = {
        "task": table.name,
        "head": head.head,
        "layer": "+".join(layer.name for layer in head.source.layers),
        "n_test": len(rows),
    }
    metrics = compute_metrics(predictions, len(classes), unit, seed=seed).to_dict()
    recall = compute_class_recall(predictions, classes, unit, seed)
    return Evaluation(description | metrics | {"recall": recall}, notices)


def _select_rows(
    head: FittedHead, cache: FeatureCache, table: LabelTable
) -> tuple[_EvaluatedRows, list[str]]:
    """Select the labelled rows that the head has not seen; also return notices about the rest."""
    rows, label_index, notices = find_labelled_rows(cache, table)
    check_groups(table, label_index)
    names = [table.labels[i] for i in label_index]
    chosen = np.ones(len(rows), bool)
    if table.splits is not None:
        chosen = np.array([table.splits[i] == TEST for i in label_index], bool)
    trained = head.trained_on(cache.column("sha256", rows))
    if (chosen & trained).any():
        notices.append(
            f"{int((chosen & trained).sum()):,} images are left out: the head was trained on them, "
            "or its setting chosen by them"
        )
    chosen &= ~trained
    if not chosen.any():
        raise CallError(
            f"{table.source} leaves no images in {cache.path} to score this head on, apart from "
            "those it was trained on or chosen by"
        )
    groups = None
    if table.groups is not None:
        groups = np.array([table.groups[i] for i in label_index], object)
    unit, copy_notices = find_copies(cache, rows).assign_units(groups, len(rows))
    notices += copy_notices
    if (linked := chosen & np.isin(unit, unit[trained])).any():
        notices.append(
            f"{int(linked.sum()):,} images are nearly the same as images that the head was trained "
            "on, or in one group with them, which makes the score too good"
        )
    chosen_names = [names[i] for i in np.flatnonzero(chosen)]
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
    return _EvaluatedRows(rows[chosen], y, unit[chosen], classes), notices

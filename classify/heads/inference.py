"""Use a saved head: label images or the rows of a cache, or score it on labelled rows."""

import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from classify.data.features import CacheOrPath, FeatureRows, open_cache
from classify.data.folder_labels import TEST
from classify.data.labels import LabelsLike, resolve_labels
from classify.data.tasks import check_groups, find_labelled_rows
from classify.data.units import find_copies
from classify.errors import CallError, HeadMismatchError, OutputError
from classify.evaluation.metrics import compute_metrics
from classify.evaluation.predictions import HeldOutPredictions, summarise_decision_values
from classify.evaluation.recall import compute_class_recall
from classify.heads.fitted import FittedHead
from featurize.backbones.families import is_file_path
from featurize.cache.format import MARKED
from featurize.cache.reader import FeatureCache
from featurize.errors import RunInterruptedError, UnknownWeightsError
from featurize.files import check_target
from featurize.sources.folder import IMAGE_SUFFIXES
from featurize.system import signals
from featurize.text import to_printable

MAX_HEADER_BYTES = 1 << 20
USUAL_SIDE, LARGE_SIDE = 224, 1024  # pixels along a side; beyond the latter it is said
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The best labels of some images.

    Attributes
    ----------
    paths : list of str
        n images that could be read.
    labels : object array of shape (n, K)
        The K best, as text, best first.
    values : float array of shape (n, K)
        Their probabilities, or scores.
    kind : str
        ``probability`` or ``score``: which of the two.
    failures : dict of str to str
        Why an image has no label, by path.
    """

    paths: list[str]
    labels: np.ndarray
    values: np.ndarray
    kind: str
    failures: dict[str, str]

    def write_csv(self, file: IO[str]) -> None:
        """Write ``path,label,probability``, or ``score``; further labels in further columns.

        A terminal takes some characters of a name for orders; it is shown them escaped.
        """
        writer = csv.writer(file, lineterminator="\n")
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        text = to_printable if file.isatty() else str
        writer.writerow(_make_header(self.kind, self.labels.shape[1]))
        for path, labels, values in zip(self.paths, self.labels, self.values, strict=True):
            cells = [
                c
                for pair in zip(labels, values, strict=True)
                for c in (text(pair[0]), f"{pair[1]:.6g}")
            ]
            line = [text(path), *cells]
            # A carriage return ends a line for whoever reads, but is not quoted by itself.
            (quoting if any("\r" in cell for cell in line) else writer).writerow(line)

    def to_dict(self) -> dict[str, Any]:
        """``predictions``, ``kind`` and ``failures``."""
        rows = zip(self.paths, self.labels.tolist(), self.values.tolist(), strict=True)
        found = [{"path": p, "labels": names, self.kind: values} for p, names, values in rows]
        return {"kind": self.kind, "predictions": found, "failures": self.failures}


def _make_header(kind: str, count: int) -> list[str]:
    more = [f"_{k}" for k in range(2, count + 1)]
    return ["path", *(f"{name}{k}" for k in ["", *more] for name in ("label", kind))]


def check_predictions_file(
    path: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None
) -> Path:
    """Refuse a place where predictions cannot be written, before any work is done for it.

    Parameters
    ----------
    path : path
    *inputs : path, or None
        What is read, and must not be written over.

    Returns
    -------
    Path
        Where to write.

    Raises
    ------
    OutputError
        If the folder is missing or closed, or the file there is no table of predictions.
    """

    def is_own(path: Path) -> bool:
        read = [name for name in inputs if name is not None and os.path.exists(name)]
        return _is_predictions_file(path) and not any(os.path.samefile(path, name) for name in read)

    return check_target(path, is_own, "a table of predictions", OutputError)


def _is_predictions_file(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            names = file.readline(MAX_HEADER_BYTES).rstrip("\n").split(",")
    except (OSError, ValueError):
        return False
    return any(names == _make_header(kind, len(names) // 2) for kind in ("probability", "score"))


def predict(
    head: FittedHead,
    images: str | os.PathLike[str],
    *,
    weights: str | None = None,
    top: int = 1,
    say: Say = lambda _: None,
    report: Callable[[Any], None] = lambda _: None,
) -> Predictions:
    """Label every image of a folder, an image file, or every finished row of a cache.

    For images, the backbone that the head names is loaded and run over them once.

    Parameters
    ----------
    head : FittedHead
    images : path
    weights : str, optional
        The weights file, where the head's backbone came from one.
    top : int
        How many labels each image gets.
    say, report : callable
        As in `featurize.run`.

    Raises
    ------
    HeadMismatch
        If cache or weights are not those that the head was trained on.
    CallError, FeaturizeError, FileNotFoundError
    """
    if top < 1:
        raise CallError(f"every image gets at least one label, not {top}")
    with _embed_or_open(head, Path(images), weights, say, report) as cache:
        head.check_against(cache)
        rows = np.flatnonzero(cache.status == MARKED)
        kind = "probability" if head.probabilistic or head.temperature is not None else "score"
        none = np.zeros((0, min(top, len(head.classes))))
        best, values = [none.astype(np.intp)], [none]
        for _, scores in _iter_decision_values(head, cache, rows):
            first = scores.argmax(axis=1)[:, None]
            if none.shape[1] > 1:  # a copy: a part of it would hold on to the order of all
                first = np.argsort(-scores, axis=1, kind="stable")[:, : none.shape[1]].copy()
            found = scores.astype(np.float64) if kind == "score" else head.probabilities(scores)
            best.append(first)
            values.append(np.take_along_axis(found, first, axis=1))
        return Predictions(
            paths=[cache.paths[row] for row in rows],
            labels=np.array(head.classes, object)[np.concatenate(best)],
            values=np.concatenate(values),
            kind=kind,
            failures=cache.failures,
        )


@contextmanager
def _embed_or_open(
    head: FittedHead, images: Path, weights: str | None, say: Say, report: Callable[[Any], None]
) -> Iterator[FeatureCache]:
    if not images.exists():
        raise FileNotFoundError(f"{images} does not exist; give a folder of images or a cache")
    if images.is_file() and images.suffix.lower() not in IMAGE_SUFFIXES:
        yield open_cache(images)
        return
    signals.import_uninterrupted("torchvision")  # only now
    from featurize import load_backbone, run

    source = head.source
    weights = weights or (None if head.network is None else str(head.network))
    lacking = CallError(
        f"this head's backbone, {source.backbone}, came from the weights file {source.weights}: "
        "give it with --weights"
    )
    if weights is None and is_file_path(source.weights):
        raise lacking  # a file of that name here is not what the user gave
    with tempfile.TemporaryDirectory(prefix="headgraft-") as name:
        try:
            backbone = load_backbone(
                source.backbone, weights or source.weights, preprocess=source.preprocess
            )
        except UnknownWeightsError:
            raise lacking from None
        if backbone.weights_sha256 != source.weights_sha256:
            raise HeadMismatchError(
                f"the weights {weights or source.weights} of {source.backbone} are not those that "
                f"this head was trained on (digest {backbone.weights_sha256[:12]}..., the head's "
                f"{source.weights_sha256[:12]}...); give the right file with --weights"
            )
        crop = backbone.preprocess["crop"]
        if crop > LARGE_SIDE:
            say(
                f"this head takes images of {crop:,} x {crop:,} pixels, which is "
                f"{(crop / USUAL_SIDE) ** 2:,.0f} times the work of the usual {USUAL_SIDE} x {USUAL_SIDE}"
            )
        folder = images
        if images.is_file():
            folder = Path(name) / "image"
            folder.mkdir()
            (folder / images.name).symlink_to(images.absolute())
        layers = ",".join(f"{layer.layer}:{layer.pool}" for layer in source.layers)
        try:
            run(
                folder,
                Path(name) / "images.h5",
                backbone=backbone,
                layers=layers,
                dtype={"<f4": "float32", "<f2": "float16"}[source.layers[0].dtype],
                precision=source.precision,
                follow=images.is_file(),  # a link of our own leads to it
                say=say,
                report=report,
            )
        except RunInterruptedError as error:
            raise RunInterruptedError(
                "interrupted, and nothing is kept: the images' features were for this once. A "
                "cache made by `featurize run` is kept, and `predict` takes it too"
            ) from error
        yield FeatureCache(Path(name) / "images.h5")


def _iter_decision_values(
    head: FittedHead, cache: FeatureCache, rows: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Scores block by block, with the slice of the rows: all could be images times classes."""
    found = FeatureRows.from_cache(cache, [layer.name for layer in head.source.layers], rows)
    # Of 64 MB at most: less, and what a head does once a block would be most of the work.
    for where, block in found.iter_blocks(len(head.classes) // 8):
        try:
            scores = head.scores(block)
        except CallError:
            found.check_finite(cache)  # where it is the features, it names the image
            raise
        yield where, scores


def evaluate(
    head: FittedHead,
    cache: CacheOrPath,
    labels: LabelsLike = None,
    *,
    column: str = "label",
    labels_level: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """Score a saved head on labelled rows: the test part where there is a split, else all.

    Images that the head was trained on, or its setting chosen by, are recognised by content and
    left out. Labels that it does not know count as wrong.

    Parameters
    ----------
    head : FittedHead
    cache : path or FeatureCache
    labels : LabelTable or path of a CSV, optional
        Folder names, if not given.
    column, labels_level, seed
        As in `fit`.

    Returns
    -------
    dict
        ``task``, ``head``, ``layer``, ``n_test``, ``accuracy``, ``accuracy_ci``, more scores, and
        ``recall`` of each class as in a `Record`.
    list of str
        What a user should know.

    Raises
    ------
    HeadMismatch, LabelError, CallError, UnknownPath, FileNotFoundError
    """
    cache = open_cache(cache)
    head.check_against(cache)
    table = resolve_labels(cache, labels, column, labels_level)
    rows, position, notices = find_labelled_rows(cache, table)
    check_groups(table, position)
    names = [table.labels[i] for i in position]
    chosen = np.ones(len(rows), bool)
    if table.splits is not None:
        chosen = np.array([table.splits[i] == TEST for i in position], bool)
    trained = head.trained_on(cache.column("sha256")[rows])
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
        groups = np.array([table.groups[i] for i in position], object)
    unit, told = find_copies(cache, rows).assign_units(groups, len(rows))
    notices += told
    if (near := chosen & np.isin(unit, unit[trained])).any():
        notices.append(
            f"{int(near.sum()):,} images are nearly the same as images that the head was trained "
            "on, or in one group with them, which makes the score too good"
        )
    number = {name: k for k, name in enumerate(head.classes)}
    unknown = sorted({names[i] for i in np.flatnonzero(chosen)} - number.keys())
    if unknown:
        notices.append(f"labels the head does not know, counted as wrong: {', '.join(unknown[:5])}")
    number |= {name: len(number) + k for k, name in enumerate(unknown)}
    rows, unit = rows[chosen], unit[chosen]
    y = np.array([number[names[i]] for i in np.flatnonzero(chosen)])
    answers = HeldOutPredictions.concatenate(
        [
            summarise_decision_values(
                rows[where],
                y[where],
                scores,
                np.arange(len(head.classes)),
                temperature=head.temperature,
                probabilistic=head.probabilistic,
            )
            for where, scores in _iter_decision_values(head, cache, rows)
        ]
    )
    about = {
        "task": table.name,
        "head": head.head,
        "layer": "+".join(layer.name for layer in head.source.layers),
        "n_test": len(rows),
    }
    scores = compute_metrics(answers, len(number), unit, seed=seed).to_dict()
    return about | scores | {
        "recall": compute_class_recall(answers, list(number), unit, seed)
    }, notices

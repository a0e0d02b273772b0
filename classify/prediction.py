"""Use a saved head: label images or the rows of a cache, or score it on labelled rows."""

import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from classify.calibration import outcomes
from classify.errors import CallError, HeadMismatch
from classify.features import CacheOrPath, Rows, open_cache
from classify.fitted import FittedHead
from classify.fitting import Labels, table_of
from classify.labels import TEST
from classify.scores import summarise
from classify.tasks import labelled_rows
from featurize.cache import FeatureCache
from featurize.errors import UnknownWeights
from featurize.images import SUFFIXES
from featurize.layout import MARKED
from featurize.names import is_file

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The best labels of some images.

    Attributes
    ----------
    paths : list of str
        n images that could be read.
    labels : text array of shape (n, K)
        The K best, best first.
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

    def write_csv(self, file: TextIO) -> None:
        """Write ``path,label,probability``, or ``score``; further labels in further columns."""
        writer = csv.writer(file, lineterminator="\n")
        more = [f"_{k}" for k in range(2, self.labels.shape[1] + 1)]
        names = [f"{name}{k}" for k in ["", *more] for name in ("label", self.kind)]
        writer.writerow(["path", *names])
        for path, labels, values in zip(self.paths, self.labels, self.values, strict=True):
            cells = [
                c for pair in zip(labels, values, strict=True) for c in (pair[0], f"{pair[1]:.6g}")
            ]
            writer.writerow([path, *cells])

    def to_json(self) -> dict[str, Any]:
        """``predictions``, ``kind`` and ``failures``."""
        rows = zip(self.paths, self.labels.tolist(), self.values.tolist(), strict=True)
        found = [{"path": p, "labels": names, self.kind: values} for p, names, values in rows]
        return {"kind": self.kind, "predictions": found, "failures": self.failures}


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
    with _as_cache(head, Path(images), weights, say, report) as cache:
        head.check_against(cache)
        rows = np.flatnonzero(cache.status == MARKED)
        scores = _scores(head, cache, rows)
        if head.temperature is None and not head.probabilistic:
            kind, values = "score", scores.astype(np.float64)
        else:
            kind, values = "probability", head.probabilities(scores)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : min(top, len(head.classes))]
        return Predictions(
            paths=[cache.paths[row] for row in rows],
            labels=np.array(head.classes)[best],
            values=np.take_along_axis(values, best, axis=1),
            kind=kind,
            failures=cache.failures,
        )


@contextmanager
def _as_cache(
    head: FittedHead, images: Path, weights: str | None, say: Say, report: Callable[[Any], None]
) -> Iterator[FeatureCache]:
    if not images.exists():
        raise FileNotFoundError(f"{images} does not exist; give a folder of images or a cache")
    if images.is_file() and images.suffix.lower() not in SUFFIXES:
        yield open_cache(images)
        return
    # torch, only now.
    from featurize import load_backbone, run

    source = head.source
    weights = weights or (None if head.network is None else str(head.network))
    lacking = CallError(
        f"this head's backbone, {source.backbone}, came from the weights file {source.weights}: "
        "give it with --weights"
    )
    if weights is None and is_file(source.weights):
        raise lacking  # a file of that name here is not what the user gave
    with tempfile.TemporaryDirectory(prefix="headgraft-") as name:
        try:
            backbone = load_backbone(
                source.backbone, weights or source.weights, preprocess=source.preprocess
            )
        except UnknownWeights:
            raise lacking from None
        if backbone.weights_sha256 != source.weights_sha256:
            raise HeadMismatch(
                f"the weights {weights or source.weights} of {source.backbone} are not those that "
                f"this head was trained on (digest {backbone.weights_sha256[:12]}..., the head's "
                f"{source.weights_sha256[:12]}...); give the right file with --weights"
            )
        folder = images
        if images.is_file():
            folder = Path(name) / "image"
            folder.mkdir()
            (folder / images.name).symlink_to(images.absolute())
        layers = ",".join(f"{layer.layer}:{layer.pool}" for layer in source.layers)
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
        yield FeatureCache(Path(name) / "images.h5")


def _scores(head: FittedHead, cache: FeatureCache, rows: np.ndarray) -> np.ndarray:
    names = [layer.name for layer in head.source.layers]
    found = [head.scores(block) for _, block in Rows.of_cache(cache, names, rows).blocks()]
    return np.concatenate([np.zeros((0, len(head.classes)), np.float32), *found])


def evaluate(
    head: FittedHead,
    cache: CacheOrPath,
    labels: Labels = None,
    *,
    column: str = "label",
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """Score a saved head on labelled rows: the test part where there is a split, else all.

    Images that the head was trained on are recognised by content and left out. Labels that it
    does not know count as wrong.

    Parameters
    ----------
    head : FittedHead
    cache : path or FeatureCache
    labels : LabelTable or path of a CSV, optional
        Folder names, if not given.

    Returns
    -------
    dict
        ``task``, ``head``, ``layer``, ``n_test``, ``accuracy``, ``accuracy_ci``, and more scores.
    list of str
        What a user should know.

    Raises
    ------
    HeadMismatch, CallError, UnknownPath, FileNotFoundError
    """
    cache = open_cache(cache)
    head.check_against(cache)
    table = table_of(cache, labels, column)
    rows, position, notices = labelled_rows(cache, table)
    names = [table.labels[i] for i in position]
    chosen = np.ones(len(rows), bool)
    if table.splits is not None:
        chosen = np.array([table.splits[i] == TEST for i in position], bool)
    trained = head.trained_on(cache.column("sha256")[rows])
    if (chosen & trained).any():
        notices.append(
            f"{int((chosen & trained).sum()):,} images are left out: the head was trained on them"
        )
    chosen &= ~trained
    if not chosen.any():
        raise CallError(
            f"{table.source} leaves no images in {cache.path} to score this head on, apart from "
            "those it was trained on"
        )
    number = {name: k for k, name in enumerate(head.classes)}
    unknown = sorted({names[i] for i in np.flatnonzero(chosen)} - number.keys())
    if unknown:
        notices.append(f"labels the head does not know, counted as wrong: {', '.join(unknown[:5])}")
    number |= {name: len(number) + k for k, name in enumerate(unknown)}
    rows = rows[chosen]
    y = np.array([number[names[i]] for i in np.flatnonzero(chosen)])
    answers = outcomes(
        rows,
        y,
        _scores(head, cache, rows),
        np.arange(len(head.classes)),
        temperature=head.temperature,
        probabilistic=head.probabilistic,
    )
    about = {
        "task": table.name,
        "head": head.head,
        "layer": "+".join(layer.name for layer in head.source.layers),
        "n_test": len(rows),
    }
    return about | summarise(answers, len(number), seed=seed).to_json(), notices

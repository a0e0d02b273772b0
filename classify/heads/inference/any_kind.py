"""Use a saved head of any kind of labels."""

import os
from collections.abc import Callable
from typing import Any, overload

from classify.data.features import CacheOrPath
from classify.errors import CallError
from classify.heads.fitted import FittedHead
from classify.heads.inference.classes import Evaluation, evaluate_classes, predict_classes
from classify.heads.inference.targets import evaluate_targets, predict_targets
from classify.heads.predictions import Predictions
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.predictions import PredictedTargets
from classify.labels.targets.kinds import WordsLike
from classify.labels.targets.resolve import TargetsLike
from classify.labels.targets.table import TargetTable
from featurize.progress import Say, ignore


@overload
def predict(
    head: FittedHead,
    images: str | os.PathLike[str],
    *,
    weights: str | None = None,
    top: int = 1,
    abstain: bool = False,
    say: Say = ignore,
    report: Callable[[Any], None] = ignore,
) -> Predictions: ...


@overload
def predict(
    head: FittedTargets,
    images: str | os.PathLike[str],
    *,
    weights: str | None = None,
    top: int = 1,
    abstain: bool = False,
    say: Say = ignore,
    report: Callable[[Any], None] = ignore,
) -> PredictedTargets: ...


def predict(
    head: FittedHead | FittedTargets,
    images: str | os.PathLike[str],
    *,
    weights: str | None = None,
    top: int = 1,
    abstain: bool = False,
    say: Say = ignore,
    report: Callable[[Any], None] = ignore,
) -> Predictions | PredictedTargets:
    """Predict labels for images of any source, an image file, or every finished row of a cache.

    For images, the head's backbone is loaded and run once. Its features are not stored.

    Parameters
    ----------
    head : FittedHead or FittedTargets
        The trained head.
    images : path or URL
        A folder of images or any other source that `featurize.run` takes, an image file or a
        feature cache.
    weights : str, optional
        The weights file, where the head's backbone came from one.
    top : int, default 1
        Number of classes for each image, best first; of heads for classes only.
    abstain : bool, default False
        Whether images of which the head is not sure get no label: those that are unlike all that
        it was trained on, and those whose prediction set is not one class. For classes only.
    say, report : callable
        As in `featurize.run`.

    Returns
    -------
    Predictions or PredictedTargets
        Classes with their probabilities, or with decision values where the head has no
        probabilities; or several labels, a number or a grade for each image.

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
    if isinstance(head, FittedHead):
        return predict_classes(
            head, images, weights=weights, top=top, abstain=abstain, say=say, report=report
        )
    if top != 1 or abstain:
        option = "--abstain" if abstain else "--top"
        raise CallError(
            f"{option} is for classes; this head predicts labels of the kind {head.kind}"
        )
    return predict_targets(head, images, weights=weights, say=say, report=report)


def evaluate(
    head: FittedHead | FittedTargets,
    cache: CacheOrPath,
    labels: TargetsLike = None,
    *,
    column: str = "label",
    labels_level: int | None = None,
    columns: WordsLike = None,
    seed: int = 0,
) -> Evaluation:
    """Score a saved head on labelled rows of a cache that it was not trained on.

    Where the table has a split, only its test images count. Images with the same bytes as one that
    the head was trained on, or its param chosen by, are left out.

    Parameters
    ----------
    head : FittedHead or FittedTargets
        The trained head. The kind of labels is its own.
    cache : path or FeatureCache
        Of the same features as the head was trained on.
    labels, column, labels_level, columns, seed
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
    if not isinstance(head, FittedHead):
        return evaluate_targets(head, cache, labels, column=column, columns=columns, seed=seed)
    if isinstance(labels, TargetTable):
        raise CallError(f"this head is for classes, and the labels are of the kind {labels.kind}")
    return evaluate_classes(
        head, cache, labels, column=column, labels_level=labels_level, seed=seed
    )

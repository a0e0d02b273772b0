"""What a tuned network's classifier starts from: a linear probe, or random weights."""

import os
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from classify.crew import Crew
from classify.descent import Report, score
from classify.entering import name_of, rows_of
from classify.errors import HeadMismatch
from classify.examples import Maps, Pictures
from classify.features import Rows
from classify.fitted import FittedHead
from classify.heads import named
from classify.lessons import make_lesson
from classify.nets import Net
from classify.persist import load_head
from classify.preparation import STANDARDISE
from classify.scorers import Linear
from classify.training import train
from featurize.backbones import Backbone
from featurize.cache import FeatureCache

SOFTMAX = named("softmax")
SLACK = 0.1
"""Log loss by which the probe that training starts from may be behind the best, for the sake of
stronger regularisation: where classes part easily the best has weights so large that every step of
the network below upsets them."""
PROBED = 2000  # images whose embeddings standardise those of a random classifier
RANDOM = "random"


def given_head(head: str | os.PathLike[str] | FittedHead | None) -> FittedHead | None:
    """The head that an option means; None for ``random``, or where none is given.

    Raises
    ------
    FileNotFoundError, HeadFileError
    """
    if head is None or head == RANDOM or isinstance(head, FittedHead):
        return head if isinstance(head, FittedHead) else None
    return load_head(head)


def check_head(
    head: FittedHead, backbone: Backbone, last: tuple[str, str], classes: list[str]
) -> None:
    """Refuse a head that is not linear in this network's embeddings.

    Raises
    ------
    HeadMismatch
        Naming what differs.
    """
    if not isinstance(head.scorer, Linear):
        raise HeadMismatch(f"training cannot start from a {head.head} head: it is not linear")
    if head.prepare != STANDARDISE:
        raise HeadMismatch(
            f"training cannot start from this head: it takes its features as {head.prepare}, and a "
            "network ends in a linear layer; train one with `classify fit ... --prepare "
            f"{STANDARDISE}`, or leave --init-head out"
        )
    theirs = head.source
    layers = [(layer.layer, layer.pool) for layer in theirs.layers]
    for what, one, other in (
        ("classes", list(head.classes), classes),
        ("layer", layers, [last]),
        ("backbone", theirs.backbone, backbone.name),
        ("weights digest", theirs.weights_sha256, backbone.weights_sha256),
        ("preprocessing", dict(theirs.preprocess), dict(backbone.preprocess)),
    ):
        if one != other:
            raise HeadMismatch(
                f"the head to start from has another {what} ({_brief(one)}) than what is tuned "
                f"({_brief(other)}); train one with `classify fit C.h5 --layer {last[0]}` on a "
                "cache of this backbone, or leave --init-head out"
            )


def start(
    net: Net,
    training: Pictures | Maps,
    crew: Crew,
    *,
    head: FittedHead | None,
    cache: FeatureCache | None,
    random: bool,
    class_weight: str | None,
    batch_size: int,
    seed: int,
    report: Report = lambda _: None,
) -> int:
    """Set a network's classifier to where its training begins.

    Parameters
    ----------
    net : Net
        On the crew's device.
    training : Pictures or Maps
        n examples.
    head : FittedHead, optional
        To start from as it is.
    cache : FeatureCache, optional
        Where it has the last layer, that is not computed again.
    random : bool
        Leave the classifier random, though standardised.
    class_weight, batch_size, seed
        Of the linear probe, and of the pass over the images.
    report : callable

    Returns
    -------
    int
        How many images were run through the network for it.
    """
    if head is not None:
        net.classifier.start_from(head.scorer)  # type: ignore[arg-type]
        return 0
    random = random or net.classifier.hidden is not None
    some = np.arange(len(training))
    if random and len(some) > PROBED:
        some = np.sort(np.random.default_rng(seed).choice(some, PROBED, replace=False))
    name, run = name_of(*net.last), 0
    if cache is not None and name in cache.layers:
        embeddings = Rows.of_cache(cache, (name,), rows_of(cache, training.paths)[some]).take()
    else:
        plain = training.plain(some)
        embeddings = score(net, plain, batch_size, crew, embeddings=True, report=report)
        run = len(some)
    if random:
        net.classifier.standardise(embeddings)
        return run
    classes, y = np.unique(training.y, return_inverse=True)
    lesson = make_lesson(
        SOFTMAX, embeddings, y, classes, np.arange(len(y)), class_weight=class_weight, seed=seed
    )
    with threadpool_limits(1):
        probe = train(SOFTMAX, replace(lesson, slack=SLACK))
    net.classifier.start_from(probe.scorer)  # type: ignore[arg-type]
    return run


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."

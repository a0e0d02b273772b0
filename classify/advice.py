"""Which of the four strategies a task asks for, with the evidence: `advise`."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classify.comparison import Progress, compare
from classify.errors import TooFewImages
from classify.features import CacheOrPath, layer_sets, open_cache
from classify.fitting import Labels, table_of
from classify.labels import TEST, VAL, LabelTable
from classify.reasons import of_depth, of_size
from classify.records import Record
from classify.results import Result
from classify.similarity import Depths, Similarity, by_depth
from classify.size import Size, by_count, trials
from classify.strategies import STRATEGIES, check_given, commands, probe
from classify.tasks import Task, make_task

HEAD, LAYERS = "softmax", "each,joined"


@dataclass(frozen=True)
class Advice:
    """A strategy for a task, and why.

    Attributes
    ----------
    task : str
    strategy : str
        ``linear-probe``, ``truncated-probe``, ``finetune`` or ``retrain``.
    size : str
        ``small`` or ``large``.
    similarity : str
        ``similar`` or ``different``.
    confident : bool
        Whether the similarity is given, or measured closely enough to tell.
    layer : str
        Where to put the head: the last layer, or for the truncated probe the best cut.
    more_images : int, or None
        About how many more images would make it sure; 0 if it is, None if no number of them would.
    reasons : list of str
        The evidence in sentences.
    commands : dict of str to str
        What to run, for each of the four strategies.
    offer : str, or None
        The command that trains a head on all layers joined, where that is clearly better than on
        the last.
    measured : (Similarity, Size)
        Accuracy by depth; how many images, and the learning curve.
    notices : list of str
        What a user should know.
    seconds : float
    """

    task: str
    strategy: str
    size: str
    similarity: str
    confident: bool
    layer: str
    more_images: int | None
    reasons: list[str]
    commands: dict[str, str]
    offer: str | None
    measured: tuple[Similarity, Size]
    notices: list[str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The same as what JSON knows; the evidence under ``evidence``."""
        depth, count = (found.to_json() for found in self.measured)
        measured = {"similarity": depth.pop("measured"), "size": count.pop("measured")}
        if depth["joined"] is not None:
            depth["joined"]["command"] = self.offer
        thresholds = depth.pop("thresholds") | count.pop("thresholds")
        return {
            "task": self.task,
            "strategy": self.strategy,
            "size": self.size,
            "similarity": self.similarity,
            "confident": self.confident,
            "layer": self.layer,
            "more_images": self.more_images,
            "evidence": depth
            | count
            | {"thresholds": thresholds, "measured": measured, "reasons": self.reasons},
            "commands": self.commands,
            "seconds": self.seconds,
        }


def advise(
    cache: CacheOrPath,
    labels: Labels = None,
    *,
    size: str | None = None,
    similarity: str | None = None,
    column: str = "label",
    test_size: float = 0.2,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Advice:
    """Measure which strategy a task asks for: the size of the data by its likeness to the source.

    Test images are not looked at. The rule is in ``docs/strategies.md``. What is measured is kept
    beside the cache, and shared with `compare`.

    Parameters
    ----------
    cache : path or FeatureCache
        With several layers: ``featurize run ... --layers auto``.
    labels : LabelTable or path of a CSV, optional
        Folder names, if not given.
    size, similarity : str, optional
        ``small`` or ``large``, ``similar`` or ``different``: what is known better than measured. It
        is measured all the same.
    column, test_size, seed
        As in `classify.fit`.
    jobs, progress
        As in `classify.compare`.

    Returns
    -------
    Advice

    Raises
    ------
    CallError
        If the cache has one layer only.
    TooFewImages
        If there are not two classes, or a class has a single image.
    ClassifyError, FeaturizeError, FileNotFoundError
    """
    started = time.perf_counter()
    check_given(size, similarity)
    cache = open_cache(cache)
    depths = Depths.of(cache)
    table = table_of(cache, labels, column)
    task = make_task(cache, table, test_size=test_size, seed=seed)
    _check_held_out(task, table)
    planned = trials(task, seed)
    if not planned:
        raise TooFewImages(
            f"{table.source}: every class lies in one group, so nothing can be held out to measure "
            "on; add images of other groups, or correct the group column"
        )
    latest: list[Record] = []
    heads = len(layer_sets(cache, LAYERS))
    total = heads + len(planned)

    def compared(record: Record, done: int, _: int) -> None:
        latest.append(record)
        if progress is not None:
            progress(record, done, total)

    def drawn(done: int) -> None:
        if progress is not None:
            progress(latest[-1], heads + done, total)

    found = compare(
        cache, table, HEAD, LAYERS, test_size=test_size, seed=seed, jobs=jobs, progress=compared
    )
    likeness = _likeness(task, list(cache.layers), found.results, depths, seed)
    amount = by_count(cache, task, likeness.last, planned, seed=seed, jobs=jobs, advanced=drawn)
    chosen = (size or amount.verdict, similarity or likeness.verdict)
    strategy = STRATEGIES[chosen]
    options = _options(labels, column, test_size, seed)
    joined = likeness.joined is not None and likeness.clear(likeness.joined)
    return Advice(
        task=task.name,
        strategy=strategy,
        size=chosen[0],
        similarity=chosen[1],
        confident=similarity is not None or likeness.confident,
        layer=likeness.best_cut if strategy == "truncated-probe" else likeness.last,
        more_images=0 if similarity is not None else likeness.more(amount.images),
        reasons=[
            *of_depth(likeness, similarity, likeness.more(amount.images)),
            *of_size(amount, size),
        ],
        commands=commands(cache, likeness.last, likeness.best_cut, options),
        offer=probe(cache, list(cache.layers), options) if joined else None,
        measured=(likeness, amount),
        notices=[*found.notices, *_limits(likeness)],
        seconds=round(time.perf_counter() - started, 3),
    )


def _likeness(
    task: Task, layers: list[str], results: Sequence[Result], depths: Depths, seed: int
) -> Similarity:
    """The answers of validation, never of the test, by layer."""
    answers = {
        result.record.layer: result.validation
        for result in results
        if result.validation is not None
    }
    each = {name: answers[name] for name in layers}
    rows = each[layers[0]].rows
    unit = rows if task.groups is None else task.groups[np.searchsorted(task.rows, rows)]
    return by_depth(depths, each, answers.get("+".join(layers)), unit, seed)


def _check_held_out(task: Task, table: LabelTable) -> None:
    """Refuse classes that cannot be both learnt from and held out."""
    if (task.split == VAL).any():
        return
    count = np.bincount(task.y[task.split != TEST], minlength=len(task.classes))
    alone = [task.classes[i] for i in np.flatnonzero(count == 1)]
    if alone:
        names = ", ".join(map(repr, alone[:3])) + (", ..." if len(alone) > 3 else "")
        raise TooFewImages(
            f"{table.source}: {len(alone):,} of {len(task.classes):,} classes have a single image "
            f"to learn from ({names}), which cannot be held out as well; add images of them, or "
            "leave them out of the label table"
        )


def _limits(found: Similarity) -> Iterator[str]:
    depths = found.depths
    if depths.beyond:
        yield (
            f"the cache ends at {found.last}, the network at {depths.beyond}; `last` means the "
            "former here. Add the rest with `featurize run ... --layers auto`"
        )
    if found.lower is None:
        yield (
            "the cache has no layer at 60 % of the depth or before, so it was not measured whether "
            "the upper part adds anything. Add them with `featurize run ... --layers auto`"
        )


def _options(labels: Labels, column: str, test_size: float, seed: int) -> list[str]:
    """What was asked of `advise`, for the commands it prints."""
    words = []
    if labels is not None:
        words += [
            "--labels",
            labels.source if isinstance(labels, LabelTable) else os.fspath(labels),
        ]
    for name, value, usual in (
        ("--column", column, "label"),
        ("--test-size", test_size, 0.2),
        ("--seed", seed, 0),
    ):
        words += [name, str(value)] if value != usual else []
    return words

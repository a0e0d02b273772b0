"""`auto`: embed images, advise on a strategy, run it, and test it against the alternatives."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from classify.data.targets.spec import TaskSpec
from classify.data.tasks import Task, check_test_size
from classify.errors import CallError
from classify.experiments.compare import compare_classes
from classify.experiments.fit import can_join_layers, fit_classes
from classify.heads.io import check_head_file
from classify.heads.record import HeadProgress
from classify.heads.targets.saved import save_head
from classify.labels.empty_folders import find_empty_folders
from classify.labels.folders import TEST
from classify.labels.source_labels import resolve_listing_labels
from classify.labels.table import LabelTable, check_several_classes, read_given_labels
from classify.labels.targets.kinds import WordsLike
from classify.launcher import read_world_size
from classify.strategy.advise import Advice, advise_classes
from classify.strategy.strategies import check_size_and_similarity
from classify.strategy.tried.better import BetterCandidate, CandidateCommands, find_better
from classify.strategy.tried.candidates import (
    Candidate,
    Tried,
    describe_network,
    describe_probe,
)
from classify.time_limit import TimeLimit
from featurize.cache.reader import FeatureCache
from featurize.errors import RunInterruptedError
from featurize.pipeline.stats import RunStats
from featurize.progress import Progress, Report, Say, ignore
from featurize.sources.containers.container_source import ContainerSource
from featurize.sources.folder import FolderSource
from featurize.sources.opening import open_source
from featurize.system import signals
from featurize.text import format_duration, list_first

if TYPE_CHECKING:
    from classify.finetuning.run import FineTuneResult
    from featurize.extraction.summary import Summary

PROBE_HEAD = "softmax"
NETWORK_STRATEGIES = ("finetune", "retrain")
RETRAIN_CLASSIFIER = "mlp"
FEW_IMAGES = 10  # of a class; an interval for its recall then spans most of what is possible


@dataclass(frozen=True, eq=False)
class AutoResult:
    """Result of `auto`.

    Attributes
    ----------
    summary : featurize.extraction.summary.Summary
        Summary of the cache.
    advice : Advice
        What was advised, and why.
    candidates : list of Candidate
        The strategies that were run, the chosen one first.
    better : BetterCandidate, or None
        The candidate that validates better than the chosen one, with the command that saves it.
    notices : list of str
        Notices for the user.
    seconds : float
        Wall-clock time.
    """

    summary: "Summary"
    advice: Advice
    candidates: list[Candidate]
    better: BetterCandidate | None
    notices: list[str]
    seconds: float

    @property
    def chosen(self) -> Candidate:
        """The saved candidate: of the advised strategy, unless the time was too short for it."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dict for JSON.

        Returns
        -------
        dict
            The keys of the cache's summary, of the advice and of the chosen candidate, all
            ``candidates``, and the ``better`` one.
        """
        content: dict[str, Any] = self.summary.to_dict() | self.advice.to_dict()
        chosen = asdict(self.chosen)
        content |= {key: chosen[key] for key in ("accuracy", "accuracy_ci", "validation", "epochs")}
        with_candidates = content | {
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "better": None if self.better is None else self.better.to_dict(),
        }
        return with_candidates | {"seconds": self.seconds}


def auto(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    labels: LabelTable | str | os.PathLike[str] | None = None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    preprocess: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    size: str | None = None,
    similarity: str | None = None,
    column: str = "label",
    labels_level: int | None = None,
    kind: str | None = None,
    columns: WordsLike = None,
    order: WordsLike = None,
    test_size: float = 0.2,
    seed: int = 0,
    max_seconds: float | None = None,
    device: str = "auto",
    say: Say = ignore,
    report: Report = ignore,
    watch: Any = None,
    **options: Any,
) -> AutoResult:
    """Make an image classifier with the strategy that the features advise.

    Probes are cheap once the cache exists, so all of them are run. An advised probe uses all layers
    joined if these validate better. Of the two strategies that train the network, the advised one
    is run; with `max_seconds` the other too if time is left. What is saved is the advised strategy:
    choosing by test accuracy would bias it. The candidates are listed together, so that wrong
    advice shows, and one that validates better is named with the command that saves it.

    Parameters
    ----------
    images : path or URL
        The image folder, or any other source of images that `featurize.run` takes.
    output : path
        A head file, or a tuned network with its classifier; `predict` accepts either.
    labels : LabelTable or path of a CSV, optional
        By default those that came with the images, else the folder names.
    backbone, weights, preprocess : str, optional
        As in `featurize.run`.
    cache : path, optional
        File for the features, which stays; by default ``OUTPUT.h5``.
    size, similarity : str, optional
        Override the measurement, as in `advise`.
    column, labels_level, kind, columns, order, test_size, seed
        As in `fit`; every candidate has the same test images.
    max_seconds : float, optional
        How long all of it may take. If training the network does not fit, the probe that validates
        best is saved.
    device : str
        As in `featurize.run`.
    say : callable
        Called with messages about the progress.
    report : callable
        Called with the `featurize.progress.Progress` of each stage.
    watch : object, optional
        The same by stage, instead of `report`: its ``run`` and ``training`` are called as the
        `report` of `featurize.run` and `finetune`, its ``heads`` as the `progress` of `compare`.
    **options
        Options of `FineTuneClassifier`.

    Returns
    -------
    AutoResult
        The cache, the advice and all that was tried.

    Raises
    ------
    ClassifyError, FeaturizeError, FileNotFoundError
        As in `featurize.run`, `advise` and `finetune`.
        `featurize.errors.RunInterruptedError` if the time is up before anything can be saved.
    """
    from featurize import run

    if read_world_size() > 1:
        raise CallError(
            "auto runs in one process. Start it without a launcher; `classify finetune` is what "
            "several processes can do together"
        )
    started = time.monotonic()
    limit = TimeLimit.of(max_seconds, started)
    if watch is not None:
        report = _report_by_stage(watch)
    check_head_file(output)
    report = limit.guard(report)
    check_size_and_similarity(size, similarity)
    spec = TaskSpec(labels, column, labels_level, test_size, seed, kind, columns, order)
    cache_path = Path(cache or f"{output}.h5")
    if not cache_path.exists():
        _check_labels(images, spec, say)
    summary = run(
        images,
        cache_path if cache is None else cache,  # whose last slash says that it is a folder
        backbone=backbone,
        weights=weights,
        preprocess=preprocess,
        layers="auto",
        device=device,
        report=report,
        say=say,
    )
    feature_cache = FeatureCache(cache_path)
    limit.check("advising")
    advice = advise_classes(
        feature_cache,
        spec.read_table(feature_cache),
        spec,
        size=size,
        similarity=similarity,
        report=report,
    )
    say(f"advised: {advice.strategy}, as the data are {advice.size} and {advice.similarity}")
    limit.check("comparing probes")
    task = spec.make_task(feature_cache)
    tried = _fit_probes(feature_cache, spec, task, advice, report)
    notices = [*advice.notices, *_warn_few_images(task)]
    trains_network = advice.strategy in NETWORK_STRATEGIES
    if limit.is_set or not trains_network:
        probe = tried[0].candidate
        limit.check(f"training the {probe.strategy} to save")
        say(f"training the {probe.strategy} on {probe.what}, to save it")
        head, _ = fit_classes(
            feature_cache, labels, PROBE_HEAD, probe.what.split("+"), **spec.as_class_keywords()
        )
        save_head(head, output)
        notices += head.notices
        if trains_network:
            say(f"until the network is trained, {output} is the {probe.strategy} on {probe.what}")
    for result in _train_networks(
        advice.strategy,
        output,
        limit,
        images=images,
        labels=labels,
        cache=feature_cache,
        device=device,
        say=say,
        report=report,
        **spec.as_keywords(),
        **options,
    ):
        if isinstance(result, str):
            notices.append(result)
        else:
            tried.append(describe_network(result))
            notices += result.notices
    tried.sort(key=lambda one: one.candidate.strategy != advice.strategy)
    commands = CandidateCommands(
        images, output, feature_cache, spec, device, RETRAIN_CLASSIFIER, options
    )
    return AutoResult(
        summary=cast("Summary", summary),
        advice=advice,
        candidates=[one.beside(tried[0], task, seed) for one in tried],
        better=find_better(tried, task, seed, commands),
        notices=_drop_repeated_notices(notices, task.name),
        seconds=round(time.monotonic() - started, 3),
    )


def _check_labels(images: str | os.PathLike[str], spec: TaskSpec, say: Say) -> None:
    """Refuse labels that no head can be trained on, before any image is embedded."""
    table = read_given_labels(spec.class_labels, spec.column, spec.labels_level)
    check_test_size(spec.test_size)
    if table is None:
        source = open_source(images)
        if source.is_remote and isinstance(source, ContainerSource):
            return  # to list it may be to read it all
        listing = source.list_images()
        table = resolve_listing_labels(listing, None, spec.column, spec.labels_level)
        if isinstance(source, FolderSource) and (empty := find_empty_folders(source.root, table)):
            say(f"no image lies in {list_first(empty)}: no class, unless images are added")
    check_several_classes(table)


def _warn_few_images(task: Task) -> Iterator[str]:
    """Warn of classes that are too small for their scores to say much."""
    n_per_class = np.bincount(task.y[task.split != TEST], minlength=len(task.classes))
    few = [task.classes[i] for i in np.flatnonzero(n_per_class < FEW_IMAGES)]
    if few:
        yield (
            f"{len(few):,} of {len(task.classes):,} classes have fewer than {FEW_IMAGES} images "
            f"to learn from ({list_first(few)}; the smallest {n_per_class.min()}): a score says "
            "little of them; add images"
        )


def _report_by_stage(watch: Any) -> Report:
    def report(step: Progress) -> None:
        if isinstance(step, RunStats):
            watch.run(step)
        elif isinstance(step, HeadProgress):
            watch.heads(step.result, step.done, step.total)
        else:
            watch.training(step)

    return report


def _fit_probes(
    cache: FeatureCache, spec: TaskSpec, task: Task, advice: Advice, report: Report
) -> list[Tried]:
    """Fit linear heads on the last layer, on the best cut, and on all layers joined."""
    last, joined = cache.layer().name, "+".join(cache.layers)
    strategies = {last: "linear-probe", advice.depth_profile.best_cut_layer: "truncated-probe"}
    if can_join_layers(cache, task):  # either kind of probe may use them
        trains_network = advice.strategy in NETWORK_STRATEGIES
        strategies[joined] = "linear-probe" if trains_network else advice.strategy
    comparison = compare_classes(
        cache,
        spec.class_labels,
        PROBE_HEAD,
        list(strategies),
        report=report,
        **spec.as_class_keywords(),
    )
    # The advised strategy first; within a strategy by log loss.
    results = sorted(comparison.results, key=lambda result: result.validation_loss)
    results.sort(key=lambda result: strategies[result.record.layer] != advice.strategy)
    n_images = cache.counts["ok"]
    return [describe_probe(strategies[result.record.layer], result, n_images) for result in results]


def _train_networks(
    advised: str, output: str | os.PathLike[str], limit: TimeLimit, **options: Any
) -> Iterator["FineTuneResult | str"]:
    """Train the network if that is advised, and by the other strategy while there is time.

    Yields
    ------
    FineTuneResult or str
        A notice in place of a network for which the time was too short; it is the last.
    """
    least_seconds = 0.0
    for strategy in sorted(NETWORK_STRATEGIES, key=lambda name: name != advised):
        if strategy != advised and not limit.is_set:
            continue
        if strategy != advised and not limit.allows(least_seconds):
            needed, left = map(format_duration, (least_seconds, max(0.0, limit.left)))
            yield f"{strategy} was not tried: it needs at least {needed}, and {left} are left"
            return
        from classify.finetuning.run import finetune  # imports torch, which a probe does not need

        try:
            with _choose_output(output, keep=strategy == advised) as target:
                tuned = finetune(
                    output=target,
                    classifier=RETRAIN_CLASSIFIER if strategy == "retrain" else None,
                    max_seconds=limit,
                    **options,
                )
                result = cast("FineTuneResult", tuned)  # of classes
        except RunInterruptedError as error:
            if not limit.is_set:
                raise
            instead = ", and a probe is saved instead" if strategy == advised else ""
            yield f"{strategy} was left{instead}: {error}"
            return
        except KeyboardInterrupt:
            # A command that overruns its limit interrupts itself; a probe is saved by then.
            if not limit.is_set or limit.left > 0:
                raise
            signals.acknowledge()
            yield f"{strategy} was left: the time was up. What is saved is a probe"
            return
        yield result
        epochs = [epoch["seconds"] for epoch in result.history]
        least_seconds = result.seconds - sum(epochs) + max(epochs)  # the other takes about as long


def _drop_repeated_notices(notices: list[str], task_name: str) -> list[str]:
    """Keep each notice once: the advice and a candidate may report the same about the task."""
    unique = dict.fromkeys(notices)
    return [notice for notice in unique if f"{task_name}: {notice}" not in unique]


@contextmanager
def _choose_output(output: str | os.PathLike[str], *, keep: bool) -> Iterator[Path]:
    """Return the output path to keep a network, else one in a temporary folder."""
    if keep:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="headgraft-") as folder:
        yield Path(folder) / "tried.safetensors"

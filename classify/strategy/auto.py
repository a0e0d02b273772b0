"""`auto`: embed images, advise on a strategy, run it, and test it against the alternatives."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from classify.data.tasks import Task, TaskSpec
from classify.evaluation.paired import compare_paired
from classify.evaluation.predictions import HeldOutPredictions
from classify.experiments.compare import compare
from classify.experiments.fit import can_join_layers, fit
from classify.experiments.results import FitResult
from classify.heads.io import check_head_file, save_head
from classify.heads.record import HeadProgress
from classify.labels.table import LabelTable
from classify.strategy.advise import Advice, advise
from classify.strategy.strategies import check_size_and_similarity
from featurize.cache.reader import FeatureCache
from featurize.pipeline.stats import RunStats
from featurize.progress import Progress, Report, Say, ignore

if TYPE_CHECKING:
    from classify.finetuning.run import FineTuneResult
    from featurize.extraction.summary import Summary

PROBE_HEAD = "softmax"
NETWORK_STRATEGIES = ("finetune", "retrain")
RETRAIN_CLASSIFIER = "mlp"


@dataclass(frozen=True)
class Candidate:
    """One strategy that was run.

    Attributes
    ----------
    strategy : str
    what : str
        The layers of a probe (``a+b`` if joined), or which part of the network was tuned, and its
        classifier.
    validation : float, or None
        Accuracy on held-out images.
    accuracy : float, or None
        Accuracy on the test images, the same for all candidates.
    accuracy_ci : (float, float), or None
        Its 95 % interval.
    behind : (float, float, float), or None
        Accuracy of the chosen candidate minus this one's, paired by image, with its 95 % interval.
    epochs : int
        0 for a probe.
    images_run : int
        Number of images that passed through the network or a part of it, for the cache or in
        training.
    seconds : float
        Wall-clock time without making the cache.
    """

    strategy: str
    what: str
    validation: float | None
    accuracy: float | None
    accuracy_ci: tuple[float, float] | None
    behind: tuple[float, float, float] | None
    epochs: int
    images_run: int
    seconds: float


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
    notices : list of str
        Notices for the user.
    seconds : float
        Wall-clock time.
    """

    summary: "Summary"
    advice: Advice
    candidates: list[Candidate]
    notices: list[str]
    seconds: float

    @property
    def chosen(self) -> Candidate:
        """The saved candidate, of the advised strategy."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dict for JSON.

        Returns
        -------
        dict
            The keys of the cache's summary, of the advice and of the chosen candidate, and all
            ``candidates``.
        """
        content: dict[str, Any] = self.summary.to_dict() | self.advice.to_dict()
        chosen = asdict(self.chosen)
        content |= {key: chosen[key] for key in ("accuracy", "accuracy_ci", "validation", "epochs")}
        with_candidates = content | {
            "candidates": [asdict(candidate) for candidate in self.candidates]
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
    advice shows.

    Parameters
    ----------
    images : path
        The image folder.
    output : path
        A head file, or a tuned network with its classifier; `predict` accepts either.
    labels : LabelTable or path of a CSV, optional
        By default the folder names.
    backbone, weights, preprocess : str, optional
        As in `featurize.run`.
    cache : path, optional
        File for the features, which stays; by default ``OUTPUT.h5``.
    size, similarity : str, optional
        Override the measurement, as in `advise`.
    column, labels_level, test_size, seed
        As in `fit`; every candidate has the same test images.
    max_seconds : float, optional
        No epoch that would end later is started, and no further candidate.
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
    """
    from featurize import run

    started = time.monotonic()
    if watch is not None:
        report = _report_by_stage(watch)
    check_head_file(output)
    check_size_and_similarity(size, similarity)
    spec = TaskSpec(labels, column, labels_level, test_size, seed)
    cache_path = Path(cache or f"{output}.h5")
    summary = run(
        images,
        cache_path,
        backbone=backbone,
        weights=weights,
        preprocess=preprocess,
        layers="auto",
        device=device,
        report=report,
        say=say,
    )
    feature_cache = FeatureCache(cache_path)
    advice = advise(
        feature_cache,
        labels,
        size=size,
        similarity=similarity,
        report=report,
        **spec.as_keywords(),
    )
    say(f"advised: {advice.strategy}, as the data are {advice.size} and {advice.similarity}")
    task = spec.make_task(feature_cache)
    candidates, notices = _fit_probes(feature_cache, spec, task, advice), [*advice.notices]
    if advice.strategy not in NETWORK_STRATEGIES:
        layers = candidates[0][0].what.split("+")
        head, _ = fit(feature_cache, labels, PROBE_HEAD, layers, **spec.as_keywords())
        save_head(head, output)
        notices += head.notices
    for result in _train_networks(
        advice.strategy,
        output,
        started,
        max_seconds,
        images=images,
        labels=labels,
        cache=feature_cache,
        device=device,
        say=say,
        report=report,
        **spec.as_keywords(),
        **options,
    ):
        candidates.append((_make_network_candidate(result), result.predictions))
        notices += result.notices
    candidates.sort(
        key=lambda candidate_and_predictions: (
            candidate_and_predictions[0].strategy != advice.strategy
        )
    )
    chosen = candidates[0][1]
    return AutoResult(
        summary=cast("Summary", summary),
        advice=advice,
        candidates=[
            _add_difference(candidate, predictions, chosen, task, seed)
            for candidate, predictions in candidates
        ],
        notices=_drop_repeated_notices(notices, task.name),
        seconds=round(time.monotonic() - started, 3),
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
    cache: FeatureCache, spec: TaskSpec, task: Task, advice: Advice
) -> list[tuple[Candidate, HeldOutPredictions | None]]:
    """Fit linear heads on the last layer, on the best cut, and on all layers joined."""
    last, joined = cache.layer().name, "+".join(cache.layers)
    strategies = {last: "linear-probe", advice.depth_profile.best_cut_layer: "truncated-probe"}
    if can_join_layers(cache, task):  # either kind of probe may use them
        trains_network = advice.strategy in NETWORK_STRATEGIES
        strategies[joined] = "linear-probe" if trains_network else advice.strategy
    comparison = compare(cache, spec.labels, PROBE_HEAD, list(strategies), **spec.as_keywords())
    # The advised strategy first; within a strategy by log loss.
    results = sorted(comparison.results, key=lambda result: result.validation_loss)
    results.sort(key=lambda result: strategies[result.record.layer] != advice.strategy)
    return [
        (_make_probe_candidate(strategies[result.record.layer], result, cache), result.test)
        for result in results
    ]


def _train_networks(
    advised: str,
    output: str | os.PathLike[str],
    started: float,
    max_seconds: float | None,
    **options: Any,
) -> Iterator["FineTuneResult"]:
    """Train the network if that is advised, and by the other strategy while there is time."""
    for strategy in sorted(NETWORK_STRATEGIES, key=lambda name: name != advised):
        elapsed = time.monotonic() - started
        if strategy != advised and (max_seconds is None or elapsed > max_seconds):
            continue
        from classify.finetuning.run import finetune  # imports torch, which a probe does not need

        with _choose_output(output, keep=strategy == advised) as target:
            result = finetune(
                output=target,
                classifier=RETRAIN_CLASSIFIER if strategy == "retrain" else None,
                max_seconds=None if max_seconds is None else max_seconds - elapsed,
                **options,
            )
        yield result


def _drop_repeated_notices(notices: list[str], task_name: str) -> list[str]:
    """Keep each notice once: the advice and a candidate may report the same about the task."""
    unique = dict.fromkeys(notices)
    return [notice for notice in unique if f"{task_name}: {notice}" not in unique]


def _make_probe_candidate(strategy: str, result: FitResult, cache: FeatureCache) -> Candidate:
    record = result.record
    return Candidate(
        strategy=strategy,
        what=record.layer,
        validation=record.validation,
        accuracy=record.accuracy,
        accuracy_ci=record.accuracy_ci,
        behind=None,
        epochs=0,
        images_run=cache.counts["ok"],
        seconds=record.seconds,
    )


def _make_network_candidate(result: "FineTuneResult") -> Candidate:
    return Candidate(
        strategy=result.strategy,
        what=f"{result.tune}, {result.classifier}",
        validation=result.validation,
        accuracy=result.accuracy,
        accuracy_ci=result.accuracy_ci,
        behind=None,
        epochs=result.epochs,
        images_run=result.images_run,
        seconds=result.seconds,
    )


def _add_difference(
    candidate: Candidate,
    predictions: HeldOutPredictions | None,
    chosen: HeldOutPredictions | None,
    task: Task,
    seed: int,
) -> Candidate:
    if predictions is None or chosen is None or predictions is chosen:
        return candidate
    difference = compare_paired(chosen, predictions, task.units_for(chosen.rows), seed=seed)
    return replace(candidate, behind=(difference.value, difference.low, difference.high))


@contextmanager
def _choose_output(output: str | os.PathLike[str], *, keep: bool) -> Iterator[Path]:
    """Return the output path to keep a network, else one in a temporary folder."""
    if keep:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="headgraft-") as folder:
        yield Path(folder) / "tried.safetensors"

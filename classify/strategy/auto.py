"""`auto`: embed the images, ask for advice, carry it out, and check it by the outcome."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from classify.data.labels import LabelTable
from classify.data.tasks import Task, TaskSpec
from classify.evaluation.paired import compare_paired
from classify.evaluation.predictions import HeldOutPredictions
from classify.experiments.compare import compare
from classify.experiments.fit import can_join_layers, fit
from classify.experiments.results import FitResult
from classify.heads.io import check_head_file, save_head
from classify.heads.record import HeadProgress
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
    """One strategy, carried out.

    Attributes
    ----------
    strategy : str
    what : str
        The layer of a probe, or what was tuned.
    validation : float, or None
        Accuracy on images held out of the training.
    accuracy : float, or None
        On the test images, the same for all candidates.
    accuracy_ci : (float, float), or None
    behind : (float, float, float), or None
        The chosen one's accuracy less this one's, with its 95 % interval, image by image.
    epochs : int
        0 for a probe.
    images_run : int
        Images that went through the network, or a part of it: for the cache, or in training.
    seconds : float
        Without making the cache.
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
    """What `auto` did.

    Attributes
    ----------
    summary : HeadSummary
        Of the cache.
    advice : Advice
    candidates : list of Candidate
        What was tried, the chosen one first.
    notices : list of str
    seconds : float
    """

    summary: "Summary"
    advice: Advice
    candidates: list[Candidate]
    notices: list[str]
    seconds: float

    @property
    def chosen(self) -> Candidate:
        """The one that was saved: the advised strategy."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """The keys of the cache's summary, of the advice, and of the chosen candidate."""
        about: dict[str, Any] = self.summary.to_dict() | self.advice.to_dict()
        chosen = asdict(self.chosen)
        about |= {key: chosen[key] for key in ("accuracy", "accuracy_ci", "validation", "epochs")}
        found = about | {"candidates": [asdict(one) for one in self.candidates]}
        return found | {"seconds": self.seconds}


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
    """Make a classifier of labelled images by the strategy that their features advise.

    The probes cost next to nothing once the cache is there, so all of them are tried; where a probe
    is advised, of either kind, it takes all layers joined if these validate better. Of the two
    strategies that train the network, the one that is advised, and with `max_seconds` as many
    others as there is time for. What is saved is what was advised: to choose by the test images
    would spoil it. The candidates stand beside each other, so that it shows where the advice was
    wrong.

    Parameters
    ----------
    images : path
    output : path
        A head, or a tuned network with its classifier: `predict` takes either.
    labels : LabelTable or path of a CSV, optional
        Folder names, if not given.
    backbone, weights, preprocess : str, optional
        As in `featurize.run`.
    cache : path, optional
        Where the features go; ``OUTPUT.h5`` if not given. It is kept.
    size, similarity : str, optional
        Override the advice, as in `advise`.
    column, labels_level, test_size, seed
        As in `fit`; every candidate has the same test images.
    max_seconds : float, optional
        No epoch is begun that would end later, and no further candidate.
    device : str
    say : callable
        Told what is done.
    report : callable
        Called with the `featurize.progress.Progress` of each stage.
    watch : object, optional
        The same by stage: its ``run`` and ``training`` are called as the `report` of
        `featurize.run` and `finetune`, its ``heads`` as the `progress` of `compare`.
    **options
        Of `FineTuneClassifier`.

    Raises
    ------
    ClassifyError, FeaturizeError, FileNotFoundError
    """
    from featurize import run

    started = time.monotonic()
    if watch is not None:
        report = _report_by_stage(watch)
    check_head_file(output)
    check_size_and_similarity(size, similarity)
    spec = TaskSpec(labels, column, labels_level, test_size, seed)
    where = Path(cache or f"{output}.h5")
    summary = run(
        images,
        where,
        backbone=backbone,
        weights=weights,
        preprocess=preprocess,
        layers="auto",
        device=device,
        report=report,
        say=say,
    )
    opened = FeatureCache(where)
    advice = advise(
        opened,
        labels,
        size=size,
        similarity=similarity,
        report=report,
        **spec.as_keywords(),
    )
    say(f"advised: {advice.strategy}, as the data are {advice.size} and {advice.similarity}")
    task = spec.make_task(opened)
    tried, notices = _fit_probes(opened, spec, task, advice), [*advice.notices]
    if advice.strategy not in NETWORK_STRATEGIES:
        layers = tried[0][0].what.split("+")
        head, _ = fit(opened, labels, PROBE_HEAD, layers, **spec.as_keywords())
        save_head(head, output)
        notices += head.notices
    for result in _train_networks(
        advice.strategy,
        output,
        started,
        max_seconds,
        images=images,
        labels=labels,
        cache=opened,
        device=device,
        say=say,
        report=report,
        **spec.as_keywords(),
        **options,
    ):
        tried.append((_make_network_candidate(result), result.predictions))
        notices += result.notices
    tried.sort(key=lambda pair: pair[0].strategy != advice.strategy)
    chosen = tried[0][1]
    return AutoResult(
        summary=cast("Summary", summary),
        advice=advice,
        candidates=[
            _add_difference(candidate, predictions, chosen, task, seed)
            for candidate, predictions in tried
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
    if can_join_layers(cache, task):  # a probe of either kind may take them
        trains_network = advice.strategy in NETWORK_STRATEGIES
        strategies[joined] = "linear-probe" if trains_network else advice.strategy
    comparison = compare(cache, spec.labels, PROBE_HEAD, list(strategies), **spec.as_keywords())
    # Those of the advised kind first, and of them the one with the lowest log loss.
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
    """Train the network if that is advised, and by other strategies while there is time."""
    for strategy in sorted(NETWORK_STRATEGIES, key=lambda name: name != advised):
        spent = time.monotonic() - started
        if strategy != advised and (max_seconds is None or spent > max_seconds):
            continue
        from classify.finetuning.run import finetune  # torch, which a probe does without

        with _choose_output(output, keep=strategy == advised) as target:
            result = finetune(
                output=target,
                classifier=RETRAIN_CLASSIFIER if strategy == "retrain" else None,
                max_seconds=None if max_seconds is None else max_seconds - spent,
                **options,
            )
        yield result


def _drop_repeated_notices(notices: list[str], task_name: str) -> list[str]:
    """Each notice once: a strategy tells of its training what the advice told of the task."""
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


def _make_network_candidate(found: "FineTuneResult") -> Candidate:
    return Candidate(
        strategy=found.strategy,
        what=f"{found.tune}, {found.classifier}",
        validation=found.validation,
        accuracy=found.accuracy,
        accuracy_ci=found.accuracy_ci,
        behind=None,
        epochs=found.epochs,
        images_run=found.images_run,
        seconds=found.seconds,
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
    """Where a trained network goes: the output, or, tried beside it only, nowhere for long."""
    if keep:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="headgraft-") as folder:
        yield Path(folder) / "tried.safetensors"

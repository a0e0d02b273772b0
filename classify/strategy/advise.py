"""Advise on which of the four strategies suits a task, with the evidence."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from classify.data.features import resolve_layer_sets
from classify.data.targets.spec import TaskSpec
from classify.data.tasks import Task, make_task
from classify.errors import ClassifyError, TooFewImagesError
from classify.experiments.compare import Comparison, compare_classes
from classify.experiments.fit import can_join_layers
from classify.experiments.results import FitResult
from classify.heads.record import HeadCallback, HeadProgress, HeadReport, HeadResult, report_to
from classify.labels.folders import TEST, VAL
from classify.labels.table import LabelTable
from classify.strategy.depth_profile import DepthProfile, measure_depth_profile
from classify.strategy.explain import explain_depth, explain_size
from classify.strategy.layer_depths import LayerDepths
from classify.strategy.learning_curve import (
    ADVICE_HEAD,
    CurveFit,
    DatasetSize,
    measure_learning_curve,
    plan_curve,
)
from classify.strategy.strategies import (
    STRATEGIES,
    probe_command,
    strategy_commands,
)
from featurize.backbones.families import find_source_size
from featurize.cache.reader import FeatureCache
from featurize.progress import Progress, ignore
from featurize.text import list_first

MIN_SIZE_SHARE = 0.7  # of the size that the weights are meant for


@dataclass(frozen=True)
class Advice:
    """A strategy for a task, and the evidence for it.

    Attributes
    ----------
    task : str
        Name of the label table.
    strategy : str
        ``linear-probe``, ``truncated-probe``, ``finetune`` or ``retrain``.
    size : str
        ``small`` or ``large``.
    similarity : str
        ``similar`` or ``different``, given or the likelier one; it determines the strategy.
    answer : str
        The same if it is given or measured precisely enough; else ``cannot tell yet``.
    confident : bool
        Whether `answer` is one of the two.
    layer : str
        The layer for the head: the last one, or for the truncated probe the best cut.
    best_layers : list of str
        The layers for a probe: `layer` alone, or all joined if these validate better.
    more_images : int, or None
        About how many more images would make the similarity certain: 0 if it is, None if no
        realistic number would.
    reasons : list of str
        The evidence in sentences.
    commands : dict of str to str
        By strategy, the command to run.
    joined_layers_command : str, or None
        The command that trains a head on `best_layers`, if that is not `layer`.
    depth_profile : DepthProfile
        Accuracy by depth.
    dataset_size : DatasetSize
        Number of images, and the learning curve.
    notices : list of str
        Notices for the user.
    seconds : float
        Wall-clock time.
    """

    task: str
    strategy: str
    size: str
    similarity: str
    answer: str
    confident: bool
    layer: str
    best_layers: list[str]
    more_images: int | None
    reasons: list[str]
    commands: dict[str, str]
    joined_layers_command: str | None
    depth_profile: DepthProfile
    dataset_size: DatasetSize
    notices: list[str]
    seconds: float

    @property
    def measured(self) -> tuple[DepthProfile, DatasetSize]:
        """`depth_profile` and `dataset_size`."""
        return self.depth_profile, self.dataset_size

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as a dict for JSON.

        Returns
        -------
        dict
            The attributes by name, with the measurements and `reasons` under ``evidence``.
        """
        depth, size = self.depth_profile.to_dict(), self.dataset_size.to_dict()
        measured = {"similarity": depth.pop("measured"), "size": size.pop("measured")}
        if depth["joined"] is not None:
            depth["joined"]["command"] = (
                self.joined_layers_command if len(self.best_layers) > 1 else None
            )
        thresholds = depth.pop("thresholds") | size.pop("thresholds")
        return {
            "task": self.task,
            "strategy": self.strategy,
            "size": self.size,
            "similarity": self.similarity,
            "answer": self.answer,
            "confident": self.confident,
            "layer": self.layer,
            "best_layers": self.best_layers,
            "more_images": self.more_images,
            "evidence": depth
            | size
            | {"thresholds": thresholds, "measured": measured, "reasons": self.reasons},
            "commands": self.commands,
            "seconds": self.seconds,
        }


def advise_classes(
    cache: FeatureCache,
    table: LabelTable,
    spec: TaskSpec,
    *,
    size: str | None = None,
    similarity: str | None = None,
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: HeadReport = ignore,
) -> Advice:
    """Measure which strategy suits a task of classes, by its size and similarity to the source.

    Parameters
    ----------
    cache : FeatureCache
        With several layers.
    table : LabelTable
    spec : TaskSpec
        The options that the commands repeat, and those of the split.
    size, similarity : str, optional
        Override the measurement, which is made all the same.
    jobs, progress, report
        As in `classify.compare`; the learning curve's heads are included.

    Returns
    -------
    Advice
        The strategy, and the evidence for it.

    Raises
    ------
    TooFewImagesError
        If there are fewer than two classes, or a class has a single image.
    ClassifyError, FeaturizeError
        As in `classify.fit`.
    """
    started, test_size, seed = time.perf_counter(), spec.test_size, spec.seed
    task = make_task(cache, table, test_size=test_size, seed=seed)
    curve_fits = _plan_checked_curve(task, table.source, seed)
    layers = choose_layer_option(cache, task)
    n_heads = len(resolve_layer_sets(cache, layers))
    total = n_heads + len(curve_fits)
    report_heads = report_to(report, progress)
    latest: list[HeadResult] = []

    def report_compared(step: HeadProgress) -> None:
        latest.append(step.result)
        report_heads(replace(step, total=total))

    def report_drawn(step: Progress) -> None:
        report_heads(HeadProgress(latest[-1], n_heads + step.done, total))

    comparison = compare_classes(
        cache,
        table,
        ADVICE_HEAD,
        layers,
        test_size=test_size,
        seed=seed,
        jobs=jobs,
        report=report_compared,
    )
    profile = _measure_profile(cache, task, comparison.results, seed)
    dataset_size = measure_learning_curve(
        cache,
        task,
        profile.last_layer,
        curve_fits,
        seed=seed,
        jobs=jobs,
        report=report_drawn,
    )
    advice = _make_advice(cache, task, profile, dataset_size, spec, size, similarity)
    seconds = round(time.perf_counter() - started, 3)
    return replace(advice, notices=[*comparison.notices, *advice.notices], seconds=seconds)


def advise_from_comparison(
    cache: FeatureCache,
    comparison: Comparison,
    tables: Sequence[str | os.PathLike[str]] = (),
    *,
    column: str = "label",
    labels_level: int | None = None,
    test_size: float = 0.2,
    seed: int = 0,
) -> tuple[dict[str, Advice], list[str]]:
    """Advise on the tasks of a comparison that has trained LDA on every single layer.

    Only the learning curve is computed, which takes less time than one of the layers did.

    Parameters
    ----------
    cache : FeatureCache
    comparison : Comparison
    tables : sequence of path
        The tasks' label tables, for the commands; none for folder names.
    column, labels_level, test_size, seed
        As in the comparison.

    Returns
    -------
    advice : dict of str to Advice
        By task name.
    notices : list of str
        Why a task has no advice.
    """
    advice: dict[str, Advice] = {}
    notices = []
    spec = TaskSpec(None, column, labels_level, test_size, seed)
    specs = [replace(spec, labels=table) for table in tables] or [spec]
    for task, spec in zip(comparison.tasks, specs, strict=True):
        results = [
            result
            for result in comparison.results
            if (result.record.task, result.record.head) == (task.name, ADVICE_HEAD)
            and result.record.class_weight is None
        ]
        if len(cache.layers) < 2 or not set(cache.layers) <= {r.record.layer for r in results}:
            continue
        try:
            curve_fits = _plan_checked_curve(task, task.name, seed)
            profile = _measure_profile(cache, task, results, seed)
        except ClassifyError as error:
            notices.append(f"{task.name}: no advice on the strategy: {error}")
            continue
        dataset_size = measure_learning_curve(
            cache, task, profile.last_layer, curve_fits, seed=seed
        )
        advice[task.name] = _make_advice(cache, task, profile, dataset_size, spec)
    return advice, notices


def _make_advice(
    cache: FeatureCache,
    task: Task,
    profile: DepthProfile,
    dataset_size: DatasetSize,
    spec: TaskSpec,
    size: str | None = None,
    similarity: str | None = None,
) -> Advice:
    chosen = (size or dataset_size.verdict, similarity or profile.verdict)
    options = spec.as_command_options()
    strategy = STRATEGIES[chosen]
    layer = profile.best_cut_layer if strategy == "truncated-probe" else profile.last_layer
    best_layers = [*cache.layers] if profile.is_joined_better(layer) else [layer]
    more = profile.images_needed(dataset_size.n_images)
    return Advice(
        task=task.name,
        strategy=strategy,
        size=chosen[0],
        similarity=chosen[1],
        answer=similarity or profile.answer,
        confident=similarity is not None or profile.is_confident,
        layer=layer,
        best_layers=best_layers,
        more_images=0 if similarity is not None else more,
        reasons=[
            *explain_depth(profile, similarity, more, layer),
            *explain_size(dataset_size, size),
        ],
        commands=strategy_commands(cache, profile.last_layer, profile.best_cut_layer, options),
        joined_layers_command=None
        if best_layers == [layer]
        else probe_command(cache, best_layers, options),
        depth_profile=profile,
        dataset_size=dataset_size,
        notices=list(_iter_caveats(cache, profile)),
        seconds=0.0,
    )


def choose_layer_option(cache: FeatureCache, task: Task) -> str:
    """Return the choices of layers that an advice compares.

    Parameters
    ----------
    cache : FeatureCache
    task : Task

    Returns
    -------
    str
        ``each,joined``, or ``each`` if the joined layers are too large.
    """
    return "each,joined" if can_join_layers(cache, task) else "each"


def _measure_profile(
    cache: FeatureCache, task: Task, results: Sequence[FitResult], seed: int
) -> DepthProfile:
    """Measure accuracy by depth on the validation images, never on the test images."""
    predictions = {
        result.record.layer: result.validation
        for result in results
        if result.validation is not None
    }
    by_layer = {name: predictions[name] for name in cache.layers}
    unit = task.units_for(next(iter(by_layer.values())).rows)
    joined = predictions.get("+".join(cache.layers))
    return measure_depth_profile(LayerDepths.from_cache(cache), by_layer, joined, unit, seed)


def _plan_checked_curve(task: Task, source: str, seed: int) -> list[CurveFit]:
    """Plan the learning curve; refuse classes that cannot be both trained on and held out."""
    n_per_class = np.bincount(task.y[task.split != TEST], minlength=len(task.classes))
    singletons = [task.classes[i] for i in np.flatnonzero(n_per_class == 1)]
    if singletons and not (task.split == VAL).any():
        names = list_first(singletons)
        raise TooFewImagesError(
            f"{source}: {len(singletons):,} of {len(task.classes):,} classes have a single image "
            f"to learn from ({names}), which cannot be held out as well; add images of them, or "
            "leave them out of the label table"
        )
    curve_fits = plan_curve(task, seed)
    if not curve_fits:
        raise TooFewImagesError(
            f"{source}: every class lies in one group, so nothing can be held out to measure "
            "on; add images of other groups, or correct the group column"
        )
    return curve_fits


def _iter_caveats(cache: FeatureCache, profile: DepthProfile) -> Iterator[str]:
    depths, backbone = profile.depths, cache.extractor.backbone
    crop = cache.extractor.preprocess.crop
    source_size = find_source_size(backbone, cache.extractor.environment)
    if source_size is not None and crop < MIN_SIZE_SHARE * source_size:
        yield (
            f"the images were cut to {crop} pixels, far below what {backbone} was trained on, from "
            "which its last layers suffer first: with the weights' own preprocessing the data may "
            "be more similar to the source than they seem here"
        )
    if depths.missing_last_layer:
        yield (
            f"the cache ends at {profile.last_layer}, the network at {depths.missing_last_layer}; "
            "`last` means the former here. Add the rest with `featurize run ... --layers auto`"
        )
    if profile.lower_cut is None:
        yield (
            "the cache has no layer at 60 % of the depth or before, so it was not measured whether "
            "the upper part adds anything. Add them with `featurize run ... --layers auto`"
        )

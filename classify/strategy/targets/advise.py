"""Advise on which of the four strategies suits labels that are not one class.

The rule is that of `classify.strategy.advise`, by the metric of the kind: how well ridge does on
each layer says whether the images are similar to the source, and a learning curve
whether more images would help.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classify.data.features import CacheOrPath, open_cache
from classify.data.targets.spec import TaskSpec
from classify.data.targets.task import TargetTask, make_target_task
from classify.errors import CallError, TooFewImagesError
from classify.evaluation.paired import Difference
from classify.evaluation.targets.metrics import (
    LOWER_IS_BETTER,
)
from classify.evaluation.targets.predictions import TargetPredictions
from classify.evaluation.targets.titles import format_metric_name
from classify.experiments.targets.compare import TargetComparison, compare_targets
from classify.experiments.targets.results import TargetFitOptions
from classify.heads.targets.registry import LAYER_HEAD
from classify.kinds import MULTI
from classify.labels.folders import TEST
from classify.labels.targets.table import TargetTable
from classify.strategy.depth_profile import (
    DIFFERENT,
    EQUAL_MARGIN,
    MAX_LOWER_DEPTH,
    MIN_ERROR_REDUCTION,
    SIMILAR,
    UNSURE,
)
from classify.strategy.layer_depths import LayerDepths
from classify.strategy.learning_curve import LARGE, MIN_LARGE_IMAGES, MIN_LARGE_PER_CLASS, SMALL
from classify.strategy.strategies import (
    STRATEGIES,
    check_size_and_similarity,
    describe_similarity,
    strategy_commands,
)
from classify.strategy.targets.depth_scores import (
    LayerScore,
    is_settled,
    measure_cut,
    measure_profile,
    measure_room,
)
from classify.strategy.targets.learning_curve import CurvePoint, measure_target_curve
from featurize.progress import ignore


@dataclass(frozen=True)
class TargetAdvice:
    """A strategy for a task whose labels are not one class, and the evidence for it.

    Attributes
    ----------
    task, kind, metric : str
        Name of the label table, the kind of its labels and the metric that everything here is in.
    strategy : str
        ``linear-probe``, ``truncated-probe``, ``finetune`` or ``retrain``.
    size, similarity : str
        Given or measured; they decide the strategy.
    answer : str
        `similarity` where it is given or measured precisely enough; else ``cannot tell yet``.
    layer : str
        The layer for a head: the last one, or for the truncated probe the best cut.
    profile : list of LayerScore
        By depth, then of all layers joined.
    cut_gain : Difference
        The best cut, chosen on other images than it is judged on, less the last layer; positive is
        better whatever the metric.
    curve : list of CurvePoint
        The learning curve on the last layer.
    reasons : list of str
        The evidence in sentences.
    commands : dict of str to str
        By strategy, the command to run.
    notices : list of str
        Messages for the user.
    seconds : float
        Time the whole of it took.
    """

    task: str
    kind: str
    metric: str
    strategy: str
    size: str
    similarity: str
    answer: str
    layer: str
    profile: list[LayerScore]
    cut_gain: Difference
    curve: list[CurvePoint]
    reasons: list[str]
    commands: dict[str, str]
    notices: list[str]
    seconds: float

    @property
    def confident(self) -> bool:
        """Whether `answer` is one of the two."""
        return self.answer != UNSURE

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as a dict for JSON.

        Returns
        -------
        dict
            The attributes by name, with the measurements and `reasons` under ``evidence``.
        """
        return {
            "task": self.task,
            "kind": self.kind,
            "metric": self.metric,
            "strategy": self.strategy,
            "size": self.size,
            "similarity": self.similarity,
            "answer": self.answer,
            "confident": self.confident,
            "layer": self.layer,
            "evidence": {
                "profile": [
                    {"layer": s.layer, "depth": s.depth, "validation": s.value}
                    | {"validation_ci": list(s.ci)}
                    for s in self.profile
                ],
                "gain": self.cut_gain.value,
                "gain_ci": [self.cut_gain.low, self.cut_gain.high],
                "curve": [point.to_dict() for point in self.curve],
                "reasons": self.reasons,
            },
            "commands": self.commands,
            "seconds": self.seconds,
        }


def advise_targets(
    cache: CacheOrPath,
    table: TargetTable,
    spec: TaskSpec,
    *,
    size: str | None = None,
    similarity: str | None = None,
    jobs: int | None = None,
    report: Callable[[Any], None] = ignore,
) -> TargetAdvice:
    """Measure which strategy suits a task. Test images are not used.

    Parameters
    ----------
    cache : path or FeatureCache
        With several layers.
    table : TargetTable
    spec : TaskSpec
        The options that the commands repeat.
    size, similarity : str, optional
        Override the measurement, which is made all the same.
    jobs : int, optional
    report : callable
        As in `classify.compare`.

    Returns
    -------
    TargetAdvice

    Raises
    ------
    CallError
        If the cache has only one layer, or `size` or `similarity` is unknown.
    TooFewImagesError
        If nothing can be held out.
    """
    started = time.perf_counter()
    check_size_and_similarity(size, similarity)
    opened = open_cache(cache)
    depths = LayerDepths.from_cache(opened)
    task = make_target_task(opened, table, test_size=spec.test_size, seed=spec.seed)
    layers = [(name,) for name in opened.layers]
    comparison = compare_targets(
        opened,
        [task],
        [LAYER_HEAD],
        [*layers, tuple(opened.layers)],
        seed=spec.seed,
        jobs=jobs,
        report=report,
    )
    held_out = _collect_predictions(comparison)
    last = opened.layer().name
    if last not in held_out:
        raise TooFewImagesError("nothing can be held out to compare layers by; add images")
    metric = comparison.records[0].metric
    earlier = [n for n in held_out if depths.relative.get(n, 1) < depths.relative[last]]
    if not earlier:
        raise CallError(f"{opened.path} has no layer before {last}; add some with --layers auto")
    gain = measure_cut(task, held_out, earlier, last, metric, spec.seed)
    lower = [n for n in earlier if depths.relative[n] <= MAX_LOWER_DEPTH]
    lower_gain = measure_cut(task, held_out, lower, last, metric, spec.seed) if lower else None
    profile = measure_profile(task, held_out, depths, metric, spec.seed)
    score_of = {score.layer: score.value for score in profile}
    room = measure_room(metric, score_of[last])
    is_clear = gain.low > 0 and gain.value >= MIN_ERROR_REDUCTION * room
    is_redundant = lower_gain is not None and lower_gain.value >= -EQUAL_MARGIN * room
    measured = DIFFERENT if is_clear or is_redundant else SIMILAR
    is_sure = is_settled(gain, lower_gain, room, is_clear, is_redundant)
    measured_size = _measure_size(task)
    chosen_similarity, chosen_size = similarity or measured, size or measured_size
    strategy = STRATEGIES[chosen_size, chosen_similarity]
    candidates = lower if is_redundant and not is_clear else earlier
    sign = -1 if metric in LOWER_IS_BETTER else 1
    cut = max(candidates, key=lambda name: sign * score_of[name])
    curve = measure_target_curve(
        opened,
        task,
        last,
        TargetFitOptions.from_options(task.kind, spec.seed),
    )
    answer = chosen_similarity if similarity or is_sure else UNSURE
    return TargetAdvice(
        task=task.name,
        kind=task.kind,
        metric=metric,
        strategy=strategy,
        size=chosen_size,
        similarity=chosen_similarity,
        answer=answer,
        layer=cut if strategy == "truncated-probe" else last,
        profile=profile,
        cut_gain=gain,
        curve=curve,
        reasons=list(
            _explain(task, metric, answer, cut, last, gain, lower_gain, is_redundant, curve)
        ),
        commands=strategy_commands(opened, last, cut, spec.as_command_options()),
        notices=comparison.notices,
        seconds=round(time.perf_counter() - started, 3),
    )


def _collect_predictions(comparison: TargetComparison) -> dict[str, TargetPredictions]:
    return {
        result.record.layer: result.validation
        for result in comparison.results
        if result.validation is not None
    }


def _measure_size(task: TargetTask) -> str:
    """Return whether the task is large: by its images, and those with each label."""
    values = task.values[task.split != TEST]
    if len(values) < MIN_LARGE_IMAGES:
        return SMALL
    if task.kind != MULTI:
        return LARGE
    return LARGE if np.median((values == 1).sum(axis=0)) >= MIN_LARGE_PER_CLASS else SMALL


def _explain(
    task: TargetTask,
    metric: str,
    answer: str,
    cut: str,
    last: str,
    gain: Difference,
    lower_gain: Difference | None,
    is_redundant: bool,
    curve: Sequence[CurvePoint],
) -> list[str]:
    """Explain the evidence in sentences without a full stop."""
    title = format_metric_name(metric)
    better = f"{gain.value:+.3f} of {title} in its favour ({gain.low:+.3f} to {gain.high:+.3f})"
    sentences = [f"{answer}: cut at {cut} in place of {last}, {better}"]
    if is_redundant and lower_gain is not None:
        sentences.append(
            "the upper part of the network adds nothing: a low cut has "
            f"{lower_gain.value:+.3f} ({lower_gain.low:+.3f} to {lower_gain.high:+.3f})"
        )
    n_train = int((task.split != TEST).sum())
    sentences.append(
        f"{_measure_size(task)}: {n_train:,} images to learn from; large begins at "
        f"{MIN_LARGE_IMAGES:,}"
    )
    if len(curve) > 1:
        half, whole = curve[-2], curve[-1]
        sentences.append(
            f"from {half.n_images:,} to {whole.n_images:,} images {title} went from "
            f"{half.value:.3f} to {whole.value:.3f}"
        )
    return sentences


def describe_advice(advice: TargetAdvice) -> str:
    """Describe the data in a sentence.

    Parameters
    ----------
    advice : TargetAdvice

    Returns
    -------
    str
    """
    caveat = "" if advice.confident else " as far as can be told yet: see below"
    return f"The data are {advice.size}, and {describe_similarity(advice.similarity)}{caveat}."

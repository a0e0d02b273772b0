"""What is said of a head once it is trained: its record, and how sure its accuracy is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from classify.evaluation.selection_metric import LOWER_IS_BETTER


@dataclass(frozen=True)
class HeadResult:
    """How one head did on one task.

    Attributes
    ----------
    task, head : str
    layer : str
        Joined layers as ``a+b``.
    classes : list of str
        Those the head knows.
    n_train, n_test : int
        Images it was trained on (the last time, with the chosen C), and scored on.
    accuracy : float, or None
        On the test images; None if there are none.
    accuracy_ci : (float, float), or None
        95 % interval, see `classify.evaluation.metrics.estimate_proportion`. It covers the draw of
        test images, not of training images.
    validation : float, or None
        Accuracy on the images that the setting was chosen by, each held out of the training; None
        if no class could be validated.
    validation_ci : (float, float), or None
    C : float, or None
        None for a head without a C.
    settings : dict of str to float
        What was chosen, by name: ``C``, ``alpha``, ``shrinkage``, ``n_neighbors``, and ``gamma`` of
        the RBF kernel.
    class_weight : str, or None
        ``balanced``, or None.
    prepare : str
        How the features were prepared: ``root-l2`` or ``standardise``.
    metric : str
        What settings are chosen and heads ranked by: ``accuracy``, or as `classify.fit` was told.
    validation_metric, test_metric : float, or None
        It, on the images that the setting was chosen by, and on the test images.
    temperature : float, or None
        What the scores are divided by for calibrated probabilities, from the held-out scores.
    recall : dict, or None
        By class with test images, the least first: the share of them that is found, as ``value``,
        ``ci`` (95 %) and ``n``, see `classify.evaluation.recall`.
    bias : list of float, or None
        What was added to the scores of each class, from the held-out scores too; its mean is 0. It
        is part of the head, and decides with it. None where temperature alone is as good, or where
        the classes are to count alike.
    scores : dict of str to number, interval or None
        More of the test: ``balanced_accuracy``, ``macro_f1``, ``log_loss``, ``calibration_error``
        and the last two after calibration, each with its interval.
    seconds : float
        For reading features, choosing, training and scoring.
    distinguishable : bool, or None
        In a comparison: whether its test accuracy differs from that of the task's best head by more
        than chance, image by image. None for the best itself. Each by itself: the best of all stays
        among those that do not differ in 95 of 100 comparisons, and of 20 that are as good about
        one differs by chance.
    worse : bool, or None
        In a comparison: whether it is worse than that head by more than chance, allowing for the
        number of heads (Holm's correction). None for the best itself.
    """

    task: str
    head: str
    layer: str
    classes: list[str]
    n_train: int
    n_test: int
    accuracy: float | None
    accuracy_ci: tuple[float, float] | None
    validation: float | None
    validation_ci: tuple[float, float] | None
    C: float | None
    settings: dict[str, float]
    class_weight: str | None
    prepare: str
    metric: str
    validation_metric: float | None
    test_metric: float | None
    temperature: float | None
    scores: dict[str, Any]
    seconds: float
    distinguishable: bool | None = None
    worse: bool | None = None
    recall: dict[str, dict[str, Any]] | None = None
    bias: list[float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as a flat dict of what JSON knows."""
        found = asdict(self)
        found |= found.pop("scores")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


HeadCallback = Callable[[HeadResult, int, int], None]


@dataclass(frozen=True)
class HeadProgress:
    """How many heads are trained, as a `featurize.progress.Progress`.

    Attributes
    ----------
    result : HeadResult
        The latest.
    done, total : int
        Heads trained, and to be trained.
    """

    result: HeadResult
    done: int
    total: int

    @property
    def stage(self) -> str:
        """What is going on."""
        return "heads"

    @property
    def note(self) -> str:
        """The latest head, and how often it was right in validation."""
        result = self.result
        right = "" if result.validation is None else f" {result.validation:.3f}"
        return f"{result.task}: {result.head} on {result.layer}{right}"


HeadReport = Callable[[HeadProgress], None]


def report_to(report: HeadReport, progress: HeadCallback | None) -> HeadReport:
    """Combine both callbacks of a comparison; `progress` takes a step's parts one by one."""
    if progress is None:
        return report

    def report_to_both(step: HeadProgress) -> None:
        progress(step.result, step.done, step.total)
        report(step)

    return report_to_both


def rank_results(results: Sequence[HeadResult], best: HeadResult) -> list[HeadResult]:
    """A task's records, the best first and the others by the metric on validation images."""
    sign = -1 if best.metric in LOWER_IS_BETTER else 1

    def rank(record: HeadResult) -> tuple[bool, float]:
        value = record.validation_metric
        return record is not best, math.inf if value is None else -sign * value

    return sorted(results, key=rank)

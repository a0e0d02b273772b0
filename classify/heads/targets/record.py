"""The result of a head for several labels, numbers or grades: settings, metrics and intervals."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from classify.heads.record import qualify_layers


@dataclass(frozen=True)
class TargetResult:
    """The result of one head on one task whose labels are not one class.

    Attributes
    ----------
    task, kind, head : str
        Names of the task, of the kind of labels and of the kind of head.
    layer : str
        Name of the layer; joined layers as ``a+b``.
    names : list of str
        The labels, the name of the number, or the grades from the lowest.
    n_train, n_test : int
        Numbers of images in the final training set and in the test set.
    metric : str
        The metric that heads are ranked by.
    validation_metric : float, or None
        Its value on the held-out images; None if nothing could be held out.
    test_metric : float, or None
        Its value on the test images.
    metrics : dict of str to number, interval or None
        The metrics of the test images, each with its 95 % interval as ``NAME_ci``: see
        `classify.evaluation.targets.metrics.compute_target_metrics`. They cover the draw of test
        images, not that of training images.
    baseline : dict of str to number, interval or None
        The same metrics of a guess without an image: the frequencies, the mean, the most frequent
        grade.
    labels : dict, or None
        Of several labels: counts and metrics by label.
    confusion : list of lists of int, or None
        Of grades: test images by true grade (rows) and predicted grade.
    interval : dict, or None
        Of numbers: ``coverage`` asked for, ``margin`` (half the width), ``realised`` share of the
        test images that it covers and ``realised_ci``.
    settings : dict of str to float
        Selected params by name.
    prepare : str
        Preparation of the features: ``root-l2`` or ``standardise``.
    seconds : float
        Seconds for reading features, selection, training and evaluation.
    distinguishable, worse : bool, or None
        As in `classify.heads.record.HeadResult`.
    """

    task: str
    kind: str
    head: str
    layer: str
    names: list[str]
    n_train: int
    n_test: int
    metric: str
    validation_metric: float | None
    test_metric: float | None
    settings: dict[str, float]
    prepare: str
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] | None = None
    confusion: list[list[int]] | None = None
    interval: dict[str, Any] | None = None
    distinguishable: bool | None = None
    worse: bool | None = None

    @property
    def place(self) -> str:
        """The layers."""
        return qualify_layers(self.layer, None)

    @property
    def test_ci(self) -> tuple[float, float] | None:
        """95 % interval of `test_metric`."""
        interval = self.metrics.get(f"{self.metric}_ci")
        return None if interval is None else (float(interval[0]), float(interval[1]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a flat dict for JSON, with `metrics` merged in.

        Returns
        -------
        dict
            The fields and the metrics by name.
        """
        values = asdict(self)
        metrics: dict[str, Any] = values.pop("metrics")
        return values | metrics


@dataclass(frozen=True)
class TargetProgress:
    """Progress of training several heads, as a `featurize.progress.Progress`.

    Attributes
    ----------
    result : TargetResult
        Result of the latest head.
    done, total : int
        Numbers of heads trained so far and in all.
    """

    result: TargetResult
    done: int
    total: int

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return "heads"

    @property
    def note(self) -> str:
        """Task, name and layer of the latest head, and its metric in validation."""
        result = self.result
        value = "" if result.validation_metric is None else f" {result.validation_metric:.3f}"
        return f"{result.task}: {result.head} on {result.layer}{value}"


def read_result(values: Mapping[str, Any]) -> TargetResult:
    """Read a result that was kept.

    Parameters
    ----------
    values : mapping of str to object
        The fields, as ``dataclasses.asdict`` gives them.

    Returns
    -------
    TargetResult

    Raises
    ------
    KeyError, TypeError, ValueError
        If they are not those of a result.
    """
    result = TargetResult(**values)
    texts = (result.task, result.kind, result.head, result.layer, result.metric, result.prepare)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is no text")
    counts = (result.n_train, result.n_test)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("a count is no number")
    for value in (result.validation_metric, result.test_metric):
        if value is not None and not isinstance(value, (int, float)):
            raise ValueError("a metric is no number")
    return result

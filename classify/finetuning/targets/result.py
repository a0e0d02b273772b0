"""What `finetune` reports of several labels, numbers and grades."""

import time
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from classify.data.source_images import SourceImages
from classify.data.targets.task import TargetTask
from classify.evaluation.targets.metrics import PRIMARY
from classify.evaluation.targets.predictions import TargetPredictions
from classify.finetuning.datasets.images import DecodedImages
from classify.finetuning.datasets.labelled_images import LabelledImages
from classify.finetuning.targets.estimators import FineTuneTargets
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.tested import describe_test

NOT_IN_DICT = ("head", "predictions", "validated", "notices")


@dataclass(frozen=True, eq=False)
class FineTuneTargetResult:
    """A network fine-tuned on labels that are not one class, and how fine-tuning went.

    Attributes
    ----------
    strategy, task, backbone, tune, lora, classifier
        As in `classify.FineTuneResult`.
    kind : str
        ``multi``, ``number`` or ``grade``.
    names : list of str
        The labels, the name of the number, or the grades from the lowest.
    n_train, n_validation, n_test : int
        Number of images for training, early stopping, and testing.
    metric : str
        The metric that heads of this kind are ranked by.
    validation : float, or None
        Its value on the validation part, after the best epoch; None where it is undefined.
    test_metric : float, or None
        Its value on the test images.
    epochs, best_epoch : int
        Number of epochs, and the one with the lowest validation loss, from 1.
    history : list of dict
        Each `Epoch` as a dict; its ``validation`` is the metric.
    images_run : int
        Forward passes of an image through the tuned part: initialisation, training, validation.
    seconds : float
        Time of the whole call.
    head : FittedTargets
        The classifier, as a head on the tuned backbone's embeddings.
    predictions : TargetPredictions, or None
        For the test images, by row of the cache. Without a cache the rows are the positions of
        the images in the order of their paths. None if there are no test images.
    validated : TargetPredictions
        For the validation images, whose thresholds and intervals are those of the head.
    notices : list of str
        Sentences for the user.
    metrics, baseline, labels, confusion, interval
        Of the test images, as in `classify.TargetResult`; empty or None where there are none.
    """

    strategy: str
    task: str
    kind: str
    backbone: str
    tune: str
    lora: int | None
    classifier: str
    names: list[str]
    n_train: int
    n_validation: int
    n_test: int
    metric: str
    validation: float | None
    test_metric: float | None
    epochs: int
    best_epoch: int
    history: list[dict[str, Any]]
    images_run: int
    seconds: float
    head: FittedTargets
    predictions: TargetPredictions | None
    validated: TargetPredictions
    notices: list[str]
    metrics: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] | None = None
    confusion: list[list[int]] | None = None
    interval: dict[str, Any] | None = None

    @property
    def record(self) -> "FineTuneTargetResult":
        """The result itself, as of a `classify.FineTuneResult`."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Convert to a flat dict for JSON, without head, predictions and notices.

        Returns
        -------
        dict of str to object
            The attributes by name, each metric of the test images as ``NAME`` and ``NAME_ci``.
            ``lora`` only if adapters were trained.
        """
        names = [each.name for each in fields(self) if each.name not in NOT_IN_DICT]
        values = {name: getattr(self, name) for name in names}
        values |= values.pop("metrics")
        if self.lora is None:
            del values["lora"]
        return values


def evaluate_tuned_targets(
    model: FineTuneTargets,
    images: SourceImages,
    labelled: LabelledImages,
    task: TargetTask,
    strategy: str,
    started: float,
) -> FineTuneTargetResult:
    """Predict the test images, and collect what is reported.

    Parameters
    ----------
    model : FineTuneTargets
        Fitted.
    images : SourceImages
    labelled : LabelledImages
        The images and their split.
    task : TargetTask
        Their labels.
    strategy : str
        ``finetune`` or ``retrain``.
    started : float
        The time, by `time.monotonic`, when the call began.

    Returns
    -------
    FineTuneTargetResult
    """
    head = model.head_
    tested = images.locate(labelled.paths[labelled.test].tolist())
    decoded = DecodedImages(tested, head.source.preprocess)
    validated = [i for i in labelled.dev if labelled.paths[i] in model.validated_]
    left_out = model.failures_.keys() | {labelled.paths[i] for i in validated}
    trained = [i for i in labelled.dev if labelled.paths[i] not in left_out]
    readable, predictions, described = np.flatnonzero(decoded.is_readable), None, dict[str, Any]()
    if len(readable):
        values = head.values_of(head.outputs(model.embed(decoded)[readable]))
        predictions = _collect(labelled, task, labelled.test[readable], values, head)
        described = describe_test(task, predictions, task.values[trained], head, model.seed)
    best = min(model.history_, key=lambda epoch: epoch.validation_loss)
    failures, metric = model.failures_ | decoded.failures, PRIMARY[task.kind]
    return FineTuneTargetResult(
        strategy=strategy,
        task=labelled.task_name,
        kind=task.kind,
        backbone=head.source.backbone,
        tune=model.tune,
        lora=model.lora,
        classifier=model.classifier,
        names=list(task.names),
        n_train=model.n_train_,
        n_validation=len(validated),
        n_test=len(readable),
        metric=metric,
        validation=best.validation,
        test_metric=described.get("metrics", {}).get(metric),
        epochs=len(model.history_),
        best_epoch=best.number,
        history=[epoch.to_dict() for epoch in model.history_],
        images_run=model.images_run_,
        seconds=round(time.monotonic() - started, 3),
        head=head,
        predictions=predictions,
        validated=_collect(
            labelled,
            task,
            np.array(validated, np.intp),
            np.stack([model.validated_[labelled.paths[i]] for i in validated]),
            head,
        ),
        notices=[
            *task.notices,
            *labelled.leaks,
            *(f"{path} is left out: {reason}" for path, reason in failures.items()),
        ],
        **described,
    )


def _collect(
    labelled: LabelledImages,
    task: TargetTask,
    positions: np.ndarray,
    values: np.ndarray,
    head: FittedTargets,
) -> TargetPredictions:
    return TargetPredictions(
        task.kind,
        labelled.rows[positions].astype(np.int64),
        task.values[positions],
        values,
        head.thresholds,
    )

"""`finetune`: tune a backbone to labelled images, and save it with a classifier."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from classify.data.features import CacheOrPath, open_cache
from classify.data.source_images import SourceImages
from classify.data.targets.spec import TaskSpec
from classify.data.targets.task import TargetTask
from classify.data.tasks import Task, check_test_size
from classify.evaluation.metrics import compute_metrics
from classify.evaluation.predictions import HeldOutPredictions, summarise_decision_values
from classify.finetuning.checkpoint import check_checkpoint_path
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets.images import DecodedImages
from classify.finetuning.datasets.labelled_images import LabelledImages, split_labelled_images
from classify.finetuning.estimator import FineTuneClassifier
from classify.finetuning.objectives.objective import AnyHead
from classify.finetuning.targets.estimators import ESTIMATORS
from classify.finetuning.targets.result import FineTuneTargetResult, evaluate_tuned_targets
from classify.finetuning.trainer import ProgressCallback
from classify.heads.fitted import FittedHead
from classify.heads.io import check_head_file
from classify.heads.targets.saved import save_head
from classify.labels.folders import VAL
from classify.labels.targets.kinds import WordsLike
from classify.labels.targets.resolve import TargetsLike
from classify.launcher import is_main_process
from classify.time_limit import TimeLimit
from featurize.progress import Say, ignore

NOT_IN_DICT = ("head", "predictions", "validated", "notices")


@dataclass(frozen=True, eq=False)
class FineTuneResult:
    """A fine-tuned network, and how fine-tuning went.

    Attributes
    ----------
    strategy : str
        ``finetune``, or ``retrain`` if the whole network was trained with a given classifier or
        from random weights.
    task : str
        Name of the label table.
    backbone, tune, classifier : str
        As given to `finetune`.
    lora : int, or None
        Rank of the adapters that were trained in place of weights.
    classes : list of str
        The K class names.
    n_train, n_validation, n_test : int
        Number of images for training, early stopping, and testing.
    accuracy : float, or None
        On the test images; None if there are none.
    accuracy_ci : (float, float), or None
        Its 95 % interval.
    validation : float
        Accuracy on the validation part, after the best epoch.
    epochs, best_epoch : int
        Number of epochs, and the one with the lowest validation loss, from 1.
    history : list of dict
        Each `Epoch` as a dict.
    images_run : int
        Forward passes of an image through the tuned part: initialisation, training, validation.
    scores : dict
        Further metrics of the test images, as in a `HeadResult`.
    seconds : float
        Time of the whole call.
    head : FittedHead
        The classifier, as a head on the tuned backbone's embeddings.
    predictions : HeldOutPredictions, or None
        For the test images, by row of the cache. Without a cache the rows are the positions of
        the images in the order of their paths. None if there are no test images.
    validated : dict of int to bool
        Whether each validation image was predicted correctly, by row as in `predictions`.
    notices : list of str
        Sentences for the user.
    """

    strategy: str
    task: str
    backbone: str
    tune: str
    lora: int | None
    classifier: str
    classes: list[str]
    n_train: int
    n_validation: int
    n_test: int
    accuracy: float | None
    accuracy_ci: tuple[float, float] | None
    validation: float
    epochs: int
    best_epoch: int
    history: list[dict[str, Any]]
    images_run: int
    scores: dict[str, Any]
    seconds: float
    head: FittedHead
    predictions: HeldOutPredictions | None
    validated: dict[int, bool]
    notices: list[str]

    @property
    def record(self) -> "FineTuneResult":
        """The result itself, under its earlier name."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Convert to a flat dict for JSON, without head, predictions and notices.

        It has ``lora`` only if adapters were trained.

        Returns
        -------
        dict of str to object
            The attributes by name.
        """
        names = [field.name for field in fields(self) if field.name not in NOT_IN_DICT]
        values = {name: getattr(self, name) for name in names}
        values |= values.pop("scores")
        if self.lora is None:
            del values["lora"]  # records without adapters are as they were before there were any
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


Result = TypeVar("Result", FineTuneResult, FineTuneTargetResult)


def finetune(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    labels: TargetsLike = None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    preprocess: str | Mapping[str, Any] | None = None,
    cache: CacheOrPath | None = None,
    tune: str = "all",
    lora: int | None = None,
    classifier: str | None = None,
    init_head: str | os.PathLike[str] | AnyHead | None = None,
    epochs: int = TrainConfig.epochs,
    batch_size: int = TrainConfig.batch_size,
    learning_rate: float | None = None,
    augment: str = TrainConfig.augment,
    mixup: float = TrainConfig.mixup,
    patience: int = TrainConfig.patience,
    batch_norm: str | None = None,
    class_weight: str | None = TrainConfig.class_weight,
    device: str = "auto",
    column: str = "label",
    labels_level: int | None = None,
    kind: str | None = None,
    columns: WordsLike = None,
    order: WordsLike = None,
    test_size: float = 0.2,
    seed: int = TrainConfig.seed,
    max_seconds: float | None = None,
    say: Say = ignore,
    report: ProgressCallback = ignore,
) -> FineTuneResult | FineTuneTargetResult:
    """Tune a backbone to labelled images, save it with its classifier, and evaluate both.

    A call that was interrupted resumes after its last epoch when it is repeated. Until it is done,
    the checkpoint is next to the output as ``OUTPUT.part``.

    Parameters
    ----------
    images : path or URL
        The image folder, or any other source of images that `featurize.run` takes.
    output : path
        A safetensors file, which is a head (`predict`, `evaluate`) and a backbone (`featurize`).
    labels : LabelTable, TargetTable or path of a CSV, optional
        By default the labels that came with the images; where there are none, the names of the
        folders.
    backbone, weights, preprocess : optional
        As in `featurize.load_backbone`. The defaults are those of the cache, or ``resnet50``.
    cache : path or FeatureCache, optional
        Of the same images. The initial classifier is trained on its last layer. If it has the
        activations that enter the tuned part (``PREVIOUS:none``), the frozen part is not run.
    tune : str
        ``all``, ``last`` (the deepest stage), ``last-N`` (the last N blocks or stages), or a layer.
    classifier : {"linear", "mlp"}, optional
        Linear by default. If it is given and `tune` is ``all`` without `lora`, the strategy is
        ``retrain``.
    lora, init_head, device
        As in `FineTuneClassifier`.
    epochs, batch_size, learning_rate, augment, mixup, patience, batch_norm, class_weight
        See `classify.finetuning.config.TrainConfig`.
    column, labels_level, kind, columns, order, test_size, seed
        As in `fit`: the same images are held out. Class weights are for classes alone; mixup is
        for classes and for several labels.
    max_seconds : float, optional
        How long the call may take, with testing and saving. No epoch begins that does not fit.
    say : callable
        Called with sentences for the user.
    report : callable
        Called with a `TrainProgress` often.

    Returns
    -------
    FineTuneResult or FineTuneTargetResult
        The tuned network as a head, and how it went. The second for several labels, numbers and
        grades.

    Raises
    ------
    ClassifyError, FeaturizeError
        If an option, the images, the labels, the cache or the output is refused, or training
        diverges.
        `featurize.errors.RunInterruptedError` if not even one epoch fits into `max_seconds`.
    FileNotFoundError
        If the label table, the cache or the head to start from does not exist.
    """
    started = time.monotonic()
    if not is_main_process():
        say, report = ignore, ignore  # the main process reports for all
    checkpoint = _check_arguments(output, test_size)
    opened = None if cache is None else open_cache(cache)
    source_images = SourceImages(images, opened)
    if opened is not None and backbone is None:
        extractor = opened.extractor
        backbone, preprocess = extractor.backbone, preprocess or extractor.preprocess.to_dict()
        weights = weights or extractor.environment.get("weights_file") or extractor.weights
    spec = TaskSpec(labels, column, labels_level, test_size, seed, kind, columns, order)
    labelled = split_labelled_images(source_images, spec, opened)
    options: dict[str, Any] = {
        "backbone": backbone or "resnet50",
        "root": images,
        "weights": weights,
        "preprocess": preprocess,
        "tune": tune,
        "lora": lora,
        "classifier": classifier or "linear",
        "init_head": init_head,
        "cache": opened,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "augment": augment,
        "mixup": mixup,
        "patience": patience,
        "batch_norm": batch_norm,
        "class_weight": class_weight,
        "device": device,
        "seed": seed,
    }
    task, dev = labelled.task, labelled.dev
    fit_options: dict[str, Any] = {
        "groups": task.units[dev],
        "validation": task.split[dev] == VAL if (task.split == VAL).any() else None,
        "images": source_images,
        "checkpoint": checkpoint,
        "deadline": TimeLimit.of(max_seconds, started),
        "n_test": len(labelled.test),
        "say": say,
        "report": report,
    }
    trains_everything = tune == "all" and lora is None
    is_retrained = trains_everything and (classifier is not None or weights == "none")
    strategy = "retrain" if is_retrained else "finetune"
    paths = labelled.paths[dev]
    if isinstance(task, TargetTask):
        tuned = ESTIMATORS[task.kind](**options)
        y = tuned.decode_values(task.values[dev], task.names)
        tuned.fit(paths, y, names=task.names, **fit_options)
        found = evaluate_tuned_targets(tuned, source_images, labelled, task, strategy, started)
        return _save(found, tuned.network_, output, checkpoint)
    model = FineTuneClassifier(**options)
    model.fit(paths, np.array(task.classes, object)[task.y[dev]], **fit_options)
    result = _test_model(model, source_images, labelled, task, strategy, started)
    return _save(result, model.network_, output, checkpoint)


def _save(
    result: Result,
    network: Mapping[str, Tensor],
    output: str | os.PathLike[str],
    checkpoint: Path,
) -> Result:
    """Save the head with its record and its network; the checkpoint has served."""
    head = replace(result.head, task=result.task, record=result.to_dict())
    if is_main_process():
        save_head(head, output, {key: tensor.numpy() for key, tensor in network.items()})
        with suppress(FileNotFoundError):
            checkpoint.unlink()
    return replace(result, head=replace(head, network=Path(output).absolute()))


def _check_arguments(output: str | os.PathLike[str], test_size: float) -> Path:
    """Refuse what cannot be, before any work; return the path of the checkpoint."""
    check_head_file(output)
    checkpoint = check_checkpoint_path(f"{output}.part")
    check_test_size(test_size)
    return checkpoint


def _test_model(
    model: FineTuneClassifier,
    images: SourceImages,
    labelled: LabelledImages,
    task: Task,
    strategy: str,
    started: float,
) -> FineTuneResult:
    """Predict the test images, and collect what is reported."""
    tested = images.locate(labelled.paths[labelled.test].tolist())
    decoded = DecodedImages(tested, model.head_.source.preprocess)
    predictions = _predict_test_images(model, decoded, labelled, task)
    failures = model.failures_ | decoded.failures
    best = min(model.history_, key=lambda epoch: epoch.validation_loss)
    scores = _compute_scores(predictions, task, model.seed)
    return FineTuneResult(
        strategy=strategy,
        task=labelled.task_name,
        backbone=model.head_.source.backbone,
        tune=model.tune,
        lora=model.lora,
        classifier=model.classifier,
        classes=list(model.head_.classes),
        n_train=model.n_train_,
        n_validation=len(labelled.dev) - len(model.failures_) - model.n_train_,
        n_test=0 if predictions is None else len(predictions),
        accuracy=scores.pop("accuracy", None),
        accuracy_ci=scores.pop("accuracy_ci", None),
        validation=float(best.validation or 0.0),
        epochs=len(model.history_),
        best_epoch=best.number,
        history=[epoch.to_dict() for epoch in model.history_],
        images_run=model.images_run_,
        scores=scores,
        seconds=round(time.monotonic() - started, 3),
        head=model.head_,
        predictions=predictions,
        validated={
            int(labelled.rows[i]): model.validated_[labelled.paths[i]]
            for i in labelled.dev
            if labelled.paths[i] in model.validated_
        },
        notices=[
            *task.notices,
            *labelled.leaks,
            *(f"{path} is left out: {reason}" for path, reason in failures.items()),
        ],
    )


def _predict_test_images(
    model: FineTuneClassifier, decoded: DecodedImages, labelled: LabelledImages, task: Task
) -> HeldOutPredictions | None:
    """Predict the test images that can be read; None if there are none."""
    readable = np.flatnonzero(decoded.is_readable)
    if not len(readable):
        return None
    tested = labelled.test[readable]
    return summarise_decision_values(
        labelled.rows[tested],
        task.y[tested],
        model.head_.scores(model.embed(decoded))[readable],
        np.array([task.classes.index(name) for name in model.head_.classes]),
        temperature=model.head_.temperature,
        probabilistic=True,
    )


def _compute_scores(
    predictions: HeldOutPredictions | None, task: Task, seed: int
) -> dict[str, Any]:
    if predictions is None:
        return {}
    units = task.units_for(predictions.rows)
    return asdict(compute_metrics(predictions, len(task.classes), units, seed=seed))

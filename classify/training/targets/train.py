"""Train one head on several labels, numbers or grades."""

from collections.abc import Callable

from classify.heads.targets.registry import (
    KERNEL_RIDGE,
    KNN,
    LINEAR_SVM,
    LOGISTIC,
    ORDINAL,
    RIDGE,
    TargetHeadSpec,
)
from classify.training.targets.estimator_heads import train_estimator, train_grades_as_classes
from classify.training.targets.kernel_heads import train_kernel_ridge, train_neighbours
from classify.training.targets.linear_heads import train_labels, train_ordinal, train_ridge
from classify.training.targets.selection import (
    TrainedTargets,
)
from classify.training.targets.target_set import TargetSet


def train_targets(spec: TargetHeadSpec, target_set: TargetSet) -> TrainedTargets:
    """Select a param by held-out loss, then train on all final rows with it.

    Parameters
    ----------
    spec : TargetHeadSpec
        The kind of head.
    target_set : TargetSet

    Returns
    -------
    TrainedTargets

    Raises
    ------
    CallError
        If the head cannot be trained on so many rows, columns or labels.
    TooFewImagesError
        If too few rows have all labels.
    """
    target_set.check_memory(spec)
    if spec.predicts_classes:
        return train_grades_as_classes(spec, target_set)
    if spec.estimator_class is not None:
        return train_estimator(spec, target_set)
    trainers: dict[str, Callable[[TargetHeadSpec, TargetSet], TrainedTargets]] = {
        RIDGE: train_ridge,
        KERNEL_RIDGE: train_kernel_ridge,
        KNN: train_neighbours,
        LOGISTIC: train_labels,
        LINEAR_SVM: train_labels,
        ORDINAL: train_ordinal,
    }
    return trainers[spec.name](spec, target_set)

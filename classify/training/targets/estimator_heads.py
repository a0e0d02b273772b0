"""Heads that other code trains: estimators of scikit-learn, and classes in place of grades."""

from functools import partial

import numpy as np
from sklearn.base import is_classifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from classify.errors import TooFewImagesError
from classify.evaluation.predictions import renumber
from classify.heads.registry import get_head_spec
from classify.heads.targets.models import EstimatorModel
from classify.heads.targets.registry import (
    TargetHeadSpec,
)
from classify.kinds import MULTI
from classify.solvers.selection import PathPoint
from classify.solvers.sklearn_heads import fit_and_scale, fit_converged
from classify.training.targets.selection import (
    TrainedTargets,
    check_size,
    select_by_loss,
)
from classify.training.targets.target_set import TargetSet
from classify.training.train import train
from classify.training.training_set import TrainingSet


def train_grades_as_classes(spec: TargetHeadSpec, target_set: TargetSet) -> TrainedTargets:
    """Train a head of classes, for which grades have no order.

    Parameters
    ----------
    spec : TargetHeadSpec
    target_set : TargetSet

    Returns
    -------
    TrainedTargets
    """
    head, y = get_head_spec(spec.name), target_set.values[:, 0].astype(np.intp)
    grades = np.unique(y[target_set.final_indices])
    training_set = TrainingSet.prepare(
        head,
        target_set.rows,
        renumber(y, grades),
        target_set.fold_plan,
        n_classes=len(grades),
        cache=target_set.cache,
        layers=target_set.layers,
        save_stats=target_set.save_stats,
        find_neighbours=target_set.find_neighbours,
    )
    result = train(head, training_set)
    outputs, loss = None, np.inf
    if result.selected is not None:
        outputs, loss = result.selected.decision_values, result.selected.loss
    return TrainedTargets(
        result.scorer,
        head.as_params(result.param) | result.extra_params,
        result.held_out,
        outputs,
        loss,
        grades=grades,
        notices=result.notices,
    )


def train_estimator(spec: TargetHeadSpec, target_set: TargetSet) -> TrainedTargets:
    """Train an estimator of scikit-learn, without a param to select.

    Parameters
    ----------
    spec : TargetHeadSpec
    target_set : TargetSet

    Returns
    -------
    TrainedTargets
    """
    check_size(spec, target_set.rows)
    X, values, fold_plan = target_set.rows.to_array(), target_set.values, target_set.fold_plan
    known = ~np.isnan(values).any(axis=1)
    notices = []
    if not known.all():
        notices.append(f"trained on the {known.sum():,} images of which every label is known")
    fit = partial(_fit_estimator, spec, target_set, X)
    outputs, loss = None, np.inf
    if fold_plan.val_indices:
        blocks, converged = [], True
        for train_rows, held_out in fold_plan.folds:
            model, fold_converged = fit(train_rows[known[train_rows]])
            blocks.append(model.decision_values(X[held_out]))
            converged = converged and fold_converged
        point = PathPoint(None, np.concatenate(blocks), converged)
        selected = select_by_loss(target_set, spec, [point])
        outputs, loss = selected.decision_values, selected.loss
    model, converged = fit(fold_plan.final_indices[known[fold_plan.final_indices]])
    notices += [] if converged else ["the fit did not converge"]
    return TrainedTargets(model, {}, fold_plan.held_out, outputs, loss, notices=notices)


def _fit_estimator(
    spec: TargetHeadSpec, target_set: TargetSet, X: np.ndarray, chosen: np.ndarray
) -> tuple[EstimatorModel, bool]:
    values = target_set.values[chosen]
    if target_set.kind == MULTI and not ((values.max(axis=0) > values.min(axis=0)).all()):
        raise TooFewImagesError(
            f"{spec.name} needs images with and without every label in each fold; leave out the "
            "rarest labels, or use ridge"
        )
    scaler, Z = fit_and_scale(X[chosen], global_scale=target_set.rows.is_root_l2)
    estimator = spec.make_estimator()
    if is_classifier(estimator) and not get_tags(estimator).classifier_tags.multi_label:
        estimator = OneVsRestClassifier(estimator)
    elif not is_classifier(estimator) and values.shape[1] > 1:
        estimator = MultiOutputRegressor(estimator)
    y = values.astype(np.intp) if is_classifier(estimator) else values
    converged = fit_converged(estimator, Z, y[:, 0] if target_set.kind != MULTI else y)
    pipeline = Pipeline([("scale", scaler), ("predict", estimator)])
    return EstimatorModel(pipeline, X.shape[1], values.shape[1]), converged

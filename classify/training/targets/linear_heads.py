"""Linear heads: ridge of any targets, logistic regression and SVM of labels, ordinal of grades."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from classify.data.features import FeatureRows
from classify.heads.models import LinearModel
from classify.heads.targets.registry import (
    LINEAR_SVM,
    LOGISTIC,
    TargetHeadSpec,
)
from classify.solvers import lbfgs
from classify.solvers.gram import PrincipalBasis
from classify.solvers.lbfgs import Problem
from classify.solvers.selection import PathPoint
from classify.training.targets.ordinal import SEARCH_TOL, fit_ordinal, grade_probabilities
from classify.training.targets.ridge import (
    RidgePath,
    compute_held_out,
    merge_outputs,
)
from classify.training.targets.selection import (
    TrainedTargets,
    check_size,
    note_edge,
    note_selected,
    pick_middle,
    select_by_loss,
)
from classify.training.targets.target_set import TargetSet
from classify.training.training_set import fits_in_memory

FINAL_TOLS = {LOGISTIC: 1e-7, LINEAR_SVM: lbfgs.FINAL_TOL}
"""Largest entry of the gradient: some labels are nearly separable, and far from their minimum."""


def train_ridge(spec: TargetHeadSpec, target_set: TargetSet) -> TrainedTargets:
    """Train ridge regressions of all targets, with one alpha.

    Parameters
    ----------
    spec : TargetHeadSpec
    target_set : TargetSet

    Returns
    -------
    TrainedTargets
    """
    fold_plan, targets = target_set.fold_plan, target_set.targets
    paths: list[RidgePath] = []
    columns = _group_by_known_rows(targets)
    for chosen in columns:
        known = np.flatnonzero(~np.isnan(targets[:, chosen[0]]))
        if len(known) == len(targets):
            bases: Sequence[PrincipalBasis] = target_set.compute_bases()
            paths.append(RidgePath(target_set.rows, targets[:, chosen], fold_plan, bases))
            continue
        part_plan, rows = fold_plan.subset(known), target_set.rows.subset(known)
        part_set = TargetSet(target_set.kind, rows, targets[known], None, part_plan)
        paths.append(
            RidgePath(rows, targets[np.ix_(known, chosen)], part_plan, part_set.compute_bases())
        )
    alpha, loss, outputs, notices = pick_middle(spec.grid), np.inf, None, list[str]()
    if fold_plan.val_indices:
        errors = np.sum([path.compute_errors(spec.grid) for path in paths], axis=0)
        best = int(np.argmin(errors))
        alpha, loss = spec.grid[best], float(errors[best]) / max(len(fold_plan.held_out), 1)
        notices = note_edge(spec, best)
        folds = [
            merge_outputs(models, columns)
            for models in zip(*(path.fit_folds(alpha) for path in paths), strict=True)
        ]
        outputs = compute_held_out(folds, target_set.rows, fold_plan)
    model = merge_outputs([path.fit_final(alpha) for path in paths], columns)
    return TrainedTargets(
        model, {"alpha": alpha}, fold_plan.held_out, outputs, loss, notices=notices
    )


def _group_by_known_rows(targets: np.ndarray) -> list[np.ndarray]:
    """Group the columns of targets that are known for the same rows."""
    missing = np.isnan(targets)
    if not missing.any():
        return [np.arange(targets.shape[1])]
    _, group = np.unique(missing, axis=1, return_inverse=True)
    return [np.flatnonzero(group.ravel() == g) for g in range(group.max() + 1)]


def train_labels(spec: TargetHeadSpec, target_set: TargetSet) -> TrainedTargets:
    """Train a logistic regression, or a linear SVM, of every label, with one C for all.

    Parameters
    ----------
    spec : TargetHeadSpec
    target_set : TargetSet

    Returns
    -------
    TrainedTargets
    """
    loss = "label-log" if spec.name == LOGISTIC else "label-hinge"
    rows, fold_plan, values = target_set.rows, target_set.fold_plan, target_set.values
    if fits_in_memory(rows.nbytes):
        rows = FeatureRows.from_array(rows.to_array())  # read many times, so copied once
    bases, n_labels = target_set.compute_bases(), values.shape[1]

    def make_problem(train: np.ndarray, held_out: np.ndarray, basis: PrincipalBasis) -> Problem:
        weights = np.zeros(len(rows))
        weights[train] = 1
        return Problem(rows, weights, basis, rows.subset(held_out))

    C, held_out_loss, outputs, notices = pick_middle(spec.grid), np.inf, None, list[str]()
    if fold_plan.val_indices:
        problems = [
            make_problem(train, held_out, basis)
            for (train, held_out), basis in zip(fold_plan.folds, bases[:-1], strict=True)
        ]
        points = lbfgs.cross_val_path(loss, spec.grid, problems, values, n_labels)
        selected = select_by_loss(target_set, spec, points)
        C, held_out_loss = float(selected.param or 1), selected.loss
        outputs, notices = selected.decision_values, note_selected(spec, selected)
    final = make_problem(fold_plan.final_indices, np.zeros(0, np.intp), bases[-1])
    model, converged = lbfgs.fit_linear(loss, C, final, values, n_labels, tol=FINAL_TOLS[spec.name])
    notices += [] if converged else [f"the fit with C = {C:g} did not converge"]
    return TrainedTargets(
        model, {"C": C}, fold_plan.held_out, outputs, held_out_loss, notices=notices
    )


def train_ordinal(spec: TargetHeadSpec, target_set: TargetSet) -> TrainedTargets:
    """Train an ordinal logistic regression of grades.

    Parameters
    ----------
    spec : TargetHeadSpec
    target_set : TargetSet

    Returns
    -------
    TrainedTargets
    """
    rows, fold_plan = target_set.rows, target_set.fold_plan
    check_size(spec, rows)
    n_grades, bases = int(target_set.n_grades or 2), target_set.compute_bases()
    X, y = rows.to_array(), target_set.values[:, 0].astype(np.intp)

    def project(positions: np.ndarray, basis: PrincipalBasis) -> np.ndarray:
        return np.asarray(((X[positions] - basis.mean) / basis.scale) @ basis.vectors)

    def iter_points() -> Iterator[PathPoint]:
        folds = [
            (project(train, basis), y[train], project(held_out, basis))
            for (train, held_out), basis in zip(fold_plan.folds, bases[:-1], strict=True)
        ]
        starts: list[Any] = [None] * len(folds)
        for C in spec.grid:
            blocks = []
            for i, (Z, targets, Z_held_out) in enumerate(folds):
                starts[i] = fit_ordinal(Z, targets, n_grades, C, starts[i], tol=SEARCH_TOL)
                scores = Z_held_out @ starts[i].coef
                proba = grade_probabilities(scores, starts[i].cutpoints)
                blocks.append(np.log(np.maximum(proba, 1e-30)).astype(np.float32))
            yield PathPoint(C, np.concatenate(blocks), all(fit.converged for fit in starts))

    C, loss, outputs, notices = pick_middle(spec.grid), np.inf, None, list[str]()
    if fold_plan.val_indices:
        selected = select_by_loss(target_set, spec, iter_points())
        C, loss = float(selected.param or 1), selected.loss
        outputs, notices = selected.decision_values, note_selected(spec, selected)
    final, basis = fold_plan.final_indices, bases[-1]
    fitted = fit_ordinal(project(final, basis), y[final], n_grades, C)
    notices += [] if fitted.converged else [f"the fit with C = {C:g} did not converge"]
    coef = (basis.vectors @ fitted.coef)[None]
    model = LinearModel(basis.mean, basis.scale, coef, np.zeros(1))
    return TrainedTargets(
        model, {"C": C}, fold_plan.held_out, outputs, loss, fitted.cutpoints, notices=notices
    )

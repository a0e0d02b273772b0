"""Heads that compare images: kernel ridge and nearest neighbours."""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline

from classify.data.features import FeatureRows
from classify.heads.targets.models import EstimatorModel
from classify.heads.targets.registry import (
    GAMMA_FACTORS,
    TargetHeadSpec,
)
from classify.solvers import rbf_svm
from classify.solvers.gram import SCALE_NONE, GramStats, PrincipalBasis
from classify.solvers.selection import PathPoint
from classify.solvers.sklearn_heads import fit_and_scale
from classify.training.targets.ridge import (
    RidgeFamily,
    TargetSums,
    weigh_targets,
)
from classify.training.targets.selection import (
    TrainedTargets,
    check_size,
    pick_middle,
    select_by_loss,
)
from classify.training.targets.target_set import TargetSet
from classify.training.training_set import fits_in_memory


def train_kernel_ridge(spec: TargetHeadSpec, target_set: TargetSet) -> TrainedTargets:
    """Train ridge regressions on a Nystroem map; exact where all rows are landmarks.

    Parameters
    ----------
    spec : TargetHeadSpec
    target_set : TargetSet

    Returns
    -------
    TrainedTargets
    """
    fold_plan, targets = target_set.fold_plan, target_set.filled_targets
    weight, final = weigh_targets(targets), fold_plan.final_indices
    alpha, gamma_factor = pick_middle(spec.grid), pick_middle(GAMMA_FACTORS)
    loss, outputs = np.inf, None

    def fit_family(train: np.ndarray, factor: float) -> tuple[Pipeline, RidgeFamily]:
        kernel = rbf_svm.fit_rbf_map(target_set.rows.subset(train), factor)
        mapped = _map_rows(target_set.rows.subset(train), kernel)
        basis = PrincipalBasis.from_gram(*GramStats.from_rows(mapped).compute_centred(), SCALE_NONE)
        sums = TargetSums.from_rows(mapped, targets[train]).sum_without()
        return kernel, RidgeFamily.from_sums(basis, sums)

    if fold_plan.val_indices:
        errors = np.zeros((len(GAMMA_FACTORS), len(spec.grid)))
        families: dict[int, list[tuple[Pipeline, RidgeFamily]]] = {}
        for g, factor in enumerate(GAMMA_FACTORS):
            families[g] = [fit_family(train, factor) for train, _ in fold_plan.folds]
            for (kernel, family), held_out in zip(families[g], fold_plan.val_indices, strict=True):
                mapped = _map_rows(target_set.rows.subset(held_out), kernel)
                errors[g] += family.compute_errors(mapped, targets[held_out], spec.grid, weight)
            if errors[g].min() > errors[:g].min(initial=np.inf):
                del families[g]  # a map of each fold is large
        best_gamma, best_alpha = divmod(int(np.argmin(errors)), len(spec.grid))
        alpha, gamma_factor = spec.grid[best_alpha], GAMMA_FACTORS[best_gamma]
        loss = float(errors.min()) / len(fold_plan.held_out)
        outputs = np.concatenate(
            [
                family.fit(alpha).decision_values(
                    _map_rows(target_set.rows.subset(held_out), kernel).to_array()
                )
                for (kernel, family), held_out in zip(
                    families[best_gamma], fold_plan.val_indices, strict=True
                )
            ]
        )
    kernel, family = fit_family(final, gamma_factor)
    linear, ridge = family.fit(alpha), Ridge(alpha=alpha)
    ridge.coef_ = linear.coef / linear.scale
    ridge.intercept_ = linear.intercept - ridge.coef_ @ linear.mean
    ridge.n_features_in_ = linear.dim
    estimator = Pipeline([*kernel.steps, ("regress", ridge)])
    model = EstimatorModel(estimator, target_set.rows.dim, targets.shape[1])
    notices = []
    if len(final) > rbf_svm.MAX_LANDMARKS:
        notices.append(
            f"not all pairs of {len(final):,} images are compared: those with "
            f"{rbf_svm.MAX_LANDMARKS:,} of them take their place"
        )
    settings = {"alpha": alpha, "gamma": float(kernel[-1].gamma)}
    return TrainedTargets(model, settings, fold_plan.held_out, outputs, loss, notices=notices)


def _map_rows(rows: FeatureRows, kernel: Pipeline) -> FeatureRows:
    mapped: FeatureRows = rbf_svm.KernelRows(rows.parts, rows.rows, rows.is_root_l2, kernel)
    return FeatureRows.from_array(mapped.to_array()) if fits_in_memory(mapped.nbytes) else mapped


def train_neighbours(spec: TargetHeadSpec, target_set: TargetSet) -> TrainedTargets:
    """Train the mean of the nearest neighbours.

    Parameters
    ----------
    spec : TargetHeadSpec
    target_set : TargetSet

    Returns
    -------
    TrainedTargets
    """
    check_size(spec, target_set.rows)
    fold_plan, targets = target_set.fold_plan, target_set.filled_targets.astype(np.float32)
    k, loss, outputs, notices = pick_middle(spec.grid), np.inf, None, list[str]()
    if fold_plan.val_indices:
        nearest = target_set.find_neighbours(target_set.rows, fold_plan)
        selected = select_by_loss(
            target_set, spec, (PathPoint(k, _average(targets, nearest, k)) for k in spec.grid)
        )
        k, loss, outputs = float(selected.param or 1), selected.loss, selected.decision_values
    final = fold_plan.final_indices
    scaler, Z = fit_and_scale(
        target_set.rows.subset(final).to_array(), global_scale=target_set.rows.is_root_l2
    )
    regressor = KNeighborsRegressor(n_neighbors=min(int(k), len(Z)), algorithm="brute")
    estimator = Pipeline([("scale", scaler), ("regress", regressor.fit(Z, targets[final]))])
    model = EstimatorModel(estimator, target_set.rows.dim, targets.shape[1])
    settings = {"n_neighbors": k}
    return TrainedTargets(model, settings, fold_plan.held_out, outputs, loss, notices=notices)


def _average(targets: np.ndarray, nearest: Sequence[np.ndarray], k: float) -> np.ndarray:
    """Average the targets of the k nearest rows: float32 (m, T)."""
    blocks = []
    for rows in nearest:
        total = np.zeros((len(rows), targets.shape[1]), np.float32)
        count = min(int(k), rows.shape[1])
        for column in range(count):
            total += targets[rows[:, column]]
        blocks.append(total / count)
    return np.concatenate(blocks)

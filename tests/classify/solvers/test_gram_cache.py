"""Bases of folds: the same however the folds are described."""

import numpy as np

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan, plan_folds
from classify.data.preparation import ROOT_L2
from classify.solvers.gram_cache import compute_fold_bases


def test_given_folds_scale_root_l2_rows_as_drawn_folds_do():
    rng = np.random.default_rng(0)
    X = np.abs(rng.normal(size=(200, 6)) * np.arange(1, 7)).astype(np.float32)
    rows = FeatureRows.from_array(X).with_preparation(ROOT_L2)
    drawn = plan_folds(rng.integers(0, 3, 200), 0)
    given = FoldPlan(drawn.part, drawn.val_indices, train_indices=[a for a, _ in drawn.folds])
    for one, other in zip(
        compute_fold_bases(None, (), rows, drawn),
        compute_fold_bases(None, (), rows, given),
        strict=True,
    ):
        assert np.unique(other.scale).size == 1
        assert np.allclose(one.scale, other.scale)
        assert np.allclose(one.values, other.values)

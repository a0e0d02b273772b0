"""Splits and folds that keep the distribution of every kind of label."""

import numpy as np
import pytest

from classify.data.targets.stratify import (
    draw_stratified_parts,
    hold_out_targets,
    plan_target_folds,
)


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    return (rng.random((1000, 6)) < [0.5, 0.2, 0.05, 0.02, 0.01, 0.4]).astype(float)


def test_rare_labels_are_in_every_part(labels):
    part = draw_stratified_parts(labels == 1, np.full(5, 0.2), [0], np.arange(1000))
    counts = np.array([(labels[part == i] == 1).sum(axis=0) for i in range(5)])
    assert (np.abs(counts - labels.sum(axis=0) / 5) <= 2).all()
    assert (np.abs(np.bincount(part) - 200) <= 4).all()


def test_units_stay_whole(labels):
    unit = np.arange(1000) // 4
    part = draw_stratified_parts(labels == 1, np.array([0.8, 0.2]), [0], unit)
    assert all(len(set(part[unit == u])) == 1 for u in range(250))
    share = labels[part == 1].sum(axis=0) / labels.sum(axis=0)
    assert (np.abs(share - 0.2) < 0.12).all()


def test_numbers_are_held_out_from_the_whole_range():
    numbers = np.random.default_rng(1).lognormal(size=(500, 1))
    test = hold_out_targets("number", numbers, 0.2, 0, np.arange(500))
    assert test.sum() == 100
    inside, outside = np.quantile(numbers[test], [0.1, 0.9]), np.quantile(numbers, [0.1, 0.9])
    np.testing.assert_allclose(inside, outside, rtol=0.15)


@pytest.mark.parametrize("kind", ["multi", "number", "grade"])
def test_folds_hold_out_every_image_once(labels, kind):
    values = labels if kind == "multi" else labels.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(2)
    contents = rng.integers(0, 256, (1000, 32)).astype(np.uint8)
    plan = plan_target_folds(kind, values, contents, 0, np.arange(1000), np.zeros(1000, bool))
    assert len(plan.val_indices) >= 2
    assert np.array_equal(np.sort(plan.held_out), np.arange(1000))


def test_the_users_validation_images_are_the_only_fold(labels):
    val = np.arange(1000) < 100
    contents = np.zeros((1000, 32), np.uint8)
    plan = plan_target_folds("multi", labels, contents, 0, np.arange(1000), val)
    assert plan.has_val_split
    assert np.array_equal(plan.held_out, np.arange(100))

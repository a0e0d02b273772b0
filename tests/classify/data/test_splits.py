"""Held-out images and folds: stratified, whole groups, reproducible."""

import numpy as np
import pytest

from classify.data.folds import iter_folds
from classify.data.splits import hold_out
from classify.data.units import count_units


def test_holds_out_the_same_share_of_every_class(digits):
    _, y = digits
    test = hold_out(y, 0.2, seed=0)
    assert test.sum() == round(0.2 * len(y))
    assert np.abs(np.bincount(y[test]) - 0.2 * np.bincount(y)).max() < 1
    assert (test == hold_out(y, 0.2, seed=0)).all()
    assert (test != hold_out(y, 0.2, seed=1)).any()


def test_never_holds_out_all_of_a_class():
    y = np.array([0, 1, 1, 2, 2, 2])
    test = hold_out(y, 0.9, seed=0)
    assert set(y[~test]) == {0, 1, 2}
    assert not test[0]


def test_many_small_classes_still_give_a_fifth():
    y = np.repeat(np.arange(50), 2)
    test = hold_out(y, 0.2, seed=0)
    assert test.sum() == 20
    assert np.bincount(y[test]).max() == 1


def test_nothing_is_held_out_of_a_share_of_zero():
    assert not hold_out(np.array([0, 0, 1, 1]), 0.0, seed=0).any()
    assert not hold_out(np.array([0, 0, 1, 1]), 0.0, 0, np.arange(4)).any()


def test_groups_are_held_out_whole_and_about_a_share_of_each_class():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 2000)
    y = rng.integers(0, 4, 2000)
    test = hold_out(y, 0.2, 3, groups)
    assert not set(groups[test]) & set(groups[~test])
    shares = np.bincount(y[test]) / np.bincount(y)
    assert (np.abs(shares - 0.2) < 0.05).all()


def test_the_smallest_excess_is_held_out_where_every_group_is_too_large():
    y, groups = np.tile([0, 1], 6), np.repeat([0, 1], 6)
    assert hold_out(y, 0.2, 0, groups).sum() == 6


def test_a_class_in_one_group_is_never_held_out():
    y, groups = np.repeat([0, 1, 2], 10), np.repeat([0, 1, 2], 10)
    assert not hold_out(y, 0.3, 0, groups).any()


def test_folds_are_five_stratified_and_cover_everything_once(digits):
    _, y = digits
    found = list(iter_folds(y, 0))
    assert len(found) == 5
    assert sorted(np.concatenate([held for _, held in found])) == list(range(len(y)))
    for train, held in found:
        assert not set(train) & set(held)
        assert np.bincount(y[held]).min() > 0


@pytest.mark.parametrize(("smallest", "expected"), [(2, 2), (3, 3), (9, 5)])
def test_fewer_folds_for_a_smaller_class(smallest, expected):
    assert len(list(iter_folds(np.repeat([0, 1], [20, smallest]), 0))) == expected


def test_a_class_of_one_image_stays_in_training():
    y = np.array([0] * 6 + [1] * 6 + [2])
    found = list(iter_folds(y, 0))
    assert all(12 in train for train, _ in found)
    assert not any(12 in held for _, held in found)


def test_no_folds_where_no_class_can_be_validated():
    assert list(iter_folds(np.array([0, 1, 2]), 0)) == []
    assert list(iter_folds(np.repeat([0, 1], 5), 0, np.repeat([0, 1], 5))) == []


def test_folds_never_tear_a_group():
    rng = np.random.default_rng(1)
    y, groups = rng.integers(0, 3, 300), rng.integers(0, 20, 300)
    found = list(iter_folds(y, 0, groups))
    assert len(found) == 5
    for train, held in found:
        assert not set(groups[train]) & set(groups[held])
    assert sorted(np.concatenate([held for _, held in found])) == list(range(300))


def test_an_image_never_validated_is_not_trained_on_while_its_group_is():
    y = np.array([0, 1] * 6 + [2])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0])
    for train, held in iter_folds(y, 0, groups):
        assert (12 in train) != (0 in held)


def test_units_are_images_or_groups():
    y = np.array([0, 0, 0, 1, 1])
    assert count_units(y).tolist() == [3, 2]
    assert count_units(y, np.array([0, 0, 1, 1, 1])).tolist() == [2, 1]

"""The heads, and how C is chosen."""

import warnings

import numpy as np
import pytest
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from classify import heads
from classify.errors import UnknownHead
from classify.heads import HEADS, Head, choose, fit_quietly, named
from classify.splits import folds


def test_heads_are_found_by_name_or_nearly():
    assert {"softmax", "linear-svm"} <= set(HEADS)
    assert all(named(name).name == name for name in HEADS)
    with pytest.raises(
        UnknownHead, match=r"no head 'sofmax', only softmax.*did you mean 'softmax'"
    ):
        named("sofmax")
    with pytest.raises(UnknownHead, match=r"only softmax, linear-svm$"):
        named("forest")


@pytest.mark.parametrize("name", sorted(HEADS))
def test_grids_go_from_strong_to_weak_on_a_log_scale(name):
    grid = np.log10(named(name).grid)
    assert np.allclose(np.diff(grid), 1)


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("columns", [16, 64, 200])
def test_every_value_of_the_grid_converges_without_a_warning(digits, name, columns):
    pixels, y = digits
    X = np.tile(pixels, 4)[:, :columns] if columns > 64 else pixels[:, :columns]
    X = X + np.random.default_rng(0).normal(0, 0.05, X.shape).astype(np.float32)
    for C in named(name).grid:
        model = named(name).build(C, X.shape)
        assert fit_quietly(model, X, y)
        assert model["classify"].C == C


def test_choice_is_the_highest_validation_accuracy(digits):
    pixels, y = digits
    softmax = named("softmax")
    parts = list(folds(y, 0))
    choice = choose(softmax, pixels, y, parts)
    scores = []
    for C in softmax.grid:
        right = 0
        for train, held in parts:
            model = softmax.build(C, pixels[train].shape).fit(pixels[train], y[train])
            right += (model.predict(pixels[held]) == y[held]).sum()
        scores.append(right / len(y))
    # Warm starts stop at slightly different points: one image in 600 may flip.
    assert choice.validation == pytest.approx(max(scores), abs=2 / len(y))
    assert scores[softmax.grid.index(choice.C)] >= max(scores) - 2 / len(y)
    assert choice.unconverged == 0


def test_ties_go_to_the_stronger_regularisation():
    X = np.array([[-1.0], [-1.1], [1.0], [1.1]] * 5, np.float32)
    y = np.array([0, 0, 1, 1] * 5)
    choice = choose(named("softmax"), X, y, folds(y, 0))
    assert choice.validation == 1
    assert choice.C == 1e-4


def test_without_folds_the_middle_of_the_grid():
    X, y = np.eye(2, dtype=np.float32), np.array([0, 1])
    choice = choose(named("softmax"), X, y, folds(y, 0))
    assert choice.validation is None
    assert choice.C == 0.1


def test_unconverged_fits_are_counted_not_warned_of(digits, monkeypatch):
    monkeypatch.setitem(heads.MAX_ITER, "lbfgs", 2)
    pixels, y = digits
    choice = choose(named("softmax"), pixels, y, folds(y, 0))
    assert choice.unconverged > 0


def test_other_warnings_are_not_swallowed(digits):
    class Loud(StandardScaler):
        def fit(self, X, y=None, sample_weight=None):
            warnings.warn("look here", UserWarning, stacklevel=2)
            return super().fit(X, y, sample_weight)

    softmax = named("softmax")
    loud = Head("loud", softmax.grid, softmax.classifier)
    pipeline = loud.build(1.0, digits[0].shape)
    pipeline = Pipeline([("scale", Loud()), ("classify", pipeline["classify"])])
    with pytest.warns(UserWarning, match="look here"):
        assert fit_quietly(pipeline, *digits)

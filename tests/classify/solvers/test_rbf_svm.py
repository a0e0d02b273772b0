"""`rbf-svm`: scikit-learn's SVC on all pairs of rows, or similarities to some of them."""

import warnings

import numpy as np
import pytest
import skops.io
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from classify import fit, load_head, save_head
from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan, plan_folds
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE
from classify.heads.models import SklearnModel
from classify.heads.registry import HEADS, HeadSpec
from classify.solvers import rbf_svm
from classify.training.train import train
from classify.training.training_set import TrainingSet

RBF = HEADS["rbf-svm"]


def world(n=240, dim=12, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    X = rng.standard_normal((n, dim)) + 0.7 * rng.standard_normal((classes, dim))[y]
    return X.astype(np.float32), y


def by_hand(C, gamma, X, y, weight=None):
    model = SVC(C=C, gamma=gamma, class_weight=weight, break_ties=True)
    return make_pipeline(StandardScaler(), model).fit(X, y)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_it_is_scikit_learns_svc(classes, weight):
    X, y = world(classes=classes)
    X, y = X[(y != 1) | (np.arange(len(y)) % 3 == 0)], y[(y != 1) | (np.arange(len(y)) % 3 == 0)]
    unseen = world(seed=1)[0]
    for C, times in ((0.3, 1 / 4), (10, 1)):
        found, gamma, fine = rbf_svm.fit_exact_svm(C, times, X.copy(), y, classes, weight)
        plain = by_hand(C, gamma, X, y, weight)
        assert fine
        assert gamma == pytest.approx(times / X.shape[1], rel=1e-6)
        scores, decided = found.decision_values(unseen), plain.decision_function(unseen)
        assert np.allclose(scores[:, 1] - scores[:, 0] if classes == 2 else scores, decided, 1e-5)
        assert (scores.argmax(axis=1) == plain.predict(unseen)).all()
        assert (found.estimator.predict(unseen) == plain.predict(unseen)).all()


def test_held_out_scores_are_those_of_svc_on_each_fold():
    """By way of one matrix of distances, which is shared by all machines of a fold."""
    X, y = world()
    folds = plan_folds(y, 0).folds
    walks = rbf_svm.cross_val_paths(RBF.grid, RBF.gamma_factors, X, y, folds, 4, None)
    assert [len(walk) for walk in walks] == [len(RBF.grid)] * len(RBF.gamma_factors)
    for times, walk in zip(RBF.gamma_factors, walks, strict=True):
        for step in walk[::3]:
            expected = []
            for rows, held in folds:
                gamma = times * rbf_svm.compute_gamma_scale(StandardScaler().fit_transform(X[rows]))
                plain = by_hand(step.param, gamma, X[rows], y[rows])
                expected.append(plain.decision_function(X[held]))
            assert np.allclose(step.decision_values, np.concatenate(expected), atol=2e-3)


def test_the_width_is_what_scikit_learn_calls_scale():
    X, _ = world()
    X[:, 3] = 7
    Z = StandardScaler().fit_transform(X)
    model = SVC().fit(Z, np.arange(len(Z)) % 2)
    assert rbf_svm.compute_gamma_scale(Z) == pytest.approx(model._gamma, rel=1e-5)
    assert rbf_svm.compute_gamma_scale(np.zeros((3, 4))) == 1


def test_width_and_C_are_chosen_together():
    """Rings: no wide kernel tells them apart."""
    rng = np.random.default_rng(0)
    radius, angle = rng.permutation(np.arange(300) % 6), rng.uniform(0, 2 * np.pi, 300)
    X = (radius + 1)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    y = radius % 2
    lesson = TrainingSet(FeatureRows.from_array(X.astype(np.float32)), y, 2, plan_folds(y, 0))
    found = train(RBF, lesson)
    assert found.extra_params["gamma"] > 1.5 * RBF.gamma_factors[0] / 2
    assert found.param in RBF.grid
    model = found.scorer.estimator["classify"]
    assert (model.C, model.gamma) == (found.param, found.extra_params["gamma"])
    wide = HeadSpec(**vars(RBF) | {"gamma_factors": RBF.gamma_factors[:1]})
    assert train(wide, lesson).selected.path[-1][1] > found.selected.path[-1][1]


def test_both_are_told_by_name_and_saved(cache, table, tmp_path):
    head, record = fit(cache, table, "rbf-svm", "fine")
    assert set(record.settings) == {"C", "gamma"}
    save_head(head, tmp_path / "h")
    again = load_head(tmp_path / "h")
    assert again.settings == record.settings
    X = FeatureRows.from_cache(cache, ["fine"], np.arange(600)).to_array()
    assert np.array_equal(again.scores(X), head.scores(X))


def test_a_class_that_a_fold_lacks_can_never_win():
    X, y = world()
    folds = [(np.flatnonzero(y != 2), np.flatnonzero(y == 2))]
    for walk in rbf_svm.cross_val_paths((1.0,), (1.0,), X, y, folds, 4, None):
        assert (walk[0].decision_values[:, 2] == UNSEEN_CLASS_SCORE).all()
        assert (walk[0].decision_values.argmax(axis=1) != 2).all()


def test_a_machine_that_takes_too_long_is_left_and_told(monkeypatch):
    X, y = world()
    monkeypatch.setattr(rbf_svm, "MAX_SVC_ITER", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        found = train(RBF, TrainingSet(FeatureRows.from_array(X), y, 4, plan_folds(y, 0)))
    assert any("left out: a fit did not converge" in notice for notice in found.notices)
    assert any("the final fit with C" in notice for notice in found.notices)


@pytest.mark.parametrize(("limit", "value"), [("MAX_EXACT_ROWS", 200), ("MAX_EXACT_CLASSES", 3)])
def test_beyond_a_size_some_rows_stand_for_all(monkeypatch, limit, value):
    X, y = world()
    monkeypatch.setattr(rbf_svm, limit, value)
    monkeypatch.setattr(rbf_svm, "MAX_LANDMARKS", 60)
    found = train(RBF, TrainingSet(FeatureRows.from_array(X), y, 4, plan_folds(y, 0)))
    assert found.notices[0].startswith("not all pairs of 240 images of 4 classes")
    kernel = found.scorer.estimator[-2]
    assert kernel.components_.shape == (60, 12)
    times = kernel.gamma / rbf_svm.compute_gamma_scale(StandardScaler().fit_transform(X))
    assert np.isclose(times, RBF.gamma_factors, rtol=1e-5).any()
    assert found.extra_params == {"gamma": kernel.gamma}
    assert (found.scorer.decision_values(X).argmax(axis=1) == y).mean() > 0.8


def test_without_validation_the_middle_is_taken():
    X, y = world()
    found = train(
        RBF, TrainingSet(FeatureRows.from_array(X), y, 4, FoldPlan(np.zeros(240, np.int16), []))
    )
    assert found.selected is None
    assert found.param == RBF.grid[3]
    assert found.extra_params["gamma"] == pytest.approx(RBF.gamma_factors[1] / 12, rel=1e-5)


def test_heads_saved_before_open_and_score_as_they_did(cache, table, tmp_path):
    """Up to version 0.1: 300 landmarks of standardised rows, and linear machines behind them."""
    head, _ = fit(cache, table, "rbf-svm", "fine", prepare="standardise")
    X = FeatureRows.from_cache(cache, ["fine"], np.arange(600)).to_array()
    y = np.arange(600) % 10
    kernel = Nystroem(gamma=1 / 64, n_components=300, random_state=0)
    old = make_pipeline(StandardScaler(), kernel).fit(X.astype(np.float64))
    machine = LinearSVC(dual=False).fit(old.transform(X.astype(np.float64)), y)
    old.steps.append(("svm", machine))
    expected = old.decision_function(X.astype(np.float64))
    before = head.__class__(**vars(head) | {"scorer": SklearnModel(old, 64, 10)})
    save_head(before, tmp_path / "old")
    assert np.allclose(load_head(tmp_path / "old").scores(X), expected, rtol=1e-6, atol=1e-6)
    assert skops.io.get_untrusted_types(data=skops.io.dumps(old)) == []

"""Temperature scaling, and what is kept of a head's scores."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from classify.errors import CallError
from classify.evaluation import predictions
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE, summarise_decision_values
from classify.evaluation.temperature import fit_temperature


def world(n, n_classes=4, seed=0):
    """Scores whose softmax are the true probabilities, and truths drawn from them."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.normal(size=(n, n_classes))
    p = softmax(scores, axis=1)
    y = np.minimum((p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), n_classes - 1)
    return scores, y


def loss(scores, y, t):
    return -log_softmax(scores / t, axis=1)[np.arange(len(y)), y].mean()


@pytest.mark.parametrize("factor", [1e-6, 0.3, 1.0, 7.0, 1e8])
def test_the_temperature_of_probabilities_made_too_sure_is_found_at_any_scale(factor):
    scores, y = world(20_000)
    assert fit_temperature(scores * factor, y) == pytest.approx(factor, rel=0.04)


@pytest.mark.parametrize("n_classes", [2, 3, 20])
def test_no_other_temperature_has_less_loss(n_classes):
    scores, y = world(300, n_classes)
    best = minimize_scalar(lambda t: loss(scores, y, np.exp(t)), bounds=(-9, 9), method="bounded")
    t = fit_temperature(scores, y)
    assert t == pytest.approx(np.exp(best.x), rel=1e-3)
    assert loss(scores, y, t) <= best.fun + 1e-9


def test_the_level_of_a_rows_scores_does_not_matter():
    scores, y = world(500)
    moved = scores + np.random.default_rng(1).normal(0, 1000, (500, 1))
    assert fit_temperature(moved, y) == pytest.approx(fit_temperature(scores, y), rel=1e-4)


def test_all_right_ends_where_so_many_right_answers_leave_it():
    scores, _ = world(48)
    y = scores.argmax(axis=1)
    t = fit_temperature(scores, y)
    assert softmax(scores / t, axis=1).max(axis=1).mean() == pytest.approx(49 / 50, rel=1e-4)
    assert fit_temperature(scores[:1], y[:1]) > t


def test_scores_that_mislead_are_made_as_good_as_none():
    scores, _ = world(200)
    t = fit_temperature(scores, scores.argmin(axis=1))
    assert softmax(scores / t, axis=1) == pytest.approx(0.25, abs=1e-2)


def test_nothing_to_learn_from_leaves_scores_as_they_are():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1
    assert fit_temperature(np.ones((5, 3)), np.arange(5) % 3) == 1
    assert fit_temperature(np.ones((5, 1)), np.zeros(5, int)) == 1
    assert fit_temperature(np.eye(3), np.full(3, -1)) == 1


def test_truths_without_a_column_are_left_out():
    scores, y = world(400)
    some = np.where(np.arange(400) < 100, -1, y)
    assert fit_temperature(scores, some) == fit_temperature(scores[100:], y[100:])


def test_a_class_that_a_fold_lacked_does_not_spoil_the_others():
    scores, y = world(400)
    lacking = scores.copy()
    lacking[:100, 2] = UNSEEN_CLASS_SCORE
    known = np.where((np.arange(400) < 100) & (y == 2), -1, y)
    t = fit_temperature(lacking, y)
    assert t == fit_temperature(lacking, known)
    assert 0.5 < t < 2
    found = told(lacking, y, temperature=3000.0)
    assert (found.calibrated_loss[:100][y[:100] == 2] == 100).all()


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_float32_scores_give_a_finite_temperature(scale):
    scores, y = world(50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        t = fit_temperature((scores * scale).astype(np.float32), y)
    assert t / scale == pytest.approx(fit_temperature(scores, y), rel=1e-3)


def test_a_probability_of_zero_is_a_score_like_others():
    scores, y = world(300, 2)
    scores[0, 1 - y[0]] = -np.inf
    assert 0.5 < fit_temperature(scores, y) < 2
    scores[1, y[1]] = -np.inf
    assert fit_temperature(scores, y) > 10


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    scores, y = world(5)
    scores[3, 1] = bad
    with pytest.raises(CallError, match="not finite"):
        fit_temperature(scores, y)
    with pytest.raises(CallError, match="not finite"):
        told(scores, y)


def test_a_sample_of_many_rows_gives_nearly_the_same(monkeypatch):
    scores, y = world(4000)
    whole = fit_temperature(scores, y)
    monkeypatch.setattr(predictions, "MAX_SAMPLE_ROWS", 1000)
    sampled = fit_temperature(scores, y)
    assert sampled != whole
    assert sampled == pytest.approx(whole, rel=0.2)
    assert sampled == fit_temperature(scores, y)
    with pytest.raises(CallError, match="do not fit"):
        fit_temperature(scores, y[:-1])


def told(scores, truth, classes=None, *, temperature=2.0, probabilistic=True):
    classes = np.arange(scores.shape[1]) if classes is None else np.array(classes)
    rows = np.arange(len(scores)) * 10
    return summarise_decision_values(
        rows, np.array(truth), scores, classes, temperature=temperature, probabilistic=probabilistic
    )


def test_outcomes_are_those_of_the_softmax(monkeypatch):
    monkeypatch.setattr(predictions, "MAX_BLOCK_VALUES", 28)  # seven rows at a time
    scores, truth = world(100)
    found = told(scores, truth)
    each = np.arange(100)
    assert (found.predicted == scores.argmax(axis=1)).all()
    assert (found.rows == each * 10).all()
    for t, confidence, lost in (
        (1, found.confidence, found.loss),
        (2, found.calibrated_confidence, found.calibrated_loss),
    ):
        p = softmax(scores / t, axis=1)
        assert confidence == pytest.approx(p.max(axis=1), rel=1e-5)
        assert lost == pytest.approx(-np.log(p[each, truth]), rel=1e-5)
    assert found.loss.dtype == found.confidence.dtype == np.float32
    assert found.truth.dtype == found.predicted.dtype == found.rows.dtype == np.int64


def test_columns_are_of_the_classes_named_and_a_class_without_one_costs_most():
    found = told(np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 0.0]]), [7, 7, 5], [7, 2])
    assert found.predicted.tolist() == [2, 7, 7]
    assert found.truth.tolist() == [7, 7, 5]
    assert found.correct.tolist() == [False, True, False]
    assert found.loss == pytest.approx([np.log1p(np.e), np.log1p(1 / np.e), 100], rel=1e-5)
    assert found.calibrated_loss[2] == 100


def test_no_loss_is_above_the_cap():
    found = told(np.array([[1e6, 0.0]]), [1])
    assert found.loss.tolist() == [100]
    assert found.confidence.tolist() == [1]


def test_scores_alone_have_no_probabilities_before_scaling_nor_without_a_temperature():
    found = told(np.eye(3), [0, 1, 1], probabilistic=False)
    assert np.isnan(found.confidence).all()
    assert np.isnan(found.loss).all()
    assert np.isfinite(found.calibrated_loss).all()
    found = told(np.eye(3), [0, 1, 1], temperature=None)
    assert np.isnan(found.calibrated_confidence).all()
    assert np.isnan(found.calibrated_loss).all()
    assert np.isfinite(found.loss).all()


def test_no_images_are_fine():
    assert len(told(np.zeros((0, 3)), np.zeros(0, int))) == 0


def test_what_does_not_fit_is_refused():
    for t in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(CallError, match="above 0 and finite"):
            told(np.eye(2), [0, 1], temperature=t)
    with pytest.raises(CallError, match="do not fit"):
        told(np.eye(2), [0, 1], [3])
    with pytest.raises(CallError, match="do not fit"):
        told(np.zeros((2, 0)), [0, 1])

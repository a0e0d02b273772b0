"""Metrics by kind: the values of scikit-learn and scipy, and intervals that count whole units."""

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.stats import spearmanr

from classify.doubt.conformal import fit_margin
from classify.evaluation.targets.calibration import (
    apply_label_calibration,
    fit_label_calibration,
)
from classify.evaluation.targets.metrics import (
    METRICS,
    choose_thresholds,
    compare_target_paired,
    compute_label_scores,
    compute_target_metric,
    compute_target_metrics,
    constant_predictions,
    count_grade_confusions,
)
from classify.evaluation.targets.predictions import TargetPredictions


def several(n=400, seed=0, decimals=2):
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, 5)) < [0.5, 0.2, 0.1, 0.05, 0.3]).astype(float)
    values = np.round(np.clip(0.35 * truth + 0.65 * rng.random((n, 5)), 0, 1), decimals)
    return TargetPredictions("multi", np.arange(n), truth, values, choose_thresholds(truth, values))


def numbers(n=300, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    truth = np.round(rng.normal(size=(n, 1)), 1)  # with equal ones
    return TargetPredictions("number", np.arange(n), truth, truth + noise * rng.normal(size=(n, 1)))


def grades(n=300, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (n, 1)).astype(float)
    near = np.clip(truth + rng.integers(-1, 2, (n, 1)), 0, 4)
    return TargetPredictions("grade", np.arange(n), truth, near)


def test_several_labels_are_measured_as_by_scikit_learn():
    p = several()
    metrics = compute_target_metrics(p)
    expected = {
        "macro_average_precision": sk.average_precision_score(p.truth, p.values),
        "micro_average_precision": sk.average_precision_score(p.truth, p.values, average="micro"),
        "macro_f1": sk.f1_score(p.truth, p.predicted, average="macro"),
        "micro_f1": sk.f1_score(p.truth, p.predicted, average="micro"),
        "subset_accuracy": sk.accuracy_score(p.truth, p.predicted),
        "coverage_error": sk.coverage_error(p.truth, p.values),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    for name in expected:
        low, high = metrics[f"{name}_ci"]
        assert low < metrics[name] < high
        single = compute_target_metric(name, p.truth, p.values, p.thresholds)
        assert single == pytest.approx(expected[name], abs=1e-9)


def test_numbers_and_grades_too():
    p = numbers()
    truth, predicted = p.truth[:, 0], p.values[:, 0]
    found = compute_target_metrics(p)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, predicted))
    assert found["r2"] == pytest.approx(sk.r2_score(truth, predicted))
    assert found["spearman"] == pytest.approx(spearmanr(truth, predicted).statistic)
    p = grades()
    truth, predicted = p.truth[:, 0], p.values[:, 0]
    found = compute_target_metrics(p, 5)
    kappa = sk.cohen_kappa_score(truth, predicted, weights="quadratic")
    assert found["quadratic_kappa"] == pytest.approx(kappa)
    assert found["accuracy"] == pytest.approx((truth == predicted).mean())
    matrix = sk.confusion_matrix(truth, predicted, labels=range(5))
    assert np.array_equal(count_grade_confusions(p, 5), matrix)


def test_a_resample_is_measured_like_images_that_are_there_so_often():
    """A unit that is drawn twice counts twice, in every metric."""
    for p, n_grades in ((several(60), None), (numbers(60), None), (grades(60), 5)):
        count = np.random.default_rng(3).integers(0, 4, 60)
        index = np.repeat(np.arange(60), count)
        from classify.evaluation.targets.resampled import resample_metrics

        names = METRICS[p.kind]
        weighted = resample_metrics(p, n_grades, count[None].astype(float), names)
        repeated = TargetPredictions(
            p.kind, p.rows[index], p.truth[index], p.values[index], p.thresholds
        )
        plain = resample_metrics(repeated, n_grades, np.ones((1, len(index))), names)
        for name in names:
            np.testing.assert_allclose(weighted[name], plain[name], rtol=1e-9, err_msg=name)


def test_labels_that_are_not_known_do_not_count():
    p = several()
    truth = p.truth.copy()
    truth[:200, 0] = np.nan
    gap = TargetPredictions("multi", p.rows, truth, p.values, p.thresholds)
    scores = compute_label_scores(gap, list("abcde"))
    expected = sk.average_precision_score(p.truth[200:, 0], p.values[200:, 0])
    assert scores["a"]["average_precision"] == pytest.approx(expected)
    assert (scores["a"]["n"], scores["b"]["n"]) == (200, 400)
    assert np.isfinite(gap.losses).all()


def test_units_widen_the_intervals():
    p = numbers(300)
    twelve_of_each = np.arange(300) // 12
    shifted = TargetPredictions(
        "number", p.rows, p.truth, p.values + (twelve_of_each % 5)[:, None].astype(float)
    )
    alone = compute_target_metrics(shifted)["mae_ci"]
    units = compute_target_metrics(shifted, unit=twelve_of_each)["mae_ci"]
    assert units[1] - units[0] > 1.5 * (alone[1] - alone[0])


def test_heads_are_compared_on_the_same_images():
    better, worse = numbers(300, noise=0.5), numbers(300, noise=1.0)
    found = compare_target_paired(better, worse, "mae")
    assert found.value < 0
    assert found.distinguishable
    assert not compare_target_paired(better, better, "mae").distinguishable
    a, b = several(seed=0), several(seed=0)
    assert not compare_target_paired(a, b, "macro_average_precision").distinguishable
    blind = TargetPredictions("multi", a.rows, a.truth, np.full_like(a.values, 0.2), a.thresholds)
    found = compare_target_paired(a, blind, "macro_average_precision")
    assert found.value > 0
    assert found.distinguishable


def test_thresholds_have_the_best_f1():
    p = several(200)
    for k in range(5):
        best = max(
            sk.f1_score(p.truth[:, k], p.values[:, k] >= t) for t in np.unique(p.values[:, k])
        )
        chosen = sk.f1_score(p.truth[:, k], p.values[:, k] >= p.thresholds[k])
        assert chosen == pytest.approx(best)
    nothing = choose_thresholds(np.zeros((10, 1)), np.random.default_rng(0).random((10, 1)))
    assert nothing == [0.5]


def test_what_needs_no_image():
    truth = np.array([[1.0, 0], [1, 1], [0, np.nan]])
    several_guess = constant_predictions("multi", truth, np.arange(3), truth)
    np.testing.assert_allclose(several_guess.values[0], [2 / 3, 1 / 2])
    one = np.ones((1, 1))
    number = constant_predictions("number", np.array([[1.0], [4.0]]), np.arange(1), one)
    assert number.values == [[2.5]]
    grade = constant_predictions(
        "grade", np.array([[2.0], [2], [0]]), np.arange(1), np.ones((1, 1))
    )
    assert grade.values == [[2]]
    assert compute_target_metrics(grade, 3)["quadratic_kappa"] in (None, 0)


def test_calibration_recovers_the_true_log_odds():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(20_000, 3)) * [1, 5, 0.1]
    slope, bias = np.array([2.0, 0.3, 20.0]), np.array([-1.0, 0.5, 2.0])
    truth = (rng.random(outputs.shape) < 1 / (1 + np.exp(-(slope * outputs + bias)))).astype(float)
    truth[::7, 1] = np.nan
    found = fit_label_calibration(outputs, truth)
    np.testing.assert_allclose(found[0], slope, rtol=0.06)
    np.testing.assert_allclose(found[1], bias, atol=0.08)
    proba = apply_label_calibration(outputs, found)
    assert np.nanmean(truth, axis=0) == pytest.approx(proba.mean(axis=0), abs=0.01)


def test_outputs_that_mislead_leave_the_frequency():
    truth = (np.arange(100) < 30).astype(float)[:, None]
    found = fit_label_calibration(-truth, truth)
    assert found[0] == [0]
    assert apply_label_calibration(np.zeros((1, 1)), found) == pytest.approx(0.304, abs=0.01)


@pytest.mark.parametrize("per_unit", [1, 10])
def test_margins_cover_new_units(per_unit):
    """Of 400 draws: the share of the next unit's images that is covered, on average."""
    rng, covered = np.random.default_rng(0), []
    unit = np.repeat(np.arange(60), per_unit)
    for _ in range(400):
        level = rng.normal(size=61)
        errors = np.abs(
            level[np.append(unit, [60] * per_unit)] + 0.3 * rng.normal(size=61 * per_unit)
        )
        margin = fit_margin(errors[:-per_unit], unit, 0.9)
        covered.append((errors[-per_unit:] <= margin).mean())
    assert 0.87 < np.mean(covered) < 0.94


def test_too_few_units_give_no_margin():
    assert fit_margin(np.ones(8), np.arange(8), 0.9) is None
    assert fit_margin(np.ones(9), np.arange(9), 0.9) == 1

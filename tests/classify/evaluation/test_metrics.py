"""Scores against scikit-learn's, their intervals, and two heads on the same images."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
)

from classify.errors import CallError
from classify.evaluation.bootstrap import MetricSums, equal_mass_bins, sign_flip_test
from classify.evaluation.metrics import (
    Metrics,
    calibration_error,
    compute_confusion_matrix,
    compute_metrics,
    estimate_proportion,
    reliability_curve,
)
from classify.evaluation.paired import compare_paired
from classify.evaluation.predictions import summarise_decision_values


def world(n, n_classes=4, seed=0, *, heat=1.0, probabilistic=True, temperature=None):
    """Answers whose truths are drawn from softmax(scores), the scores multiplied by `heat`."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.normal(size=(n, n_classes))
    p = softmax(scores, axis=1)
    y = np.minimum((p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), n_classes - 1)
    return summarise_decision_values(
        np.arange(n),
        y,
        scores * heat,
        np.arange(n_classes),
        temperature=heat if temperature is None else temperature,
        probabilistic=probabilistic,
    )


def plain(truth, predicted, confidence=0.9):
    """Answers with the same confidence each."""
    truth, predicted = np.array(truth), np.array(predicted)
    sure = np.full(len(truth), confidence, np.float32)
    answers = world(len(truth), int(max(*truth, *predicted)) + 1)
    return replace(answers, truth=truth, predicted=predicted, confidence=sure)


@pytest.mark.parametrize(("n", "n_classes"), [(7, 2), (300, 2), (500, 10), (60, 40)])
def test_scores_agree_with_scikit_learn(n, n_classes):
    answers = world(n, n_classes, heat=2.0)
    found = compute_metrics(answers, n_classes, n_resamples=50)
    truth, said = answers.truth, answers.predicted
    there = np.unique(truth)
    recall = confusion_matrix(truth, said, labels=np.arange(n_classes), normalize="true")
    assert found.balanced_accuracy == pytest.approx(np.diag(recall)[there].mean())
    if len(there) == n_classes:  # scikit-learn warns of the others
        assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, said))
    assert found.macro_f1 == pytest.approx(
        f1_score(truth, said, labels=there, average="macro", zero_division=0)
    )
    assert found.accuracy == pytest.approx((truth == said).mean())
    rng = np.random.default_rng(0)
    p = softmax(2 * rng.normal(size=(n, n_classes)), axis=1)
    assert found.log_loss_scaled == pytest.approx(log_loss(truth, p, labels=range(n_classes)))
    p = p**2 / (p**2).sum(axis=1, keepdims=True)  # the head is twice too sure
    assert found.log_loss == pytest.approx(log_loss(truth, p, labels=range(n_classes)), rel=1e-4)
    assert (
        compute_confusion_matrix(answers, n_classes)
        == confusion_matrix(truth, said, labels=range(n_classes))
    ).all()


def test_classes_without_images_enter_no_mean():
    answers = plain([0, 0, 2, 2], [0, 3, 2, 2])
    found = compute_metrics(answers, 6)
    assert found.balanced_accuracy == 0.75
    assert found.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(CallError, match="below 3"):
        compute_metrics(answers, 3)


def test_what_cannot_be_said_is_none():
    assert compute_metrics(world(0), 4) == Metrics()
    assert set(Metrics().to_dict().values()) == {None}
    found = compute_metrics(world(50, probabilistic=False), 4)
    assert found.log_loss is found.log_loss_ci is found.calibration_error is None
    assert found.log_loss_scaled is not None
    assert found.calibration_error_scaled_ci is not None
    answers = world(50)
    nothing = np.full(50, np.nan, np.float32)
    found = compute_metrics(
        replace(answers, calibrated_confidence=nothing, calibrated_loss=nothing), 4
    )
    assert found.log_loss is not None
    assert found.log_loss_scaled is found.calibration_error_scaled_ci is None


def test_json_is_flat_and_every_interval_holds_its_score():
    found = compute_metrics(world(200, heat=2.0), 4)
    told = json.loads(json.dumps(found.to_dict()))
    names = ["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error"]
    names += ["log_loss_scaled", "calibration_error_scaled"]
    assert list(told) == [key for name in names for key in (name, f"{name}_ci")]
    for name in names:
        low, high = told[f"{name}_ci"]
        assert 0 <= low <= told[name] <= high
        assert low < high


def test_the_seed_decides_the_intervals_alone():
    answers = world(100)
    one, same, other = (compute_metrics(answers, 4, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one.macro_f1 == other.macro_f1
    assert one.macro_f1_ci != other.macro_f1_ci


@pytest.mark.parametrize("n", [1, 2, 9])
def test_very_few_images_give_finite_intervals(n):
    told = compute_metrics(world(n), 4).to_dict()
    assert all(np.isfinite(value).all() for value in told.values())


def test_bootstrap_intervals_agree_with_theory_for_means():
    answers = world(2000)
    low, high = compute_metrics(answers, 4).log_loss_ci
    spread = 1.96 * float(answers.loss.std()) / math.sqrt(2000)
    assert (high - low) / 2 == pytest.approx(spread, rel=0.1)
    assert (high + low) / 2 == pytest.approx(float(answers.loss.mean()), abs=0.1 * spread)


@pytest.mark.long
def test_bootstrap_intervals_hold_the_truth_about_as_often_as_they_say():
    large = world(400_000, heat=1.5, seed=99)
    truth = {
        "macro_f1": f1_score(large.truth, large.predicted, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(large.truth, large.predicted),
        "log_loss": large.loss.mean(),
        "calibration_error": calibration_error(large, False),
        "calibration_error_scaled": 0.0,
    }
    hits = dict.fromkeys(truth, 0)
    for seed in range(200):
        told = compute_metrics(world(400, heat=1.5, seed=seed), 4, n_resamples=200).to_dict()
        for name, value in truth.items():
            low, high = told[f"{name}_ci"]
            hits[name] += low <= value <= high
    assert min(hits.values()) >= 0.88 * 200, hits


def test_ten_thousand_images_take_no_second():
    answers = world(10_000, 10)
    compute_metrics(answers, 10, n_resamples=10)
    started = time.process_time()
    compute_metrics(answers, 10)
    assert time.process_time() - started < 2  # measured: 0.25


def test_large_tests_are_resampled_less_often_but_not_seldom(monkeypatch):
    seen = []
    inner = MetricSums.compute
    monkeypatch.setattr(
        MetricSums, "compute", lambda self, w: seen.append(len(w)) or inner(self, w)
    )
    monkeypatch.setattr("classify.evaluation.metrics.MAX_DRAWS", 400_000)
    for n, resamples in ((100, 1000), (1000, 400), (10_000, 200)):
        seen.clear()
        compute_metrics(world(n), 4)
        assert sum(seen) - 1 == resamples


def test_calibration_error_is_the_gap_of_a_head_that_is_always_as_sure():
    answers = plain([0] * 100, [0] * 70 + [1] * 30, confidence=0.9)
    assert calibration_error(answers, False) == pytest.approx(0.2, abs=1e-6)
    assert compute_metrics(answers, 2).calibration_error == pytest.approx(0.2, abs=1e-6)
    assert compute_metrics(answers, 2).calibration_error_ci[0] > 0.1


@pytest.mark.parametrize("n", [5, 149, 1000])
def test_calibration_error_is_that_of_its_diagram(n):
    answers = world(n, heat=2.0)
    found = compute_metrics(answers, 4, n_resamples=10)
    for value, calibrated in (
        (found.calibration_error, False),
        (found.calibration_error_scaled, True),
    ):
        points = reliability_curve(answers, calibrated)
        gaps = np.abs(points.confidence - points.accuracy)
        assert value == pytest.approx((gaps * points.count).sum() / n)
        assert points.count.sum() == n
        assert (np.diff(points.confidence) > 0).all()
    assert len(points.count) == min(15, max(1, n // 10))
    assert n < 1000 or np.ptp(points.count) <= 1


def test_equal_confidences_share_a_bin_whatever_their_order():
    confidence = np.repeat([0.5, 0.7, 1.0], [10, 20, 270]).astype(np.float32)
    which = equal_mass_bins(confidence)
    assert [len(np.unique(which[confidence == c])) for c in (0.5, 0.7, 1.0)] == [1, 1, 1]
    answers = replace(world(300), confidence=confidence)
    turned = replace(
        answers,
        truth=answers.truth[::-1].copy(),
        predicted=answers.predicted[::-1].copy(),
        confidence=confidence[::-1].copy(),
    )
    assert calibration_error(answers, False) == pytest.approx(calibration_error(turned, False))


def test_a_diagram_without_probabilities_has_no_points():
    assert len(reliability_curve(world(0), True).count) == 0
    assert len(reliability_curve(world(20, probabilistic=False), False).count) == 0
    assert calibration_error(world(20, probabilistic=False), False) is None
    assert len(reliability_curve(world(1000), False, 5).count) == 5


def test_confusion_counts_truths_in_rows():
    assert compute_confusion_matrix(plain([0, 0, 1], [2, 2, 1]), 3).tolist() == [
        [0, 0, 2],
        [0, 1, 0],
        [0, 0, 0],
    ]
    assert compute_confusion_matrix(world(0), 2).tolist() == [[0, 0], [0, 0]]


def pair(both, only_a, only_b, neither):
    """Two heads that are right together so often, one alone so often, and both wrong."""
    counts = [both, only_a, only_b, neither]
    n = sum(counts)
    a, b = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    base = world(n, 2)
    truth = np.ones(n, int)
    return replace(base, truth=truth, predicted=a), replace(base, truth=truth, predicted=b)


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        # R. G. Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        # By the formula: with its correction, without disagreement, with nothing else.
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((10, 0, 0, 0), -0.2775, 0.2775),
        ((0, 10, 0, 0), 0.6075, 1.0),
    ],
)
def test_paired_intervals_agree_with_published_ones(cells, low, high):
    found = compare_paired(*pair(*cells))
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert found.value == pytest.approx((cells[1] - cells[2]) / sum(cells))


def test_heads_that_never_disagree_are_not_told_apart():
    for cells in ((1, 0, 0, 0), (0, 0, 0, 5), (40, 0, 0, 3)):
        found = compare_paired(*pair(*cells))
        assert found.value == 0
        assert found.low < 0 < found.high
        assert (found.p_value, found.distinguishable) == (1, False)


def test_five_disagreements_are_too_few_and_six_are_enough():
    assert not compare_paired(*pair(20, 5, 0, 0)).distinguishable
    found = compare_paired(*pair(20, 6, 0, 0))
    assert found.distinguishable
    assert found.p_value == pytest.approx(2 / 2**6)


def test_the_other_way_round_is_the_same_with_the_sign_turned():
    a, b = pair(30, 12, 3, 5)
    one, two = compare_paired(a, b), compare_paired(b, a)
    assert one.value == -two.value
    assert (one.low, one.high) == (pytest.approx(-two.high), pytest.approx(-two.low))
    assert one.p_value == two.p_value == pytest.approx(binomtest(3, 15).pvalue)


def test_told_apart_is_never_said_where_the_interval_holds_zero():
    for n in (6, 9, 14):
        for only_a in range(n + 1):
            for only_b in range(n + 1 - only_a):
                rest = n - only_a - only_b
                found = compare_paired(*pair(rest // 2, only_a, only_b, rest - rest // 2))
                assert -1 <= found.low <= found.value <= found.high <= 1
                assert not (found.distinguishable and found.low <= 0 <= found.high)


def test_rows_may_come_in_any_order_but_have_to_be_the_same():
    a, b = pair(30, 12, 3, 5)
    order = np.random.default_rng(0).permutation(len(b))
    mixed = replace(b, rows=b.rows[order], truth=b.truth[order], predicted=b.predicted[order])
    assert compare_paired(a, mixed) == compare_paired(a, b)
    for other in (
        replace(b, rows=b.rows + 1),
        replace(b, truth=1 - b.truth),
        pair(30, 12, 3, 6)[1],
    ):
        with pytest.raises(CallError, match="same rows"):
            compare_paired(a, other)
    with pytest.raises(CallError, match="same rows"):
        compare_paired(world(0), world(0))


def test_equal_heads_are_told_apart_seldom():
    rng = np.random.default_rng(0)
    said = 0
    for _ in range(400):
        only_a = rng.binomial(30, 0.5)
        said += compare_paired(*pair(60, only_a, 30 - only_a, 10)).distinguishable
    assert said / 400 <= 0.06


# --- groups ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (6, 0), (7, 3), (2, 9), (6, 6)])
def test_with_images_that_stand_alone_signs_are_mcnemars_test(only_a, only_b):
    difference = np.repeat([1.0, -1.0, 0.0], [only_a, only_b, 8])
    apart = only_a + only_b
    expected = binomtest(only_a, apart).pvalue if apart else 1.0
    assert sign_flip_test(difference, np.arange(len(difference)), 0) == pytest.approx(expected)


def test_signs_that_are_drawn_say_about_the_same_as_all_of_them():
    difference = np.repeat([1.0, -1.0], [40, 20])
    found = sign_flip_test(difference, np.arange(60), 0)
    assert found == pytest.approx(binomtest(20, 60).pvalue, abs=0.003)


def test_sums_that_only_rounding_tells_apart_are_as_extreme():
    """Tenths have no exact form, so that sums of them differ in their last bits by their order."""
    rng = np.random.default_rng(0)
    for n in (8, 40):
        whole = rng.integers(-3, 4, n).astype(float)
        images = np.arange(n)
        assert sign_flip_test(whole / 10, images, 0) == sign_flip_test(whole, images, 0)


def grouped_heads(rng, n_groups=25, size=20):
    """Two heads as good as each other, each right or wrong by whole groups mostly."""
    answers = []
    for _ in range(2):
        level = rng.beta(0.7, 0.3, n_groups).repeat(size)
        predicted = (rng.random(n_groups * size) < level).astype(int)
        answers.append(plain(np.ones(n_groups * size, int), predicted))
    return answers, np.arange(n_groups).repeat(size)


def test_groups_take_intervals_and_marks_to_where_they_hold():
    rng = np.random.default_rng(0)
    whole, alone = np.zeros(3), np.zeros(3)
    for _ in range(200):
        (a, b), group = grouped_heads(rng)
        for unit, held in ((group, whole), (None, alone)):
            low, high = estimate_proportion(a.correct, unit)[1]
            found = compare_paired(a, b, unit)
            held += low <= 0.7 <= high, found.low <= 0 <= found.high, found.distinguishable
    assert 0.92 <= whole[0] / 200 <= 0.985
    assert 0.92 <= whole[1] / 200 <= 0.985
    assert whole[2] / 200 <= 0.08
    assert alone[0] / 200 < 0.7  # taken for images that stand alone, none of it holds
    assert alone[1] / 200 < 0.7
    assert alone[2] / 200 > 0.3


def test_groups_of_one_image_change_nothing_much():
    answers = world(300)
    one = compute_metrics(answers, 4, np.arange(300))
    other = compute_metrics(answers, 4)
    assert one.balanced_accuracy_ci == other.balanced_accuracy_ci
    assert one.accuracy_ci == pytest.approx(other.accuracy_ci, abs=0.02)


def test_units_may_have_any_numbers_and_rows_any_order():
    rng = np.random.default_rng(3)
    (a, b), group = grouped_heads(rng)
    order = rng.permutation(len(group))
    mixed = replace(a, rows=a.rows[order], truth=a.truth[order], predicted=a.predicted[order])
    assert compare_paired(mixed, b, 7 * group[order] + 3) == compare_paired(a, b, group)

"""Prediction sets and thresholds hold what they promise, also where images come in units."""

import numpy as np
import pytest

from classify.doubt.conformal import (
    check_coverage,
    conformal_quantile,
    fit_margin,
    fit_set_threshold,
)
from classify.doubt.novelty import FAR_ONSET, FeatureSpread, Scale, SignScales, fit_novelty
from classify.doubt.risk import measure_risk
from classify.errors import CallError


@pytest.mark.parametrize("per_unit", [1, 20])
def test_sets_hold_the_truth_of_new_units(per_unit):
    """Over 300 draws; images of a unit are easy or hard together."""
    rng, held = np.random.default_rng(0), []
    unit = np.repeat(np.arange(50), per_unit)
    for _ in range(300):
        ease = rng.normal(1, 1.5, 51)
        own = 1 / (1 + np.exp(-(np.repeat(ease, per_unit) + 0.3 * rng.normal(size=51 * per_unit))))
        threshold = fit_set_threshold(own[:-per_unit], unit, 0.9)
        held.append((own[-per_unit:] >= threshold).mean())
    assert 0.87 < np.mean(held) < 0.94
    # As single images they would be taken for far more than there are, and hold less.
    if per_unit > 1:
        assert conformal_quantile(1 - own[:-per_unit], unit, 0.98) is not None
        assert conformal_quantile(1 - own[:-per_unit], unit, 0.99) is None


def test_a_share_that_so_few_units_cannot_hold():
    assert conformal_quantile(np.zeros(8), np.arange(8), 0.9) is None
    assert conformal_quantile(np.arange(9.0), np.arange(9), 0.9) == 8
    with pytest.raises(CallError, match=r"share from 0\.5 to 0\.999, not 9"):
        check_coverage(9)
    assert check_coverage(None) == 0.9


def test_rounding_leaves_no_image_out():
    """Shares of neighbours: most images have the very probability that the threshold is."""
    for count in range(1, 30):
        proba = np.repeat([(count + 1) / 31, 0.01], [95, 5])
        own = np.exp(np.log(proba).astype(np.float32).astype(np.float64))  # a loss is kept so
        threshold = fit_set_threshold(own, np.arange(100), 0.9)
        assert (proba >= threshold).mean() == 0.95


def test_margins_cover_errors():
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        errors = np.abs(rng.normal(size=100))
        held.append(errors[-1] <= fit_margin(errors[:-1], np.arange(99), 0.8))
    assert 0.73 < np.mean(held) < 0.87


def test_accuracy_of_the_surest():
    confidence = np.array([0.9, 0.8, 0.8, 0.4])
    curve = measure_risk(confidence, np.array([True, True, False, False]))
    assert curve.share == (0.25, 0.75, 1.0)
    assert curve.accuracy == pytest.approx((1, 0.6667, 0.5), abs=1e-4)
    perfect = measure_risk(np.linspace(1, 0, 100), np.arange(100) < 50)
    blind = measure_risk(np.linspace(1, 0, 100), np.arange(100) % 2 == 0)
    assert perfect.area < 0.2 < 0.45 < blind.area
    assert measure_risk(np.zeros(0), np.zeros(0, bool)) is None
    assert measure_risk(np.full(3, np.nan), np.ones(3, bool)) is None
    assert len(measure_risk(np.arange(1000.0), np.ones(1000, bool)).share) <= 50


@pytest.fixture
def spread():
    """Three classes in 6 columns; the covariance within classes is known."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 2000)
    means = np.array([[4, 0, 0, 0, 0, 0], [0, 4, 0, 0, 0, 0], [0, 0, 4, 0, 0, 0.0]])
    X = means[y] + rng.normal(size=(6000, 6))
    mean, scale = X.mean(axis=0), X.std(axis=0)
    Z = (X - mean) / scale
    values, vectors = np.linalg.eigh(Z.T @ Z)
    count, total = np.bincount(y), np.stack([X[y == k].sum(axis=0) for k in range(3)])
    return (
        X,
        y,
        FeatureSpread.from_statistics(
            (len(X), mean, scale, vectors, values), count.astype(float), total
        ),
    )


def test_distances_are_those_of_the_formula(spread):
    X, y, made = spread
    mean, scale = X.mean(axis=0), X.std(axis=0)
    Z = (X - mean) / scale
    means = np.stack([Z[y == k].mean(axis=0) for k in range(3)])
    shares = np.bincount(y) / len(y)
    total = Z.T @ Z / len(Z)
    within = total - (means * shares[:, None]).T @ means

    def shrink(covariance):
        return 0.7 * covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6)

    to_class = np.stack(
        [np.einsum("ij,jk,ik->i", Z - m, np.linalg.inv(shrink(within)), Z - m) for m in means]
    ).min(axis=0)
    to_all = np.einsum("ij,jk,ik->i", Z, np.linalg.inv(shrink(total)), Z)
    expected = np.stack([to_class, to_class - to_all], axis=1)
    np.testing.assert_allclose(made.distances(X), expected, rtol=1e-3, atol=1e-3)


def test_strangers_are_far_and_alarms_as_many_as_stated(spread):
    X, y, made = spread
    rng = np.random.default_rng(1)
    proba = np.full((len(X), 3), 0.01)
    proba[np.arange(len(X)), y] = 0.98
    novelty = fit_novelty(made, made.distances(X), proba, np.arange(len(X)))
    alarms = (novelty.scores(X, proba) > novelty.threshold).mean()
    assert alarms == pytest.approx(0.05, abs=0.002)
    strangers = rng.normal(size=(500, 6)) + np.array([0, 0, 0, 5, 0, 0])
    sure = np.tile([0.98, 0.01, 0.01], (500, 1))
    assert (novelty.scores(strangers, sure) > novelty.threshold).mean() > 0.95
    assert fit_novelty(made, np.zeros((5, 2)), proba[:5], np.arange(5)) is None


def test_a_distance_counts_where_no_known_image_is():
    scales = SignScales(Scale(1, 0.5), Scale(10, 2), Scale(0, 1))
    same = np.zeros(4)
    distances = np.stack([10 + 2 * np.array([-3, 0, FAR_ONSET, FAR_ONSET + 1]), same], axis=1)
    near, mean, onset, far = scales.combine(same + 1, distances)
    assert near == mean == onset == 0
    assert far > 2
    unsure, *_ = scales.combine(same + 2, distances)
    unlike, *_ = scales.combine(same + 1, distances + np.array([0, 2]))
    assert (unsure, unlike) == (2, 1)
    assert Scale.from_values(np.ones(3)) == Scale(1, 1)  # nothing is divided by zero

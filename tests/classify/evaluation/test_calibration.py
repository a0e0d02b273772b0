"""Slope and bias: taken where they gain, and what is then said of held-out images is honest."""

import warnings

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression

from classify import fit, load_head, save_head
from classify.data.features import FeatureRows
from classify.errors import CallError, HeadFileError
from classify.evaluation.calibration import calibrate
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE
from classify.evaluation.temperature import fit_temperature
from classify.labels.table import LabelTable


def world(n, lacking, seed=0, spread=2.0):
    """Scores that lack a bias: softmax(scores + lacking) are the true probabilities."""
    rng = np.random.default_rng(seed)
    scores = spread * rng.normal(size=(n, len(lacking)))
    p = softmax(scores + lacking, axis=1)
    y = np.minimum((p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), len(lacking) - 1)
    return scores, y


def loss(scores, y, found):
    shift = 0 if found.bias is None else found.bias
    logs = log_softmax((scores + shift) / found.temperature, axis=1)
    return -logs[np.arange(len(y)), y].mean()


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e8])
@pytest.mark.parametrize("lacking", [[1.5, -1.5], [2.0, 0.0, -1.0, -1.0]])
def test_a_bias_and_a_slope_that_were_taken_away_are_found_at_any_scale(factor, lacking):
    scores, y = world(20_000, np.array(lacking))
    found = calibrate(scores * factor, y)
    assert found.temperature == pytest.approx(factor, rel=0.04)
    assert found.bias / found.temperature == pytest.approx(lacking, abs=0.1)


def test_of_two_classes_it_is_platt_scaling():
    """Which without its doubt of the truths is a logistic regression on one number."""
    scores, y = world(3000, np.array([1.0, -1.0]))
    found = calibrate(scores, y)
    margin = scores[:, 1:] - scores[:, :1]
    plain = LogisticRegression(C=1e6, tol=1e-8).fit(margin, y)
    assert 1 / found.temperature == pytest.approx(plain.coef_[0, 0], rel=5e-3)
    shift = (found.bias[1] - found.bias[0]) / found.temperature
    assert shift == pytest.approx(plain.intercept_[0], rel=5e-3)


def test_where_scores_lie_does_not_matter():
    """Strongly regularised heads give scores all near one place, far from where classes part."""
    scores, y = world(400, np.array([1.0, -1.0]))
    found = calibrate(scores, y)
    far = calibrate(scores / 1000 + [500, -500], y)
    assert far.temperature == pytest.approx(found.temperature / 1000, rel=1e-2)
    p, q = (
        softmax((s + f.bias) / f.temperature, axis=1)
        for s, f in ((scores, found), (scores / 1000 + [500, -500], far))
    )
    assert q == pytest.approx(p, abs=5e-3)


def test_what_needs_no_bias_seldom_gets_one():
    taken = 0
    for seed in range(40):
        scores, y = world(300, np.zeros(4), seed)
        found = calibrate(scores, y)
        taken += found.bias is not None
        if found.bias is None:
            assert found.decision_values is scores
            assert found.temperature == fit_temperature(scores, y)
    assert taken <= 15


def test_no_bias_where_each_of_its_images_had_to_vouch_for_itself():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(39, 4)), rng.integers(0, 4, 39)
    assert calibrate(scores, y).bias is None  # under ten images a class
    scores, y = world(200, np.array([2.0, -2.0]))
    one = calibrate(scores, y, np.zeros(200, int))  # all one unit: nothing to check it on
    assert one.bias is None
    assert calibrate(scores, y).bias is not None


def test_held_scores_have_not_seen_their_own_labels():
    """They cost more than the head does on the very images that it was calibrated by."""
    more = []
    for seed in range(20):
        scores, y = world(300, np.array([1.0, 0.0, -1.0]), seed)
        found = calibrate(scores, y)
        if found.bias is not None:
            logs = log_softmax(found.decision_values.astype(float) / found.temperature, axis=1)
            more.append(-logs[np.arange(300), y].mean() - loss(scores, y, found))
    assert len(more) >= 15
    assert np.mean(more) > 0.002
    assert np.mean(np.array(more) > 0) > 0.8


def test_images_of_one_unit_do_not_teach_each_other():
    """A coin for each of eight units: how often it fell is known once they are torn apart."""
    taken = np.zeros(2)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        unit, y = np.arange(8).repeat(40), rng.integers(0, 2, 8).repeat(40)
        scores = rng.normal(size=(320, 2))
        scores[np.arange(320), y] += 1
        taken += [calibrate(scores, y, u).bias is not None for u in (unit, None)]
    assert taken[0] < 0.5 * taken[1]


def test_errors_beyond_chance_forbid_a_bias():
    """Neighbours' counts, whose zeros have logarithms far below, that no bias should lift."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 1000)
    p = np.tile(0.06 * np.linspace(0.2, 1.8, 10), (1000, 1))
    p[np.arange(1000), y] += 0.4
    count = rng.multinomial(5, p / p.sum(axis=1, keepdims=True))
    found = calibrate(np.log(np.maximum(count / 5, 1e-12)), y)
    assert found.bias is None


def test_absent_scores_stay_absent_and_a_class_without_images_is_left_alone():
    scores, y = world(900, np.array([2.0, 0.0, -2.0]))
    wide = np.concatenate([scores, scores[:, :1] - 1], axis=1)  # a fourth column, never true
    wide[:300, 2] = UNSEEN_CLASS_SCORE
    truth = np.where((np.arange(900) < 300) & (y == 2), -1, y)
    found = calibrate(wide, truth)
    assert (found.decision_values[:300, 2] == UNSEEN_CLASS_SCORE).all()
    assert (found.decision_values[300:, 2] != UNSEEN_CLASS_SCORE).all()
    assert found.bias[3] == 0
    assert found.bias[:3].sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_hopeless_scores_end_finite():
    scores, y = world(300, np.array([0.0, 0.0]))
    for odd, truth in (
        (scores, scores.argmin(axis=1)),
        (np.zeros((300, 2)), y),
        (scores * 1e30, y),
        (np.where(np.arange(600).reshape(300, 2) % 80 == 0, -np.inf, scores), y),
        (np.sort(scores, axis=0) + np.array([5, 0]), np.sort(y)),  # a bias makes every image right
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = calibrate(odd.astype(np.float32), truth)
        assert 0 < found.temperature < np.inf
        assert found.bias is None or np.isfinite(found.bias).all()
    with pytest.raises(CallError, match="do not fit"):
        calibrate(scores, y[:-1])
    with pytest.raises(CallError, match="not finite"):
        calibrate(np.full((300, 2), np.nan), y)


@pytest.fixture(scope="module")
def rare(make_cache, tmp_path_factory):
    """One class in ten, hard to tell: 1,000 images to learn from, 1,000 to test on."""
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.1).astype(int)
    X = (rng.normal(size=(2000, 6)) + 0.9 * y[:, None]).astype(np.float32)
    cache = make_cache(tmp_path_factory.mktemp("rare") / "c.h5", {"l": X})
    split = ["train"] * 1000 + ["test"] * 1000
    names = [("usual", "rare")[k] for k in y]
    return cache, LabelTable("t", "t.csv", list(cache.paths), names, split), X, np.array(names)


HEADS = ("ridge", "linear-svm", "lda", "ncm", "softmax")


@pytest.mark.parametrize("name", HEADS)
def test_a_rare_class_is_as_well_calibrated_as_scikit_learn_has_it(rare, name):
    cache, table, X, names = rare
    _, record = fit(cache, table, name, prepare="standardise")
    outside = CalibratedClassifierCV(LogisticRegression(C=0.1), cv=5).fit(X[:1000], names[:1000])
    truth = (names[1000:] == outside.classes_[1]).astype(int)
    theirs = -np.log(outside.predict_proba(X[1000:]))[np.arange(1000), truth].mean()
    assert record.scores["log_loss_scaled"] < theirs + 0.003
    assert record.scores["calibration_error_scaled"] < 0.03
    if name == "ncm":  # which takes no notice of how rare a class is
        assert record.bias is not None
        assert record.accuracy > 0.89


@pytest.mark.parametrize("name", ["ncm", "knn", "sklearn.neighbors:NearestCentroid"])
def test_the_bias_is_part_of_the_head_and_of_its_file(rare, tmp_path, name):
    cache, table, X, names = rare
    head, record = fit(cache, table, name, class_weight=None)
    assert record.accuracy == (head.predict(X[1000:]) == names[1000:]).mean()
    assert head.record["bias"] == record.bias
    save_head(head, tmp_path / "h")
    loaded = load_head(tmp_path / "h")
    assert np.array_equal(loaded.scores(X), head.scores(X))
    p = loaded.predict_proba(X[1000:])
    truth = np.array([loaded.classes.index(n) for n in names[1000:]])
    lost = -np.log(np.maximum(p[np.arange(1000), truth], 1e-40)).mean()
    assert lost == pytest.approx(record.scores["log_loss_scaled"], rel=1e-3)


def test_a_head_that_is_no_linear_one_keeps_its_bias_in_an_array_of_its_own(rare, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    cache, table, X, _ = rare
    head, record = fit(cache, table, "sklearn.neighbors:NearestCentroid")
    assert record.bias is not None
    assert head.scorer.offset == pytest.approx(record.bias)
    save_head(head, tmp_path / "h")
    with safe_open(tmp_path / "h", "np") as file:
        arrays, metadata = load_file(tmp_path / "h"), dict(file.metadata())
    assert {name for name in arrays if not name.startswith("novelty.")} == {
        "offset",
        "seen",
        "skops",
    }
    plain = {k: v for k, v in arrays.items() if k != "offset"}
    save_file(plain, tmp_path / "old", metadata)
    old = load_head(tmp_path / "old")
    assert old.scorer.offset is None
    assert old.scores(X) + record.bias == pytest.approx(head.scores(X), abs=1e-5)
    for odd in (np.zeros(3), np.full(2, np.nan), np.zeros(2, np.int32)):
        save_file(arrays | {"offset": odd}, tmp_path / "odd", metadata)
        with pytest.raises(HeadFileError, match="offset is"):
            load_head(tmp_path / "odd")


def test_classes_that_are_to_count_alike_get_no_bias(rare):
    cache, table, _, _ = rare
    for name in ("ridge", "ncm"):
        _, record = fit(cache, table, name, class_weight="balanced")
        assert record.bias is None
        assert record.temperature > 0
        assert record.scores["balanced_accuracy"] > 0.75


def test_validation_is_that_of_the_head_that_is_given(rare):
    """The rare class is hardly ever said with the bias, so the validation has to say that too."""
    cache, table, _, _ = rare
    _, record = fit(cache, table, "ncm")
    assert record.validation == pytest.approx(record.accuracy, abs=0.03)
    _, plain = fit(cache, table, "ncm", class_weight="balanced")
    assert plain.validation == pytest.approx(plain.accuracy, abs=0.04)
    assert record.validation > plain.validation + 0.02


def test_scores_of_classes_a_model_does_not_know_take_no_offset(cache, table):
    from dataclasses import replace

    head, _ = fit(cache, table, "knn", "coarse")
    X = FeatureRows.from_cache(cache, ["coarse"], np.arange(20)).to_array()
    plain = replace(head.scorer, n_classes=11)
    moved = replace(plain, offset=np.arange(11.0))
    assert (moved.decision_values(X)[:, 10] == UNSEEN_CLASS_SCORE).all()
    assert moved.decision_values(X)[:, :10] == pytest.approx(
        plain.decision_values(X)[:, :10] + np.arange(10.0)
    )

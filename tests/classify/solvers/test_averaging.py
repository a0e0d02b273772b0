"""softmax-lda: two calibrated heads averaged, which make one linear head."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from classify import HeadClassifier, fit
from classify.errors import CallError
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE
from classify.experiments import fit as fit_module
from classify.heads.io import load_head, save_head
from classify.heads.registry import DEFAULT_HEAD, get_head_spec
from classify.solvers.averaging import average_decision_values

MEMBERS = get_head_spec("softmax-lda").members


def test_its_probabilities_are_the_geometric_mean_of_the_members(digits):
    X, y = digits[0][:300], digits[1][:300]
    rest = digits[0][300:]
    averaged = HeadClassifier("softmax-lda").fit(X, y)
    members = [HeadClassifier(name).fit(X, y) for name in MEMBERS]
    mean = np.mean([np.log(member.predict_proba(rest)) for member in members], axis=0)
    found = averaged.decision_function(rest)
    # The same but for one number a row, which no probability depends on.
    assert np.ptp(found - mean, axis=1).max() < 1e-3
    proba = np.exp(mean / averaged.temperature_)
    proba /= proba.sum(axis=1, keepdims=True)
    assert np.allclose(averaged.predict_proba(rest), proba, atol=1e-4)


def test_a_class_that_was_not_trained_on_is_never_predicted():
    values = [np.array([[1.0, UNSEEN_CLASS_SCORE]]), np.array([[3.0, UNSEEN_CLASS_SCORE]])]
    found = average_decision_values(values, [1.0, 1000.0])
    assert found.tolist() == [[0.5015, UNSEEN_CLASS_SCORE]]


def test_a_class_of_one_image_does_not_disturb_it(digits):
    X, y = digits[0][:200], digits[1][:200].copy()
    y[0] = 10  # in four of five folds it is trained on, and never held out
    model = HeadClassifier("softmax-lda").fit(X, y)
    proba = model.predict_proba(digits[0][200:])
    assert proba.shape[1] == 11
    assert np.isfinite(proba).all()
    assert (model.predict(digits[0][200:]) == digits[1][200:]).mean() > 0.8


@pytest.mark.long
def test_with_few_images_its_probabilities_are_better_than_the_members(digits):
    losses = {name: [] for name in ("softmax-lda", *MEMBERS)}
    for seed in range(5):
        chosen = np.random.default_rng(seed).permutation(len(digits[1]))
        train, rest = chosen[:100], chosen[100:]
        for name, found in losses.items():
            model = HeadClassifier(name, seed=seed).fit(digits[0][train], digits[1][train])
            proba = model.predict_proba(digits[0][rest])
            found.append(log_loss(digits[1][rest], proba, labels=model.classes_))
    mean = {name: np.mean(found) for name, found in losses.items()}
    assert mean["softmax-lda"] < min(mean[name] for name in MEMBERS)


@pytest.mark.long
def test_it_is_the_default_and_says_both_settings(cache, table, tmp_path, digits):
    head, record = fit(cache, table, layer="fine")
    assert {record.head, head.head, DEFAULT_HEAD} == {"softmax-lda"}
    assert record.settings.keys() == {"C", "shrinkage"}
    assert record.settings["C"] == record.C
    for name in MEMBERS:
        (setting,) = fit(cache, table, name, "fine")[1].settings.items()
        assert setting in record.settings.items()
    save_head(head, tmp_path / "a.head")
    again = load_head(tmp_path / "a.head")
    X = digits[0]
    assert np.array_equal(again.predict_proba(X), head.predict_proba(X))
    assert again.settings == record.settings


def test_balanced_weights_reach_both_members(cache, parity):
    plain, balanced = (
        fit(cache, parity, layer="fine", class_weight=weight)[0] for weight in (None, "balanced")
    )
    assert not np.allclose(plain.scorer.intercept, balanced.scorer.intercept)
    assert balanced.notices == plain.notices == ()


# --- its layers ---------------------------------------------------------------------------------


def test_lda_chooses_its_layers(cache, table):
    head, record = fit(cache, table)
    assert record.layer == fit(cache, table, "lda")[1].layer
    (said,) = [notice for notice in head.notices if "choices of layers" in notice]
    assert said.endswith("of lda")


def test_the_three_deepest_layers_are_a_choice(make_cache, make_table, digits, tmp_path):
    X, y = digits[0], digits[1]
    noise = np.random.default_rng(0).random((len(X), 256)).astype(np.float32) * 100
    layers = {"noise": noise, "low": X[:, :20], "mid": X[:, 20:44], "deep": X[:, 44:]}
    cache = make_cache(tmp_path / "c.h5", layers)
    table = make_table(
        tmp_path / "t.csv", "path,label", [*zip(cache.paths, map(str, y), strict=True)]
    )
    head, record = fit(cache, table)
    assert record.layer == "low+mid+deep"
    assert any("the deepest 3 layers joined validates best of 3" in n for n in head.notices)


def test_where_softmax_cannot_be_trained_the_next_layers_are_taken(cache, table, monkeypatch):
    def refuse_joined(cache, task, head, layers, options, **more):
        if head.name == "softmax-lda" and len(layers) > 1:
            raise CallError("too wide")
        return fit_task(cache, task, head, layers, options, **more)

    fit_task = fit_module.fit_task
    monkeypatch.setattr(fit_module, "fit_task", refuse_joined)
    head, record = fit(cache, table, seed=3)
    assert "+" not in record.layer
    assert any("softmax-lda on fine+coarse left out: too wide" in n for n in head.notices)

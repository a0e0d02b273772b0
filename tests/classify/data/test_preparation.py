"""Preparation of features: signed roots of unit rows, layer by layer; a part of every head."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import pairwise_distances
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from classify import CachedFeatures, RootL2, compare, evaluate, fit, load_head, predict, save_head
from classify.data.features import FeatureRows
from classify.data.preparation import root_l2
from classify.data.tasks import make_task
from classify.errors import CallError, HeadFileError
from classify.heads.registry import HEADS
from classify.labels.table import LabelTable


def prepared_by_hand(X, *widths):
    parts = np.split(X.astype(np.float64), np.cumsum(widths)[:-1], axis=1)
    roots = [np.sign(part) * np.sqrt(np.abs(part)) for part in parts]
    return np.concatenate([r / np.linalg.norm(r, axis=1, keepdims=True) for r in roots], axis=1)


@pytest.fixture
def signed(make_cache, tmp_path):
    """Two layers of features of either sign, as transformers give, in three classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    wide = (rng.normal(size=(240, 40)) + 0.4 * rng.normal(size=(3, 40))[y]).astype(np.float32)
    narrow = (100 * rng.normal(size=(240, 6)) + 80 * rng.normal(size=(3, 6))[y]).astype(np.float32)
    cache = make_cache(tmp_path / "signed.h5", {"narrow": narrow, "wide": wide})
    return cache, LabelTable("t", "t.csv", list(cache.paths), [f"c{k}" for k in y]), narrow, wide


# --- the preparation itself ------------------------------------------------------------------


def test_it_is_the_signed_root_in_rows_of_length_one():
    X = np.random.default_rng(0).normal(size=(50, 7)) ** 3
    assert root_l2(X) == pytest.approx(prepared_by_hand(X, 7), rel=1e-6)
    assert root_l2(X).dtype == np.float32
    assert np.linalg.norm(root_l2(X), axis=1) == pytest.approx(1)


def test_rows_without_a_number_stay_and_large_ones_do_not_overflow():
    X = np.array([[0, 0], [3e38, -3e38], [1e-38, 0], [-0.0, 4]], np.float32)
    assert root_l2(X) == pytest.approx(np.array([[0, 0], [0.5**0.5, -(0.5**0.5)], [1, 0], [0, 1]]))


def test_a_row_is_prepared_the_same_whatever_stands_beside_it():
    X = np.random.default_rng(0).normal(size=(97, 513)).astype(np.float32)
    assert all(np.array_equal(root_l2(X[i : i + 1]), root_l2(X)[i : i + 1]) for i in range(97))


def test_features_are_not_changed_in_place(signed):
    _, _, _, wide = signed
    X = wide.copy()
    rows = FeatureRows.from_array(X).with_preparation("root-l2")
    rows.to_array()
    assert np.array_equal(X, wide)
    assert np.array_equal(FeatureRows.from_array(X).to_array(), wide)


@parametrize_with_checks([RootL2()])
def test_the_transformer_is_one_of_scikit_learns_kind(estimator, check):
    check(estimator)


def test_the_transformer_goes_with_cached_features(signed):
    cache, table, narrow, wide = signed
    steps = make_pipeline(CachedFeatures(cache, "joined"), RootL2([6, 40]))
    found = steps.fit_transform(table.paths)
    assert found == pytest.approx(
        prepared_by_hand(np.concatenate([narrow, wide], 1), 6, 40), abs=1e-6
    )
    with pytest.raises(ValueError, match=r"layers of \[6, 41\] columns are not 46 in all"):
        make_pipeline(CachedFeatures(cache, "joined"), RootL2([6, 41])).fit(table.paths)


# --- heads on it -----------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["softmax", "ridge", "lda"])
def test_heads_are_scikit_learns_on_prepared_features(signed, head):
    """With one scale for all columns: the root of their mean variance."""
    cache, table, narrow, wide = signed
    fitted, record = fit(cache, table, head, "joined")
    assert record.prepare == fitted.prepare == "root-l2"
    task = make_task(cache, table)
    learnt = task.split == "train"
    X = np.concatenate([narrow, wide], axis=1)
    Z = prepared_by_hand(X, 6, 40)
    Z /= np.sqrt(Z[learnt].var(axis=0).mean())
    setting = next(iter(record.settings.values()))
    theirs = {
        "softmax": LogisticRegression(C=setting, max_iter=10_000, tol=1e-8),
        "ridge": RidgeClassifier(alpha=setting),
        "lda": LinearDiscriminantAnalysis("lsqr", shrinkage=setting),
    }[head].fit(Z[learnt], task.y[learnt])
    theirs_say = np.array(fitted.classes)[theirs.predict(Z)]
    assert (fitted.predict(X) == theirs_say).mean() > 0.99


def test_neighbours_are_those_of_prepared_features(signed):
    cache, table, _, wide = signed
    fitted, record = fit(cache, table, "knn", "wide")
    task = make_task(cache, table)
    learnt, Z = task.split == "train", prepared_by_hand(wide, 40)
    near = pairwise_distances(Z, Z[learnt]).argsort(axis=1)[
        :, : int(record.settings["n_neighbors"])
    ]
    votes = np.array([np.bincount(task.y[learnt][row], minlength=3) for row in near])
    clear = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]
    said = fitted.scorer.estimator.predict(root_l2(wide))  # before what the calibration adds
    assert (said == votes.argmax(axis=1))[clear].all()


def test_the_same_heads_standardised_where_that_is_asked(signed):
    cache, table, _, _ = signed
    _, rooted = fit(cache, table, "lda", "wide")
    _, plain = fit(cache, table, "lda", "wide", prepare="standardise")
    assert (rooted.prepare, plain.prepare) == ("root-l2", "standardise")
    found = compare(cache, table, "lda", "wide", prepare="standardise", jobs=1)
    assert found.records[0].validation == plain.validation != rooted.validation
    again = compare(cache, table, "lda", "wide", jobs=1)
    assert again.records[0].validation == rooted.validation
    with pytest.raises(CallError, match="prepared by root-l2 or standardise, not 'whiten'"):
        fit(cache, table, "lda", prepare="whiten")


def test_of_many_images_a_column_validation_chooses(make_cache, tmp_path):
    """The sizes of rows tell the classes, which roots of unit rows cannot see."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    X = np.abs(1 + 0.1 * rng.normal(size=(400, 4))) * (1 + y)[:, None]
    cache = make_cache(tmp_path / "c.h5", {"l": X.astype(np.float32)})
    table = LabelTable("t", "t.csv", list(cache.paths), [f"c{k}" for k in y])
    head, record = fit(cache, table, "lda")
    assert record.prepare == "standardise"
    assert record.accuracy > 0.95
    _, asked = fit(cache, table, "lda", prepare="root-l2")
    assert asked.prepare == "root-l2"
    assert asked.accuracy < 0.7
    save_head(head, tmp_path / "h")
    assert load_head(tmp_path / "h").prepare == "standardise"


# --- saved heads -----------------------------------------------------------------------------


@pytest.mark.parametrize("head", [*HEADS])
@pytest.mark.parametrize("layer", ["wide", "joined"])
def test_a_head_from_a_file_prepares_as_it_did(signed, tmp_path, head, layer):
    cache, table, narrow, wide = signed
    fitted, record = fit(cache, table, head, layer)
    save_head(fitted, tmp_path / "h")
    loaded = load_head(tmp_path / "h")
    X = wide if layer == "wide" else np.concatenate([narrow, wide], axis=1)
    assert loaded.prepare == "root-l2"
    assert np.array_equal(loaded.scores(X), fitted.scores(X))
    assert evaluate(loaded, cache, table)[0]["accuracy"] == record.accuracy
    assert predict(loaded, cache.path).labels[:, 0].tolist() == fitted.predict(X).tolist()
    plain = fitted.to_sklearn()
    if getattr(fitted.scorer, "offset", None) is not None:
        return  # what the calibration adds to its scores is no part of scikit-learn's own
    said = plain.predict(X)
    if plain.classes_.dtype.kind != "U":
        said = np.array(fitted.classes)[said]
    assert (said == fitted.predict(X)).all()


@pytest.mark.parametrize("head", ["softmax", "knn"])
def test_a_release_that_knows_of_no_preparation_refuses_the_file(signed, tmp_path, head):
    """It looked for these arrays, and read no other entry of the metadata."""
    cache, table, _, _ = signed
    save_head(fit(cache, table, head, "wide")[0], tmp_path / "new")
    arrays = load_file(tmp_path / "new")
    linear = arrays.keys() == {"mean", "scale", "coef", "intercept", "seen"}
    assert "skops" not in arrays
    assert not (linear and arrays["scale"].shape == arrays["mean"].shape)
    save_head(fit(cache, table, head, "wide", prepare="standardise")[0], tmp_path / "as before")
    arrays = load_file(tmp_path / "as before")
    assert "skops" in arrays or arrays["scale"].shape == arrays["mean"].shape


@pytest.mark.parametrize("head", ["softmax", "knn"])
def test_a_head_of_an_earlier_release_opens_and_means_the_same(signed, tmp_path, head):
    cache, table, _, wide = signed
    fitted, _ = fit(cache, table, head, "wide", prepare="standardise")
    fitted = replace(
        fitted, coverage=None, set_threshold=None, novelty=None
    )  # release 1.0 knew of none
    save_head(fitted, tmp_path / "h")
    metadata = metadata_of(tmp_path / "h")
    assert metadata["version"] == "1.1"
    del metadata["prepare"]
    earlier = metadata | {"version": "1.0"}
    save_file(load_file(tmp_path / "h"), tmp_path / "earlier", earlier)
    loaded = load_head(tmp_path / "earlier")
    assert loaded.prepare == "standardise"
    assert np.array_equal(loaded.scores(wide), fitted.scores(wide))


def test_a_preparation_that_does_not_fit_the_arrays_is_refused(signed, tmp_path):
    cache, table, _, _ = signed
    save_head(fit(cache, table, "lda", "wide")[0], tmp_path / "h")
    metadata = metadata_of(tmp_path / "h")
    for wrong in ("standardise", "whiten", 3):
        save_file(
            load_file(tmp_path / "h"), tmp_path / "w", metadata | {"prepare": json.dumps(wrong)}
        )
        with pytest.raises(HeadFileError, match=r"scale is|prepare is not what it should be"):
            load_head(tmp_path / "w")


def metadata_of(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return dict(file.metadata())


# --- layers ----------------------------------------------------------------------------------


def test_without_a_layer_what_validates_best_is_taken(signed):
    cache, table, _, _ = signed
    head, record = fit(cache, table, "lda")
    found = compare(cache, table, "lda", "wide,joined", jobs=1)
    assert found.n_reused == 2
    losses = {r.record.layer: r.validation.calibrated_loss.mean() for r in found.results}
    assert record.layer == min(losses, key=losses.get)
    (said,) = [n for n in head.notices if "choices of layers" in n]
    assert "of 2 choices of layers" in said
    again, _ = fit(cache, table, "lda")
    assert np.array_equal(again.scorer.coef, head.scorer.coef)


def test_where_nothing_can_be_validated_it_is_the_deepest(make_cache, tmp_path):
    X = np.random.default_rng(0).random((8, 4)).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"low": X, "deep": X[:, :3] + 1})
    labels = [f"c{k % 2}" for k in range(8)]
    split = ["train" if k < 2 else "test" for k in range(8)]
    table = LabelTable("t", "t.csv", list(cache.paths), labels, split)
    assert fit(cache, table, "lda")[1].layer == "deep"


def test_of_very_many_images_only_the_deepest_is_tried_and_it_says_so(signed, monkeypatch):
    cache, table, _, _ = signed
    monkeypatch.setattr("classify.experiments.fit.MAX_JOINED_VALUES", 1000)
    head, record = fit(cache, table, "lda")
    assert record.layer == "wide"
    assert any("only wide, the deepest layer, was tried" in n for n in head.notices)


def test_a_choice_that_cannot_be_trained_is_left_out_with_a_word(signed, monkeypatch):
    cache, table, _, _ = signed
    monkeypatch.setattr("classify.solvers.gram.MAX_SOLVER_BYTES", 8 * 5 * 45**2)
    task = make_task(cache, table)
    assert len(task.rows) > 46  # so that it is a matter of Gram matrices
    head, record = fit(cache, table, "lda")
    assert record.layer == "wide"
    assert any("lda on narrow+wide left out" in n for n in head.notices)


def test_the_network_starts_from_heads_that_end_as_it_does(signed):
    from classify.errors import HeadMismatchError
    from classify.finetuning.head_transfer import check_init_head

    cache, table, _, _ = signed
    head, _ = fit(cache, table, "softmax", "wide")
    with pytest.raises(HeadMismatchError, match="--prepare standardise"):
        check_init_head(head, None, ("wide", "avg"), head.classes)
    assert replace(head, prepare="standardise").prepare == "standardise"

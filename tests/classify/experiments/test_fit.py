"""One fit: settings by validation, the final score by test images alone."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from classify import fit
from classify.data.features import FeatureRows
from classify.data.tasks import make_task
from classify.errors import CallError, UnknownHeadError
from classify.heads.registry import HEADS, get_head_spec
from classify.labels.table import LabelTable, read_labels
from classify.solvers import lbfgs


def with_split(cache, y, split) -> LabelTable:
    return LabelTable("t", "t.csv", list(cache.paths), [str(d) for d in y], list(split))


@pytest.fixture(scope="module")
def thirds(cache, digits):
    """Labels, and a split of our own: 300 train, 150 val, 150 test."""
    return digits[1].copy(), np.array(["train"] * 300 + ["val"] * 150 + ["test"] * 150, object)


@pytest.mark.long
def test_the_record_says_what_was_done(cache, table):
    head, record = fit(cache.path, table, layer=["fine", "coarse"])
    assert (record.task, record.head, record.layer) == ("digit", "softmax-lda", "fine+coarse")
    assert record.classes == [str(digit) for digit in range(10)]
    assert (record.n_train, record.n_test) == (480, 120)
    assert record.C in get_head_spec("softmax").grid
    assert record.validation > 0.9
    assert record.accuracy > 0.9
    assert record.accuracy_ci[0] < record.accuracy < record.accuracy_ci[1]
    assert record.seconds > 0
    assert head.record == record.to_dict()
    assert head.notices == ()


@pytest.mark.long
def test_the_default_layer_is_the_deepest_or_all_of_them(cache, table):
    _, record = fit(cache, table)
    assert record.layer == "fine+coarse"
    assert record.accuracy > fit(cache, table, layer="coarse")[1].accuracy


@pytest.mark.parametrize("name", list(HEADS))
def test_the_accuracy_is_that_of_the_head_on_the_test_rows(cache, table, name):
    head, record = fit(cache, table, name, "coarse")
    task = make_task(cache, read_labels(table))
    test = task.split == "test"
    found = head.predict(FeatureRows.from_cache(cache, ["coarse"], task.rows[test]).to_array())
    truth = np.array(task.classes)[task.y[test]]
    assert record.accuracy == (found == truth).mean()


@pytest.mark.long
def test_it_is_the_same_every_time_and_another_with_another_seed(cache, table):
    one, two, other = (fit(cache, table, seed=seed)[0] for seed in (0, 0, 1))
    assert (one.scorer.coef == two.scorer.coef).all()
    assert not (one.scorer.coef == other.scorer.coef).all()


def test_test_labels_decide_nothing(cache, thirds):
    y, split = thirds
    shuffled = y.copy()
    shuffled[split == "test"] = (shuffled[split == "test"] + 1) % 10
    (head, record), (other, wrong) = (
        fit(cache, with_split(cache, v, split)) for v in (y, shuffled)
    )
    assert (head.settings, record.validation) == (other.settings, wrong.validation)
    assert (head.scorer.coef == other.scorer.coef).all()
    assert wrong.accuracy < 0.2 < record.accuracy


def test_val_images_choose_and_are_never_trained_on(cache, thirds):
    y, split = thirds
    labels = with_split(cache, y, split)
    head, record = fit(cache, labels, "softmax", "coarse", prepare="standardise")
    train, val = (np.flatnonzero(split == part) for part in ("train", "val"))
    X = FeatureRows.from_cache(cache, ["coarse"], np.arange(450)).to_array()
    ready = StandardScaler().fit(X[train])

    def plain(C):
        model = LogisticRegression(C=C, tol=1e-8, max_iter=5000)
        return model.fit(ready.transform(X[train]), y[train])

    right = plain(record.C).score(ready.transform(X[val]), y[val])
    assert record.validation == pytest.approx(right, abs=1e-9)
    centred = head.scorer.coef - head.scorer.coef.mean(axis=0)
    assert np.allclose(centred, plain(record.C).coef_, atol=2e-3)
    assert record.n_train == 300


def test_without_test_images_there_is_no_accuracy(cache, table):
    head, record = fit(cache, table, layer="coarse", test_size=0)
    assert (record.n_train, record.n_test) == (600, 0)
    assert record.accuracy is None
    assert record.accuracy_ci is None
    assert head.notices == ("there are no test images, so no test accuracy",)


def test_classes_of_one_image_are_learnt_without_a_crash_or_a_warning(cache, digits):
    y = [str(d) for d in digits[1][:40]]
    y[0], y[1] = "only one", "another"
    head, record = fit(cache, LabelTable("t", "t.csv", cache.paths[:40], y), layer="fine")
    assert {"only one", "another"} <= set(record.classes)
    assert any("2 classes ('another', 'only one')" in notice for notice in head.notices)


def test_where_nothing_can_be_validated_c_is_the_middle_and_it_says_so(cache):
    table = LabelTable("t", "t.csv", cache.paths[:3], ["a", "b", "c"])
    head, record = fit(cache, table, layer="coarse")
    assert record.validation is None
    middle = get_head_spec("softmax").grid[len(get_head_spec("softmax").grid) // 2]
    assert middle == record.C
    assert any(f"nothing to validate with, so C = {middle:g} was not" in n for n in head.notices)


def test_a_class_without_training_images_counts_as_wrong(cache, thirds):
    y, split = thirds
    test = np.flatnonzero(split == "test")
    labels = np.array([str(d) for d in y], object)
    labels[test] = "never seen"
    _, record = fit(cache, LabelTable("t", "t.csv", list(cache.paths), list(labels), list(split)))
    assert record.accuracy == 0
    assert "never seen" not in record.classes


def test_groups_are_kept_together_while_choosing_and_scoring(make_cache, tmp_path):
    """Four pictures of every thing, labels by a coin: torn groups would give it away."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(75, 400)).repeat(4, axis=0) + rng.normal(0, 0.9, (300, 400))
    cache = make_cache(tmp_path / "c.h5", {"l": X.astype(np.float32)})
    labels = [f"c{label}" for label in rng.integers(0, 2, 75).repeat(4)]
    groups = [str(group) for group in np.arange(75).repeat(4)]
    bare = LabelTable("t", "t.csv", list(cache.paths), labels)
    _, torn = fit(cache, bare, prepare="standardise")
    grouped = LabelTable("t", "t.csv", list(cache.paths), labels, None, groups)
    _, kept = fit(cache, grouped, prepare="standardise")
    assert min(torn.validation, torn.accuracy) > 0.85
    assert max(kept.validation, kept.accuracy) < 0.75
    assert kept.n_test == pytest.approx(60, abs=8)


def test_folder_names_are_the_labels_where_no_table_is_given(make_cache, tmp_path, digits):
    pixels, y = digits
    keep = np.flatnonzero(y[:200] < 3)
    paths = [f"{'abc'[y[i]]}/{i:04}.png" for i in keep]
    order = np.argsort(paths)
    cache = make_cache(tmp_path / "c.h5", {"l": pixels[keep][order]}, [paths[i] for i in order])
    _, record = fit(cache)
    assert record.task == "folders"
    assert record.classes == ["a", "b", "c"]
    assert record.accuracy > 0.8


def test_an_unknown_head_is_refused_before_the_cache_is_looked_for():
    with pytest.raises(UnknownHeadError):
        fit("nowhere.h5", head="forest")


def test_an_unconverged_fit_is_a_notice(cache, table, monkeypatch):
    monkeypatch.setattr(lbfgs, "MAX_ITER", 2)
    head, _ = fit(cache, table, layer="coarse")
    assert any("settings left out: a fit did not converge" in notice for notice in head.notices)
    assert any("the final fit with C = " in notice for notice in head.notices)


@pytest.mark.long
def test_a_class_weight_lifts_a_small_class(make_cache, tmp_path):
    rng = np.random.default_rng(0)
    y = np.array([0] * 270 + [1] * 30)
    X = (rng.normal(size=(300, 5)) + 0.8 * y[:, None]).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    table = LabelTable("t", "t.csv", list(cache.paths), [f"c{k}" for k in y])
    for name in ("softmax", "linear-svm", "ridge", "lda"):
        plain, fair = (fit(cache, table, name, class_weight=w)[0] for w in (None, "balanced"))
        small = [(head.predict(X[y == 1]) == "c1").mean() for head in (plain, fair)]
        assert small[1] > small[0] + 0.1, name
    head, record = fit(cache, table, "ncm", class_weight="balanced")
    assert record.class_weight == "balanced"
    assert any("takes no class weights" in notice for notice in head.notices)
    with pytest.raises(CallError, match="balanced or nothing, not 'fair'"):
        fit(cache, table, class_weight="fair")


@pytest.mark.long
def test_more_scores_stand_beside_the_accuracy(cache, table):
    _, record = fit(cache, table, layer="coarse")
    told = record.to_dict()
    for name in ("balanced_accuracy", "macro_f1", "log_loss", "calibration_error"):
        low, high = told[f"{name}_ci"]
        assert low <= told[name] <= high
    _, ridge = fit(cache, table, "ridge")
    assert ridge.scores["log_loss"] is None  # it has no probabilities of its own
    assert 0 < ridge.scores["log_loss_scaled"] < 1

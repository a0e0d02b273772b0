"""Checks of the data: twins across the split, labels that look wrong, small classes."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from classify.checks import duplicates as twins_module
from classify.checks.duplicates import count_compared, find_duplicates
from classify.checks.label_issues import review_labels
from classify.checks.summary import check_task, find_small_classes
from classify.data import near_copies
from classify.data.features import FeatureRows
from classify.data.near_copies import expected_by_chance
from classify.data.tasks import Task, make_task
from classify.evaluation.predictions import summarise_decision_values
from classify.evaluation.temperature import fit_temperature
from classify.labels.table import LabelTable
from featurize.errors import UnknownLayerError


def task_of(cache, labels, splits, groups=None) -> Task:
    table = LabelTable("t", "t.csv", list(cache.paths), list(labels), list(splits), groups)
    return make_task(cache, table)


def halves(n):
    return ["train", "test"] * (n // 2)


@pytest.fixture(scope="module")
def world(make_cache, tmp_path_factory, digits):
    """600 digits, every other one a test image, and 20 twins of the former among the latter."""
    pixels, y = digits
    rng = np.random.default_rng(0)
    source = np.arange(0, 200, 10)  # training images
    changed = pixels[source] + rng.normal(0, 0.03, (20, 64)).astype(np.float32)
    X = np.concatenate([pixels, changed])
    cache = make_cache(tmp_path_factory.mktemp("twins") / "c.h5", {"fine": X[:, ::2], "deep": X})
    labels = [str(d) for d in (*y, *y[source])]
    return task_of(cache, labels, [*halves(600), *["test"] * 20]), cache, source


def test_planted_twins_are_found_and_few_others(world):
    task, cache, source = world
    found = find_duplicates(cache, task)
    pairs = {(t.row_test, t.row_train) for t in found}
    planted = {(600 + i, int(row)) for i, row in enumerate(source)}
    assert len(planted & pairs) >= 19
    assert len(pairs - planted) <= 2
    for t in found:
        assert not t.same_bytes
        assert t.same_label == (task.y[t.row_test] == task.y[t.row_train])
        assert 0.8 < t.cosine <= 1
        assert t.expected <= 1
    assert [t.expected for t in found] == sorted(t.expected for t in found)


def test_cosines_are_of_features_centred_and_scaled_by_what_is_learnt_from(world):
    task, cache, _ = world
    X = cache.features("deep").astype(float)
    train = X[task.split != "test"]
    Z = (X - train.mean(axis=0)) / np.sqrt(train.var(axis=0) + train.var(axis=0).mean())
    for t in find_duplicates(cache, task):
        a, b = Z[t.row_train], Z[t.row_test]
        assert t.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


def test_blocks_make_no_difference(world, monkeypatch):
    task, cache, _ = world
    whole = find_duplicates(cache, task)
    monkeypatch.setattr(near_copies, "TEST_BLOCK", 37)
    monkeypatch.setattr(near_copies, "TRAIN_BLOCK", 7)  # fewer than the neighbours looked for
    parts = find_duplicates(cache, task)
    assert [(t.row_test, t.row_train) for t in parts] == [(t.row_test, t.row_train) for t in whole]
    assert [t.expected for t in parts] == pytest.approx([t.expected for t in whole], rel=1e-3)


def test_digits_alone_are_alike_but_no_twins(cache, digits):
    for seed in range(5):
        table = LabelTable("t", "t.csv", list(cache.paths), [str(d) for d in digits[1]])
        assert len(find_duplicates(cache, make_task(cache, table, seed=seed), layers="fine")) <= 1


def test_layers_are_the_deepest_or_those_named(world):
    task, cache, _ = world
    assert find_duplicates(cache, task) == find_duplicates(cache, task, layers="deep")
    assert find_duplicates(cache, task, layers="fine") != find_duplicates(cache, task)
    assert find_duplicates(cache, task, layers=["fine", "deep"]) == find_duplicates(
        cache, task, layers="joined"
    )
    with pytest.raises(UnknownLayerError):
        find_duplicates(cache, task, layers="absent")


def copies(make_cache, path, X, same):
    """A cache where row b's bytes are those of row a, for each pair (a, b)."""
    cache = make_cache(path, {"l": X})
    hashes = cache.column("sha256").copy()
    for a, b in same:
        hashes[b] = hashes[a]
    column = cache.column

    def replaced_column(name, rows=None):
        return (
            (hashes if rows is None else hashes[rows]) if name == "sha256" else column(name, rows)
        )

    cache.column = replaced_column
    return cache


def test_the_same_bytes_are_found_first_whatever_their_features(make_cache, tmp_path, digits):
    same = [(0, 1), (0, 9), (2, 4), (4, 7), (3, 5)]  # 2 and 4 are on one side, and 3 and 5
    cache = copies(make_cache, tmp_path / "c.h5", digits[0][:20], same)
    task = task_of(cache, ["a", "a", "b", "b", "a", "a", "b", "a", *"ab" * 6], halves(20))
    found = [t for t in find_duplicates(cache, task) if t.same_bytes]
    assert [(t.row_train, t.row_test) for t in found] == [(0, 1), (2, 7), (0, 9)]
    assert [t.same_label for t in found] == [True, False, False]
    assert {t.cosine for t in found} == {1}
    assert {t.expected for t in found} == {0}
    assert find_duplicates(cache, task)[: len(found)] == found


def test_a_test_image_has_one_twin_and_the_same_bytes_come_first(world, make_cache, tmp_path):
    task, cache, _ = world
    X = cache.features("deep").copy()
    X[1] = X[0]
    # Row 1 is row 0 in bytes and features, row 601 another image by its bytes.
    other = copies(make_cache, tmp_path / "c.h5", X, [(0, 1), (4, 601)])
    found = find_duplicates(other, task)
    assert [(t.row_train, t.row_test, t.same_bytes) for t in found[:2]] == [
        (0, 1, True),
        (4, 601, True),
    ]
    assert len({t.row_test for t in found}) == len(found) > 15
    assert not any(t.same_bytes for t in found[2:])


def test_images_for_choices_count_as_learnt_from(make_cache, tmp_path, digits):
    cache = copies(make_cache, tmp_path / "c.h5", digits[0][:12], [(1, 2)])
    task = task_of(cache, "ab" * 6, ["train", "val", "test"] * 4)
    assert [(t.row_train, t.row_test) for t in find_duplicates(cache, task) if t.same_bytes] == [
        (1, 2)
    ]


def test_the_same_picture_in_another_file_is_found_however_few_there_are(make_cache, tmp_path):
    X = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    X[5] = X[0]
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    task = task_of(cache, "ababab", ["train"] * 4 + ["test"] * 2)
    (twin,) = find_duplicates(cache, task)
    assert (twin.row_train, twin.row_test, twin.same_bytes) == (0, 5, False)
    assert twin.cosine == pytest.approx(1, abs=1e-5)
    assert twin.expected == np.inf or twin.expected < 1


def test_near_copies_among_the_training_images_hide_no_twin(make_cache, tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 16))
    train = np.repeat(base, 4, axis=0)  # each four times, nearly
    X = np.concatenate([train, base[:30], rng.normal(size=(30, 16))])
    X = (X + rng.normal(0, 0.01, X.shape)).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    task = task_of(cache, "ab" * 430, ["train"] * 800 + ["test"] * 60)
    found = {t.row_test for t in find_duplicates(cache, task)}
    assert found >= set(range(800, 830))
    assert len(found) <= 31


def test_points_spread_evenly_surprise_as_often_as_is_said():
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 8)).astype(np.float32) for n in (3000, 2000))
    _, _, expected = expected_by_chance(FeatureRows.from_array(train), FeatureRows.from_array(test))
    for level in (10, 100, 500):
        assert 0.5 * level < (expected <= level).sum() < 1.7 * level
    # The dimension does not have to be that of the features.
    wide = rng.normal(size=(8, 100)).astype(np.float32)
    _, _, again = expected_by_chance(
        FeatureRows.from_array(train @ wide), FeatureRows.from_array(test @ wide)
    )
    assert 50 < (again <= 100).sum() < 170


def test_features_that_hardly_vary_hardly_count():
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 6)).astype(np.float32) for n in (400, 40))
    test[:20, 2:] = train[:20, 2:]  # twins but for what hardly varies
    train[:, :2] = 1e3 + 1e-3 * train[:, :2]
    test[:, :2] = 1e3 + 1e-3 * test[:, :2]
    near, gap, expected = expected_by_chance(
        FeatureRows.from_array(train), FeatureRows.from_array(test)
    )
    assert (near[:20] == np.arange(20)).all()
    assert (expected[:20] < 1e-2).all()
    assert gap[:20].max() < 1e-4


def test_images_all_alike_are_twins_and_no_trouble(make_cache, tmp_path):
    cache = make_cache(tmp_path / "c.h5", {"l": np.ones((40, 4), np.float32)})
    # Nothing varies, so that nothing can be compared.
    assert (
        find_duplicates(cache, task_of(cache, "ab" * 20, ["train", "train", "test", "test"] * 10))
        == []
    )
    X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    X[20:] = X[20]
    cache = make_cache(tmp_path / "d.h5", {"l": X})
    found = find_duplicates(cache, task_of(cache, "ab" * 20, ["train"] * 30 + ["test"] * 10))
    assert [t.row_test for t in found] == list(range(30, 40))


def test_without_a_test_there_are_no_twins(cache, digits):
    table = LabelTable("t", "t.csv", list(cache.paths), [str(d) for d in digits[1]])
    task = make_task(cache, table, test_size=0)
    assert find_duplicates(cache, task) == []
    assert check_task(cache, task, None).n_test == 0


def test_beyond_the_budget_a_sample_is_looked_at_and_that_is_said(world, monkeypatch):
    task, cache, _ = world
    assert count_compared(cache, task) == 320
    assert check_task(cache, task, None).notices == (
        "labels were not checked: no images were held out while learning",
    )
    monkeypatch.setattr(twins_module, "MAX_MULTIPLICATIONS", 300 * 64 * 100)
    assert count_compared(cache, task) == 100
    found = find_duplicates(cache, task)
    assert 0 < len(found) < 20
    assert found == find_duplicates(cache, task)
    assert any(
        "the features of 100 of them only" in n for n in check_task(cache, task, None).notices
    )
    # What 0.4 of the sample would have by chance, more than one of them all would.
    told = np.arange(100), np.ones(100), np.full(100, 0.4)
    monkeypatch.setattr(twins_module, "expected_by_chance", lambda *_: told)
    assert find_duplicates(cache, task) == []


@pytest.fixture(scope="module")
def judged(cache, digits):
    """Digits of which twenty have another label, and a head's answers out of folds."""
    X, y = digits
    rng = np.random.default_rng(0)
    wrong = rng.choice(600, 20, replace=False)
    given = y.copy()
    given[wrong] = (given[wrong] + rng.integers(1, 10, 20)) % 10
    model = LogisticRegression(C=0.3, max_iter=500)
    scores = cross_val_predict(model, X, given, cv=5, method="decision_function")
    answers = summarise_decision_values(
        np.arange(600),
        given,
        scores,
        np.arange(10),
        temperature=fit_temperature(scores, given),
        probabilistic=True,
    )
    task = task_of(cache, [str(d) for d in given], ["train"] * 600)
    return task, answers, wrong, y


def test_planted_wrong_labels_are_found_and_lead_the_list(judged):
    task, answers, wrong, y = judged
    found = review_labels(task, answers).issues
    rows = [s.row for s in found]
    assert set(wrong.tolist()) <= set(rows)
    assert len(set(wrong.tolist()) & set(rows[:20])) >= 16
    assert len(found) <= 45
    right = 0
    for s in found:
        assert s.given == task.classes[task.y[s.row]] != s.proposed
        assert 0 < s.margin <= 1
        right += s.row in wrong and s.proposed == str(y[s.row])
    assert right >= 15


def test_labels_are_ordered_by_how_much_likelier_the_other_is():
    task = Task(
        "t",
        ["a", "b"],
        np.arange(4),
        np.array([0, 1, 1, 0]),
        np.full(4, "train"),
        None,
        (),
        np.arange(4),
    )
    scores = np.array([[0.0, 1.5], [9.0, 0.0], [3.0, 0.0], [9.0, 0.0]])
    answers = summarise_decision_values(
        task.rows, task.y, scores, np.arange(2), temperature=1.0, probabilistic=True
    )
    found = review_labels(task, answers).issues
    assert [(s.row, s.given, s.proposed) for s in found] == [(1, "b", "a"), (2, "b", "a")]
    assert found[1].margin == pytest.approx(np.tanh(1.5), rel=1e-5)
    p = np.array([[0.5, 0.01, 0.49], [0.85, 0.15, 0]])  # the margin is less where the odds are more
    answers = summarise_decision_values(
        task.rows[1:3], np.ones(2, int), np.log(p + 1e-9), np.array([0, 1, 2]), temperature=1.0,
        probabilistic=True,
    )  # fmt: skip
    assert [(s.row, round(s.margin, 2)) for s in review_labels(task, answers).issues] == [
        (1, 0.49),
        (2, 0.7),
    ]
    odds = np.log([4.9, 5.1])  # the least that is listed is five to one
    scores = np.stack([np.zeros(2), odds], axis=1)
    answers = summarise_decision_values(
        task.rows[[0, 3]], np.zeros(2, int), scores, np.arange(2), temperature=1.0,
        probabilistic=True,
    )  # fmt: skip
    assert [s.row for s in review_labels(task, answers).issues] == [3]


def test_a_class_that_was_not_taught_is_no_wrong_label():
    split = np.array(["train", "train", "test"])
    task = Task("t", ["a", "b", "new"], np.arange(3), np.arange(3), split, None, (), np.arange(3))
    answers = summarise_decision_values(
        np.arange(3), np.arange(3), np.array([[0, 9.0], [0, 9], [0, 9]]), np.arange(2),
        temperature=1.0, probabilistic=True,
    )  # fmt: skip
    assert [s.row for s in review_labels(task, answers).issues] == [0]


def test_without_calibrated_probabilities_no_label_is_doubted_and_that_is_said(cache, judged):
    task, answers, _, _ = judged
    scores = np.eye(10)[answers.predicted]
    bare = summarise_decision_values(
        answers.rows, answers.truth, scores, np.arange(10), temperature=None, probabilistic=True
    )
    assert review_labels(task, bare).issues == []
    found = check_task(cache, task, bare)
    assert found.notices == ("labels were not checked: the head has no calibrated probabilities",)
    assert found.labels.n_judged == 0


def test_small_classes_are_listed_with_what_follows(make_cache, tmp_path):
    labels = ["big"] * 12 + ["few"] * 9 + ["one"] + ["none"] * 2 + ["ten"] * 10
    cache = make_cache(tmp_path / "c.h5", {"l": np.eye(34, dtype=np.float32)})
    splits = ["train"] * 22 + ["test"] * 2 + ["train"] * 10
    found = find_small_classes(task_of(cache, labels, splits))
    assert [(s.label, s.n_train) for s in found] == [("none", 0), ("one", 1), ("few", 9)]
    assert "always counted as wrong" in found[0].problem
    assert "of one image only" in found[1].problem
    assert found[2].problem == "fewer than 10 training images"


def test_classes_of_one_group_or_without_validation_images_are_small(make_cache, tmp_path):
    cache = make_cache(tmp_path / "c.h5", {"l": np.eye(40, dtype=np.float32)})
    labels = ["a"] * 20 + ["b"] * 20
    groups = ["g"] * 20 + ["h", "i"] * 10
    (found,) = find_small_classes(task_of(cache, labels, ["train"] * 40, groups))
    assert (found.label, found.n_train) == ("a", 20)
    assert "of one group only" in found.problem
    splits = ["train"] * 39 + ["val"]
    groups[-1] = "j"
    (found,) = find_small_classes(task_of(cache, labels, splits, groups))
    assert (found.label, "no validation image" in found.problem) == ("a", True)
    splits = ["val", *["train"] * 38, "val"]
    groups[0] = "k"
    assert find_small_classes(task_of(cache, labels, splits, groups)) == []


def test_everything_is_told_in_a_few_sentences_and_as_json(make_cache, tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    y = (np.arange(60) // 2 + np.arange(60) % 2) % 10  # neighbours have different labels
    cache = copies(make_cache, tmp_path / "c.h5", X, [(2 * i, 2 * i + 1) for i in range(5)])
    task = task_of(cache, [str(d) for d in y], halves(60))
    scores = 9.0 * np.eye(10)[y]
    scores[:4] = 9.0 * np.eye(10)[(y[:4] + 1) % 10]
    train = np.flatnonzero(task.split == "train")
    answers = summarise_decision_values(
        train, y[train], scores[train], np.arange(10), temperature=1.0, probabilistic=True
    )
    found = check_task(cache, task, answers)
    same, doubted, small = found.summary_lines()
    assert same.startswith("5 of 30 test images are, byte for byte, among those learnt from")
    assert "chosen by, 5 under another label, which makes the score too good" in same
    assert same.endswith(
        ": '0001.png' = '0000.png', '0003.png' = '0002.png', '0005.png' = '0004.png', ..."
    )
    assert same.count(" = ") == 3
    assert doubted.startswith("2 of 30 labels are worth a look")
    assert "'0000.png' ('0', looks like '1')" in doubted
    assert small.startswith("10 classes have fewer than 10 training images: ")
    told = json.loads(json.dumps(found.to_dict()))
    assert list(told) == ["twins", "suspects", "small_classes", "notices", "suspects_expected"]
    assert told["twins"][0] == {
        "train": "0000.png", "test": "0001.png", "cosine": 1.0, "same_bytes": True,
        "same_label": False, "expected": 0.0,
    }  # fmt: skip
    assert told["suspects"][0] | {"margin": 0, "wrong_probability": 0} == {
        "path": "0000.png", "given": "0", "proposed": "1", "margin": 0, "wrong_probability": 0
    }  # fmt: skip
    assert len(told["small_classes"]) == 10
    assert told["notices"] == []


def test_nothing_found_is_nothing_told(make_cache, tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    task = task_of(cache, "ab" * 30, ["train"] * 40 + ["test"] * 20)
    found = check_task(cache, task, None)
    assert found.summary_lines() == []
    assert found.to_dict()["twins"] == []

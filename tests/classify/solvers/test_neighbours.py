"""`knn`: neighbours found once, for every k and every task; their counts smoothed."""

import dataclasses

import numpy as np
import pytest
import skops.io
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify import fit, load_head, save_head
from classify.data.features import FeatureRows
from classify.data.folds import plan_content_folds, plan_folds
from classify.errors import HeadFileError
from classify.evaluation.predictions import UNSEEN_CLASS_SCORE
from classify.heads.models import SMOOTHING_ATTR, SklearnModel
from classify.heads.registry import HEADS
from classify.solvers import neighbours
from classify.solvers.neighbours import (
    SMOOTHING,
    cross_val_path,
    find_neighbours,
    load_or_find_neighbours,
)
from classify.store import store_dir
from classify.training.train import train
from classify.training.training_set import TrainingSet

KNN = HEADS["knn"]


def world(n=400, dim=12, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    X = 3 * rng.standard_normal((n, dim)) + 2 * rng.standard_normal((classes, dim))[y] + 5
    return X.astype(np.float32), y


def by_hand(k, X, y):
    model = KNeighborsClassifier(n_neighbors=min(k, len(X)), algorithm="brute")
    return make_pipeline(StandardScaler(), model).fit(X, y)


@pytest.mark.parametrize("n", [400, 90], ids=["many", "fewer than k"])
def test_every_k_is_scikit_learns(n):
    X, y = world(n)
    folds = plan_folds(y, 0)
    steps = list(
        cross_val_path(KNN.grid, find_neighbours(FeatureRows.from_array(X), folds), y, folds, 4)
    )
    assert [step.param for step in steps] == list(KNN.grid)
    for step in steps:
        expected = []
        for rows, held in folds.folds:
            plain, k = by_hand(int(step.param), X[rows], y[rows]), min(step.param, len(rows))
            more = SMOOTHING / 4
            expected.append((k * plain.predict_proba(X[held]) + more) / (k + SMOOTHING))
        assert np.allclose(np.exp(step.decision_values), np.concatenate(expected), rtol=1e-5)


def test_the_final_head_counts_as_its_folds_did():
    X, y = world()
    unseen = world(seed=1)[0]
    found = neighbours.fit_neighbours(10.0, X.copy(), y, 4)
    plain = by_hand(10, X, y)
    expected = (10 * plain.predict_proba(unseen) + SMOOTHING / 4) / (10 + SMOOTHING)
    assert np.allclose(np.exp(found.decision_values(unseen)), expected, rtol=1e-5)
    assert (found.decision_values(unseen).argmax(axis=1) == plain.predict(unseen)).all()


def test_a_class_that_a_fold_lacks_can_never_win():
    X, y = world()
    folds = plan_folds(y, 0)
    one = folds.select_fold(0)
    y = np.where(one.part == 1, np.where(y == 2, 1, y), y)  # class 2 is in the held-out part alone
    (step, *_) = cross_val_path((5.0,), find_neighbours(FeatureRows.from_array(X), one), y, one, 4)
    assert (step.decision_values[:, 2] == UNSEEN_CLASS_SCORE).all()


def test_it_is_found_once_for_all_tasks(make_cache, tmp_path, monkeypatch):
    X, y = world()
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    rows = FeatureRows.from_cache(cache, ["l"], np.arange(400))
    folds = plan_content_folds(y, cache.column("sha256"))
    first = load_or_find_neighbours(cache, ["l"], rows, folds)
    (path,) = store_dir(cache).glob("neighbours-*")

    def never(*_, **__):
        raise AssertionError("found again")

    with monkeypatch.context() as patch:
        patch.setattr(neighbours, "find_neighbours", never)
        again = load_or_find_neighbours(
            cache, ["l"], rows, plan_content_folds(y % 2, cache.column("sha256"))
        )
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        others = np.arange(390)
        for some, parts in (
            (
                FeatureRows.from_cache(cache, ["l"], others),
                plan_content_folds(y[:390], cache.column("sha256")[:390]),
            ),
            (rows, folds.select_fold(1)),
            (
                rows,
                dataclasses.replace(folds, val_indices=[held[1:] for held in folds.val_indices]),
            ),
        ):
            with pytest.raises(AssertionError, match="found again"):
                load_or_find_neighbours(cache, ["l"], some, parts)
    path.write_bytes(path.read_bytes()[:-20])
    mended = load_or_find_neighbours(cache, ["l"], rows, folds)
    assert all(np.array_equal(a, b) for a, b in zip(first, mended, strict=True))


@pytest.mark.parametrize("what", ["beyond", "held out", "kind", "shape", "name"])
def test_what_is_kept_is_not_believed(make_cache, tmp_path, what):
    X, y = world()
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    rows, folds = FeatureRows.from_cache(cache, ["l"], np.arange(400)), plan_folds(y, 0)
    first = load_or_find_neighbours(cache, ["l"], rows, folds)
    (path,) = store_dir(cache).glob("neighbours-*")
    with safe_open(path, "np") as file:
        about = {k: v for k, v in file.metadata().items() if k != "crc32"}
    arrays = load_file(path)
    if what == "beyond":
        arrays["0"][0, 0] = 400
    elif what == "held out":
        arrays["0"][0, 0] = folds.val_indices[0][0]
    elif what == "kind":
        arrays["0"] = arrays["0"].astype(np.float32)
    elif what == "shape":
        arrays["0"] = np.ascontiguousarray(arrays["0"][:, 1:])
    else:
        arrays["9"] = arrays.pop("0")
    save_file(arrays, path, about)
    again = load_or_find_neighbours(cache, ["l"], rows, folds)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_further_task_finds_nothing(make_cache, make_table, tmp_path, monkeypatch):
    X, y = world()
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    split = ["test" if i % 8 == 0 else "train" for i in range(400)]
    tables = [
        make_table(tmp_path / f"{name}.csv", "path,label,split", zip(cache.paths, of, split))  # noqa: B905
        for name, of in (("four", y), ("two", y % 2))
    ]
    plain = [fit(cache, table, "knn")[1].accuracy for table in tables]
    monkeypatch.setattr(neighbours, "find_neighbours", None)
    assert [fit(cache, table, "knn")[1].accuracy for table in tables] == plain


def test_training_without_a_cache_finds_the_same(make_cache, tmp_path):
    X, y = world()
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    rows, folds = FeatureRows.from_cache(cache, ["l"], np.arange(400)), plan_folds(y, 0)
    near = load_or_find_neighbours(cache, ["l"], rows, folds)
    one = train(KNN, TrainingSet(rows, y, 4, folds))
    other = train(KNN, TrainingSet(rows, y, 4, folds, find_neighbours=lambda *_: near))
    assert one.selected.path == other.selected.path


@pytest.fixture
def saved(cache, table, tmp_path):
    head, _ = fit(cache, table, "knn", "fine", prepare="standardise")
    save_head(head, tmp_path / "h")
    return head, tmp_path / "h"


def test_smoothing_is_saved_with_the_head(cache, saved):
    head, path = saved
    X = FeatureRows.from_cache(cache, ["fine"], np.arange(600)).to_array()
    assert np.exp(head.scores(X)).min() > 1e-4
    assert np.array_equal(load_head(path).scores(X), head.scores(X))


def test_heads_saved_before_count_as_they_did(cache, saved):
    head, path = saved
    X = FeatureRows.from_cache(cache, ["fine"], np.arange(600)).to_array()
    model = skops.io.loads(skops.io.dumps(head.scorer.estimator), trusted=[])
    delattr(model["classify"], SMOOTHING_ATTR)
    save_head(dataclasses.replace(head, scorer=SklearnModel(model, 64, 10)), path)
    expected = np.log(np.maximum(model.predict_proba(X), 1e-12))
    assert np.allclose(load_head(path).scores(X), expected)


@pytest.mark.parametrize("value", [-1.0, 0, np.nan, "two", np.ones(10)])
def test_a_tampered_smoothing_is_refused(saved, value):
    head, path = saved
    model = skops.io.loads(skops.io.dumps(head.scorer.estimator), trusted=[])
    setattr(model["classify"], SMOOTHING_ATTR, value)
    save_head(dataclasses.replace(head, scorer=SklearnModel(model, 64, 10)), path)
    with pytest.raises(HeadFileError, match="smoothed by what is no number"):
        load_head(path)

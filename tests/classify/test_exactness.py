"""What is solved and minimised here is what scikit-learn solves and minimises."""

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from classify.data.features import FeatureRows
from classify.data.folds import plan_content_folds, plan_folds
from classify.heads.registry import HEADS
from classify.solvers.closed_form import fit_closed_form, sum_classes
from classify.solvers.gram import GramStats, PrincipalBasis
from classify.solvers.gram_cache import _recent, compute_fold_bases
from classify.solvers.lbfgs import Problem, fit_linear
from classify.store import store_dir
from classify.training import train as train_module
from classify.training.class_weights import resolve_class_weights
from classify.training.train import TrainingSet, train


def world(n, dim, classes, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    means = 0.4 * rng.standard_normal((classes, dim))
    X = rng.standard_normal((n, dim)) * rng.uniform(0.5, 3, dim) + 2 + means[y]
    return X.astype(np.float32), y


@pytest.fixture(params=[(900, 40, 5), (120, 200, 3), (300, 30, 2)], ids=["tall", "wide", "two"])
def case(request):
    X, y = world(*request.param)
    return X, y, request.param[2], StandardScaler().fit_transform(X.astype(np.float64))


def whole(X, y, classes):
    folds = plan_folds(y, 0)
    n_parts = int(folds.part.max()) + 1
    sums = sum_classes(FeatureRows.from_array(X), y, classes, folds.part, n_parts)
    return compute_fold_bases(None, (), FeatureRows.from_array(X), folds), sums, folds


@pytest.mark.parametrize("alpha", [0.1, 10, 1000])
def test_ridge_is_ridge(case, alpha):
    X, y, classes, Z = case
    basis, sums, _ = whole(X, y, classes)
    (found,) = fit_closed_form("ridge", basis[-1], sums.without(), [alpha])
    plain = RidgeClassifier(alpha=alpha).fit(Z, y)
    expected = plain.decision_function(Z)
    scores = found.decision_values(X)
    ours = scores[:, 1] if classes == 2 else scores
    assert np.abs(ours - expected).max() < 1e-4
    assert (scores.argmax(axis=1) == plain.predict(Z)).all()


@pytest.mark.parametrize("shrinkage", [1.0, 0.3, 0.01])
def test_lda_is_its_formula(case, shrinkage):
    X, y, classes, Z = case
    basis, sums, _ = whole(X, y, classes)
    (found,) = fit_closed_form("lda", basis[-1], sums.without(), [shrinkage])
    means = np.stack([Z[y == k].mean(axis=0) for k in range(classes)])
    spread = (Z - means[y]).T @ (Z - means[y]) / len(y)
    dim = Z.shape[1]
    shrunk = (1 - shrinkage) * spread + shrinkage * np.trace(spread) / dim * np.eye(dim)
    coef = np.linalg.solve(shrunk, means.T)
    prior = np.log(np.bincount(y) / len(y))
    expected = Z @ coef - 0.5 * (means.T * coef).sum(axis=0) + prior
    assert np.abs(found.decision_values(X) - expected).max() < 2e-3 * np.abs(expected).max()


def test_ncm_is_the_nearest_centroid(case):
    X, y, classes, Z = case
    basis, sums, _ = whole(X, y, classes)
    (found,) = fit_closed_form("ncm", basis[-1], sums.without(), [None])
    assert (found.decision_values(X).argmax(axis=1) == NearestCentroid().fit(Z, y).predict(Z)).all()


def test_a_fold_is_all_parts_but_its_own(case):
    X, y, classes, _ = case
    basis, sums, folds = whole(X, y, classes)
    train_rows, held = folds.folds[0]
    (found,) = fit_closed_form("ridge", basis[0], sums.without(0), [10.0])
    ready = StandardScaler().fit(X[train_rows].astype(np.float64))
    plain = RidgeClassifier(alpha=10.0).fit(ready.transform(X[train_rows]), y[train_rows])
    expected = plain.decision_function(ready.transform(X[held]))
    scores = found.decision_values(X[held])
    assert np.abs((scores[:, 1] if classes == 2 else scores) - expected).max() < 1e-4


def cross_entropy(scores, y, weights):
    return weights @ (logsumexp(scores, axis=1) - scores[np.arange(len(y)), y])


def squared_hinge(scores, y, weights):
    signs = np.where(y[:, None] == np.arange(scores.shape[1]), 1, -1)
    return weights @ (np.maximum(0, 1 - signs * scores) ** 2).sum(axis=1)


@pytest.mark.parametrize("C", [0.001, 0.1, 10])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("loss", ["log", "hinge"])
# Not with two classes, of which scikit-learn penalises the one difference and not two vectors.
@pytest.mark.parametrize("case", [(900, 40, 5), (120, 200, 3)], indirect=True, ids=["tall", "wide"])
def test_no_minimum_of_scikit_learns_is_lower(case, C, balanced, loss):
    X, y, classes, Z = case
    rows, weight = FeatureRows.from_array(X), "balanced" if balanced else None
    spectrum = compute_fold_bases(None, (), rows, plan_folds(y, 0))[-1]
    each = resolve_class_weights(weight, np.arange(classes), y)
    weights = np.ones(len(y)) if each is None else each[y]
    problem = Problem(rows, weights, spectrum, rows.subset(np.zeros(0, np.intp)))
    found, flat = fit_linear(loss, C, problem, y, classes)
    assert flat
    if loss == "log":
        plain = LogisticRegression(C=C, tol=1e-9, max_iter=20_000, class_weight=weight)
    else:  # its intercept is penalised, here hardly
        plain = LinearSVC(
            C=C, tol=1e-8, max_iter=200_000, dual=False, intercept_scaling=1000, class_weight=weight
        )
    plain.fit(Z, y)
    value = {"log": cross_entropy, "hinge": squared_hinge}[loss]

    def objective(coef, intercept):
        return (coef**2).sum() / 2 + C * value(Z @ coef.T + intercept, y, weights)

    ours, theirs = (objective(m.coef, m.intercept) for m in (found, Plain(plain)))
    # Beside what there was to gain: where all is fitted, next to nothing is left to compare.
    assert ours - theirs < 1e-6 * objective(0 * found.coef, 0 * found.intercept)
    assert np.abs(found.decision_values(X) - (Z @ found.coef.T + found.intercept)).max() < 1e-4


class Plain:
    def __init__(self, model):
        self.coef, self.intercept = model.coef_, model.intercept_


@pytest.mark.parametrize("name", ["softmax", "linear-svm", "ridge", "rbf-svm"])
def test_more_than_memory_holds_gives_the_same_head(monkeypatch, name):
    X, y = world(900, 40, 5)
    rows, folds = FeatureRows.from_array(X), plan_folds(y, 0)
    lesson = TrainingSet(rows, y, 5, folds, compute_fold_bases(None, (), rows, folds))
    monkeypatch.setattr("classify.solvers.rbf_svm.MAX_EXACT_ROWS", 0)  # by landmarks, in memory too
    monkeypatch.setattr("classify.solvers.rbf_svm.MAX_LANDMARKS", 100)
    plain = train(HEADS[name], lesson)
    monkeypatch.setattr(train_module, "MAX_IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr("classify.data.features.BLOCK_BYTES", 4 * 40 * 480)
    blocks = train(HEADS[name], lesson)
    agree = plain.scorer.decision_values(X).argmax(axis=1) == blocks.scorer.decision_values(
        X
    ).argmax(axis=1)
    assert agree.mean() > 0.9  # C is chosen on one fold, and may be another
    if name != "ridge":
        assert any("gone through in blocks" in notice for notice in blocks.notices)


def test_a_class_that_a_fold_lacks_is_no_obstacle():
    X, y = world(60, 10, 3)
    y[:] = y % 2
    y[0] = 2  # one image: in no fold's held-out part
    rows, folds = FeatureRows.from_array(X), plan_folds(y, 0)
    lesson = TrainingSet(rows, y, 3, folds, compute_fold_bases(None, (), rows, folds))
    for name in HEADS:
        assert train(HEADS[name], lesson).scorer.decision_values(X).shape == (60, 3)


def test_statistics_are_kept_and_renewed(make_cache, tmp_path, monkeypatch):
    X, y = world(900, 8, 3)
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    rows = FeatureRows.from_cache(cache, ["l"], np.arange(800))
    folds = plan_content_folds(y[:800], cache.column("sha256")[:800])
    first = compute_fold_bases(cache, ["l"], rows, folds)
    fresh = compute_fold_bases(None, (), rows, folds)
    for one, other in zip(first, fresh, strict=True):
        assert np.allclose(one.values, other.values)
    kinds = sorted(path.name.partition("-")[0] for path in store_dir(cache).iterdir())
    assert kinds == ["spectra"]

    def never(*_, **__):
        raise AssertionError("computed again")

    _recent.clear()
    with monkeypatch.context() as patch:
        patch.setattr(GramStats, "from_rows", never)
        patch.setattr(PrincipalBasis, "from_gram", never)
        again = compute_fold_bases(cache, ["l"], rows, folds)
        assert all(np.array_equal(a.vectors, b.vectors) for a, b in zip(first, again, strict=True))
        fewer = FeatureRows.from_cache(cache, ["l"], np.arange(790))
        with pytest.raises(AssertionError, match="computed again"):
            compute_fold_bases(
                cache, ["l"], fewer, plan_content_folds(y[:790], cache.column("sha256")[:790])
            )
    for path in store_dir(cache).iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    _recent.clear()
    repaired = compute_fold_bases(cache, ["l"], rows, folds)
    assert np.allclose(repaired[-1].values, first[-1].values)

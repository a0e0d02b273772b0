"""Features far from zero or no numbers, rows not learnt from, many classes."""

import json
import resource
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify import HeadClassifier, fit, load_head, save_head
from classify.data.features import FeatureRows
from classify.data.folds import plan_folds
from classify.errors import CallError, HeadFileError
from classify.heads.models import LinearModel, MLPModel
from classify.heads.registry import DEFAULT_HEADS, HEADS
from classify.labels.table import LabelTable
from classify.solvers.gram_cache import _recent, compute_fold_bases
from classify.solvers.lbfgs import Problem, fit_linear
from featurize.cache.reader import FeatureCache


def world(n=400, dim=12, classes=4, seed=0):
    """Features that are whole numbers, so that float32 holds them a million away as well."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    means = rng.standard_normal((classes, dim))
    X = np.round(30 * (rng.standard_normal((n, dim)) + 0.7 * means[y]))
    return X.astype(np.float32), y


# --- far from zero -------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("away", [1e4, 1e7, -1e7])
def test_where_zero_is_makes_no_difference(head, away):
    X, y = world()
    far = (X + np.float32(away)).astype(np.float32)
    assert (far.astype(np.float64) - away == X).all()  # the very same numbers, elsewhere
    near = HeadClassifier(head).fit(X, y)
    moved = HeadClassifier(head).fit(far, y)
    assert moved.setting_ == near.setting_
    assert (moved.predict(far) == near.predict(X)).mean() > 0.995
    if HEADS[head].solver != "lbfgs":
        close = 1e-3 if head == "rbf-svm" else 1e-5  # libsvm ends there
        assert (
            np.abs(moved.scorer_.decision_values(far) - near.scorer_.decision_values(X)).max()
            < close
        )
    else:  # which end where their gradient is flat: not at one point, but at one height
        ours, theirs = minimum(moved, far, y), minimum(near, X, y)
        assert abs(ours / theirs - 1) < 1e-6


def minimum(fitted: HeadClassifier, X, y) -> float:
    """The height at which a fit ended, of what it minimises."""
    kind, scores = HEADS[fitted.head], fitted.scorer_.decision_values(X).astype(np.float64)
    if kind.loss == "log":
        losses = logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
    else:
        signs = np.where(y[:, None] == np.arange(scores.shape[1]), 1, -1)
        losses = (np.maximum(0, 1 - signs * scores) ** 2).sum(axis=1)
    return (fitted.scorer_.coef**2).sum() / 2 + fitted.setting_ * losses.sum()


@pytest.mark.parametrize("loss", ["log", "hinge"])
def test_fits_converge_far_from_zero_and_beside_columns_nearly_constant(loss):
    X, y = world()
    X[:, 0] = 5 + 1e-4 * np.sign(X[:, 0])
    for away in (0, 1e4):
        Z = (X + np.float32(away)).astype(np.float32)
        rows = FeatureRows.from_array(Z)
        spectrum = compute_fold_bases(None, (), rows, plan_folds(y, 0))[-1]
        problem = Problem(rows, np.ones(len(y)), spectrum, rows.subset(np.zeros(0, np.intp)))
        for C in (1e-4, 1e-2, 1, 100):
            assert fit_linear(loss, C, problem, y, 4)[1]


def test_columns_nearly_constant_count_as_in_scikit_learn():
    """Where all that tells the classes apart is the fourth digit of a channel."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    shape = rng.standard_normal((3, 8))[y] + rng.standard_normal((600, 8))
    X = (5 + 1e-5 * shape).astype(np.float32)
    train, test = slice(0, 400), slice(400, 600)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    accuracy = theirs.fit(X[train].astype(np.float64), y[train]).score(X[test], y[test])
    assert accuracy > 0.6
    for head in DEFAULT_HEADS:
        ours = HeadClassifier(head).fit(X[train], y[train]).score(X[test], y[test])
        assert ours > accuracy - 0.04, head


# --- rows that are not learnt from ---------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "times", [pytest.param(1e8, marks=pytest.mark.slow), 1e10, np.nan], ids=str
)
@pytest.mark.parametrize("what", ["unlabelled", pytest.param("test", marks=pytest.mark.slow)])
def test_no_row_that_is_not_learnt_from_moves_a_head(make_cache, tmp_path, head, times, what):
    X, y = world(600, 10, 3)
    # Enough of each class, so that folds are drawn by content and statistics may be kept.
    labels = [str(c) for c in y]
    sides = ["test" if i % 5 == 0 else "train" for i in range(600)]
    odd = 300 if what == "test" else 599
    spoilt = X.copy()
    spoilt[odd] *= times
    found = []
    for name, features in (("sane.h5", X), ("spoilt.h5", spoilt)):
        cache = make_cache(tmp_path / name, {"l": features.astype(np.float32)})
        named = [i for i in range(600) if i != 599]
        table = LabelTable(
            "t", "t.csv", [cache.paths[i] for i in named], [labels[i] for i in named],
            [sides[i] for i in named],
        )  # fmt: skip
        _recent.clear()
        if what == "test" and np.isnan(times) and name == "spoilt.h5":
            with pytest.raises(CallError, match=r"0300\.png"):
                fit(cache, table, head)
            return
        found.append(fit(cache, table, head)[0])
    sane, other = found
    assert sane.settings == other.settings
    assert sane.temperature == other.temperature
    if isinstance(sane.scorer, LinearModel):
        assert all(np.array_equal(a, vars(other.scorer)[k]) for k, a in vars(sane.scorer).items())
    assert np.array_equal(sane.scores(X), other.scores(X))


@pytest.mark.parametrize("times", [1e8, 1e10])
@pytest.mark.parametrize("head", ["ridge", "lda", "ncm", "softmax"])
def test_a_validation_row_decides_and_is_not_learnt_from(make_cache, tmp_path, head, times):
    X, y = world(400, 10, 3)
    sides = ["val" if i % 4 == 0 else "train" for i in range(400)]
    found = []
    for name, factor in (("sane.h5", 1), ("spoilt.h5", times)):
        features = X.copy()
        features[200] *= np.float32(factor)
        cache = make_cache(tmp_path / name, {"l": features})
        table = LabelTable("t", "t.csv", list(cache.paths), [str(c) for c in y], sides)
        found.append(fit(cache, table, head, prepare="standardise")[0])
    sane, other = found
    if sane.settings == other.settings:
        apart = np.abs(sane.scorer.coef - other.scorer.coef).max()
        assert apart <= 1e-10 * np.abs(sane.scorer.coef).max()
    assert np.array_equal(sane.scorer.scale, other.scorer.scale) or np.allclose(
        sane.scorer.scale, other.scorer.scale, rtol=1e-12, atol=0
    )


# --- no numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused_by_name(make_cache, tmp_path, head, value):
    X, y = world(200, 6, 2)
    X[37, 2] = value
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    table = LabelTable("t", "t.csv", list(cache.paths), [str(c) for c in y])
    with pytest.raises(CallError, match=r"'0037.png' in .*c.h5 are not all finite"):
        fit(cache, table, head, test_size=0)


@pytest.mark.long
@pytest.mark.parametrize("head", ["knn", "rbf-svm"])
def test_the_command_names_the_image(make_cache, make_table, tmp_path, run_cli, head):
    X, y = world(200, 6, 2)
    X[37] = np.nan
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    table = make_table(tmp_path / "t.csv", "path,label", zip(cache.paths, y, strict=True))
    done = run_cli("fit", cache.path, "--labels", table, "--head", head, "-o", tmp_path / "h.head")
    assert done.returncode == 2
    assert "0037.png" in done.stderr
    assert "unexpected" not in done.stderr


ONES = {"mean": np.zeros(3), "scale": np.ones(3), "coef": np.ones((2, 3)), "intercept": np.zeros(2)}
LAYERED = ONES | {"hidden": np.ones((2, 3)), "bias": np.zeros(2), "coef": np.ones((2, 2))}


@pytest.mark.parametrize("kind", [LinearModel, MLPModel])
@pytest.mark.parametrize("value", [0, -1, 1e-45, np.nan, np.inf])
def test_a_scale_that_nothing_can_be_divided_by_is_refused(kind, value):
    arrays = ONES if kind is LinearModel else LAYERED
    with pytest.raises(CallError, match="scale is not"):
        kind(**arrays | {"scale": np.array([1, value, 1], np.float32)})


@pytest.mark.parametrize("kind", [LinearModel, MLPModel])
def test_scores_too_large_are_said_to_be_so(kind):
    arrays = ONES if kind is LinearModel else LAYERED
    scorer = kind(**arrays | {"coef": 3e38 * arrays["coef"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scorer.decision_values(np.zeros((1, 3), np.float32)).tolist() == [[0, 0]]
        with pytest.raises(CallError, match="not finite numbers"):
            scorer.decision_values(np.full((5, 3), 2, np.float32))


@pytest.mark.long
def test_a_hostile_head_is_refused_or_says_so(cache, parity, tmp_path, run_cli):
    fit_head, _ = fit(cache, parity, "ridge")
    scorer = fit_head.scorer
    for name, array in (("scale", 1e-45), ("coef", 3e38)):
        path = tmp_path / f"{name}.head"
        hostile = np.full(getattr(scorer, name).shape, array, np.float32)
        bad = object.__new__(LinearModel)
        vars(bad).update(vars(scorer) | {name: hostile})
        save_head(replace(fit_head, scorer=bad), path)
        if name == "scale":
            with pytest.raises(HeadFileError, match="scale is not"):
                load_head(path)
        done = run_cli("predict", path, cache.path)
        assert done.returncode == 2
        assert "Warning" not in done.stderr
        assert "nan" not in done.stdout


# --- layers that say they are the same -----------------------------------------------------


class Alike(FeatureCache):
    """Says of every layer that it was made like every other."""

    def layer(self, name=None):
        return replace(super().layer(name), fingerprint="f" * 64)


def test_no_layer_is_given_anothers_spectrum(make_cache, tmp_path):
    X, y = world(300, 12, 3)
    layers = {"a": X[:, :6], "b": X[:, 6:], "c": X}
    cache = Alike(make_cache(tmp_path / "c.h5", layers).path)
    folds = plan_folds(y, 0)
    for _ in range(2):  # computed, then recalled
        for name, features in layers.items():
            found = compute_fold_bases(
                cache, [name], FeatureRows.from_cache(cache, [name], np.arange(300)), folds
            )
            Z = StandardScaler().fit_transform(features.astype(np.float64))
            assert np.allclose(found[-1].values, eigh(Z.T @ Z, eigvals_only=True))


# --- many classes --------------------------------------------------------------------------


def within(gigabytes: float):
    """For a child process: no more address space than that."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)

    return limit


@pytest.mark.parametrize(
    "head", [pytest.param(head, marks=pytest.mark.slow) for head in ("ncm", "ridge", "lda")]
)
def test_many_classes_take_no_matrix_of_rows_by_classes(
    make_cache, make_table, tmp_path, run_cli, head
):
    """One of 30,000 images and 15,000 classes in five parts would be 9 GB."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(15_000), 2)
    means = rng.standard_normal((15_000, 8))
    X = (means[y] + 0.01 * rng.standard_normal((30_000, 8))).astype(np.float32)
    paths = [f"{i:05}.png" for i in range(30_000)]
    cache = make_cache(tmp_path / "c.h5", {"l": X}, paths)
    table = make_table(tmp_path / "t.csv", "path,label", zip(paths, y, strict=True))
    done = run_cli(
        "fit", cache.path, "--labels", table, "--head", head, "-o", tmp_path / "h.head", "--json",
        preexec_fn=within(4), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if head != "ridge":  # which needs a column for each class
        assert json.loads(done.stdout)["accuracy"] > 0.3


@pytest.mark.long
@pytest.mark.parametrize("head", ["softmax", "linear-svm", "rbf-svm"])
def test_what_the_solver_could_not_hold_is_refused_with_its_bytes(make_cache, tmp_path, head):
    n = 80_000
    X = np.random.default_rng(0).standard_normal((n, 256)).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": X}, [f"{i:05}.png" for i in range(n)])
    y = [str(i // 2) for i in range(n)]
    table = LabelTable("t", "t.csv", list(cache.paths), y)
    with pytest.raises(CallError, match=r"40,000 classes .* would need \d+,\d+,\d+,\d+ bytes"):
        fit(cache, table, head)

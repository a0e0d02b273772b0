"""The linear heads as citizens of scikit-learn: by its checks, and beside its classifiers."""

import pickle

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    ShuffleSplit,
    StratifiedKFold,
    cross_validate,
)
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from classify import (
    HeadClassifier,
    LinearSVMClassifier,
    NearestMeanClassifier,
    RidgeHeadClassifier,
    ShrunkLDAClassifier,
    SoftmaxClassifier,
)
from classify.training.class_weights import count_repeats

ALL = (
    SoftmaxClassifier,
    LinearSVMClassifier,
    RidgeHeadClassifier,
    ShrunkLDAClassifier,
    NearestMeanClassifier,
)
FIXED = {
    "softmax": SoftmaxClassifier(0.3),
    "linear-svm": LinearSVMClassifier(0.05),
    "ridge": RidgeHeadClassifier(20.0),
    "lda": ShrunkLDAClassifier(0.2),
    "ncm": NearestMeanClassifier(),
}


@pytest.mark.filterwarnings("ignore")  # the checks' own data gives warnings on purpose
@parametrize_with_checks([kind() for kind in ALL])
def test_scikit_learns_own_checks(estimator, check):
    """All of them: no failure is expected."""
    check(estimator)


def world(n=240, dim=8, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, n, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    means = 0.7 * rng.standard_normal((classes, dim))
    X = (rng.standard_normal((n, dim)) + means[y]) * rng.uniform(0.5, 3, dim) + 2
    return X.astype(np.float32), np.array(["ant", "bee", "cow", "dog"])[y]


@pytest.fixture(params=[3, 2], ids=["three", "two"])
def data(request):
    return world(classes=request.param)


# --- settings mean what they mean in scikit-learn ------------------------------------------


def beside(ours, plain, X, y, weights=None):
    """Coefficients and intercept on the features as given, of ours and of a pipeline."""
    scale = StandardScaler().fit(X.astype(np.float64), sample_weight=weights)
    options = {} if weights is None else {"sample_weight": weights}
    plain.fit(scale.transform(X.astype(np.float64)), y, **options)
    coef = np.atleast_2d(plain.coef_) / scale.scale_  # ridge of two classes has it flat
    ours.fit(X, y, sample_weight=weights)
    assert ours.coef_.shape == coef.shape
    assert ours.intercept_.shape == (len(coef),)
    return ours.coef_, ours.intercept_, coef, plain.intercept_ - coef @ scale.mean_


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("weight", [None, "balanced", {"ant": 3, "bee": 0.5, "cow": 1}])
@pytest.mark.parametrize("C", [0.01, 1.0])
def test_C_is_that_of_logistic_regression(data, C, weight, weighted):
    X, y = data
    rows = np.random.default_rng(1).uniform(0.2, 3, len(y)) if weighted else None
    plain = LogisticRegression(C=C, class_weight=weight, tol=1e-9, max_iter=5000)
    coef, bias, its, other = beside(SoftmaxClassifier(C, class_weight=weight), plain, X, y, rows)
    assert np.abs(coef - its).max() < 2e-3 * np.abs(its).max()
    assert np.abs(bias - other).max() < 5e-3


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("C", [0.001, 0.1])
def test_C_is_that_of_linear_svc(data, C, weighted):
    X, y = data
    rows = np.random.default_rng(1).uniform(0.2, 3, len(y)) if weighted else None
    # Its intercept is penalised, here hardly.
    plain = LinearSVC(C=C, dual=False, tol=1e-9, max_iter=100_000, intercept_scaling=1000)
    coef, bias, its, other = beside(LinearSVMClassifier(C), plain, X, y, rows)
    assert np.abs(coef - its).max() < 2e-3 * np.abs(its).max()
    assert np.abs(bias - other).max() < 5e-3


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0.5, 100])
def test_alpha_is_that_of_ridge_classifier(data, alpha, weighted):
    X, y = data
    rows = np.random.default_rng(1).uniform(0.2, 3, len(y)) if weighted else None
    plain = RidgeClassifier(alpha=alpha)
    coef, bias, its, other = beside(RidgeHeadClassifier(alpha), plain, X, y, rows)
    assert np.allclose(coef, its, atol=1e-6)
    assert np.allclose(bias, other, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [0.05, 1])
def test_shrinkage_is_that_of_scikit_learns_lda(data, shrinkage):
    X, y = data
    plain = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    coef, bias, its, other = beside(ShrunkLDAClassifier(shrinkage), plain, X, y)
    if len(set(y)) > 2:  # what all classes have in common is of no meaning
        coef, bias, its, other = (a - a.mean(axis=0) for a in (coef, bias, its, other))
    assert np.allclose(coef, its, atol=1e-5)
    assert np.allclose(bias, other, atol=1e-4)


def test_the_nearest_mean_is_the_nearest_centroid(data):
    X, y = data
    plain = make_pipeline(StandardScaler(), NearestCentroid()).fit(X, y)
    assert (NearestMeanClassifier().fit(X, y).predict(X) == plain.predict(X)).all()


@pytest.mark.parametrize("name", FIXED)
def test_coefficients_are_on_the_features_as_given(data, name):
    X, y = data
    model = clone(FIXED[name]).fit(X, y)
    by_hand = X.astype(np.float64) @ model.coef_.T + model.intercept_
    decision = model.decision_function(X)
    if len(model.classes_) == 2:
        assert model.coef_.shape == (1, 8)
        by_hand = by_hand[:, 0]
        assert ((decision > 0) == (model.predict(X) == model.classes_[1])).all()
    assert np.allclose(decision, by_hand, atol=1e-4)
    proba = model.predict_proba(X)
    assert np.allclose(proba.sum(axis=1), 1)
    assert (model.classes_[proba.argmax(axis=1)] == model.predict(X)).all()


# --- weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [False, True], ids=["fixed", "cv"])
@pytest.mark.parametrize("name", FIXED)
def test_a_weight_is_so_many_rows(data, name, chosen):
    """For the choice, the coefficients and the temperature, if folds are the same."""
    X, y = data
    rng = np.random.default_rng(3)
    weight, side = rng.integers(0, 4, len(y)), rng.integers(0, 4, len(y))
    again = np.repeat(np.arange(len(y)), weight)
    model = type(FIXED[name])() if chosen else clone(FIXED[name])
    splits = [(np.flatnonzero(side != i), np.flatnonzero(side == i)) for i in range(4)]
    one = clone(model).set_params(cv=splits).fit(X, y, sample_weight=weight)
    apart = side[again]
    splits = [(np.flatnonzero(apart != i), np.flatnonzero(apart == i)) for i in range(4)]
    other = clone(model).set_params(cv=splits).fit(X[again], y[again])
    assert one.path_ == other.path_
    assert np.allclose(one.coef_, other.coef_, rtol=1e-9, atol=1e-12)
    assert np.allclose(one.predict_proba(X), other.predict_proba(X), rtol=1e-7)


def test_held_out_rows_are_judged_by_their_weight():
    X, y = world(classes=2)
    train, held = np.arange(160), np.arange(160, 240)
    alone = LinearSVMClassifier(0.01).fit(X[train], y[train])
    signs = np.where(y[held] == alone.classes_[1], 1, -1)
    # The squared hinge of both scores.
    losses = 2 * np.maximum(0, 1 - signs * alone.decision_function(X[held])) ** 2
    weight = np.ones(240)
    weight[held] += 4 * (losses > np.median(losses))
    for weights in (weight, np.sqrt(weight)):  # the second to an eighth of their mean
        found = LinearSVMClassifier(0.01, cv=[(train, held)]).fit(X, y, sample_weight=weights)
        expected = np.average(losses, weights=weights[held])
        assert found.path_[0][1] == pytest.approx(expected, rel=2e-2)
        assert losses.mean() < 0.9 * expected  # what it would be without


def test_weights_become_whole_numbers():
    assert count_repeats(np.array([1.0, 3.0, 2.0])).tolist() == [1, 3, 2]
    weights = np.random.default_rng(0).uniform(0.1, 2, 1000)
    for given in (weights, 1e6 * weights, np.rint(1e6 * weights)):
        found = count_repeats(given)
        assert found.sum() == pytest.approx(8000, abs=1)
        assert np.abs(found - 8 * given / given.mean()).max() < 1


@pytest.mark.parametrize("name", FIXED)
def test_weights_reach_every_formula(data, name):
    """Near-copies, which are not taken for one row: the weighted fit is theirs all the same."""
    X, y = data
    weight = np.random.default_rng(4).integers(1, 4, len(y))
    again = np.repeat(np.arange(len(y)), weight)
    near = X[again] * (1 + 1e-6 * np.random.default_rng(5).standard_normal((len(again), 1)))
    one = clone(FIXED[name]).fit(X, y, sample_weight=weight)
    other = clone(FIXED[name]).fit(near, y[again])
    plain = clone(FIXED[name]).fit(X, y)
    size = np.abs(other.coef_).max()
    assert np.abs(one.coef_ - other.coef_).max() < 1e-3 * size
    assert np.abs(plain.coef_ - other.coef_).max() > 1e-2 * size  # the weights do matter


@pytest.mark.parametrize("name", FIXED)
def test_no_weight_is_not_there(data, name):
    X, y = data
    weight = np.arange(len(y)) % 3 > 0
    X[~weight] = 1e6  # would show
    one = clone(FIXED[name]).fit(X, y, sample_weight=weight.astype(float))
    other = clone(FIXED[name]).fit(X[weight], y[weight])
    assert (one.coef_ == other.coef_).all()
    assert one.temperature_ == other.temperature_


@pytest.mark.parametrize("weights", [[1.0, -1.0], [np.nan, 1.0], [0.0, 0.0], [1.0, 1.0, 1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="sample_weight"):
        RidgeHeadClassifier().fit([[0.0], [1.0]], [0, 1], sample_weight=weights)


@pytest.mark.parametrize("name", ["softmax", "linear-svm", "ridge"])
def test_a_class_weight_is_that_of_its_rows(data, name):
    X, y = data
    each = {"ant": 5.0, "bee": 0.5, "cow": 1.0}
    scale = StandardScaler().fit(X)  # `sample_weight` weighs the standardisation too
    Z = scale.transform(X)
    one = clone(FIXED[name]).set_params(class_weight=each).fit(Z, y)
    rows = np.array([each[k] for k in y])
    other = clone(FIXED[name]).fit(Z, y, sample_weight=rows)
    plain = clone(FIXED[name]).fit(Z, y)
    agree = (one.predict(Z) == other.predict(Z)).mean()
    assert agree > 0.97
    assert agree > (one.predict(Z) == plain.predict(Z)).mean()


def test_class_weights_are_the_priors_of_lda(data):
    X, y = data
    model = ShrunkLDAClassifier(0.2).fit(X, y)
    doubled = ShrunkLDAClassifier(0.2, class_weight={"ant": 2, "bee": 1, "cow": 1}).fit(X, y)
    gain = doubled.intercept_ - model.intercept_
    gain = gain[0] - gain[1] if len(gain) > 2 else -gain[0]
    assert np.isclose(gain, np.log(2))
    share = np.array([(y == k).mean() for k in model.classes_])
    evened = ShrunkLDAClassifier(
        0.2, class_weight=dict(zip(model.classes_, 1 / share, strict=True))
    )
    balanced = ShrunkLDAClassifier(0.2, class_weight="balanced").fit(X, y)
    assert np.allclose(evened.fit(X, y).intercept_, balanced.intercept_)


@pytest.mark.parametrize(
    "weight", ["bogus", 3, ["a"], {"ant": 1, "x": 1}, {"bee": -1}, {"ant": "y"}]
)
@pytest.mark.parametrize("model", [SoftmaxClassifier(), HeadClassifier("knn"), HeadClassifier()])
def test_other_class_weights_are_refused(model, weight):
    X, y = world()
    with pytest.raises(ValueError, match=r"class.weight|weights of classes"):
        clone(model).set_params(class_weight=weight).fit(X, y)


# --- choices -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_the_short_way_is_the_same_classifier(data, kind):
    X, y = data
    named = kind(random_state=4).fit(X, y)
    short = HeadClassifier(kind.kind, seed=4).fit(X, y)
    assert (named.decision_function(X) == short.decision_function(X)).all()
    assert (named.predict_proba(X) == short.predict_proba(X)).all()
    assert named.path_ == short.path_
    if kind is not NearestMeanClassifier:
        setting = getattr(named, PARAMETER[kind])
        twice = 2 if kind is SoftmaxClassifier and len(named.classes_) == 2 else 1
        assert setting == twice * short.setting_
        assert setting in [tried for tried, _ in named.path_]
        fixed = kind(setting, random_state=4).fit(X, y)
        assert np.allclose(fixed.coef_, named.coef_, atol=1e-3 * np.abs(named.coef_).max())
        assert len(fixed.path_) == 1


PARAMETER = {
    SoftmaxClassifier: "C_",
    LinearSVMClassifier: "C_",
    RidgeHeadClassifier: "alpha_",
    ShrunkLDAClassifier: "shrinkage_",
}


@pytest.mark.parametrize("value", ["auto", 0, -1.0, np.nan, np.inf, None, True, 1.5])
def test_settings_that_are_none_are_refused(value):
    X, y = world(40)
    if value == 1.5 and value is not True:
        assert SoftmaxClassifier(value).fit(X, y).C_ == 1.5
    else:
        with pytest.raises(ValueError, match="C is 'cv' or a number above 0, not"):
            SoftmaxClassifier(value).fit(X, y)
    with pytest.raises(ValueError, match="shrinkage is 'cv' or a number above 0, at most 1, not"):
        ShrunkLDAClassifier(value).fit(X, y)


@pytest.mark.parametrize("kind", [SoftmaxClassifier, RidgeHeadClassifier])
def test_folds_are_those_given(data, kind):
    X, y = data
    drawn = StratifiedKFold(3, shuffle=True, random_state=7)
    one = kind(cv=drawn).fit(X, y)
    other = kind(cv=list(drawn.split(X, y))).fit(X, y)
    parts = kind(cv=3, random_state=7).fit(X, y)  # the same folds, drawn here
    assert one.path_ == other.path_
    assert np.allclose(one.path_, parts.path_, rtol=1e-5)
    assert kind(cv=3, random_state=8).fit(X, y).path_ != parts.path_
    overlapping = kind(cv=ShuffleSplit(4, random_state=0)).fit(X, y)
    assert overlapping.score(X, y) > 0.6
    for cv in (1, -3):
        with pytest.raises(ValueError, match="folds from 2 on"):
            kind(cv=cv).fit(X, y)


def test_a_random_state_is_a_number_or_a_state(data):
    X, y = data
    paths = [
        RidgeHeadClassifier(random_state=state).fit(X, y).path_
        for state in (None, 0, 5, np.random.RandomState(1), np.random.RandomState(1))
    ]
    assert paths[0] == paths[1] != paths[2]
    assert paths[3] == paths[4]


def grouped():
    """Forty groups that share their label and most of their features."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    X = rng.standard_normal((40, 60))[groups] + 0.1 * rng.standard_normal((240, 60))
    return X.astype(np.float32), (rng.permutation(40) % 2)[groups], groups


@pytest.mark.parametrize("kind", [SoftmaxClassifier, RidgeHeadClassifier, HeadClassifier])
def test_groups_are_held_out_whole(kind):
    """The label is chance for a new group: only where groups are torn apart is it found."""
    X, y, groups = grouped()
    torn = min(loss for _, loss in kind().fit(X, y).path_)
    whole = [kind().fit(X, y, groups=groups), kind(cv=4).fit(X, y, groups=groups)]
    whole += [kind(cv=GroupKFold(4)).fit(X, y, groups=groups)]
    for model in whole:
        assert min(loss for _, loss in model.path_) > 2 * torn
    with pytest.raises(ValueError, match="groups is one a row"):
        kind().fit(X, y, groups=groups[:-1])


def test_rows_that_are_the_same_are_never_torn_apart():
    X, y, _ = grouped()
    X = X[::6].repeat(6, axis=0)
    assert min(loss for _, loss in LinearSVMClassifier().fit(X, y).path_) > 1
    assert min(loss for _, loss in HeadClassifier("knn").fit(X, y).path_) > 0.2


@pytest.mark.parametrize(
    "model",
    [SoftmaxClassifier(1e-3), LinearSVMClassifier(0.1), RidgeHeadClassifier(1.0),
     ShrunkLDAClassifier(1e-3), NearestMeanClassifier()],
    ids=lambda model: model.kind,
)  # fmt: skip
def test_probabilities_are_those_of_new_rows(model):
    """Of models too sure or too unsure of themselves, or with scores that are no logarithms."""
    X, y = world(900, 40, classes=4)
    X[:, 20:] = 2 * X[:, :20]  # all is said twice
    train, test = slice(0, 150), slice(150, None)
    model = clone(model).fit(X[train], y[train])
    calibrated = log_loss(y[test], model.predict_proba(X[test]))
    model.temperature_ = 1.0
    assert calibrated < 0.95 * log_loss(y[test], model.predict_proba(X[test]))


def test_without_anything_held_out_there_are_the_models_own_probabilities_or_none():
    X, y = [[0.0, 1.0], [1.0, 0.0]], ["a", "b"]
    for kind in (SoftmaxClassifier, ShrunkLDAClassifier):
        model = kind().fit(X, y)
        assert model.temperature_ is None
        assert model.path_ == []
        assert model.predict_proba(X).argmax(axis=1).tolist() == [0, 1]
        assert any("was not chosen" in notice for notice in model.notices_)
    with pytest.raises(ValueError, match="nothing could be held out"):
        RidgeHeadClassifier(1.0).fit(X, y).predict_proba(X)


# --- in the company of scikit-learn's own --------------------------------------------------


def test_a_search_over_C_by_what_needs_probabilities():
    X, y = world()
    grid = {"C": [1e-4, 1e-2, 1.0, "cv"]}
    found = GridSearchCV(
        SoftmaxClassifier(), grid, scoring=["neg_log_loss", "roc_auc_ovr"], refit="neg_log_loss",
        cv=3, error_score="raise",
    ).fit(X, y)  # fmt: skip
    assert np.isfinite(found.cv_results_["mean_test_roc_auc_ovr"]).all()
    losses = -found.cv_results_["mean_test_neg_log_loss"]
    assert losses[0] > losses[2]
    assert losses[3] < losses.min() + 0.05


@pytest.mark.parametrize("kind", ALL)
def test_every_one_has_the_probabilities_that_scorers_ask_for(kind):
    X, y = world()
    found = cross_validate(kind(), X, y, scoring=["neg_log_loss", "roc_auc_ovr"], cv=3)
    assert found["test_roc_auc_ovr"].mean() > 0.85
    assert found["test_neg_log_loss"].mean() > -0.75


def test_groups_and_weights_are_routed():
    X, y, groups = grouped()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    seen = []

    class Seen(GroupKFold):
        def split(self, X, y=None, groups=None):
            for train, held in super().split(X, y, groups):
                assert not set(groups[train]) & set(groups[held])
                seen.append(len(groups))
                yield train, held

    with config_context(enable_metadata_routing=True):
        model = SoftmaxClassifier(cv=Seen(3))
        model.set_fit_request(groups=True, sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"C": [1e-3, "cv"]}, cv=GroupKFold(4), error_score="raise")
        search.fit(X, y, groups=groups, sample_weight=weight)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model)
        pipeline.fit(X, y, groups=groups, sample_weight=weight)
    # Inside: two candidates on three quarters of the rows, four times; at the end once on all.
    assert sorted(seen) == [180] * 24 + [240] * 6
    assert 0.3 < search.best_score_ < 0.7


def test_soft_votes_and_calibration():
    X, y = world()
    train, test = slice(0, 160), slice(160, None)
    members = [(kind.kind, kind()) for kind in ALL]
    votes = VotingClassifier(members, voting="soft").fit(X[train], y[train])
    assert votes.score(X[test], y[test]) > 0.7
    anew = CalibratedClassifierCV(LinearSVMClassifier(0.01), cv=3).fit(X[train], y[train])
    assert anew.score(X[test], y[test]) > 0.7


@pytest.mark.parametrize("kind", ALL)
def test_they_are_cloned_and_pickled(data, kind):
    X, y = data
    model = kind(cv=3, random_state=1).fit(X, y)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert (again.predict_proba(X) == model.predict_proba(X)).all()
    bare = clone(model)
    assert bare.get_params() == model.get_params()
    assert not hasattr(bare, "classes_")
    assert (bare.fit(X, y).predict_proba(X) == model.predict_proba(X)).all()

"""`HeadRegressor` is a scikit-learn regressor like any other."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from classify import HeadRegressor, RootL2
from classify.errors import CallError, UnknownHeadError


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([HeadRegressor(), HeadRegressor("knn")])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_it_is_ridge_with_the_alpha_it_chose(digits):
    X, y = digits
    head = HeadRegressor().fit(X, y)
    theirs = Ridge(alpha=head.settings_["alpha"]).fit(StandardScaler().fit_transform(X), y)
    expected = theirs.predict(StandardScaler().fit(X).transform(X))
    np.testing.assert_allclose(head.predict(X), expected, atol=1e-3)
    both = HeadRegressor().fit(X, np.stack([y, -y], axis=1)).predict(X)
    np.testing.assert_allclose(both[:, 0], -both[:, 1], atol=1e-4)


def test_it_goes_into_pipelines_and_cross_validation(digits):
    X, y = digits
    pipeline = make_pipeline(RootL2(), HeadRegressor(cv=3))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.4


def test_groups_stay_whole(digits):
    X, y = digits
    X, y, groups = np.tile(X[:100], (4, 1)), np.tile(y[:100], 4), np.tile(np.arange(100), 4)
    rng = np.random.default_rng(0)
    X = X + rng.normal(0, 1e-3, X.shape).astype(np.float32)
    torn = HeadRegressor("knn").fit(X, y)
    whole = HeadRegressor("knn").fit(X, y, groups)
    assert torn.settings_["n_neighbors"] == 1
    assert whole.settings_["n_neighbors"] > 1
    given = HeadRegressor("knn", cv=list(GroupKFold(5).split(X, y, groups))).fit(X, y)
    assert given.settings_["n_neighbors"] > 1


def test_what_is_wrong_is_said(digits):
    X, y = digits
    with pytest.raises(UnknownHeadError, match="no head for the kind number"):
        HeadRegressor("lda").fit(X, y)
    with pytest.raises(CallError, match="cv is a number of folds from 2 on"):
        HeadRegressor(cv=1).fit(X, y)
    with pytest.raises(CallError, match="groups is one a row"):
        HeadRegressor().fit(X, y, groups=[1])

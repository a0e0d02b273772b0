"""Heads of every kind against scikit-learn's own estimators at equal settings."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from classify.data.features import FeatureRows
from classify.data.folds import plan_folds
from classify.heads.targets.registry import get_target_head_spec
from classify.training.targets.ordinal import fit_ordinal, grade_probabilities
from classify.training.targets.target_set import TargetSet
from classify.training.targets.train import train_targets


@pytest.fixture(scope="module")
def world(digits):
    X, y = digits
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    labels = np.stack([y % 2, np.isin(y, [0, 6, 8, 9]), y > 4], axis=1).astype(float)
    return X, Z, y, labels


def train_one(X, values, kind, head, param, n_grades=None):
    """Train with one param; nothing is chosen."""
    from dataclasses import replace

    spec = replace(get_target_head_spec(head, kind), grid=(param,))
    plan = plan_folds(np.arange(len(X)) % 2, 0)
    target_set = TargetSet(kind, FeatureRows.from_array(X), values, n_grades, plan)
    return train_targets(spec, target_set)


@pytest.mark.parametrize("alpha", [0.5, 50.0])
def test_ridge_of_numbers_and_of_labels(world, alpha):
    X, Z, y, labels = world
    number = train_one(X, y[:, None].astype(float), "number", "ridge", alpha).model
    theirs = Ridge(alpha=alpha).fit(Z, y)
    np.testing.assert_allclose(number.coef[0], theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(number.decision_values(X)[:, 0], theirs.predict(Z), atol=1e-4)
    several = train_one(X, labels, "multi", "ridge", alpha).model
    theirs = Ridge(alpha=alpha).fit(Z, labels * 2 - 1)
    np.testing.assert_allclose(several.coef, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(several.decision_values(X), theirs.predict(Z), atol=1e-4)


def test_ridge_of_labels_of_which_some_are_not_known(world):
    X, _, _, labels = world
    values = labels.copy()
    values[::5, 1] = np.nan
    values[:100, 2] = np.nan
    model = train_one(X, values, "multi", "ridge", 10.0).model
    for k in range(3):
        known = ~np.isnan(values[:, k])
        scaler = StandardScaler().fit(X[known].astype(np.float64))
        theirs = Ridge(alpha=10.0).fit(scaler.transform(X[known]), values[known, k] * 2 - 1)
        expected = theirs.predict(scaler.transform(X.astype(np.float64)))
        np.testing.assert_allclose(model.decision_values(X)[:, k], expected, atol=1e-4)


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_a_logistic_regression_of_each_label(world, C):
    X, Z, _, labels = world
    model = train_one(X, labels, "multi", "softmax", C).model
    theirs = OneVsRestClassifier(LogisticRegression(C=C, tol=1e-8, max_iter=10_000)).fit(Z, labels)
    coef = np.concatenate([e.coef_ for e in theirs.estimators_])
    np.testing.assert_allclose(model.coef, coef, atol=1e-4 * np.abs(coef).max())
    expected = theirs.decision_function(Z)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(model.decision_values(X), expected, atol=1e-4 * scale)
    proba = 1 / (1 + np.exp(-model.decision_values(X).astype(float)))
    np.testing.assert_allclose(proba, theirs.predict_proba(Z), atol=1e-4)


def test_a_linear_svm_of_each_label(world):
    X, Z, _, labels = world
    model = train_one(X, labels, "multi", "linear-svm", 0.01).model
    for k in range(3):
        theirs = LinearSVC(C=0.01, dual=False, tol=1e-8, intercept_scaling=1e3).fit(Z, labels[:, k])
        np.testing.assert_allclose(model.coef[k], theirs.coef_[0], atol=1e-3)


def test_neighbours_are_averaged(world):
    X, Z, _, labels = world
    model = train_one(X, labels, "multi", "knn", 5.0).model
    theirs = KNeighborsRegressor(5).fit(Z, labels * 2 - 1)
    assert (np.abs(model.decision_values(X) - theirs.predict(Z)) < 1e-5).mean() > 0.99


def test_the_kernel_is_exact_while_all_rows_are_landmarks(world):
    X, Z, y, _ = world
    trained = train_one(X, y[:, None].astype(float), "number", "kernel-ridge", 1.0)
    gamma, alpha = trained.settings["gamma"], trained.settings["alpha"]
    K = np.exp(-gamma * ((Z[:, None] - Z[None]) ** 2).sum(axis=2))
    # Kernel ridge with an intercept: centre the kernel and the targets.
    H = np.eye(len(Z)) - 1 / len(Z)
    dual = np.linalg.solve(H @ K @ H + alpha * np.eye(len(Z)), y - y.mean())
    expected = H @ K @ H @ dual + y.mean()
    np.testing.assert_allclose(trained.model.decision_values(X)[:, 0], expected, atol=2e-2)


def test_any_regressor_or_classifier_of_scikit_learn(world):
    X, Z, y, labels = world
    trained = train_one(X, y[:, None].astype(float), "number", "sklearn.linear_model:Ridge", 1.0)
    np.testing.assert_allclose(
        trained.model.decision_values(X)[:, 0], Ridge().fit(Z, y).predict(Z), atol=1e-3
    )
    name = "sklearn.naive_bayes:GaussianNB"  # knows one label only
    trained = train_one(X, labels, "multi", name, 1.0)
    assert trained.model.decision_values(X).shape == (len(X), 3)
    theirs = OneVsRestClassifier(GaussianNB()).fit(Z.astype(np.float32), labels.astype(int))
    agreement = (trained.model.decision_values(X) > 0) == theirs.predict(Z.astype(np.float32))
    assert agreement.mean() > 0.99


def test_ordinal_is_the_minimum_of_its_objective(world):
    _, Z, y, _ = world
    Z = Z - Z.mean(axis=0)
    grade = y // 3
    for C in (0.01, 1.0):
        model = fit_ordinal(Z, grade, 4, C)
        assert model.converged

        def objective(parameters, C=C):
            coef, cutpoints = parameters[: Z.shape[1]], parameters[Z.shape[1] :]
            proba = grade_probabilities(Z @ coef, cutpoints)
            own = proba[np.arange(len(grade)), grade]
            return coef @ coef / 2 - C * np.log(own).sum()

        at = np.concatenate([model.coef, model.cutpoints])
        slope = approx_fprime(at, objective, 1e-6)
        assert np.abs(slope).max() < 2e-5 * C * len(grade)


def test_two_grades_are_logistic_regression(world):
    _, Z, y, _ = world
    for C in (0.01, 1.0):
        ours = fit_ordinal(Z, (y > 4).astype(int), 2, C)
        theirs = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(Z, y > 4)
        np.testing.assert_allclose(ours.coef, theirs.coef_[0], atol=1e-4)
        np.testing.assert_allclose(-ours.cutpoints, theirs.intercept_, atol=1e-4)


def test_grades_that_no_row_has(world):
    _, Z, y, _ = world
    model = fit_ordinal(Z, np.where(y > 4, 5, 2), 7, 1.0)
    assert (np.diff(model.cutpoints) > 0).all()
    grade = np.searchsorted(model.cutpoints, Z @ model.coef)
    assert set(grade) <= {2, 3, 4, 5}
    assert (np.isin(grade, [2, 5])).mean() > 0.99


def test_the_path_of_ridge_has_the_errors_of_its_folds(world):
    """The closed form of the held-out error is that of the held-out predictions."""
    X, _, y, labels = world
    from classify.solvers.gram_cache import compute_fold_bases
    from classify.training.targets.ridge import RidgePath, compute_held_out

    plan = plan_folds(y, 0)
    rows = FeatureRows.from_array(X)
    path = RidgePath(rows, labels, plan, compute_fold_bases(None, (), rows, plan))
    alphas = [0.1, 10.0, 1000.0]
    expected = []
    for alpha in alphas:
        values = compute_held_out(path.fit_folds(alpha), rows, plan)
        errors = ((values - labels[plan.held_out]) ** 2).sum(axis=0)
        expected.append((errors / labels.var(axis=0)).sum())
    np.testing.assert_allclose(path.compute_errors(alphas), expected, rtol=1e-4)
    least_squares = LinearRegression().fit(X, labels).predict(X)
    assert np.abs(path.fit_final(1e-6).decision_values(X) - least_squares).max() < 1e-2

"""A head as scikit-learn's own fitted pipeline."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.utils.validation import check_is_fitted

from classify import fit
from classify.errors import CallError
from classify.heads.models import MLPModel

LINEAR = ("softmax", "softmax-lda", "linear-svm", "ridge", "lda", "ncm")


@pytest.fixture(scope="module", params=["digit", "parity"])
def labels(request):
    return request.getfixturevalue({"digit": "table"}.get(request.param, request.param))


@pytest.mark.parametrize("head", LINEAR)
def test_it_says_what_the_head_says(cache, labels, digits, head):
    fitted, _ = fit(cache, labels, head, "fine")
    plain = fitted.to_sklearn()
    check_is_fitted(plain)
    X = digits[0]
    assert plain.n_features_in_ == 64
    assert (plain.predict(X) == fitted.predict(X)).all()
    assert sorted(plain.classes_) == sorted(fitted.classes)
    order = np.argsort(fitted.classes)
    assert np.allclose(plain.predict_proba(X), fitted.predict_proba(X)[:, order], atol=1e-6)


def test_without_probabilities_it_has_none(cache, table, digits):
    fitted, _ = fit(cache, table, "ridge", "fine")
    plain = replace(fitted, temperature=None).to_sklearn()
    assert not hasattr(plain, "predict_proba")
    assert (plain.predict(digits[0]) == fitted.predict(digits[0])).all()


def test_what_takes_a_classifier_takes_it(cache, parity, digits):
    fitted, _ = fit(cache, parity, "lda", "fine")
    plain, X = fitted.to_sklearn(), digits[0]
    y = np.where(digits[1] % 2, "odd", "even")
    assert isinstance(plain[-1], LogisticRegression)
    for metric, least in (("accuracy", 0.8), ("roc_auc", 0.9), ("neg_log_loss", -0.5)):
        assert get_scorer(metric)(plain, X, y) > least
    anew = CalibratedClassifierCV(FrozenEstimator(plain)).fit(X, y)
    assert anew.score(X, y) > 0.8
    found = permutation_importance(plain, X, y, n_repeats=2, random_state=0)
    assert found.importances_mean.max() > 0


@pytest.mark.long
def test_it_can_be_dumped_and_loaded(cache, table, digits):
    io = pytest.importorskip("skops.io")
    plain = fit(cache, table, "softmax", "fine")[0].to_sklearn()
    again = io.loads(io.dumps(plain), trusted=["classify.data.preparation.RootL2"])
    assert (again.predict(digits[0]) == plain.predict(digits[0])).all()


@pytest.mark.parametrize("head", ["knn", "rbf-svm"])
def test_other_heads_are_what_scikit_learn_trained(cache, table, digits, head):
    fitted, _ = fit(cache, table, head, "fine")
    plain = fitted.to_sklearn()
    assert plain is not fitted.scorer.estimator
    found = np.array(fitted.classes)[plain.predict(digits[0].astype(float))]
    assert (found == fitted.predict(digits[0])).mean() > 0.995


def test_a_hidden_layer_has_no_counterpart(cache, table):
    fitted, _ = fit(cache, table, "ncm", "fine")
    one = fitted.scorer
    hidden = MLPModel(one.mean, one.scale, np.ones((3, 64)), np.ones(3), np.ones((10, 3)),
                        np.ones(10))  # fmt: skip
    with pytest.raises(CallError, match="hidden layer"):
        replace(fitted, scorer=hidden).to_sklearn()

"""The heads as scikit-learn estimators."""

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from classify import CachedFeatures, HeadClassifier
from classify.heads import HEADS

EXEMPT = {
    "check_class_weight_classifiers": "it hands in a dict; the heads take 'balanced' or None",
}


@pytest.mark.filterwarnings("ignore")  # the checks' own data gives warnings on purpose
@parametrize_with_checks(
    [HeadClassifier(name) for name in HEADS],
    expected_failed_checks=lambda _: EXEMPT,
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_a_layer_is_searched_like_any_setting(cache, digits):
    y = digits[1]
    pipeline = make_pipeline(CachedFeatures(cache.path), HeadClassifier("ridge"))
    search = GridSearchCV(pipeline, {"cachedfeatures__layer": ["coarse", "fine"]}, cv=3)
    search.fit(np.array(cache.paths), y)
    assert search.best_params_ == {"cachedfeatures__layer": "fine"}
    assert search.best_score_ > 0.8
    assert (search.predict(cache.paths[:50]) == y[:50]).mean() > 0.9

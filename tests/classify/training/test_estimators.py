"""The heads, and the cache, as scikit-learn estimators."""

from zlib import crc32

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import check_array

from classify import CachedFeatures, HeadClassifier
from classify.data.features import open_cache

UNWEIGHTED = {
    "check_class_weight_classifiers": "class means have no use for class weights",
}
UNSEEN = {
    "check_estimator_sparse_tag": "it wants `fit` to refuse a sparse X; `fit` does not look at X",
}
# What the checks transform is numbers drawn at random, and those are no paths of the cache: all of
# these pass where `Addressed` makes paths of them.
NO_PATHS = dict.fromkeys(
    (
        "check_dict_unchanged",
        "check_estimators_dtypes",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit_idempotent",
        "check_fit_score_takes_y",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_pipeline_consistency",
        "check_transformer_general",
        "check_transformers_unfitted_stateless",
    ),
    "it transforms random numbers, which are no paths of the cache",
)


class Addressed(CachedFeatures):
    """Takes any numbers for X: each row of them stands for an image, always the same one."""

    def transform(self, X):
        paths = open_cache(self.cache).paths
        rows = check_array(X, dtype=None)
        return super().transform([paths[crc32(row.tobytes()) % len(paths)] for row in rows])


@pytest.mark.filterwarnings("ignore")  # the checks' own data gives warnings on purpose
@parametrize_with_checks(
    [HeadClassifier(name) for name in ("softmax", "rbf-svm", "ncm", "knn")],
    expected_failed_checks=lambda it: UNWEIGHTED if it.head == "ncm" else {},
)
def test_scikit_learns_own_checks(estimator, check):
    """Of each way of training one; the classes of linear heads go through them too."""
    check(estimator)


@pytest.mark.parametrize(
    ("kind", "exempt"), [(CachedFeatures, UNSEEN | NO_PATHS), (Addressed, UNSEEN)]
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks_of_a_transformer_of_paths(cache, kind, exempt):
    """All but those listed pass, and those listed fail: the lists are no longer than they must."""
    told = check_estimator(
        kind(cache.path), expected_failed_checks=exempt, on_fail=None, on_skip=None
    )
    failed = {one["check_name"]: one["exception"] for one in told if one["status"] == "failed"}
    assert failed == {}
    assert {one["check_name"] for one in told if one["status"] == "xfail"} == set(exempt)
    assert sum(one["status"] == "passed" for one in told) > 20


def test_a_layer_is_searched_like_any_setting(cache, digits):
    y = digits[1]
    pipeline = make_pipeline(CachedFeatures(cache.path), HeadClassifier("ridge"))
    search = GridSearchCV(pipeline, {"cachedfeatures__layer": ["coarse", "fine"]}, cv=3)
    search.fit(np.array(cache.paths), y)
    assert search.best_params_ == {"cachedfeatures__layer": "fine"}
    assert search.best_score_ > 0.8
    assert (search.predict(cache.paths[:50]) == y[:50]).mean() > 0.9

"""What a constant guess reaches, beside scikit-learn's own."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from classify.checks.baseline import measure_baseline
from classify.experiments.compare import compare_classes as compare

N = 120


@pytest.fixture(scope="module")
def found(tmp_path_factory, make_cache, make_table):
    """Three classes, of which ``b`` has most training images, but not most test images."""
    home = tmp_path_factory.mktemp("baseline")
    X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    cache = make_cache(home / "c.h5", {"l": X})
    train = ["b"] * 50 + ["a"] * 20 + ["c"] * 10
    test = ["a"] * 20 + ["b"] * 12 + ["c"] * 8
    split = ["train"] * 80 + ["test"] * 40
    rows = list(zip(cache.paths, train + test, split, strict=True))
    table = make_table(home / "t.csv", "path,label,split", rows)
    return compare(cache, table, heads="ncm", jobs=1), train, test


def measure(found, metric="accuracy"):
    (result,), (task,) = found.results, found.tasks
    return measure_baseline(task, metric, result.validation, result.test)


def test_baseline_is_that_of_scikit_learn(found):
    comparison, train, test = found
    baseline = measure(comparison)
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((80, 1)), train)
    guesses = dummy.predict(np.zeros((40, 1)))
    assert baseline.label == guesses[0] == "b"
    assert baseline.accuracy == pytest.approx(12 / 40)
    assert baseline.accuracy_ci[0] < 12 / 40 < baseline.accuracy_ci[1]
    assert baseline.validation == pytest.approx(50 / 80)
    scores = baseline.scores
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(test, guesses))
    assert scores["macro_f1"] == pytest.approx(
        f1_score(test, guesses, average="macro", zero_division=0)
    )
    priors = dummy.predict_proba(np.zeros((40, 1)))
    assert scores["log_loss"] == pytest.approx(log_loss(test, priors), rel=1e-5)


def test_baseline_has_the_metric_that_heads_are_ranked_by(found):
    comparison, _, _ = found
    assert measure(comparison, "balanced_accuracy").test_metric == pytest.approx(1 / 3)
    assert measure(comparison, "auroc").test_metric == pytest.approx(0.5)
    assert measure(comparison, "cost").test_metric is None

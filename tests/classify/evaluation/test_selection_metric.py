"""`--metric`: by which number settings are chosen and heads ranked."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as theirs

from classify import compare, fit
from classify.errors import CallError, LabelError
from classify.evaluation.selection_metric import METRIC_NAMES, SelectionMetric, resolve_metric
from classify.labels.table import LabelTable

CLASSES = ["a", "b", "c"]


def scored(k=3, n=200, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(k, n, p=[0.7, *np.full(k - 1, 0.3 / (k - 1))])
    scores = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[y]
    return scores.astype(np.float32), y


def test_they_are_scikit_learns():
    scores, y = scored()
    predicted, proba = scores.argmax(axis=1), softmax(scores.astype(float) / 2, axis=1)
    expected = {
        "accuracy": theirs.accuracy_score(y, predicted),
        "balanced_accuracy": theirs.balanced_accuracy_score(y, predicted),
        "macro_f1": theirs.f1_score(y, predicted, average="macro"),
        "log_loss": theirs.log_loss(y, proba),
        "auroc": theirs.roc_auc_score(y, proba, multi_class="ovr"),
        "average_precision": theirs.average_precision_score(np.eye(3)[y], proba),
    }
    for name in METRIC_NAMES:
        assert SelectionMetric(name).compute(scores, y, CLASSES, 2.0) == pytest.approx(
            expected[name]
        ), name


def test_of_two_classes_they_rank_by_how_much_greater_a_score_is():
    scores, y = scored(2)
    assert SelectionMetric("auroc").compute(scores, y, ["a", "b"]) == pytest.approx(
        theirs.roc_auc_score(y, scores[:, 1] - scores[:, 0])
    )


def test_a_class_that_is_not_known_is_wrong_everywhere_and_ranked_nowhere():
    scores, y = scored()
    y[:50] = -1
    assert SelectionMetric("accuracy").compute(scores, y, CLASSES) < SelectionMetric(
        "accuracy"
    ).compute(scores[50:], y[50:], CLASSES)
    assert SelectionMetric("log_loss").compute(scores, y, CLASSES) > 25
    assert SelectionMetric("auroc").compute(scores, y, CLASSES) == SelectionMetric("auroc").compute(
        scores[50:], y[50:], CLASSES
    )
    assert SelectionMetric("auroc").compute(scores[:9], np.zeros(9, int), CLASSES) is None
    assert SelectionMetric("accuracy").compute(scores[:0], y[:0], CLASSES) is None


def test_costs_are_of_what_is_taken_for_what(tmp_path):
    (tmp_path / "c.csv").write_text("truth,predicted,cost\na,b,10\nb,a,0.5\n")
    metric = resolve_metric(str(tmp_path / "c.csv"))
    scores = np.eye(3)[[0, 1, 0, 2]] * 5
    assert metric.compute(scores, np.array([0, 0, 1, 1]), CLASSES) == (0 + 10 + 0.5 + 1) / 4
    assert metric.compute(scores[:1], np.array([-1]), CLASSES) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("truth,predicted\na,b\n", "columns truth, predicted, cost"),
        ("truth,predicted,cost\na,b,-1\n", "line 2: '-1' is no cost"),
        ("truth,predicted,cost\na,b,much\n", "line 2: 'much' is no cost"),
        ("truth,predicted,cost\na,b\n", "line 2: None is no cost"),
        ("truth,predicted,cost\na,b,1\na,b,2\n", "line 3: 'a' taken for 'b' is there twice"),
    ],
)
def test_a_table_of_costs_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(LabelError, match=said):
        resolve_metric(str(tmp_path / "c.csv"))


def test_what_is_no_metric_is_refused():
    with pytest.raises(CallError, match="did you mean 'balanced_accuracy'"):
        resolve_metric("balanced-acuracy")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        resolve_metric("costs.csv")


@pytest.fixture
def uneven(make_cache, tmp_path):
    """Ninety to ten, told apart with doubt; two layers, the wide one the better."""
    rng = np.random.default_rng(3)
    y = (rng.random(600) < 0.1).astype(int)
    wide = (rng.normal(size=(600, 40)) + 0.3 * y[:, None]).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"narrow": wide[:, :4].copy(), "wide": wide})
    return cache, LabelTable("t", "t.csv", list(cache.paths), [["common", "rare"][k] for k in y])


@pytest.mark.long
def test_it_decides_what_is_chosen(uneven, tmp_path):
    cache, table = uneven
    _, plain = fit(cache, table, "softmax", "wide")
    _, alike = fit(cache, table, "softmax", "wide", metric="balanced_accuracy")
    assert (plain.metric, alike.metric) == ("accuracy", "balanced_accuracy")
    assert alike.scores["balanced_accuracy"] > plain.scores["balanced_accuracy"] + 0.05
    assert alike.test_metric == pytest.approx(alike.scores["balanced_accuracy"])
    (tmp_path / "costs.csv").write_text("truth,predicted,cost\nrare,common,9\n")
    _, dear = fit(cache, table, "lda", "wide", metric=str(tmp_path / "costs.csv"))
    assert dear.metric == "cost"
    (tmp_path / "costs.csv").write_text("truth,predicted,cost\nrarest,common,9\n")
    with pytest.raises(CallError, match="the costs name 'rarest'"):
        fit(cache, table, "lda", metric=str(tmp_path / "costs.csv"))


@pytest.mark.long
@pytest.mark.parametrize("metric", ["auroc", "log_loss"])
def test_boards_are_ranked_by_it(uneven, metric):
    cache, table = uneven
    found = compare(cache, table, "lda,ncm,ridge", "each", metric=metric, jobs=1)
    sign = -1 if metric == "log_loss" else 1
    assert found.best.validation_metric * sign == max(
        record.validation_metric * sign for record in found.records
    )
    again = compare(cache, table, "lda,ncm,ridge", "each", metric=metric, jobs=1)
    assert again.n_reused == len(again.records)
    assert compare(cache, table, "lda", "each", jobs=1).n_reused == 0


@pytest.mark.slow
def test_the_command_line_takes_it(uneven, run_cli, tmp_path):
    cache, table = uneven
    lines = [f"{p},{k}" for p, k in zip(table.paths, table.labels, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines]))
    line = ("compare", cache.path, "--labels", tmp_path / "t.csv", "--heads", "lda,ncm")
    done = run_cli(*line, "--metric", "auroc")
    assert done.returncode == 0, done.stderr
    assert "auroc" in done.stdout
    told = json.loads(run_cli(*line, "--metric", "auroc", "--json").stdout)
    assert told["best"]["metric"] == "auroc"
    assert 0.5 < told["best"]["validation_metric"] <= 1
    done = run_cli(*line, "--metric", "aurok")
    assert done.returncode == 2
    assert "did you mean 'auroc'" in done.stderr

"""Fit, compare, advise and report tasks of every kind, by the command line and from Python."""

import json
import shutil

import numpy as np
import pytest

from classify import advise, compare, fit
from classify.errors import CallError, TooFewImagesError, UnknownHeadError
from classify.store import store_dir


@pytest.fixture(scope="module")
def shades(cache, digits, make_table, tmp_path_factory):
    """How dark an image is, as a number and in grades: the features know it exactly."""
    home = tmp_path_factory.mktemp("shades")
    dark = digits[0].mean(axis=1)
    edges = np.quantile(dark, [1 / 3, 2 / 3])
    rows = list(zip(cache.paths, dark.astype(float), strict=True))
    words = [("light", "dim", "dark")[int(np.searchsorted(edges, d))] for d in dark]
    return (
        make_table(home / "dark.csv", "path,label", rows),
        make_table(home / "shade.csv", "path,label", list(zip(cache.paths, words, strict=True))),
    )


def test_what_the_features_know_is_learnt(cache, shades):
    number, grade = shades
    head, record = fit(cache, number)
    assert (record.kind, record.metric) == ("number", "mae")
    assert record.metrics["r2"] > 0.95
    assert record.baseline["r2"] <= 0
    assert record.metrics["mae"] < record.baseline["mae"] / 3
    assert record.interval["coverage"] == 0.9
    low, high = record.interval["realised_ci"]
    assert low - 0.05 <= 0.9 <= high + 0.05
    assert head.predict(cache.features("coarse")).shape == (600,)
    _, record = fit(cache, grade, order="light,dim,dark")
    assert record.metrics["quadratic_kappa"] > 0.8
    assert np.array(record.confusion).sum() == record.n_test


def test_a_wider_coverage_is_a_wider_interval(cache, shades):
    margins = [fit(cache, shades[0], coverage=c)[0].margin for c in (0.6, 0.9, 0.98)]
    assert margins == sorted(set(margins))


def test_results_are_kept_and_ranked(cache, shades):
    shutil.rmtree(store_dir(cache), ignore_errors=True)
    found = compare(cache, shades[0], "ridge,knn", kind="number", jobs=1)
    assert [r.head for r in found.records] == ["ridge"] * 3 + ["knn"] * 3
    best = min(found.records, key=lambda record: record.validation_metric)
    assert found.best == best
    assert best.distinguishable is None
    assert any(record.worse for record in found.records)
    again = compare(cache, shades[0], "ridge,knn", kind="number", jobs=1)
    assert (again.n_reused, again.best) == (6, found.best)
    more = compare(cache, shades[0], "ridge,knn,kernel-ridge", "coarse", jobs=1)
    assert more.n_reused == 2


def test_test_labels_decide_nothing(cache, shades, make_table, tmp_path, digits):
    dark = digits[0].mean(axis=1).astype(float)
    split = ["test" if i % 4 == 0 else "train" for i in range(600)]
    heads = []
    for shuffled in (False, True):
        numbers = dark.copy()
        if shuffled:
            held = np.arange(0, 600, 4)
            numbers[held] = np.random.default_rng(0).permutation(numbers[held])
        rows = list(zip(cache.paths, numbers, split, strict=True))
        path = make_table(tmp_path / f"{shuffled}.csv", "path,label,split", rows)
        heads.append(fit(cache, path, kind="number"))
    assert np.array_equal(heads[0].head.scorer.coef, heads[1].head.scorer.coef)
    assert heads[0].head.margin == heads[1].head.margin
    assert heads[0].record.validation_metric == heads[1].record.validation_metric
    assert heads[0].record.test_metric < heads[1].record.test_metric


def test_groups_are_whole_and_widen_intervals(cache, digits, make_table, tmp_path):
    dark = digits[0].mean(axis=1).astype(float)
    rows = [(p, d, f"g{i // 20}") for i, (p, d) in enumerate(zip(cache.paths, dark, strict=True))]
    table = make_table(tmp_path / "g.csv", "path,label,group", rows)
    found = compare(cache, table, "ridge", "coarse", kind="number", jobs=1)
    (task,) = found.tasks
    for group in np.unique(task.groups):
        assert len(set(task.split[task.groups == group])) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": "lda"}, UnknownHeadError, "'lda' is no head for the kind number, only ridge"),
        ({"heads": "rigde"}, UnknownHeadError, "no head 'rigde'"),
        ({"heads": "sklearn.svm:SVC"}, UnknownHeadError, "is no regressor"),
        ({"heads": "os:system"}, UnknownHeadError, "no estimator of scikit-learn's kind"),
        ({"metric": "accuracy"}, CallError, "have the metrics mae, rmse, r2, spearman"),
        ({"class_weight": "balanced"}, CallError, "--class-weight is for classes"),
        ({"repeats": 3}, CallError, "--repeats, --shots, --folds and --zeroshot are for classes"),
        ({"coverage": 2.0}, CallError, "the coverage is a share"),
    ],
)
def test_wrong_calls_say_what_is_wrong(cache, shades, options, error, message):
    with pytest.raises(error, match=message):
        compare(cache, shades[0], jobs=1, **options)


def test_kinds_are_not_mixed(cache, shades, table):
    with pytest.raises(CallError, match="compare them one after the other"):
        compare(cache, [table, shades[0]])


def test_nothing_to_learn_is_said(cache, make_table, tmp_path):
    rows = [(path, "3.5") for path in cache.paths]
    table = make_table(tmp_path / "same.csv", "path,label", rows)
    with pytest.raises(TooFewImagesError, match=r"every training image .* has the number 3\.5"):
        fit(cache, table, kind="number")
    rows = [(path, "a|b" if i == 0 else "") for i, path in enumerate(cache.paths)]
    table = make_table(tmp_path / "rare.csv", "path,label", rows)
    with pytest.raises(TooFewImagesError, match=r"no label of .* has 2 training images"):
        fit(cache, table, kind="multi")


@pytest.mark.parametrize("n", [4, 9, 30])
def test_few_images_are_enough_to_try(cache, shades, make_table, tmp_path, digits, n):
    rows = [(p, float(d)) for p, d in zip(cache.paths[:n], digits[1], strict=False)]
    table = make_table(tmp_path / "t.csv", "path,label", rows)
    head, record = fit(cache, table, layer="coarse", kind="number")
    assert np.isfinite(head.predict(cache.features("coarse"))).all() or record.n_train < 2


def test_the_verbs_take_the_options(cache, shades, run_cli, tmp_path):
    _, grade = shades
    options = ("--labels", grade, "--order", "light,dim,dark")
    done = run_cli("fit", cache.path, "-o", tmp_path / "h", *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kind"] == "grade"
    assert found["quadratic_kappa_ci"][0] < found["quadratic_kappa"]
    done = run_cli("compare", cache.path, *options, "--heads", "ordinal,ridge")
    assert done.returncode == 0, done.stderr
    assert "--order light,dim,dark" in done.stdout  # the command that saves the best
    done = run_cli("compare", cache.path, "--labels", grade, "--kind", "grade")
    assert done.returncode == 2
    assert "nothing tells the order of the grades" in done.stderr


@pytest.mark.long
def test_the_report_draws_every_kind(cache, shades, digits, make_table, run_cli, tmp_path):
    rows = [(p, "odd|any" if d % 2 else "any") for p, d in zip(cache.paths, digits[1], strict=True)]
    tags = make_table(tmp_path / "tags.csv", "path,label", rows)
    for name, options, words in (
        ("n", ("--labels", shades[0]), ("Predicted and true", "Intervals of ±", "no image")),
        ("g", ("--labels", shades[1], "--order", "light,dim,dark"), ("Confusion matrix",)),
        ("m", ("--labels", tags), ("hardest first", "threshold")),
    ):
        done = run_cli("report", cache.path, "-o", tmp_path / f"{name}.html", *options)
        assert done.returncode == 0, done.stderr
        page = (tmp_path / f"{name}.html").read_text()
        for word in ("Leaderboard", "Furthest off", "Provenance", *words):
            assert word in page, (name, word)


@pytest.mark.long
def test_advice_by_the_metric_of_the_kind(cache, shades, run_cli):
    """The pixels are the shallow layer and know all; their means know as much."""
    advice = advise(cache, shades[0])
    assert (advice.kind, advice.metric, advice.size) == ("number", "mae", "small")
    assert [score.layer for score in advice.profile][:2] == ["fine", "coarse"]
    values = [point.value for point in advice.curve]
    assert values[-1] <= values[0]
    assert advice.strategy in ("linear-probe", "truncated-probe")
    done = run_cli("advise", cache.path, "--labels", shades[0], "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["strategy"] == advice.strategy
    assert found["evidence"].keys() >= {"profile", "curve", "reasons", "gain", "gain_ci"}
    done = run_cli("advise", cache.path, "--labels", shades[0], "--similarity", "different")
    assert "truncated-probe" in done.stdout

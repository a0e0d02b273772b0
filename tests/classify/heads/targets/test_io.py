"""Files of heads for several labels, numbers and grades: saved, loaded, refused."""

import csv
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from classify import evaluate, fit, load_head, predict, save_head
from classify.errors import CallError, HeadFileError
from classify.heads.io import load_head as load_class_head
from classify.heads.targets.fitted import FittedTargets


@pytest.fixture(scope="module")
def tables(cache, digits, make_table, tmp_path_factory):
    home = tmp_path_factory.mktemp("targets")
    number, several, grade = [], [], []
    for path, d in zip(cache.paths, digits[1], strict=True):
        number.append((path, d + 0.5))
        has = {"odd": d % 2, "loop": d in (0, 6, 8, 9), "large": d > 4}
        several.append((path, "|".join(name for name in has if has[name])))
        grade.append((path, ("low", "mid", "high")[d // 4]))
    return {
        "number": make_table(home / "number.csv", "path,label", number),
        "multi": make_table(home / "multi.csv", "path,label", several),
        "grade": make_table(home / "grade.csv", "path,label", grade),
    }


CASES = [
    ("number", "ridge"),
    ("number", "knn"),
    ("number", "kernel-ridge"),
    ("number", "sklearn.linear_model:Ridge"),
    ("multi", "softmax"),
    ("multi", "ridge"),
    ("multi", "knn"),
    ("grade", "ordinal"),
    ("grade", "lda"),
    ("grade", "ridge"),
]


def make_head(cache, tables, kind, head) -> FittedTargets:
    order = "low,mid,high" if kind == "grade" else None
    return fit(cache, tables[kind], head, "coarse", order=order)[0]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_loaded_head_says_the_same(cache, digits, tables, tmp_path, kind, name):
    head = make_head(cache, tables, kind, name)
    save_head(head, tmp_path / "h")
    loaded = load_head(tmp_path / "h")
    assert isinstance(loaded, FittedTargets)
    X = cache.features("coarse")
    assert np.array_equal(loaded.predict(X), head.predict(X))
    assert np.array_equal(loaded.outputs(X), head.outputs(X))
    for field in ("kind", "names", "settings", "margin", "coverage", "task", "source", "head"):
        assert getattr(loaded, field) == getattr(head, field), field
    assert loaded.record["metric"] == head.record["metric"]
    assert loaded.trained_on(cache.column("sha256")).sum() == head.record["n_train"]
    if head.has_probabilities:
        proba = loaded.predict_proba(X)
        assert proba.shape == (600, 3)
        if kind == "grade":
            np.testing.assert_allclose(proba.sum(axis=1), 1)
    else:
        with pytest.raises(CallError, match="no probabilities"):
            loaded.predict_proba(X)


def test_releases_that_know_no_kinds_refuse_it(cache, tables, tmp_path):
    save_head(make_head(cache, tables, "number", "ridge"), tmp_path / "h")
    with pytest.raises(HeadFileError, match="classes is missing"):
        load_class_head(tmp_path / "h")


@pytest.mark.parametrize("kind", ["number", "multi", "grade"])
def test_predict_and_evaluate_by_the_command_line(cache, tables, tmp_path, run_cli, kind):
    head = make_head(cache, tables, kind, "ridge")
    save_head(head, tmp_path / "h")
    done = run_cli("predict", tmp_path / "h", cache.path, "-o", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    titles = {
        "number": ["path", "number", "low", "high"],
        "multi": ["path", "label", *(f"probability:{name}" for name in head.names)],
        "grade": ["path", "grade", "probability"],
    }
    assert list(rows[0]) == titles[kind]
    assert [row["path"] for row in rows] == cache.paths
    again = run_cli("predict", tmp_path / "h", cache.path, "-o", tmp_path / "p.csv")
    assert again.returncode == 0  # its own kind of file
    found = json.loads(run_cli("predict", tmp_path / "h", cache.path, "--json").stdout)
    assert found["kind"] == kind
    done = run_cli("evaluate", tmp_path / "h", cache.path, "--labels", tables[kind], "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    name = head.record["metric"]
    assert metrics[name] == pytest.approx(head.record[name], abs=1e-6)
    assert metrics["n_test"] == head.record["n_test"]
    done = run_cli("predict", tmp_path / "h", cache.path, "--top", "2")
    assert (done.returncode, "--top is for classes" in done.stderr) == (2, True)


def test_labels_that_a_head_does_not_know(cache, tables, make_table, tmp_path):
    head = make_head(cache, tables, "multi", "ridge")
    rows = [(path, "odd|new") for path in cache.paths[:80]]
    metrics, notices = evaluate(
        head, cache, make_table(tmp_path / "t.csv", "path,label", rows), column="label"
    )
    assert any("does not know, left out: 'new'" in notice for notice in notices)
    assert metrics["labels"].keys() == {"odd", "loop", "large"}
    other = make_table(tmp_path / "o.csv", "path,label", [(p, "lop|x") for p in cache.paths[:80]])
    with pytest.raises(CallError, match=r"no label that this head knows"):
        evaluate(head, cache, other)


def test_python_gets_what_the_command_prints(cache, tables):
    head = make_head(cache, tables, "number", "ridge")
    found = predict(head, cache.path)
    interval = head.predict_interval(cache.features("coarse"))
    np.testing.assert_allclose(interval.mean(axis=1), found.values[:, 0], rtol=1e-6)
    assert interval[0, 1] - interval[0, 0] == pytest.approx(2 * head.margin)
    assert found.to_dict()["predictions"][0].keys() == {"path", "number", "low", "high"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, a: m.update(kind='"other"'), "unknown to this Headgraft"),
        (lambda m, a: m.update(names='["a", "a", "b"]'), "names is not what"),
        (lambda m, a: m.update(names='["a"]'), "names is not what"),
        (lambda m, a: m.update(margin="-1"), "margin is not what"),
        (lambda m, a: m.update(model='"pickle"'), "of no known kind"),
        (lambda m, a: a.pop("cutpoints"), "do not go with its kind"),
        (lambda m, a: a.update(cutpoints=np.array([2.0, 1.0])), "not in order"),
        (lambda m, a: a.update(cutpoints=np.zeros(7)), "cutpoints is F64"),
        (lambda m, a: a.update(thresholds=np.zeros(3)), "do not go with its kind"),
        (lambda m, a: a.update(grades=np.array([0.0, 9.0])), "not those of its grades"),
        (lambda m, a: a.update(coef=np.full((1, 16), np.nan)), "not finite"),
        (lambda m, a: a.update(more=np.zeros(3)), "it holds the arrays"),
        (lambda m, a: m.update(version="9.0"), "unknown to this Headgraft; upgrade"),
    ],
)
def test_hostile_files_are_refused(cache, tables, tmp_path, change, message):
    save_head(make_head(cache, tables, "grade", "ordinal"), tmp_path / "h")
    with safe_open(tmp_path / "h", "np") as file:
        metadata = file.metadata()
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(metadata, arrays)
    save_file(arrays, tmp_path / "bad", metadata)
    with pytest.raises(HeadFileError, match=message):
        load_head(tmp_path / "bad")

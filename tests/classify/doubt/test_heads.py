"""Doubt from `fit` to `predict`: kept in the file, printed, measured; old heads have none."""

import csv
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from classify import evaluate, fit, load_head, save_head
from classify.data.features import FeatureRows
from classify.data.tasks import make_task
from classify.errors import CallError, HeadFileError
from classify.experiments.fit import make_fit_options
from classify.experiments.results import result_key
from classify.labels.table import LabelTable, read_labels


@pytest.fixture(scope="module")
def known(cache, digits, tmp_path_factory):
    """A head that knows eight digits, and its file."""
    rows = [(path, str(d)) for path, d in zip(cache.paths, digits[1], strict=True) if d < 8]
    table = LabelTable("known", "known", [p for p, _ in rows], [d for _, d in rows])
    head, record = fit(cache, table, "lda", "fine")
    path = tmp_path_factory.mktemp("doubt") / "known.head"
    save_head(head, path)
    return head, record, path, table


def test_what_is_measured_is_in_the_record(known):
    _, record, *_ = known
    doubt = record.doubt
    assert doubt["coverage"] == 0.9
    low, high = doubt["realised_ci"]
    assert low <= doubt["realised"] <= high
    assert 0.8 < doubt["realised"] <= 1
    assert 0.8 < doubt["set_size"] < 2
    assert 0 <= doubt["unknown"] < 0.15
    assert doubt["risk"]["share"][-1] == 1
    assert doubt["risk"]["accuracy"][-1] == pytest.approx(record.accuracy, abs=1e-3)
    assert record.to_dict()["doubt"] == doubt


def test_a_loaded_head_doubts_alike(known, cache, digits):
    head, _, path, _ = known
    loaded, X = load_head(path), digits[0]
    assert np.array_equal(loaded.predict_sets(X), head.predict_sets(X))
    assert np.array_equal(loaded.novelty_scores(X), head.novelty_scores(X))
    assert np.array_equal(loaded.is_unknown(X), head.is_unknown(X))
    sizes = loaded.predict_sets(X).sum(axis=1)
    assert set(sizes) <= {0, 1, 2, 3}


def test_strangers_are_told_more_often_than_known_ones(known, digits):
    head, *_ = known
    is_stranger = digits[1] >= 8
    unknown = head.is_unknown(digits[0])
    assert unknown[is_stranger].mean() > 3 * unknown[~is_stranger].mean()


def test_predict_prints_sets_and_abstains(known, cache, run_cli):
    _, _, path, _ = known
    done = run_cli("predict", path, cache.path)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert list(rows[0]) == ["path", "label", "probability", "set", "unknown"]
    assert all(row["label"] for row in rows)
    assert {row["unknown"] for row in rows} == {"0", "1"}
    done = run_cli("predict", path, cache.path, "--abstain")
    for row in csv.DictReader(done.stdout.splitlines()):
        is_sure = row["unknown"] == "0" and row["set"] and "|" not in row["set"]
        assert bool(row["label"]) == bool(is_sure)
        assert not is_sure or row["label"] == row["set"]
    done = run_cli("predict", path, cache.path, "--abstain", "--json")
    entry = json.loads(done.stdout)["predictions"][0]
    assert entry.keys() == {"path", "labels", "probability", "set", "unknown", "open"}


def test_coverage_is_what_is_asked(cache, table, digits):
    X = digits[0]
    sizes = [
        fit(cache, table, "lda", "fine", coverage=coverage)[0].predict_sets(X).sum()
        for coverage in (0.6, 0.9, 0.98)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    with pytest.raises(CallError, match="the coverage is a share"):
        fit(cache, table, "lda", coverage=1)


def test_evaluate_measures_it_again(known, cache):
    head, record, _, table = known
    metrics, _ = evaluate(head, cache, table)
    for key in ("realised", "set_size", "unknown"):
        assert metrics["doubt"][key] == pytest.approx(record.doubt[key])


def test_heads_of_older_releases_have_none(known, cache, tmp_path, digits, run_cli):
    _, _, path, _ = known
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        arrays = {k: file.get_tensor(k) for k in file.keys() if not k.startswith("novelty")}  # noqa: SIM118
    del metadata["doubt"]
    metadata["version"] = "1.1"
    save_file(arrays, tmp_path / "old.head", metadata)
    old = load_head(tmp_path / "old.head")
    assert (old.set_threshold, old.novelty) == (None, None)
    assert np.array_equal(old.predict(digits[0]), load_head(path).predict(digits[0]))
    with pytest.raises(CallError, match="no prediction sets"):
        old.predict_sets(digits[0])
    with pytest.raises(CallError, match="cannot tell"):
        old.is_unknown(digits[0])
    done = run_cli("predict", tmp_path / "old.head", cache.path)
    assert done.stdout.splitlines()[0] == "path,label,probability"
    done = run_cli("predict", tmp_path / "old.head", cache.path, "--abstain")
    assert done.returncode == 2
    assert "this head cannot abstain" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, a: d.update(coverage=2), "coverage of its doubt"),
        (lambda d, a: d.update(rest=[1, -1]), "not positive"),
        (lambda d, a: d.update(entropy_scale="x"), "entropy_scale of its doubt"),
        (lambda d, a: d.update(distance_scale=[0, 0]), "not positive"),
        (lambda d, a: d.pop("relative_scale"), "relative_scale of its doubt"),
        (lambda d, a: d.pop("threshold"), "threshold of its doubt"),
        (lambda d, a: d.update(false_alarms=None), "false_alarms of its doubt"),
        (lambda d, a: a.pop("novelty.mean"), "not complete"),
        (lambda d, a: a.update({"novelty.mean": np.zeros(3, np.float32)}), "novelty.mean is F32"),
        (lambda d, a: a["novelty.variances"].fill(-1), "variance of its novelty"),
        (lambda d, a: a["novelty.vectors"].fill(np.nan), "not finite"),
        (
            lambda d, a: a.update({"novelty.class_means": np.zeros((8, 999), np.float32)}),
            "class means are of another shape",
        ),
        (
            lambda d, a: a.update({"novelty.class_means": np.zeros((0, 9), np.float32)}),
            "class means are of another shape",
        ),
    ],
)
def test_hostile_doubt_is_refused(known, tmp_path, change, message):
    _, _, path, _ = known
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        arrays = {k: file.get_tensor(k).copy() for k in file.keys()}  # noqa: SIM118
    doubt = json.loads(metadata["doubt"])
    change(doubt, arrays)
    save_file(arrays, tmp_path / "bad.head", metadata | {"doubt": json.dumps(doubt)})
    with pytest.raises(HeadFileError, match=message):
        load_head(tmp_path / "bad.head")


def test_nothing_held_out_leaves_no_doubt(cache):
    table = LabelTable("t", "t.csv", cache.paths[:3], ["a", "b", "c"])
    head, record = fit(cache, table, "ridge", "fine")
    assert (head.coverage, head.set_threshold, head.novelty) == (None, None, None)
    assert record.doubt is None
    notice = "nothing was held out, so it has no prediction sets and cannot tell strangers"
    assert f"ridge on fine: {notice}" in head.notices


def test_too_few_images_for_such_a_coverage(cache, table, tmp_path, run_cli):
    """Strangers are told all the same; 480 images cannot say what 99.9 % of new ones have."""
    head, record = fit(cache, table, "lda", "fine", coverage=0.999)
    assert head.set_threshold is None
    assert head.novelty is not None
    assert record.doubt.keys() == {"coverage", "unknown", "unknown_ci", "risk"}
    (notice,) = (line for line in head.notices if "sets" in line)
    assert notice.startswith("lda on fine: no prediction sets: 480 held-out images")
    save_head(head, tmp_path / "few.head")
    done = run_cli("predict", tmp_path / "few.head", cache.path)
    assert done.stdout.splitlines()[0] == "path,label,probability,unknown"


def test_shares_of_neighbours_cover_as_asked(cache, table):
    """Many images have the same probability: the sets that are printed are those measured."""
    head, record = fit(cache, table, "knn", "fine")
    task = make_task(cache, read_labels(table))
    test = task.split == "test"
    features = FeatureRows.from_cache(cache, ["fine"], task.rows[test]).to_array()
    sets = head.predict_sets(features)
    assert record.doubt["realised"] == sets[np.arange(test.sum()), task.y[test]].mean() >= 0.85
    assert record.doubt["set_size"] == sets.sum(axis=1).mean()


def test_labels_that_the_head_does_not_know_are_in_no_set(known, cache, digits):
    head, record, *_ = known
    rows = [(path, str(d)) for path, d in zip(cache.paths, digits[1], strict=True)]
    seen = head.trained_on(cache.column("sha256", np.arange(cache.n_rows)))
    rest = [row for row, is_seen in zip(rows, seen, strict=True) if not is_seen]
    table = LabelTable("all", "all", [p for p, _ in rest], [d for _, d in rest])
    metrics, _ = evaluate(head, cache, table)
    n_known = sum(label < "8" for _, label in rest)
    share = record.doubt["realised"] * n_known / len(rest)
    assert metrics["doubt"]["realised"] == pytest.approx(share)
    assert metrics["doubt"]["unknown"] > record.doubt["unknown"]


def test_a_result_is_kept_for_each_coverage(cache, table):
    task = make_task(cache, read_labels(table))
    keys = [
        result_key(cache, task, "lda", ["fine"], make_fit_options(0, None, None, None, coverage))
        for coverage in (None, 0.9, 0.95)
    ]
    assert keys[0] == keys[1] != keys[2]

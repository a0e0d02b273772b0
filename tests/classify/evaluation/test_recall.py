"""How many images of each class are found: numbers, intervals, order, and where they are told."""

import json

import numpy as np
import pytest

from classify import evaluate, fit, save_head
from classify.evaluation.metrics import estimate_proportion, wilson_interval
from classify.evaluation.predictions import HeldOutPredictions
from classify.evaluation.recall import compute_class_recall
from classify.labels.table import LabelTable


def answers(truth, predicted):
    truth, none = np.array(truth), np.full(len(truth), np.nan, np.float32)
    return HeldOutPredictions(
        np.arange(len(truth)), truth, np.array(predicted), none, none, none, none
    )


def test_each_class_has_its_share_its_interval_and_its_count_the_worst_first():
    truth = [0] * 4 + [2] * 10 + [1] * 5
    found = compute_class_recall(
        answers(truth, [0, 0, 0, 1] + [2] * 2 + [0] * 8 + [1] * 5), ["a", "b", "c", "d"],
        np.arange(19),
    )  # fmt: skip
    assert list(found) == ["c", "a", "b"]
    assert [found[name]["value"] for name in found] == [0.2, 0.75, 1.0]
    assert found["c"] == {"value": 0.2, "ci": list(wilson_interval(2, 10)), "n": 10}
    assert json.loads(json.dumps(found)) == found


def test_images_of_one_unit_count_as_one():
    truth, unit = np.zeros(100, int), np.arange(10).repeat(10)
    right = (unit < 6).astype(int)
    found = compute_class_recall(answers(truth, 1 - right), ["a", "b"], unit)["a"]
    assert found["ci"] == list(estimate_proportion(right == 1, unit)[1])
    low, high = wilson_interval(60, 100)
    assert found["ci"][1] - found["ci"][0] > 1.8 * (high - low)


@pytest.fixture(scope="module")
def grouped(cache, digits):
    """Digits with a group for every two images; a third of them for the test."""
    y = [f"d{k}" for k in digits[1]]
    split = np.array(["train", "train", "test"])[np.arange(600) // 2 % 3]
    groups = [str(k // 2) for k in range(600)]
    return LabelTable("t", "t.csv", list(cache.paths), y, list(split), groups)


@pytest.mark.slow
def test_fit_and_evaluate_tell_the_same(cache, grouped, tmp_path, digits):
    head, record = fit(cache, grouped)
    assert sorted(record.recall) == sorted(record.classes)
    counts = {name: it["n"] for name, it in record.recall.items()}
    assert sum(counts.values()) == record.n_test
    mean = np.mean([it["value"] for it in record.recall.values()])
    assert mean == pytest.approx(record.scores["balanced_accuracy"])
    found, _ = evaluate(head, cache, grouped)
    assert found["recall"] == record.recall == record.to_dict()["recall"]
    assert head.record["recall"] == record.recall
    save_head(head, tmp_path / "h")
    _, untested = fit(cache, LabelTable("t", "t.csv",
                      list(cache.paths), grouped.labels), test_size=0)  # fmt: skip
    assert untested.recall is None


@pytest.mark.long
def test_the_command_line_lists_the_worst_classes(run_cli, make_cache, make_table, tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(600) % 25
    X = (rng.normal(size=(600, 25)) + 2 * np.eye(25)[y]).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    rows = [(path, f"k{k:02}") for path, k in zip(cache.paths, y, strict=True)]
    table = make_table(tmp_path / "t.csv", "path,label", rows)
    given = ("fit", cache.path, "--labels", table, "--head", "ridge", "-o", tmp_path / "h")
    told = json.loads(run_cli(*given, "--json").stdout)["recall"]
    shown = run_cli(*given).stdout
    listed = [line.split()[0] for line in shown.splitlines() if line.strip().startswith("k")]
    assert listed == list(told)[:20]
    values = [told[name]["value"] for name in told]
    assert values == sorted(values)
    assert "The worst 20 of 25 classes" in shown
    again = run_cli("evaluate", tmp_path / "h", cache.path, "--labels", table)
    assert "95 % interval" in again.stdout

"""The interval of an accuracy, and a record's JSON."""

import json
import math

import numpy as np
import pytest

from classify.errors import CallError
from classify.evaluation.metrics import wilson_interval
from classify.heads.record import HeadResult

KEYS = "task head layer classes n_train n_test accuracy accuracy_ci validation C seconds"


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Published values: R. G. Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_wilson_agrees_with_published_intervals(correct, n, low, high):
    assert wilson_interval(correct, n) == (
        pytest.approx(low, abs=6e-5),
        pytest.approx(high, abs=6e-5),
    )


def test_wilson_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [
        low <= 0.9 <= high
        for low, high in (wilson_interval(int(k), 50) for k in rng.binomial(50, 0.9, 4000))
    ]
    assert 0.93 < np.mean(hits) < 0.98


def test_wilson_levels_widen():
    assert (
        wilson_interval(5, 10, 0.5)[0]
        > wilson_interval(5, 10, 0.95)[0]
        > wilson_interval(5, 10, 0.99)[0]
    )


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(correct, n):
    with pytest.raises(CallError, match=f"no interval for {correct} of {n}"):
        wilson_interval(correct, n)


def test_wilson_refuses_impossible_levels():
    for level in (0.0, 1.0, math.nan):
        with pytest.raises(CallError, match="at level"):
            wilson_interval(1, 2, level)


def test_a_record_is_flat_json_with_these_keys():
    record = HeadResult(
        "t", "softmax", "a+b", ["x", "y"], 8, 2, 0.5, (0.1, 0.9), None, None, 0.1, {"C": 0.1}, None,
        "root-l2", "accuracy", None, None, 1.5, {"macro_f1": 0.5, "macro_f1_ci": (0.1, 0.9)}, 1.0,
    )  # fmt: skip
    found = record.to_dict()
    assert set(KEYS.split()) < set(found)
    assert list(found)[: len(KEYS.split()) - 3] == KEYS.split()[:-3]
    assert json.loads(json.dumps(found)) == found
    assert found["accuracy_ci"] == [0.1, 0.9]
    assert found["macro_f1_ci"] == [0.1, 0.9]

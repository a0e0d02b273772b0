"""Tasks x heads x layers from one cache."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

from classify import compare, fit, workers
from classify.errors import CallError, UnknownHeadError
from classify.evaluation.paired import apply_holm_correction
from classify.experiments import grid
from classify.experiments.results import FitResult
from classify.heads.record import HeadResult
from classify.heads.registry import DEFAULT_HEADS
from classify.labels.table import LabelTable
from classify.store import store_dir


def keys(records):
    return [(record.task, record.head, record.layer) for record in records]


@pytest.fixture(scope="module")
def found(cache, table, parity):
    seen = []
    shutil.rmtree(store_dir(cache), ignore_errors=True)
    result = compare(
        cache.path, [table, parity], jobs=2, progress=lambda *arguments: seen.append(arguments)
    )
    return result, seen


@pytest.mark.long
def test_every_combination_once_in_the_order_asked_for(found):
    result, seen = found
    assert keys(result.records) == [
        (task, head, layer)
        for task in ("digit", "parity")
        for head in DEFAULT_HEADS
        for layer in ("fine", "coarse", "fine+coarse")
    ]
    assert [(done, total) for _, done, total in seen] == [(i, 30) for i in range(1, 31)]
    assert sorted(keys(record for record, _, _ in seen)) == sorted(keys(result.records))
    # 30 images for each of 16 columns: their covariance needs hardly any shrinkage.
    assert all("(lda on coarse: shrinkage = 0.001)" in notice for notice in result.notices)
    assert result.seconds > 0


def unmarked(record):
    """What it says of itself, not of others."""
    return replace(record, seconds=0, distinguishable=None, worse=None)


@pytest.mark.long
def test_each_record_is_what_fit_gives(found, cache, table):
    result, _ = found
    for record in result.records[:3]:
        _, alone = fit(cache, table, record.head, record.layer)
        assert alone.doubt.items() >= record.doubt.items()
        # What is unlike all training images is learnt for a head that is kept.
        assert set(alone.doubt) - set(record.doubt) == {"unknown", "unknown_ci"}
        assert replace(unmarked(alone), doubt=record.doubt) == unmarked(record)


def test_frame_has_a_row_for_each_head_the_best_of_each_task_first(found):
    pytest.importorskip("pandas")
    result, _ = found
    frame = result.to_frame()
    assert len(frame) == len(result.records)
    firsts = frame.groupby("task", sort=False).first()
    for task, best in result.best_per_task.items():
        assert tuple(firsts.loc[task, ["head", "layer"]]) == (best.head, best.layer)
    assert {"accuracy", "validation", "C", "log_loss"} <= {*frame.columns}


def test_one_worker_gives_the_same(found, cache, table):
    result, _ = found
    alone = compare(cache, table, "softmax", "fine,coarse", jobs=1)
    for record, other in zip(alone.records, result.records, strict=False):
        assert unmarked(record) == unmarked(other)
    assert "best_per_task" not in alone.to_dict()


def test_best_is_by_validation(found):
    result, _ = found
    for task, best in result.best_per_task.items():
        rows = [record for record in result.records if record.task == task]
        assert best.validation == max(record.validation for record in rows)
    assert result.best.validation == max(record.validation for record in result.records)
    assert set(result.to_dict()) == {"records", "best", "best_per_task"}


def stub(monkeypatch, scores):
    """Replace training by made-up (validation, accuracy) for each (head, layer)."""

    def fake(cache, task, head, layers, options, lasting):
        validation, accuracy = scores[head.name, "+".join(layers)]
        joined = "+".join(layers)
        record = HeadResult(
            task.name, head.name, joined, task.classes, 1, 1, accuracy, None, validation, None, 1,
            {}, None, "root-l2", "accuracy", validation, None, None, {}, 0,
        )  # fmt: skip
        return None, FitResult(record, None, None, ())

    monkeypatch.setattr(grid, "fit_task", fake)
    monkeypatch.setattr(grid, "save_result", lambda *_: None)
    monkeypatch.setattr(grid, "load_result", lambda *_: None)


def test_test_accuracy_never_decides(cache, table, monkeypatch):
    stub(monkeypatch, {("softmax", "fine"): (0.8, 0.1), ("softmax", "coarse"): (0.7, 1.0)})
    assert compare(cache, table, "softmax", "each", jobs=1).best.layer == "fine"


def test_ties_go_to_the_narrower_then_the_earlier(cache, table, monkeypatch):
    stub(
        monkeypatch,
        {(h, k): (0.5, 0.5) for h in DEFAULT_HEADS for k in ("fine", "coarse", "fine+coarse")},
    )
    best = compare(cache, table, layers="joined,fine,coarse", jobs=1).best
    assert (best.head, best.layer) == ("softmax", "coarse")
    best = compare(cache, table, "linear-svm,softmax", "coarse", jobs=1).best
    assert best.head == "linear-svm"


def test_unvalidated_comes_last(cache, table, monkeypatch):
    stub(monkeypatch, {("softmax", "fine"): (None, 1.0), ("softmax", "coarse"): (0.1, 0.1)})
    assert compare(cache, table, "softmax", "each", jobs=1).best.layer == "coarse"


def test_workers_get_a_path_and_not_the_features(cache, table, monkeypatch):
    sizes = []

    class Measured:
        def __init__(self, **_):
            pass

        def __call__(self, calls):
            for call in calls:
                sizes.append(len(pickle.dumps(call)))
                function, arguments, options = call
                yield function(*arguments, **options)

    monkeypatch.setattr(workers, "Parallel", Measured)
    stub(monkeypatch, {("softmax", "fine"): (0.5, 0.5)})
    compare(cache, table, "softmax", "fine", jobs=2)
    assert max(sizes) < cache.features("fine").nbytes / 4


def test_tables_of_one_name_are_told_apart(cache, table, tmp_path, make_table, monkeypatch):
    stub(monkeypatch, {("softmax", "fine"): (0.5, 0.5)})
    other = tmp_path / "digit.csv"
    other.write_text(table.read_text())
    result = compare(cache, [table, other], "softmax", "fine", jobs=1)
    assert sorted(result.best_per_task) == sorted([str(table), str(other)])
    with pytest.raises(CallError, match="the same labels are given twice"):
        compare(cache, [table, table], "softmax", "fine", jobs=1)


def test_notices_name_their_task(cache, monkeypatch):
    table = LabelTable("tiny", "tiny.csv", cache.paths[:3], ["a", "b", "c"])
    result = compare(cache, table, "softmax", "coarse", jobs=1)
    assert result.notices
    assert all(notice.startswith("tiny: ") for notice in result.notices)
    assert result.best.validation is None


def test_wrong_calls_fail_before_any_work(cache, table):
    with pytest.raises(UnknownHeadError, match="did you mean 'softmax'"):
        compare("nowhere.h5", table, "linear-svm,sofmax")
    with pytest.raises(CallError, match="nothing to compare"):
        compare(cache, [], "softmax")
    with pytest.raises(CallError, match="nothing to compare"):
        compare(cache, table, [])


def test_an_error_in_a_worker_comes_out_as_it_is(make_cache, tmp_path):
    """The cache goes between looking at it and opening it again, in a worker."""
    X = np.random.default_rng(0).normal(size=(40, 2000)).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    table = LabelTable("t", "t.csv", list(cache.paths), ["a", "b"] * 20)
    cache.path.unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        compare(cache, table, jobs=2)


def test_what_was_trained_is_not_trained_again(found, cache, table, parity, monkeypatch):
    def never(*_, **__):
        raise AssertionError("trained again")

    result, _ = found
    monkeypatch.setattr(grid, "fit_task", never)
    again = compare(cache, [table, parity], jobs=1)
    assert again.n_reused == len(again.records) == 30
    assert again.records == result.records
    for one, other in zip(again.results, result.results, strict=True):
        assert (one.test.predicted == other.test.predicted).all()
        assert (one.validation.loss == other.validation.loss).all() or one.record.head != "softmax"
    with pytest.raises(AssertionError, match="trained again"):
        compare(cache, table, "softmax", "fine", seed=1, jobs=1)
    with pytest.raises(AssertionError, match="trained again"):
        compare(cache, table, "softmax", "fine", class_weight="balanced", jobs=1)


def test_damaged_results_are_trained_again(found, cache, table):
    result, _ = found
    for path in store_dir(cache).glob("result-*"):
        path.write_bytes(path.read_bytes()[:-10])
    again = compare(cache, table, "ncm", "fine", jobs=1)
    assert again.n_reused == 0
    old = next(r for r in result.records if (r.task, r.head, r.layer) == ("digit", "ncm", "fine"))
    assert again.best.accuracy == old.accuracy


def test_heads_that_differ_by_chance_are_marked(found):
    result, _ = found
    for task, best in result.best_per_task.items():
        rows = [record for record in result.records if record.task == task]
        assert [r.distinguishable for r in rows].count(None) == 1
        assert best.distinguishable is None
        far = min(rows, key=lambda record: record.accuracy)
        assert far.distinguishable is far.worse is True
        assert [r.worse for r in rows].count(None) == 1
        for record in rows:
            assert not record.worse or record.distinguishable
            assert not record.worse or record.accuracy < best.accuracy


def test_equal_heads_are_called_worse_seldom():
    """Thirty that are as good as each other: one by one some always differ, together none."""
    rng = np.random.default_rng(0)
    some, told = 0, 0
    for _ in range(200):
        p_values = rng.random(29)
        some += (p_values < 0.05).any()
        told += any(apply_holm_correction(p_values))
    assert some > 140
    assert told <= 16
    assert apply_holm_correction([0.001, 0.2, 0.02, 0.03]) == [True, False, False, False]
    assert apply_holm_correction([0.001, 0.2, 0.012, 0.02]) == [True, False, True, True]
    assert apply_holm_correction([]) == []

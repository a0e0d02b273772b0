"""The same heads on several draws: random splits, test folds, a few images of each class."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from classify import compare
from classify.cli import app as app_module
from classify.data.folds import draw_class_ranks
from classify.data.folds import draw_test_folds as draw_folds
from classify.errors import CallError, TooFewImagesError
from classify.evaluation.metrics import wilson_interval
from classify.evaluation.repeated import average_over_draws, average_over_splits
from classify.experiments.draws import DrawSpec, plan_draws
from classify.labels.table import LabelTable, read_labels
from classify.store import store_dir
from featurize.cache.reader import FeatureCache

HEADS = "softmax,linear-svm,rbf-svm,ridge,lda,ncm,knn"


@pytest.fixture(scope="module")
def own(cache, tmp_path_factory):
    """The digits in a folder of their own, with nothing kept beside them."""
    folder = tmp_path_factory.mktemp("own")
    return FeatureCache(shutil.copy(cache.path, folder / "c.h5"))


@pytest.fixture(scope="module")
def splits(own, table):
    return compare(own, table, "ridge,ncm", "coarse,fine", repeats=4, jobs=1)


@pytest.fixture(scope="module")
def folded(own, table):
    return compare(own, table, "ridge,ncm", "coarse,fine", folds=5, jobs=1)


@pytest.fixture(scope="module")
def few(own, table):
    return compare(own, table, "ridge,ncm", "coarse", shots="4,1,2", jobs=1)


def row_of(found, head, layer="coarse", shots=None):
    (row,) = [r for r in found.rows if (r.head, r.layer, r.shots) == (head, layer, shots)]
    return row


def accuracies(row):
    return np.array([run["accuracy"] for run in row.runs])


# --- random splits -------------------------------------------------------------------------------


def test_each_run_is_the_comparison_of_its_seed(splits, own, table):
    """The first is that of no repeats at all; none is trained again."""
    assert [run["seed"] for run in splits.rows[0].runs] == [0, 1, 2, 3]
    for seed in (0, 3):
        alone = compare(own, table, "ridge,ncm", "coarse,fine", seed=seed, jobs=1)
        assert alone.n_reused == len(alone.records) == 4
        for record in alone.records:
            run = row_of(splits, record.head, record.layer).runs[seed]
            assert run["accuracy"] == record.accuracy
            assert run["validation"] == record.validation
            assert run["settings"] == record.settings
            assert run["macro_f1"] == record.scores["macro_f1"]


def test_the_interval_is_the_corrected_one(splits):
    """By the formula of Nadeau and Bengio, and not the t interval of independent draws."""
    for row in splits.rows:
        values = accuracies(row)
        error = np.sqrt((1 / 4 + 120 / 480) * values.var(ddof=1))
        half = t.ppf(0.975, 3) * error
        assert row.accuracy == pytest.approx(values.mean())
        assert row.accuracy_std == pytest.approx(values.std(ddof=1))
        low, high = row.accuracy_ci
        assert low == pytest.approx(values.mean() - half)
        assert high == pytest.approx(min(1, values.mean() + half))
        assert (row.n_train, row.n_test) == (480, 120)
        assert row.validation == pytest.approx(np.mean([run["validation"] for run in row.runs]))


def test_differences_are_paired_by_split(splits):
    best = splits.best_per_task["digit"]
    assert best.validation == max(row.validation for row in splits.rows)
    assert (best.difference, best.worse) == (None, None)
    for row in splits.rows:
        if row is best:
            continue
        apart = accuracies(best) - accuracies(row)
        error = np.sqrt((1 / 4 + 120 / 480) * apart.var(ddof=1))
        assert row.difference.value == pytest.approx(apart.mean())
        assert row.difference.low == pytest.approx(apart.mean() - t.ppf(0.975, 3) * error)
        assert row.difference.p_value == pytest.approx(2 * t.sf(abs(apart.mean()) / error, 3))
        assert not row.worse or row.difference.low > 0


@pytest.mark.long
def test_seeds_move_the_test_images_and_the_folds_of_every_head(own, table, monkeypatch):
    """Also where folds are drawn by content, and where images come in groups."""
    X = np.random.default_rng(0).normal(size=(600, 4))
    paths = list(own.paths)
    halves = LabelTable("halves", "h", paths, [str(int(x[0] > 0)) for x in X])
    sizes = np.repeat(np.arange(24), np.arange(1, 49, 2) + 1)
    groups = LabelTable(
        "grouped", "g", paths, [str(g % 3) for g in sizes], groups=list(map(str, sizes))
    )
    from classify.experiments import fit_task as fit_module

    seen = {}
    real_train = fit_module.train

    def watched(head, lesson):
        key = frozenset(
            frozenset(lesson.rows.rows[held].tolist()) for held in lesson.fold_plan.val_indices
        )
        seen.setdefault(head.name, []).append(key)
        return real_train(head, lesson)

    monkeypatch.setattr(fit_module, "train", watched)
    for labels in (halves, groups):
        seen.clear()
        tested = [
            tuple(draw.task.rows[draw.task.split == "test"])
            for draw in plan_draws(own, labels, DrawSpec.from_options(3, None, None, 0), 0.2).draws
        ]
        assert len(set(tested)) == 3
        compare(own, labels, HEADS, "coarse", repeats=3, prepare="root-l2", jobs=1)
        assert set(seen) == set(HEADS.split(","))
        for head, folds in seen.items():
            assert len(folds) == 3, head
            assert len(set(folds)) == 3, head
            assert folds == seen["ridge"]


def test_several_tasks_and_notices(own, table, parity):
    found = compare(own, [table, parity], "ncm,ridge", "coarse", repeats=2, jobs=1)
    assert set(found.best_per_task) == {"digit", "parity"}
    assert [row.task for row in found.rows] == ["digit", "digit", "parity", "parity"]
    assert found.n_heads == 8
    tiny = LabelTable("tiny", "t", own.paths[:40], ["a", "b"] * 19 + ["a", "c"])
    found = compare(own, tiny, "softmax", "coarse", repeats=2, jobs=1)
    assert found.notices
    assert all(notice.startswith("tiny: ") for notice in found.notices)


def test_progress_counts_all_trainings(own, table):
    seen = []
    compare(
        own, table, "ncm", "fine", repeats=3, seed=50, jobs=1, progress=lambda *a: seen.append(a)
    )
    assert [(done, total) for _, done, total in seen] == [(1, 3), (2, 3), (3, 3)]


def test_draws_leave_no_spectra_beside_the_cache(splits, own):
    """A hundred draws would leave a hundred times what a comparison keeps."""
    assert list(store_dir(own).glob("result-*"))
    assert not list(store_dir(own).glob("spectra-*"))


# --- the intervals -------------------------------------------------------------------------------


def nearest_mean(X, y, tested):
    means = np.stack([X[y == k].mean(axis=0) for k in (0, 1)])
    return ((tested[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)


def world(rng, n):
    y = np.arange(n) % 2
    return rng.normal(size=(n, 10)) + 0.3 * y[:, None], y


def truth(n_train, draws=400):
    """The accuracy that so many training images give, in the mean."""
    rng, found = np.random.default_rng(99), []
    for _ in range(draws):
        X, y = world(rng, n_train)
        tested, said = world(rng, 2000)
        found.append((nearest_mean(X, y, tested) == said).mean())
    return np.mean(found)


def test_the_corrected_interval_holds_the_truth():
    """What 80 training images give, of which each sample of 100 shows 10 splits.

    The plain t interval takes the splits for independent, and holds it far less often.
    """
    rng, expected = np.random.default_rng(0), truth(80)
    held, plain = 0, 0
    for _ in range(400):
        X, y = world(rng, 100)
        values = []
        for _ in range(10):
            test = np.zeros(100, bool)
            for k in (0, 1):
                test[rng.permutation(np.flatnonzero(y == k))[:10]] = True
            values.append((nearest_mean(X[~test], y[~test], X[test]) == y[test]).mean())
        scores = np.array(values)
        found = average_over_splits(scores, 0.25, 1 / 20).estimate
        held += found.low <= expected <= found.high
        half = t.ppf(0.975, 9) * scores.std(ddof=1) / np.sqrt(10)
        plain += abs(scores.mean() - expected) <= half
    assert held >= 0.92 * 400
    assert plain <= 0.85 * 400


@pytest.mark.parametrize(("pool", "tests"), [(1000, 100), (40, 400), (1000, 4000)])
def test_the_interval_over_shots_holds_the_truth(pool, tests):
    """What 20 training images give; the pool is wide or nearly used up, the test small or large."""
    rng, expected = np.random.default_rng(1), truth(20)
    held = 0
    for _ in range(300):
        X, y = world(rng, pool)
        tested, said = world(rng, tests)
        answers = []
        for _ in range(5):
            some = np.concatenate([rng.permutation(np.flatnonzero(y == k))[:10] for k in (0, 1)])
            answers.append(nearest_mean(X[some], y[some], tested) == said)
        found = average_over_draws(np.array(answers), np.arange(tests), 20 / (pool - 20)).estimate
        held += found.low <= expected <= found.high
    assert held >= 0.92 * 300


def test_draws_that_agree_are_no_certainty():
    found = average_over_splits(np.ones(5), 0.25, 1 / 20)
    assert found.estimate.low < 0.99
    assert found.estimate.value == 1
    same = average_over_draws(np.zeros((5, 30)), np.arange(30), 0.1)
    assert same.estimate.low < 0 < same.estimate.high
    assert same.p_value == 1


# --- folds ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_every_image_is_tested_once(folded):
    for row in folded.rows:
        assert [run["fold"] for run in row.runs] == [0, 1, 2, 3, 4]
        assert sum(run["n_test"] for run in row.runs) == row.n_test == 600
        assert all(run["n_train"] + run["n_test"] == 600 for run in row.runs)
        right = round(sum(run["n_test"] * run["accuracy"] for run in row.runs))
        assert row.accuracy == pytest.approx(right / 600)
        assert row.accuracy_ci == pytest.approx(wilson_interval(right, 600))
        assert row.n_train == 480
    assert "not that of training images" in folded.interval_note
    assert row_of(folded, "ncm").worse


def test_folds_are_stratified_and_keep_units_whole(own, digits):
    y = digits[1]
    alone = draw_folds(y, 5, 0, np.arange(600))
    spread = np.array([np.bincount(y[alone == i], minlength=10) for i in range(5)])
    assert (np.ptp(spread, axis=0) <= 1).all()
    assert np.ptp(np.bincount(alone)) <= 1
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(40), rng.integers(2, 30, 40))
    y = rng.integers(0, 3, len(unit))
    drawn = [draw_folds(y, 5, seed, unit) for seed in range(20)]
    for fold in drawn:
        assert set(fold) == set(range(5))
        assert all(len(set(fold[unit == u])) == 1 for u in range(40))
        assert np.bincount(fold).max() < 1.3 * len(y) / 5
    assert len({tuple(fold) for fold in drawn}) == 20


def test_folds_move_with_the_seed_where_units_differ_in_size():
    """Sorted by size, as scikit-learn has them, they would be dealt out the same way each time."""
    unit = np.repeat(np.arange(20), np.arange(1, 41, 2))
    y = np.arange(len(unit)) % 2
    parts = set()
    for seed in range(10):
        fold = draw_folds(y, 4, seed, unit)
        parts.add(frozenset(frozenset(unit[fold == i].tolist()) for i in range(4)))
    assert len(parts) == 10


def test_groups_are_tested_whole_and_count_as_one(own, digits):
    rng = np.random.default_rng(0)
    group = rng.permutation(np.arange(600) // 10)
    labels = LabelTable(
        "g", "g", list(own.paths), list(map(str, digits[1])), groups=list(map(str, group))
    )
    planned = plan_draws(own, labels, DrawSpec.from_options(None, None, 4, 0), 0.2)
    tested = [set(d.task.units[d.task.split == "test"]) for d in planned.draws]
    assert sum(map(len, tested)) == len(set().union(*tested)) == 60
    found = compare(own, labels, "ncm", "coarse", folds=4, jobs=1)
    low, high = found.rows[0].accuracy_ci
    assert (low, high) != pytest.approx(wilson_interval(round(found.rows[0].accuracy * 600), 600))


def test_repeated_folds_are_corrected_over_all_of_them(folded, own, table):
    found = compare(own, table, "ridge,ncm", "coarse", folds=5, repeats=2, jobs=1)
    assert found.n_reused == 10  # those of the first seed
    for row in found.rows:
        values = accuracies(row)
        assert [(run["seed"], run["fold"]) for run in row.runs] == [
            (seed, fold) for seed in (0, 1) for fold in range(5)
        ]
        half = t.ppf(0.975, 9) * np.sqrt((1 / 10 + 1 / 4) * values.var(ddof=1))
        assert row.accuracy_ci == pytest.approx((values.mean() - half, values.mean() + half))
    assert "training images as well as that of test images" in found.interval_note


def test_a_class_of_one_image_is_said_to_be_always_wrong(own):
    labels = LabelTable("odd", "o", own.paths[:41], ["a", "b"] * 20 + ["z"])
    found = compare(own, labels, "ncm", "coarse", folds=4, jobs=1)
    assert "odd: 1 class ('z'): tested without having been learnt, so always wrong" in found.notices
    assert not any("no test" in notice for notice in found.notices)


# --- shots ---------------------------------------------------------------------------------------


def test_so_many_images_of_each_class_and_the_same_test_images(few, own, table):
    assert few.shots == (1, 2, 4)
    assert few.seeds == (0, 1, 2, 3, 4)
    for row in few.rows:
        assert {run["n_train"] for run in row.runs} == {10 * row.shots}
        assert {run["n_test"] for run in row.runs} == {120}
        assert row.accuracy == pytest.approx(accuracies(row).mean())
    planned = plan_draws(own, read_labels(table), DrawSpec.from_options(3, "1,4", None, 7), 0.2)
    whole = planned.task
    tested, drawn = whole.rows[whole.split == "test"], {}
    for draw in planned.draws:
        task = draw.task
        assert (task.rows[task.split == "test"] == tested).all()
        learnt = task.rows[task.split == "train"]
        assert not set(learnt) & set(tested)
        assert (np.bincount(task.y[task.split == "train"]) == draw.shots).all()
        drawn[draw.seed, draw.shots] = set(learnt)
    assert len({frozenset(rows) for rows in drawn.values()}) == 6
    assert all(drawn[seed, 1] < drawn[seed, 4] for seed in (7, 8, 9))


def test_more_images_are_better_and_the_interval_is_that_of_both_draws(few):
    for head in ("ridge", "ncm"):
        means = [row_of(few, head, shots=shots).accuracy for shots in few.shots]
        assert means == sorted(means)
        assert means[-1] - means[0] > 0.1
    row = row_of(few, "ncm", shots=1)
    values = accuracies(row)
    low, high = row.accuracy_ci
    only_draws = t.ppf(0.975, 4) * values.std(ddof=1) / np.sqrt(5)
    assert (high - low) / 2 > 0.9 * only_draws
    assert (high - low) / 2 > 1.9 * np.sqrt(row.accuracy * (1 - row.accuracy) / 120) / np.sqrt(5)


def test_one_image_of_each_class_cannot_be_validated_and_more_can(few):
    assert row_of(few, "ridge", shots=1).validation is None
    assert row_of(few, "ridge", shots=4).validation is not None
    best = few.best_per_task["digit"]
    assert best.shots == 4
    for row in few.rows:
        assert (row.difference is None) == (row.head == best.head)
    assert any("nothing to validate with" in notice for notice in few.notices)
    assert len(few.notices) == len({notice.split(" (in ")[0] for notice in few.notices})


@pytest.mark.parametrize("shots", [1, 2])
def test_every_head_learns_from_few(own, table, shots):
    found = compare(own, table, HEADS, "coarse", shots=[shots], repeats=2, jobs=1)
    assert [row.head for row in found.rows] == HEADS.split(",")
    # Nothing says how many neighbours to ask where nothing can be validated: they are all asked.
    assert all(row.accuracy > 0.25 for row in found.rows if (row.head, shots) != ("knn", 1))
    if shots == 1:
        assert found.best_per_task == {}
        assert row_of(found, "lda", shots=1).accuracy == row_of(found, "ncm", shots=1).accuracy


def test_a_split_of_the_user_s_gives_pool_and_test(own, digits):
    """Validation images are labels beyond the shots: they are not used."""
    split = ["train", "val", "test"] * 200
    labels = LabelTable("s", "s", list(own.paths), list(map(str, digits[1])), split)
    planned = plan_draws(own, labels, DrawSpec.from_options(2, "3", None, 0), 0.2)
    for draw in planned.draws:
        named = {row: split[row] for row in draw.task.rows}
        assert set(named.values()) == {"train", "test"}
        assert sum(side == "test" for side in named.values()) == 200
    found = compare(own, labels, "ncm", "coarse", shots="3", repeats=2, jobs=1)
    assert found.rows[0].n_test == 200


def test_what_belongs_to_test_images_is_not_drawn(make_cache, tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 8)).astype(np.float32)
    contents = [f"{i}" for i in range(60)]
    contents[1] = contents[31]  # a training image and a test image have the same bytes
    X[1] = X[31]
    cache = make_cache(tmp_path / "c.h5", {"l": X}, contents=contents)
    split = ["train"] * 30 + ["test"] * 30
    labels = LabelTable("s", "s", list(cache.paths), ["a", "b"] * 30, split)
    planned = plan_draws(cache, labels, DrawSpec.from_options(2, "15", None, 0), 0.2)
    assert all(1 not in draw.task.rows for draw in planned.draws)
    assert any("1 training images belong together with test images" in n for n in planned.notices)
    assert any("1 class ('b') with fewer than 15 training images" in n for n in planned.notices)


def test_a_copy_is_drawn_only_after_all_others():
    y = np.zeros(12, int)
    unit = np.array([0] * 6 + [1, 2, 3, 4, 5, 6])
    for seed in range(20):
        turn = draw_class_ranks(y, seed, unit)
        assert sorted(turn) == list(range(12))
        assert len(set(unit[turn < 7])) == 7
    y = np.random.default_rng(0).integers(0, 4, 200)
    turn = draw_class_ranks(y, 3, np.arange(200))
    for k in range(4):
        assert sorted(turn[y == k]) == list(range((y == k).sum()))
    first = {
        int(np.flatnonzero((draw_class_ranks(y, s, np.arange(200)) == 0) & (y == 0))[0])
        for s in range(40)
    }
    assert len(first) > 15


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 1}, "repeats is 2 or more, not 1"),
        ({"folds": 1}, "folds is 2 or more, not 1"),
        ({"folds": 5, "shots": "1"}, "give one"),
        ({"shots": "1,two"}, "as in 1,2,4,8,16, not '1,two'"),
        ({"shots": [0, 1]}, "1 or more"),
        ({"shots": ""}, "1 or more"),
        ({"repeats": 3, "test_size": 0}, "there are no test images; give a test size above 0"),
        ({"shots": "1", "test_size": 0}, "there are no test images; give a test size above 0"),
        ({"folds": 601}, "601 folds of digit, whose images are of 600 units only"),
    ],
)
def test_wrong_numbers_are_refused(own, table, options, message):
    with pytest.raises(CallError, match=message):
        compare(own, table, "ncm", "coarse", jobs=1, **options)


def test_a_split_of_the_user_s_cannot_be_repeated(own, digits):
    labels = LabelTable(
        "s", "s.csv", list(own.paths), list(map(str, digits[1])), ["train", "test"] * 300
    )
    for options in ({"repeats": 3}, {"folds": 3}, {"folds": 3, "repeats": 3}):
        with pytest.raises(CallError, match=r"s.csv brings its own split.*ask for shots"):
            compare(own, labels, "ncm", "coarse", **options)


def test_a_fold_that_leaves_one_class_is_refused(own):
    labels = LabelTable("s", "s.csv", own.paths[:9], ["a"] * 8 + ["b"])
    with pytest.raises(TooFewImagesError, match="leaves training images of one class only"):
        compare(own, labels, "ncm", "coarse", folds=3)


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.long
def test_json(run_cli, own, table, splits):
    options = ("--labels", table, "--heads", "ridge,ncm", "--layers", "coarse,fine")
    done = run_cli("compare", own.path, *options, "--repeats", 4, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["kind"], told["seeds"], told["folds"]) == ("splits", [0, 1, 2, 3], None)
    assert "training images as well as" in told["intervals"]
    assert told["rows"] == json.loads(json.dumps([row.to_dict() for row in splits.rows]))
    assert told["best_per_task"]["digit"] in told["rows"]
    assert {"accuracy_ci", "difference_ci", "p_value", "distinguishable", "worse", "runs"} <= set(
        told["rows"][0]
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """The command in this process: exit status, lines of stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["classify", *map(str, arguments)])
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # starting workers would take longest
        monkeypatch.delenv("COLUMNS", raising=False)
        with pytest.raises(SystemExit) as ended:
            app_module.app(prog_name="classify")
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out.splitlines(), err

    return call


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--repeats", 4), ("4 random splits (seeds 0 to 3)", "480 training and 120 test", "sd")),
        (("--folds", 5), ("5 folds", "480 training and 600 test", "--repeats draws the folds")),
        (("--folds", 5, "--repeats", 2), ("2 times 5 folds", "480 training and 120 test")),
    ],
)
def test_tables(call, own, table, options, words):
    line = ("--labels", table, "--heads", "ridge,ncm", "--layers", "coarse,fine", *options)
    status, lines, err = call("compare", own.path, *line)
    assert status == 0, err
    assert all(word in " ".join(lines) for word in words)
    rows = [line for line in lines if "ridge  " in line or "ncm  " in line]
    assert len(rows) == 4
    assert rows[0].split()[0] == "*"
    assert max(map(len, lines)) <= 100
    assert "Best by validation, digit: ridge on fine; test 0." in " ".join(lines[-2:])


def test_table_of_shots(call, own, table):
    line = ("--labels", table, "--heads", "ridge,ncm", "--layers", "coarse", "--shots", "1,2,4")
    status, lines, err = call("compare", own.path, *line)
    assert status == 0, err
    titled = " ".join(" ".join(lines[:2]).split())
    assert titled == "digit: 120 test images, 5 draws of 1 to 4 images of each class"
    (heading,) = [line.split() for line in lines if line.split()[-3:] == ["1", "2", "4"]]
    assert heading == ["head", "layer", "1", "2", "4"]
    rows = [line for line in lines if "±" in line]
    assert len(rows) == 2
    assert all(row.count("±") == 3 for row in rows)
    assert ", 4 images of each class; test 0." in " ".join(lines[-2:])
    assert max(map(len, lines)) <= 100


def test_refusals_are_one_line_on_stderr(call, own, table):
    status, lines, err = call("compare", own.path, "--labels", table, "--repeats", 1)
    assert (status, lines) == (2, [])
    assert err == "error: repeats is 2 or more, not 1: one draw has no interval\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills by signal")
def test_a_kill_loses_only_what_was_at_work(cache, table, run_cli, tmp_path):
    mine = FeatureCache(shutil.copy(cache.path, tmp_path / "c.h5"))
    line = (
        "--labels",
        table,
        "--heads",
        "softmax",
        "--shots",
        "4,8",
        "--repeats",
        8,
        "--layers",
        "fine",
    )
    command = [Path(sys.executable).with_name("classify"), "compare", mine.path, *line]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while len(list(store_dir(mine).glob("result-*"))) < 3 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    before = {p: p.stat().st_mtime_ns for p in store_dir(mine).glob("result-*.safetensors")}
    assert 3 <= len(before) < 16
    done = run_cli("compare", mine.path, *line)
    assert done.returncode == 0, done.stderr
    after = {p: p.stat().st_mtime_ns for p in store_dir(mine).glob("result-*.safetensors")}
    assert len(after) == 16  # 2 numbers of images, 8 draws
    assert {path: after[path] for path in before} == before

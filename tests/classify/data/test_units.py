"""Images that belong together: groups and copies, in splits, folds, intervals and marks."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from classify import compare, evaluate, fit
from classify.data import near_copies, units
from classify.data.features import FeatureRows
from classify.data.folds import iter_folds, plan_content_folds
from classify.data.near_copies import find_near_copies
from classify.data.splits import hold_out
from classify.data.tasks import make_task
from classify.data.units import find_copies, link_same_bytes, number_units
from classify.evaluation.metrics import wilson_interval
from classify.experiments import fit_task as fit_module
from classify.labels.table import LabelTable
from featurize import FeatureCache


def sides(unit, *parts) -> int:
    """How many units are on both of two sides."""
    return len(set(unit[parts[0]].tolist()) & set(unit[parts[1]].tolist()))


@pytest.fixture
def twice(make_cache, tmp_path):
    """300 points at random, each there twice under two names, labels by a coin."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 64)).repeat(2, axis=0).astype(np.float32)
    contents = [str(k) for k in np.arange(300).repeat(2)]
    cache = make_cache(tmp_path / "twice.h5", {"l": X}, contents=contents)
    labels = [f"c{label}" for label in rng.integers(0, 2, 300).repeat(2)]
    return cache, LabelTable("t", "t.csv", list(cache.paths), labels)


# --- what belongs together -------------------------------------------------------------------


def test_groups_and_copies_are_joined_through_each_other():
    unit = number_units(np.array([7, 7, 3, 4, 5, 6]), 6, np.array([[1, 2], [4, 5]]))
    assert unit[0] == unit[1] == unit[2]
    assert unit[4] == unit[5]
    assert len(np.unique(unit)) == 3
    assert number_units(np.arange(6), 6, np.zeros((0, 2), int)).tolist() == [0, 1, 2, 3, 4, 5]
    assert number_units(None, 6, np.zeros((0, 2), int)).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_same_bytes_are_linked_to_the_first_of_them():
    contents = np.array([[1] * 32, [2] * 32, [1] * 32, [3] * 32, [1] * 32], np.uint8)
    assert link_same_bytes(contents).tolist() == [[0, 2], [0, 4]]


@pytest.fixture(scope="module")
def planted():
    """The digits, and three changed copies of each of 25: a little noise, as from saving anew."""
    from sklearn.datasets import load_digits

    X = load_digits().data / 16
    rng = np.random.default_rng(0)
    of = rng.choice(len(X), 25, replace=False).repeat(3)
    noisy = X[of] + rng.normal(0, 0.01, (75, 64))
    return np.concatenate([X, noisy]).astype(np.float32), of


def test_near_copies_are_found_and_digits_that_are_alike_are_not(planted):
    X, of = planted
    pairs = find_near_copies(FeatureRows.from_array(X))
    unit = number_units(None, len(X), pairs)
    n = len(X) - len(of)
    assert (unit[n:] == unit[of]).all()
    assert len(np.unique(unit)) >= n - 1  # nothing else, or one pair
    assert (
        len(np.unique(number_units(None, n, find_near_copies(FeatureRows.from_array(X[:n]))))) == n
    )


@pytest.mark.parametrize("n", [2, 3, 5, 12, 40, 100])
def test_a_few_images_are_no_copies_of_each_other(planted, n):
    X, _ = planted
    assert not len(find_near_copies(FeatureRows.from_array(X[:n])))
    assert not len(find_near_copies(FeatureRows.from_array(np.eye(n, dtype=np.float32))))


def test_features_that_tell_no_images_apart_tell_no_copies_either(make_cache, tmp_path):
    """As those of an output layer may be, where a network is sure of every image."""
    X = np.eye(3, dtype=np.float32)[np.arange(300) % 3]
    cache = make_cache(tmp_path / "c.h5", {"l": X})
    labels = [f"c{k % 2}" for k in range(300)]
    task = make_task(cache, LabelTable("t", "t.csv", list(cache.paths), labels))
    assert len(np.unique(task.units)) == len(task.rows)
    assert any("300 images can hardly be told from others" in n for n in task.notices)


def test_what_is_scored_may_stand_alone_where_others_do_not(make_cache, tmp_path):
    """Copies to learn from, none among the test images: their interval is Wilson's, in both."""
    rng = np.random.default_rng(0)
    learnt, tested = rng.normal(size=(60, 8)).repeat(2, axis=0), rng.normal(size=(40, 8))
    contents = [str(k) for k in [*np.arange(60).repeat(2), *range(60, 100)]]
    X = np.concatenate([learnt, tested]).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": X}, contents=contents)
    labels = [f"c{label}" for label in rng.integers(0, 2, 160)]
    split = ["train"] * 120 + ["test"] * 40
    table = LabelTable("t", "t.csv", list(cache.paths), labels, split)
    head, record = fit(cache, table, "ncm")
    assert record.accuracy_ci == wilson_interval(round(40 * record.accuracy), 40)
    found, _ = evaluate(head, cache, table)
    assert tuple(found["accuracy_ci"]) == record.accuracy_ci


def test_blank_images_are_copies():
    X = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    X[50:80] = 0.5
    unit = number_units(None, 200, find_near_copies(FeatureRows.from_array(X)))
    assert len(np.unique(unit[50:80])) == 1
    assert len(np.unique(unit)) == 171


def test_blocks_make_no_difference(planted, monkeypatch):
    X, _ = planted
    whole = find_near_copies(FeatureRows.from_array(X))
    monkeypatch.setattr(near_copies, "TEST_BLOCK", 311)
    monkeypatch.setattr(near_copies, "TRAIN_BLOCK", 97)
    assert (find_near_copies(FeatureRows.from_array(X)) == whole).all()


def test_an_image_far_from_all_others_moves_nothing(planted):
    X, _ = planted
    before = find_near_copies(FeatureRows.from_array(X))
    for far in (1e4, 1e10):
        with_it = np.concatenate([X, np.full((1, 64), far, np.float32)])
        assert (find_near_copies(FeatureRows.from_array(with_it)) == before).all()


def test_of_very_many_images_only_the_bytes_are_compared(twice, monkeypatch):
    cache, _ = twice
    monkeypatch.setattr(units, "MAX_MULTIPLICATIONS", 1e6)
    monkeypatch.setattr(units, "find_near_copies", lambda rows: pytest.fail("looked at"))
    found = find_copies(cache, np.arange(600))
    assert (len(found.exact), len(found.near)) == (300, 0)


@pytest.mark.parametrize("links", [[[0, 600]], [[-1, 3]], [[0.5, 1]], [[0, 1, 2]], [0, 1]])
def test_what_is_kept_is_believed_where_it_can_be_true(twice, links):
    cache, _ = twice
    rows = np.arange(600)
    good = find_copies(cache, rows)
    (path,) = cache.path.with_name("twice.h5.kept").glob("copies-*")
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, "np") as file:
        about = file.metadata()
    save_file({"links": np.array(links)}, path, {k: v for k, v in about.items() if k != "crc32"})
    assert (find_copies(cache, rows).near == good.near).all()


# --- splits and folds ------------------------------------------------------------------------


@pytest.mark.long
def test_no_split_and_no_fold_tears_copies(twice):
    cache, table = twice
    contents = cache.column("sha256")
    for seed in range(20):
        task = make_task(cache, table, seed=seed)
        assert sides(task.units, task.split == "test", task.split != "test") == 0
        assert (task.split == "test").sum() == pytest.approx(120, abs=6)
        for train, held in iter_folds(task.y, seed, task.units):
            assert sides(task.units, train, held) == 0
    assert plan_content_folds(task.y, contents, 0, task.units) is None  # too many belong together


def test_a_few_copies_leave_the_split_as_it_is_but_for_them():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 1000)
    unit = np.arange(1000)
    unit[rng.permutation(1000)[:60]] = np.arange(20).repeat(3)
    contents = rng.integers(0, 256, (1000, 32), np.uint8)
    for seed in range(20):
        plain, found = hold_out(y, 0.2, seed), hold_out(y, 0.2, seed, unit)
        assert sides(unit, found, ~found) == 0
        assert (plain != found).sum() <= 30
        held = [part for _, part in iter_folds(y, seed, unit)]
        assert sorted(np.concatenate(held)) == list(range(1000))
        assert max(map(len, held)) < 220
        by_content = plan_content_folds(y, contents, seed, unit)
        for part in [*held, *by_content.val_indices]:
            assert sides(unit, part, np.setdiff1d(np.arange(1000), part)) == 0


def test_no_class_is_tested_alone_for_the_sake_of_its_copies():
    y = np.array([0] * 95 + [1, 1, 1, 2, 2])
    unit = np.arange(100)
    unit[95:98] = 95
    for seed in range(50):
        test = hold_out(y, 0.6, seed, unit)
        assert set(y[~test]) == {0, 1, 2}
        assert sides(unit, test, ~test) == 0


def test_seeds_move_the_folds_that_contents_decide():
    rng = np.random.default_rng(0)
    contents = rng.integers(0, 256, (1000, 32), np.uint8)
    y = rng.integers(0, 2, 1000)
    first = plan_content_folds(y, contents).part
    head = contents[:, :8].copy().view("<u8")[:, 0]
    assert (first == head % 5).all()  # as before: what was kept of it is found again
    for seed in range(1, 6):
        part = plan_content_folds(y, contents, seed).part
        together = (part[:, None] == part) & (first[:, None] == first)
        assert together.mean() == pytest.approx(1 / 25, abs=0.01)


@pytest.mark.long
def test_every_head_of_a_task_sees_the_same_folds(cache, table, twice, monkeypatch):
    folds_of: dict[str, list[bytes]] = {}
    real_train = fit_module.train

    def watched(head, lesson):
        folds_of.setdefault(head.name, []).append(lesson.fold_plan.part.tobytes())
        return real_train(head, lesson)

    monkeypatch.setattr(fit_module, "train", watched)
    names = ("softmax", "linear-svm", "rbf-svm", "ridge", "lda", "ncm", "knn")
    for some, labels in ((cache, table), twice):
        folds_of.clear()
        for name in names:
            fit(some, labels, name)
        assert len({part for found in folds_of.values() for part in found}) == 1
        assert set(folds_of) == set(names)


# --- what is said ----------------------------------------------------------------------------


def test_copies_give_nothing_away(twice):
    """Labels by a coin: half of them are right, and no copy tells which."""
    cache, table = twice
    found = compare(cache, table, "softmax,ridge,lda,ncm,knn", jobs=1)
    for record in found.records:
        assert max(record.validation, record.accuracy) < 0.65, record
    torn = LabelTable("t", "t.csv", table.paths, table.labels, ["train", "test"] * 300)
    head, _ = fit(cache, torn, "ncm")
    told = [notice for notice in head.notices if "copies of images that are learnt from" in notice]
    assert len(told) == 1
    assert told[0].startswith("300 of 300 test images")
    assert "'0001.png' = '0000.png'" in told[0]


def test_copies_are_said_to_count_as_one(twice):
    head, _ = fit(*twice, "ncm")
    assert any(
        "600 images are the same as others (600 byte for byte): each set" in notice
        for notice in head.notices
    )


def grouped(make_cache, path, seed=0, n_groups=40, size=20):
    """Groups that lie together, each of one class, which a head gets right or wrong as a whole."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n_groups) % 2)
    centre = rng.normal(size=(n_groups, 16)) + 0.5 * (2 * y[:, None] - 1)
    X = centre.repeat(size, axis=0) + 0.2 * rng.normal(size=(n_groups * size, 16))
    cache = make_cache(path, {"l": X.astype(np.float32)})
    labels = [f"c{k}" for k in y.repeat(size)]
    groups = [str(k) for k in np.arange(n_groups).repeat(size)]
    return cache, labels, groups


@pytest.mark.long
def test_intervals_draw_whole_groups_in_every_verb(make_cache, tmp_path, run_cli):
    cache, labels, groups = grouped(make_cache, tmp_path / "c.h5")
    split = [("train", "test")[int(g) % 2] for g in groups]
    table = LabelTable("t", "t.csv", list(cache.paths), labels, split, groups)

    def width(record, name="accuracy"):
        low, high = getattr(record, f"{name}_ci")
        return high - low

    # Balanced, for the bias that is learnt else depends on what belongs together.
    head, whole = fit(cache, table, "ncm", class_weight="balanced", prepare="standardise")
    bare = LabelTable("t", "t.csv", list(cache.paths), labels, split)
    _, alone = fit(cache, bare, "ncm", class_weight="balanced", prepare="standardise")
    assert whole.accuracy == alone.accuracy
    assert width(whole) > 2 * width(alone)
    assert width(whole, "validation") > 2 * width(alone, "validation")
    for name in ("balanced_accuracy", "log_loss_scaled"):
        one, other = (np.ptp(record.scores[f"{name}_ci"]) for record in (whole, alone))
        assert one > 1.5 * other
    found, _ = evaluate(head, cache, table)
    assert found["accuracy_ci"] == list(whole.accuracy_ci)
    best = compare(cache, table, "ncm", class_weight="balanced", prepare="standardise", jobs=1).best
    assert best.accuracy_ci == whole.accuracy_ci
    with open(tmp_path / "t.csv", "w") as file:
        lines = zip(cache.paths, labels, groups, split, strict=True)
        file.write("path,label,group,split\n" + "".join(",".join(line) + "\n" for line in lines))
    done = run_cli(
        "fit",
        cache.path,
        "--labels",
        tmp_path / "t.csv",
        "--head",
        "ncm",
        "--class-weight",
        "balanced",
        "--prepare",
        "standardise",
        "--json",
        "-o",
        tmp_path / "h",
    )
    assert json.loads(done.stdout)["accuracy_ci"] == list(whole.accuracy_ci)


def test_images_that_were_chosen_by_are_not_scored(cache, digits):
    y = [str(d) for d in digits[1]]
    split = [("train", "val", "test")[k % 3] for k in range(600)]
    head, record = fit(cache, LabelTable("t", "t.csv", list(cache.paths), y, split))
    found, notices = evaluate(head, cache, LabelTable("u", "u.csv", list(cache.paths), y))
    assert found["n_test"] == 200
    assert found["accuracy"] == record.accuracy
    assert any(
        "400 images are left out: the head was trained on them, or its" in n for n in notices
    )


@pytest.mark.slow
def test_finetune_finds_files_with_the_same_bytes(pictured, run_cli, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(pictured.images, images)
    for path in sorted(images.rglob("*.png")):
        shutil.copyfile(path, path.with_name(f"{path.stem}b.png"))
    Image.new("L", (8, 8)).save(images / "1" / "other.png")
    line = ("finetune", images, "-o", tmp_path / "net", "--backbone", "seedling", "--epochs", 1)
    done = run_cli(*line, "--tune", "stage4", "--device", "cpu", env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "120 images are the same as others (120 byte for byte)" in done.stderr + done.stdout
    assert "which makes the score too good" not in done.stderr + done.stdout
    assert FeatureCache(pictured.cache).n_rows == 60

"""Advice: four situations drawn so that the right answer is known, and what must not mislead."""

import json
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import featurize
from classify import advise
from classify.data.tasks import make_task
from classify.errors import CallError, LabelError, TooFewImagesError, UnknownPathError
from classify.evaluation.bootstrap import Estimate, bootstrap_means
from classify.evaluation.predictions import HeldOutPredictions
from classify.labels.table import read_labels
from classify.strategy.cut_cost import measure_cut_cost
from classify.strategy.depth_profile import measure_depth_profile
from classify.strategy.layer_depths import LayerDepths
from classify.strategy.learning_curve import CurvePoint, DatasetSize, plan_curve

CLASSES = 3


def drawn(y, strength, rng, dim=4):
    """Features in which the class stands out by `strength` deviations."""
    signal = strength * np.eye(dim)[y]
    return (rng.normal(size=(len(y), dim)) + signal).astype(np.float32)


@pytest.fixture
def situation(tmp_path, make_cache, make_table):
    """Makes a cache of layers l1, l2, ... from strengths or arrays, and its label table."""

    def make(layers, n=450, *, y=None, groups=None, name="c", seed=0):
        rng = np.random.default_rng(seed)
        y = np.arange(n) % CLASSES if y is None else y
        arrays = {
            f"l{i}": drawn(y, it, rng) if np.isscalar(it) else it.astype(np.float32)
            for i, it in enumerate(layers, 1)
        }
        paths = [f"{i:06}.png" for i in range(len(y))]
        cache = make_cache(tmp_path / f"{name}.h5", arrays, paths)
        columns = [paths, [f"class{k}" for k in y]]
        header = "path,label"
        if groups is not None:
            columns, header = [*columns, groups], header + ",group"
        table = make_table(tmp_path / f"{name}.csv", header, list(zip(*columns, strict=True)))
        return cache, table

    return make


# --- the four quadrants --------------------------------------------------------------------


def test_last_best_is_similar(situation):
    found = advise(*situation([0.3, 0.8, 1.4, 2.4]), jobs=1)
    assert (found.strategy, found.size, found.similarity) == ("linear-probe", "small", "similar")
    assert (found.confident, found.more_images, found.layer) == (True, 0, "l4")
    depth, _ = found.measured
    assert depth.cut.layer == "l3"
    assert depth.cut.gain.high < 0
    assert depth.lower_cut.layer == "l2"
    assert list(depth.depths.relative.values()) == [0.25, 0.5, 0.75, 1]


def test_an_earlier_layer_clearly_better_is_different(situation):
    found = advise(*situation([0.3, 0.5, 2.4, 1.4]), jobs=1)
    assert (found.strategy, found.similarity) == ("truncated-probe", "different")
    assert (found.confident, found.layer) == (True, "l3")
    depth, _ = found.measured
    assert not depth.upper_layers_redundant  # l3 lies above 60 % of the depth
    assert depth.cut.gain.low > 0
    assert depth.error_reduction(depth.cut.gain) > 0.1
    assert "clearly better than at l4" in found.reasons[0]


def test_an_upper_part_that_adds_nothing_is_different(situation):
    rng = np.random.default_rng(1)
    y = np.arange(900) % CLASSES
    low = drawn(y, 1.6, rng)
    same = low + 0.01 * rng.normal(size=low.shape)
    found = advise(*situation([0.3, low, same, same], y=y), jobs=1)
    assert (found.strategy, found.layer) == ("truncated-probe", "l2")
    assert found.confident
    depth, _ = found.measured
    assert depth.upper_layers_redundant
    assert not depth.is_clear_gain(depth.cut.gain)
    assert "adds nothing" in found.reasons[0]


def test_a_slightly_better_layer_is_no_difference(situation):
    """Not by chance, but under a tenth fewer errors; and above 60 % of the depth."""
    rng = np.random.default_rng(2)
    y = np.arange(3000) % CLASSES
    wrong = rng.choice(len(y), 600, replace=False)
    seen, seen_less = y.copy(), y.copy()
    seen[wrong[:570]] = (y[wrong[:570]] + 1) % CLASSES
    seen_less[wrong] = (y[wrong] + 1) % CLASSES
    layers = [0.1, 0.1, 9 * np.eye(3)[seen], 9 * np.eye(3)[seen_less]]
    found = advise(*situation(layers, y=y), jobs=1)
    depth, _ = found.measured
    assert depth.cut.gain.low > 0
    assert 0 < depth.error_reduction(depth.cut.gain) < 0.1
    assert found.similarity == "similar"


def test_large_by_count_and_by_class():
    points = [CurvePoint(s, 1, Estimate(0.5, 0.4, 0.6)) for s in (0.125, 0.25, 0.5, 1.0)]
    still = Estimate(0, -0.01, 0.01)

    def size(images, classes, smallest=10):
        return DatasetSize(images, classes, (smallest, images / classes), points, still)

    for images, classes, verdict, near in (
        (500, 10, "small", False),
        (19_999, 10, "small", True),
        (20_000, 10, "large", True),
        (50_000, 10, "large", False),
        (30_000, 600, "small", False),  # 50 of a class
        (30_000, 250, "large", True),  # 120 of a class
    ):
        found = size(images, classes)
        assert (found.verdict, found.is_near_threshold) == (verdict, near)


@pytest.mark.parametrize("best", [pytest.param("last", marks=pytest.mark.slow), "early"])
def test_twenty_thousand_images_are_large(situation, best):
    rng = np.random.default_rng(0)
    y = np.arange(25_200) % CLASSES
    layers = [drawn(y, strength, rng, CLASSES) for strength in (0.2, 1.5)]
    cache, table = situation(layers if best == "last" else layers[::-1], y=y)
    found = advise(cache, table, jobs=1)
    _, count = found.measured
    assert count.n_images == 20_160
    assert count.images_per_class == (6720, 6720)
    assert found.strategy == ("finetune" if best == "last" else "retrain")
    assert found.layer == "l2"
    assert any("within a factor of 2" in reason for reason in found.reasons)
    assert [p.n_images for p in count.curve] == [2016, 4032, 8064, 16128]


# --- what must not mislead -----------------------------------------------------------------


def test_groups_are_honoured(situation):
    """A layer that knows the group, and nothing else, seems to know the class."""
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(60), 12)
    y = group % CLASSES
    mark = 4 * rng.normal(size=(60, 48))[group] + rng.normal(size=(len(y), 48))
    layers = [0.1, mark, drawn(y, 1.8, rng), drawn(y, 2.0, rng)]
    cache, table = situation(layers, y=y, groups=[f"g{g}" for g in group], name="grouped")
    _, bare = situation(layers, y=y, name="bare")
    told = advise(cache, table, jobs=1)
    fooled = advise(cache, bare, jobs=1)
    assert fooled.similarity == "different"
    assert fooled.measured[0].accuracy_by_layer["l2"].value > 0.85
    assert told.similarity == "similar"
    assert told.measured[0].accuracy_by_layer["l2"].value < 0.6
    assert told.measured[0].n_units == 48  # a fifth of 60 is held out for the test


def test_the_learning_curve_nests_and_keeps_groups_whole(situation):
    group = np.repeat(np.arange(60), 6)
    cache, table = situation([0.1, 1], y=group % CLASSES, groups=[f"g{g}" for g in group])
    task = make_task(cache, read_labels(table))
    planned = plan_curve(task, 0)
    assert [trial.fraction_index for trial in planned] == [0, 1, 2, 3] * 5
    for i, trial in enumerate(planned):
        assert not set(task.groups[trial.train]) & set(task.groups[trial.held_out])
        assert len(trial.train) == 6 * len(set(task.groups[trial.train]))
        assert set(task.y[trial.train]) == set(range(CLASSES))
        if trial.fraction_index:
            assert set(planned[i - 1].train) < set(trial.train)
            assert list(planned[i - 1].held_out) == list(trial.held_out)


def test_images_of_one_group_are_worth_less():
    """An interval over ten groups of fifty is far wider than one over 500 images."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(10), 50)
    right = (rng.random(10) < 0.5)[group].astype(float)[:, None]
    (alone,) = bootstrap_means(right, np.arange(500), (0, 1), 0)
    (whole,) = bootstrap_means(right, group, (0, 1), 0)
    assert alone.value == whole.value
    assert whole.high - whole.low > 5 * (alone.high - alone.low)


@pytest.mark.parametrize("agreeing", [10, 100])
def test_agreement_is_no_certainty(agreeing):
    """The rule of three: of m that agree, up to 3 / m may not."""
    (share,) = bootstrap_means(np.ones((agreeing, 1)), np.arange(agreeing), (0, 1), 0)
    (difference,) = bootstrap_means(np.zeros((agreeing, 1)), np.arange(agreeing), (-1, 1), 0)
    assert share.value == share.high == 1
    assert 1 - 4 / agreeing < share.low < 1 - 2 / agreeing
    assert difference.low < -1.5 / agreeing < 1.5 / agreeing < difference.high


def test_intervals_hold_the_truth():
    """Nineteen times in twenty, with groups too."""
    rng, held = np.random.default_rng(5), []
    for _ in range(200):
        level = rng.beta(3, 2, 60)
        group = np.repeat(np.arange(60), 8)
        (found,) = bootstrap_means(
            (rng.random(480) < level[group])[:, None] * 1.0, group, (0, 1), 0
        )
        held.append(found.low <= 0.6 <= found.high)
    assert 0.90 <= np.mean(held) <= 0.99


def test_the_best_of_many_equal_layers_is_not_better():
    """Chosen and scored on the same images it would be, by luck alone."""
    rng, naive, honest, clear = np.random.default_rng(7), [], [], []
    names = [f"l{i:02}" for i in range(20)]
    depths = LayerDepths({name: (i + 1) / 20 for i, name in enumerate(names)}, 20, "layers", "")
    for _ in range(60):
        hard = rng.random(200)  # the same images are hard for most layers
        answers = {
            name: answered(np.where(rng.random(200) < 0.6, hard, rng.random(200)) < 0.6)
            for name in names
        }
        found = measure_depth_profile(depths, answers, None, np.arange(200), 0)
        naive.append(
            found.accuracy_by_layer[found.cut.layer].value - found.accuracy_by_layer["l19"].value
        )
        honest.append(found.cut.gain.value)
        clear.append(found.is_clear_gain(found.cut.gain))
    assert np.mean(naive) > 0.04
    assert abs(np.mean(honest)) < 0.02
    assert np.mean(clear) <= 0.15  # of seven layers, half of that: docs/strategies.md


def answered(right):
    """Answers that are right where they are told to be."""
    n, none = len(right), np.zeros(len(right), np.float32)
    truth = np.zeros(n, np.int64)
    return HeldOutPredictions(
        np.arange(n), truth, (~right).astype(np.int64), none, none, none, none
    )


def test_few_images_do_not_tell_and_it_says_how_many_would(situation):
    strengths = [0.3, 1.1, 1.2, 1.5]
    few = advise(*situation(strengths, n=75, seed=5, name="few"), jobs=1)
    assert (few.confident, few.answer) == (False, "cannot tell yet")
    assert all(0 < cost < 0.5 for cost in few.measured[0].costs_if_wrong.values())
    assert any("to be wrong costs a linear probe at most" in reason for reason in few.reasons)
    assert few.more_images > 60
    assert any(f"about {few.more_images:,} more images" in reason for reason in few.reasons)
    many = advise(*situation(strengths, n=75 + 10 * few.more_images, seed=5, name="many"), jobs=1)
    assert many.confident
    assert (many.more_images, many.similarity, many.answer) == (0, "similar", "similar")


def test_test_images_decide_nothing(situation, make_table, tmp_path):
    cache, _ = situation([0.3, 0.8, 1.4, 2.4])
    y = np.arange(450) % CLASSES
    split = ["test" if i % 5 == 0 else "train" for i in range(450)]
    found = []
    for turn in (0, 1):
        y[::5] = (y[::5] + turn) % CLASSES
        rows = list(zip(cache.paths, y, split, strict=True))
        table = make_table(tmp_path / "turned.csv", "path,label,split", rows)
        told = advise(cache, table, jobs=1).to_dict()
        found.append({k: v for k, v in told.items() if k != "seconds"})
    assert found[0] == found[1]


def test_the_users_validation_images_are_the_ones_judged(situation, make_table, tmp_path):
    cache, _ = situation([0.3, 0.8, 1.4, 2.4])
    split = [("train", "val", "test")[min(2, max(0, i % 5 - 2))] for i in range(450)]
    rows = [(p, i % CLASSES, s) for i, (p, s) in enumerate(zip(cache.paths, split, strict=True))]
    table = make_table(tmp_path / "v.csv", "path,label,split", rows)
    depth, count = advise(cache, table, jobs=1).measured
    assert depth.n_images == split.count("val")
    assert count.n_images == count.curve[-1].n_images == split.count("train")


# --- the learning curve --------------------------------------------------------------------


def test_a_head_that_still_gains(situation):
    rng = np.random.default_rng(8)
    y = np.arange(900) % CLASSES
    wide = (rng.normal(size=(900, 120)) + 0.35 * np.eye(3)[y].repeat(40, axis=1)).astype(np.float32)
    _, count = advise(*situation([0.1, wide], y=y), jobs=1).measured
    accuracy = [point.accuracy.value for point in count.curve]
    assert accuracy == sorted(accuracy)
    assert count.is_gaining
    assert 0 < count.next_doubling_gain <= count.last_doubling_gain.value + 1e-12
    assert [point.fraction for point in count.curve] == [0.125, 0.25, 0.5, 1]
    assert [point.n_images for point in count.curve] == pytest.approx([72, 144, 288, 576], abs=3)


def test_a_head_that_has_stopped_gaining(situation):
    _, count = advise(*situation([0.1, 1.5], n=3000), jobs=1).measured
    assert not count.is_gaining
    assert count.next_doubling_gain < 0.01


def test_a_second_time_nothing_is_trained(situation):
    cache, table = situation([0.3, 0.8, 1.4, 2.4])
    seen = []
    first = advise(cache, table, jobs=1, progress=lambda *it: seen.append(it[1:]))
    kept = sorted(path.name for path in Path(f"{cache.path}.kept").iterdir())
    assert seen == [(i, 25) for i in range(1, 26)]  # 4 layers, all joined, 4 points of 5 folds
    again = advise(cache, table, jobs=1)
    assert sorted(path.name for path in Path(f"{cache.path}.kept").iterdir()) == kept
    assert again.measured == first.measured


# --- overrides, commands, bad input --------------------------------------------------------


def test_what_is_given_counts(situation):
    cache, table = situation([0.3, 0.8, 1.4, 2.4])
    found = advise(cache, table, size="large", similarity="different", jobs=1)
    assert (found.strategy, found.confident, found.layer) == ("retrain", True, "l4")
    told = found.to_dict()
    assert told["evidence"]["measured"] == {"similarity": "similar", "size": "small"}
    assert any("measured similar, but different was given" in r for r in found.reasons)
    assert any("counted small, but large was given" in r for r in found.reasons)
    assert advise(cache, table, similarity="different", jobs=1).layer == "l3"
    for wrong in ({"size": "huge"}, {"similarity": "same"}):
        with pytest.raises(CallError, match=" or "):
            advise(cache, table, **wrong)


def test_joined_layers_are_offered_where_they_clearly_win(situation):
    rng = np.random.default_rng(9)
    y = np.arange(900) % 4
    halves = [drawn(y // 2, 2.5, rng, 3), drawn(y % 2, 2.5, rng, 3)]
    found = advise(*situation(halves, y=y), jobs=1)
    assert "--layer l1,l2 " in found.joined_layers_command
    assert found.to_dict()["evidence"]["joined"]["command"] == found.joined_layers_command
    assert advise(*situation([0.2, 2.0], name="d"), jobs=1).joined_layers_command is None


@pytest.mark.long
def test_commands_can_be_pasted(situation, tmp_path, monkeypatch):
    cache, table = situation([0.3, 2.0], name="it's mine")
    found = advise(cache, table, seed=3, jobs=1)
    assert list(found.commands) == ["linear-probe", "truncated-probe", "finetune", "retrain"]
    monkeypatch.chdir(tmp_path)
    for strategy, layer in (("linear-probe", "l2"), ("truncated-probe", "l1")):
        command = found.commands[strategy]
        assert shlex.split(command)[:3] == ["classify", "fit", str(cache.path)]
        program = Path(sys.executable).with_name("classify")
        line = command.replace("classify", shlex.quote(str(program)), 1)
        done = subprocess.run(["sh", "-c", f"{line} --json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["layer"] == layer
    for strategy in ("finetune", "retrain"):
        words = shlex.split(found.commands[strategy])
        assert words[:3] == ["classify", "finetune", "/images"]
        assert words[words.index("--labels") + 1] == str(table)
        assert words[words.index("--seed") + 1] == "3"
        assert words[words.index("--tune") + 1] == "all"
    assert "--classifier mlp" in found.commands["retrain"]
    assert f"--cache {shlex.quote(str(cache.path))}" in found.commands["finetune"]


def test_one_layer_says_how_to_get_more(situation):
    cache, table = situation([2.0])
    with pytest.raises(CallError, match=r"featurize run /images -o \S+ --layers auto"):
        advise(cache, table)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["a"] * 450, TooFewImagesError, "at least two classes"),
        (["a", *["b", "c"] * 224, "b"], TooFewImagesError, r"single image to learn from \('a'\)"),
        (["a", "b", ""] * 150, LabelError, "the label is empty"),
    ],
)
def test_labels_that_cannot_be_learnt(situation, make_table, tmp_path, labels, error, message):
    cache, _ = situation([0.3, 2.0])
    table = make_table(
        tmp_path / "t.csv", "path,label", list(zip(cache.paths, labels, strict=True))
    )
    with pytest.raises(error, match=message):
        advise(cache, table, jobs=1)


def test_classes_in_one_group_each_cannot_be_held_out(situation):
    y = np.arange(450) % CLASSES
    cache, table = situation([0.3, 2.0], y=y, groups=[f"g{k}" for k in y])
    with pytest.raises(TooFewImagesError, match="every class lies in one group"):
        advise(cache, table, jobs=1)


def test_labels_of_missing_images(situation, make_table, tmp_path):
    cache, _ = situation([0.3, 2.0])
    table = make_table(tmp_path / "t.csv", "path,label", [("none.png", "a"), ("no.png", "b")])
    with pytest.raises(UnknownPathError, match="2 of 2 images"):
        advise(cache, table)


# --- a known network ------------------------------------------------------------------------


def test_depth_is_counted_among_the_stages_of_a_known_network(make_cache, make_table, tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(300) % CLASSES
    names = {"layer2": 0.5, "layer3": 1.0}
    arrays = {name: drawn(y, strength, rng) for name, strength in names.items()}
    cache = make_cache(tmp_path / "c.h5", arrays, backbone="resnet18")
    table = make_table(tmp_path / "t.csv", "path,label", list(zip(cache.paths, y, strict=True)))
    found = advise(cache, table, jobs=1)
    depth, _ = found.measured
    assert depth.depths.among == "the stages of resnet18"
    assert depth.depths.relative["layer2"] == 0.5
    assert any("the cache ends at" in notice and "layer4" in notice for notice in found.notices)
    assert any("cut to 8 pixels" in notice for notice in found.notices)


def test_what_a_cut_saves_is_measured(make_cache, tmp_path):
    arrays = {name: np.ones((2, 4), np.float32) for name in ("features.4", "features.12")}
    cache = make_cache(tmp_path / "c.h5", arrays, backbone="squeezenet1_1")
    found = measure_cut_cost(cache, "features.4")
    assert 0.2 < found.macs < 0.3
    assert 0 < found.time < 1
    assert 0 < found.weights < found.macs  # the upper layers are the heavy ones
    assert found.dim == 4
    unknown = make_cache(tmp_path / "u.h5", arrays, backbone="mine")
    assert measure_cut_cost(unknown, "features.4") is None


# --- the command ----------------------------------------------------------------------------


@pytest.mark.long
def test_the_command_prints_json(situation, run_cli):
    cache, table = situation([0.3, 0.8, 1.4, 2.4])
    done = run_cli("advise", cache.path, "--labels", table, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    fixed = {"strategy", "size", "similarity", "confident", "layer", "evidence"}
    assert fixed <= set(told)
    assert told["strategy"] == "linear-probe"
    assert {"profile", "cut", "images", "per_class", "curve", "gaining", "reasons"} <= set(
        told["evidence"]
    )


@pytest.mark.long
def test_the_command_shows_quadrant_evidence_and_commands(situation, run_cli):
    cache, table = situation([0.3, 2.4, 0.5, 1.4])
    done = run_cli("advise", cache.path, "--labels", table)
    assert done.returncode == 0, done.stderr
    assert "> truncated-probe" in done.stdout
    for words in ("similar", "different", "small", "large", "95 % interval", "classify finetune"):
        assert words in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.split()[:2] == ["*", "l2"])
    assert "50%" in line


@pytest.mark.long
def test_the_command_refuses_in_one_line(situation, run_cli):
    cache, table = situation([2.0])
    done = run_cli("advise", cache.path, "--labels", table, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    done = run_cli("advise", cache.path, "--size", "huge")
    assert (done.returncode, "small or large" in done.stderr) == (2, True)


# --- the report -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_shows_the_advice(situation, run_cli, tmp_path):
    pytest.importorskip("bokeh")
    cache, table = situation([0.3, 2.4, 0.5, 1.4], name="a <b> & $$c$$")
    line = ("report", cache.path, "--labels", table, "-o", tmp_path / "r.html")
    done = run_cli(*line, "--heads", "lda")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.html").read_text()
    assert "<h3>Advice: truncated-probe</h3>" in page
    assert '<td class="here" aria-current="true">truncated-probe</td>' in page
    assert page.count('class="here"') == 1
    for id in ("task-1-advice-depth", "task-1-advice-curve"):
        assert f'id="{id}"' in page
    assert "<b> &amp;" not in page.split("<script", 1)[0].replace("<b>l2", "")
    bare = tmp_path / "bare.html"
    assert run_cli(*line[:-1], bare, "--heads", "ncm").returncode == 0
    assert "Advice:" not in bare.read_text()


@pytest.mark.long
def test_a_report_without_advice_says_why(situation, run_cli, make_table, tmp_path):
    pytest.importorskip("bokeh")
    cache, _ = situation([0.3, 2.4])
    labels = ["rare", *["a", "b"] * 224, "a"]
    table = make_table(
        tmp_path / "t.csv", "path,label", list(zip(cache.paths, labels, strict=True))
    )
    line = ("report", cache.path, "--labels", table, "--heads", "lda")
    done = run_cli(*line, "-o", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "no advice on the strategy: t: 1 of 3 classes have a single image" in done.stderr


# --- real weights and images ----------------------------------------------------------------


@pytest.mark.slow
def test_cifar10_is_similar_and_omniglot_different(
    command, real, cifar10, squeezenet_weights, tmp_path
):
    """What docs/strategies.md says; CIFAR-10 by 60 images a class, Omniglot with its groups."""
    extracted = tmp_path / "omniglot"
    with tarfile.open(real / "omniglot-alphabets.tar.gz") as archive:
        archive.extractall(extracted, filter="data")
    (characters,) = (path.parent for path in extracted.rglob("labels.csv"))
    photos = tmp_path / "photos"
    for folder in sorted((cifar10 / "train").iterdir()):
        (photos / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:60]:
            shutil.copy(image, photos / folder.name)
    for images, options, similarity in (
        (photos, (), "similar"),
        (characters, ("--labels", characters / "labels.csv"), "different"),
    ):
        cache = tmp_path / f"{images.name}.h5"
        featurize.run(
            images, cache, backbone="squeezenet1_1", weights=str(squeezenet_weights), layers="auto"
        )
        done = command("classify", "advise", cache, *options, "--json", timeout=900)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["size"], told["similarity"], told["confident"]) == ("small", similarity, True)

"""The estimators of the three kinds, as scikit-learn has them; and what a stop leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from classify import FineTuneMultiLabelClassifier, FineTuneOrdinalClassifier, FineTuneRegressor
from classify.errors import CallError
from classify.finetuning.targets.estimators import ESTIMATORS

GRADES = ["small", "middle", "large"]


def make(kind, squares, maps=True, **options):
    given = {"epochs": 1, "batch_size": 16, "device": "cpu", "tune": "stage4", "augment": "none"}
    given |= {"cache": squares.cache if maps else None, "root": squares.images}
    return ESTIMATORS[kind](**({"backbone": "seedling"} | given | options))


def labels_of(kind, squares):
    named = np.array(GRADES)[squares.grades]
    return {"multi": squares.labels, "number": squares.sizes, "grade": named}[kind]


def names_of(kind):
    return {"names": GRADES} if kind == "grade" else {}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_they_are_estimators(kind, squares):
    model = make(kind, squares, learning_rate=1e-4)
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    assert (is_regressor(model), is_classifier(model)) == (kind == "number", kind != "number")
    with pytest.raises(NotFittedError):
        model.predict(squares.paths)
    y = labels_of(kind, squares)
    assert model.fit(squares.paths, y, **names_of(kind)) is model
    found = model.predict(squares.paths)
    if kind == "multi":
        assert found.shape == (72, 2)
        assert set(np.unique(found)) == {0, 1}
        known = ~np.isnan(y)
        assert (found == y)[known].mean() > 0.8
        proba = model.predict_proba(squares.paths)
        assert proba.shape == (72, 2)
        assert list(model.classes_) == ["0", "1"]
    elif kind == "number":
        assert model.score(squares.paths, y) > 0.3
        low, high = model.predict_interval(squares.paths).T if model.head_.margin else (0, 1e9)
        assert ((low < found) & (found < high)).all()
    else:
        assert set(found) <= set(GRADES)
        assert model.score(squares.paths, y) > 0.6
        proba = model.predict_proba(squares.paths)
        assert proba.sum(axis=1) == pytest.approx(1)
        assert (np.array(GRADES)[proba.argmax(axis=1)] == found).mean() > 0.9
    values = model.predict_values(squares.paths)
    validated = [squares.paths.index(path) for path in model.validated_]
    judged = np.stack(list(model.validated_.values()))
    assert judged == pytest.approx(values[validated], rel=1e-3, abs=1e-3)


@pytest.mark.long
def test_numbers_are_scored_by_scikit_learn(squares):
    model = make("number", squares, maps=False)
    scores = cross_val_score(
        model, np.array(squares.paths), squares.sizes, cv=2, scoring="neg_mean_absolute_error"
    )
    assert (scores > -np.abs(squares.sizes - squares.sizes.mean()).mean()).all()


def test_grades_that_are_numbers_stay_numbers(squares):
    model = make("grade", squares).fit(squares.paths, squares.grades + 1)
    assert model.classes_.tolist() == [1, 2, 3]
    assert model.predict(squares.paths).dtype == squares.grades.dtype
    assert model.head_.names == ("1", "2", "3")


def test_names_come_from_a_table(squares):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(squares.labels, columns=["bar", "red"])
    model = make("multi", squares).fit(squares.paths, table)
    assert model.head_.names == ("bar", "red")
    numbers = pandas.Series(squares.sizes, name="size")
    assert make("number", squares).fit(squares.paths, numbers).head_.names == ("size",)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_hidden_layer_and_a_random_start(kind, squares):
    y = labels_of(kind, squares)
    for options in ({"classifier": "mlp"}, {"init_head": "random"}):
        model = make(kind, squares, **options).fit(squares.paths, y, **names_of(kind))
        assert np.isfinite(model.predict_values(squares.paths)).all()
        assert (model.head_.head == "mlp") == ("classifier" in options)
    if kind != "number":
        assert model.predict_proba(squares.paths).shape == (72, 2 if kind == "multi" else 3)


def test_labels_of_another_kind_are_refused(squares):
    paths = squares.paths
    for y, message in (
        (squares.sizes, "a column for each label"),
        (squares.labels + 1, "1, 0, or NaN"),
        ([["a", "b"]] * 72, "y is numbers"),
    ):
        with pytest.raises(CallError, match=message):
            FineTuneMultiLabelClassifier().fit(paths, y)
    with pytest.raises(CallError, match="3 names do not go with 2 labels"):
        FineTuneMultiLabelClassifier().fit(paths, squares.labels, names=GRADES)
    for y in (squares.labels, np.where(squares.sizes > 1020, np.nan, squares.sizes)):
        with pytest.raises(CallError, match="one finite number an image"):
            FineTuneRegressor().fit(paths, y)
    named = np.array(GRADES)[squares.grades]
    with pytest.raises(CallError, match="nothing tells the order of the grades"):
        FineTuneOrdinalClassifier().fit(paths, named)
    with pytest.raises(CallError, match="'large' is none of small, middle"):
        FineTuneOrdinalClassifier().fit(paths, named, names=GRADES[:2])
    with pytest.raises(CallError, match="71 paths do not go with 72 labels"):
        FineTuneRegressor().fit(paths[1:], squares.sizes)


# --- stopped ---------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_it_goes_on_to_the_same_end(kind, squares, tmp_path, one_epoch_deadline):
    y, named, part = labels_of(kind, squares), names_of(kind), tmp_path / "M.part"
    unbroken = make(kind, squares, epochs=2).fit(squares.paths, y, **named)
    short = make(kind, squares, epochs=2)
    short.fit(squares.paths, y, checkpoint=part, deadline=one_epoch_deadline(), **named)
    assert len(short.history_) == 1
    said = []
    on = make(kind, squares, epochs=2)
    on.fit(squares.paths, y, checkpoint=part, say=said.append, **named)
    assert any("going on after epoch 1" in text for text in said)
    assert all(torch.equal(on.network_[k], unbroken.network_[k]) for k in unbroken.network_)
    assert np.array_equal(on.head_.scorer.coef, unbroken.head_.scorer.coef)
    if kind == "grade":
        assert np.array_equal(on.head_.cutpoints, unbroken.head_.cutpoints)
        assert "classifier.gaps" in torch.load(part, weights_only=True)["model"]


def test_a_checkpoint_of_another_kind_is_not_taken(squares, tmp_path, one_epoch_deadline):
    """Grades as numbers have the same images, the same values and the same options."""
    part = tmp_path / "M.part"

    def went_on(kind, y, **named):
        said = []
        model = make(kind, squares, epochs=2)
        model.fit(
            squares.paths, y, checkpoint=part, deadline=one_epoch_deadline(), say=said.append,
            **named,
        )  # fmt: skip
        return any("going on" in text for text in said)

    assert not went_on("number", squares.grades)
    assert went_on("number", squares.grades)
    assert not went_on("number", squares.grades, names=["size"])
    assert not went_on("grade", squares.grades)


@pytest.mark.slow
def test_killed_it_ends_as_an_unbroken_run(squares, tmp_path):
    line = [str(Path(sys.executable).with_name("classify")), "finetune", str(squares.images)]
    line += ["--labels", str(squares.table), "--columns", "bar,red", "--backbone", "seedling"]
    line += [
        "--epochs",
        "4",
        "--patience",
        "4",
        "--device",
        "cpu",
        "--json",
        "--mixup",
        "0.2",
        "-o",
    ]
    unbroken = subprocess.run([*line, tmp_path / "u"], capture_output=True, text=True, timeout=600)
    assert unbroken.returncode == 0, unbroken.stderr
    part = tmp_path / "M.part"
    process = subprocess.Popen([*line, tmp_path / "M"], stderr=subprocess.DEVNULL)
    while process.poll() is None and not part.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    on = subprocess.run([*line, tmp_path / "M"], capture_output=True, text=True, timeout=600)
    assert on.returncode == 0, on.stderr
    assert "going on after epoch" in on.stderr
    one, other = load_file(tmp_path / "M"), load_file(tmp_path / "u")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    records = [json.loads(done.stdout) for done in (on, unbroken)]
    assert records[0]["macro_average_precision"] == records[1]["macro_average_precision"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_two_processes_make_one_file(kind, squares, tmp_path):
    asked = {
        "multi": ["--columns", "bar,red"],
        "number": ["--column", "size", "--kind", "number"],
        "grade": ["--column", "grade", "--order", "small,middle,large"],
    }
    line = [str(Path(sys.executable).with_name("classify")), "finetune", str(squares.images)]
    line += ["--labels", str(squares.table), "--backbone", "seedling", "--epochs", "2"]
    line += ["--device", "cpu", "--json", *asked[kind], "-o", str(tmp_path / "M")]
    launcher = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "--no-python", *line],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == kind  # one of them speaks
    assert [path.name for path in tmp_path.iterdir()] == ["M"]

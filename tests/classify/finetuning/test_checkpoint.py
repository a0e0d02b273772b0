"""A training that is stopped goes on to the end that it would have come to unbroken."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from classify.errors import OutputError


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- from one checkpoint ------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tuner, pictured, tmp_path_factory, one_epoch_deadline):
    """A checkpoint after the first of two epochs, what it was then, and what it is in the end."""
    path = tmp_path_factory.mktemp("stopped") / "M.part"
    unbroken = tuner(maps=True, epochs=2).fit(pictured.paths, pictured.labels)
    short = tuner(maps=True, epochs=2)
    short.fit(pictured.paths, pictured.labels, checkpoint=path, deadline=one_epoch_deadline())
    assert len(short.history_) == 1
    return path, short, unbroken


def resumed(tuner, pictured, path, deadline=None, **options):
    said = []
    model = tuner(maps=True, **({"epochs": 2} | options))
    model.fit(pictured.paths, pictured.labels, checkpoint=path, say=said.append, deadline=deadline)
    return model, any("going on after epoch 1" in text for text in said)


@pytest.mark.long
def test_it_goes_on_to_the_same_end(tuner, pictured, stopped, tmp_path):
    path, _, unbroken = stopped
    (tmp_path / "M.part").write_bytes(path.read_bytes())
    model, went_on = resumed(tuner, pictured, tmp_path / "M.part")
    assert went_on
    assert equal(model.network_, unbroken.network_)
    assert np.array_equal(model.head_.scorer.coef, unbroken.head_.scorer.coef)


def altered(change):
    """Write a checkpoint whose content has been changed."""

    def write(path, to):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, to)

    return write


def compressed(path, to):
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))


class Code:
    """What a pickle would run when it is read."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


HISTORY = ("number", "loss", "validation_loss", "validation", "seconds")
CHANGED = {
    "code": lambda c: c.update(history=Code()),
    "no history": lambda c: c.update(history=[]),
    "a history of something": lambda c: c.update(history=[{"number": 1}]),
    "a history of no numbers": lambda c: c.update(history=[dict.fromkeys(HISTORY, "1")]),
    "a history of too large a number": lambda c: c["history"][0].update(number=10**400),
    "moments of nothing": lambda c: c["optimizer"].update({"x": {"y": torch.ones(1)}}),
    "moments of another shape": lambda c: c["optimizer"][0].update(exp_avg=torch.ones(3)),
    "moments missing": lambda c: c["optimizer"][0].pop("exp_avg"),
    "moments that repeat a number": lambda c: c["optimizer"][0].update(
        exp_avg=torch.ones(()).expand(c["optimizer"][0]["exp_avg"].shape)
    ),
    "moments without numbers": lambda c: c["optimizer"][0].update(
        exp_avg=c["optimizer"][0]["exp_avg"].to("meta")
    ),
    "sparse moments": lambda c: c["optimizer"][0].update(
        exp_avg=c["optimizer"][0]["exp_avg"].to_sparse()
    ),
    "weights missing": lambda c: c["best_model"].pop("classifier.out.bias"),
    "weights of another type": lambda c: c["model"].update(
        {"classifier.out.bias": c["model"]["classifier.out.bias"].double()}
    ),
    "something more": lambda c: c.update({"else": torch.ones(1)}),
    "nothing but the format": lambda c: [c.pop(k) for k in list(c) if k != "format"],
    "another key": lambda c: c.update(key="0" * 64),
    "too large": lambda c: c.update(more=torch.zeros(20 << 20)),
}
HOSTILE = {
    "cut short": lambda path, to: to.write_bytes(path.read_bytes()[:-5000]),
    "its beginning alone": lambda path, to: to.write_bytes(path.read_bytes()[:500]),
    "no file of ours": lambda path, to: to.write_bytes(b"\x80\x04 a pickle, say"),
    "a state dict": lambda path, to: torch.save({"weight": torch.ones(3)}, to),
    "empty": lambda path, to: to.write_bytes(b""),
    "an endless header": lambda path, to: to.write_bytes(b"\xff" * 64),
    "compressed": compressed,
} | {name: altered(change) for name, change in CHANGED.items()}
FOREIGN = ("no file of ours", "a state dict", "an endless header", "compressed")


@pytest.mark.long
@pytest.mark.parametrize("how", HOSTILE)
def test_a_checkpoint_that_is_damaged_is_not_taken(
    how, tuner, pictured, stopped, tmp_path, monkeypatch, one_epoch_deadline
):
    monkeypatch.chdir(tmp_path)
    path, short, _ = stopped
    HOSTILE[how](path, tmp_path / "M.part")
    if how in FOREIGN:  # nor replaced: it may be anybody's
        before = (tmp_path / "M.part").read_bytes()
        with pytest.raises(OutputError, match="is not an unfinished training"):
            resumed(tuner, pictured, tmp_path / "M.part", deadline=one_epoch_deadline())
        assert (tmp_path / "M.part").read_bytes() == before
        return
    model, went_on = resumed(tuner, pictured, tmp_path / "M.part", deadline=one_epoch_deadline())
    assert not went_on
    assert equal(model.network_, short.network_)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("option", [{"seed": 3}, {"learning_rate": 1e-3}, {"mixup": 0.1}])
def test_a_checkpoint_of_other_options_is_not_taken(
    option, tuner, pictured, stopped, tmp_path, one_epoch_deadline
):
    (tmp_path / "M.part").write_bytes(stopped[0].read_bytes())
    assert not resumed(
        tuner, pictured, tmp_path / "M.part", deadline=one_epoch_deadline(), **option
    )[1]


# --- from one of version 0.1 --------------------------------------------------------------


def write_as_before(path, to, metadata=None, **tensors):
    """Write a checkpoint as version 0.1 did, perhaps with something else in it."""
    content = torch.load(path, weights_only=True)
    about = {"format": "headgraft-training", "key": content["key"]}
    about |= {"history": json.dumps(content["history"])} | (metadata or {})
    parts = {f"learnt/{k}": v for k, v in content["model"].items()}
    parts |= {f"best/{k}": v for k, v in content["best_model"].items()}
    parts |= {
        f"moments/{i}.{k}": v for i, state in content["optimizer"].items() for k, v in state.items()
    }
    save_file({k: v for k, v in (parts | tensors).items() if v is not None}, to, about)


def test_it_goes_on_from_a_file_of_before(tuner, pictured, stopped, tmp_path):
    path, _, unbroken = stopped
    write_as_before(path, tmp_path / "M.part")
    model, went_on = resumed(tuner, pictured, tmp_path / "M.part")
    assert went_on
    assert equal(model.network_, unbroken.network_)
    assert np.array_equal(model.head_.scorer.coef, unbroken.head_.scorer.coef)
    assert set(torch.load(tmp_path / "M.part", weights_only=True)["model"])  # the last one is new


@pytest.mark.long
@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        ({"key": "0" * 64}, {}),
        ({"history": '[{"number": 1}]'}, {}),
        ({"history": "[" * 100_000}, {}),
        ({}, {"moments/x.y": torch.ones(1)}),
        ({}, {"moments/0.exp_avg": None}),
        ({}, {"best/classifier.out.bias": None}),
        ({}, {"else/x": torch.ones(1)}),
    ],
)
def test_a_damaged_file_of_before_is_not_taken(
    metadata, tensors, tuner, pictured, stopped, tmp_path, one_epoch_deadline
):
    write_as_before(stopped[0], tmp_path / "M.part", metadata, **tensors)
    model, went_on = resumed(tuner, pictured, tmp_path / "M.part", deadline=one_epoch_deadline())
    assert not went_on
    assert equal(model.network_, stopped[1].network_)


# --- the command ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def line(pictured):
    """The command, but for where its output goes."""
    options = ["--backbone", "seedling", "--epochs", "6", "--patience", "6", "--device", "cpu"]
    options += ["--batch-size", "16", "--seed", "5", "--json"]
    name = Path(sys.executable).with_name("classify")
    return [str(name), "finetune", str(pictured.images), *options, "-o"]


def stop_after_an_epoch(command: list[str], part: Path, how: signal.Signals) -> tuple[int, str]:
    """Run until the checkpoint is written (again), then stop it at once: status and stderr."""
    before = part.stat().st_mtime_ns if part.exists() else 0
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None:
        if part.exists() and part.stat().st_mtime_ns != before:
            process.send_signal(how)
            break
        time.sleep(0.01)
    _, err = process.communicate(timeout=600)
    return process.returncode, err


@pytest.mark.slow
def test_killed_and_interrupted_it_ends_as_an_unbroken_run(line, tmp_path):
    unbroken = subprocess.run([*line, tmp_path / "u"], capture_output=True, text=True, timeout=600)
    assert unbroken.returncode == 0, unbroken.stderr
    command, part = [*line, str(tmp_path / "M")], tmp_path / "M.part"

    status, _ = stop_after_an_epoch(command, part, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not (tmp_path / "M").exists()

    status, err = stop_after_an_epoch(command, part, signal.SIGINT)
    assert status == 3
    assert "going on after epoch" in err
    assert "stopped; what was finished is kept" in err
    assert "Traceback" not in err
    assert part.exists()

    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "going on after epoch" in done.stderr
    assert equal(load_file(tmp_path / "M"), load_file(tmp_path / "u"))
    one, other = json.loads(done.stdout), json.loads(unbroken.stdout)
    for name in ("accuracy", "epochs", "best_epoch", "n_train", "n_validation", "n_test"):
        assert one[name] == other[name]
    losses = [[epoch["loss"] for epoch in found["history"]] for found in (one, other)]
    assert losses[0] == losses[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["M", "u"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, "0s"])
def test_two_processes_make_one_file(limit, line, pictured, tmp_path):
    launcher = str(Path(sys.executable).with_name("torchrun"))
    together = [launcher, "--nproc-per-node", "2", "--no-python", *line, str(tmp_path / "M")]
    together += [] if limit is None else ["--max-time", limit]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(together, capture_output=True, text=True, timeout=600, env=environment)
    if limit is not None:  # no epoch fits, and they agree on it
        assert done.returncode != 0
        assert "exitcode  : 3" in done.stderr
        assert "unexpected" not in done.stderr
        assert list(tmp_path.iterdir()) == []
        return
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)  # one of them speaks
    assert record["epochs"] == 6
    assert [path.name for path in tmp_path.iterdir()] == ["M"]
    alone = subprocess.run([*line, tmp_path / "u"], capture_output=True, text=True, timeout=600)
    # Twelve test images: one more or less is chance.
    assert record["accuracy"] == pytest.approx(json.loads(alone.stdout)["accuracy"], abs=0.1)


@pytest.mark.slow
def test_dropout_is_drawn_alike_after_a_stop(tuner, pictured, tmp_path, one_epoch_deadline):
    """AlexNet drops half of its units; frozen, it does not."""
    from torchvision.models import alexnet

    from featurize import run

    torch.manual_seed(0)
    save_file(alexnet(num_classes=2).state_dict(), tmp_path / "w.safetensors")
    recipe = {"resize": 64, "crop": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    given = {"weights": str(tmp_path / "w.safetensors"), "preprocess": str(tmp_path / "r.json")}
    run(
        pictured.images,
        tmp_path / "c.h5",
        backbone="alexnet",
        layers="classifier.3:none,last",
        device="cpu",
        **given,
    )

    def trained(**options):
        model = tuner(backbone="alexnet", epochs=2, augment="none", **(given | options))
        return model

    unbroken = trained(tune="classifier.3").fit(pictured.paths, pictured.labels)
    part = tmp_path / "M.part"
    trained(tune="classifier.3").fit(
        pictured.paths, pictured.labels, checkpoint=part, deadline=one_epoch_deadline()
    )
    on = trained(tune="classifier.3").fit(pictured.paths, pictured.labels, checkpoint=part)
    assert equal(on.network_, unbroken.network_)

    plain = trained(tune="classifier.4").fit(pictured.paths, pictured.labels)
    mapped = trained(tune="classifier.4", cache=tmp_path / "c.h5", root="nowhere")
    mapped.fit(pictured.paths, pictured.labels)
    assert plain.history_[0].loss == pytest.approx(mapped.history_[0].loss, rel=1e-3)

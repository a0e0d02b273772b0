"""A candidate that validates better than what is saved: by how much, and the command."""

import shlex
from dataclasses import replace

import numpy as np
import pytest

from classify.data.targets.spec import TaskSpec
from classify.data.tasks import make_task
from classify.labels.table import read_labels
from classify.strategy.tried.better import CandidateCommands, find_better
from classify.strategy.tried.candidates import Candidate, Tried


def make_tried(strategy, what, validated):
    share = float(np.mean(list(validated.values()))) if validated else None
    candidate = Candidate(strategy, what, share, None, None, None, 0, 0, 2.0)
    return Tried(candidate, None, validated)


@pytest.fixture
def commands(cache, table, tmp_path):
    spec = TaskSpec(table, seed=3)
    training = {"epochs": 4, "batch_size": 32, "learning_rate": None, "augment": "flips"}
    output = tmp_path / "a b.st"
    return CandidateCommands("my photos", output, cache, spec, "cpu", "mlp", training)


@pytest.fixture
def task(cache, table):
    return make_task(cache, read_labels(table))


def test_only_images_that_validated_both_are_compared(task, commands):
    saved = make_tried("linear-probe", "coarse", {row: row % 2 == 0 for row in range(200)})
    network = make_tried("finetune", "all, linear", {row: row % 10 > 0 for row in range(100)})
    better = find_better([saved, network], task, 0, commands)
    assert better is not None
    assert better.n_images == 100
    assert better.ahead[0] == pytest.approx(0.4)
    assert better.ahead[1] < 0.4 < better.ahead[2]
    assert better.certain
    assert better.to_dict()["command"] == better.command


def test_what_is_no_better_is_not_named(task, commands):
    saved = make_tried("linear-probe", "coarse", {row: row % 2 == 0 for row in range(60)})
    same = make_tried("linear-probe", "fine", dict(saved.validated))
    unvalidated = make_tried("truncated-probe", "fine", {})
    assert find_better([saved, same, unvalidated], task, 0, commands) is None
    one_more = make_tried("truncated-probe", "fine", {**saved.validated, 1: True})
    better = find_better([saved, same, one_more], task, 0, commands)
    assert better is not None
    assert (better.strategy, better.certain) == ("truncated-probe", False)


def test_the_command_shows_no_credentials(commands):
    secret = replace(commands, images="s3://key:secret@bucket/wds?X-Amz-Signature=abc")
    words = shlex.split(secret.format("finetune", "all, linear"))
    assert words[2] == "s3://bucket/wds"


def test_the_command_can_be_pasted(commands, cache, table, tmp_path):
    probe = shlex.split(commands.format("linear-probe", "fine+coarse"))
    labelled = ["--labels", str(table), "--seed", "3"]
    target = str(tmp_path / "a b-linear-probe.st")
    assert probe == [
        *("classify", "fit", str(cache.path), *labelled),
        *("--layer", "fine,coarse", "-o", target),
    ]
    network = shlex.split(commands.format("retrain", "all, mlp"))
    assert network == [
        *("classify", "finetune", "my photos", "--cache", str(cache.path), *labelled),
        *("--classifier", "mlp", "--epochs", "4", "--device", "cpu"),
        *("-o", str(tmp_path / "a b-retrain.st")),
    ]

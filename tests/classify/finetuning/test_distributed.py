"""Several processes, and GPUs, without either: what they agree on, and how one of them ends."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from classify.errors import CallError, DivergedError, PeerEndedError, TooFewImagesError
from classify.finetuning.datasets import loader as loader_module
from classify.finetuning.datasets.loader import EpochSampler, make_dataloader
from classify.finetuning.distributed import Distributed, init_distributed
from classify.finetuning.trainer import _Trainer
from classify.strategy.auto import auto

LAUNCHER = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"]


# --- refused and ended -----------------------------------------------------------------------


@pytest.fixture
def second_of_two(monkeypatch):
    """This process as a launcher would have started it, and no other one."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)

    def hang():
        raise AssertionError("it would wait for the others, which wait for this process")

    monkeypatch.setattr(dist, "destroy_process_group", hang)


def test_a_process_that_fails_does_not_wait_for_the_others(second_of_two):
    with pytest.raises(DivergedError, match="astray"), init_distributed("cpu"):
        raise DivergedError("astray")


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41503",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_a_process_that_lost_the_others_says_so(second_of_two, text):
    ended = pytest.raises(PeerEndedError, match="another process of this training has ended")
    with ended, init_distributed("cpu"):
        raise RuntimeError(text)


def test_gpus_that_are_not_there_or_shared_are_refused(second_of_two, monkeypatch):
    one = pytest.raises(CallError, match="would put 2 processes on one GPU; use --device cuda")
    with one, init_distributed("cuda:1"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    none = pytest.raises(CallError, match="process 2 of 2 on this machine has no GPU of its own")
    with none, init_distributed("auto"):
        pass


def test_what_processes_cannot_share_is_refused(second_of_two, tuner, pictured, monkeypatch):
    monkeypatch.setattr(Distributed, "broadcast_object", lambda self, value: value)
    with pytest.raises(CallError, match="1 images cannot be shared by 2 processes: raise --batch"):
        tuner(batch_size=1).fit(pictured.paths, pictured.labels)
    with pytest.raises(CallError, match="batch norms are trained by one process alone"):
        tuner(batch_norm="trained").fit(pictured.paths, pictured.labels)
    monkeypatch.setenv("WORLD_SIZE", "64")
    with pytest.raises(TooFewImagesError, match="are fewer than the 64 processes"):
        tuner(batch_size=64, maps=True).fit(pictured.paths, pictured.labels)
    with pytest.raises(CallError, match="auto runs in one process"):
        auto(pictured.images, "out.head")


def test_processes_that_do_not_train_alike_are_refused(second_of_two, tuner, pictured, monkeypatch):
    monkeypatch.setattr(Distributed, "broadcast_object", lambda self, value: "another key")
    with pytest.raises(CallError, match="the processes differ in options"):
        tuner(maps=True).fit(pictured.paths, pictured.labels)


def test_memory_that_ends_names_the_batch_size(tuner, pictured, monkeypatch):
    def fail(*_):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(_Trainer, "train_epoch", fail)
    with pytest.raises(CallError, match="with batches of 16 images: lower --batch-size"):
        tuner(maps=True).fit(pictured.paths, pictured.labels)


# --- numbers ---------------------------------------------------------------------------------


@pytest.mark.long
def test_scores_are_computed_in_float32_where_steps_are_not(tuner, pictured, monkeypatch):
    """So what is reported is what `predict` gives, on a GPU too."""
    steps_in = []
    through = torch.nn.functional.cross_entropy

    def noting(values, *rest, **options):
        if torch.is_autocast_enabled("cpu"):
            steps_in.append(torch.get_autocast_dtype("cpu"))
        return through(values, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", noting)
    monkeypatch.setattr(Distributed, "autocast", lambda self: torch.autocast("cpu", torch.bfloat16))
    model = tuner(epochs=1).fit(pictured.paths, pictured.labels)
    assert set(steps_in) == {torch.bfloat16}
    scores = model.decision_scores(pictured.paths)
    monkeypatch.undo()
    again = model.decision_scores(pictured.paths)
    assert np.abs(scores - again).max() <= 1e-5 * np.abs(again).max()


def test_validation_and_its_estimate_are_in_float32(tuner, pictured, monkeypatch):
    """A time limit would be overrun if what is timed were quicker than what follows."""
    in_inference = []

    def note(self):
        in_inference.append(torch.is_inference_mode_enabled())
        return nullcontext()

    monkeypatch.setattr(Distributed, "autocast", note)
    model = tuner(maps=True)
    model.fit(pictured.paths, pictured.labels, deadline=time.monotonic() + 3600)
    assert set(in_inference) == {False}


def test_a_fit_leaves_the_generators_as_they_were(tuner, pictured, monkeypatch):
    """Seeding torch seeds all GPUs, so it is done for an epoch, and not for a step or an image."""
    n_seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", n_seeded.append)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    n_seeded.clear()
    tuner(epochs=2, mixup=0.2, batch_size=8).fit(pictured.paths, pictured.labels)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(n_seeded) <= 4


def test_old_checkpoints_know_parameters_by_their_place(tuner, pictured, tmp_path):
    """The optimiser's state is kept in the network's order, whatever its groups are."""
    kept = {}

    class Kept(Exception):
        pass

    from classify.finetuning import trainer

    def keep(path, key, checkpoint):
        kept["optimizer"] = checkpoint.optimizer
        raise Kept

    monkey = pytest.MonkeyPatch()
    monkey.setattr(trainer, "save_checkpoint", keep)
    nets = []
    init = trainer._Trainer.__init__

    def noting(self, net, *rest):
        nets.append(net)
        init(self, net, *rest)

    monkey.setattr(trainer._Trainer, "__init__", noting)
    with pytest.raises(Kept):
        tuner(tune="all").fit(pictured.paths, pictured.labels, checkpoint=tmp_path / "M.part")
    monkey.undo()
    parameters = list(nets[0].trainable_parameters().values())
    assert sorted(kept["optimizer"]) == list(range(len(parameters)))
    for place, state in kept["optimizer"].items():
        assert state["exp_avg"].shape == parameters[place].shape


# --- loaders ---------------------------------------------------------------------------------


def make_items(tuner, pictured):
    """The training images of a fit, as it makes them."""
    datasets = []
    through = loader_module.make_dataloader

    def keep(dataset, *rest):
        datasets.append(dataset)
        return through(dataset, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("classify.finetuning.trainer.make_dataloader", keep)
        tuner().fit(pictured.paths, pictured.labels)
    return next(dataset for dataset in datasets if dataset.is_random)


@pytest.mark.long
def test_workers_are_as_many_as_shared_memory_takes(tuner, pictured, monkeypatch):
    dataset = make_items(tuner, pictured)
    monkeypatch.setattr(loader_module, "usable_cores", lambda: 8)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    batch = 32 * dataset[0][0].nbytes
    for n_free, expected in ((10**12, 8), (9 * batch, 3), (3 * batch, 1), (batch, 0)):
        monkeypatch.setattr(loader_module, "_count_shared_bytes", lambda n=n_free: n)
        assert loader_module._count_workers(dataset, 32, "cuda") == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # four processes share cores and memory
    for n_free, expected in ((10**12, 2), (15 * batch, 1), (9 * batch, 0)):
        monkeypatch.setattr(loader_module, "_count_shared_bytes", lambda n=n_free: n)
        assert loader_module._count_workers(dataset, 32, "cuda") == expected
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "forkserver")
    assert loader_module._count_workers(dataset, 32, "cuda") == 0  # it would copy all images


@pytest.mark.long
def test_workers_start_once_and_give_what_none_gives(tuner, pictured, monkeypatch):
    dataset = make_items(tuner, pictured)
    monkeypatch.setattr(loader_module, "_count_workers", lambda *_: 0)
    samplers = [EpochSampler(len(dataset), 3) for _ in range(2)]
    alone = make_dataloader(dataset, 8, "cpu", samplers[0])
    monkeypatch.setattr(loader_module, "_count_workers", lambda *_: 2)
    helped = make_dataloader(dataset, 8, "cpu", samplers[1])
    workers = []
    for epoch in range(3):
        for sampler in samplers:
            sampler.epoch = epoch
        for (x, y), (others, labels) in zip(alone, helped, strict=True):
            assert torch.equal(x, others)
            assert torch.equal(y, labels)
        workers.append({worker.pid for worker in helped._iterator._workers})
    assert workers[0] == workers[1] == workers[2]
    assert len(workers[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_give_the_same_however_they_start(tuner, pictured, monkeypatch, method):
    monkeypatch.setattr("classify.finetuning.datasets.images.MAX_PIXEL_BYTES", 0)
    dataset = make_items(tuner, pictured)
    assert not dataset.images.is_in_memory
    monkeypatch.setattr(loader_module, "MAX_WORKERS", 1)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        batches = make_dataloader(dataset, 8, "cpu", EpochSampler(len(dataset), 3))
        assert batches.num_workers == 1
        found = torch.cat([x for x, _ in batches])
    finally:
        multiprocessing.set_start_method(before, force=True)
    order = list(EpochSampler(len(dataset), 3))[: len(found)]
    assert len(found) >= 48
    assert torch.equal(found, torch.stack([dataset[i][0] for i in order]))


# --- two processes ---------------------------------------------------------------------------


def launch(tmp_path, code: str, *arguments: str, timeout: float = 240):
    """Start two processes of a script that calls the command, as torch's launcher does."""
    script = tmp_path / "train.py"
    script.write_text(f"{code}\nfrom classify.__main__ import main\nmain()\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = time.monotonic()
    done = subprocess.run(
        [*LAUNCHER, str(script), "finetune", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    return done, time.monotonic() - started


def options_of(pictured, output, epochs=2):
    return (
        *(str(pictured.images), "--backbone", "seedling", "--device", "cpu", "--seed", "5"),
        *("--epochs", str(epochs), "--batch-size", "16", "--json", "-o", str(output)),
    )


NAN_ON_ONE = """
import os, torch
from pathlib import Path
through = torch.nn.functional.cross_entropy
def cross_entropy(values, *rest, **options):
    loss = through(values, *rest, **options)
    if os.environ["RANK"] == "0" or not values.requires_grad:
        return loss
    Path(__file__).with_name("began").touch(exist_ok=True)
    return loss * float("nan")
torch.nn.functional.cross_entropy = cross_entropy
"""

FAILS_ON_ONE = """
import os
from classify.finetuning.trainer import _Trainer
through = _Trainer.report_step
def report_step(self, number):
    if os.environ["RANK"] == "1":
        raise MemoryError("in the second process")
    through(self, number)
_Trainer.report_step = report_step
"""

SEES_NO_CHECKPOINT = """
import os
from pathlib import Path
from classify.finetuning import steps
through = steps.load_checkpoint
def load_checkpoint(path, key, net):
    if os.environ["RANK"] == "1":
        raise AssertionError("the second process reads the checkpoint")
    return through(path, key, net)
steps.load_checkpoint = load_checkpoint
"""


@pytest.mark.long
def test_a_loss_that_is_no_number_ends_all_with_one_sentence(pictured, tmp_path):
    done, _ = launch(tmp_path, NAN_ON_ONE, *options_of(pictured, tmp_path / "M"))
    assert time.time() - (tmp_path / "began").stat().st_mtime < 10
    assert done.returncode != 0
    said = "the loss is nan in epoch 1, batch 1: training has gone astray"
    assert done.stderr.count(said) == done.stderr.count("error: ") == 1
    assert "Grad strides" not in done.stderr
    assert "unexpected" not in done.stderr
    assert "GLHF" not in done.stderr


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(pictured, tmp_path):
    done, seconds = launch(tmp_path, FAILS_ON_ONE, *options_of(pictured, tmp_path / "M"))
    assert done.returncode != 0
    assert seconds < 60
    assert "lower --batch-size" in done.stderr
    assert "unexpected" not in done.stderr


@pytest.mark.slow
def test_one_process_reads_the_checkpoint_for_all(pictured, tmp_path):
    """What was stopped after an epoch goes on as if the other process had seen the file."""
    whole, _ = launch(tmp_path, "", *options_of(pictured, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    kill = (
        "import os\n"
        "from classify.finetuning import trainer\n"
        "through = trainer.save_checkpoint\n"
        "def save_checkpoint(*checkpoint):\n"
        "    through(*checkpoint)\n"
        "    os.kill(os.getpid(), 9)\n"
        "trainer.save_checkpoint = save_checkpoint\n"
    )
    killed, _ = launch(tmp_path, kill, *options_of(pictured, tmp_path / "M"))
    assert killed.returncode != 0
    assert (tmp_path / "M.part").exists()
    on, _ = launch(tmp_path, SEES_NO_CHECKPOINT, *options_of(pictured, tmp_path / "M"))
    assert on.returncode == 0, on.stderr
    assert "going on after epoch 1" in on.stderr
    mine, other = load_file(tmp_path / "M"), load_file(tmp_path / "whole")
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert json.loads(on.stdout)["epochs"] == 2

"""The steps of `gpu.py` that are whole runs: adversity, throughput, training."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_steps import Step, check_features, look_at_machine, make_pixels, measure_distance
from photos import photos

from featurize import Backbone, FeatureCache, load_backbone, run
from featurize.backbones.families import parse_layers
from featurize.engines.base import Engine
from featurize.engines.factory import open_engine
from featurize.errors import CallError
from featurize.images import reading
from featurize.images.workers.pool import DecoderPool
from featurize.system import cpu


def main(name: str, device: str, path: str) -> None:
    """Go through a step, and write what is found to a file."""
    steps = {
        "machine": look_at_machine,
        "correctness": check_features,
        "adversity": check_adversity,
        "throughput": measure_rates,
        "training": check_training,
    }
    steps[name](Step(device, path))


# --- adversity ---------------------------------------------------------------------------------


@contextmanager
def cramped(step: Step, share: float) -> Iterator[None]:
    """Little memory of the GPU; on the processor, batches of more than eight do not fit."""
    if step.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    from featurize.engines.eager import EagerEngine

    through = EagerEngine.run

    def run_few(engine: EagerEngine, pixels: np.ndarray) -> list[np.ndarray]:
        if len(pixels) > 8:
            raise MemoryError
        return through(engine, pixels)

    with mock.patch.object(EagerEngine, "run", run_few):
        yield


def check_adversity(step: Step) -> None:
    name = "resnet50" if step.is_gpu else "seedling"
    torch.manual_seed(0)
    backbone = load_backbone(name, frozen_weights=name == "seedling")
    folder = photos(1000 if step.is_gpu else 60, (320, 240))
    with tempfile.TemporaryDirectory() as home:
        plain = Path(home) / "plain.h5"
        run(folder, plain, backbone=backbone, device=step.device, engine="eager")
        expected = FeatureCache(plain)
        (layer,) = expected.layers

        def hold(check: str, path: Path, most: float = 1e-4) -> None:
            found = FeatureCache(path)
            step.demand(f"{check}: every row", found.counts["ok"] == expected.counts["ok"])
            step.demand(f"{check}: verify", found.verify() == [])
            pair = [found.features(layer)], [expected.features(layer)]
            step.judge(f"{check}: the same features", measure_distance(*pair), most=most)

        for share in (0.03, 0.015, 0.008) if step.is_gpu else (0.03,):
            path = Path(home) / f"cramped-{share}.h5"
            with cramped(step, share):
                run(folder, path, backbone=backbone, device=step.device)
            hold(f"with {share:.1%} of the memory", path)
        path = Path(home) / "thread.h5"
        thread = threading.Thread(
            target=lambda: run(folder, path, backbone=backbone, device=step.device)
        )
        thread.start()
        thread.join()
        hold("in a thread", path)
        for place, device in enumerate(("cpu", step.device)):
            path = Path(home) / f"again-{place}.h5"
            run(folder, path, backbone=backbone, device=device)
            hold(f"the same Backbone on {device}", path)
        try:
            run(folder, Path(home) / "no.h5", backbone=backbone, device="cuda:99")
            step.demand("a GPU that is not there is refused", False)
        except CallError:
            step.demand("a GPU that is not there is refused", True)
        for sign in (signal.SIGINT, signal.SIGKILL):
            path = Path(home) / f"{sign.name}.h5"
            stop_and_go_on(step, folder, path, sign)
            # By the command's network, not this one: complete and whole is what is asked.
            step.demand(f"after {sign.name}: verify", FeatureCache(path).verify() == [])
            step.demand(f"after {sign.name}: all", not FeatureCache(path).counts["pending"])


def stop_and_go_on(step: Step, folder: Path, path: Path, sign: signal.Signals) -> None:
    command = str(Path(sys.executable).with_name("featurize"))
    line = [command, "run", str(folder), "-o", str(path), "--backbone", "seedling"]
    line += ["--device", step.device]
    process = subprocess.Popen(
        line,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not path.exists():
        time.sleep(0.01)
    process.send_signal(sign)
    process.wait(60)
    done = subprocess.run(line, capture_output=True, text=True)
    step.demand(f"after {sign.name} the same command goes on", done.returncode == 0)


# --- throughput --------------------------------------------------------------------------------


def measure_rates(step: Step) -> None:
    count = 20_000 if step.is_gpu else 200
    folder = photos(count)
    paths = sorted(folder.rglob("*.jpg"))
    networks = [("resnet50", "float32", "eager"), ("resnet50", "tf32", "cuda"),
                ("resnet50", "bf16", "cuda"), ("resnet18", "bf16", "cuda")]  # fmt: skip
    if not step.is_gpu:
        networks = [("seedling", "float32", "eager")]
    for name, precision, engine_name in networks:
        torch.manual_seed(0)
        backbone = load_backbone(name, frozen_weights=name == "seedling")
        layers = [tuple(layer) for layer in parse_layers("last", None, name)]
        decode = max(
            measure_decoding(backbone, paths, apart=apart) for apart in ((False, True))
        )  # fmt: skip
        engine = open_engine(
            backbone, layers, name=engine_name, device=step.device, precision=precision
        )
        alone = measure_engine(step, engine, backbone.preprocess.crop)
        of = f"{name}, {precision}, {engine_name}"
        step.note(f"{of}: decoding alone, images/s", decode)
        least = 10_000 if (name, precision) == ("resnet50", "bf16") else None
        if least:
            step.judge(f"{of}: engine alone, images/s", alone, least=least, gpu_only=True)
        else:
            step.note(f"{of}: engine alone, images/s", alone)
        with tempfile.TemporaryDirectory() as home:
            done = run(folder, Path(home) / "c.h5", backbone=backbone, device=step.device,
                       engine=engine_name, precision=precision)  # fmt: skip
        bound = min(decode, alone)
        step.judge(f"{of}: a run, of the lower of both", (done.images_per_second or 0) / bound,
                   least=0.9, gpu_only=True)  # fmt: skip


def measure_decoding(backbone: Backbone, paths: list[Path], *, apart: bool) -> float:
    pool = DecoderPool(backbone.preprocess)
    if apart:
        pool.use_processes()
    size = pool.max_task_images

    def decode(first: int) -> int:
        task = [reading.read_image_file(path).data for path in paths[first : first + size]]
        return len(pool.decode_task(task))

    with ThreadPoolExecutor(cpu.usable_cores()) as threads:
        list(threads.map(decode, range(0, size * cpu.usable_cores(), size)))
        started = time.perf_counter()
        n_done = sum(threads.map(decode, range(0, len(paths), size)))
        seconds = time.perf_counter() - started
    pool.close()
    return n_done / seconds


def measure_engine(step: Step, engine: Engine, crop: int) -> float:
    pixels = make_pixels(engine.batch_size, crop)
    pending: list[Any] = []

    def one_more() -> None:
        pending.append(engine.submit(pixels))
        if len(pending) > engine.max_in_flight - 1:
            pending.pop(0).collect()

    for _ in range(3):
        one_more()
    n_batches = 50 if step.is_gpu else 5
    started = time.perf_counter()
    for _ in range(n_batches):
        one_more()
    return n_batches * len(pixels) / (time.perf_counter() - started)


# --- training ----------------------------------------------------------------------------------


def check_training(step: Step) -> None:
    from classify import finetune, predict
    from classify.errors import CallError as ClassifyCallError

    digits = Path(__file__).parents[1] / "build" / "digits"
    if not (digits / "images").exists():
        script = Path(__file__).parents[1] / "data" / "digits" / "make.py"
        subprocess.run([sys.executable, script, digits], check=True)
    epochs = 5 if step.is_gpu else 2
    with tempfile.TemporaryDirectory() as home:
        lines = (digits / "digit.csv").read_text().splitlines()
        labels = Path(home) / "digit.csv"
        labels.write_text("\n".join(lines if step.is_gpu else [lines[0], *lines[1::8]]) + "\n")
        found = {}
        for device in dict.fromkeys(("cpu", step.device)):
            path = Path(home) / f"{device}.head"
            found[device] = finetune(
                digits / "images", path, labels, backbone="seedling", device=device,
                epochs=epochs, tune="stage4" if not step.is_gpu else "all",
            )  # fmt: skip
            losses = [epoch["loss"] for epoch in found[device].history]
            step.demand(f"{device}: the loss falls", losses[-1] < losses[0])
        accuracies = [result.accuracy or 0.0 for result in found.values()]
        step.judge("accuracy on both devices, apart", max(accuracies) - min(accuracies), most=0.02)
        result = found[step.device]
        if step.is_gpu:
            again = predict(result.head, digits / "images")
            step.note("images predicted again", len(again.paths))
        step.note("accuracy", result.accuracy)
        try:
            with cramped_training(step):
                finetune(
                    *(digits / "images", Path(home) / "no.head", labels),
                    backbone="seedling", device=step.device, epochs=1, batch_size=4096,
                )  # fmt: skip
            step.demand("memory that ends names --batch-size", False, gpu_only=True)
        except ClassifyCallError as error:
            step.demand("memory that ends names --batch-size", "--batch-size" in str(error))
        launcher = str(Path(sys.executable).with_name("torchrun"))
        line = [launcher, "--nproc-per-node", "1", "--no-python",
                str(Path(sys.executable).with_name("classify")), "finetune",
                str(digits / "images"), "--labels", str(labels), "--backbone",
                "seedling", "--tune", "stage4", "--device", step.device, "--epochs", "1",
                "-o", str(Path(home) / "launched.head")]  # fmt: skip
        done = subprocess.run(line, capture_output=True, text=True, timeout=240,
                              env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"})  # fmt: skip
        step.demand("torch's launcher starts it", done.returncode == 0)
        measure_recipe(step, Path(home) / "grown.safetensors")


def measure_recipe(step: Step, weights: Path) -> None:
    """How fast the recipe that grew seedling draws and trains, in a minute of it."""
    script = Path(__file__).parents[1] / "data" / "seedling" / "train.py"
    line = [sys.executable, str(script), "--device", step.device, "-o", str(weights)]
    if not step.is_gpu:
        small = "--steps 2 --batch 16 --fresh 8 --store 128 --sample 256 --dim 32 --threads 1"
        line += small.split()
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    try:
        said = process.communicate(timeout=60 if step.is_gpu else 120)[1]
        has_failed = process.returncode != 0
    except subprocess.TimeoutExpired:  # it says every ten seconds how far it is
        process.kill()
        said, has_failed = process.communicate()[1], False
    rates = re.findall(r"(\d+) images/s", said)
    step.demand("seedling's recipe trains", bool(rates) and not has_failed)
    step.note("seedling's recipe, images/s", float(rates[-1]) if rates else said[-200:] or "none")


@contextmanager
def cramped_training(step: Step) -> Iterator[None]:
    if step.is_gpu:
        with cramped(step, 0.01):
            yield
        return
    from classify.finetuning import trainer

    with mock.patch.object(trainer._Trainer, "train_epoch", side_effect=MemoryError):
        yield

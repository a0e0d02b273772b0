"""The steps of `gpu.py`: what is looked at, and the limits."""

import json
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from machine import describe
from photos import photos

from featurize import Backbone, FeatureCache, load_backbone, run
from featurize.backbones.families import parse_layers
from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.base import ENGINE_RTOL, REDUCED_RTOLS, Engine
from featurize.engines.factory import open_engine
from featurize.system import cpu

Layers = list[tuple[str, str]]


class Step:
    """One step on one device; each finding is written as soon as it is there."""

    def __init__(self, device: str, path: str) -> None:
        self.device, self.path = device, Path(path)

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    def note(self, check: str, found: object) -> None:
        """Write what there is nothing to judge by."""
        self._write(check, found, "", "")

    def judge(self, check: str, found: float, *, most: float | None = None,
              least: float | None = None, gpu_only: bool = False) -> None:  # fmt: skip
        """Hold a figure to its limits; those of a GPU alone are n/a elsewhere."""
        is_within = (most is None or found <= most) and (least is None or found >= least)
        limit = " and ".join(
            f"{sign} {value:g}"
            for sign, value in (("<=", most), (">=", least))
            if value is not None
        )
        verdict = "n/a" if gpu_only and not self.is_gpu else "PASS" if is_within else "FAIL"
        self._write(check, float(found), limit, verdict)

    def demand(self, check: str, holds: bool, *, gpu_only: bool = False) -> None:
        self.judge(check, float(holds), least=1, gpu_only=gpu_only)

    def _write(self, check: str, found: object, limit: str, verdict: str) -> None:
        row = {"check": check, "found": found, "limit": limit, "verdict": verdict}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(*row.values(), flush=True)


# --- machine -----------------------------------------------------------------------------------


def look_at_machine(step: Step) -> None:
    step.note("software", describe().replace("\n", "; "))
    step.note("cores", cpu.usable_cores())
    step.note("C compiler", shutil.which("gcc") or shutil.which("cc") or "none")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    step.demand("Python's headers are there", headers.exists(), gpu_only=True)
    if Path("/dev/shm").exists():
        free = shutil.disk_usage("/dev/shm").free
        step.note("/dev/shm, MiB free", free >> 20)
    if step.is_gpu:
        step.note("GPU", torch.cuda.get_device_name())
        step.note("memory, GiB", torch.cuda.get_device_properties(0).total_memory / 2**30)
        if smi := shutil.which("nvidia-smi"):
            query = [
                smi,
                "--query-gpu=driver_version,clocks.sm,power.limit",
                "--format=csv,noheader",
            ]
            step.note(
                "driver", subprocess.run(query, capture_output=True, text=True).stdout.strip()
            )
    for dtype in (torch.float32, torch.bfloat16):
        side = 8192 if step.is_gpu else 512
        a, b = (torch.rand(side, side, device=step.device).to(dtype) for _ in "ab")
        seconds = time_on(step.device, lambda a=a, b=b: a @ b)
        step.note(f"product of matrices, {dtype}, TFLOP/s", 2 * side**3 / seconds / 1e12)
    pixels = torch.zeros(256, 224, 224, 3, dtype=torch.uint8, pin_memory=step.is_gpu)
    seconds = time_on(step.device, lambda: pixels.to(step.device, non_blocking=True, copy=True))
    step.note("256 images to the device, GB/s", pixels.nbytes / seconds / 1e9)


def time_on(device: str, call: Callable[[], object], n_times: int = 5) -> float:
    """Seconds of a call, the best of some, the device waited for."""
    best = float("inf")
    for _ in range(n_times + 1):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


# --- correctness -------------------------------------------------------------------------------


def make_backbones(step: Step) -> Iterator[tuple[str, Backbone, Layers, float]]:
    """Name, network, layers, and how far float32 may be from float64."""
    names = ("seedling", "squeezenet1_1", "resnet18", "resnet50")
    for name in names if step.is_gpu else names[:1]:
        torch.manual_seed(0)
        backbone = load_backbone(name, frozen_weights=name == "seedling")
        pools = ("avg", "max", "none") if name != "resnet50" else ("avg", "max")
        layers = [tuple(layer) for pool in pools for layer in parse_layers("auto", pool, name)]
        yield name, backbone, layers, ENGINE_RTOL if name == "seedling" else 1e-4


def measure_distance(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest distance of a row, as a share of its norm."""
    shares = [
        np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)
        for a, b in zip(found, expected, strict=True)
    ]
    return float(np.concatenate(shares).max())


def make_pixels(count: int, crop: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, crop, crop, 3), np.uint8)


def run_in_float64(backbone: Backbone, layers: Layers, pixels: np.ndarray) -> list[np.ndarray]:
    import copy

    network = PixelNetwork(copy.deepcopy(backbone.cut(layers)), backbone.preprocess)
    x = network.normalise(torch.from_numpy(pixels)).double()
    with torch.inference_mode():
        return [output.numpy() for output in network.network.double()(x)]


def check_features(step: Step) -> None:
    precisions = ("float32", "tf32", "fp16", "bf16") if step.is_gpu else ("float32", "bf16")
    for name, backbone, layers, rtol in make_backbones(step):
        crop = backbone.preprocess.crop
        few = make_pixels(16, crop)
        exact = run_in_float64(backbone, layers, few)
        for precision in precisions:
            options = {"device": step.device, "precision": precision}
            eager = open_engine(backbone, layers, name="eager", **options)
            off = measure_distance(eager.run(few), exact)
            limit = rtol if precision == "float32" else REDUCED_RTOLS[precision]
            step.judge(f"{name}, {precision}: eager to float64", off, most=limit)
            if precision == "tf32":  # or it was not on
                step.judge(f"{name}: tf32 is on", off, least=1e-5, gpu_only=True)
            if step.is_gpu:
                check_graphs(step, name, backbone, layers, eager, precision)
        both = check_half_and_half(step, backbone)
        step.judge(f"{name}: a cache made half on each device", both, most=1e-4)


def check_graphs(step: Step, name: str, backbone: Backbone, layers: Layers, eager: Engine,
                 precision: str) -> None:  # fmt: skip
    """Graphs beside eager, over batches of changing size, two of them in flight."""
    started = time.monotonic()
    graphs = open_engine(backbone, layers, name="cuda", device="cuda", precision=precision)
    step.judge(f"{name}, {precision}: cuda starts, s", time.monotonic() - started, most=120)
    size = graphs.batch_size
    sizes = [size, size, 1, size, size // 3, size, 7, size]
    batches = [make_pixels(n, backbone.preprocess.crop, k) for k, n in enumerate(sizes)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pending, found = [], []
        for pixels in batches:
            pending.append(graphs.submit(pixels))
            if len(pending) == 2:
                found.append(pending.pop(0).collect())
        found += [batch.collect() for batch in pending]
    launches = sum(e.count for e in profile.key_averages() if "cudaGraphLaunch" in e.key)
    step.judge(f"{name}, {precision}: graphs launched in {len(sizes)} batches", launches, least=1)
    # Some networks differ by more between two sizes of a batch, whatever runs them.
    few = measure_distance(eager.run(batches[0][:2]), [x[:2] for x in eager.run(batches[0])])
    limit = max({"float32": ENGINE_RTOL, **REDUCED_RTOLS}[precision], 4 * few)
    off = max(map(measure_distance, found, map(eager.run, batches)))
    step.judge(f"{name}, {precision}: cuda to eager", off, most=limit)


def check_half_and_half(step: Step, backbone: Backbone) -> float:
    """A cache begun on the processor and finished on the device, beside one of the processor."""
    with tempfile.TemporaryDirectory() as home:
        whole, halves = Path(home) / "whole.h5", Path(home) / "halves.h5"
        folder = photos(40, (320, 240))
        run(folder, whole, backbone=backbone, device="cpu")
        run(folder, halves, backbone=backbone, device="cpu", include=["[0-4]/*"])
        run(folder, halves, backbone=backbone, device=step.device, include=["[0-9]/*"])
        one, other = FeatureCache(halves), FeatureCache(whole)
        (layer,) = other.layers
        assert one.layers[layer].fingerprint == other.layers[layer].fingerprint
        return measure_distance([one.features(layer)], [other.features(layer)])

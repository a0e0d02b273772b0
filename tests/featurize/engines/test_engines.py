"""Engines: each gives what eager gives, `auto` weighs them, and batches fit themselves.

The reference is torch's own module run on normalised pixels (through eager); the tolerance is the
one the package states.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featurize import Backbone, FeatureCache, load_backbone, run
from featurize.backbones.families import parse_layers
from featurize.engines import auto as auto_engine
from featurize.engines.auto import EngineProfile, EngineSelector
from featurize.engines.base import (
    ENGINE_RTOL,
    ENGINES,
    ProcessorEngine,
    find_missing_onnx_packages,
)
from featurize.engines.batching import BatchRunner
from featurize.engines.factory import open_engine
from featurize.errors import CallError, EngineError
from featurize.system import cgroups, cpu

RECIPE = {"resize": 32, "crop": 32, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NO_ONNX = "onnxruntime, onnx or onnxscript is not installed"
needs_onnx = pytest.mark.skipif(bool(find_missing_onnx_packages()), reason=NO_ONNX)
NEVER = EngineProfile(float("inf"), 2.0)
AT_ONCE = EngineProfile(0.0, 2.0)


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance between two rows, as a share of the row's norm."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == np.float32
    off = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    return float((off / np.linalg.norm(expected.astype(np.float64), axis=1)).max())


def noise(count: int, crop: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, crop, crop, 3), np.uint8)


def check(backbone: Backbone, layers: list[tuple[str, str]], name: str, counts) -> None:
    """An engine beside eager: every layer and pool, batches of several sizes."""
    engine = open_engine(backbone, layers, name=name, device="cpu")
    eager = open_engine(backbone, layers, name="eager", device="cpu")
    assert (engine.name, engine.device) == (name, "cpu")
    for count in counts or (engine.batch_size, 3, 1):
        pixels = noise(count, backbone.preprocess["crop"])
        before = pixels.copy()
        found = engine.run(pixels)
        kept = [array.copy() for array in found]
        for layer, one, other in zip(layers, found, eager.run(pixels), strict=True):
            assert worst(one, other) <= ENGINE_RTOL, (layer, count)
        engine.run(noise(2, backbone.preprocess["crop"])[::-1].copy())
        # What was handed out stays as it is, and so do the pixels.
        assert all(np.array_equal(one, other) for one, other in zip(found, kept, strict=True))
        assert np.array_equal(pixels, before)


class Small(nn.Module):
    """Batch norm to fold, an in-place ReLU, a shortcut, pooling, a linear end."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        y = self.second(x)
        y += nn.functional.max_pool2d(x, 2)
        return self.head(nn.functional.relu(y).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> Backbone:
    torch.manual_seed(0)
    net = Small()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return Backbone(net, name="small", preprocess=RECIPE)


EVERY_POOL = [
    *[(layer, pool) for layer in ("norm", "second") for pool in ("avg", "max", "avgmax", "none")],
    ("head", "avg"),
]


# --- the same features -----------------------------------------------------------------------


@pytest.mark.long
@needs_onnx
def test_onnxruntime_agrees_with_eager(small):
    check(small, EVERY_POOL, "onnxruntime", (40, 3, 1))


@pytest.mark.slow
def test_compile_agrees_with_eager(small):
    check(small, EVERY_POOL, "compile", None)


@pytest.mark.long
@needs_onnx
def test_onnxruntime_runs_the_shipped_backbone():
    layers = [("stage2", "none"), *parse_layers("auto", "avgmax", "seedling"), ("stage4", "avg")]
    check(load_backbone("seedling"), layers, "onnxruntime", (33, 1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "compile"])
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "swin_t", "vit_b_32", "convnext_tiny"]
)
def test_families_agree_with_eager(name, engine):
    if engine == "onnxruntime" and find_missing_onnx_packages():
        pytest.skip(NO_ONNX)
    torch.manual_seed(0)
    layers = parse_layers("auto", None, name) + parse_layers("auto", "none", name)
    check(load_backbone(name, frozen_weights=False), layers, engine, (5, 1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "compile"])
def test_real_weights_on_photographs_agree(engine, photos, squeezenet_weights, tmp_path):
    if engine == "onnxruntime" and find_missing_onnx_packages():
        pytest.skip(NO_ONNX)
    layers = "auto,features.12:max,features.4:none"
    options = {"backbone": "squeezenet1_1", "weights": str(squeezenet_weights), "layers": layers}
    for name in ("eager", engine):
        done = run(photos, tmp_path / f"{name}.h5", **options, engine=name)
        assert (done.computed, done.engine, done.engine_why) == (12, name, "as asked for")
    eager, other = FeatureCache(tmp_path / "eager.h5"), FeatureCache(tmp_path / f"{engine}.h5")
    for layer, info in eager.layers.items():
        assert worst(other.features(layer), eager.features(layer)) <= ENGINE_RTOL
        assert other.layers[layer].fingerprint == info.fingerprint


@pytest.fixture
def folder(draw, tmp_path):
    return draw(tmp_path / "images", [f"{k:03}.png" for k in range(70)])


@pytest.mark.long
@needs_onnx
def test_a_run_by_onnxruntime_is_a_run(folder, small, tmp_path, monkeypatch):
    """Incomplete last batch, a broken image, a cache begun by another engine."""
    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)  # eight each
    (folder / "bad.jpg").write_text("no image")
    for engine in ("eager", "onnxruntime"):
        done = run(
            folder, tmp_path / f"{engine}.h5", backbone=small, layers="norm:none", engine=engine
        )
        assert (done.computed, done.failed, done.engine) == (70, 1, engine)
    one, other = FeatureCache(tmp_path / "eager.h5"), FeatureCache(tmp_path / "onnxruntime.h5")
    rows = np.flatnonzero(one.status == 1)
    name = "norm@none"
    assert worst(other.features(name, rows), one.features(name, rows)) <= ENGINE_RTOL
    done = run(folder, tmp_path / "eager.h5", backbone=small, layers="head", engine="onnxruntime")
    assert done.computed == 70
    assert run(folder, tmp_path / "eager.h5", backbone=small, engine="eager").computed == 0


@needs_onnx
def test_other_features_are_noticed(small, monkeypatch):
    from featurize.engines import onnx_runtime

    through = onnx_runtime.OnnxRuntimeEngine.run
    monkeypatch.setattr(
        onnx_runtime.OnnxRuntimeEngine,
        "run",
        lambda engine, pixels: [x * (1 + 10 * ENGINE_RTOL) for x in through(engine, pixels)],
    )
    with pytest.raises(EngineError, match=r"gives other features .*; use --engine eager"):
        open_engine(small, [("head", "avg")], name="onnxruntime", device="cpu")


# --- auto ------------------------------------------------------------------------------------


@pytest.mark.long
def test_auto_keeps_a_small_job_eager(folder, tmp_path):
    code = (
        "import sys; from featurize import run\n"
        f"done = run({str(folder)!r}, {str(tmp_path / 'c.h5')!r}, backbone='seedling')\n"
        "assert not {'onnxruntime', 'onnx', 'torch._inductor.compile_fx'} & set(sys.modules)\n"
        "print(done.engine, done.engine_why, sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "eager|few images"


@needs_onnx
def test_auto_changes_where_it_pays(folder, small, tmp_path, monkeypatch):
    """In the middle of a run: rows of either engine stand in one cache, and agree."""
    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    monkeypatch.setattr(auto_engine, "ENGINE_PROFILES", {"onnxruntime": AT_ONCE, "compile": NEVER})
    said = []
    done = run(folder, tmp_path / "c.h5", backbone=small, layers="second", say=said.append)
    assert (done.computed, done.engine) == (70, "onnxruntime")
    assert done.engine_why.startswith("54 images would take eager about ")
    assert any("going on with the engine onnxruntime: 54 images" in text for text in said)
    assert done.images_per_second > 0
    run(folder, tmp_path / "d.h5", backbone=small, layers="second", engine="eager")
    left, right = FeatureCache(tmp_path / "c.h5"), FeatureCache(tmp_path / "d.h5")
    assert worst(left.features("second"), right.features("second")) <= ENGINE_RTOL


def test_auto_weighs_start_up_against_the_images_left(monkeypatch):
    monkeypatch.setattr(
        auto_engine,
        "ENGINE_PROFILES",
        {"onnxruntime": EngineProfile(10, 2.0), "compile": EngineProfile(60, 1.5)},
    )
    monkeypatch.setattr(auto_engine, "find_obstacle", lambda *_: "")
    for left, expected in ((1, None), (199, None), (201, "onnxruntime")):
        weighing = EngineSelector("auto", "float32", Stub, print)
        found = weighing.upgrade(weighing.open_first(), 0.1, left)
        assert (found and found.name) == expected, left
        assert weighing.upgrade(Stub(), 0.1, 10**9) is None  # once
    assert EngineSelector("compile", "float32", Stub, print).upgrade(Stub(), 9, 9) is None


class Unexportable(nn.Module):
    """Singular values: ONNX knows none."""

    def forward(self, x):
        return torch.linalg.svdvals(x.double())[..., :2].float().flatten(1)


@pytest.fixture
def odd() -> Backbone:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Unexportable())
    return Backbone(net, name="odd", preprocess=RECIPE)


@pytest.mark.long
@needs_onnx
def test_auto_falls_back_and_says_so(folder, odd, tmp_path, monkeypatch):
    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    monkeypatch.setattr(auto_engine, "ENGINE_PROFILES", {"onnxruntime": AT_ONCE, "compile": NEVER})
    said = []
    done = run(folder, tmp_path / "c.h5", backbone=odd, layers="0,1", say=said.append)
    assert (done.computed, done.engine) == (70, "eager")
    assert "onnxruntime cannot be had" in done.engine_why
    assert any("the engine onnxruntime cannot run this network here" in text for text in said)
    with pytest.raises(EngineError, match=r"cannot run this network here .*; use --engine eager"):
        run(folder, tmp_path / "d.h5", backbone=odd, layers="0,1", engine="onnxruntime")


def test_missing_packages_are_named(folder, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("featurize.engines.base.ONNX_PACKAGES", ("json", "no_such_package"))
    line = ("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling")
    done = cli(*line, "--engine", "onnxruntime")
    assert done.exit_code == 2
    assert "needs no_such_package: pip install 'headgraft[onnx]'" in done.stderr
    assert not (tmp_path / "c.h5").exists()
    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    monkeypatch.setattr(auto_engine, "ENGINE_PROFILES", {"onnxruntime": AT_ONCE, "compile": NEVER})
    done = cli(*line, "--json")
    found = json.loads(done.stdout)
    assert (found["computed"], found["engine"]) == (70, "eager")
    assert "onnxruntime cannot be had" in found["engine_why"]
    assert "not by the engine onnxruntime: it needs no_such_package" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--engine steam", f"--engine is one of {', '.join(ENGINES)}"),
        ("--engine onnxruntime --device cuda", "for a GPU use --engine cuda"),
        ("--engine compile --device cuda:1", "for a GPU use --engine cuda"),
        ("--engine cuda --device cpu", "use --engine onnxruntime"),
        ("--engine onnxruntime --precision bf16", "computes in float32"),
    ],
)
def test_engines_that_cannot_be_are_refused_at_once(line, message, folder, tmp_path, cli):
    done = cli("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling", *line.split())
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "c.h5").exists()


# --- batches ---------------------------------------------------------------------------------


class Stub(ProcessorEngine):
    """An engine whose batches cost a fixed time and a time an image, in memory for `room` images.

    Its feature of an image is the image's first pixel.
    """

    device = "cpu"

    def __init__(
        self, name="stub", fixed=0.0, each=0.0, room=10**9, error=MemoryError, start=8, largest=64
    ):
        self.name = name
        self.fixed, self.each, self.room, self.error = fixed, each, room, error
        self.batch_size, self.max_batch_size = start, largest
        self.clock, self.sizes = 0.0, []

    def run(self, pixels):
        self.sizes.append(len(pixels))
        if len(pixels) > self.room:
            raise self.error
        self.clock += self.fixed + self.each * len(pixels)
        return [pixels[:, 0, 0, :1].astype(np.float32)]


def through(stub, count, monkeypatch):
    """Pass so many images in batches of the size asked for; what came out, in order."""
    monkeypatch.setattr("time.perf_counter", lambda: stub.clock)
    batches = BatchRunner(EngineSelector("eager", "float32", lambda _: stub, print))
    pixels = noise(count, 2)
    found, start = [], 0
    while start < count:
        found.append(batches.run(pixels[start : start + batches.batch_size])[0])
        start += len(found[-1])
    assert np.array_equal(np.concatenate(found)[:, 0], pixels[:, 0, 0, 0])
    return batches


def test_batches_grow_while_that_pays(monkeypatch):
    # 8: 1.25 an image, 16: 1.125, 32: 1.06, 64: 1.03 - the last step brings less than 5 %.
    stub = Stub(fixed=2.0, each=1.0, largest=512)
    batches = through(stub, 2000, monkeypatch)
    assert sorted(set(stub.sizes[:-1])) == [8, 16, 32, 64]
    assert batches.batch_size == stub.batch_size == 32
    assert through(Stub(each=1.0), 400, monkeypatch).batch_size == 8
    assert through(Stub(fixed=100.0, each=1.0, largest=24), 400, monkeypatch).batch_size == 16


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=["memory", "cuda", "torch on the processor"],
)
def test_batches_shrink_where_memory_ends(error, monkeypatch):
    stub = Stub(fixed=100.0, each=1.0, room=5, error=error)
    batches = through(stub, 300, monkeypatch)
    assert batches.batch_size == 4
    assert stub.sizes[:3] == [8, 4, 4]
    assert max(stub.sizes[1:]) == 4  # and they do not grow again
    stub = Stub(fixed=100.0, each=1.0, room=20, error=error)
    assert through(stub, 300, monkeypatch).batch_size == 16  # grown into it, and back


def test_an_image_that_does_not_fit_is_an_error(monkeypatch):
    with pytest.raises(EngineError, match=r"not enough memory on cpu for one image.*--device cpu"):
        through(Stub(room=0), 8, monkeypatch)
    with pytest.raises(RuntimeError, match="something else"):
        through(Stub(room=3, error=RuntimeError("something else")), 8, monkeypatch)


def test_a_run_out_of_memory_loses_no_row(folder, small, tmp_path, monkeypatch):
    from featurize.engines import eager

    run(folder, tmp_path / "plain.h5", backbone=small, layers="head", engine="eager")
    through_torch = eager.EagerEngine.run

    def cramped(engine, pixels):
        if len(pixels) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return through_torch(engine, pixels)

    monkeypatch.setattr("featurize.engines.eager.EagerEngine.run", cramped)
    done = run(folder, tmp_path / "cramped.h5", backbone=small, layers="head")
    assert (done.computed, done.failed) == (70, 0)
    plain, found = FeatureCache(tmp_path / "plain.h5"), FeatureCache(tmp_path / "cramped.h5")
    assert worst(found.features("head"), plain.features("head")) <= ENGINE_RTOL
    assert found.verify() == []


# --- cores -----------------------------------------------------------------------------------


def test_cores_are_those_that_may_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cpu, "CPU_ROOT", tmp_path / "cpus")
    monkeypatch.setattr(cgroups, "CGROUP_ROOT", tmp_path / "groups")
    assert (cpu.usable_cores(), cpu.physical_cores()) == (8, 8)
    for number in range(8):  # two logical cores each
        topology = tmp_path / "cpus" / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number // 2},{number // 2 + 32}\n")
    assert (cpu.usable_cores(), cpu.physical_cores()) == (8, 4)
    (tmp_path / "groups").mkdir()
    for limit, expected in (("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "groups" / "cpu.max").write_text(limit + "\n")
        assert cpu.physical_cores() == expected
    assert cpu.usable_cores() == 1


# --- on a GPU --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
def test_cuda_agrees_with_eager(precision, small):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    engine = open_engine(small, EVERY_POOL, name="cuda", precision=precision)
    eager = open_engine(small, EVERY_POOL, name="eager", device="cuda")
    for count in (engine.batch_size, engine.batch_size // 3, 1):
        pixels = noise(count, 32)
        for layer, one, other in zip(
            EVERY_POOL, engine.run(pixels), eager.run(pixels), strict=True
        ):
            limit = ENGINE_RTOL if precision == "float32" else 5e-2
            assert worst(one, other) <= limit, (layer, count)


@pytest.mark.gpu
def test_a_run_by_cuda_is_a_run(folder, small, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    done = run(folder, tmp_path / "c.h5", backbone=small, layers="second:none", engine="cuda")
    assert (done.computed, done.engine) == (70, "cuda")
    run(folder, tmp_path / "d.h5", backbone=small, layers="second:none", device="cpu")
    left, right = FeatureCache(tmp_path / "c.h5"), FeatureCache(tmp_path / "d.h5")
    name = "second@none"
    assert worst(left.features(name), right.features(name)) <= 1e-4


def test_the_engine_cuda_wants_a_gpu(folder, small, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(CallError, match="no CUDA device here"):
        run(folder, tmp_path / "c.h5", backbone=small, layers="head", engine="cuda")


# --- --decode fast ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_photos(photos, tmp_path_factory) -> Path:
    """The photographs enlarged to 12 megapixels, as a camera would compress them."""
    folder = tmp_path_factory.mktemp("large")
    for path in sorted(photos.rglob("*.jpg"))[::2]:
        with Image.open(path) as image:
            large = image.resize((4000, 3000), Image.Resampling.BICUBIC)
        large.save(folder / f"{path.parent.name}-{path.name}", quality=90)
    return folder


@pytest.mark.long
def test_fast_decoding_keeps_the_features(large_photos, squeezenet_weights, tmp_path):
    options = {"backbone": "squeezenet1_1", "weights": str(squeezenet_weights)}
    exact = run(large_photos, tmp_path / "exact.h5", **options, layers="auto")
    assert exact.bound == "decode"
    assert "With --decode fast these images decode " in exact.verdict
    fast = run(large_photos, tmp_path / "fast.h5", **options, layers="auto", decode="fast")
    assert "--decode fast" not in fast.verdict
    one, other = FeatureCache(tmp_path / "exact.h5"), FeatureCache(tmp_path / "fast.h5")
    for layer, info in one.layers.items():
        a, b = one.features(layer), other.features(layer)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() >= 0.995, layer
        assert info.fingerprint != other.layers[layer].fingerprint


def test_small_images_are_promised_nothing(folder, tmp_path, toy):
    assert "--decode fast" not in run(folder, tmp_path / "c.h5", backbone=toy, layers="0").verdict


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is asked, on Linux alone")
def test_a_batch_does_not_fetch_its_memory_anew():
    """A batch finds the pages of the one before; by itself glibc fetches all of them again."""
    code = """
import resource
from statistics import median

import numpy as np
from featurize import load_backbone
from featurize.engines.factory import open_engine

backbone = load_backbone("resnet18", frozen_weights=False)
engine = open_engine(backbone, [("layer4", "avg")], name="eager", device="cpu")
pixels = np.zeros((8, 224, 224, 3), np.uint8)
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(9):
    engine.run(pixels)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(int(median(np.diff(faults))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # pages; 12,000 and more otherwise

"""What only a GPU can show of engines and runs; `HEADGRAFT_GPU_TESTS_ON=cpu` rehearses it."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from featurize import FeatureCache, load_backbone, run
from featurize.engines.base import ENGINE_RTOL, REDUCED_RTOLS
from featurize.engines.factory import open_engine

LAYERS = [("stage2", "max"), ("stage3", "none"), ("stage4", "avg")]
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def seedling():
    return load_backbone("seedling")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(300):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{k:03}.png")
    return folder


@pytest.fixture(scope="module")
def expected(seedling, images, tmp_path_factory):
    """The features of a run on the processor."""
    path = tmp_path_factory.mktemp("expected") / "c.h5"
    run(images, path, backbone=seedling, device="cpu", engine="eager")
    return FeatureCache(path).features("stage4")


def draw_pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def worst(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest distance of a row, as a share of its norm."""
    off = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(off.max())


def run_two_in_flight(engine, batches) -> list[list[np.ndarray]]:
    pending, found = [], []
    for pixels in batches:
        own = pixels.copy()
        pending.append(engine.submit(own))
        own[:] = 0  # the caller may
        if len(pending) == 2:
            found.append(pending.pop(0).collect())
    return found + [batch.collect() for batch in pending]


@pytest.mark.parametrize("name", ["eager", "cuda"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
def test_each_precision_is_as_near_as_promised(gpu, seedling, name, precision):
    if gpu == "cpu" and (name == "cuda" or precision in ("tf32", "fp16")):
        pytest.skip("the processor has no such engine or precision")
    engine = open_engine(seedling, LAYERS, name=name, device=gpu, precision=precision)
    reference = open_engine(seedling, LAYERS, name="eager", device="cpu")
    size = min(engine.batch_size, 256)
    batches = [draw_pixels(n, k) for k, n in enumerate((size, size, 1, size, size // 3, 7, size))]
    limit = REDUCED_RTOLS.get(precision, ENGINE_RTOL)
    distances = [
        worst(one, other)
        for pixels, found in zip(batches, run_two_in_flight(engine, batches), strict=True)
        for one, other in zip(found, reference.run(pixels), strict=True)
    ]
    assert max(distances) <= limit
    if precision != "float32":  # nearer than it can be: it was not on
        assert max(distances) > ENGINE_RTOL


def test_graphs_are_replayed(gpu, seedling):
    if gpu == "cpu":
        pytest.skip("the processor has no graphs")
    engine = open_engine(seedling, LAYERS, name="cuda", device=gpu)
    pixels = draw_pixels(engine.batch_size, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(5):
            engine.run(pixels)
    launches = sum(e.count for e in profile.key_averages() if "cudaGraphLaunch" in e.key)
    assert launches >= 5


def test_a_backbone_serves_gpu_and_processor_in_turn(gpu, seedling):
    pixels = draw_pixels(9, 0)
    engines = [open_engine(seedling, LAYERS, device=device) for device in (gpu, "cpu", gpu)]
    found = [engine.run(pixels) for engine in engines]
    assert [engine.device for engine in engines] == [gpu, "cpu", gpu]
    for one, other, again in zip(*found, strict=True):
        assert worst(one, other) <= ENGINE_RTOL
        assert worst(again, other) <= ENGINE_RTOL
    assert {p.device.type for p in seedling.cut(LAYERS).parameters()} == {"cpu"}


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_a_run_with_little_memory_ends_with_every_row(
    gpu, seedling, images, expected, engine, tmp_path
):
    if gpu != "cpu":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(gpu).total_memory
        allowed = torch.cuda.memory_reserved(gpu) + (
            96 << 20
        )  # other tests' engines may still live
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    try:
        done = run(images, tmp_path / "c.h5", backbone=seedling, device=gpu, engine=engine)
    finally:
        if gpu != "cpu":
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert (done.computed, done.failed) == (300, 0)
    assert worst(FeatureCache(tmp_path / "c.h5").features("stage4"), expected) <= 1e-4


def test_a_run_in_a_thread_of_its_own(gpu, seedling, images, expected, tmp_path):
    engine = "eager" if gpu == "cpu" else "cuda"
    options = {"backbone": seedling, "device": gpu, "engine": engine}
    thread = threading.Thread(target=run, args=(images, tmp_path / "c.h5"), kwargs=options)
    thread.start()
    thread.join()
    assert worst(FeatureCache(tmp_path / "c.h5").features("stage4"), expected) <= 1e-4


def test_processor_and_gpu_make_one_cache(gpu, seedling, images, expected, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    for path in sorted(images.iterdir())[:150]:
        (half / path.name).write_bytes(path.read_bytes())
    run(half, tmp_path / "c.h5", backbone=seedling, device="cpu")
    for path in sorted(images.iterdir())[150:]:
        (half / path.name).write_bytes(path.read_bytes())
    done = run(half, tmp_path / "c.h5", backbone=seedling, device=gpu)
    assert done.computed == 150
    assert worst(FeatureCache(tmp_path / "c.h5").features("stage4"), expected) <= 1e-4

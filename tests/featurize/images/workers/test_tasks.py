"""Tasks of several images: pixels in shared memory, and what one image does to the others."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize import FeatureCache, run
from featurize.errors import ImageUnreadableError
from featurize.images import decoding, reasons
from featurize.images.preprocess import Preprocess
from featurize.images.workers import worker as worker_module
from featurize.images.workers.pool import DecoderPool
from featurize.images.workers.task_memory import (
    MAX_TASK_IMAGES,
    TaskMemory,
    count_task_images,
    open_shared_memory,
)

PREPROCESS = Preprocess(64, 56, mean=(0.5,) * 3, std=(0.25,) * 3)
KILLER, SLOW, LIAR = b"killer", b"slow", b"liar"
# In the child: some contents end it, wait, or are given a reason that there is not.
CHILD = """
import os, time
from featurize.images import decoding
from featurize.images.workers import child
through, decode = decoding.decode_image, child._decode
def decode_image(data, recipe):
    if data == b"killer":
        os.kill(os.getpid(), 9)
    if data == b"slow":
        time.sleep(1000)
    return through(data, recipe)
decoding.decode_image = decode_image
child._decode = lambda data, *rest: 200 if data == b"liar" else decode(data, *rest)
worker_main("""


def make_file(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pool(monkeypatch):
    code = worker_module.WORKER_CODE.replace("\nworker_main(", CHILD)
    monkeypatch.setattr(worker_module, "WORKER_CODE", code)
    made = DecoderPool(PREPROCESS)
    made.use_processes()
    yield made
    made.close()


def check(decoded, task) -> list[int]:
    """Hold pixels to those of a thread; the reasons of the others, by their place."""
    failed = []
    for place, (found, data) in enumerate(zip(decoded, task, strict=True)):
        if isinstance(found, ImageUnreadableError):
            failed.append((place, found.reason))
        else:
            np.testing.assert_array_equal(found, decoding.decode_image(data, PREPROCESS))
    return failed


def test_a_task_has_the_pixels_of_its_images(pool):
    assert pool.max_task_images == MAX_TASK_IMAGES
    task = [make_file(number) for number in range(MAX_TASK_IMAGES)]
    first = pool.decode_task(task)
    assert check(first, task) == []
    # They stay when the next task has come.
    assert check(pool.decode_task(task[::-1]), task[::-1]) == []
    assert check(first, task) == []
    assert len(pool._workers) == 1


def test_damaged_images_fail_alone(pool):
    task = [make_file(0), b"no image", make_file(1), make_file(2)[:2000], b"", make_file(3)]
    expected = [(1, reasons.NOT_AN_IMAGE), (3, reasons.DAMAGED), (4, reasons.NOT_AN_IMAGE)]
    assert check(pool.decode_task(task), task) == expected


def test_an_image_that_ends_its_process_costs_itself(pool):
    task = [make_file(0), KILLER, make_file(1), KILLER, make_file(2)]
    expected = [(1, reasons.READ_ERROR), (3, reasons.READ_ERROR)]
    assert check(pool.decode_task(task), task) == expected
    assert check(pool.decode_task(task[:1]), task[:1]) == []
    assert len(pool._workers) == 1


def test_a_process_that_is_killed_in_a_task_keeps_what_it_did(pool):
    task = [make_file(0), make_file(1), SLOW, make_file(2)]
    found = []
    thread = threading.Thread(target=lambda: found.extend(pool.decode_task(task)))
    thread.start()
    deadline = time.monotonic() + 60
    while not (pool._workers and pool._workers[0]._memory.reasons[1] == reasons.OK):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
    thread.join(60)
    assert check(found, task) == [(2, reasons.READ_ERROR)]


def test_a_reason_that_there_is_not_is_not_believed(pool):
    task = [make_file(0), LIAR, make_file(1)]
    assert check(pool.decode_task(task), task) == [(1, reasons.READ_ERROR)]


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted in /proc")
def test_no_pixel_goes_through_a_pipe(pool):
    task = [make_file(number) for number in range(8)]
    pool.decode_task(task)
    (worker,) = pool._workers
    counters = Path(f"/proc/{worker._process.pid}/io")
    before = counters.read_text()
    for _ in range(4):
        pool.decode_task(task)
    written = [
        int(text.partition("wchar: ")[2].split()[0]) for text in (before, counters.read_text())
    ]
    assert written[1] - written[0] == 4  # a byte for each task


def test_large_pixels_make_small_tasks():
    assert count_task_images(224) == MAX_TASK_IMAGES
    assert count_task_images(1024) == 5
    assert count_task_images(4096) == 1


def test_shared_memory_is_shared_and_has_no_name():
    fd = open_shared_memory(8)
    one, other = TaskMemory(8, fd), TaskMemory(8, fd)
    os.close(fd)
    one.pixels[3], one.reasons[3] = 7, 2
    assert other.pixels[3].tolist() == np.full((8, 8, 3), 7).tolist()
    assert other.reasons[3] == 2
    assert not list(Path("/dev/shm").glob("headgraft*")) if Path("/dev/shm").exists() else True


@pytest.mark.long
@pytest.mark.usefixtures("in_processes")
def test_a_run_with_killers_has_all_other_rows(draw, toy, tmp_path, monkeypatch):
    folder = draw(tmp_path / "images", [f"{number:03}.png" for number in range(90)])
    run(folder, tmp_path / "all.h5", backbone=toy, layers="2")
    for number in (10, 11, 50):
        (folder / f"{number:03}.png").write_bytes(KILLER)
    code = worker_module.WORKER_CODE.replace("\nworker_main(", CHILD)
    monkeypatch.setattr(worker_module, "WORKER_CODE", code)
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="2")
    assert (done.computed, done.failed) == (87, 3)
    cache, whole = FeatureCache(tmp_path / "c.h5"), FeatureCache(tmp_path / "all.h5")
    assert sorted(cache.failures) == ["010.png", "011.png", "050.png"]
    kept = [number for number in range(90) if number not in (10, 11, 50)]
    (layer,) = cache.layers
    ours, theirs = cache.features(layer, rows=kept), whole.features(layer, rows=kept)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "c.h5.working").exists()


ENDLESS = """
import sys, time
from featurize.images.preprocess import Preprocess
from featurize.images.workers.pool import DecoderPool
pool = DecoderPool(Preprocess(64, 56, mean=(0.5,) * 3, std=(0.25,) * 3))
pool.use_processes()
pool.decode_task([b"no image"])
print(pool._workers[0]._process.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
def test_nothing_is_left_of_a_process_that_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline, "the decoding process outlived its parent"
        time.sleep(0.05)

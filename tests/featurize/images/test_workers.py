"""Decoding beside the threads, in processes: the same pixels, the same reasons, nobody left."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize import FeatureCache, run
from featurize.errors import FeaturizeError, ImageUnreadableError
from featurize.images import decoding as image_decoding
from featurize.images import reasons
from featurize.images.preprocess import Preprocess
from featurize.images.workers import worker as workers
from featurize.images.workers.pool import DecoderPool, decode_in_process

PREPROCESS = Preprocess(resize=64, crop=56, mean=(0.5,) * 3, std=(0.25,) * 3)
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def photo(seed: int = 0, form: str = "JPEG") -> bytes:
    """A file of a megabyte: more than a pipe holds."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (700, 900, 3), np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def decode(pool: DecoderPool, data: bytes) -> np.ndarray:
    """Decode one image."""
    (decoded,) = pool.decode_task([data])
    if isinstance(decoded, ImageUnreadableError):
        raise decoded
    return decoded


def children() -> set[int]:
    """Processes that this one has started and that are still there."""
    return _children_of(os.getpid())


@pytest.fixture
def apart():
    """Decoders that use processes."""
    made = DecoderPool(PREPROCESS)
    made.use_processes_if_worth("cuda", 16, 1_000_000)
    yield made
    made.close()


def test_pixels_are_the_same_to_the_bit(apart):
    data = [photo(k, form) for k in range(3) for form in ("JPEG", "PNG", "BMP")]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(partial(decode, apart), data))
    for pixels, content in zip(found, data, strict=True):
        np.testing.assert_array_equal(pixels, image_decoding.decode_image(content, PREPROCESS))


@pytest.mark.parametrize(
    "data", [b"no image", photo()[:5000], photo(form="PNG")[:5000]], ids=["none", "jpeg", "png"]
)
def test_a_broken_image_has_the_reason_it_has_in_a_thread(data, apart):
    with pytest.raises(ImageUnreadableError) as there:
        decode(apart, data)
    with pytest.raises(ImageUnreadableError) as here:
        image_decoding.decode_image(data, PREPROCESS)
    assert there.value.reason == here.value.reason
    np.testing.assert_array_equal(
        decode(apart, photo()), image_decoding.decode_image(photo(), PREPROCESS)
    )


@needs_proc
def test_an_image_that_takes_its_process_down_costs_itself_alone(apart):
    before = children()
    decode(apart, photo(0))
    (process,) = children() - before
    os.kill(process, signal.SIGKILL)
    with pytest.raises(ImageUnreadableError) as found:
        decode(apart, photo(1))
    assert found.value.reason in reasons.TRANSIENT  # a later run tries it again
    np.testing.assert_array_equal(
        decode(apart, photo(2)), image_decoding.decode_image(photo(2), PREPROCESS)
    )
    apart.close()
    assert children() == before


@needs_proc
@pytest.mark.parametrize(
    ("device", "cores", "left", "processes"),
    [
        ("cuda:0", 16, 1_000_000, 1),
        ("cpu", 16, 1_000_000, 0),  # the network takes the cores
        ("cuda:0", 4, 1_000_000, 0),  # the lock is free most of the time
        ("cuda:0", 16, 2_000, 0),  # done before a process has started
    ],
)
def test_processes_are_for_many_cores_that_feed_a_gpu(device, cores, left, processes):
    before = children()
    made = DecoderPool(PREPROCESS)
    made.use_processes_if_worth(device, cores, left)
    decode(made, photo())
    assert len(children() - before) == processes
    made.close()
    assert children() == before


def test_a_process_that_does_not_start_is_an_error(apart, monkeypatch):
    monkeypatch.setattr(workers, "WORKER_CODE", "raise SystemExit(1)")
    with pytest.raises(FeaturizeError, match="did not start"):
        decode(apart, photo())


@needs_proc
def test_a_run_has_the_same_features_and_leaves_nobody(draw, toy, tmp_path, request):
    draw(tmp_path / "images", [f"{k:02}.png" for k in range(40)])
    run(tmp_path / "images", tmp_path / "threads.h5", backbone=toy, layers="2")
    request.getfixturevalue("in_processes")
    before = children()
    run(tmp_path / "images", tmp_path / "processes.h5", backbone=toy, layers="2")
    assert children() == before
    pair = [FeatureCache(tmp_path / f"{name}.h5").features() for name in ("threads", "processes")]
    np.testing.assert_array_equal(*pair)


STOPPED = """
import signal, sys
from featurize import run
from featurize.errors import RunInterruptedError
from featurize.images.workers.pool import DecoderPool, decode_in_process
from featurize.engines import torch_settings
signal.signal(signal.SIGINT, signal.default_int_handler)
begin, consider = DecoderPool.__init__, DecoderPool.use_processes_if_worth
def begin_so(self, recipe):
    begin(self, recipe)
    consider(self, "cuda", 16, 1_000_000)
DecoderPool.__init__, DecoderPool.use_processes_if_worth = begin_so, lambda *_: None
torch_settings._PIXELS_PER_BATCH = 0  # eight images each
def report(measure):
    if measure.done:
        print("going", flush=True)
try:
    run(sys.argv[1], sys.argv[2], backbone="seedling", engine="eager", report=report)
except RunInterruptedError as error:
    print(error, file=sys.stderr)
    raise SystemExit(3)
"""


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_who_is_stopped_leaves_no_decoder_behind(sign, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(100):
        (folder / f"{k:03}.jpg").write_bytes(photo(k))
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, folder, tmp_path / "c.h5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "going\n"
    decoding = _children_of(process.pid)
    assert decoding
    os.killpg(process.pid, sign)  # as a terminal does
    _, err = process.communicate(timeout=60)
    end = time.monotonic() + 30
    while any(map(_is_there, decoding)):
        assert time.monotonic() < end, "a decoding process is left"
        time.sleep(0.01)
    cache = FeatureCache(tmp_path / "c.h5")
    assert cache.verify() == []
    assert cache.counts["failed"] == 0
    if sign == signal.SIGINT:
        assert process.returncode == 3
        assert "Traceback" not in err
        assert 0 < cache.counts["ok"] < 100


# --- slow images, and those that end their process -----------------------------------------


@pytest.fixture
def child(monkeypatch):
    """Decoding processes do something else: ``child("time.sleep(60)")``."""

    def child(what):
        lines = f"""
import os, signal, time, numpy as np
from featurize.images import decoding
from featurize.system import memory
from featurize.errors import ImageUnreadableError
def decode(data, recipe):
    {what}
    return np.zeros((56, 56, 3), np.uint8)
decoding.decode_image = decode
worker_main("""
        monkeypatch.setattr(
            workers, "WORKER_CODE", workers.WORKER_CODE.replace("\nworker_main(", lines)
        )

    return child


def test_alone_has_the_same_pixels_and_reasons():
    np.testing.assert_array_equal(
        decode_in_process(photo(), PREPROCESS), image_decoding.decode_image(photo(), PREPROCESS)
    )
    with pytest.raises(ImageUnreadableError) as found:
        decode_in_process(photo()[:5000], PREPROCESS)
    assert found.value.reason == reasons.DAMAGED


@pytest.mark.parametrize(
    "what", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGSEGV)", "raise SystemExit"]
)
def test_an_image_that_ends_a_process_of_its_own(what, child):
    child(what)
    with pytest.raises(ImageUnreadableError, match="ended the process") as found:
        decode_in_process(photo(), PREPROCESS)
    assert found.value.reason == reasons.ENDED_PROCESS
    assert found.value.reason not in reasons.TRANSIENT


@pytest.mark.long
def test_an_image_that_never_ends_is_bounded_alone(child):
    child("while True: pass")
    with pytest.raises(ImageUnreadableError) as found:
        decode_in_process(photo(), PREPROCESS, cpu_seconds=1)
    assert found.value.reason == reasons.ENDED_PROCESS
    child("time.sleep(1000)")  # as on a machine that sleeps: nobody's fault
    with pytest.raises(ImageUnreadableError, match="no answer within 1 s") as found:
        decode_in_process(photo(), PREPROCESS, wall_seconds=1)
    assert found.value.reason == reasons.READ_ERROR


@needs_proc
def test_alone_the_system_takes_it_first_and_it_leaves_no_core_file(child):
    child(
        "import resource; "
        'first = open("/proc/self/oom_score_adj").read() == "1000\\n"; '
        "core = resource.getrlimit(resource.RLIMIT_CORE); "
        'raise ImageUnreadableError("", 7 if first and core == (0, 0) else 8)'
    )
    with pytest.raises(ImageUnreadableError) as found:
        decode_in_process(photo(), PREPROCESS)
    assert found.value.reason == 7


def test_a_slow_image_is_not_waited_for_at_the_end(apart, child):
    child("time.sleep(1000)")
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(decode, apart, photo()) for _ in range(3)]
        while len(apart._workers) < 3:
            time.sleep(0.01)
        start = time.monotonic()
        apart.close()
        assert time.monotonic() - start < 5
        for future in waiting:
            with pytest.raises(ImageUnreadableError):
                future.result(timeout=5)
        with pytest.raises(FeaturizeError, match="ended"):
            pool.submit(decode, apart, photo()).result(timeout=60)


def test_large_images_take_turns_between_processes(apart, child, tmp_path):
    log = tmp_path / "log"
    child(
        f"""
    with memory.take_turn(), open({str(log)!r}, "a", buffering=1) as log:
        log.write("in\\n")
        time.sleep(0.05)
        log.write("out\\n")"""
    )
    together = threading.Barrier(3)

    def work(data):
        for _ in range(4):
            decode(apart, data)
            together.wait(timeout=60)  # so that all are at work when the next one begins

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, [photo()] * 3))
    assert log.read_text().split() == ["in", "out"] * 12


ORPHANED = """
import sys, threading
from featurize.images.workers import worker as workers
from featurize.images.workers.pool import DecoderPool
from featurize.images.preprocess import Preprocess
if sys.argv[1] == "decoding":
    line = "import time; decoding.decode_image = lambda *_: (open('asleep', 'w'), time.sleep(1000))"
else:
    line = "import time; time.sleep(1000)"
imports = "from featurize.images import decoding"
workers.WORKER_CODE = workers.WORKER_CODE.replace(
    "\\nworker_main(", f"\\n{imports}; {line}\\nworker_main("
)
preprocess = Preprocess(resize=64, crop=56, mean=(0.5,) * 3, std=(0.25,) * 3)
made = DecoderPool(preprocess)
made.use_processes_if_worth("cuda", 16, 1_000_000)
print("going", flush=True)
made.decode_task([b"image"])
"""


@needs_proc
@pytest.mark.parametrize("when", ["starting", "decoding"])
def test_a_decoder_ends_with_its_parent_whatever_it_does(when, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANED, when], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout.readline() == "going\n"
    while not (decoding := _children_of(process.pid)):
        time.sleep(0.001)
    while when == "decoding" and not (tmp_path / "asleep").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 30
    while any(map(_is_there, decoding)):
        assert time.monotonic() < end, "a decoding process is left"
        time.sleep(0.01)


def _children_of(pid: int) -> set[int]:
    while True:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        try:
            texts = [(task / "children").read_text() for task in tasks]
        except (
            FileNotFoundError
        ):  # a thread has ended meanwhile: its children are another one's now
            continue
        return {int(child) for text in texts for child in text.split()}


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize("mode", ["exact", pytest.param("quick", marks=pytest.mark.long)])
def test_a_process_has_one_thread(mode):
    """There are as many processes as cores: threads beside them would be too many."""
    preprocess = Preprocess(32, 32, mean=(0.5,) * 3, std=(0.25,) * 3, decode=mode)
    pool = DecoderPool(preprocess)
    pool.use_processes()
    try:
        file = io.BytesIO()
        Image.new("RGB", (64, 48)).save(file, "JPEG")
        pool.decode_task([file.getvalue()])
        (worker,) = pool._workers
        status = Path(f"/proc/{worker._process.pid}/status").read_text()
    finally:
        pool.close()
    assert "\nThreads:\t1\n" in status

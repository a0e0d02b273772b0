"""Ctrl-C and SIGTERM end a command within seconds, wherever it is, and keep what is ready."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import featurize
from featurize import FeatureCache
from featurize.images import decoding

LIMIT = 3.0  # seconds, as README promises
BIN = Path(sys.executable).parent

# A command that comes to a certain point, says so, and stays there.
STUCK = """
import os, sys, threading
sys.argv[0] = "featurize"
{prepare}
from featurize.__main__ import main
main()
"""


def started(prepare, *arguments, ignore_sigint=False):
    """A command in a process of its own, as a shell starts it."""

    def as_a_shell_does():
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignore_sigint else signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-c", STUCK.format(prepare=prepare), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_a_shell_does,
    )


def ended(process, number):
    """Send a signal; what the command says, after it ended with exit code 3 in time."""
    start = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    took = time.monotonic() - start
    assert process.returncode == 3, err
    assert took < LIMIT, err
    assert "Traceback" not in err
    return out, err


def said(stream, text):
    """Read lines until one holds `text`."""
    while text not in (line := stream.readline()):
        assert line, f"it ended before it said {text!r}"


# One picture is decoded without end: as bad as one can be.
ENDLESS = """
from featurize.images import decoding
real = decoding.decode_image
def decode(data, recipe):
    if data.startswith(b"endless"):
        print("decoding", flush=True)
        while True: threading.Event().wait(60)
    return real(data, recipe)
decoding.decode_image = decode
"""


@pytest.fixture
def folder(draw, tmp_path):
    folder = draw(tmp_path / "photos", [f"a/{k:02}.png" for k in range(40)])
    (folder / "a" / "07.png").write_bytes(b"endless")
    return folder


@pytest.mark.parametrize(
    ("number", "ignore_sigint"),
    [
        (signal.SIGINT, False),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
    ],
)
def test_while_an_image_decodes_without_end(folder, tmp_path, number, ignore_sigint):
    """The signal ends the run; every other image was decoded, run, and is kept."""
    path = tmp_path / "c.h5"
    arguments = ("run", folder, "-o", path, "--backbone", "seedling", "--json")
    process = started(ENDLESS, *arguments, ignore_sigint=ignore_sigint)
    said(process.stdout, "decoding")
    while not path.exists() or FeatureCache(path).counts["ok"] < 39:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    out, err = ended(process, number)
    assert "The same command goes on from there" in err
    assert json.loads(out)["rows"] == 40
    assert FeatureCache(path).verify() == []
    assert not list(tmp_path.glob("*.working"))


@pytest.mark.slow
def test_while_the_network_runs_without_end(folder, tmp_path):
    prepare = """
from featurize.engines.batching import BatchRunner
def collect(self):
    print("running", flush=True)
    threading.Event().wait()
BatchRunner.collect = collect
"""
    (folder / "a" / "07.png").unlink()
    process = started(prepare, "run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling")
    said(process.stdout, "running")
    _, err = ended(process, signal.SIGTERM)
    assert "stopped; 0 of 39 rows are done" in err


# A stand-in for a GPU: two batches of four are in flight, and the fourth one never ends.
TWO_IN_FLIGHT = """
from featurize.engines.base import ReadyFeatures
from featurize.engines.eager import EagerEngine
from featurize.extraction import setup
class Pending(ReadyFeatures):
    def collect(self):
        Device.n_in_flight -= 1
        Device.n_collected += 1
        if Device.n_collected == 4 and Device.n_in_flight == 1:
            print("two in flight", flush=True)
            threading.Event().wait()
        return self.features
class Device(EagerEngine):
    n_in_flight = n_collected = 0
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.batch_size, self.max_batch_size, self.max_in_flight = 4, 4, 2
    def submit(self, pixels):
        Device.n_in_flight += 1
        return Pending(self.run(pixels))
def open_engine(backbone, layers, **options):
    module = backbone.cut(layers)
    return Device(module, backbone.preprocess, device="cpu", precision="float32")
setup.open_engine = open_engine
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_two_batches_are_in_flight(folder, tmp_path, number):
    """What came before them is kept, they are run by the next command, and no row is another's."""
    (folder / "a" / "07.png").unlink()
    path, plain = tmp_path / "c.h5", tmp_path / "plain.h5"
    process = started(TWO_IN_FLIGHT, "run", folder, "-o", path, "--backbone", "seedling")
    said(process.stdout, "two in flight")
    _, err = ended(process, number)
    assert "stopped; 12 of 39 rows are done" in err
    done = featurize.run(folder, path, backbone="seedling")
    assert (done.computed, done.reused) == (27, 12)
    featurize.run(folder, plain, backbone="seedling")
    ours, theirs = FeatureCache(path), FeatureCache(plain)
    assert ours.verify() == []
    (layer,) = theirs.layers
    np.testing.assert_allclose(ours.features(layer), theirs.features(layer), rtol=1e-3, atol=1e-4)


def test_where_the_interrupt_is_swallowed(folder, tmp_path):
    """In a destructor Python drops it: then it is raised again."""
    prepare = """
from featurize.sources import folder as folder_source
class Swallows:
    def __del__(self):
        print("swallowing", flush=True)
        import time
        time.sleep(0.4)
def find(*_, **__):
    Swallows()
    while True: pass
folder_source.list_images = find
"""
    process = started(prepare, "run", folder, "-o", tmp_path / "c.h5")
    said(process.stdout, "swallowing")
    _, err = ended(process, signal.SIGINT)
    assert "stopped" in err


@pytest.mark.long
def test_where_the_main_thread_hears_nothing(folder, tmp_path):
    """In a call that does not return to Python the watching thread ends the process."""
    prepare = """
import ctypes
from featurize.sources import folder as folder_source
def find(*_, **__):
    print("deaf", flush=True)
    while True: ctypes.CDLL(None).usleep(60_000_000)
    # A signal ends the sleep, but Python's handler waits until the loop's next instruction.
import signal
signal.pthread_sigmask  # the handler cannot run: all exceptions of the loop are dropped
def deaf(*_, **__):
    while True:
        try: find()
        except BaseException: pass
folder_source.list_images = deaf
"""
    process = started(prepare, "run", folder, "-o", tmp_path / "c.h5")
    said(process.stdout, "deaf")
    _, err = ended(process, signal.SIGTERM)
    assert "what was finished is kept" in err


def test_inside_a_fork(folder, tmp_path):
    """An interrupt in a hook of `fork` would be swallowed; caches are looked at in a fork."""
    path = tmp_path / "c.h5"
    (folder / "a" / "07.png").unlink()
    assert featurize.run(folder, path, backbone="seedling").rows == 39
    prepare = """
import signal
hooks = []
def before():
    if not hooks:
        hooks.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
os.register_at_fork(before=before)
"""
    process = started(prepare, "run", folder, "-o", path)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "ignored" in err) == (3, False), err


def test_while_nobody_reads_what_it_says(folder, tmp_path):
    """Its output waits for a reader, with a lock that whoever flushes would wait for too."""
    prepare = """
from featurize.sources import folder as folder_source
def find(*_, **__):
    print("full", file=sys.stderr, flush=True)
    while True: print("x" * 1000)
folder_source.list_images = find
"""
    process = started(prepare, "run", folder, "-o", tmp_path / "c.h5")
    said(process.stderr, "full")
    time.sleep(0.5)  # the pipe is full by then
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 3
    assert time.monotonic() - start < LIMIT
    process.communicate()


@pytest.mark.parametrize("verb", [["--help"], ["info", "missing.h5"]])
def test_what_had_ended_keeps_its_exit_code(verb):
    done = subprocess.run([BIN / "featurize", *verb], capture_output=True, text=True)
    assert done.returncode == (0 if verb == ["--help"] else 2)


@pytest.mark.long
def test_one_slow_image_holds_up_nobody(draw, toy, tmp_path, monkeypatch):
    """It is finished when all others are: it waits for them."""
    folder = draw(tmp_path / "photos", [f"{k:03}.png" for k in range(200)])
    slow, path = (folder / "003.png").read_bytes(), tmp_path / "c.h5"
    real, waited = decoding.decode_image, []

    def decode(data, recipe):
        if data == slow:
            start = time.monotonic()
            while not path.exists() or FeatureCache(path).counts["ok"] < 199:
                assert time.monotonic() - start < 30
                time.sleep(0.05)
            waited.append(True)
        return real(data, recipe)

    monkeypatch.setattr(decoding, "decode_image", decode)
    done = featurize.run(folder, path, backbone=toy, layers="0")
    assert (done.computed, waited) == (200, [True])


def test_a_program_that_imports_it_keeps_its_signals():
    code = (
        "import signal\n"
        "watched = signal.SIGINT, signal.SIGTERM\n"
        "before = [signal.getsignal(sign) for sign in watched]\n"
        "import featurize, classify\n"
        "from featurize import FeatureCache, run\n"
        "assert [signal.getsignal(sign) for sign in watched] == before\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_an_image_that_ends_the_process_is_named_by_the_next_run(draw, tmp_path):
    """The first run dies at it, as for want of memory; the next one tries it alone."""
    folder, path = draw(tmp_path / "photos", [f"{k:02}.png" for k in range(8)]), tmp_path / "c.h5"
    (folder / "04.png").write_bytes(b"bomb")
    module = tmp_path / "door" / "sitecustomize.py"
    module.parent.mkdir()
    module.write_text(
        "import os, signal, sys, importlib.abc\n"
        "def arm(images):\n"
        "    real = images.decode_image\n"
        "    def decode(data, recipe):\n"
        "        if data == b'bomb': os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return real(data, recipe)\n"
        "    images.decode_image = decode\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name != 'featurize.images.workers.child': return None\n"
        "        sys.meta_path.remove(self)\n"
        "        from featurize.images import decoding\n"
        "        arm(decoding)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(module.parent)}
    call = [BIN / "featurize", "run", folder, "-o", path, "--backbone", "seedling", "--json"]

    def run():
        return subprocess.run(call, env=environment, capture_output=True, text=True)

    assert run().returncode == -signal.SIGKILL
    assert (tmp_path / "c.h5.working").exists()
    done = run()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failures"] == {"04.png": "ended the process that decoded it"}
    assert not (tmp_path / "c.h5.working").exists()
    again = json.loads(run().stdout)
    assert (again["computed"], again["failed"]) == (0, 1)  # it is the image's fault: not tried
    cache = FeatureCache(path)
    assert np.flatnonzero(cache.status == 2).tolist() == [4]

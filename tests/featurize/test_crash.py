"""Kills and power cuts: after any of them the cache is valid, and a rerun does only the rest."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest

import featurize
from featurize import FeatureCache
from featurize.cache import writer
from featurize.cache.format import FAILED, MARKED

NAMES = [f"{k // 10}/{k:02}.png" for k in range(24)]
BIG = 64  # a write of so many bytes is also cut in half


# What was recorded, and what has to hold at every instant of it


class Record:
    """What is right for the images of a folder, before and after a change of them.

    Attributes
    ----------
    sound : features of every content there was, by digest and layer
    earlier, now : digest of each image, before the change and after it
    layers : what the run under test is to leave
    """

    def __init__(self, folder, backbone, layers, every="0:max,2"):
        self.folder, self.backbone, self.every = folder, backbone, every
        self.layers = layers.replace(":", "@").split(",")
        self.now, self.sound = {}, {}
        self.events, self.disk, self.had_one = [], None, False

    def run(self, path, layers):
        return featurize.run(self.folder, path, backbone=self.backbone, layers=layers)

    def learn(self, scratch):
        """Take in the images as they stand: an unbroken run elsewhere says what is right."""
        scratch.mkdir()
        self.run(scratch / "c.h5", self.every)
        truth = FeatureCache(scratch / "c.h5")
        digests = [digest.tobytes() for digest in truth.column("sha256")]
        for row in np.flatnonzero(truth.status == MARKED).tolist():
            self.sound[digests[row]] = {n: truth.features(n, [row])[0] for n in truth.layers}
        self.earlier = self.now
        self.now = dict(zip(truth.paths, digests, strict=True))
        self.failing = {truth.paths[row] for row in np.flatnonzero(truth.status == FAILED)}

    @property
    def whole(self):
        """The marked rows of a finished cache."""
        return {name: digest for name, digest in self.now.items() if name not in self.failing}

    @property
    def unchanged(self):
        return {name for name, digest in self.now.items() if self.earlier.get(name) == digest}

    def marked(self, path):
        """The marked rows of a cache, each of them right: digests by image."""
        cache = FeatureCache(path)
        assert cache.verify() == []
        rows, sha256 = np.flatnonzero(cache.status == MARKED).tolist(), cache.column("sha256")
        found = {cache.paths[row]: sha256[row].tobytes() for row in rows}
        for name, digest in found.items():
            assert digest in (self.now.get(name), self.earlier.get(name)), f"{name}: of another"
        for layer in cache.layers if rows else ():
            right = np.stack([self.sound[digest][layer] for digest in found.values()])
            np.testing.assert_allclose(cache.features(layer, rows), right, rtol=0, atol=1e-5)
        assert set(cache.failures) <= self.failing
        return found

    def pending(self, folder):
        """How many images a run that finds this folder has to compute."""
        at_hand = set()
        for name in ("c.h5", "c.h5.part"):
            if (folder / name).exists():
                cache = FeatureCache(folder / name)
                found = self.marked(folder / name)
                if set(self.layers) <= set(cache.layers):
                    grown = name == "c.h5.part" or cache.paths != sorted(self.now)
                    at_hand |= {d for n, d in found.items() if grown or self.now[n] == d}
        return len(set(self.whole.values()) - at_hand)

    def rerun(self, folder):
        """Run again from the state of a folder: only what is pending, and all is right."""
        pending = self.pending(folder)
        done = self.run(folder / "c.h5", ",".join(self.layers).replace("@", ":"))
        assert done.computed == pending
        assert list(FeatureCache(folder / "c.h5").layers) == self.layers
        assert self.marked(folder / "c.h5") == self.whole
        assert {path.name for path in folder.glob("c.h5*")} == {"c.h5", "c.h5.lock"}


def make(folder, draw):
    return "", "0:max,2"


def change(folder, draw):
    draw(folder, [*NAMES[3:9], NAMES[20]], seed=1)
    shutil.copy2(folder / NAMES[12], folder / NAMES[13])
    (folder / NAMES[14]).write_bytes(b"no image")
    os.utime(folder / NAMES[15], ns=(0, 0))
    return "2", "2"


def swap(folder, draw):
    """Contents wander: two are swapped, two become the same."""
    (folder / NAMES[2]).rename(folder / "aside")
    (folder / NAMES[17]).rename(folder / NAMES[2])
    (folder / "aside").rename(folder / NAMES[17])
    draw(folder, [NAMES[5]], seed=1)
    shutil.copy2(folder / NAMES[5], folder / NAMES[19])  # no younger: not looked at again
    return "2", "2"


def new_layer(folder, draw):
    return "2", "0:max,2"


def new_images(folder, draw):
    draw(folder, [f"new/{k}.png" for k in range(10)], seed=1)
    (folder / NAMES[2]).unlink()
    (folder / NAMES[7]).rename(folder / "2" / "renamed.png")
    draw(folder, [NAMES[9]], seed=2)
    return "2", "2"


GROWING = (new_layer, new_images)


@pytest.fixture(
    params=[
        swap,
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (change, make, *GROWING)),
    ],
    ids=lambda kind: kind.__name__,
)
def record(request, toy, draw, tape, tmp_path, monkeypatch):
    """One kind of run, recorded write by write; its `disk` stands at the beginning."""
    folder, path = draw(tmp_path / "images", NAMES), tmp_path / "c.h5"
    (folder / "0" / "bad.png").write_bytes(b"no image")
    shutil.copy(folder / NAMES[1], folder / "2" / "copy.png")
    record = Record(folder, toy, "2")
    record.learn(tmp_path / "before")
    if request.param is not make:
        record.run(path, "2")
    _, layers = request.param(folder, draw)
    record.learn(tmp_path / "after")
    record.layers = layers.replace(":", "@").split(",")
    with monkeypatch.context() as often:
        often.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)  # batches of 8
        often.setattr(writer, "SYNC_INTERVAL_SECONDS", 0)
        recorder = tape()
        record.run(path, layers)
    record.events, record.disk = list(recorder.events), recorder.before
    record.had_one = "c.h5" in record.disk.names
    monkeypatch.undo()  # the tape ends here
    return record


def halves(events):
    """Each event; a big write in two."""
    for event in events:
        if event.kind == "write" and len(event.data) >= BIG:
            half = len(event.data) // 2
            yield replace(event, data=event.data[:half])
            yield replace(event, data=event.data[half:], offset=event.offset + half)
        else:
            yield event


def put(folder, files):
    """Make a folder hold just these files."""
    for path in folder.glob("c.h5*"):
        path.unlink()
    for name, data in files.items():
        if name.startswith("c.h5"):
            (folder / name).write_bytes(data)


@pytest.fixture
def state(tmp_path):
    """A folder to rebuild states in, which sees the same images."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "images").symlink_to(tmp_path / "images")
    return folder


def check(record, state, files, kept):
    """A state is valid; `kept` are images whose marks must not be lost."""
    put(state, files)
    found = {}
    for name in ("c.h5", "c.h5.part", "c.h5.part.old"):
        if name in files:
            found[name] = record.marked(state / name)
    assert kept <= found.get("c.h5", {}).keys()
    assert "c.h5" in files or not record.had_one
    return found


@pytest.mark.long
def test_a_kill_after_any_write(record, state):
    disk, kept, last = record.disk, set(), None
    reruns = 0
    for k, event in enumerate(halves(record.events)):
        disk.apply(event)
        files = {n: data for n, data in disk.now().items() if not n.endswith((".lock", ".tmp"))}
        if files == last:
            continue
        last = files
        found = check(record, state, files, kept)
        kept |= found.get("c.h5", {}).keys() & record.unchanged
        if k % 5 == 0:
            record.rerun(state)
            reruns += 1
    assert set(found) == {"c.h5"}
    assert len(kept) == len(record.unchanged - record.failing)
    record.rerun(state)
    assert reruns


KEPT = {
    "none": lambda k, n: False,
    "all": lambda k, n: True,
    "even": lambda k, n: k % 2 == 0,
    "odd": lambda k, n: k % 2,
    "last": lambda k, n: k == n - 1,
    "first half": lambda k, n: 2 * k < n,
    "second half": lambda k, n: 2 * k >= n,
    "at random": lambda k, n: zlib.crc32(b"%d of %d" % (k, n)) % 2,
}


# Those that are slow take half a minute each.
@pytest.mark.parametrize(
    "record",
    [swap, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (change, make, *GROWING))],
    indirect=True,
    ids=lambda kind: kind.__name__,
)
def test_a_power_cut_after_any_write(record, state):
    disk, seen, reruns = record.disk, set(), 0
    for event in halves(record.events):
        disk.apply(event)
        put(state, {n: disk.safe[file] for n, file in disk.safe_names.items()})
        safe = record.marked(state / "c.h5").keys() if (state / "c.h5").exists() else set()
        kept = safe & record.unchanged
        for pattern in KEPT.values():
            for files in disk.after_power_cut(pattern):
                files = {n: d for n, d in files.items() if not n.endswith((".lock", ".tmp"))}
                key = hash(tuple(sorted(files.items())))
                if key in seen:
                    continue
                seen.add(key)
                check(record, state, files, kept)
                if len(seen) % 23 == 0:
                    record.rerun(state)
                    reruns += 1
    assert len(seen) > 20
    assert reruns


# Real kills of a real process

SERVER = """
import json, os, signal, sys
import torch
import featurize.__main__, featurize.cli.app
from featurize.backbones import backbone
from featurize.cache import writer
from featurize.extraction import run
from featurize.engines import torch_settings

torch.set_num_threads(1)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if order["often"]:
            writer.SYNC_INTERVAL_SECONDS, torch_settings._PIXELS_PER_BATCH = 0.01, 0
        # As a shell starts it: whatever the test's own process blocks or ignores.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = ["featurize", *order["arguments"]]
        code = 70
        try:
            featurize.__main__.main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    for line in sys.stdin:
        if line == "wait\\n":
            print(os.waitpid(child, 0)[1], flush=True)
            break
        kind = os.WEXITED | os.WNOHANG | os.WNOWAIT
        print(int(os.waitid(os.P_PID, child, kind) is None), flush=True)
"""


class Featurize:
    """Starts the command, without the seconds that its imports take, and may end it."""

    def __init__(self, folder):
        self.log = folder / "log"
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, line):
        print(line, file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def __call__(self, *arguments, often=True, when=None, sign=signal.SIGKILL):
        """Run it to its end, or until ``when(alive)`` returns: its exit status, or -signal."""
        words = ["run", *map(str, arguments), "--backbone", "seedling", "--device", "cpu"]
        child = self.ask(json.dumps({"arguments": words, "log": str(self.log), "often": often}))
        if when is not None:
            when(lambda: self.ask("alive"))
            os.kill(child, sign)  # nobody has waited for it: the number is still its own
        return os.waitstatus_to_exitcode(self.ask("wait"))

    def end(self):
        self.server.stdin.close()
        self.server.stdout.close()
        assert self.server.wait() == 0


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    call = Featurize(tmp_path_factory.mktemp("log"))
    yield call
    call.end()


def seedling(folder):
    record = Record(folder, "seedling", "stem:max,stage4", every="stem:max,stage4")
    record.learn(folder.parent / "truth")
    record.earlier = record.now
    return record


def sleeper(seconds):
    return lambda alive: time.sleep(seconds)


def standing(record, folder):
    """The caches that stand in a folder, each right: their marked rows by name."""
    return {
        name: record.marked(folder / name)
        for name in ("c.h5", "c.h5.part")
        if (folder / name).exists()
    }


@pytest.mark.slow
def test_kills_at_random_instants(call, draw, tmp_path):
    record = seedling(draw(tmp_path / "images", [f"{k:03}.png" for k in range(200)]))
    rng, path = np.random.default_rng(0), tmp_path / "c.h5"
    started = time.monotonic()
    assert call(record.folder, "-o", tmp_path / "whole.h5", "--layers", "stem:max,stage4") == 0
    seconds = time.monotonic() - started
    marks = 0
    for layers in ["stage4"] * 3 + ["stem:max,stage4"] * 3:
        until = rng.uniform(0, seconds)
        status = call(record.folder, "-o", path, "--layers", layers, when=sleeper(until))
        assert status in (-signal.SIGKILL, 0)
        found = standing(record, tmp_path)
        assert len(found.get("c.h5", ())) >= marks
        marks = len(found.get("c.h5", ()))
    record.rerun(tmp_path)


@pytest.mark.parametrize(
    "sign", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_stop_keeps_and_marks_what_is_done(call, draw, tmp_path, sign):
    # A batch is eight of them: most are still to come when the first is seen to be marked.
    record = seedling(draw(tmp_path / "images", [f"{k:04}.png" for k in range(1200)]))
    path = tmp_path / "c.h5"

    def some_marked(alive):
        while alive() and not path.exists():
            pass
        cache = FeatureCache(path)  # opened once: each opening takes a while
        while alive() and not cache.counts["ok"]:
            pass

    words = record.folder, "-o", path, "--layers", "stem:max,stage4"
    assert call(*words, when=some_marked, sign=sign) == 3
    done = len(record.marked(path))
    assert 0 < done < 1200
    said = call.log.read_text()
    assert f"stopped; {done:,} of 1,200 rows are done and kept in {path}" in said
    assert "Traceback" not in said
    assert record.pending(tmp_path) == 1200 - done
    record.rerun(tmp_path)


@pytest.mark.slow
def test_a_hundred_kills(call, draw, tmp_path, request):
    """On CIFAR's images where they are at hand: making, going on, growing by layers and images."""
    folder = tmp_path / "images"
    if os.environ.get("HEADGRAFT_REAL"):
        source = request.getfixturevalue("cifar10") / "train"
        for label in ("airplane", "ship"):
            (folder / label).mkdir(parents=True)
            for image in sorted((source / label).iterdir())[:800]:
                shutil.copy(image, folder / label)
    else:
        draw(folder, [f"{label}/{k:04}.png" for label in ("airplane", "ship") for k in range(800)])
    (folder / "ship").rename(tmp_path / "later")
    path, starts = tmp_path / "c.h5", {"make": {}}
    assert call(folder, "-o", path, "--layers", "stem:max,stage4", often=False) == 0
    starts["images"] = {"c.h5": path.read_bytes()}
    path.unlink()
    (tmp_path / "later").rename(folder / "ship")
    assert call(folder, "-o", path, "--layers", "stage4", often=False) == 0
    starts["layer"] = {"c.h5": path.read_bytes()}
    path.unlink()
    record, rng, seconds = seedling(folder), np.random.default_rng(0), {}
    words = folder, "-o", path, "--layers", "stem:max,stage4"
    for name, files in starts.items():
        put(tmp_path, files)
        started = time.monotonic()
        assert call(*words) == 0
        seconds[name] = time.monotonic() - started
    kills = 0
    while kills < 100:
        name = str(rng.choice([*starts]))
        put(tmp_path, starts[name])
        kept = {}
        for _ in range(3):  # a run that is killed, then goes on and is killed again
            share = rng.choice([0.2, 1])  # many of them early, while the file is laid out
            status = call(*words, when=sleeper(share * rng.uniform(0, seconds[name])))
            assert status in (-signal.SIGKILL, 0)
            kills += status != 0
            found = standing(record, tmp_path)
            for cache, marks in kept.items():
                assert marks <= (found.get(cache) or found["c.h5"]).keys()
            kept = {cache: marks.keys() for cache, marks in found.items()}
            assert name == "make" or "c.h5" in found
        if rng.random() < 0.3:
            record.rerun(tmp_path)
    record.rerun(tmp_path)

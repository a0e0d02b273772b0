"""Writing a cache: one writer at a time, a full disk, a sync that fails, the order of it all."""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest

import featurize
from featurize import FeatureCache
from featurize.cache import writer
from featurize.cache.format import MARKED, PENDING
from featurize.cache.layout import read_layout
from featurize.cache.lock import WriteLock
from featurize.cache.writer import CacheWriter
from featurize.errors import CacheBusyError, DiskFullError
from featurize.files import hash_bytes

NAMES = [f"{k // 10}/{k:02}.png" for k in range(40)]


@pytest.fixture
def often(monkeypatch):
    """Batches of 8, a sync after each."""
    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    monkeypatch.setattr(writer, "SYNC_INTERVAL_SECONDS", 0)


@pytest.fixture
def photos(draw, tmp_path):
    return draw(tmp_path / "photos", NAMES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c.h5"


@pytest.fixture
def truth(toy, tmp_path_factory):
    """Whether a cache is sound, and its marked rows are those of an unbroken run elsewhere."""

    def truth(path, photos):
        fresh = tmp_path_factory.mktemp("fresh") / "c.h5"
        here = FeatureCache(path)
        layers = ",".join(info.layer for info in here.layers.values())
        featurize.run(photos, fresh, backbone=toy, layers=layers)
        there = FeatureCache(fresh)
        rows = np.flatnonzero(here.status == MARKED)
        assert here.verify() == []
        assert here.paths == there.paths
        assert np.array_equal(here.column("sha256")[rows], there.column("sha256")[rows])
        for name in here.layers:
            found = here.features(name, rows), there.features(name, rows)
            np.testing.assert_allclose(*found, rtol=0, atol=1e-5)
        return len(rows)

    return truth


# The lock

HOLD = """
import sys
from pathlib import Path
from featurize.cache.lock import WriteLock
with WriteLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(cache):
    """Another process that holds the lock of `cache`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, cache],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_at_once(cache, small, holder, photos, command):
    done = command("featurize", "run", photos, "-o", cache, "--backbone", "seedling")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: another process is writing to {cache}; wait for it, or give another -o"
    ]
    assert cache.read_bytes() == small


def test_readers_and_dry_runs_do_not_wait(cache, holder, cli):
    assert cli("info", cache).exit_code == 0
    assert cli("verify", cache).exit_code == 0
    assert FeatureCache(cache).features("layer4", [0]).shape == (1, 4)


def test_a_killed_writer_holds_no_lock(cache, holder):
    with pytest.raises(CacheBusyError):
        WriteLock(cache).__enter__()
    holder.kill()
    holder.wait()
    with WriteLock(cache):
        assert FeatureCache(cache).counts["ok"] == 3


def test_the_lock_outlives_a_growth(photos, path, toy, draw):
    featurize.run(photos, path, backbone=toy, layers="2")
    refused = []

    def second(_):
        if not refused:
            with pytest.raises(CacheBusyError):
                WriteLock(path).__enter__()
            refused.append(True)

    draw(photos, ["new.png"], seed=1)
    featurize.run(photos, path, backbone=toy, report=second)
    assert refused


def test_a_call_that_is_refused_gives_the_lock_back(photos, path, toy):
    for _ in range(2):
        with pytest.raises(featurize.FeaturizeError, match="nonsense"):
            featurize.run(photos, path, backbone=toy, layers="nonsense")
    with WriteLock(path):
        pass


# A full disk

LIMITED = """
import os, resource, sys
from pathlib import Path
import numpy as np
from featurize.cache import builder
from featurize.errors import DiskFullError
from featurize.cache.format import Extractor, LayerInfo
from featurize.images.preprocess import Preprocess

path, full = Path(sys.argv[1]), 0
preprocess = Preprocess(resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)
extractor = Extractor("toy", "V1", "5" * 64, preprocess, "float32", {})
info = LayerInfo("layer4", "avg", 512, "<f4", (512, 7, 7), "6" * 64)
names = [f"{k:03}.jpg" for k in range(200)]
zeros = np.zeros(200, np.int64)
for limit in (2048, 4096, 10_000, 30_000, 200_000, 400_000, 417_792):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        builder.allocate_cache(path, extractor, [info], names, zeros, zeros, root="")
    except DiskFullError as error:
        assert str(path) in str(error), error
        assert os.listdir(path.parent) == [], limit
        full += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert full == 7, full
builder.allocate_cache(path, extractor, [info], names, zeros, zeros, root="")
print(path.stat().st_size)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_no_room_to_lay_it_out(tmp_path):
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, tmp_path / "disk" / "c.h5"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 417_792


def test_too_little_room_is_said_before_anything_is_written(photos, path, toy, monkeypatch, tape):
    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    recorder = tape()
    with pytest.raises(
        DiskFullError, match=r"needs .* kB but 1\.0 kB are free on its disk; free some"
    ):
        featurize.run(photos, path, backbone=toy, layers="2")
    assert recorder.events == []
    assert not path.exists()


def test_no_room_to_grow_leaves_the_cache(photos, path, toy, monkeypatch, truth):
    featurize.run(photos, path, backbone=toy, layers="2")
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(DiskFullError):
            featurize.run(photos, path, backbone=toy, layers="0")
    assert path.read_bytes() == before
    assert set(os.listdir(path.parent)) == {"photos", "c.h5", "c.h5.lock"}
    assert featurize.run(photos, path, backbone=toy, layers="0").computed == 40
    assert truth(path, photos) == 40


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.999])
def test_a_disk_that_fills_up(photos, path, toy, often, monkeypatch, truth, share):
    """In bytes, as disks do: in how many writes a run writes them is not the same each time."""
    real, used, room = os.pwrite, [0], [np.inf]

    def pwrite(fd, data, offset):
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".working"):
            return real(fd, data, offset)  # an aid beside the cache; the rows are what counts
        if used[0] >= room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        half = max(1, len(data) // 2)  # as it may
        written = real(fd, data[: min(half, room[0] - used[0])], offset)
        used[0] += written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        featurize.run(photos, path.with_name("whole.h5"), backbone=toy, layers="2")
        used, room = [0], [int(share * used[0])]
        with pytest.raises(DiskFullError, match=r"no room to write .*c\.h5: .*; free some space"):
            featurize.run(photos, path, backbone=toy, layers="2")
    assert not path.with_name("c.h5.tmp").exists()
    marked = truth(path, photos) if path.exists() else 0
    assert marked < 40
    assert featurize.run(photos, path, backbone=toy, layers="2").computed == 40 - marked
    assert truth(path, photos) == 40


# A sync that fails


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("failing", range(4))
def test_a_failed_sync_marks_nothing(
    photos, path, toy, draw, often, tape, monkeypatch, failing, change
):
    """Linux tells of a lost write once; the next sync of the same file succeeds."""
    if change:
        featurize.run(photos, path, backbone=toy, layers="2")
        draw(photos, NAMES[:30], seed=1)
    recorder = tape()
    real, count = writer._fdatasync, [0]

    def sync(fd):
        count[0] += 1
        if count[0] == failing + 1:
            recorder.add("failed sync", file=recorder.of(fd))
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(writer, "_fdatasync", sync)
    with pytest.raises(OSError, match="Input/output error"):
        featurize.run(photos, path, backbone=toy, layers="2")
    in_order(recorder, path)


# The order


def in_order(recorder, path):
    """Check each write: marks come after a sync of their rows, rows after a sync of unmarking.

    What a failed sync should have covered may be lost, so it can never be marked.
    """
    extents = read_layout(path).extents
    file = recorder.number(path.stat().st_ino)
    ours = [event for event in recorder.events if event.file == file]
    begun = []
    if any(event.kind == "reserve" for event in ours):  # laid out here: until its first sync
        begun = [k for k, event in enumerate(ours) if event.kind == "sync"]
    status = extents["images/status"]
    before = recorder.before.files.get(file)
    marks = before[status.offset : status.offset + status.shape[0]] if before else bytes(999)
    marks, unsynced, lost, unmarked = bytearray(marks), set(), set(), set()
    rows_marked = 0
    for event in ours[begun[0] + 1 :] if begun else ours:
        if event.kind == "sync":
            unsynced.clear()
            unmarked.clear()
        elif event.kind == "failed sync":
            lost |= unsynced
        elif event.kind == "write":
            (name, extent), *more = [
                (name, extent)
                for name, extent in extents.items()
                if 0 <= event.offset - extent.offset < extent.row_bytes * extent.shape[0]
            ]
            assert not more
            start = event.offset - extent.offset
            first = start // extent.row_bytes
            last = (start + len(event.data) - 1) // extent.row_bytes
            rows = set(range(first, last + 1))
            assert last < extent.shape[0]
            if name == "images/status":
                for row, mark in zip(sorted(rows), event.data, strict=True):
                    if mark == PENDING:
                        unmarked.add(row)
                    else:
                        assert row not in unsynced, f"row {row} is marked before it is synced"
                        assert row not in lost, f"row {row} is marked though its sync failed"
                        rows_marked += 1
                    marks[row] = mark
            elif name not in ("images/size", "images/mtime_ns"):
                unsynced |= rows
                lost -= rows
                assert not unmarked & rows, "written before its unmarking is synced"
                assert not any(marks[row] for row in rows), "written while marked"
    return rows_marked


def test_the_order_of_a_run(photos, path, toy, often, draw, tape):
    (photos / "bad.png").write_bytes(b"no image")
    shutil.copy(photos / NAMES[0], photos / "copy.png")
    recorder = tape()
    featurize.run(photos, path, backbone=toy, layers="0,2")
    assert in_order(recorder, path) == 42


def test_the_order_of_a_change(photos, path, toy, often, draw, tape):
    featurize.run(photos, path, backbone=toy, layers="2")
    draw(photos, NAMES[5:25], seed=1)
    shutil.copy(photos / NAMES[0], photos / NAMES[26])
    (photos / NAMES[30]).write_bytes(b"no more")
    os.utime(photos / NAMES[35], ns=(0, 0))
    recorder = tape()
    featurize.run(photos, path, backbone=toy)
    assert in_order(recorder, path) == 22


@pytest.mark.parametrize("layers", [None, "0"])
def test_the_order_of_a_growth(photos, path, toy, often, draw, tape, layers):
    featurize.run(photos, path, backbone=toy, layers="2")
    draw(photos, ["new.png", *NAMES[:3]], seed=1)
    recorder = tape()
    featurize.run(photos, path, backbone=toy, layers=layers)
    assert in_order(recorder, path) == 41


# What is computed again


@pytest.mark.parametrize("stopped", [False, True])
def test_images_changed_to_the_same_content(photos, path, toy, draw, truth, often, stopped):
    """The copies wait for the row that computes their content, not for what it held before."""
    featurize.run(photos, path, backbone=toy, layers="2")
    changed = NAMES[3], NAMES[7], NAMES[35]
    sound = {name: {hash_bytes((photos / name).read_bytes())} for name in changed}
    draw(photos, changed[:1], seed=1)
    for name in changed[1:]:
        shutil.copy(photos / changed[0], photos / name)
    for name in changed:
        sound[name].add(hash_bytes((photos / name).read_bytes()))

    def stop(measure):
        if stopped and measure.done:
            raise KeyboardInterrupt

    with pytest.raises(featurize.FeaturizeError) if stopped else nullcontext():
        featurize.run(photos, path, backbone=toy, report=stop)
    found = FeatureCache(path)
    for name in changed:
        row = found.row_of[name]
        if found.status[row] == MARKED:
            assert found.column("sha256")[row].tobytes() in sound[name], name
    done = featurize.run(photos, path, backbone=toy)
    assert stopped or (done.computed, done.reused) == (0, 40)
    assert truth(path, photos) == 40


def test_a_writer_reads_back_what_it_wrote(cache, fill):
    with CacheWriter(cache) as into:
        values = fill(into, [5, 0])
        for name, written in values.items():
            assert np.array_equal(into.read_rows(f"features/{name}", np.array([5, 0])), written)

"""A toy world for these tests: small pictures, network and caches, and a recorder of writes."""

import ctypes
import os
import signal
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from featurize.cache import builder, writer
from featurize.cache.format import Extractor, LayerInfo
from featurize.cache.layout import read_layout
from featurize.fingerprint import compute_fingerprint
from featurize.images.preprocess import Preprocess
from featurize.images.workers.pool import DecoderPool

RECIPE = {
    **{"resize": 8, "crop": 8, "interpolation": "bilinear", "decode": "exact"},
    **{"mean": [0.5] * 3, "std": [0.25] * 3},
}
PATHS = ("a/1.png", "a/2.png", "b/3.png", "b/ö.png", "c/4.png", "c/5.png")


def age(path, seconds=10):
    """Let a file be some seconds older than it is, at a time that no other one has."""
    then = time.time_ns() - seconds * 10**9
    os.utime(path, ns=(then, then))


@pytest.fixture(scope="session")
def draw():
    """Write small pictures of noise, all different: ``draw(folder, names, seed)``."""

    def draw(folder, names, seed=0):
        # Some seconds old, as images are: younger ones are looked at again by the next run.
        rng = np.random.default_rng(seed)
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
            age(path)
        return folder

    return draw


@pytest.fixture(scope="session")
def toy():
    """A network of microseconds, with two places to cut: 0 and 2."""
    import torch

    from featurize import Backbone

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3, stride=2)
    )
    return Backbone(network, name="toy", preprocess=RECIPE)


@pytest.fixture(scope="session")
def allocate():
    """Lay out a cache without any network: ``allocate(path, layers, paths)``."""
    extractor = Extractor(
        "toy", "V1", "5" * 64, Preprocess.from_dict(RECIPE), "float32", {"torch": "2"}
    )

    def info(name, dim, dtype="<f4"):
        layer, _, pool = name.partition("@")
        found = LayerInfo(layer, pool or "avg", dim, dtype, (dim, 2, 2), "")
        decided = compute_fingerprint(
            **{key: getattr(extractor, key) for key in ("backbone", "weights_sha256")},
            **{key: getattr(extractor, key) for key in ("preprocess", "precision")},
            **{key: getattr(found, key) for key in ("layer", "pool", "dtype")},
        )
        return replace(found, fingerprint=decided)

    def allocate(path, layers=(("layer3@max", 8), ("layer4", 4)), paths=PATHS):
        stat = np.arange(len(paths)) + 100, np.arange(len(paths)) + 10**18
        infos = [info(*layer) for layer in layers]
        builder.allocate_cache(path, extractor, infos, paths, *stat, root="/photos")
        return path

    return allocate


@pytest.fixture(scope="session")
def fill():
    """Fill rows of a cache through an open writer with numbers that name row and layer."""

    def fill(into, rows, shift=0):
        rows = np.asarray(rows)
        features = {
            name: (rows[:, None] + np.arange(info.dim) / 64 + shift).astype(info.dtype)
            for name, info in into.layout.layers.items()
        }
        digests = np.repeat(((rows + shift) % 255 + 1).astype(np.uint8)[:, None], 32, 1)  # never 0
        into.fill(rows, features, digests, rows + 100, rows + 10**18)
        return features

    return fill


@pytest.fixture(scope="session")
def small(allocate, fill, tmp_path_factory):
    """The bytes of a cache with three marked rows (0 to 2), two failed and one pending."""
    path = allocate(tmp_path_factory.mktemp("small") / "photos.h5")
    with writer.CacheWriter(path) as into:
        fill(into, [0, 1, 2])
        digests = np.array([[7] * 32, [0] * 32], np.uint8)
        into.record_failures(np.array([3, 4]), np.array([3, 7]), digests, np.zeros(2), np.zeros(2))
    return path.read_bytes()


@pytest.fixture
def cache(small, tmp_path):
    path = tmp_path / "photos.h5"
    path.write_bytes(small)
    return path


@pytest.fixture
def in_processes(monkeypatch):
    """Runs decode in processes, as on a machine of many cores with a GPU."""
    begin, consider = DecoderPool.__init__, DecoderPool.use_processes_if_worth

    def begin_so(self, recipe):
        begin(self, recipe)
        consider(self, "cuda", 16, 1_000_000)

    monkeypatch.setattr(DecoderPool, "__init__", begin_so)
    monkeypatch.setattr(
        DecoderPool, "use_processes_if_worth", lambda self, device, cores, left: None
    )


@pytest.fixture
def cli():
    """Call the command in this process: a result with exit_code, stdout and stderr."""
    from featurize.cli.app import app

    before = signal.getsignal(signal.SIGTERM)
    yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def opened():
    """Which files of a folder are opened inside a ``with opened(folder) as names:``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        pytest.skip("needs Linux's inotify")

    @contextmanager
    def opened(folder):
        names = []
        fd = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(fd, os.fsencode(folder), 0x20)  # IN_OPEN
        try:
            yield names
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            data = b""
        finally:
            os.close(fd)
        while data:
            size = struct.unpack_from("iIII", data)[3]
            names.append(data[16 : 16 + size].rstrip(b"\0").decode())
            data = data[16 + size :]

    return opened


@dataclass(frozen=True)
class Event:
    """One change to a folder: create, write, size, sync; rename, unlink, sync folder."""

    kind: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    name: str = ""
    new_name: str = ""


class Tape:
    """Records every change that a writer makes to the files of one folder, in order."""

    def __init__(self, folder):
        self.folder = folder
        self.events = []
        self.lock = threading.RLock()
        self._numbers = {}
        names = [path.name for path in folder.iterdir() if path.is_file()]
        self.before = Disk(
            {name: self.number((folder / name).stat().st_ino) for name in names},
            {self.number(p.stat().st_ino): p.read_bytes() for p in map(folder.joinpath, names)},
        )

    def number(self, inode, new=False):
        if new or inode not in self._numbers:
            self._numbers[inode] = len(self._numbers) + len(self.events)
        return self._numbers[inode]

    def of(self, fd):
        return self.number(os.fstat(fd).st_ino)

    def here(self, path):
        return Path(path).parent == self.folder

    def add(self, kind, **what):
        self.events.append(Event(kind, **what))

    def writes(self, path):
        """Writes and syncs to a cache: names of the arrays touched, and ``sync``."""
        extents = read_layout(path).extents
        file = self.number(path.stat().st_ino)
        found = []
        for event in self.events:
            if event.file == file and event.kind == "sync":
                found.append("sync")
            elif event.file == file and event.kind == "write":
                found += [
                    name
                    for name, extent in extents.items()
                    if 0 <= event.offset - extent.offset < extent.row_bytes * extent.shape[0]
                ]
        return found


class Disk:
    """A folder's files as they stand after some events; also what a power cut may leave.

    A file's writes are safe after a sync of it, names after a sync of the folder. Of the
    others any may be lost and any kept.
    """

    def __init__(self, names, files):
        self.names, self.files = dict(names), {k: bytearray(v) for k, v in files.items()}
        self.safe_names = dict(names)
        self.safe = {k: bytes(v) for k, v in files.items()}
        self.unsafe = {}

    def apply(self, event):
        if event.kind == "create":
            self.files[event.file], self.safe[event.file] = bytearray(), b""
            self.names[event.name] = event.file
        elif event.kind in ("write", "size"):
            _change(self.files[event.file], event)
            self.unsafe.setdefault(event.file, []).append(event)
        elif event.kind == "sync":
            self.safe[event.file] = bytes(self.files[event.file])
            self.unsafe.pop(event.file, None)
        elif event.kind == "rename":
            self.names[event.new_name] = self.names.pop(event.name)
        elif event.kind == "unlink":
            self.names.pop(event.name, None)
        elif event.kind == "sync folder":
            self.safe_names = dict(self.names)

    def now(self):
        """Files by name, after a kill here."""
        return {name: bytes(self.files[file]) for name, file in self.names.items()}

    def after_power_cut(self, keep):
        """Files by name, each with those unsynced writes for which ``keep(k, n)`` is true."""
        for names in (self.safe_names, self.names):
            found = {}
            for name, file in names.items():
                content = bytearray(self.safe[file])
                unsafe = self.unsafe.get(file, [])
                for k, event in enumerate(unsafe):
                    if keep(k, len(unsafe)):
                        _change(content, event)
                found[name] = bytes(content)
            yield found


def _change(content, event):
    end = event.offset + len(event.data)
    if event.kind == "size":
        del content[event.offset :]
    content.extend(bytes(max(0, end - len(content))))
    if event.data:
        content[event.offset : end] = event.data


@pytest.fixture
def tape(monkeypatch, tmp_path):
    """Start a recorder: ``tape(folder)``; it runs to the end of the test or to ``undo()``."""
    names = ("open", "ftruncate", "pwrite", "fsync", "replace", "unlink")
    real = {name: getattr(os, name) for name in names}
    fallocate = getattr(os, "posix_fallocate", None)
    sync = writer._fdatasync

    def start(folder=tmp_path):
        tape = Tape(folder)

        def opened(path, flags, *arguments, **options):
            with tape.lock:
                fd = real["open"](path, flags, *arguments, **options)
                if flags & os.O_CREAT and flags & os.O_EXCL and tape.here(path):
                    number = tape.number(os.fstat(fd).st_ino, new=True)
                    tape.add("create", file=number, name=Path(path).name)
            return fd

        def resized(fd, size):
            with tape.lock:
                real["ftruncate"](fd, size)
                tape.add("size", file=tape.of(fd), offset=size)

        def pwrite(fd, data, offset):
            with tape.lock:
                count = real["pwrite"](fd, data, offset)
                done = bytes(data[:count])
                tape.add("write", file=tape.of(fd), offset=offset, data=done)
            return count

        def synced(call):
            def wrapped(fd):
                with tape.lock:
                    call(fd)
                    inode = os.fstat(fd).st_ino
                    if inode == tape.folder.stat().st_ino:
                        tape.add("sync folder")
                    else:
                        tape.add("sync", file=tape.number(inode))

            return wrapped

        def reserve(fd, offset, size):
            with tape.lock:
                fallocate(fd, offset, size)
                tape.add("reserve", file=tape.of(fd))

        def rename(source, target):
            with tape.lock:
                real["replace"](source, target)
                if tape.here(target):
                    names = Path(source).name, Path(target).name
                    tape.add("rename", name=names[0], new_name=names[1])

        def unlink(path, **options):
            with tape.lock:
                real["unlink"](path, **options)
                if tape.here(path):
                    tape.add("unlink", name=Path(path).name)

        monkeypatch.setattr(os, "open", opened)
        monkeypatch.setattr(os, "ftruncate", resized)
        monkeypatch.setattr(writer, "_fdatasync", synced(sync))
        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "fsync", synced(real["fsync"]))
        monkeypatch.setattr(os, "replace", rename)
        monkeypatch.setattr(os, "unlink", unlink)
        if fallocate:
            monkeypatch.setattr(os, "posix_fallocate", reserve)
        return tape

    return start

"""Caches of parts: images in every kind of source, a network of microseconds, and a reader."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize import FeatureCache
from featurize.cache.parts.index import read_index

from ...conftest import age

N_IMAGES = 60


class Whole:
    """The rows of all parts, in the order of the index; or those of a single file."""

    def __init__(self, path):
        self.files = [path]
        if path.is_dir():
            self.files = [path / part.file for part in read_index(path).parts]
        self.parts = [FeatureCache(file) for file in self.files]
        self.sizes = [part.n_rows for part in self.parts]
        self.paths = [key for part in self.parts for key in part.paths]
        self.status = self.join(lambda part: part.status)
        self.digests = self.join(lambda part: part.column("sha256"))
        self.layers = {name for part in self.parts for name in part.layers}

    def join(self, read):
        return np.concatenate([read(part) for part in self.parts])

    def same_as(self, other):
        """Whether both have the same images, each once, with the same numbers bit for bit."""
        assert self.paths == other.paths
        assert self.layers == other.layers
        assert all(set(part.layers) == self.layers for part in self.parts)
        assert np.array_equal(self.status, other.status)
        assert np.array_equal(self.digests, other.digests)
        assert all(part.verify() == [] for part in self.parts)
        return all(np.array_equal(self.read(name), other.read(name)) for name in self.layers)

    def read(self, layer):
        return self.join(lambda part: part.features(layer, np.flatnonzero(part.status == 1)))


@pytest.fixture
def whole():
    return Whole


def encode(number):
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_folder(root, numbers):
    for k in numbers:
        path = root / f"{k // 10}" / f"{k:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(k))
        age(path)
    return root


def write_shard(path, numbers):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for k in numbers:
            members = {f"{k:04}.png": encode(k), f"{k:04}.cls": str(k % 3).encode()}
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    age(path)
    return path


def write_table(path, numbers):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    images = [{"bytes": encode(k), "path": f"{k}.png"} for k in numbers]
    pq.write_table(pa.table({"image": images, "label": [k % 3 for k in numbers]}), path)
    age(path)
    return path


def write_list(path, folder, numbers):
    lines = ["path,label", *(f"{k // 10}/{k:04}.png,{k % 3}" for k in numbers)]
    write_folder(folder, numbers)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def write():
    """Writers of sources: ``folder``, ``shard``, ``table`` and ``list``."""
    from types import SimpleNamespace

    return SimpleNamespace(
        folder=write_folder, shard=write_shard, table=write_table, list=write_list
    )


@pytest.fixture
def make_source(tmp_path):
    """Write `N_IMAGES` images as a source of a kind; containers have ten each."""

    def make(kind, numbers=range(N_IMAGES)):
        root = tmp_path / kind
        if kind == "folder":
            return write_folder(root, numbers)
        if kind == "list":
            root.mkdir()
            return write_list(root / "images.csv", root, numbers)
        write, suffix = {"shards": (write_shard, "tar"), "tables": (write_table, "parquet")}[kind]
        for start in range(0, len(numbers), 10):
            write(root / f"s-{start:04}.{suffix}", numbers[start : start + 10])
        return root

    return make


WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture
def read_log():
    """Read what workers have logged: lives in order, each a list of events."""

    def read(folder):
        return {
            path.name: [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(folder.glob("*.log"))
        }

    return read

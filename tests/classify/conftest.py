"""A small real world for stage 2: 600 handwritten digits, their pixels as two layers."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from featurize import run
from featurize.cache.builder import allocate_cache
from featurize.cache.format import Extractor, LayerInfo
from featurize.cache.lock import WriteLock
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.fingerprint import compute_fingerprint
from featurize.images.preprocess import Preprocess

if TYPE_CHECKING:
    from classify import FineTuneClassifier

N = 600
RECIPE = {"resize": 8, "crop": 8, "interpolation": "bilinear", "decode": "exact"}
RECIPE |= {"mean": [0.5] * 3, "std": [0.25] * 3}


def write_cache(
    path: Path,
    layers: dict[str, np.ndarray],
    paths: list[str] | None = None,
    *,
    failed: tuple[int, ...] = (),
    pending: tuple[int, ...] = (),
    backbone: str = "pixels",
    preprocess: dict[str, object] | None = None,
    contents: list[str] | None = None,
    root: str = "/images",
) -> FeatureCache:
    """A cache whose rows hold the given features; paths are sorted as the format demands.

    Images of which `contents` says the same have the same bytes; else all differ.
    """
    n = len(next(iter(layers.values())))
    paths = paths or [f"{i:04}.png" for i in range(n)]
    recipe, weights = preprocess or RECIPE, "ab" * 32
    infos = [
        LayerInfo(
            name,
            "avg",
            array.shape[1],
            array.dtype.str,
            (8, 8),
            compute_fingerprint(
                backbone=backbone,
                weights_sha256=weights,
                preprocess=recipe,
                layer=name,
                pool="avg",
                precision="float32",
                dtype=array.dtype.str,
            ),
        )
        for name, array in layers.items()
    ]
    extractor = Extractor(backbone, "none", weights, Preprocess.from_dict(recipe), "float32", {})
    numbers = np.arange(n)
    allocate_cache(path, extractor, infos, paths, numbers, numbers, root=root)
    with WriteLock(path), CacheWriter(path) as writer:
        ok = np.setdiff1d(numbers, [*failed, *pending])
        hashes = np.array([list(sha256(p.encode()).digest()) for p in contents or paths], np.uint8)
        if len(ok):
            features = {name: array[ok] for name, array in layers.items()}
            writer.fill(ok, features, hashes[ok], ok, ok)
        if failed:
            bad = np.array(failed)
            writer.record_failures(bad, np.ones(len(bad), np.uint8), hashes[bad], bad, bad)
    return FeatureCache(path)


def write_table(path: Path, header: str, rows: list[tuple[object, ...]]) -> Path:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Threads that spin for each other make these small fits many times slower."""
    with threadpool_limits(int(os.environ.get("OPENBLAS_NUM_THREADS", 1))):
        yield


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (600, 64) from 0 to 1, and which digit."""
    X, y = load_digits(return_X_y=True)
    return (X[:N] / 16).astype(np.float32), y[:N]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, digits) -> FeatureCache:
    """Layers ``fine`` (64 pixels) and, deepest, ``coarse`` (16 means of 2 x 2 pixels)."""
    pixels, _ = digits
    coarse = pixels.reshape(N, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(N, 16)
    path = tmp_path_factory.mktemp("cache") / "digits.h5"
    return write_cache(path, {"fine": pixels, "coarse": coarse})


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory, cache, digits) -> Path:
    rows = list(zip(cache.paths, digits[1], strict=True))
    return write_table(tmp_path_factory.mktemp("labels") / "digit.csv", "path,label", rows)


@pytest.fixture(scope="session")
def parity(tmp_path_factory: pytest.TempPathFactory, cache, digits) -> Path:
    rows = [(p, "odd" if d % 2 else "even") for p, d in zip(cache.paths, digits[1], strict=True)]
    return write_table(tmp_path_factory.mktemp("labels") / "parity.csv", "path,label", rows)


@pytest.fixture(scope="session")
def make_cache() -> Callable[..., FeatureCache]:
    return write_cache


@pytest.fixture(scope="session")
def make_table() -> Callable[..., Path]:
    return write_table


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The installed command, in a process of its own."""

    def run(*arguments: object, timeout=120, **options) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("classify"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)

    return run


@dataclass(frozen=True)
class Pictured:
    """Some digits as images of three classes, and their cache by the shipped backbone."""

    images: Path
    cache: Path
    paths: list[str]
    labels: list[str]


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory, digits) -> Pictured:
    """Twenty each of 1, 7 and 9; ``stage4``, ``stage3`` whole, and ``stage2`` are cached."""
    home = tmp_path_factory.mktemp("pictured")
    pixels, y = digits
    for digit in (1, 7, 9):
        for k in np.flatnonzero(y == digit)[:20]:
            path = home / "images" / str(digit) / f"{k:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels[k].reshape(8, 8) * 255).astype(np.uint8)).save(path)
    layers = "stage2,stage3:none,stage4"
    run(home / "images", home / "c.h5", backbone="seedling", layers=layers, device="cpu")
    paths = FeatureCache(home / "c.h5").paths
    return Pictured(home / "images", home / "c.h5", paths, [path[0] for path in paths])


@pytest.fixture(scope="session")
def tuner(pictured):
    """An estimator for the pictured digits; with ``maps=True`` it has no images, only the cache."""

    def make(maps: bool = False, **options) -> "FineTuneClassifier":
        from classify import FineTuneClassifier  # with it comes torch

        given = {"epochs": 1, "batch_size": 16, "device": "cpu", "tune": "stage4"}
        given |= {"cache": pictured.cache, "root": "nowhere"} if maps else {"root": pictured.images}
        return FineTuneClassifier(**({"backbone": "seedling"} | given | options))

    return make


@pytest.fixture(scope="session")
def fitted(tuner, pictured):
    """Fit once what several tests look at."""
    found = {}

    def fit_once(**options) -> "FineTuneClassifier":
        key = tuple(sorted(options.items()))
        if key not in found:
            found[key] = tuner(**options).fit(pictured.paths, pictured.labels)
        return found[key]

    return fit_once

"""Features to measure heads on: real ones where there are some, else drawn ones."""

import os
import tarfile
from pathlib import Path

import numpy as np

from classify.data.features import FeatureRows
from classify.data.tasks import make_task
from classify.labels.source_labels import resolve_labels
from featurize import run
from featurize.cache.builder import allocate_cache
from featurize.cache.format import Extractor, LayerInfo
from featurize.cache.lock import WriteLock
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.fingerprint import compute_fingerprint
from featurize.images.preprocess import Preprocess

BUILD = Path(__file__).parents[1] / "build" / "bench"
REAL = Path(os.environ.get("HEADGRAFT_REAL", "/nonexistent"))


def real(name: str) -> Path:
    """One of the archives of real images, as a folder."""
    if not REAL.exists():
        raise SystemExit("HEADGRAFT_REAL is not set: the folder with real weights and images")
    folder = BUILD / "real" / name
    if not folder.exists():
        with tarfile.open(REAL / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder


def drawn_cache(path: Path, rows: int, dim: int, classes: int = 10, seed: int = 0) -> FeatureCache:
    """A cache of `rows` drawn feature vectors around `classes` means, written in blocks."""
    if path.exists():
        return FeatureCache(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    means = 0.3 * rng.standard_normal((classes, dim)).astype(np.float32)
    mixing = rng.standard_normal((dim, dim)).astype(np.float32) / np.sqrt(dim)
    recipe = {"resize": 8, "crop": 8, "interpolation": "bilinear", "decode": "exact",
              "mean": [0.5] * 3, "std": [0.25] * 3}  # fmt: skip
    made = Extractor("drawn", "none", "0" * 64, Preprocess.from_dict(recipe), "float32", {})
    decided = compute_fingerprint(
        backbone="drawn", weights_sha256="0" * 64, preprocess=recipe, layer="drawn", pool="avg",
        precision="float32", dtype="<f4",
    )  # fmt: skip
    layer = LayerInfo("drawn", "avg", dim, "<f4", (dim, 1, 1), decided)
    width, wide = len(str(rows - 1)), len(str(classes - 1))
    digit = np.sort(rng.integers(0, classes, rows))
    paths = [f"{label:0{wide}}/{i:0{width}}.png" for i, label in enumerate(digit)]
    numbers = np.arange(rows)
    allocate_cache(path, made, [layer], paths, numbers, numbers, root="drawn")
    with WriteLock(path), CacheWriter(path) as into:
        for start in range(0, rows, 20_000):
            some = numbers[start : start + 20_000]
            values = rng.standard_normal((len(some), dim)).astype(np.float32) @ mixing
            values = np.maximum(values + means[digit[some]], 0)  # like a layer behind a ReLU
            digests = rng.integers(0, 256, (len(some), 32), dtype=np.uint8)
            into.fill(some, {"drawn": values}, digests, some, some)
            into.flush()
    return FeatureCache(path)


def train_and_test(cache: FeatureCache, layer: str) -> tuple[np.ndarray, ...]:
    """X and y to train on, X and y to test on, by the cache's folders."""
    task = make_task(cache, resolve_labels(cache, None))
    parts = []
    for part in ("train", "test"):
        chosen = np.flatnonzero(task.split == part)
        parts += [
            FeatureRows.from_cache(cache, [layer], task.rows[chosen]).to_array(),
            task.y[chosen],
        ]
    return tuple(parts)


def cifar_cache(path: Path) -> FeatureCache:
    """CIFAR-10's photographs through the embedded backbone."""
    from strategies import cifar

    run(cifar(2000, 300), path, backbone="seedling")
    return FeatureCache(path)


def bench_cache() -> tuple[FeatureCache, str]:
    """20,000 and 3,000 rows of 512 columns: of CIFAR-10 where HEADGRAFT_REAL has it, else drawn."""
    if "HEADGRAFT_REAL" in os.environ:
        cache = cifar_cache(BUILD / "cifar-23k.h5")
    else:
        cache = drawn_cache(BUILD / "drawn-23k.h5", 23_000, 512)
    layer = cache.layer().name
    print(f"{cache.path.name}, layer {layer}: {cache.n_rows:,} rows of {cache.layer().dim}")
    return cache, layer

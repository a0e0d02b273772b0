"""Images with changed bytes: pixels or `ImageUnreadable`, never anything else, and in time."""

import json

import numpy as np
import pytest

from featurize import FeatureCache

from .mutating import mutated
from .sources import sources
from .starting import Starter
from .world import FAILED, MARKED, NETWORK, age, draw

SUFFIXES = ("jpg", "png", "gif", "webp", "tif", "bmp", "ppm")
CODE = """
import json, resource, signal, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import numpy as np
from featurize.errors import ImageUnreadableError
from featurize.images.decoding import decode_image
from featurize.images.preprocess import Preprocess
from tests.behaviour.attack.mutating import mutated
from tests.behaviour.attack.sources import sources

suffix, mode, seed, first, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
preprocess = Preprocess(32, 32, (0.5,) * 3, (0.25,) * 3, decode=mode)
found, other = sources()[suffix], sources(7)[suffix]
told = {"pixels": 0, "refused": 0, "slowest": 0.0}
for number in range(first, first + count):
    rng = np.random.default_rng([seed, number, len(suffix), ord(suffix[0])])
    k = int(rng.integers(len(found)))
    data = mutated(found[k], other[k % len(other)], rng)
    print(json.dumps({"at": number}), flush=True)
    signal.alarm(30)
    began = time.monotonic()
    try:
        pixels = decode_image(data, preprocess)
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
        told["pixels"] += 1
    except ImageUnreadableError as error:
        assert 1 <= error.reason <= 12, error.reason
        told["refused"] += 1
    told["slowest"] = max(told["slowest"], time.monotonic() - began)
signal.alarm(0)
told["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps(told))
"""


def decode_many(start: Starter, suffix, mode, seed, first, count, tmp_path, request) -> dict:
    code = tmp_path / "code.py"
    code.write_text(f"import sys; sys.path.insert(0, {str(request.config.rootpath)!r})\n" + CODE)
    words = (str(code), suffix, mode, seed, first, count)
    done = start(*words, hang=300)
    lines = done.out.splitlines()
    at = json.loads(lines[-1]).get("at") if lines else None
    assert done.code == 0, f"{suffix} number {at} with seed {seed}, {mode}: {done.said[-1500:]}"
    told = json.loads(lines[-1])
    print(suffix, mode, told)
    assert told["pixels"] + told["refused"] == count
    return told


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mutated(start: Starter, suffix, seed, tmp_path, request):
    for mode in ("exact", "fast"):
        decode_many(start, suffix, mode, seed, 0, 100, tmp_path, request)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_mutated(start: Starter, suffix, mode, seed, tmp_path, request):
    told = decode_many(start, suffix, mode, seed, 1000, 1000, tmp_path, request)
    assert told["slowest"] < 20
    assert told["peak MB"] < 2048


def check_neighbours(start: Starter, seed: int, each: int, mode: str, tmp_path) -> None:
    """Sound pictures between mutated ones have the features that they have alone."""
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    for k in range(30):
        draw(alone / f"{k:03} sound.png", k)
        draw(mixed / f"{k:03} sound.png", k)
    for suffix, found in sources().items():
        for number in range(each):
            rng = np.random.default_rng([seed, number, 3])
            path = mixed / f"{rng.integers(30):03} {suffix} {number}.{suffix}"
            path.write_bytes(mutated(found[number % len(found)], found[0], rng))
            age(path)
    caches = []
    for folder in (alone, mixed):
        words = ("run", folder, "-o", tmp_path / f"{folder.name}.h5", *NETWORK, "--decode", mode)
        done = start("featurize", *words, hang=300)
        assert done.code == 0, done.said
        caches.append(FeatureCache(tmp_path / f"{folder.name}.h5"))
    right, cache = caches
    assert cache.verify() == []
    assert set(cache.status.tolist()) <= {MARKED, FAILED}
    rows = [cache.row_of[path] for path in right.paths]
    assert (cache.status[rows] == MARKED).all()
    layer = next(iter(right.layers))
    norm = np.linalg.norm(right.features(layer), axis=1, keepdims=True)
    error = np.abs(cache.features(layer, rows) - right.features(layer))
    assert (error <= 1e-5 * norm).all()


@pytest.mark.long
def test_neighbours_are_unchanged(start: Starter, seed, tmp_path):
    check_neighbours(start, seed, 5, "exact", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_neighbours_of_many_are_unchanged(start: Starter, seed, mode, tmp_path):
    check_neighbours(start, seed, 100, mode, tmp_path)

"""Figures that take minutes: published accuracies again, memory and time for many images."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from classify import CachedFeatures
from featurize import FeatureCache, run

pytestmark = pytest.mark.slow


# --- SqueezeNet on CIFAR-10 ----------------------------------------------------------------

STAGES = [f"features.{n}" for n in (2, 4, 7, 9, 10, 11, 12)]
# Softmax on standardised features with C = 0.01, measured apart from this package: torchvision's
# modules and transforms, scikit-learn's LogisticRegression.
ACCURACY = {"features.4": 0.543, "features.10": 0.701, "features.12": 0.736, "joined": 0.766}


@pytest.fixture(scope="module")
def squeezenet(cifar10, squeezenet_weights, tmp_path_factory):
    """All seven stages of 23,000 images, from one pass."""
    output = tmp_path_factory.mktemp("squeezenet") / "cifar10.h5"
    weights = str(squeezenet_weights)
    done = run(cifar10, output, backbone="squeezenet1_1", weights=weights, layers="auto")
    assert (done.computed, done.failed, done.layers) == (23_000, 0, STAGES)
    print(f"\n{done.seconds:.0f} s, {done.images_per_second:.0f} images/s. {done.verdict}")
    return output


@pytest.mark.parametrize("layer", ACCURACY)
def test_accuracy_of_squeezenet_on_cifar10(squeezenet, layer):
    paths = np.array(FeatureCache(squeezenet).paths)
    part, labels = np.array([path.split("/")[:2] for path in paths]).T
    train, test = part == "train", part == "test"
    assert (train.sum(), test.sum()) == (20_000, 3_000)
    features = CachedFeatures(squeezenet, layer=layer)
    width = features.fit(paths[:1]).transform(paths[:1]).shape[1]
    head = make_pipeline(features, StandardScaler(), LogisticRegression(C=0.01, max_iter=3000))
    with threadpool_limits(1):
        accuracy = head.fit(paths[train], labels[train]).score(paths[test], labels[test])
    print(f"\n{layer}: {accuracy:.4f}, {width} columns")
    assert accuracy == pytest.approx(ACCURACY[layer], abs=0.01)


# --- a great many small images -------------------------------------------------------------

# A network of microseconds, of one's own; the rest is as for any other. What reaches it is large
# enough to show: 50,000 images decoded ahead would be 600 MB.
RUN = """
import sys
import torch
from torch import nn
from featurize import Backbone, run
torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Conv2d(4, 64, 3, stride=4))
recipe = dict(resize=64, crop=64, mean=[0.5] * 3, std=[0.25] * 3)
backbone = Backbone(network, name="small", preprocess=recipe)
done = run(sys.argv[1], sys.argv[2], backbone=backbone, layers="2")
assert done.computed == int(sys.argv[3]), done
print(next(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line))
"""


def bitmap(number: int) -> bytes:
    """A picture of 8 x 8 pixels, another for each number."""
    header = b"BM" + (54 + 192).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + (8).to_bytes(4, "little") * 2
    header += (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24)
    return header + number.to_bytes(3, "little") * 64


def many(folder: Path, count: int) -> Path:
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03}").mkdir(parents=True)
        (folder / f"{number // 1000:03}" / f"{number:06}.bmp").write_bytes(bitmap(number))
    return folder


def run_many(folder: Path, output: Path, count: int) -> int:
    """Embed them in a process of its own: its peak memory in kilobytes."""
    # Not ru_maxrss, which a new process takes over from the one that starts it.
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc to read the peak memory of one process")
    line = [sys.executable, "-c", RUN, str(folder), str(output), str(count)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_does_not_grow_with_the_images(tmp_path):
    few = run_many(many(tmp_path / "few", 2_000), tmp_path / "few.h5", 2_000)
    most = run_many(many(tmp_path / "most", 50_000), tmp_path / "most.h5", 50_000)
    print(f"\n{few / 1000:.0f} MB for 2,000 images, {most / 1000:.0f} MB for 50,000")
    assert most <= 1.2 * few


@pytest.fixture(scope="module")
def hundred_thousand(tmp_path_factory):
    home = tmp_path_factory.mktemp("hundred_thousand")
    run_many(many(home / "images", 100_000), home / "c.h5", 100_000)
    return home


def listing_seconds(folder: Path) -> float:
    """What it takes to see every file's size and time, by the plainest means."""
    start = time.perf_counter()
    count = 0
    for where, _, names in os.walk(folder):
        for name in names:
            count += os.stat(os.path.join(where, name)).st_size > 0
    assert count == 100_000
    return time.perf_counter() - start


@pytest.mark.parametrize("more", [(), ("--layers", "2"), ("--json",)], ids=str)
def test_unchanged_images_are_recognised_in_two_seconds(hundred_thousand, more, tmp_path):
    """The whole command, its start included; torch ends the process if it is imported."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os\nos._exit(99)\n")
    others = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, [str(tmp_path), others]))
    environment = {**os.environ, "PYTHONPATH": path}
    images, cache = hundred_thousand / "images", hundred_thousand / "c.h5"
    command = [str(Path(sys.executable).with_name("featurize")), "run", str(images)]
    before = cache.stat().st_mtime_ns
    beyond = []
    for _ in range(3):  # other programs only ever add to it: the least is what it takes
        listing = listing_seconds(images)
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "-o", str(cache), *more], capture_output=True, text=True, env=environment
        )
        beyond.append(time.perf_counter() - start - listing)
        assert done.returncode == 0, done.stderr
    if "--json" in more:
        found = json.loads(done.stdout)
        assert (found["computed"], found["reused"]) == (0, 100_000)
    else:
        assert "0 computed, 100,000 reused" in done.stdout
    assert cache.stat().st_mtime_ns == before
    print(f"\nlisting {listing:.2f} s, beyond it {', '.join(f'{s:.2f}' for s in beyond)} s")
    assert min(beyond) < 2

"""A whole run beside its bound, the naive script and other packages, on 640 x 480 JPEGs.

The bound: where decoding and the network share the cores, nothing is faster than
1 / (1/decode + 1/engine). Both are measured before and after each run, on the same images. Rates
are of the steady state: between two moments at which as many images wait decoded. The core-
milliseconds an image takes say the same on a machine that others use too: a run is at its bound
where it spends no more of them than decoding and engine alone. The limits: 0.9 of the bound; 2.0,
1.6 and 2.5 times the naive script on ResNet-50, ResNet-18 and SqueezeNet; 1.5 times each other
package, twice img2vec_pytorch and embetter. The last table has 12-megapixel photographs, where
decoding is the bound.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import describe
from networks import NETWORKS, weights_file
from peers import python_of
from photos import megabytes, photos
from spent import core_seconds
from table import Row, show

from featurize import load_backbone, run
from featurize.engines.base import Engine
from featurize.engines.factory import open_engine
from featurize.errors import RunInterruptedError
from featurize.files import hash_bytes
from featurize.images import decoding, reading
from featurize.images.preprocess import DECODE_MODES, Preprocess
from featurize.pipeline.stats import RunStats
from featurize.system import cpu

RIVALS = ("naive", "timm", "img2vec_pytorch", "embetter", "thingsvision")
SLOWER = ("img2vec_pytorch", "embetter")
NAIVE_LIMIT = {"resnet50": 2.0, "resnet18": 1.6, "squeezenet1_1": 2.5}


@dataclass
class Speed:
    """Images a second, and core-seconds an image."""

    rate: float
    each: float


def decode_speed(folder: Path, preprocess: Preprocess, seconds: float) -> Speed:
    """Through reading, hashing and decoding, as a run does it."""
    paths = sorted(folder.rglob("*.jpg"))

    def one(path: Path) -> None:
        if time.perf_counter() < end:
            data = reading.read_image_file(path).data
            hash_bytes(data)
            decoding.decode_image(data, preprocess)
            done.append(1)

    done: list[int] = []
    spent, start = core_seconds(), time.perf_counter()
    end = start + seconds
    with ThreadPoolExecutor(cpu.usable_cores()) as pool:
        list(pool.map(one, paths * 20))
    taken, spent = time.perf_counter() - start, core_seconds() - spent
    return Speed(len(done) / taken, spent / len(done))


def engine_speed(engine: Engine, crop: int, seconds: float) -> Speed:
    pixels = np.random.default_rng(0).integers(0, 256, (32, crop, crop, 3), np.uint8)
    engine.run(pixels)
    spent, start, count = core_seconds(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not count:
        engine.run(pixels)
        count += len(pixels)
    taken, spent = time.perf_counter() - start, core_seconds() - spent
    return Speed(count / taken, spent / count)


class Window:
    """The speed of a run's middle, or of its first seconds; the first two batches left out."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.total = seconds, 0
        self.ends: list[tuple[int, float, float]] = []  # of batches: images, time, core-seconds

    def __call__(self, measure: RunStats) -> None:
        count = measure.images_run
        if not self.ends or count != self.ends[-1][0]:
            self.ends.append((count, time.perf_counter(), core_seconds()))
            self.total = measure.total
        if len(self.ends) > 4 and self.ends[-1][1] - self.ends[2][1] > self.seconds:
            raise KeyboardInterrupt

    @property
    def speed(self) -> Speed:
        # At the end of a run no image is decoded any more: that is not its steady state.
        steady = [end for end in self.ends[2:] if end[0] <= 0.85 * self.total]
        count, taken, spent = (b - a for a, b in zip(steady[0], steady[-1], strict=True))
        return Speed(count / taken, spent / count)


def our_speed(folder: Path, network: str, weights: Path, seconds: float, **options: str) -> Speed:
    window = Window(seconds)
    with tempfile.TemporaryDirectory() as home, suppress(RunInterruptedError):
        run(folder, Path(home) / "c.h5", backbone=network, weights=str(weights), report=window,
            **options)  # fmt: skip
    return window.speed


def rival_speed(
    name: str, network: str, weights: Path, folder: Path, seconds: float
) -> Speed | str:
    """Of another package in its own environment, or why it cannot be run."""
    python = sys.executable if name == "naive" else python_of(name)
    if python is None:
        return "does not install"
    script = Path(__file__).with_name("rivals.py")
    line = [python, script, name, network, weights, folder, seconds]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["?"])[-1]
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def whole_run(network: str, given: argparse.Namespace, folder: Path, **options: str) -> Row:
    """A run beside its bound: medians over the rounds."""
    weights = weights_file(network)
    backbone = load_backbone(network, str(weights), **options)
    preprocess = backbone.preprocess
    layer = [(NETWORKS[network], "avg")]
    engine = open_engine(backbone, layer, name=given.engine, device="cpu")

    def parts() -> tuple[Speed, Speed]:
        decode = decode_speed(folder, preprocess, given.seconds)
        return decode, engine_speed(engine, preprocess.crop, given.seconds)

    rounds, before = [], parts()
    for _ in range(given.rounds):
        ours = our_speed(
            folder, network, weights, given.run_seconds, engine=given.engine, **options
        )
        after = parts()
        decode, alone = (
            Speed((a.rate + b.rate) / 2, (a.each + b.each) / 2)
            for a, b in zip(before, after, strict=True)
        )
        bound = 1 / (1 / decode.rate + 1 / alone.rate)
        rounds.append({
            "decode": decode.rate, "engine": alone.rate, "bound": bound, "ours": ours.rate,
            "ours / bound": ours.rate / bound,
            "core-ms: decode": 1e3 * decode.each, "engine ": 1e3 * alone.each,
            "ours ": 1e3 * ours.each,
            "in core-ms": (decode.each + alone.each) / ours.each,
        })  # fmt: skip
        before = after
    return {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}


def beside_rivals(network: str, given: argparse.Namespace, folder: Path) -> list[Row]:
    """Each rival between two stretches of ours: the machine is not the same all the time."""
    weights, seconds = weights_file(network), given.rival_seconds
    rows = []
    before = our_speed(folder, network, weights, seconds, engine=given.engine)
    for name in filter(None, given.rivals.split(",")):
        limit = NAIVE_LIMIT[network] if name == "naive" else 2.0 if name in SLOWER else 1.5
        row: Row = {"network": network, "beside": name, "limit": limit}
        rival = rival_speed(name, network, weights, folder, seconds)
        if isinstance(rival, str):
            rows.append({**row, "theirs": rival})
            continue
        after = our_speed(folder, network, weights, seconds, engine=given.engine)
        rate, each = (before.rate + after.rate) / 2, (before.each + after.each) / 2
        rows.append({
            **row, "theirs": rival.rate, "ours": rate, "ratio": rate / rival.rate,
            "core-ms: theirs": 1e3 * rival.each, "ours ": 1e3 * each,
            "ratio ": rival.each / each,
        })  # fmt: skip
        before = after
    return rows


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--large", type=int, default=240)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=5.0, help="of a measurement alone")
    options.add_argument("--run-seconds", type=float, default=120.0, help="of a run, at most")
    options.add_argument("--rival-seconds", type=float, default=30.0)
    options.add_argument("--networks", default=",".join(NETWORKS))
    options.add_argument("--rivals", default=",".join(RIVALS))
    options.add_argument("--engine", default="onnxruntime")
    given = options.parse_args()
    print(describe())
    folder = photos(given.images)
    bounds, beside = [], []
    for network in given.networks.split(","):
        bounds.append({"network": network, **whole_run(network, given, folder)})
        beside += beside_rivals(network, given, folder)
    show(f"A run over {given.images:,} JPEGs of 640 x 480, images/s, engine {given.engine}",
         bounds, "The limit: 0.9 of the bound.")  # fmt: skip
    if beside:
        show("Beside the naive script and other packages, images/s", beside,
             "Each in an environment of its own, with the same weights.")  # fmt: skip
    if not given.large:
        return
    rows = []
    for kind, grain in (("grainy", True), ("smooth", False)):
        large = photos(given.large, (4000, 3000), grain=grain)
        exact = None
        for decoder in DECODE_MODES:
            found = whole_run("resnet18", given, large, decode=decoder)
            exact = exact or found["decode"]
            rows.append({"pictures": kind, "MB": megabytes(large), "--decode": decoder, **found,
                         "decoding, x exact": found["decode"] / exact})  # fmt: skip
    show("Photographs of 12 megapixels, ResNet-18, images/s", rows,
         "The limits: fastest decodes 4 times as fast, and runs at 0.9 of its bound.")  # fmt: skip


if __name__ == "__main__":
    main()

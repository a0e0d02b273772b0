"""Engines alone, on pixels that are ready: rate, start-up, and what further layers cost.

The engines take turns, so that a noisy moment hits all of them; medians of the turns. The limits:
every engine agrees with eager to 1e-5; several layers and pools cost at most 5 % more than the
deepest alone on ResNet-50, 15 % on SqueezeNet.
"""

import argparse
import statistics
import time

import numpy as np
from machine import describe
from networks import NETWORKS, weights_file
from table import show

from featurize import load_backbone
from featurize.backbones.families import find_family
from featurize.engines.base import Engine
from featurize.engines.factory import open_engine


def turns(engines: dict[str, Engine], passes: int, count: int | None = None) -> dict[str, float]:
    """Images a second of each engine."""
    crop = 224
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(passes + 1):
        for name, engine in engines.items():
            size = count or engine.batch_size
            pixels = np.random.default_rng(0).integers(0, 256, (size, crop, crop, 3), np.uint8)
            start = time.perf_counter()
            engine.run(pixels)
            if number:  # the first one warms up
                rates[name].append(size / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--passes", type=int, default=7)
    options.add_argument("--networks", default=",".join(NETWORKS))
    options.add_argument("--engines", default="eager,compile,onnxruntime")
    given = options.parse_args()
    print(describe())
    rates, sizes, several = [], [], []
    for network in given.networks.split(","):
        backbone = load_backbone(network, str(weights_file(network)))
        last = NETWORKS[network]
        engines, startup = {}, {}
        for name in given.engines.split(","):
            start = time.perf_counter()
            engines[name] = open_engine(backbone, [(last, "avg")], name=name, device="cpu")
            startup[name] = time.perf_counter() - start
        found = turns(engines, given.passes)
        for name, rate in found.items():
            rates.append({"network": network, "engine": name, "start-up s": startup[name],
                          "images/s": rate, "x eager": rate / found["eager"]})  # fmt: skip
        best = max(found, key=lambda name: found[name])
        for size in (1, 8, 32, 64):
            if engines[best].name != "compile":
                rate = turns({best: engines[best]}, given.passes, size)[best]
                sizes.append({"network": network, "engine": best, "batch": size, "images/s": rate})
        stages = find_family(network).stages
        pairs = [(stage, pool) for stage in stages for pool in ("avg", "max")]
        both = {
            "deepest": engines[best],
            "stages, avg": open_engine(
                backbone, [(s, "avg") for s in stages], name=best, device="cpu"
            ),
            "stages, avg and max": open_engine(backbone, pairs, name=best, device="cpu"),
        }
        found = turns(both, 2 * given.passes)
        several += [
            {"network": network, "engine": best, "layers": name, "images/s": rate,
             "time beside the deepest": found["deepest"] / rate}
            for name, rate in found.items()
        ]  # fmt: skip
    show("Engines on ready pixels", rates, "The limit: eager, in the same run.")
    show("Batch size", sizes)
    show("Several layers and pools from one pass", several,
         "The limit: 1.05 on ResNet-50, 1.15 on SqueezeNet.")  # fmt: skip


if __name__ == "__main__":
    main()

"""Does a cut save what `featurize layers` says? Measured through the engine a run uses.

Prints, for a few cuts of SqueezeNet 1.1 and ResNet-18, the share of the full forward time that
`layers` measures beside the share that the cut network takes: the median of alternating passes.
The limit: the two are equal.
"""

import statistics
import time

import numpy as np
from machine import describe

from featurize import load_backbone
from featurize.backbones.profiling import layer_costs
from featurize.engines.factory import open_engine

CUTS = {
    "squeezenet1_1": ["features.4", "features.7", "features.10", "features.12"],
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
}
PASSES = 9


def main() -> None:
    print(describe())
    for name, cuts in CUTS.items():
        backbone = load_backbone(name, frozen_weights=False)
        printed = {entry.layer: entry.cost for entry in layer_costs(backbone)}
        deepest = list(backbone.layers)[-1]
        engines = {
            cut: open_engine(backbone, [(cut, "avg")], device="cpu") for cut in [deepest, *cuts]
        }
        batch = engines[deepest].batch_size
        pixels = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
        seconds: dict[str, list[float]] = {cut: [] for cut in engines}
        for _ in range(PASSES):  # in turn, so that a noisy moment hits all of them
            for cut, engine in engines.items():
                start = time.perf_counter()
                engine.run(pixels)
                seconds[cut].append(time.perf_counter() - start)
        print(
            f"\n{name:16} {'printed':>8} {'measured':>9} {'saving':>7} {'measured':>9} {'ratio':>6}"
        )
        for cut in cuts:
            measured = statistics.median(
                part / whole for part, whole in zip(seconds[cut], seconds[deepest], strict=True)
            )
            said, saved = 1 - printed[cut], 1 - measured
            ratio = f"{saved / said:.2f}" if said > 0.05 else "-"
            print(
                f"{cut:16} {printed[cut]:8.1%} {measured:9.1%} {said:7.1%} {saved:9.1%} {ratio:>6}"
            )


if __name__ == "__main__":
    main()

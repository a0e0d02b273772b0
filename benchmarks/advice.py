"""How often `classify advise` is right, and sure: few images of a cache, drawn again and again.

    python benchmarks/advice.py photos.h5 --per-class 50 --draws 10
    python benchmarks/advice.py

The first draws so many images of each class (by folder names, training images only) out of a cache
of several layers, and prints the verdict of each draw. The second draws answers of layers that are
equal by construction, and prints how often one is called clearly better than the last: the limit
is 2.5 %, which a single comparison would have.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from machine import describe

from classify import advise
from classify.evaluation.predictions import HeldOutPredictions
from classify.labels.source_labels import resolve_labels
from classify.labels.table import LabelTable
from classify.strategy.depth_profile import measure_depth_profile
from classify.strategy.layer_depths import LayerDepths
from featurize import FeatureCache


def drawn(cache: FeatureCache, per_class: int, seed: int) -> LabelTable:
    whole, rng = resolve_labels(cache, None), np.random.default_rng(seed)
    splits = whole.splits or ["train"] * len(whole)
    members: dict[str, list[str]] = {}
    for path, label, split in zip(whole.paths, whole.labels, splits, strict=True):
        if split == "train":
            members.setdefault(label, []).append(path)
    label_of = {
        str(path): label
        for label, paths in members.items()
        for path in rng.choice(paths, min(per_class, len(paths)), replace=False)
    }
    return LabelTable(f"draw{seed}", "a draw", list(label_of), list(label_of.values()))


def draws(path: Path, per_class: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "cache.h5"  # what is kept of the draws goes away with it
        link.symlink_to(path.absolute())
        cache = FeatureCache(link)
        print("draw  verdict    sure   more images  last   low cut, gain and interval")
        for seed in range(count):
            found = advise(cache, drawn(cache, per_class, seed))
            depth, low = found.measured[0], found.measured[0].lower_cut
            told = "-" if low is None else f"{low.layer} {low.gain.value:+.3f} "
            told += "" if low is None else f"({low.gain.low:+.3f} to {low.gain.high:+.3f})"
            more = "-" if found.more_images is None else f"{found.more_images:,}"
            print(
                f"{seed:4}  {found.similarity:9}  {found.confident!s:5}  {more:>11}  "
                f"{depth.accuracy_by_layer[depth.last_layer].value:.3f}  {told}",
                flush=True,
            )


def equal(layers: int, images: int, count: int) -> float:
    names = [f"layer{i}" for i in range(layers)]
    depths = LayerDepths({name: (i + 1) / layers for i, name in enumerate(names)}, layers, "", "")
    rng, clear = np.random.default_rng(1), []
    for _ in range(count):
        hard = rng.random(images)  # the same images are hard for most layers
        answers = {}
        for name in names:
            right = np.where(rng.random(images) < 0.6, hard, rng.random(images)) < 0.6
            none, truth = np.zeros(images, np.float32), np.zeros(images, np.int64)
            rows, wrong = np.arange(images), (~right).astype(np.int64)
            answers[name] = HeldOutPredictions(rows, truth, wrong, none, none, none, none)
        found = measure_depth_profile(depths, answers, None, np.arange(images), 0)
        clear.append(found.is_clear_gain(found.cut.gain))
    return float(np.mean(clear))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    print(describe())
    if options.cache is not None:
        draws(options.cache, options.images_per_class, options.draws)
        return
    for layers, images in ((7, 200), (20, 200), (7, 1000)):
        share = equal(layers, images, 300)
        print(f"{layers:2} equal layers, {images:5,} images: called different in {share:.1%}")


if __name__ == "__main__":
    main()

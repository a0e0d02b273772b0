"""Fine-tuning: what the start is worth, what cached maps are worth, and where it does not pay.

    python benchmarks/finetuning.py

with SqueezeNet's ImageNet weights on CIFAR-10 at 96 pixels (found through HEADGRAFT_REAL):
1. validation accuracy by epoch, from the cached head and from a random one, same seed;
2. tuning from `features.9` on, from images and from the cached maps that enter it;
3. 20 images a class, five draws: fine-tuned against a linear probe, on the same test images.
"""

import sys
import time

import numpy as np
from machine import describe
from strategies import BUILD, REAL, RECIPE, cifar, extracted

from classify import FineTuneClassifier, finetune, fit
from classify.evaluation.metrics import wilson_interval
from classify.labels.table import LabelTable, labels_from_folders
from featurize import FeatureCache, layer_costs, load_backbone, run
from featurize.backbones.families import parse_layers

NET = {
    "backbone": "squeezenet1_1",
    "weights": str(REAL / "squeezenet1_1-imagenet.safetensors"),
    "preprocess": RECIPE,
}
ENTERING = "features.8:none"


def cached(name: str, folder, layers: str) -> FeatureCache:
    """The features of a folder; made once."""
    import json

    path, recipe = BUILD / f"{name}.h5", BUILD / "preprocess.json"
    recipe.write_text(json.dumps(RECIPE))
    run(folder, path, backbone=NET["backbone"], weights=NET["weights"], layers=layers,
        preprocess=str(recipe))  # fmt: skip
    return FeatureCache(path)


def starts() -> None:
    folder = cifar(500, 200)
    cache = cached("cifar-500", folder, f"last,{ENTERING}")
    print("\nvalidation accuracy by epoch, 500 images a class")
    for name, head in (("cached head", None), ("random head", "random")):
        found = finetune(folder, BUILD / "start.safetensors", cache=cache, init_head=head, epochs=8)
        told = " ".join(f"{epoch['validation']:.3f}" for epoch in found.history)
        print(f"{name:12} {told}   test {found.accuracy:.3f}", flush=True)


def maps() -> None:
    folder = cifar(500, 200)
    cache = cached("cifar-500", folder, f"last,{ENTERING}")
    table = labels_from_folders(cache.paths)
    train = [i for i, part in enumerate(table.splits or ()) if part == "train"]
    paths = np.array(cache.paths, object)[train]
    labels = np.array(table.labels, object)[train]
    held = np.array([i for i, part in enumerate(table.splits or ()) if part == "test"])
    print("\ntuning from features.9 on")
    seconds = {}
    for name, augment, given in (
        ("cropped and flipped", "flips", None),
        ("images", "none", None),
        ("cached maps", "none", cache),
    ):
        model = FineTuneClassifier(
            **NET, root=folder, tune="features.9", augment=augment, cache=given, epochs=3,
            patience=9
        )  # fmt: skip
        model.fit(paths, labels)
        seconds[name] = min(epoch.seconds for epoch in model.history_)
        said = model.predict(np.array(cache.paths, object)[held])
        right = int((said == np.array(table.labels, object)[held]).sum())
        low, high = wilson_interval(right, len(held))
        print(f"{name:20} {seconds[name]:6.1f} s an epoch, test {right / len(held):.3f} "
              f"({low:.3f} to {high:.3f})", flush=True)  # fmt: skip
    maps = seconds.pop("cached maps")
    ratios = " and ".join(f"{taken / maps:.1f} ({name})" for name, taken in seconds.items())
    print(f"an epoch from cached maps is faster by {ratios}; the arithmetic bound is {bound():.1f}")


def bound() -> float:
    """How much faster an epoch from cached maps can be, if convolutions cost what they count.

    Forward once through the frozen part; through the tuned part once, and twice that backward.
    """
    backbone = load_backbone(NET["backbone"], NET["weights"], preprocess=RECIPE)
    share = {cost.layer: cost.macs for cost in layer_costs(backbone)}
    ((last, _),) = parse_layers("last", None, backbone.name)
    front, whole = share["features.8"], share[last]
    return (front + 3 * (whole - front)) / (3 * (whole - front))


def few() -> None:
    source = cifar(500, 200)
    cache = cached("cifar-500", source, f"last,{ENTERING}")
    whole = labels_from_folders(cache.paths)
    print("\n20 images a class, tested on 2,000: accuracy")
    gaps = []
    for draw in range(5):
        rng = np.random.default_rng(draw)
        at = [i for i, part in enumerate(whole.splits or ()) if part == "test"]
        for label in sorted(set(whole.labels)):
            own = [i for i, part in enumerate(whole.splits or ())
                   if part == "train" and whole.labels[i] == label]  # fmt: skip
            at += rng.choice(own, 20, replace=False).tolist()
        table = LabelTable("few", "a draw", [whole.paths[i] for i in at],
                           [whole.labels[i] for i in at],
                           [(whole.splits or [])[i] for i in at])  # fmt: skip
        probe = fit(cache, table)[1]
        tuned = finetune(source, BUILD / "few.safetensors", table, cache=cache)
        gaps.append((tuned.accuracy or 0) - (probe.accuracy or 0))
        print(
            f"draw {draw}: probe {probe.accuracy:.3f}, fine-tuned {tuned.accuracy:.3f}", flush=True
        )
    mean, error = np.mean(gaps), np.std(gaps, ddof=1) / np.sqrt(len(gaps))
    print(f"fine-tuned less probe: {mean:+.3f}, 95 % interval over draws "
          f"{mean - 2.78 * error:+.3f} to {mean + 2.78 * error:+.3f}")  # fmt: skip


def main() -> None:
    extracted("cifar10")
    print(describe())
    started = time.perf_counter()
    for part in (starts, maps, few):
        if len(sys.argv) < 2 or part.__name__ in sys.argv[1:]:
            part()
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

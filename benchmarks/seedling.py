"""The embedded backbone beside random weights, raw pixels and ImageNet's: frozen linear accuracy.

A softmax head on each layer and on all joined. CIFAR-10: all 50,000 training and 10,000 test
images; C by five folds of the training images. Digits: scikit-learn's 1,797, in five folds.
SqueezeNet sees CIFAR-10 at 96 pixels. What is done is kept under build/seedling. The real images
and weights are found through HEADGRAFT_REAL. The limits: .62 on CIFAR-10, .985 on the digits.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import describe
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from strategies import REAL, RECIPE, extracted, made
from table import Row, show
from torch import nn

from classify import CachedFeatures, HeadClassifier, compare
from classify.labels.table import read_labels
from featurize import Backbone, FeatureCache, load_backbone, run

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "seedling"
SMALL = {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.25] * 3}


def random_weights() -> str:
    """The network before its training."""
    path = BUILD / "random.safetensors"
    if not path.exists():
        script = str(ROOT / "data" / "seedling" / "train.py")
        subprocess.run([sys.executable, script, "--steps", "0", "-o", str(path)], check=True)
    return str(path)


NETS: dict[str, tuple[str, Callable[[], Backbone]]] = {
    "seedling": ("auto", lambda: load_backbone("seedling")),
    "random weights": ("auto", lambda: load_backbone("seedling", random_weights())),
    "raw pixels": (
        "0",
        lambda: Backbone(nn.Sequential(nn.Flatten()), name="pixels", preprocess=SMALL),
    ),
    "SqueezeNet, ImageNet": (
        "auto",
        lambda: load_backbone(
            "squeezenet1_1",
            str(REAL / "squeezenet1_1-imagenet.safetensors"),
            preprocess=RECIPE,
        ),
    ),
}


def cached(name: str, images: Path, path: Path) -> Path:
    layers, load = NETS[name]
    run(images, path, backbone=load(), layers=layers)
    return path


def on_cifar(name: str) -> dict[str, list[float]]:
    """Accuracy on the test images and its interval, by layer."""
    cache = cached(name, extracted("cifar10"), BUILD / f"{name}.h5")
    layers = "each" if name == "raw pixels" else "each,joined"
    found = compare(cache, heads="softmax", layers=layers)
    return {
        _shown(record.layer): [record.accuracy, *record.accuracy_ci] for record in found.records
    }


def on_digits(name: str) -> dict[str, list[float]]:
    """Accuracy in five folds, by layer."""
    folder = made("digits")
    table = read_labels(folder / "digit.csv")
    cache = cached(name, folder / "images", BUILD / f"{name}, digits.h5")
    paths, labels = np.array(table.paths), np.array(table.labels)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    found = {}
    names = list(FeatureCache(cache).layers)
    for layer in [*names, names] if len(names) > 1 else names:
        head = make_pipeline(CachedFeatures(cache, layer=layer), HeadClassifier("softmax"))
        scores = cross_val_score(head, paths, labels, cv=folds)
        found["joined" if isinstance(layer, list) else _shown(layer)] = [float(scores.mean())]
    return found


def _shown(layer: str) -> str:
    return "joined" if "+" in layer else layer


def kept(part: str, name: str, measure: Callable[[str], dict[str, list[float]]]) -> Row:
    path = BUILD / f"{name}, {part}.json"
    if not path.exists():
        path.write_text(json.dumps(measure(name)))
        print(f"{name}, {part}: {path.read_text()}", file=sys.stderr, flush=True)
    row: Row = {"": name}
    for layer, (accuracy, *interval) in json.loads(path.read_text()).items():
        low_high = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        row[layer] = f"{accuracy:.3f}{low_high}"
    return row


def main() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    print(describe())
    for part, measure, limit in (
        ("digits", on_digits, "The limit for seedling: .985."),
        ("CIFAR-10", on_cifar, "The limit for seedling: .62."),
    ):
        for name in NETS:
            show(f"{part}: {name}", [kept(part, name, measure)], limit)


if __name__ == "__main__":
    main()

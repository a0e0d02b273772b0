"""Which backbone: what each of five costs an image, and how good a head on it is.

Two sets of photographs: CIFAR-10 (100 training and 100 test images a class, at each network's own
size), and `data/patches`, grey patches of two photographs, in five folds that keep parts of a
photograph whole. The head is `lda`. Core-milliseconds are processor time of `featurize run --engine
eager --layers auto` beyond that for 20 images, so that a busy machine changes them little. Needs
HEADGRAFT_REAL for CIFAR-10 and three of the networks.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from compare_backbones import NETWORKS
from machine import describe
from strategies import BUILD, cifar, made
from table import show

TRAIN, TEST, FEW = 100, 100, 20
NAMES = {
    "squeezenet": "SqueezeNet 1.1, ImageNet",
    "mobilenet-imagenet": "MobileNetV2, ImageNet",
    "lite0": "`lite0`: EfficientNet-Lite0, ImageNet",
    "mobilenet-birds": "MobileNetV2, iNaturalist's birds",
    "seedling": "`seedling`: drawn pictures",
}


def run(*words: object) -> dict:
    line = [str(Path(sys.executable).with_name(str(words[0]))), *map(str, words[1:]), "--json"]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)


def spend(folder: Path, cache: Path, words: list[object], *more: str) -> tuple[int, float]:
    """Embed a folder anew: how many images, and core-seconds."""
    cache.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("featurize", "run", folder, "-o", cache, "--backbone", *words, *more,
               "--layers", "auto", "--engine", "eager")  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done["computed"], spent


def best(records: list[dict], joined: bool) -> dict:
    return next(record for record in records if ("+" in record["layer"]) is joined)


def main() -> None:
    print(describe())
    folder, patches = cifar(TRAIN, TEST), made("patches")
    few = sorted(path.name for path in (folder / "train" / "cat").iterdir())[:FEW]
    chosen = [word for name in few for word in ("--include", f"train/cat/{name}")]
    rows = []
    for name, words in (NETWORKS | {"seedling": ["seedling"]}).items():
        caches = [BUILD / f"which-{name}-{kind}.h5" for kind in ("few", "cifar", "patches")]
        n_few, spent_few = spend(folder, caches[0], words, *chosen)
        n_all, spent = spend(folder, caches[1], words)
        spend(patches / "images", caches[2], words)
        choice = ("--heads", "lda", "--layers", "last,joined")
        photographs = run("classify", "compare", caches[1], caches[0], *choice[:2], "--layers",
                          "each") if False else run("classify", "compare", caches[1], *choice)  # fmt: skip
        folds = run("classify", "compare", caches[2], "--labels", patches / "what.csv", *choice,
                    "--folds", "5")  # fmt: skip
        info = run("featurize", "info", caches[1])
        rows.append({"network": NAMES[name], "found": [photographs, folds, info],
                     "core-ms an image": 1000 * (spent - spent_few) / (n_all - n_few)})  # fmt: skip
        print(name, json.dumps(rows[-1], indent=1)[:6000], os.linesep)
    show("Which backbone", rows)


if __name__ == "__main__":
    main()

"""Four networks on the same photographs, one leaderboard; and what the advice says of each.

CIFAR-10 at 224 pixels, 500 + 100 images a class. Two of the networks are the same MobileNetV2,
trained on ImageNet and on birds: for the second these photographs are different from its source.
Needs HEADGRAFT_REAL. Usage: compare_backbones.py [IMAGES A CLASS [TEST IMAGES A CLASS]]
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from strategies import BUILD, cifar

REAL = Path(os.environ.get("HEADGRAFT_REAL", "."))
NETWORKS = {
    "squeezenet": ["squeezenet1_1", "--weights", REAL / "squeezenet1_1-imagenet.safetensors"],
    "mobilenet-imagenet": [REAL / "mobilenetv2_100-imagenet"],
    "lite0": ["lite0"],
    "mobilenet-birds": [REAL / "mobilenetv2_100-inat-birds"],
}


def run(*words: object) -> dict:
    line = [str(Path(sys.executable).with_name(str(words[0]))), *map(str, words[1:]), "--json"]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    arguments = [int(word) for word in sys.argv[1:]]
    n_train, n_test = arguments + [500, 100][len(arguments) :]
    folder = cifar(n_train, n_test)
    caches = [BUILD / f"{name}-{n_train}.h5" for name in NETWORKS]
    for cache, (network, *more) in zip(caches, NETWORKS.values(), strict=True):
        done = run("featurize", "run", folder, "-o", cache, "--backbone", network, *more,
                   "--layers", "auto")  # fmt: skip
        seconds = f"{done['seconds']:.0f} s"
        print(f"{cache.stem}: {done['computed']:,} computed in {seconds}", flush=True)
    found = run("classify", "compare", *caches, "--heads", "lda,ncm")
    headings = ("network", "layers", "head", "columns", "GMAC", "validation", "test", "")
    print(f"\n| {' | '.join(headings)} |\n{'|---' * len(headings)}|")
    ranked = sorted(found["records"], key=lambda record: -record["validation"])
    best = {}
    for record in ranked:
        best.setdefault((record["cache"], record["layer"]), record)
    for record in best.values():
        mark = "" if record.get("distinguishable", True) else "not distinguishable from the best"
        cells = [record[key] for key in ("cache", "layer", "head", "columns", "gmacs")]
        cells += [f"{record[key]:.3f}" for key in ("validation", "accuracy")]
        print(f"| {' | '.join(map(str, cells))} | {mark} |")
    print("\n| network | situation | strategy | cut | validation by layer |\n|---|---|---|---|---|")
    for cache in caches:
        advice = run("classify", "advise", cache)
        profile = advice["evidence"]["profile"]
        by_layer = " ".join(f"{entry['layer']} {entry['validation']:.3f}" for entry in profile)
        cells = [cache.stem, f"{advice['size']}, {advice['similarity']}", advice["strategy"]]
        print(f"| {' | '.join(cells)} | {advice['layer']} | {by_layer} |", flush=True)


if __name__ == "__main__":
    main()

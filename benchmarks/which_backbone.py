"""Which backbone: what each of five costs an image, and how good a head on it is.

Two sets of photographs. CIFAR-10: 50 training and 50 test images a class, enlarged to each
network's own size. Patches (`data/patches`): 792 grey squares of two photographs, seven kinds, five
folds that keep a part of a photograph whole. The head is `lda`; of each network the layers that
validate best on CIFAR-10. The cost is in 1e9 multiply-accumulate operations, which no busy machine
changes. Needs HEADGRAFT_REAL, for CIFAR-10 and three of the networks.
"""

import json
import subprocess
import sys
from pathlib import Path

from compare_backbones import NETWORKS
from machine import describe
from strategies import BUILD, cifar, made
from table import Row, show

A_CLASS = 50
NAMES = {
    "squeezenet": "SqueezeNet 1.1, of ImageNet",
    "mobilenet-imagenet": "MobileNetV2, of ImageNet",
    "lite0": "`lite0`: EfficientNet-Lite0, of ImageNet",
    "mobilenet-birds": "MobileNetV2, of iNaturalist's birds",
    "seedling": "`seedling`, of drawn pictures",
}


def run(*words: object) -> dict:
    line = [str(Path(sys.executable).with_name(str(words[0]))), *map(str, words[1:]), "--json"]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)


def best_by_cache(records: list[dict]) -> dict[str, dict]:
    best: dict[str, dict] = {}
    for record in sorted(records, key=lambda record: -record["validation"]):
        best.setdefault(record["cache"], record)
    return best


def main() -> None:
    print(describe())
    photographs, patches = cifar(A_CLASS, A_CLASS), made("patches")
    networks = {**NETWORKS, "seedling": ["seedling"]}
    files: dict[str, list[Path]] = {"photographs": [], "patches": []}
    for name, network in networks.items():
        for kind, folder in (("photographs", photographs), ("patches", patches / "images")):
            cache = BUILD / "which" / kind / f"{name}.h5"
            cache.parent.mkdir(parents=True, exist_ok=True)
            run("featurize", "run", folder, "-o", cache, "--backbone", *network, "--layers", "auto")
            files[kind].append(cache)
    choice = ("--heads", "lda", "--layers", "each,joined")
    ranked = run("classify", "compare", *files["photographs"], *choice)["records"]
    table = patches / "what.csv"
    folds = run("classify", "compare", *files["patches"], "--labels", table, *choice,
                "--folds", "5")["rows"]  # fmt: skip
    accuracy = {(row["cache"], row["layer"]): row["accuracy"] for row in folds}
    rows: list[Row] = []
    for name, record in best_by_cache(ranked).items():
        if name not in NAMES:  # caches joined
            continue
        n_layers = record["layer"].count("+") + 1
        low, high = record["accuracy_ci"]
        rows.append({
            "network": NAMES[name],
            "layers": f"all {n_layers} joined" if n_layers > 1 else record["layer"],
            "columns": record["columns"],
            "GMAC": record["gmacs"],
            "CIFAR-10": record["accuracy"],
            "95 %": f"{low:.3f} to {high:.3f}",
            "patches": accuracy[name, record["layer"]],
        })  # fmt: skip
    show("Which backbone", rows)


if __name__ == "__main__":
    main()

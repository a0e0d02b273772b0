"""Which backbone: what each of five costs an image, and how good a head on it is.

Two sets of photographs. CIFAR-10: 50 training and 50 test images a class, enlarged to each
network's own size. Patches (`data/patches`): 792 grey squares of two photographs, seven kinds, five
folds that keep a part of a photograph whole. The head is `lda`; of each network the layers that
validate best on CIFAR-10. Core-milliseconds: processor time of `featurize run --engine eager` for
an image, beyond that of a run over 20 images, which a busy machine changes little. Needs
HEADGRAFT_REAL, for CIFAR-10 and three of the networks.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from compare_backbones import NETWORKS
from machine import describe
from strategies import BUILD, cifar, made
from table import Row, show

A_CLASS, FEW = 50, 20
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


def embed(folder: Path, cache: Path, network: list[object], *more: str) -> tuple[int, float]:
    """Embed a folder anew: how many images, and core-seconds."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = ("--layers", "auto", "--engine", "eager", *more)
    done = run("featurize", "run", folder, "-o", cache, "--backbone", *network, *options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done["computed"], spent


def best_by_cache(records: list[dict]) -> dict[str, dict]:
    best: dict[str, dict] = {}
    for record in sorted(records, key=lambda record: -record["validation"]):
        best.setdefault(record["cache"], record)
    return best


def main() -> None:
    print(describe())
    photographs, patches = cifar(A_CLASS, A_CLASS), made("patches")
    few = sorted(path.name for path in (photographs / "train" / "cat").iterdir())[:FEW]
    only_few = [word for name in few for word in ("--include", f"train/cat/{name}")]
    networks = {**NETWORKS, "seedling": ["seedling"]}
    kinds = ("few", "photographs", "patches")
    files = {
        kind: {name: BUILD / "which" / kind / f"{name}.h5" for name in networks} for kind in kinds
    }
    cost = {}
    for name, network in networks.items():
        n_few, spent_on_few = embed(photographs, files["few"][name], network, *only_few)
        n_all, spent = embed(photographs, files["photographs"][name], network)
        embed(patches / "images", files["patches"][name], network)
        cost[name] = 1000 * (spent - spent_on_few) / (n_all - n_few)
    choice = ("--heads", "lda", "--layers", "each,joined")
    ranked = run("classify", "compare", *files["photographs"].values(), *choice)["records"]
    table = patches / "what.csv"
    folds = run("classify", "compare", *files["patches"].values(), "--labels", table, *choice,
                "--folds", "5")["rows"]  # fmt: skip
    accuracy = {(row["cache"], row["layer"]): row["accuracy"] for row in folds}
    rows: list[Row] = []
    for name, record in best_by_cache(ranked).items():
        n_layers = record["layer"].count("+") + 1
        low, high = record["accuracy_ci"]
        rows.append({
            "network": NAMES[name],
            "layers": f"all {n_layers} joined" if n_layers > 1 else record["layer"],
            "columns": record["columns"],
            "GMAC": record["gmacs"],
            "core-ms an image": cost[name],
            "CIFAR-10": record["accuracy"],
            "95 %": f"{low:.3f} to {high:.3f}",
            "patches": accuracy[name, record["layer"]],
        })  # fmt: skip
    show("Which backbone", rows)


if __name__ == "__main__":
    main()

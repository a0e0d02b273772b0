"""The four strategies on data of each kind, advised or not: does the advice hold?

    python benchmarks/strategies.py [NAME ...]

runs `classify.auto` with time for all candidates on each data set (all of them if none is named),
with SqueezeNet's ImageNet weights at 96 pixels, and prints one table. What was run before is kept
under build/strategies. The real images and weights are found through HEADGRAFT_REAL.
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe

REAL = Path(os.environ.get("HEADGRAFT_REAL", "/nonexistent"))
BUILD = Path(__file__).parents[1] / "build" / "strategies"
RECIPE = {"resize": 96, "crop": 96, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
LONG = 1e9  # seconds: time for every candidate


def extracted(name: str) -> Path:
    """One of the archives of real images, as a folder."""
    if not REAL.exists():
        raise SystemExit("HEADGRAFT_REAL is not set: the folder with real weights and images")
    folder = BUILD / "real" / name
    if not folder.exists():
        with tarfile.open(REAL / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder


def cifar(train: int, test: int) -> Path:
    """The first images of each class of CIFAR-10, by name."""
    source, folder = extracted("cifar10"), BUILD / f"cifar-{train}"
    for part, most in (("train", train), ("test", test)):
        for label in sorted((source / part).iterdir()):
            there = folder / part / label.name
            there.mkdir(parents=True, exist_ok=True)
            for image in sorted(label.iterdir())[:most]:
                link = there / image.name
                if not link.exists():
                    link.hardlink_to(image)
    return folder


def made(script: str, *more: str) -> Path:
    """What a recipe under data/ makes."""
    folder = BUILD / script
    if not folder.exists():
        line = [sys.executable, f"{BUILD.parents[1]}/data/{script}/make.py", str(folder), *more]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return folder


def _digits() -> tuple[Path, Path | None]:
    folder = made("digits")
    return folder / "images", folder / "digit.csv"


def _omniglot() -> tuple[Path, Path | None]:
    folder = extracted("omniglot-alphabets")
    table = next(folder.rglob("labels.csv"))
    return table.parent, table


FEW = {"epochs": 10, "batch_size": 32}
MANY = {"epochs": 1, "batch_size": 64}
SETS: dict[str, tuple[Callable[[], tuple[Path, Path | None]], dict[str, Any]]] = {
    "cifar-20": (lambda: (cifar(20, 200), None), FEW),
    "cifar-50": (lambda: (cifar(50, 200), None), FEW),
    "cifar-5000": (lambda: (cifar(5000, 1000), None), MANY),
    "digits": (_digits, FEW | {"augment": "crops"}),
    "omniglot": (_omniglot, FEW | {"augment": "crops"}),
    "glyphs": (
        lambda: (made("glyphs", "--classes", "20", "--images", "2500"), None),
        MANY | {"augment": "crops"},
    ),
}
KNOWN = {
    "omniglot": {"size": "large"},  # all there is of it
    # Pictures of a third of the usual size look different; in their own size they are similar.
    "cifar-20": {"similarity": "similar"},
    "cifar-50": {"similarity": "similar"},
    "cifar-5000": {"similarity": "similar"},
}


def run(name: str) -> dict[str, Any]:
    """All four strategies on one data set, or what they did before."""
    from classify.strategy.auto import auto

    kept = BUILD / f"{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    prepare, options = SETS[name]
    images, table = prepare()
    recipe = BUILD / "preprocess.json"
    recipe.write_text(json.dumps(RECIPE))
    found = auto(
        images,
        BUILD / f"{name}.safetensors",
        table,
        backbone="squeezenet1_1",
        weights=str(REAL / "squeezenet1_1-imagenet.safetensors"),
        preprocess=str(recipe),
        max_seconds=LONG,
        say=lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True),
        **KNOWN.get(name, {}),
        **options,
    )
    told = found.to_dict() | {"cache_seconds": found.summary.seconds}
    kept.write_text(json.dumps(told))
    return told


def table(found: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown: the advised strategy in bold."""
    lines = [
        "| data | images | advice | strategy | accuracy | 95 % interval | behind the advised "
        "| seconds | images through the network |",
        "|---|---:|---|---|---:|---|---|---:|---:|",
    ]
    for name, told in found.items():
        sure = "" if told["confident"] else ", not sure"
        advice = f"{told['size']}, {told['similarity']}{sure}"
        for i, one in enumerate(told["candidates"]):
            low, high = one["accuracy_ci"]
            mark = "**" if i == 0 else ""
            behind = (
                "" if one["behind"] is None else "{:+.3f} ({:+.3f}, {:+.3f})".format(*one["behind"])
            )
            about = (
                (name, f"{told['computed'] + told['reused']:,}", advice) if i == 0 else ("", "", "")
            )
            joined = one["what"].count("+") + 1
            what = one["what"] if joined == 1 else f"all {joined} layers joined"
            seconds = told["cache_seconds"] + one["seconds"]
            lines.append(
                f"| {' | '.join(about)} | {mark}{one['strategy']}{mark} ({what}) "
                f"| {one['accuracy']:.3f} | {low:.3f} to {high:.3f} | {behind} | {seconds:,.0f} "
                f"| {one['images_run']:,} |"
            )
    return "\n".join(lines)


def main() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    print(describe())
    print(table({name: run(name) for name in sys.argv[1:] or SETS}))


if __name__ == "__main__":
    main()

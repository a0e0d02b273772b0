"""Small real tasks: how good is `classify.fit` with every option at its default?

31 tasks of 100 to 2,000 training images, fixed by seeds before any result was seen: CIFAR-10 by
three networks, Omniglot's alphabets (whole characters are held out), three tables of digits, and
one class of CIFAR-10 against the rest, 10 : 90. Every image goes through a network once. Beside
the default: scikit-learn's linear classifiers on standardised features of the last layer, one of
them on all layers too, and, with `--before`, the default of an older checkout on the same caches.
Differences are means over tasks, with 95 % intervals from a bootstrap over tasks. Tasks share
images and networks, so that the intervals say nothing of other data. The limits: a point of
accuracy ahead of LogisticRegressionCV, and nowhere more than two behind it.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn
from features import BUILD, REAL, real
from joblib import Memory, Parallel, delayed
from linear_rivals import answers
from machine import describe
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from strategies import made
from table import show

from classify import CachedFeatures
from featurize import run

HOME = BUILD / "small-tasks"
POOL, TESTED = 400, 200  # images of each class of CIFAR-10, to draw from and to test on
CIFAR_SIZES = (10, 20, 50, 100, 200)  # images of each class
CHARACTERS = (3, 5, 8, 11)  # of each alphabet
DIGITS = (100, 300)  # images in all
ALONE = ("airplane", "cat", "frog")
OURS, BEFORE = "default", "before"
RESAMPLES = 10_000
# What is measured, how it is shown, and what a difference is multiplied by.
MEASURES = {"accuracy": ("points", 100), "balanced accuracy": ("points", 100), "log loss": ("", 1)}

Lines = list[dict[str, str]]
Told = dict[str, dict[str, float]]  # measures by contender


@dataclass(frozen=True)
class Trial:
    """A task: a label table with a split, over a cache."""

    kind: str
    name: str
    cache: Path
    table: Path

    def lines(self) -> Lines:
        """Those of the table."""
        with open(self.table, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def cifar_images() -> Path:
    """Some images of each class of CIFAR-10, drawn once."""
    folder = HOME / "cifar10"
    if not (folder / ".whole").exists():
        rng = np.random.default_rng(0)
        for part, count in (("train", POOL), ("test", TESTED)):
            for source in sorted((real("cifar10") / part).iterdir()):
                there = folder / part / source.name
                there.mkdir(parents=True, exist_ok=True)
                for name in rng.permutation(sorted(os.listdir(source)))[:count]:
                    shutil.copy(source / name, there / name)
        (folder / ".whole").touch()
    return folder


def embedded(images: Path, name: str, network: str) -> Path:
    """The cache of some images by a network, about five layers each; made once."""
    cache = HOME / f"{name}-{network}.h5"
    if network == "squeezenet1_1":
        weights = str(REAL / "squeezenet1_1-imagenet.safetensors")
        run(images, cache, backbone=network, weights=weights, layers="auto")
    elif network == "mobilenetv2_100":
        from networks import MOBILENET_STAGES, mobilenet

        run(
            images, cache, backbone=mobilenet(REAL / f"{network}-imagenet"), layers=MOBILENET_STAGES
        )
    else:
        run(images, cache, backbone=network, layers="auto")
    return cache


def drawn(lines: Lines, count: int, seed: int) -> Lines:
    """So many of some lines, with their labels' shares."""
    labels = [line["label"] for line in lines]
    return train_test_split(lines, train_size=count, stratify=labels, random_state=seed)[0]


def split(train: Lines, test: Lines) -> Lines:
    return [line | {"split": "train"} for line in train] + [
        line | {"split": "test"} for line in test
    ]


def cifar_lines(part: str) -> Lines:
    home = cifar_images()
    images = sorted((home / part).glob("*/*"))
    return [{"path": path.relative_to(home).as_posix(), "label": path.parent.name}
            for path in images]  # fmt: skip


def cifar_split(each: int, seed: int) -> Lines:
    """So many training images of each class, and all test images."""
    train, test = cifar_lines("train"), cifar_lines("test")
    return split(drawn(train, each * len({line["label"] for line in train}), seed), test)


def alone_split(label: str, each: int, seed: int) -> Lines:
    """One class against the nine others."""
    lines = cifar_split(each, seed)
    return [line | {"label": label if line["label"] == label else "other"} for line in lines]


def characters_split(table: Path, each: int, seed: int) -> Lines:
    """So many characters of each alphabet; a third of all its characters are held out."""
    with open(table, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rng = np.random.default_rng(seed)
    train, test = set(), set()
    for label in sorted({line["label"] for line in lines}):
        groups = sorted({line["group"] for line in lines if line["label"] == label})
        groups = rng.permutation(groups).tolist()
        held = len(groups) // 3
        test.update(groups[:held])
        train.update(groups[held : held + each])
    return split(
        [line for line in lines if line["group"] in train],
        [line for line in lines if line["group"] in test],
    )


def digits_split(table: Path, count: int, seed: int) -> Lines:
    """So many training images; all others are held out."""
    with open(table, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    train = drawn(lines, count, seed)
    learnt = {line["path"] for line in train}
    return split(train, [line for line in lines if line["path"] not in learnt])


def plans() -> Iterator[tuple[str, str, Path, Callable[[int], Lines]]]:
    """Each task's kind, name and cache, and what draws its lines by a seed."""
    pictures = cifar_images()
    for network in ("squeezenet1_1", "mobilenetv2_100", "seedling"):
        cache = embedded(pictures, "cifar10", network)
        for each in CIFAR_SIZES:
            yield (f"CIFAR-10, {network}", f"cifar10-{network}-{each}", cache,
                   lambda seed, each=each: cifar_split(each, seed))  # fmt: skip
    table = next(real("omniglot-alphabets").rglob("labels.csv"))
    cache = embedded(table.parent, "omniglot", "squeezenet1_1")
    for each in CHARACTERS:
        yield ("Omniglot", f"omniglot-{each}-characters", cache,
               lambda seed, each=each: characters_split(table, each, seed))  # fmt: skip
    digits = made("digits")
    cache = embedded(digits / "images", "digits", "seedling")
    for name in ("digit", "parity", "loop"):
        for count in DIGITS:
            yield ("digits", f"digits-{name}-{count}", cache,
                   lambda seed, name=name, count=count:
                   digits_split(digits / f"{name}.csv", count, seed))  # fmt: skip
    cache = embedded(pictures, "cifar10", "mobilenetv2_100")
    for label in ALONE:
        for each in (20, 100):
            yield ("one against the rest", f"{label}-{10 * each}", cache,
                   lambda seed, label=label, each=each: alone_split(label, each, seed))  # fmt: skip


def trials() -> list[Trial]:
    """All tasks, their tables written. A task's seed is its place in the list."""
    (HOME / "tables").mkdir(parents=True, exist_ok=True)
    found = []
    for seed, (kind, name, cache, draw) in enumerate(plans()):
        file = HOME / "tables" / f"{name}.csv"
        lines = draw(seed)
        with open(file, "w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, lines[0])
            writer.writeheader()
            writer.writerows(lines)
        found.append(Trial(kind, name, cache, file))
    return found


def default(trial: Trial, checkout: Path | None = None) -> dict[str, object]:
    """What the default head says, in a process of its own; of another checkout if one is given."""
    script = Path(__file__).with_name("default_head.py")
    paths = {} if checkout is None else {"PYTHONPATH": str(checkout)}
    line = [sys.executable, script, trial.cache, trial.table]
    done = subprocess.run(
        list(map(str, line)), env={**os.environ, **paths}, stdout=subprocess.PIPE, check=True
    )
    told = json.loads(done.stdout)
    if checkout is not None and checkout not in Path(told["package"]).parents:
        raise SystemExit(f"{checkout} is not what ran, but {told['package']}")
    return told


def measured(told: dict[str, object], y: np.ndarray) -> dict[str, float]:
    """The measures of some answers; no log loss without probabilities."""
    found = {
        "accuracy": accuracy_score(y, told["predicted"]),
        "balanced accuracy": balanced_accuracy_score(y, told["predicted"]),
        "unconverged": told.get("unconverged", 0),
    }
    if told["probabilities"] is not None:
        found["log loss"] = log_loss(y, np.array(told["probabilities"]), labels=told["classes"])
    return found


def compared(trial: Trial, checkout: Path | None) -> Told:
    """All contenders on one task."""
    lines = trial.lines()
    train = [line for line in lines if line["split"] == "train"]
    test = [line for line in lines if line["split"] == "test"]
    paths = [[line["path"] for line in part] for part in (train, test)]
    last, joined = (
        tuple(map(CachedFeatures(trial.cache, layer).transform, paths))
        for layer in (None, "joined")
    )
    y, y_test = (np.array([line["label"] for line in part]) for part in (train, test))
    groups = np.array([line["group"] for line in train]) if "group" in train[0] else None
    said = {OURS: default(trial)}
    if checkout is not None:
        said[BEFORE] = default(trial, checkout)
    # The rivals do not change with this package: what they say of the same numbers is kept.
    kept = Memory(HOME / "rivals", verbose=0).cache(answers)
    said |= kept(last, joined, y, groups, sklearn.__version__)
    found = {name: measured(told, y_test) for name, told in said.items()}
    print(f"{trial.name}: {said[OURS]['layer']}, {said[OURS]['settings']}", file=sys.stderr)
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of a mean over tasks, by bootstrap."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def show_tasks(tasks: list[Trial], results: list[Told]) -> None:
    """A table for each measure."""
    for measure in MEASURES:
        rows = []
        for trial, found in zip(tasks, results, strict=True):
            parts = [line["split"] for line in trial.lines()]
            rows.append(
                {"task": trial.name, "train": parts.count("train"), "test": parts.count("test")}
                | {name: one.get(measure) for name, one in found.items()}
            )
        show(f"Test {measure}", rows)


def show_summary(tasks: list[Trial], results: list[Told]) -> None:
    """The default less each other: over all tasks, then by kind."""
    for measure, (unit, scale) in MEASURES.items():
        better = -1 if measure == "log loss" else 1
        rows, by_kind = [], []
        for other in results[0]:
            if other == OURS or measure not in results[0][other]:
                continue
            apart = scale * np.array([one[OURS][measure] - one[other][measure] for one in results])
            low, high = interval(apart)
            worst = int(np.argmin(better * apart))
            rows.append({
                "less": other, "mean": f"{apart.mean():+.3f}",
                "95 % interval": f"{low:+.3f} to {high:+.3f}",
                "median": f"{np.median(apart):+.3f}",
                "better": f"{(better * apart > 0).sum()} of {len(apart)}",
                "equal": int((apart == 0).sum()),
                "worst": f"{apart[worst]:+.3f}", "in": tasks[worst].name,
            })  # fmt: skip
            kinds = dict.fromkeys(trial.kind for trial in tasks)
            of_kind = {k: [trial.kind == k for trial in tasks] for k in kinds}
            by_kind.append({"less": other} | {k: f"{apart[at].mean():+.3f}"
                                              for k, at in of_kind.items()})  # fmt: skip
        of = f", {unit}" if unit else ""
        less = "; less is better" if better < 0 else ""
        limit = "The limits: LogisticRegressionCV +1, worst -2." if measure == "accuracy" else ""
        show(f"The default less each other, {measure}{of}{less}", rows, limit)
        show(f"The same by kind of task, {measure}{of}{less}", by_kind)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument(
        "--before", default=os.environ.get("HEADGRAFT_BEFORE"), metavar="CHECKOUT",
        help="an older checkout whose default is measured too; HEADGRAFT_BEFORE if not given",
    )  # fmt: skip
    options.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = options.parse_args()
    checkout = None if given.before is None else Path(given.before).resolve()
    if checkout is not None and not (checkout / "classify").is_dir():
        raise SystemExit(f"{checkout} is no checkout: it has no classify/")
    print(describe())
    tasks = trials()
    results = Parallel(given.jobs)(delayed(compared)(trial, checkout) for trial in tasks)
    show_tasks(tasks, results)
    show_summary(tasks, results)
    if checkout is None:
        print("\nWithout `--before CHECKOUT` nothing is said of an older commit.")
    if count := sum(one["unconverged"] for found in results for one in found.values()):
        print(f"\n{count:,} fits of scikit-learn had not converged.")


if __name__ == "__main__":
    main()

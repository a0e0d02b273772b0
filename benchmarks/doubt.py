"""Do prediction sets hold the truth as often as asked, and are strangers told?

CIFAR-10 (400 images a class), handwritten digits and Omniglot (classes: alphabets; groups:
characters, of which the split holds out whole ones), each with two networks, the deepest layer.

Sets: 20 random splits, each with a head of its own: the share of test images whose set holds the
truth, and the mean size of a set. Strangers: heads that do not know them, by the area under the ROC
curve of what `predict` calls unknown, and of the largest probability alone. One class of CIFAR-10,
or one digit, is left out in turn; letters are strange to digits, and glyphs to photographs.
"""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
from features import BUILD, REAL, real
from machine import describe
from sklearn.metrics import roc_auc_score
from table import show

from classify import fit
from classify.data.features import FeatureRows
from classify.data.tasks import make_task
from classify.evaluation.metrics import wilson_interval
from classify.labels.folders import TEST
from classify.labels.table import LabelTable, read_labels
from featurize import FeatureCache, run

COVERAGE, N_DRAWS = 0.9, 20
N_IMAGES = 400  # of each class of CIFAR-10
ROOT = Path(__file__).parent.parent
HEAD = "softmax-lda"


def collect_photos() -> Path:
    """Return the folder of photographs; it is made once."""
    folder = BUILD / "doubt-photos"
    if not (folder / ".whole").exists():
        for kind in sorted((real("cifar10") / "train").iterdir()):
            (folder / kind.name).mkdir(parents=True, exist_ok=True)
            for image in sorted(kind.iterdir())[:N_IMAGES]:
                target = folder / kind.name / image.name
                target.unlink(missing_ok=True)
                target.hardlink_to(image)
        (folder / ".whole").touch()
    return folder


def draw(script: str, folder: Path, *options: str) -> Path:
    """Return a folder of drawn images; it is made once."""
    if not folder.exists():
        line = [sys.executable, ROOT / "data" / script / "make.py", folder, *options]
        subprocess.run(list(map(str, line)), check=True, stdout=subprocess.DEVNULL)
    return folder


def embed(images: Path, name: str, network: str) -> FeatureCache:
    """Return the cache of some images and a network, its deepest layer."""
    weights = {"weights": str(REAL / "squeezenet1_1-imagenet.safetensors")}
    path = BUILD / f"doubt-{name}-{network}.h5"
    run(images, path, backbone=network, layers="last", **(weights if "net" in network else {}))
    return FeatureCache(path)


def read_digits(folder: Path) -> dict[str, str]:
    with (folder / "digit.csv").open() as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def measure_sets(cache: FeatureCache, table: LabelTable) -> dict[str, object]:
    """Measure prediction sets over many splits."""
    found = [
        fit(cache, table, HEAD, seed=seed, coverage=COVERAGE)[1].doubt for seed in range(N_DRAWS)
    ]
    realised = np.array([doubt["realised"] for doubt in found])
    inside = [low <= COVERAGE <= high for low, high in (doubt["realised_ci"] for doubt in found)]
    return {
        "asked": COVERAGE,
        "hold the truth": realised.mean(),
        "lowest": realised.min(),
        "highest": realised.max(),
        "asked is in the interval": f"{sum(inside)} of {N_DRAWS}",
        "classes a set": np.mean([doubt["set_size"] for doubt in found]),
        "false alarms": np.mean([doubt["unknown"] for doubt in found]),
    }


def score_strangers(
    cache: FeatureCache, table: LabelTable, strangers: FeatureCache, rows: np.ndarray
) -> tuple[float, float]:
    """Return the areas under the ROC curve: of the novelty, and of the largest probability."""
    head, _ = fit(cache, table, HEAD)
    task = make_task(cache, table)
    known = task.rows[task.split == TEST]
    sides = [(cache, known), (strangers, np.sort(rows))]
    layers = [layer.name for layer in head.source.layers]
    features = [FeatureRows.from_cache(of, layers, some).to_array() for of, some in sides]
    truth = np.repeat([0, 1], [len(side) for side in features])
    novelty = np.concatenate([head.novelty_scores(side) for side in features])
    unsure = -np.concatenate([head.predict_proba(side).max(axis=1) for side in features])
    return roc_auc_score(truth, novelty), roc_auc_score(truth, unsure)


def leave_out(cache: FeatureCache, labels: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Leave each class out in turn."""
    found = {}
    for name in sorted(set(labels.values())):
        kept = [path for path, label in labels.items() if label != name]
        table = LabelTable("known", "known", kept, [labels[path] for path in kept])
        others = cache.rows_for([path for path, label in labels.items() if label == name])
        found[name] = score_strangers(cache, table, cache, others)
    return found


def describe_strangers(areas: list[tuple[float, float]]) -> dict[str, object]:
    ours, theirs = np.array(areas).T
    return {
        "unknown": ours.mean(),
        "largest probability": theirs.mean(),
        "difference": (ours - theirs).mean(),
        "least difference": (ours - theirs).min(),
    }


def main() -> None:
    print(describe())
    photos = collect_photos()
    digits = draw("digits", BUILD / "doubt-digits")
    glyphs = draw("glyphs", BUILD / "doubt-glyphs", "--classes", "20", "--images", "400")
    letters = next(real("omniglot-alphabets").rglob("labels.csv"))
    of_digits = read_digits(digits)
    sets, strangers, by_class = [], [], []
    for network in ("squeezenet1_1", "seedling"):
        photo_cache = embed(photos, "photos", network)
        of_photos = {path: path.split("/")[0] for path in photo_cache.paths}
        digit_cache = embed(digits / "images", "digits", network)
        letter_cache = embed(letters.parent, "letters", network)
        glyph_cache = embed(glyphs, "glyphs", network)
        photo_table = LabelTable("photos", "photos", [*of_photos], [*of_photos.values()])
        digit_table = LabelTable("digits", "digits", [*of_digits], [*of_digits.values()])
        for name, cache, table in (
            ("CIFAR-10", photo_cache, photo_table),
            ("digits", digit_cache, digit_table),
            ("Omniglot, by character", letter_cache, read_labels(letters)),
        ):
            sets.append({"images": name, "network": network, **measure_sets(cache, table)})
        of_classes = leave_out(photo_cache, of_photos)
        by_class += [
            {"left out": name, "network": network, "unknown": ours, "largest probability": theirs}
            for name, (ours, theirs) in of_classes.items()
        ]
        of_rest = leave_out(digit_cache, of_digits)
        every = np.arange(letter_cache.n_rows)
        far = {
            "digits / letters": score_strangers(digit_cache, digit_table, letter_cache, every),
            "photographs / glyphs": score_strangers(
                photo_cache, photo_table, glyph_cache, np.arange(glyph_cache.n_rows)
            ),
        }
        for name, areas in (
            ("a class of CIFAR-10, in turn", list(of_classes.values())),
            ("a digit, in turn", list(of_rest.values())),
            *((name, [pair]) for name, pair in far.items()),
        ):
            strangers.append({"strangers": name, "network": network, **describe_strangers(areas)})
    n_test = int(0.2 * len(of_photos))
    low, high = wilson_interval(round(COVERAGE * n_test), n_test)
    show(
        f"Sets at {COVERAGE:.0%}, {N_DRAWS} splits",
        sets,
        f"One split of CIFAR-10 has an interval of {low:.3f} to {high:.3f} at that share.",
    )
    show(
        "Strangers, area under the ROC curve",
        strangers,
        "The limit: nowhere less than the largest probability alone, and more on average.",
    )
    show("A class of CIFAR-10 left out, area under the ROC curve", by_class)


if __name__ == "__main__":
    main()

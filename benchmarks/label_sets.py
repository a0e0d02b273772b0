"""Several label sets from one cache, beside the script that people write for each of them.

CIFAR-10 through EfficientNet-Lite0 at 224 pixels, 200 + 60 images a class, three label sets of
the same images. The script is timm's own way: its transform, a DataLoader of two workers, batches
of 32, then scikit-learn's `StandardScaler` and `LogisticRegression` on the features; it runs the
network again for every label set. Both take the same weights, the same training images and the
same test images, and are timed as whole processes, imports included. `classify fit` also chooses
layers and setting by five folds, and calibrates; the script takes C = 1. Needs HEADGRAFT_REAL.
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

from machine import describe
from strategies import BUILD, cifar
from table import Row, show
from timm_script import make_folder

TRAIN, TEST = 200, 60  # images a class
ANIMALS = {"bird", "cat", "deer", "dog", "frog", "horse"}
PLACES = {"airplane": "air", "bird": "air", "ship": "water", "automobile": "road", "truck": "road"}
LABEL_SETS = {
    "what it is": lambda name: name,
    "animal or machine": lambda name: "animal" if name in ANIMALS else "machine",
    "where it is met": lambda name: PLACES.get(name, "land"),
}
SCRIPT = """
import csv, sys
import numpy, timm, torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

source, folder, table = sys.argv[1:]
rows = list(csv.DictReader(open(table)))
model = timm.create_model(f"local-dir:{source}", pretrained=True, num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return len(rows)

    def __getitem__(self, at):
        return transform(Image.open(f"{folder}/{rows[at]['path']}").convert("RGB"))

X = []
with torch.inference_mode():
    for images in torch.utils.data.DataLoader(Images(), 32, num_workers=2):
        X.append(model(images).numpy())
X = numpy.concatenate(X)
y = numpy.array([row["label"] for row in rows])
train = numpy.array([row["split"] == "train" for row in rows])
head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
print(head.fit(X[train], y[train]).score(X[~train], y[~train]))
"""


def timed(line: list[object]) -> tuple[float, str]:
    """Seconds of a whole process, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(
        list(map(str, line)), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - started, done.stdout.decode()


def write_table(folder: Path, name: str) -> Path:
    table = BUILD / f"{name.replace(' ', '-')}-{TRAIN}.csv"
    rows = [
        (image.relative_to(folder).as_posix(), LABEL_SETS[name](image.parent.name), split)
        for split in ("train", "test")
        for image in sorted((folder / split).rglob("*.jpg"))
    ]
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return table


def main() -> None:
    print(describe())
    folder, source = cifar(TRAIN, TEST), make_folder("lite0")
    featurize, classify = (
        Path(sys.executable).with_name(name) for name in ("featurize", "classify")
    )
    cache = BUILD / f"label-sets-{TRAIN}.h5"
    for file in (cache, *Path(f"{cache}.kept").glob("**/*")):
        if file.is_file():
            file.unlink()
    once, _ = timed([featurize, "run", folder, "-o", cache, "--backbone", "lite0",
                     "--layers", "auto"])  # fmt: skip
    images = (TRAIN + TEST) * 10
    rows: list[Row] = []
    ours, theirs = once, 0.0
    for name, label_of in LABEL_SETS.items():
        table = write_table(folder, name)
        head = BUILD / "label-sets.safetensors"
        seconds, printed = timed([classify, "fit", cache, "--labels", table, "-o", head, "--json"])
        script_seconds, script_printed = timed(
            [sys.executable, "-c", SCRIPT, source, folder, table]
        )
        found = json.loads(printed)
        ours, theirs = ours + seconds, theirs + script_seconds
        low, high = found["accuracy_ci"]
        rows.append({
            "labels": name,
            "classes": len({label_of(path.name) for path in (folder / "train").iterdir()}),
            "accuracy": f"{found['accuracy']:.3f} ({low:.3f} to {high:.3f})",
            "seconds": round(seconds, 1),
            "script: accuracy": f"{float(script_printed):.3f}",
            "script: seconds": round(script_seconds, 1),
        })  # fmt: skip
    rows.append({"labels": f"embedding {images:,} images, once", "seconds": round(once, 1)})
    rows.append({"labels": "all", "seconds": round(ours, 1), "script: seconds": round(theirs, 1)})
    show("Three label sets from one cache, seconds of whole processes", rows)


if __name__ == "__main__":
    main()

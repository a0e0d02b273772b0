"""The folders in which pages are run: photographs of digits, patches, all digits, or nothing."""

import csv
import os
import runpy
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[3]
ONE_DAY = 86_400


def make_photos(folder: Path, count: int = 120) -> None:
    """A folder `photos` of small digits in two folders, and two label tables."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    tables: dict[str, list[tuple[str, str]]] = {"species": [], "season": []}
    for k in range(count):
        label = "even" if digits.target[k] % 2 == 0 else "odd"
        path = folder / "photos" / label / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 15).astype("uint8")).save(path)
        tables["species"].append((f"{label}/{k:03}.png", label))
        tables["season"].append((f"{label}/{k:03}.png", str(digits.target[k] > 4)))
    for name, rows in tables.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])


def _make_data(name: str, folder: Path) -> None:
    runpy.run_path(str(ROOT / "data" / name / "make.py"))["main"](folder / name)


def make_layer4(folder: Path) -> None:
    """A cache of a ResNet with random numbers."""
    from featurize import load_backbone, run

    make_photos(folder, 20)
    backbone = load_backbone("resnet18", frozen_weights=False)
    run(folder / "photos", folder / "photos.h5", backbone=backbone, layers="layer4", size=64)


WORLDS = {
    "photos": make_photos,
    "few": lambda folder: make_photos(folder, 50),
    "layer4": make_layer4,
    "patches": lambda folder: _make_data("patches", folder),
    "digits": lambda folder: _make_data("digits", folder),
    "empty": lambda folder: None,
}


class Worlds:
    """Makes each world once, and copies it for every page."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def lay(self, world: str, folder: Path) -> Path:
        """Copy a world to a folder that is not there yet."""
        model = self._home / world
        if not model.exists():
            model.mkdir(parents=True)
            WORLDS[world](model)
            for path in model.rglob("*"):  # files that are new are looked at twice
                then = path.stat().st_mtime - ONE_DAY
                os.utime(path, (then, then))
        return Path(shutil.copytree(model, folder, copy_function=shutil.copy2))

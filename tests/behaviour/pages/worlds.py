"""The folders in which pages are run: small digits, also packed; patches, all digits, nothing."""

import csv
import io
import json
import os
import runpy
import shutil
import tarfile
import zipfile
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


def make_shards(folder: Path) -> None:
    """The photographs of a first world, and the same in shards, an archive, tables and a list."""
    make_photos(folder, 60)
    paths = sorted((folder / "photos").rglob("*.png"), key=lambda path: path.name)
    parts = {"train-000000": paths[:24], "train-000001": paths[24:48], "test-000000": paths[48:]}
    (folder / "shards").mkdir()
    for name, chosen in parts.items():
        with tarfile.open(folder / "shards" / f"{name}.tar", "w") as archive:
            for path in chosen:
                _add_member(archive, f"{path.stem}.png", path.read_bytes())
                _add_member(archive, f"{path.stem}.cls", path.parent.name.encode())
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.relative_to(folder / "photos"))
    _write_tables(folder, paths[:48], paths[48:])
    with open(folder / "list.csv", "w", newline="") as file:
        rows = [(f"photos/{path.parent.name}/{path.name}", path.parent.name) for path in paths]
        csv.writer(file).writerows([("path", "label"), *rows])


def _add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _write_tables(folder: Path, train: list[Path], test: list[Path]) -> None:
    """A folder `tables` as of the hub of Hugging Face, and one as of `save_to_disk`, `saved`."""
    import pyarrow as pa
    import pyarrow.parquet

    names = ["even", "odd"]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata)
    (folder / "tables").mkdir()
    for split, paths in {"train": train, "test": test}.items():
        rows = [
            {
                "image": {"bytes": path.read_bytes(), "path": path.name},
                "label": names.index(path.parent.name),
            }
            for path in paths
        ]
        table = pa.Table.from_pylist(rows, schema)
        pa.parquet.write_table(table, folder / "tables" / f"{split}-00000-of-00001.parquet")
        (folder / "saved" / split).mkdir(parents=True)
        with (
            pa.OSFile(str(folder / "saved" / split / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, schema) as stream,
        ):
            stream.write_table(table)


WORLDS = {
    "photos": make_photos,
    "few": lambda folder: make_photos(folder, 50),
    "shards": make_shards,
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

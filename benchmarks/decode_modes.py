"""What other ways to decode change: features, and what a head makes of them.

Photographs of CIFAR-10, enlarged and grainy, of 1024 x 768 pixels (with their labels) and of 12
megapixels, through SqueezeNet and EfficientNet-Lite0. Cosines are those of the embeddings to the
embeddings of exact decoding. The limits: 0.995 for every image, and an accuracy within the interval
of exact's.
"""

import argparse
import io
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from machine import describe
from networks import weights_file
from photos import BUILD, photos
from PIL import Image
from table import Row, show

from classify import fit
from featurize import FeatureCache, run
from featurize.images.preprocess import DECODE_MODES

SIZE = (1024, 768)
NETWORKS = ("squeezenet1_1", "lite0")


def make_labelled(count: int) -> Path:
    """Enlarged photographs of CIFAR-10's test part in folders of their classes."""
    home = BUILD / f"labelled-{count}"
    if (home / ".whole").exists():
        return home
    rng = np.random.default_rng(0)
    made: dict[str, int] = {}
    with tarfile.open(Path(os.environ["HEADGRAFT_REAL"]) / "cifar10.tar.gz", "r|gz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if "test" not in parts or not member.name.endswith(".jpg"):
                continue
            name = parts[-2]
            if made.get(name, 0) >= count // 10:
                continue
            made[name] = made.get(name, 0) + 1
            content = archive.extractfile(member)
            assert content is not None
            with Image.open(io.BytesIO(content.read())) as small:
                large = small.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
            values = np.asarray(large, np.int16) + rng.integers(-9, 10, (SIZE[1], SIZE[0], 1))
            path = home / name / parts[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(path, quality=90)
    (home / ".whole").touch()
    return home


def embed(folder: Path, network: str, mode: str, home: str) -> Path:
    path = Path(home) / f"{folder.name}-{network}-{mode}.h5"
    weights = None if network == "lite0" else str(weights_file(network))
    run(folder, path, backbone=network, weights=weights, decode=mode)
    return path


def compare(folder: Path, network: str, home: str, *, labelled: bool) -> list[Row]:
    rows: list[Row] = []
    caches = {mode: embed(folder, network, mode, home) for mode in DECODE_MODES}
    exact = FeatureCache(caches["exact"])
    (layer,) = exact.layers
    expected = exact.features(layer)
    for mode, path in caches.items():
        found = FeatureCache(path).features(layer)
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (found * expected).sum(axis=1) / norms
        row: Row = {
            "photographs": f"{len(found):,} of {folder.name}", "network": network,
            "--decode": mode,
            "lowest cosine": float(cosines.min()), "median": float(np.median(cosines)),
        }  # fmt: skip
        if labelled:
            _, record = fit(path, head="lda", test_size=0.5)
            interval = " to ".join(f"{end:.3f}" for end in record.accuracy_ci)
            row |= {"accuracy": record.accuracy, "interval": interval}
        rows.append(row)
    return rows


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--labelled", type=int, default=1500)
    options.add_argument("--large", type=int, default=48)
    given = options.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory() as home:
        rows: list[Row] = []
        for network in NETWORKS:
            rows += compare(make_labelled(given.labelled), network, home, labelled=True)
            rows += compare(photos(given.large, (4000, 3000)), network, home, labelled=False)
    limits = "The limits: a cosine of 0.995 for every image, an accuracy within exact's interval."
    show("Features beside those of exact decoding", rows, limits)


if __name__ == "__main__":
    main()

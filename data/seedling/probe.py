"""Score a weights file: frozen features, a linear classifier, real images.

Real images are read here only, to measure; nothing here hands anything to the training.

    python data/seedling/probe.py WEIGHTS|random|pixels [--cifar FOLDER] [--final]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from featurize.backbones.seedling.network import PREPROCESS, Seedling

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
Array = NDArray[np.float32]


def prepare(image: Image.Image) -> NDArray[np.uint8]:
    """Resize the shorter side, then crop the centre, as ``PREPROCESS`` says; (3, 32, 32)."""
    size, crop = PREPROCESS.resize, PREPROCESS.crop
    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    image = image.convert("RGB").resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - crop) // 2, (high - crop) // 2
    image = image.crop((left, top, left + crop, top + crop))
    return np.asarray(image).transpose(2, 0, 1)


def load_folder(folder: Path, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images ``start`` to ``stop`` of each class folder, by name."""
    pictures, labels = [], []
    for label, place in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        for path in sorted(place.iterdir())[start:stop]:
            with Image.open(path) as image:
                pictures.append(prepare(image))
            labels.append(label)
    return np.stack(pictures), np.array(labels)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return scikit-learn's handwritten digits, 8 px grey, prepared like any image."""
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return np.stack([prepare(Image.fromarray(one)) for one in grey]), bunch.target


def load_network(weights: str) -> Seedling:
    """Make the network with weights from a file, or with seeded random ones for ``random``."""
    torch.manual_seed(0)
    network = Seedling()
    if weights != "random":
        tensors = load_file(weights)
        network.load_state_dict({k: v.float() if v.is_floating_point() else v
                                 for k, v in tensors.items()})  # fmt: skip
    return network.eval()


@torch.inference_mode()
def embed(network: Seedling, pictures: NDArray[np.uint8]) -> dict[str, Array]:
    """Return the average-pooled map of every stage, (N, C) each, and all of them ``joined``."""
    mean = torch.tensor(PREPROCESS.mean)[:, None, None]
    std = torch.tensor(PREPROCESS.std)[:, None, None]
    parts: dict[str, list[Array]] = {stage: [] for stage in STAGES}
    for batch in torch.from_numpy(pictures).split(250):
        x = (batch.float() / 255 - mean) / std
        for stage in STAGES:
            x = getattr(network, stage)(x)
            parts[stage].append(x.mean((2, 3)).numpy())
    vectors = {stage: np.concatenate(rows) for stage, rows in parts.items()}
    vectors["joined"] = np.concatenate([vectors[stage] for stage in STAGES], 1)
    return vectors


def vectors_of(weights: str, pictures: NDArray[np.uint8]) -> dict[str, Array]:
    """Return vectors by layer; for ``pixels`` the pixels themselves."""
    if weights == "pixels":
        return {"pixels": pictures.reshape(len(pictures), -1).astype(np.float32) / 255}
    return embed(load_network(weights), pictures)


def main() -> None:
    """Print one JSON object: accuracy by layer for each collection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", help="a safetensors file, or 'random', or 'pixels'")
    parser.add_argument("--cifar", type=Path, help="folder with train|test/CLASS/*.jpg")
    parser.add_argument("--layers", help="comma-separated, default all")
    parser.add_argument(
        "--final", action="store_true", help="score on test; else on images 1000-1299 of train"
    )
    options = parser.parse_args()
    # Raw pixels reach the iteration limit; where it stands by then is the score.
    warnings.simplefilter("ignore", ConvergenceWarning)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    wanted = options.layers.split(",") if options.layers else None
    result: dict[str, dict[str, float]] = {}

    pictures, labels = digits()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    result["digits"] = {
        layer: round(float(cross_val_score(head, rows, labels, cv=folds).mean()), 4)
        for layer, rows in vectors_of(options.weights, pictures).items()
        if wanted is None or layer in wanted or layer == "pixels"
    }
    if options.cifar:
        pictures, labels = load_folder(options.cifar / "train", 0, 1000)
        if options.final:
            others, truth = load_folder(options.cifar / "test", 0, 1000)
        else:
            others, truth = load_folder(options.cifar / "train", 1000, 1300)
        train = vectors_of(options.weights, pictures)
        held = vectors_of(options.weights, others)
        part = "cifar test" if options.final else "cifar validation"
        result[part] = {
            layer: round(float(head.fit(train[layer], labels).score(held[layer], truth)), 4)
            for layer in train
            if wanted is None or layer in wanted or layer == "pixels"
        }
    print(json.dumps({"weights": Path(options.weights).name, **result}, indent=1))


if __name__ == "__main__":
    main()

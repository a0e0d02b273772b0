"""Which changed copies of an image are known for copies, and are other images left alone?

2,000 images of CIFAR-10 (32 x 32 pixels), and one changed copy of each of 200 of them; each kind
of change, and by which network. False: pairs of two images as they come, some of which are
near-copies that CIFAR-10 has of its own.
"""

from collections import Counter

import numpy as np
from features import BUILD, REAL, real
from machine import describe
from PIL import Image, ImageEnhance

from classify.data.features import FeatureRows
from classify.data.near_copies import find_near_copies
from featurize import FeatureCache, run

IMAGES, PLANTED = 2000, 200
CHANGES = {
    "JPEG, quality 85": lambda image: (image, {"quality": 85}),
    "JPEG, quality 50": lambda image: (image, {"quality": 50}),
    "15 % brighter": lambda image: (ImageEnhance.Brightness(image).enhance(1.15), {}),
    "28 x 28 pixels": lambda image: (image.resize((28, 28), Image.Resampling.BICUBIC), {}),
    "a pixel off each edge": lambda image: (image.crop((1, 1, 31, 31)), {}),
    "mirrored": lambda image: (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), {}),
}


def planted():
    """The folder; it is made once."""
    folder = BUILD / "near-copies"
    if (folder / ".whole").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted((real("cifar10") / "train").rglob("*.jpg"))
    for k, at in enumerate(np.random.default_rng(0).permutation(len(names))[:IMAGES]):
        image = Image.open(names[at]).convert("RGB")
        image.save(folder / f"{k:04}.png")
        if k < PLANTED:
            kind = k % len(CHANGES)
            copy, options = list(CHANGES.values())[kind](image)
            copy.save(folder / f"{k:04}-{kind}.{'jpg' if options else 'png'}", **options)
    (folder / ".whole").touch()
    return folder


def main() -> None:
    print(describe())
    folder = planted()
    total = Counter(k % len(CHANGES) for k in range(PLANTED))
    print(f"{'network':16} " + " ".join(f"{name:>21}" for name in CHANGES) + f" {'false':>6}")
    for network, options, layer in (
        ("seedling", {}, "stage4"),
        ("squeezenet1_1", {"weights": str(REAL / "squeezenet1_1-imagenet.safetensors")},
         "features.12"),
    ):  # fmt: skip
        cache = BUILD / f"near-copies-{network}.h5"
        run(folder, cache, backbone=network, layers=layer, **options)
        opened = FeatureCache(cache)
        pairs = find_near_copies(FeatureRows.from_cache(opened, (layer,), np.arange(opened.n_rows)))
        found, false = Counter(), 0
        for a, b in pairs.tolist():
            one, other = sorted((opened.paths[a], opened.paths[b]), key=len)
            if len(other) > len(one) and other[:4] == one[:4]:
                found[int(other[5])] += 1
            else:
                false += 1
        shares = " ".join(f"{found[k] / total[k]:21.2f}" for k in range(len(CHANGES)))
        print(f"{network:16} {shares} {false:6}")


if __name__ == "__main__":
    main()

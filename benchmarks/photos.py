"""JPEGs to run over: CIFAR-10's photographs enlarged where HEADGRAFT_REAL has them, else drawn.

Enlarged pictures are smooth, and smooth pictures decode fast: grain is laid over them, so that a
640 x 480 file has the 60 to 90 kB of a photograph, and one of 12 megapixels 3 MB. Without grain
they are what decoding costs at least.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

BUILD = Path(__file__).parents[1] / "build" / "bench"


def photos(count: int, size: tuple[int, int] = (640, 480), *, grain: bool = True) -> Path:
    """A folder of `count` JPEGs in ten folders."""
    home = BUILD / f"photos-{size[0]}x{size[1]}-{count}{'' if grain else '-smooth'}"
    if not (home / ".whole").exists():
        rng = np.random.default_rng(0)
        for k, small in zip(range(count), _small(count), strict=False):
            path = home / f"{k % 10}" / f"{k:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            large = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.int16)
            if grain:
                large += rng.integers(-9, 10, (size[1], size[0], 1), np.int8)
            Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(path, quality=90)
        (home / ".whole").touch()
    return home


def megabytes(folder: Path) -> float:
    """A file's size, on average."""
    sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
    return sum(sizes) / len(sizes) / 1e6


def _small(count: int) -> Iterator[Image.Image]:
    real = os.environ.get("HEADGRAFT_REAL")
    if real is None:
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        return
    with tarfile.open(Path(real) / "cifar10.tar.gz", "r|gz") as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                with Image.open(archive.extractfile(member)) as image:
                    yield image.convert("RGB")

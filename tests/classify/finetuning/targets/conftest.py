"""Drawn squares: how large, of which colour, with a bar or without: something of each kind."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize import run

N, SIDE = 72, 24
GRADES = ("small", "middle", "large")
LABELS = ("bar", "red")


@dataclass(frozen=True)
class Squares:
    """Images, their cache by the shipped backbone, and what they show."""

    images: Path
    cache: Path
    table: Path
    paths: list[str]
    sizes: np.ndarray
    grades: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Squares:
    """A table with columns ``size``, ``grade``, ``tags``, and ``bar`` and ``red`` with unknowns."""
    home, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(1)
    (home / "images").mkdir()
    lines, sizes, grades, labels = ["path,size,grade,tags,bar,red"], [], [], []
    for k in range(N):
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        side = int(rng.integers(4, 19))
        x, y = rng.integers(4, SIDE - side + 1, 2) if side < 20 else (4, 4)
        has = rng.random(2) < 0.45
        pixels[x : x + side, y : y + side] = (220, 40, 40) if has[1] else (40, 40, 220)
        if has[0]:
            pixels[:3] = 255
        Image.fromarray(pixels).save(home / "images" / f"{k:03}.png")
        grade = (side > 8) + (side > 13)
        known = [int(has[0]), "?" if k % 6 == 0 else int(has[1])]
        tags = "|".join(name for name, each in zip(LABELS, has, strict=True) if each)
        lines.append(f"{k:03}.png,{1000 + 2.5 * side},{GRADES[grade]},{tags},{known[0]},{known[1]}")
        sizes.append(1000 + 2.5 * side)
        grades.append(grade)
        labels.append([np.nan if value == "?" else value for value in known])
    (home / "t.csv").write_text("\n".join(lines) + "\n")
    layers = "stage3:none,last"
    run(home / "images", home / "c.h5", backbone="seedling", layers=layers, device="cpu")
    paths = [f"{k:03}.png" for k in range(N)]
    values = (np.array(sizes), np.array(grades), np.array(labels, np.float64))
    return Squares(home / "images", home / "c.h5", home / "t.csv", paths, *values)

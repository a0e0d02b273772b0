"""Draw glyphs: an image folder of written signs that nobody has ever written.

    python data/glyphs/make.py OUT [--classes 50] [--images 1000] [--seed 0]

makes OUT/sign00/0000.png ... (64 x 64, grey). A class is a sign of two to four strokes, each a
quadratic Bezier curve; an image is that sign as another hand might write it: its points moved a
little, the whole turned, sheared and scaled, the pen thick or thin. Drawn, not photographed and not
handwritten: for trying out what is done with many images that are unlike photographs.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, FINE = 64, 4  # pixels; drawn so many times larger, then reduced
STEPS = np.linspace(0, 1, 24)[:, None]


def sign(rng: np.random.Generator) -> np.ndarray:
    """The points of one sign: float (strokes, 3, 2), in 0..1; strokes begin where others are."""
    strokes = rng.uniform(0.1, 0.9, (rng.integers(2, 5), 3, 2))
    for k in range(1, len(strokes)):
        if rng.random() < 0.6:
            strokes[k, 0] = strokes[rng.integers(k), rng.choice([0, 2])]
    return strokes


def written(points: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """One image of a sign."""
    points = points + rng.normal(0, 0.035, points.shape)
    angle, shear = rng.normal(0, 0.12), rng.normal(0, 0.12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.array([[1, shear], [0, 1]]) * rng.uniform(0.75, 1.05)
    points = (points - 0.5) @ turn.T + 0.5 + rng.normal(0, 0.03, 2)
    canvas = Image.new("L", (SIDE * FINE, SIDE * FINE), 255)
    pen, draw = int(rng.integers(8, 18)), ImageDraw.Draw(canvas)
    for first, middle, last in points * SIDE * FINE:
        curve = (1 - STEPS) ** 2 * first + 2 * STEPS * (1 - STEPS) * middle + STEPS**2 * last
        draw.line([(float(x), float(y)) for x, y in curve], fill=0, width=pen, joint="curve")
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    rng = np.random.default_rng(told.seed)
    signs = [sign(rng) for _ in range(told.classes)]
    for k, points in enumerate(signs):
        folder = told.out / f"sign{k:02}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(told.images):
            written(points, np.random.default_rng((told.seed, k, i))).save(folder / f"{i:04}.png")
    print(f"{told.classes * told.images:,} drawn glyphs of {told.classes} signs in {told.out}")


if __name__ == "__main__":
    main()

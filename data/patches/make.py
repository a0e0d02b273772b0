"""Cut patches out of the two photographs that scikit-learn ships, with a label table.

    python data/patches/make.py OUT

makes OUT/images/roof-00.png ..., grey patches of 40 x 40 pixels from a pagoda and a dahlia, and
OUT/what.csv with the columns path,label,group. A label is what the patch shows; a group is the part
of the photograph it was cut from, so that no part lies on both sides of a split. Without colour and
context a patch is told by texture and form alone. Files that are there already with the same
content are left untouched, so a feature cache over them stays fresh.

The photographs are china.jpg and flower.jpg of `sklearn.datasets.load_sample_images`.
"""

import csv
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE = 40  # pixels
SEED = 0
N_PER_PART = 24
# Parts of the photographs: left, top, right, bottom.
PARTS: dict[str, tuple[str, list[tuple[int, int, int, int]]]] = {
    "roof": ("china.jpg", [(120, 70, 205, 125), (205, 70, 300, 125), (70, 245, 210, 290),
                           (190, 245, 340, 290), (200, 340, 330, 390)]),
    "walls": ("china.jpg", [(115, 125, 205, 170), (205, 125, 300, 170), (100, 190, 210, 238),
                            (210, 190, 320, 238), (90, 280, 210, 330), (200, 280, 340, 330)]),
    "tree": ("china.jpg", [(0, 190, 70, 260), (580, 140, 640, 240), (570, 260, 640, 427),
                           (60, 340, 200, 427), (330, 320, 450, 427), (450, 290, 570, 427)]),
    "water": ("china.jpg", [(340, 225, 450, 310), (440, 240, 550, 290)]),
    "sky": ("china.jpg", [(0, 0, 100, 160), (330, 0, 480, 120), (480, 0, 640, 120),
                          (340, 120, 560, 200)]),
    "petal": ("flower.jpg", [(180, 100, 270, 200), (270, 90, 360, 160), (360, 120, 435, 220),
                             (180, 220, 280, 340), (280, 280, 370, 355), (360, 220, 440, 330)]),
    "leaf": ("flower.jpg", [(0, 70, 140, 200), (0, 200, 150, 330), (450, 50, 640, 180),
                            (460, 180, 640, 340)]),
}  # fmt: skip


def write_if_changed(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)


def main(out: Path) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    samples = load_sample_images()
    photos = {
        Path(name).name: Image.fromarray(pixels).convert("L")
        for name, pixels in zip(samples.filenames, samples.images, strict=True)
    }
    rng, rows = np.random.default_rng(SEED), []
    for label, (photo, parts) in PARTS.items():
        count = 0
        for number, (left, top, right, bottom) in enumerate(parts):
            for _ in range(N_PER_PART):
                x = int(rng.integers(left, right - SIDE + 1))
                y = int(rng.integers(top, bottom - SIDE + 1))
                patch = photos[photo].crop((x, y, x + SIDE, y + SIDE))
                # Brightness would tell sky from leaves: only texture and form shall.
                cells = np.asarray(patch, float)
                cells = (cells - cells.mean()) / max(cells.std(), 4) * 48 + 128
                buffer = io.BytesIO()
                Image.fromarray(cells.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
                name = f"{label}-{count:03}.png"
                write_if_changed(out / "images" / name, buffer.getvalue())
                rows.append((name, label, f"{label} {number}"))
                count += 1
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "label", "group"])
    writer.writerows(rows)
    write_if_changed(out / "what.csv", table.getvalue().encode())
    print(f"{len(rows):,} patches in {out / 'images'}; label table {out / 'what.csv'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Write scikit-learn's real handwritten digits as an image folder and three label tables.

    python data/digits/make.py OUT

makes OUT/images/0000.png ... 1796.png (8 x 8, grey), and OUT/digit.csv, OUT/parity.csv,
OUT/loop.csv with the columns path,label, paths relative to OUT/images. Files that are there
already with the same content are left untouched, so a feature cache over them stays fresh.

The digits are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, UCI Machine Learning Repository, data set 80), as it comes with scikit-learn:
1,797 digits by 13 writers, each 8 x 8 cells holding a count of ink from 0 to 16.
"""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

# A 4 is drawn both ways, open and closed, and the data does not say which; it counts as open.
LOOPED = {0, 6, 8, 9}

TASKS: dict[str, Callable[[int], str]] = {
    "digit": str,
    "parity": lambda digit: "odd" if digit % 2 else "even",
    "loop": lambda digit: "loop" if digit in LOOPED else "open",
}


def write_if_changed(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)


def png(cells: np.ndarray) -> bytes:
    grey = np.round(cells * (255 / 16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def main(out: Path) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    names = [f"{i:04}.png" for i in range(len(digits.images))]
    for name, cells in zip(names, digits.images, strict=True):
        write_if_changed(out / "images" / name, png(cells))
    for task, label in TASKS.items():
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["path", "label"])
        writer.writerows(zip(names, map(label, digits.target.tolist()), strict=True))
        write_if_changed(out / f"{task}.csv", table.getvalue().encode())
    print(f"{len(names):,} digits in {out / 'images'}; label tables {', '.join(TASKS)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python data/digits/make.py OUT")
    main(Path(sys.argv[1]))

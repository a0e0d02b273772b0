"""What it takes before the first image: `--help`, and one image from cold.

The limits: half a second for `--help`; for one image a second beyond importing torch, torchvision
and h5py, on the engine eager.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from machine import describe
from photos import photos
from table import show

PASSES = 5


def seconds(*line: object) -> float:
    taken = []
    for _ in range(PASSES):
        with tempfile.TemporaryDirectory() as home:
            words = [str(word).replace("HOME", home) for word in line]
            start = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            taken.append(time.perf_counter() - start)
    return median(taken)


def main() -> None:
    print(describe())
    command = Path(sys.executable).with_name("featurize")
    with tempfile.TemporaryDirectory() as folder:
        image = next(photos(1).rglob("*.jpg"))
        (Path(folder) / image.name).symlink_to(image)
        rows = [{"what": "python -c pass", "seconds": seconds(sys.executable, "-c", "pass")}]
        rows.append({"what": "featurize --help", "seconds": seconds(command, "--help")})
        imports = seconds(sys.executable, "-c", "import torch, torchvision, h5py")
        rows.append({"what": "import torch, torchvision, h5py", "seconds": imports})
        taken = seconds(command, "run", folder, "-o", "HOME/c.h5", "--backbone", "seedling")
        rows.append({"what": "one image, seedling", "seconds": taken, "beyond": taken - imports})
    show("Start-up", rows, "The limits: 0.5 s for --help, 1 s beyond imports for one image.")


if __name__ == "__main__":
    main()

"""Many classes: do a million images of 10,000 classes fit into 4 GB, and 100,000 of 50,000?

The heads in closed form, by the command: seconds, and the most that it and its workers held at
once, shared pages counted once. The limit: 4 GB. Beside it, what a dense matrix of images by
classes would take.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from features import BUILD, drawn_cache
from machine import describe
from million_rows import descendants, proportional

DIM = 64
SIZES = ((1_000_000, 10_000), (100_000, 50_000))
HEADS = ("ncm", "ridge", "lda")


def watched(*arguments: object) -> tuple[float, float]:
    """Run the command to its end: seconds, and the most it held, MB."""
    line = [str(Path(sys.executable).with_name("classify")), *map(str, arguments)]
    start, held = time.perf_counter(), 0.0
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            held = max(held, sum(map(proportional, [process.pid, *descendants(process.pid)])))
            time.sleep(0.3)
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {process.returncode}")
    return time.perf_counter() - start, held


def main() -> None:
    print(describe())
    print(f"{'images':>10} {'classes':>8} {'dense':>9}  {'command':24} {'seconds':>8} {'held':>9}")
    for rows, classes in SIZES:
        path = BUILD / f"drawn-{rows}-{classes}.h5"
        drawn_cache(path, rows, DIM, classes)
        calls = [("fit", path, "--head", head, "-o", path.with_suffix(".head")) for head in HEADS]
        calls.append(("compare", path, "--heads", ",".join(HEADS)))
        for call in calls:
            shutil.rmtree(f"{path}.kept", ignore_errors=True)
            seconds, held = watched(*call)
            print(f"{rows:10,} {classes:8,} {rows * classes * 4 / 2**30:6,.0f} GB  "
                  f"{' '.join((call[0], call[3])):24} {seconds:8.0f} {held:6,.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()

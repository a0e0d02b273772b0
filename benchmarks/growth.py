"""From a thousand images to a million: time and memory.

Tiny pictures and a tiny network, so that what is measured is the run around them; each size in a
process of its own. Then the same command again, with nothing changed. The limits: time in
proportion to rows, memory that does not grow; the second run within 2 s of listing the files.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from machine import describe
from photos import BUILD
from plot import lines
from table import show

from featurize.sources import folder as folder_source

RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}


def tiny_images(count: int) -> Path:
    """Folders of a thousand pictures of 8 x 8 pixels, each with its own number in it."""
    home = BUILD / f"tiny-{count}"
    if not (home / ".whole").exists():
        for k in range(count):
            path = home / f"{k // 1000:04}" / f"{k:07}.ppm"
            if k % 1000 == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P6 8 8 255\n" + k.to_bytes(8, "big") * 24)
        (home / ".whole").touch()
    return home


def once(folder: str, cache: str) -> None:
    """One run in this process; prints what it took."""
    import torch

    from featurize import Backbone, run

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, stride=2))
    backbone = Backbone(net, name="tiny", preprocess=RECIPE)
    start = time.perf_counter()
    folder_source.list_images(folder)
    listing = time.perf_counter() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = run(folder, cache, backbone=backbone, layers="0")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    again = run(folder, cache)
    second = time.perf_counter() - start
    told = {"rows": done.rows, "computed": done.computed, "again": again.computed}
    told |= {"seconds": done.seconds, "listing": listing, "second": second}
    print(json.dumps(told | {"peak": peak / 1024, "grown": (peak - before) / 1024}))


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--most", type=int, default=1_000_000)
    options.add_argument("--once", nargs=2)
    given = options.parse_args()
    if given.once:
        once(*given.once)
        return
    print(describe())
    rows = []
    for count in (1_000, 10_000, 100_000, 1_000_000):
        if count > given.most:
            break
        folder, cache = tiny_images(count), BUILD / f"tiny-{count}.h5"
        cache.unlink(missing_ok=True)
        line = [sys.executable, __file__, "--once", str(folder), str(cache)]
        threads = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, check=True, capture_output=True, text=True, env=threads)
        told = json.loads(done.stdout)
        if (told["computed"], told["again"]) != (count, 0):
            raise SystemExit(f"not every row was computed once: {told}")
        rows.append({
            "rows": count, "seconds": told["seconds"], "rows/s": count / told["seconds"],
            "peak MB": told["peak"], "of it the run's": told["grown"],
            "listing s": told["listing"], "second run s": told["second"],
            "beyond listing s": told["second"] - told["listing"],
        })  # fmt: skip
        cache.unlink()
    show(
        "Growth",
        rows,
        "The limits: seconds in proportion to rows, flat memory; 2 s beyond listing.",
    )
    lines(Path(__file__).with_name("growth.svg"), "rows", {
        "seconds": [(row["rows"], row["seconds"]) for row in rows],
        "peak memory, MB": [(row["rows"], row["peak MB"]) for row in rows],
    })  # fmt: skip


if __name__ == "__main__":
    main()

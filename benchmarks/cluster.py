"""A run on a Ray cluster of this machine beside a plain run; and how many rows the driver can take.

Core-seconds of all processes of a run, for two numbers of photographs: their difference is what an
image costs, the rest is what a run costs. SqueezeNet, the engine eager, one worker. Then rows of
2,048 numbers, made up by two workers without any image: what one driver takes and writes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from photos import photos
from table import Row, show

TICK = os.sysconf("SC_CLK_TCK")
SMALL, LARGE = 300, 1200
DIM, N_DRIVER_ROWS, N_PRODUCERS = 2048, 30_000, 2
RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
WAYS = {"plain": (), "Ray, 1 worker": ("--cluster", "local", "--actors", "1")}


class Producer:
    """Gives rows of random numbers for blocks of places, in a worker's stead."""

    def __init__(self, arguments: Any) -> None:
        self._arguments = arguments

    def __call__(self, table):
        import ray

        from featurize.extraction.cluster.results import BlockSink, make_result_table
        from featurize.pipeline.prefetch import PrefetchedImage

        job: Any = ray.get(self._arguments.job)
        dtypes = job.network.dtypes
        rows = table.column("row").to_numpy()
        rng = np.random.default_rng(int(rows[0]))
        sink = BlockSink(dtypes)
        items = [
            PrefetchedImage(k, 1, 1, row.to_bytes(32, "big")) for k, row in enumerate(rows.tolist())
        ]
        sink.put(items, [rng.random((len(rows), DIM), np.float32)])
        return make_result_table(sink, rows, dtypes)


def read_core_seconds(root: int) -> dict[int, float]:
    """Core-seconds so far of a process and each of its living descendants, by number."""
    parents, seconds = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICK
    family = {root}
    while new := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= new
    return {pid: seconds[pid] for pid in family if pid in seconds}


def measure_run(line: list[str]) -> tuple[float, float]:
    """Core-seconds of all processes of a command, and its wall time, in seconds."""
    spent: dict[int, float] = {}
    start = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        while run.poll() is None:
            spent |= read_core_seconds(run.pid)
            time.sleep(0.05)
        if run.returncode:
            raise SystemExit(run.stderr.read().decode())
    return sum(spent.values()), time.perf_counter() - start


def compare(rounds: int) -> None:
    """Plain runs and runs on a cluster, in turn."""
    featurize = str(Path(sys.executable).with_name("featurize"))
    real = os.environ.get("HEADGRAFT_REAL")
    weights = f"{real}/squeezenet1_1-imagenet.safetensors"
    network = ["--backbone", "squeezenet1_1", "--weights", weights] if real else []
    network = network or ["--backbone", "seedling"]
    best: dict[tuple[str, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        for _ in range(rounds):
            for count in (SMALL, LARGE):
                for way, options in WAYS.items():
                    cache = Path(home, "c.h5")
                    cache.unlink(missing_ok=True)
                    line = [featurize, "run", str(photos(count)), "-o", str(cache), *network]
                    measured = measure_run([*line, "--engine", "eager", *options])
                    best[way, count] = min(best.get((way, count), measured), measured)
    rows: list[Row] = []
    for way in WAYS:
        (small, _), (large, wall) = best[way, SMALL], best[way, LARGE]
        each = (large - small) / (LARGE - SMALL)
        rows.append(
            {
                "run": way,
                f"{SMALL} photographs, core-s": small,
                f"{LARGE} photographs, core-s": large,
                "an image, core-ms": 1000 * each,
                "fixed, core-s": small - SMALL * each,
                f"{LARGE} photographs, s": wall,
            }
        )
    show("A cluster of this machine, and this process alone", rows, f"The least of {rounds} runs.")


def measure_driver() -> None:
    """Rows a second out of Ray and into a cache."""
    import torch

    import featurize
    from featurize.extraction.cluster import blocks, process_rows
    from featurize.pipeline.stats import RunStats

    process_rows.Featurizer = Producer
    blocks.MAX_BLOCK_ROWS_ON_CPU = blocks.MAX_BLOCK_ROWS
    network = torch.nn.Sequential(torch.nn.Conv2d(3, DIM, 3))
    backbone = featurize.Backbone(network, name="wide", preprocess=RECIPE)
    seen: list[tuple[float, int]] = []

    def report(stats: RunStats) -> None:
        seen.append((time.perf_counter(), stats.done))

    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "images")
        folder.mkdir()
        for k in range(N_DRIVER_ROWS):
            (folder / f"{k:06}.jpg").write_bytes(b"0")
        featurize.run(
            *(folder, Path(home, "c.h5")),
            **{"backbone": backbone, "layers": "0", "report": report},
            **{"cluster": "local", "actors": N_PRODUCERS},
        )
    (first_time, first), (last_time, last) = seen[0], seen[-1]
    rate = (last - first) / (last_time - first_time)
    show(
        "What one driver takes",
        [
            {
                "rows": last - first,
                "rows/s": rate,
                "MB/s": rate * DIM * 4 / 1e6,
            }
        ],
        f"Rows of {DIM:,} float32, made by {N_PRODUCERS} workers on the same cores.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    print(describe())
    compare(rounds)
    measure_driver()


if __name__ == "__main__":
    main()

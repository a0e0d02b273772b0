"""Reading features: by memory map in order and shuffled, beside h5py and beside copying memory.

The file is in the page cache. The limits: memory's own speed, and no penalty for shuffled rows
beyond what fetching whole rows out of order costs in memory.
"""

import time
from statistics import median

import h5py
import numpy as np
from features import BUILD, drawn_cache
from machine import describe
from table import show

ROWS, DIM, SOME, PASSES = 100_000, 512, 20_000, 7


def seconds(work) -> float:
    taken = []
    for _ in range(PASSES):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken)


def main() -> None:
    print(describe())
    cache = drawn_cache(BUILD / f"drawn-{ROWS}.h5", ROWS, DIM)
    shuffled = np.random.default_rng(0).permutation(ROWS)[:SOME]
    ordered = np.arange(SOME)
    memory = np.array(cache.features("drawn"))
    features = cache.features("drawn")
    with h5py.File(cache.path) as file:
        dataset = file["features/drawn"]
        rising = np.sort(shuffled)  # h5py takes rising indices only
        ways = {
            "memory, in order": lambda: memory[ordered],
            "memory, shuffled": lambda: memory[shuffled],
            "memory map, in order": lambda: features[ordered],
            "memory map, shuffled": lambda: features[shuffled],
            "FeatureCache.features(rows), shuffled": lambda: cache.features("drawn", shuffled),
            "h5py, sorted": lambda: dataset[rising],
        }
        found = {name: seconds(work) for name, work in ways.items()}
    least = found["memory, in order"]
    show(f"{SOME:,} of {ROWS:,} rows of {DIM} numbers", [
        {"way": name, "ms": 1e3 * taken, "GB/s": SOME * DIM * 4 / taken / 1e9,
         "x memory in order": taken / least}
        for name, taken in found.items()
    ])  # fmt: skip


if __name__ == "__main__":
    main()

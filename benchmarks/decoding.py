"""Decoding alone: reading, hashing, decoding and cropping, in threads and in processes.

On few cores nothing but the work counts. On many, threads would wait for each other where they
hold the interpreter's lock: how long an image holds it bounds the images a second that threads can
bring, however many cores there are. It is measured by a second thread that counts, and can count
only while nobody holds the lock. The limit for `--decode fast` on large photographs: 4 times exact.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from machine import describe
from photos import megabytes, photos
from table import show

from featurize import cores, images, memory

RECIPE = {"resize": 256, "crop": 224, "interpolation": "bilinear"}
AT_ONCE = 8  # images a process is handed at a time, so that handing over is not what is timed


def pixels_of(path: Path, decoder: str) -> np.ndarray:
    """What a decoding thread of a run does."""
    data = images.read(path)
    images.digest(data)
    return images.decode(data, {**RECIPE, "decode": decoder})


def rate(pool: Executor, paths: list[Path], decoder: str, seconds: float) -> float:
    """Images a second that arrive in this process."""
    work = partial(pixels_of, decoder=decoder)
    list(pool.map(work, paths[: 4 * AT_ONCE], chunksize=AT_ONCE))
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(list(pool.map(work, paths[:64], chunksize=AT_ONCE)))
    return count / (time.perf_counter() - start)


def counted(work: Callable[[], None]) -> tuple[int, float]:
    """How far another thread counts during some work, and the seconds that took."""
    count, over = 0, threading.Event()

    def go() -> None:
        nonlocal count
        while not over.is_set():
            count += 1

    thread = threading.Thread(target=go)
    thread.start()
    start = time.perf_counter()
    work()
    taken = time.perf_counter() - start
    over.set()
    thread.join()
    return count, taken


def locked_ms(paths: list[Path], decoder: str) -> float:
    """Milliseconds an image holds the interpreter's lock."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        free, asleep = counted(lambda: time.sleep(1.0))
        count, taken = counted(lambda: [pixels_of(path, decoder) for path in paths] and None)
    finally:
        sys.setswitchinterval(before)
    share = 1 - (count / taken) / (free / asleep)
    return 1e3 * share * taken / len(paths)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    print(describe())
    memory.keep()  # as a run does
    rows = []
    large = (4000, 3000)
    for count, size, grain in ((1000, (640, 480), True), (240, large, True), (240, large, False)):
        folder = photos(count, size, grain=grain)
        paths = sorted(folder.rglob("*.jpg"))
        some = paths[: 128 if count > 240 else 16]
        for decoder in ("exact", "fast"):
            found: dict[str, list[float]] = {"threads": [], "processes": [], "lock": []}
            with (
                ThreadPoolExecutor(cores.allowed()) as threads,
                ProcessPoolExecutor(cores.allowed()) as processes,
            ):
                for _ in range(given.rounds):
                    for name, pool in (("threads", threads), ("processes", processes)):
                        found[name].append(rate(pool, paths, decoder, given.seconds))
                    found["lock"].append(locked_ms(some, decoder))
            held = median(found["lock"])
            rows.append({
                "pixels": f"{size[0]} x {size[1]}", "MB": megabytes(folder), "--decode": decoder,
                "threads": median(found["threads"]), "processes": median(found["processes"]),
                "lock held, ms": held, "threads at most": 1e3 / held,
            })  # fmt: skip
            exact = rows[-1 if decoder == "exact" else -2]
            rows[-1]["x exact"] = rows[-1]["threads"] / exact["threads"]
    show(f"Decoding alone, images/s on {cores.allowed()} cores", rows,
         "The limit: 4 times exact for fast, on photographs of 12 megapixels.")  # fmt: skip


if __name__ == "__main__":
    main()

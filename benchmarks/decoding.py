"""Decoding alone: reading, hashing, decoding and cropping, in threads and in processes.

On few cores nothing but the work counts. On many, threads wait for each other where they hold the
interpreter's lock: the second table has 16 threads whose decompressing is stood for by sleep, which
takes neither lock nor core, so that two cores show what 16 would do.
"""

import argparse
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
from machine import describe
from photos import megabytes, photos
from PIL import Image
from table import Row, show

from featurize.engines.auto import EngineSelector
from featurize.files import hash_bytes
from featurize.images import decoding as image_decoding
from featurize.images import reading
from featurize.images.preprocess import DECODE_MODES, Preprocess
from featurize.images.workers import worker
from featurize.images.workers.pool import DecoderPool
from featurize.pipeline.prefetch import ExtractionJob, Prefetcher
from featurize.pipeline.stats import RunStats
from featurize.sources.folder import list_images
from featurize.system import cpu, memory

PREPROCESS = Preprocess(256, 224, mean=(0.5,) * 3, std=(0.25,) * 3)
AT_ONCE = 8  # images a process is handed at a time, so that handing over is not what is timed


def pixels_of(path: Path, decoder: str) -> np.ndarray:
    """What a decoding thread of a run does."""
    data = reading.read_image_file(path).data
    hash_bytes(data)
    return image_decoding.decode_image(data, replace(PREPROCESS, decode=decoder))


def entropy_ms(paths: list[Path]) -> float:
    """Milliseconds of processor time an image, read into an eighth of its size by simplejpeg."""
    import simplejpeg

    found = []
    for path in paths[:20]:
        data = path.read_bytes()
        start = time.thread_time()
        simplejpeg.decode_jpeg(data, min_height=1, min_width=1, min_factor=8)
        found.append(1e3 * (time.thread_time() - start))
    return median(found)


def rate(pool: Executor, paths: list[Path], decoder: str, seconds: float) -> float:
    """Images a second that arrive in this process."""
    work = partial(pixels_of, decoder=decoder)
    list(pool.map(work, paths[: 4 * AT_ONCE], chunksize=AT_ONCE))
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(list(pool.map(work, paths[:64], chunksize=AT_ONCE)))
    return count / (time.perf_counter() - start)


def many_cores(threads: int, seconds: float, *, apart: bool) -> float:
    """Images a second that a run is given by so many threads, as if each had a core of its own.

    Reading, hashing and handing over are done in full, as in a run. Decompressing and resizing,
    which hold no lock, are stood for by `seconds` of sleep, here or in the thread's own process;
    here, what holds the lock beside them is done in full too.
    """
    tiny, large = photos(1, (8, 8)) / "0" / "00000.jpg", Image.new("RGB", (341, 256))
    opening = reading.read_image_file(tiny).data
    decode_image = image_decoding.decode_image

    def stand_in(_data: bytes, _preprocess: Preprocess) -> np.ndarray:
        decode_image(opening, replace(PREPROCESS, resize=8, crop=8))
        time.sleep(seconds)
        return np.asarray(large.crop((58, 16, 282, 240)))

    in_child = f"time.sleep({seconds}) or pixels"
    code = worker.WORKER_CODE.replace(
        "\nworker_main",
        "\nimport time, numpy as np, featurize.images.decoding as images"
        "\npixels = np.zeros((224, 224, 3), np.uint8)"
        f"\nimages.decode_image = lambda data, preprocess: {in_child}\nworker_main",
    )
    listing = list_images(photos(1000))
    rows = np.repeat(np.arange(1000), max(2, threads))
    decoders = DecoderPool(PREPROCESS)
    with (
        mock.patch.object(worker, "WORKER_CODE", code),
        mock.patch.object(image_decoding, "decode_image", stand_in),
        tempfile.TemporaryDirectory() as home,
    ):
        if apart:
            decoders.use_processes_if_worth("cuda", threads, 10**9)
        selector = EngineSelector("eager", "float32", mock.Mock(), print)
        job = ExtractionJob(listing, rows, PREPROCESS, [], selector, Path(home) / "working")
        # Every image counts as a new one, though there are a thousand.
        content_index = mock.Mock(claim=lambda digest, row: None)
        prefetcher = Prefetcher(job, content_index, RunStats(threads), decoders)
        prefetcher.batch_size = 256
        try:
            times = [time.perf_counter() for item in prefetcher if item is not None]
        finally:
            prefetcher.stop()
            decoders.close()
    steady = times[len(times) // 4 :]  # processes have started by then
    return (len(steady) - 1) / (steady[-1] - steady[0])


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--lock-alone", action="store_true", help="the second table alone")
    given = options.parse_args()
    print(describe())
    memory.retain_freed_memory()  # as a run does
    if not given.lock_alone:
        show_rates(given)
    show_lock(given)


def show_rates(given: argparse.Namespace) -> None:
    rows: list[Row] = []
    rates: dict[tuple[tuple[int, int], bool], float] = {}  # of exact decoding
    large = (4000, 3000)
    for count, size, grain in ((1000, (640, 480), True), (240, large, True), (240, large, False)):
        folder = photos(count, size, grain=grain)
        paths = sorted(folder.rglob("*.jpg"))
        for decoder in DECODE_MODES:
            found: dict[str, list[float]] = {"threads": [], "processes": []}
            with (
                ThreadPoolExecutor(cpu.usable_cores()) as threads,
                ProcessPoolExecutor(cpu.usable_cores()) as processes,
            ):
                for _ in range(given.rounds):
                    for name, pool in (("threads", threads), ("processes", processes)):
                        found[name].append(rate(pool, paths, decoder, given.seconds))
            rows.append({
                "pixels": f"{size[0]} x {size[1]}", "MB": megabytes(folder), "--decode": decoder,
                "threads": median(found["threads"]), "processes": median(found["processes"]),
            })  # fmt: skip
            exact = rates.setdefault((size, grain), median(found["threads"]))
            rows[-1]["x exact"] = median(found["threads"]) / exact
        rows[-1]["entropy decoding, ms"] = entropy_ms(paths)
    show(f"Decoding alone, images/s on {cpu.usable_cores()} cores", rows,
         "The aim: 4 times exact for fastest, on photographs of 12 megapixels. Entropy decoding is "
         "what no reduced size saves: the time of a JPEG at an eighth of its size.")  # fmt: skip


def show_lock(given: argparse.Namespace) -> None:
    rows: list[Row] = []
    for ms in (2, 4, 8):
        alone = many_cores(1, ms / 1e3, apart=False)
        row: Row = {"decompressing, ms": ms, "one thread": alone}
        for name, apart in (("16 threads", False), ("each with a process", True)):
            found = [many_cores(16, ms / 1e3, apart=apart) for _ in range(given.rounds)]
            row |= {name: median(found), f"{name}, x 16": median(found) / (16 * alone)}
        rows.append(row)
    show("The interpreter's lock, images/s as if every thread had a core", rows,
         "The limit: 0.9 at 2 ms; 1 is where no thread waits for another.")  # fmt: skip


if __name__ == "__main__":
    main()

"""`--dry-run`: how many images, how many bytes, how long."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurize.cache.builder import estimate_cache_bytes
from featurize.cache.format import PENDING
from featurize.cache.reader import FeatureCache
from featurize.engines.batching import BatchRunner
from featurize.errors import ImageUnreadableError
from featurize.extraction.changes import ListingDiff, RetryPolicy
from featurize.extraction.setup import ExtractionSetup
from featurize.images import decoding, reading
from featurize.images.preprocess import Preprocess
from featurize.sources.folder import ImageListing

SAMPLE_SIZE = 16
MIN_SPEEDUP = 1.5  # times as fast: from there on it is worth a word


@dataclass
class Estimate:
    """What a run would do.

    Attributes
    ----------
    rows : int
        Images in the folder.
    to_compute : int
        Of them, those that are not in the cache yet.
    bytes : int
        The cache's size in the end.
    seconds : float
        Expected, without the download of weights.
    """

    cache: str
    rows: int
    to_compute: int
    bytes: int
    seconds: float
    images_per_second: float
    layers: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def estimate_run(
    path: Path,
    listing: ImageListing,
    cache: FeatureCache | None,
    diff: ListingDiff | None,
    setup: ExtractionSetup,
    retry: RetryPolicy,
) -> Estimate:
    """Time a sample of the images through decoding and the network.

    The network runs with weights as initialised: its speed does not depend on them, and a dry
    run downloads nothing.
    """
    to_compute = len(listing.paths)
    layers = setup.resolved.layers
    if cache is not None and diff is not None and len(layers) == len(cache.layers):
        finished = (cache.status != PENDING) & ~retry.select_failures(cache)
        to_compute -= int((diff.unchanged & finished[diff.old_row]).sum())
    blank = setup.with_initial_weights()
    infos = blank.describe_layers(layers)
    seconds = rate = 0.0
    if to_compute:
        step = max(1, len(listing.paths) // SAMPLE_SIZE)
        rows = range(0, len(listing.paths), step)[:SAMPLE_SIZE]
        preprocess = blank.backbone.preprocess

        def decoded(row: int) -> np.ndarray | None:
            try:
                return decoding.decode_image(
                    reading.read_image_file(listing.full_path(row)).data, preprocess
                )
            except ImageUnreadableError:
                return None

        start = time.perf_counter()
        with ThreadPoolExecutor() as pool:
            pixels = [p for p in pool.map(decoded, rows) if p is not None]
        decode_seconds = (time.perf_counter() - start) / len(rows)
        batches = BatchRunner(blank.make_engine_selector(infos))
        crop = preprocess.crop
        batch = np.stack(pixels) if pixels else np.zeros((SAMPLE_SIZE, crop, crop, 3), np.uint8)
        batches.batch_size = len(batch)
        for _ in range(2):  # the first one pays for start-up
            batches.run(batch)
        if batches.maybe_upgrade(to_compute):
            batches.run(batch)
        run_seconds = batches.last_seconds / len(batch)
        # On a processor the two share the cores; on a GPU the slower one counts.
        each = max(decode_seconds, run_seconds)
        if batches.engine.device == "cpu":
            each = decode_seconds + run_seconds
        seconds, rate = to_compute * each, 1 / each
    return Estimate(
        cache=str(path),
        rows=len(listing.paths),
        to_compute=to_compute,
        bytes=estimate_cache_bytes(infos, len(listing.paths)),
        seconds=seconds,
        images_per_second=rate,
        layers=[info.name for info in infos],
    )


def suggest_fast_decoding(listing: ImageListing, preprocess: Preprocess) -> str:
    """What ``--decode fast`` would bring, measured on a few images; empty where that is little."""
    seconds = {"exact": 0.0, "fast": 0.0}
    reduced = False  # images no larger than the target are decoded alike by both
    rows = range(0, len(listing.paths), max(1, len(listing.paths) // 4))[:4]
    for row in rows:
        try:
            data = reading.read_image_file(listing.full_path(row)).data
            pixels = {}
            for decoder in seconds:
                start = time.perf_counter()
                pixels[decoder] = decoding.decode_image(data, replace(preprocess, decode=decoder))
                seconds[decoder] += time.perf_counter() - start
        except ImageUnreadableError:
            continue
        reduced |= not np.array_equal(pixels["exact"], pixels["fast"])
    times = seconds["exact"] / seconds["fast"] if reduced else 1.0
    if times < MIN_SPEEDUP:
        return ""
    return (
        f" With --decode fast these images decode {times:.1f} times as fast; it changes pixels "
        "slightly, so it needs a cache of its own (another -o)."
    )

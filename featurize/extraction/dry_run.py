"""`--dry-run`: estimate the images, the bytes and the time of a run."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurize.cache.builder import estimate_cache_bytes
from featurize.cache.format import PENDING, LayerInfo
from featurize.cache.reader import FeatureCache
from featurize.engines.batching import BatchRunner
from featurize.errors import ImageUnreadableError
from featurize.extraction.completion.changes import ListingDiff, RetryPolicy
from featurize.extraction.setup import ExtractionSetup
from featurize.images import decoding
from featurize.images.reading import ImageFile
from featurize.layer_spec import LayerSpec
from featurize.sources.listing import ImageListing, ImageRead, read_images

SAMPLE_SIZE = 16


@dataclass
class Estimate:
    """Estimate of a run.

    Attributes
    ----------
    cache : str
        Path of the cache.
    rows : int
        Images in the folder.
    to_compute : int
        Images that are not in the cache yet.
    bytes : int
        Size of the finished cache.
    seconds : float
        Expected time, without the download of weights.
    images_per_second : float
        0 if there is nothing to compute.
    layers : list of str
        Dataset names.
    """

    cache: str
    rows: int
    to_compute: int
    bytes: int
    seconds: float
    images_per_second: float
    layers: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON.

        Returns
        -------
        dict of str to object
            The attributes by name.
        """
        return asdict(self)


def estimate_run(
    path: Path,
    listing: ImageListing,
    cache: FeatureCache | None,
    diff: ListingDiff | None,
    setup: ExtractionSetup,
    retry: RetryPolicy,
) -> Estimate:
    """Estimate a run by timing a sample of images in decoding and the network.

    The network has its initial weights: its speed does not depend on them, and a dry run downloads
    nothing.

    Parameters
    ----------
    path : Path
        The cache, which need not exist.
    listing : ImageListing
    cache : FeatureCache or None
        The cache at `path`, if it exists.
    diff : ListingDiff or None
        Of `listing` and `cache`.
    setup : ExtractionSetup
    retry : RetryPolicy

    Returns
    -------
    Estimate
    """
    layers = setup.layers
    to_compute = count_to_compute(listing, cache, diff, layers, retry)
    untrained_setup = setup.with_initial_weights()
    infos = untrained_setup.describe_layers(layers)
    seconds_per_image = time_images(listing, untrained_setup, infos, to_compute)
    return Estimate(
        cache=str(path),
        rows=len(listing.paths),
        to_compute=to_compute,
        bytes=estimate_cache_bytes(infos, len(listing.paths)),
        seconds=to_compute * seconds_per_image,
        images_per_second=1 / seconds_per_image if to_compute else 0.0,
        layers=[info.name for info in infos],
    )


def count_to_compute(
    listing: ImageListing,
    cache: FeatureCache | None,
    diff: ListingDiff | None,
    layers: Sequence[LayerSpec],
    retry: RetryPolicy,
) -> int:
    """Count the images that a cache lacks.

    Parameters
    ----------
    listing : ImageListing
    cache : FeatureCache or None
    diff : ListingDiff or None
        Of the two.
    layers : sequence of LayerSpec
        Those of the finished cache.
    retry : RetryPolicy

    Returns
    -------
    int
    """
    to_compute = len(listing.paths)
    if cache is not None and diff is not None and len(layers) == len(cache.layers):
        finished = (cache.status != PENDING) & ~retry.select_failures(cache)
        to_compute -= int((diff.unchanged & finished[diff.old_row]).sum())
    return to_compute


def time_images(
    listing: ImageListing, setup: ExtractionSetup, infos: list[LayerInfo], to_compute: int
) -> float:
    """Time a sample of images in decoding and the network.

    Parameters
    ----------
    listing : ImageListing
        The sample is of these.
    setup : ExtractionSetup
        With initial weights.
    infos : list of LayerInfo
        The layers to run.
    to_compute : int
        How many images the run has to compute.

    Returns
    -------
    float
        Seconds per image; 0 if there is nothing to compute.
    """
    if not to_compute:
        return 0.0
    step = max(1, len(listing.paths) // SAMPLE_SIZE)
    rows = range(0, len(listing.paths), step)[:SAMPLE_SIZE]
    preprocess = setup.backbone.preprocess

    def decode(read: ImageRead) -> np.ndarray | None:
        try:
            if isinstance(read.image, ImageFile):
                return decoding.decode_image(read.image.data, preprocess)
        except ImageUnreadableError:
            pass
        return None

    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        images = pool.map(decode, read_images(listing, rows))
        pixels = [image for image in images if image is not None]
    decode_seconds = (time.perf_counter() - start) / len(rows)
    batch_runner = BatchRunner(setup.make_engine_selector(infos))
    crop = preprocess.crop
    batch = np.stack(pixels) if pixels else np.zeros((SAMPLE_SIZE, crop, crop, 3), np.uint8)
    is_gpu = batch_runner.engine.device != "cpu"
    if is_gpu:  # a few images do not fill it
        batch = np.resize(batch, (batch_runner.batch_size, *batch.shape[1:]))
    batch_runner.batch_size = len(batch)
    for _ in range(2):  # the first batch includes start-up
        batch_runner.run(batch)
    # On a GPU a faster engine takes a minute to compile: what is told is eager's time.
    if not is_gpu and batch_runner.maybe_upgrade(to_compute):
        batch_runner.run(batch)
    run_seconds = batch_runner.last_seconds / len(batch)
    # On a processor decoding and network share the cores; on a GPU the slower one counts.
    return max(decode_seconds, run_seconds) if is_gpu else decode_seconds + run_seconds

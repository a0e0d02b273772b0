"""`--dry-run` on a cache of parts: the whole, by one part with something to do."""

from pathlib import Path

from featurize.cache.builder import estimate_cache_bytes
from featurize.cache.parts.index import PartsIndex
from featurize.errors import NoImagesError
from featurize.extraction.completion.changes import diff_listing
from featurize.extraction.completion.partial_cache import open_if_exists
from featurize.extraction.dry_run import Estimate, count_to_compute, time_images
from featurize.extraction.parts.part_images import PartImages
from featurize.extraction.parts.planning import find_range
from featurize.extraction.request import RunRequest
from featurize.extraction.setup import ExtractionSetup
from featurize.extraction.single_cache import KEEP_ADVICE
from featurize.sources.listing import ImageListing


def estimate_parts(
    folder: Path,
    index: PartsIndex,
    images: PartImages,
    setup: ExtractionSetup,
    request: RunRequest,
) -> Estimate:
    """Estimate a run on a cache of parts; see `estimate_run`.

    Parts that exist are compared with their images. Of the others, images in containers are counted
    by bytes, and the first of them is listed for a sample.

    Parameters
    ----------
    folder : Path
        The cache of parts, which need not exist.
    index : PartsIndex
        As it is, or is planned.
    images : PartImages
    setup : ExtractionSetup
    request : RunRequest

    Returns
    -------
    Estimate
    """
    n_rows = n_to_compute = 0
    sample: ImageListing | None = None
    for position, part in enumerate(index.parts):
        keys = find_range(index, position)
        cache = open_if_exists(folder / part.file, KEEP_ADVICE)
        if cache is None:
            n_part = images.count(keys)
            n_rows, n_to_compute = n_rows + n_part, n_to_compute + n_part
        try:
            if cache is None and sample is not None:
                continue
            listing = images.list_range(keys, cache)
        except NoImagesError:
            continue
        n_missing = len(listing.paths)
        if cache is not None:
            diff = diff_listing(listing, cache)
            n_missing = count_to_compute(listing, cache, diff, setup.layers, request.retry)
            n_rows, n_to_compute = n_rows + len(listing.paths), n_to_compute + n_missing
        if n_missing and sample is None:
            sample = listing
    untrained_setup = setup.with_initial_weights()
    infos = untrained_setup.describe_layers(setup.layers)
    seconds_per_image = 0.0
    if sample is not None:
        seconds_per_image = time_images(sample, untrained_setup, infos, n_to_compute)
    return Estimate(
        cache=str(folder),
        rows=n_rows,
        to_compute=n_to_compute,
        bytes=estimate_cache_bytes(infos, n_rows),
        seconds=n_to_compute * seconds_per_image,
        images_per_second=1 / seconds_per_image if seconds_per_image else 0.0,
        layers=[info.name for info in infos],
    )

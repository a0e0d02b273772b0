"""What `--decode fast` would bring, measured on a few images of the run."""

import time
from dataclasses import replace

import numpy as np

from featurize.errors import ImageUnreadableError
from featurize.images import decoding
from featurize.images.preprocess import Preprocess
from featurize.images.reading import ImageFile
from featurize.sources.listing import ImageListing, read_images

MIN_SPEEDUP = 1.5  # smaller gains are not reported


def suggest_fast_decoding(listing: ImageListing, preprocess: Preprocess) -> str:
    """Measure the speed-up of ``--decode fast`` on a few images, and describe it.

    Parameters
    ----------
    listing : ImageListing
    preprocess : Preprocess

    Returns
    -------
    str
        A sentence that begins with a space; empty for a speed-up below `MIN_SPEEDUP`.
    """
    seconds = {"exact": 0.0, "fast": 0.0}
    differs = False  # small images are decoded alike by both
    rows = range(0, len(listing.paths), max(1, len(listing.paths) // 4))[:4]
    for _, image in read_images(listing, rows):
        if not isinstance(image, ImageFile):
            continue
        try:
            pixels = {}
            for mode in seconds:
                start = time.perf_counter()
                pixels[mode] = decoding.decode_image(image.data, replace(preprocess, decode=mode))
                seconds[mode] += time.perf_counter() - start
        except ImageUnreadableError:
            continue
        differs |= not np.array_equal(pixels["exact"], pixels["fast"])
    speedup = seconds["exact"] / seconds["fast"] if differs else 1.0
    if speedup < MIN_SPEEDUP:
        return ""
    return (
        f" With --decode fast these images decode {speedup:.1f} times as fast; it changes pixels "
        "slightly, so it needs a cache of its own (another -o)."
    )

"""What other options would bring where a run was bound, in a sentence."""

import time
from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from featurize.errors import ImageUnreadableError
from featurize.images import decoding
from featurize.images.preprocess import DECODE_MODES, QUICK_DECODE_MODES, Preprocess
from featurize.images.reading import ImageFile
from featurize.sources.listing import ImageListing, read_images
from featurize.system.cpu import has_bfloat16_matrices

MIN_SPEEDUP = 1.5  # smaller gains are not reported
CLEAR_GAIN = 1.15  # a mode that changes pixels more has to be faster by so much
N_TIMES = 2  # the first time of a mode includes imports


def suggest_decode_mode(listing: ImageListing, preprocess: Preprocess) -> str:
    """Measure the other decode modes on a few images, and describe the best one.

    Parameters
    ----------
    listing : ImageListing
    preprocess : Preprocess
        Decoding exactly.

    Returns
    -------
    str
        A sentence that begins with a space; empty for a speed-up below `MIN_SPEEDUP`.
    """
    has_quick = find_spec("simplejpeg") is not None
    modes = [mode for mode in DECODE_MODES if has_quick or mode not in QUICK_DECODE_MODES]
    seconds, differs = _time_modes(listing, preprocess, modes)
    best = "exact"
    for mode in modes[1:]:
        needed = MIN_SPEEDUP if best == "exact" else CLEAR_GAIN
        if differs[mode] and seconds[best] > needed * seconds[mode]:
            best = mode
    if best == "exact":
        return ""
    return (
        f" With --decode {best} these images decode {seconds['exact'] / seconds[best]:.1f} times "
        "as fast; it changes pixels slightly, so it needs a cache of its own (another -o)."
    )


def _time_modes(
    listing: ImageListing, preprocess: Preprocess, modes: list[str]
) -> tuple[dict[str, float], dict[str, bool]]:
    """Return the seconds of each mode, and whether it gives other pixels than exact."""
    seconds, differs = dict.fromkeys(modes, 0.0), dict.fromkeys(modes, False)
    rows = range(0, len(listing.paths), max(1, len(listing.paths) // 4))[:4]
    for _, image in read_images(listing, rows):
        if not isinstance(image, ImageFile):
            continue
        pixels: dict[str, np.ndarray] = {}
        taken: dict[str, float] = {}
        try:
            for mode in modes:
                recipe, times = replace(preprocess, decode=mode), []
                for _ in range(N_TIMES):
                    start = time.perf_counter()
                    pixels[mode] = decoding.decode_image(image.data, recipe)
                    times.append(time.perf_counter() - start)
                taken[mode] = min(times)
        except ImageUnreadableError:
            continue
        for mode in modes:
            seconds[mode] += taken[mode]
            differs[mode] |= not np.array_equal(pixels["exact"], pixels[mode])
    return seconds, differs


def suggest_precision(device: str, precision: str) -> str:
    """Describe a precision that is faster on this device.

    Parameters
    ----------
    device : str
        The device that runs the network, such as ``cpu`` or ``cuda``.
    precision : str
        One of `featurize.engines.base.PRECISIONS`: that of the run.

    Returns
    -------
    str
        A sentence that begins with a space; empty where none is known.
    """
    if precision != "float32":
        return ""
    if device != "cpu":
        return (
            " --precision bf16 (or tf32, which is nearer) is faster on most GPUs; it changes the "
            "numbers slightly, so it needs a cache of its own (another -o)."
        )
    if has_bfloat16_matrices():
        return (
            " This processor multiplies bfloat16 several times as fast: --precision bf16 changes "
            "the numbers slightly, so it needs a cache of its own (another -o)."
        )
    return ""

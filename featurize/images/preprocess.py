"""Preprocessing as data: what is done to an image before the network sees it."""

import math
from collections.abc import Mapping
from typing import Any

from featurize.errors import CallError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
DECODE_MODES = ("exact", "fast")
MAX_SIDE = 4096
PREPROCESS_KEYS = frozenset({"resize", "crop", "interpolation", "mean", "std", "decode"})


def check_preprocess(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """A complete recipe with plain values, or an error that says what is wrong.

    Parameters
    ----------
    preprocess : mapping
        ``resize`` and ``crop`` in pixels, ``mean`` and ``std`` of three numbers each,
        optionally ``interpolation`` (bilinear) and ``decode`` (exact).

    Raises
    ------
    CallError
    """
    if not isinstance(preprocess, Mapping) or not set(preprocess) <= PREPROCESS_KEYS:
        keys = ", ".join(sorted(PREPROCESS_KEYS))
        raise CallError(f"preprocessing has the keys {keys}, not {preprocess!r}")
    for key in ("resize", "crop"):
        value = preprocess.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
            raise CallError(f"preprocessing: {key} must be 1 to {MAX_SIDE} pixels, not {value!r}")
    for key in ("mean", "std"):
        value = preprocess.get(key)
        three = isinstance(value, (list, tuple)) and len(value) == 3
        if not three or not all(_is_number(n, positive=key == "std") for n in value or ()):
            raise CallError(f"preprocessing: {key} must be three numbers, not {value!r}")
    interpolation = preprocess.get("interpolation", "bilinear")
    decode = preprocess.get("decode", "exact")
    if interpolation not in INTERPOLATIONS:
        raise CallError(f"preprocessing: interpolation is one of {', '.join(INTERPOLATIONS)}")
    if decode not in DECODE_MODES:
        raise CallError(f"--decode is one of {', '.join(DECODE_MODES)}, not {decode!r}")
    return {
        "resize": preprocess["resize"],
        "crop": preprocess["crop"],
        "interpolation": interpolation,
        "mean": [float(n) for n in preprocess["mean"]],
        "std": [float(n) for n in preprocess["std"]],
        "decode": decode,
    }


def _is_number(value: object, *, positive: bool) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not positive)

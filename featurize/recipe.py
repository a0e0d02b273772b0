"""Preprocessing as data: what is done to an image before the network sees it."""

import math
from collections.abc import Mapping
from typing import Any

from featurize.errors import CallError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
DECODERS = ("exact", "fast")
MAX_SIDE = 4096
RECIPE_KEYS = frozenset({"resize", "crop", "interpolation", "mean", "std", "decode"})


def checked_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A complete recipe with plain values, or an error that says what is wrong.

    Parameters
    ----------
    recipe : mapping
        ``resize`` and ``crop`` in pixels, ``mean`` and ``std`` of three numbers each,
        optionally ``interpolation`` (bilinear) and ``decode`` (exact).

    Raises
    ------
    CallError
    """
    if not isinstance(recipe, Mapping) or not set(recipe) <= RECIPE_KEYS:
        keys = ", ".join(sorted(RECIPE_KEYS))
        raise CallError(f"preprocessing has the keys {keys}, not {recipe!r}")
    for key in ("resize", "crop"):
        value = recipe.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
            raise CallError(f"preprocessing: {key} must be 1 to {MAX_SIDE} pixels, not {value!r}")
    for key in ("mean", "std"):
        value = recipe.get(key)
        three = isinstance(value, (list, tuple)) and len(value) == 3
        if not three or not all(_is_number(n, positive=key == "std") for n in value or ()):
            raise CallError(f"preprocessing: {key} must be three numbers, not {value!r}")
    interpolation = recipe.get("interpolation", "bilinear")
    decode = recipe.get("decode", "exact")
    if interpolation not in INTERPOLATIONS:
        raise CallError(f"preprocessing: interpolation is one of {', '.join(INTERPOLATIONS)}")
    if decode not in DECODERS:
        raise CallError(f"--decode is one of {', '.join(DECODERS)}, not {decode!r}")
    return {
        "resize": recipe["resize"],
        "crop": recipe["crop"],
        "interpolation": interpolation,
        "mean": [float(n) for n in recipe["mean"]],
        "std": [float(n) for n in recipe["std"]],
        "decode": decode,
    }


def _is_number(value: object, *, positive: bool) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not positive)

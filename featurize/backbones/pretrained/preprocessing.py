"""Preprocessing as a user asks for it: from a file, or of another size."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurize.errors import CallError
from featurize.images.preprocess import MAX_SIDE, Preprocess

PreprocessLike = str | Mapping[str, Any] | None


def read_preprocess(value: str | Mapping[str, Any]) -> Preprocess:
    """Read preprocessing from a JSON file or a mapping.

    Parameters
    ----------
    value : str, Preprocess or mapping
        Path of a JSON file, or the parameters of `Preprocess`.

    Returns
    -------
    Preprocess
        The checked preprocessing.

    Raises
    ------
    CallError
        If the file cannot be read, or a value is invalid.
    """
    if not isinstance(value, str):
        return Preprocess.from_dict(value)
    try:
        values = json.loads(Path(value).read_text())
    except (OSError, ValueError) as error:
        raise CallError(f"--preprocess {value} cannot be read: {error}") from error
    return Preprocess.from_dict(values)


def adapt_preprocess(
    published: Preprocess, preprocess: PreprocessLike, size: int | None
) -> Preprocess:
    """Replace the preprocessing of weights by what the user asks for.

    Parameters
    ----------
    published : Preprocess
        That of the weights.
    preprocess : str, Preprocess or mapping, optional
        Replaces it.
    size : int, optional
        Height and width of the images in pixels. The part of the image that is seen stays as it is.

    Returns
    -------
    Preprocess
        The checked preprocessing.

    Raises
    ------
    CallError
        If a value is invalid.
    """
    adapted = published if preprocess is None else read_preprocess(preprocess)
    if size is None:
        return adapted
    if not 1 <= size <= MAX_SIDE:
        raise CallError(f"--size is 1 to {MAX_SIDE} pixels, not {size}")
    return replace(adapted, resize=adapted.resize * size // adapted.crop, crop=size)

"""The doubt of a head in its file: prediction sets, and what is unlike the training images.

The entry ``doubt`` is a JSON object: ``coverage`` and ``set_threshold``, from 0 to 1 or null. Where
the head tells strangers, also ``entropy_scale``, ``distance_scale`` and ``relative_scale`` (mean
and standard deviation), ``threshold``, ``false_alarms``, ``rest`` (two variances), and the float32
arrays ``novelty.mean`` and ``novelty.inverse_scale`` (D,), ``novelty.vectors`` (D, R),
``novelty.variances`` (R,), ``novelty.class_means`` (K, R) and ``novelty.precision`` (R, R), with R
at most 256: about D kilobytes in all.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol

import numpy as np

from classify.doubt.novelty import MAX_DIRECTIONS, FeatureSpread, Novelty, Scale, SignScales
from classify.errors import HeadFileError
from classify.heads.files.values import is_number, read_array, read_value

DOUBT_PREFIX = "novelty."
DOUBT_KEY = "doubt"
ARRAY_NAMES = tuple(field.name for field in fields(FeatureSpread) if field.name != "rest")


class DoubtfulHead(Protocol):
    """What heads of classes know of their doubt."""

    @property
    def coverage(self) -> float | None:
        """Share of new images whose class the sets hold."""

    @property
    def set_threshold(self) -> float | None:
        """The probability from which a class belongs to a set."""

    @property
    def novelty(self) -> Novelty | None:
        """What tells images that are unlike the training images."""


def describe_doubt(head: DoubtfulHead) -> dict[str, Any]:
    """Return the entries of a head's metadata on its doubt.

    Parameters
    ----------
    head : FittedHead

    Returns
    -------
    dict
        ``doubt``, or nothing for a head without any.
    """
    if head.set_threshold is None and head.novelty is None:
        return {}
    described: dict[str, Any] = {"coverage": head.coverage, "set_threshold": head.set_threshold}
    if head.novelty is not None:
        novelty = head.novelty
        described |= {
            **{
                f"{name}_scale": [scale.mean, scale.std]
                for name, scale in vars(novelty.scales).items()
            },
            "threshold": novelty.threshold,
            "false_alarms": novelty.false_alarms,
            "rest": list(novelty.spread.rest),
        }
    return {DOUBT_KEY: described}


def list_doubt_arrays(novelty: Novelty | None) -> dict[str, np.ndarray]:
    """Return the arrays of a head's novelty by their names in the file.

    Parameters
    ----------
    novelty : Novelty, or None

    Returns
    -------
    dict of str to float32 array
    """
    if novelty is None:
        return {}
    spread = novelty.spread
    return {
        f"{DOUBT_PREFIX}{name}": np.ascontiguousarray(getattr(spread, name), np.float32)
        for name in ARRAY_NAMES
    }


def read_doubt(file: Any, metadata: Mapping[str, str], dim: int) -> dict[str, Any]:
    """Read the doubt of a head.

    Parameters
    ----------
    file : safetensors file
    metadata : mapping of str to str
        JSON by name.
    dim : int
        Number of features D.

    Returns
    -------
    dict
        ``coverage``, ``set_threshold`` and ``novelty`` of a `FittedHead`; empty for heads of
        older releases.

    Raises
    ------
    HeadFileError
        If it is not what it should be.
    """
    names = {name for name in file.keys() if name.startswith(DOUBT_PREFIX)}  # noqa: SIM118
    if DOUBT_KEY not in metadata:
        if names:
            raise HeadFileError("it has arrays of novelty, and does not say what they are")
        return {}
    described = read_value(metadata, DOUBT_KEY, lambda value: isinstance(value, dict))

    def take(key: str, is_valid: Callable[[Any], bool]) -> Any:
        value = described.get(key)
        if not is_valid(value):
            raise HeadFileError(f"{key} of its doubt is not what it should be")
        return value

    coverage = take("coverage", _is_share_or_none)
    threshold = take("set_threshold", _is_share_or_none)
    if not names:
        return {"coverage": coverage, "set_threshold": threshold, "novelty": None}
    if names != {f"{DOUBT_PREFIX}{name}" for name in ARRAY_NAMES}:
        raise HeadFileError("its arrays of novelty are not complete")
    scales = [Scale(*take(f"{field.name}_scale", _is_pair)) for field in fields(SignScales)]
    rest = tuple(take("rest", _is_pair))
    if min(*(scale.std for scale in scales), *rest) <= 0:
        raise HeadFileError("a scale of its novelty is not positive")
    spread = _read_spread(file, dim, (rest[0], rest[1]))
    novelty = Novelty(
        spread,
        SignScales(*scales),
        take("threshold", is_number),
        take("false_alarms", lambda value: value is not None and _is_share_or_none(value)),
    )
    return {"coverage": coverage, "set_threshold": threshold, "novelty": novelty}


def _read_spread(file: Any, dim: int, rest: tuple[float, float]) -> FeatureSpread:
    shape = file.get_slice(f"{DOUBT_PREFIX}class_means").get_shape()
    if len(shape) != 2 or not shape[0] or not 0 < shape[1] <= min(MAX_DIRECTIONS, dim):
        raise HeadFileError("its class means are of another shape")
    n_classes, n_directions = shape
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (dim,),
        "inverse_scale": (dim,),
        "vectors": (dim, n_directions),
        "variances": (n_directions,),
        "class_means": (n_classes, n_directions),
        "precision": (n_directions, n_directions),
    }
    arrays = {name: read_array(file, f"{DOUBT_PREFIX}{name}", shapes[name]) for name in shapes}
    if not (arrays["variances"] > 0).all():
        raise HeadFileError("a variance of its novelty is not positive")
    return FeatureSpread(**arrays, rest=rest)


def _is_share_or_none(value: Any) -> bool:
    return value is None or (is_number(value) and 0 <= value <= 1)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_number(x) for x in value)

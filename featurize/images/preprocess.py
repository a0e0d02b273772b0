"""Preprocessing as data: the steps from an image to the input of a network."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featurize.errors import CallError
from featurize.text import list_choices

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
DECODE_MODES = ("exact", "quick", "fast", "fastest")
MIN_REDUCTION = {"fast": 2, "fastest": 4}
"""Modes in which a JPEG is decoded at a half, a quarter or an eighth of its size: how many times
the length that it is resized to its sides keep at least."""
QUICK_DECODE_MODES = ("quick", "fastest")
"""Modes that need the package simplejpeg."""
FITS = ("crop", "squash", "border")
MAX_SIDE = 4096  # pixels
PREPROCESS_KEYS = frozenset({"resize", "crop", "interpolation", "mean", "std", "decode"})
"""Keys that every preprocessing has. ``fit`` is there where it is not ``crop``."""


@dataclass(frozen=True, eq=False)
class Preprocess(Mapping[str, Any]):
    """The preprocessing of an image: resize, centre crop, normalise.

    `fit` says how an image that is not square becomes one. The three are ``crop_mode`` of timm
    (``center``, ``squash``, ``border``) and give its pixels bit for bit.

    Values are checked on construction. The object is also a read-only mapping with the keys and
    plain values of its JSON form: ``preprocess["crop"]`` works, and it equals a dict of the same
    values.

    Parameters
    ----------
    resize : int
        Length of a side after resizing, in pixels, 1 to 4096; `fit` says which side.
    crop : int
        Side of the square centre crop, in pixels, 1 to 4096.
    mean, std : tuple of three float
        Per channel (red, green, blue), for values in 0..1: a network gets ``(x - mean) / std``.
    interpolation : {"nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"}
        Pillow's filter for resizing; default ``bilinear``.
    decode : {"exact", "quick", "fast", "fastest"}
        ``quick`` decodes and resizes by other libraries (`featurize.images.quick`), and ``fast``
        decodes a JPEG at a reduced size; ``fastest`` does both, with a larger reduced size.
        Default ``exact``.
    fit : {"crop", "squash", "border"}
        ``crop`` (the default): the shorter side gets the length `resize`, and what lies outside of
        the centre is lost. ``squash``: both sides get it, and the aspect ratio is lost.
        ``border``: the longer side gets it, and the area around the image has the colour of
        `mean`, rounded to 8 bits. Beyond a crop or a squashed image it is black.

    Raises
    ------
    CallError
        If a value is invalid.

    Examples
    --------
    >>> Preprocess(resize=256, crop=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    decode: str = "exact"
    fit: str = "crop"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_SIDE:
                raise CallError(
                    f"preprocessing: {name} must be 1 to {MAX_SIDE} pixels, not {value!r}"
                )
        for name in ("mean", "std"):
            value = getattr(self, name)
            has_three = isinstance(value, (list, tuple)) and len(value) == 3
            if not has_three or not all(
                _is_number(number, positive=name == "std") for number in value
            ):
                raise CallError(f"preprocessing: {name} must be three numbers, not {value!r}")
            object.__setattr__(self, name, tuple(float(number) for number in value))
        if self.interpolation not in INTERPOLATIONS:
            raise CallError(f"preprocessing: interpolation is one of {', '.join(INTERPOLATIONS)}")
        if self.decode not in DECODE_MODES:
            raise CallError(f"--decode is one of {list_choices(self.decode, DECODE_MODES)}")
        if self.fit not in FITS:
            raise CallError(f"preprocessing: fit is one of {', '.join(FITS)}, not {self.fit!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Create an instance from a mapping, for example one read from JSON.

        Parameters
        ----------
        values : mapping
            ``resize``, ``crop``, ``mean`` and ``std``; optionally ``interpolation``, ``decode`` and
            ``fit``. A `Preprocess` is returned unchanged.

        Returns
        -------
        Preprocess
            The checked preprocessing.

        Raises
        ------
        CallError
            If a key is unknown or missing, or a value is invalid.
        """
        if isinstance(values, cls):
            return values
        known_keys = PREPROCESS_KEYS | {"fit"}
        if not isinstance(values, Mapping) or not set(values) <= known_keys:
            keys = ", ".join(sorted(known_keys))
            raise CallError(f"preprocessing has the keys {keys}, not {values!r}")
        required: dict[str, Any] = dict.fromkeys(("resize", "crop", "mean", "std"))
        return cls(**{**required, **values})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON.

        Returns
        -------
        dict of str to object
            The parameters, sorted by key as in a cache. `fit` is left out where it is ``crop``: so
            fingerprints made before there was a choice stay the same.
        """
        return {
            "crop": self.crop,
            "decode": self.decode,
            **({} if self.fit == "crop" else {"fit": self.fit}),
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "resize": self.resize,
            "std": list(self.std),
        }

    def describe(self) -> str:
        """Describe the steps for a reader.

        Returns
        -------
        str
            A clause, as ``shorter side to 256, centre 224 x 224, bilinear``.
        """
        side = {"crop": "shorter side", "squash": "both sides", "border": "longer side"}[self.fit]
        return f"{side} to {self.resize}, centre {self.crop} x {self.crop}, {self.interpolation}"

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())


def _is_number(value: object, *, positive: bool) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not positive)

"""Preprocessing as data: what is done to an image before the network sees it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featurize.errors import CallError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
DECODE_MODES = ("exact", "fast")
MAX_SIDE = 4096  # pixels
PREPROCESS_KEYS = frozenset({"resize", "crop", "interpolation", "mean", "std", "decode"})


@dataclass(frozen=True, eq=False)
class Preprocess(Mapping[str, Any]):
    """What is done to an image before a network sees it. Checked when it is made.

    It is also a read-only mapping with the keys and plain values of its JSON form, so
    ``preprocess["crop"]`` works, and it equals a dict of the same values.

    Parameters
    ----------
    resize : int
        Pixels of the shorter side after resizing.
    crop : int
        Pixels along each side of the centre crop.
    mean, std : tuple of three float
        For red, green and blue, of values in 0..1: a network gets ``(x - mean) / std``.
    interpolation : {"nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"}
    decode : {"exact", "fast"}
        ``fast`` decodes a JPEG at a reduced size.

    Raises
    ------
    CallError
        If a value cannot be.

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

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_SIDE:
                raise CallError(
                    f"preprocessing: {name} must be 1 to {MAX_SIDE} pixels, not {value!r}"
                )
        for name in ("mean", "std"):
            value = getattr(self, name)
            three = isinstance(value, (list, tuple)) and len(value) == 3
            if not three or not all(_is_number(n, positive=name == "std") for n in value):
                raise CallError(f"preprocessing: {name} must be three numbers, not {value!r}")
            object.__setattr__(self, name, tuple(float(n) for n in value))
        if self.interpolation not in INTERPOLATIONS:
            raise CallError(f"preprocessing: interpolation is one of {', '.join(INTERPOLATIONS)}")
        if self.decode not in DECODE_MODES:
            raise CallError(f"--decode is one of {', '.join(DECODE_MODES)}, not {self.decode!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Check a mapping, for example one read from JSON.

        Parameters
        ----------
        values : mapping
            ``resize``, ``crop``, ``mean`` and ``std``; optionally ``interpolation`` and ``decode``.
            A `Preprocess` is returned as it is.

        Raises
        ------
        CallError
            If a key is unknown or missing, or a value cannot be.
        """
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping) or not set(values) <= PREPROCESS_KEYS:
            keys = ", ".join(sorted(PREPROCESS_KEYS))
            raise CallError(f"preprocessing has the keys {keys}, not {values!r}")
        required: dict[str, Any] = dict.fromkeys(("resize", "crop", "mean", "std"))
        return cls(**{**required, **values})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in the order of a cache: sorted by key."""
        return {
            "crop": self.crop,
            "decode": self.decode,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "resize": self.resize,
            "std": list(self.std),
        }

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())


def _is_number(value: object, *, positive: bool) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not positive)

"""Small pictures of a cache's images, as ``data:`` URLs."""

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from featurize.cache import FeatureCache
from featurize.errors import ImageUnreadable
from featurize.images import FORMATS, decode, read

CARD, DOT = 112, 48
"""Pixels of a picture in a gallery, and of one shown at a point of the map."""
QUALITY = {CARD: 75, DOT: 60}
# Half of JPEG's size at 48 pixels, where JPEG's tables alone are longer than the picture.
FORMAT = "WEBP" if features.check("webp") else "JPEG"


@dataclass(frozen=True)
class Picture:
    """A ``data:`` URL of a square picture, `side` pixels wide."""

    url: str
    side: int


class Pictures:
    """Opens images of one folder and makes them small; what it cannot open it counts.

    Parameters
    ----------
    cache : FeatureCache
        Its paths have been checked to stay in the folder.
    folder : path, optional
        Where the images are. None where there are none: every picture is then None.

    Attributes
    ----------
    unreadable : set of int
        Rows whose image could not be opened.
    """

    def __init__(self, cache: FeatureCache, folder: str | os.PathLike[str] | None) -> None:
        self._cache = cache
        self._folder = None if folder is None else Path(folder)
        self._made: dict[tuple[int, int], Picture | None] = {}
        self.unreadable: set[int] = set()

    def __bool__(self) -> bool:
        return self._folder is not None

    def card(self, row: int) -> Picture | None:
        """The middle square of a row's image; None without a folder, or if it cannot be opened."""
        return self._make(row, CARD)

    def dot(self, row: int) -> str | None:
        """A smaller one, as a URL."""
        found = self._make(row, DOT)
        return None if found is None else found.url

    def _make(self, row: int, side: int) -> Picture | None:
        if self._folder is None:
            return None
        if (row, side) not in self._made:
            small = None
            try:
                small = thumbnail(self._folder / self._cache.paths[row], side)
            except ImageUnreadable:
                self.unreadable.add(row)
            self._made[row, side] = small
        return self._made[row, side]


def thumbnail(path: Path, side: int) -> Picture:
    """The middle square of an image, shrunk to `side` pixels but never enlarged.

    Raises
    ------
    ImageUnreadable
    """
    data = read(path).data
    quality = QUALITY[side]
    side = min(side, _short_side(data) or side)
    recipe: dict[str, object] = {"resize": side, "crop": side, "decode": "fast"}
    pixels = decode(data, recipe | {"interpolation": "bicubic"})
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, FORMAT, quality=quality)
    coded = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/{FORMAT.lower()};base64,{coded}", side)


def _short_side(data: bytes) -> int:
    """The shorter side in pixels, from the header; 0 where `decode` will say what is wrong."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return min(image.size)
    except Exception:
        return 0

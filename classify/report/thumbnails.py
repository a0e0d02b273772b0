"""Small pictures of a cache's images, as ``data:`` URLs."""

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from featurize.cache.reader import FeatureCache
from featurize.errors import ImageUnreadableError
from featurize.images.decoding import FORMATS, decode_image
from featurize.images.preprocess import Preprocess
from featurize.images.reading import read_image_file

GALLERY_PIXELS, MAP_PIXELS = 112, 48
"""Pixels of a picture in a gallery, and of one shown at a point of the map."""
QUALITY = {GALLERY_PIXELS: 75, MAP_PIXELS: 60}
# Half of JPEG's size at 48 pixels, where JPEG's tables alone are longer than the picture.
IMAGE_FORMAT = "WEBP" if features.check("webp") else "JPEG"


@dataclass(frozen=True)
class Thumbnail:
    """A ``data:`` URL of a square picture, `side` pixels wide."""

    url: str
    side: int


class Thumbnails:
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
        self._thumbnails: dict[tuple[int, int], Thumbnail | None] = {}
        self.unreadable: set[int] = set()

    def __bool__(self) -> bool:
        return self._folder is not None

    def gallery_thumbnail(self, row: int) -> Thumbnail | None:
        """The middle square of a row's image; None without a folder, or if it cannot be opened."""
        return self._get_or_make(row, GALLERY_PIXELS)

    def map_thumbnail_url(self, row: int) -> str | None:
        """A smaller one, as a URL."""
        found = self._get_or_make(row, MAP_PIXELS)
        return None if found is None else found.url

    def _get_or_make(self, row: int, side: int) -> Thumbnail | None:
        if self._folder is None:
            return None
        if (row, side) not in self._thumbnails:
            small = None
            try:
                small = make_thumbnail(self._folder / self._cache.paths[row], side)
            except ImageUnreadableError:
                self.unreadable.add(row)
            self._thumbnails[row, side] = small
        return self._thumbnails[row, side]


def make_thumbnail(path: Path, side: int) -> Thumbnail:
    """The middle square of an image, shrunk to `side` pixels but never enlarged.

    Raises
    ------
    ImageUnreadable
    """
    data = read_image_file(path).data
    quality = QUALITY[side]
    side = min(side, _read_short_side(data) or side)
    unscaled = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    preprocess = Preprocess(side, side, *unscaled, interpolation="bicubic", decode="fast")
    pixels = decode_image(data, preprocess)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, IMAGE_FORMAT, quality=quality)
    coded = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/{IMAGE_FORMAT.lower()};base64,{coded}", side)


def _read_short_side(data: bytes) -> int:
    """The shorter side in pixels, from the header; 0 where `decode_image` will raise."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return min(image.size)
    except Exception:
        return 0

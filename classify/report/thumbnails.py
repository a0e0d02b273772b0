"""Thumbnails of a cache's images, as ``data:`` URLs."""

import base64
import io
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from featurize.cache.reader import FeatureCache
from featurize.errors import ImageUnreadableError
from featurize.images.decoding import FORMATS, decode_image
from featurize.images.preprocess import Preprocess
from featurize.images.reading import read_image_file

GALLERY_PIXELS, MAP_PIXELS = 112, 48
"""Side of a thumbnail in a gallery, and of one at a point of the map, in pixels."""
QUALITY = {GALLERY_PIXELS: 75, MAP_PIXELS: 60}
# WebP is half of JPEG's size at 48 pixels, where JPEG's tables outweigh the image.
IMAGE_FORMAT = "WEBP" if features.check("webp") else "JPEG"


@dataclass(frozen=True)
class Thumbnail:
    """A square thumbnail.

    Attributes
    ----------
    url : str
        A ``data:`` URL.
    side : int
        Width and height in pixels.
    """

    url: str
    side: int


class Thumbnails:
    """Makes and remembers thumbnails of the images of one folder.

    Parameters
    ----------
    cache : FeatureCache
        Its paths have been checked to stay in the folder.
    folder : path, optional
        The image folder. Without one, every thumbnail is None.
    """

    def __init__(self, cache: FeatureCache, folder: str | os.PathLike[str] | None) -> None:
        self._cache = cache
        self._folder = None if folder is None else Path(folder)
        self._thumbnails: dict[tuple[int, int], Thumbnail | None] = {}

    def __bool__(self) -> bool:
        return self._folder is not None

    def gallery_thumbnail(self, row: int) -> Thumbnail | None:
        """Return the thumbnail of a row's image, for a gallery.

        Parameters
        ----------
        row : int

        Returns
        -------
        Thumbnail or None
            None without a folder, or if the image cannot be opened.
        """
        return self._get_or_make(row, GALLERY_PIXELS)

    def map_thumbnail_url(self, row: int) -> str | None:
        """Return the URL of a smaller thumbnail, for the map.

        Parameters
        ----------
        row : int

        Returns
        -------
        str or None
            None without a folder, or if the image cannot be opened.
        """
        thumbnail = self._get_or_make(row, MAP_PIXELS)
        return None if thumbnail is None else thumbnail.url

    def _get_or_make(self, row: int, side: int) -> Thumbnail | None:
        if self._folder is None:
            return None
        if (row, side) not in self._thumbnails:
            thumbnail = None
            with suppress(ImageUnreadableError):
                thumbnail = make_thumbnail(self._folder / self._cache.paths[row], side)
            self._thumbnails[row, side] = thumbnail
        return self._thumbnails[row, side]


def make_thumbnail(path: Path, side: int) -> Thumbnail:
    """Make a thumbnail of the central square of an image; never enlarge it.

    Parameters
    ----------
    path : Path
    side : int
        Pixels: `GALLERY_PIXELS` or `MAP_PIXELS`.

    Returns
    -------
    Thumbnail

    Raises
    ------
    ImageUnreadableError
        If the image cannot be read or decoded.
    """
    data = read_image_file(path).data
    quality = QUALITY[side]
    side = min(side, _read_short_side(data) or side)
    unscaled = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    preprocess = Preprocess(side, side, *unscaled, interpolation="bicubic", decode="fast")
    pixels = decode_image(data, preprocess)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, IMAGE_FORMAT, quality=quality)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(f"data:image/{IMAGE_FORMAT.lower()};base64,{encoded}", side)


def _read_short_side(data: bytes) -> int:
    """Return the shorter side in pixels from the header; 0 where `decode_image` will raise."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return min(image.size)
    except Exception:
        return 0

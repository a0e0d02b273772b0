"""Thumbnails of a cache's images, as ``data:`` URLs."""

import base64
import io
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image, features

from classify.data.source_images import ImagesLike, SourceImages
from featurize.cache.reader import FeatureCache
from featurize.errors import ImageUnreadableError
from featurize.images.decoding import FORMATS, decode_image
from featurize.images.preprocess import Preprocess
from featurize.images.reading import ImageFile
from featurize.sources.listing import read_images

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
    """Thumbnails of the images of one source, which are read together when all are requested.

    Parameters
    ----------
    cache : FeatureCache
    images : path or URL, optional
        The images of the cache. Without them, every thumbnail is None.
    """

    def __init__(self, cache: FeatureCache, images: ImagesLike | None) -> None:
        self._cache = cache
        self._images = None if images is None else SourceImages(images, cache)
        self._requested: dict[int, set[int]] = {}  # sides, by row
        self._thumbnails: dict[tuple[int, int], Thumbnail] = {}

    def __bool__(self) -> bool:
        return self._images is not None

    def request(self, row: int, side: int) -> None:
        """Note that a thumbnail will be wanted.

        Parameters
        ----------
        row : int
            Of the cache.
        side : int
            Pixels: `GALLERY_PIXELS` or `MAP_PIXELS`.
        """
        self._requested.setdefault(row, set()).add(side)

    def read(self) -> None:
        """Read the images requested, and make their thumbnails.

        An image that is missing or cannot be opened has none.

        Raises
        ------
        featurize.errors.CallError
            If the images cannot be listed.
        """
        if self._images is None or not self._requested:
            return
        rows = sorted(self._requested)
        row_of = dict(zip(self._cache.paths_of(rows), rows, strict=True))
        listing = self._images.locate_present(list(row_of))
        for read in read_images(listing, range(len(listing.paths))):
            if not isinstance(read.image, ImageFile):
                continue
            row = row_of[listing.paths[read.row]]
            for side in self._requested[row]:
                with suppress(ImageUnreadableError):
                    self._thumbnails[row, side] = make_thumbnail(read.image.data, side)
        self._requested.clear()

    def get(self, row: int, side: int) -> Thumbnail | None:
        """Return a thumbnail that was requested before `read`.

        Parameters
        ----------
        row, side : int
            As in `request`.

        Returns
        -------
        Thumbnail or None
            None without images, or if the image cannot be opened.
        """
        return self._thumbnails.get((row, side))


def make_thumbnail(data: bytes, side: int) -> Thumbnail:
    """Make a thumbnail of the central square of an image; never enlarge it.

    Parameters
    ----------
    data : bytes
        Of the image's file.
    side : int
        Pixels: `GALLERY_PIXELS` or `MAP_PIXELS`.

    Returns
    -------
    Thumbnail

    Raises
    ------
    ImageUnreadableError
        If the image cannot be decoded.
    """
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

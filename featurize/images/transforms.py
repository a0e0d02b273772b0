"""From a decoded image to the pixels a network sees: upright, RGB, resized, cropped.

Large images are turned and converted in strips, so that two copies are held at once instead of
five. They are resized whole: Pillow decides by itself whether rows or columns come first, and
rounds in between.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

STRIP_PIXELS = 1 << 21
STRIP_BYTES = 5 * 4 * STRIP_PIXELS  # cropped, turned, with alpha, over white, RGB
MAX_EXIF_BYTES = 8 << 20  # bytes; no camera writes that many

_ORIENTATION = 0x0112
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDE_SWAPPING = frozenset(_TRANSPOSE_BY_ORIENTATION[orientation] for orientation in (5, 6, 7, 8))
# Their first row comes from the last row, or column, as stored.
_REVERSING = frozenset(_TRANSPOSE_BY_ORIENTATION[orientation] for orientation in (3, 4, 7, 8))


def resize_and_crop(
    image: Image.Image, resize: int, crop: int, resample: Image.Resampling
) -> np.ndarray:
    """The centre of an image whose shorter side has been resized.

    EXIF orientation is applied first, transparency is laid over white, 16-bit grey keeps its
    high byte.

    Parameters
    ----------
    image : Image
        Loaded.
    resize, crop : int
        Pixels.
    resample : Resampling

    Returns
    -------
    uint8 array of shape (crop, crop, 3)
        To the bit as torchvision has it.

    Raises
    ------
    ValueError
        If there is no telling what its numbers mean.
    """
    turn = find_transpose(image)
    width, height = reversed(image.size) if turn in _SIDE_SWAPPING else image.size
    size = compute_resized_size(width, height, resize)
    left, top = _compute_crop_start(size[0], crop), _compute_crop_start(size[1], crop)
    upright = _to_upright_rgb(image, turn, (width, height))
    found = upright.resize(size, resample) if size != upright.size else upright
    # Outside of the image is black.
    return np.asarray(found.crop((left, top, left + crop, top + crop)), np.uint8)


def is_scaled_ppm(image: Any) -> bool:
    """Whether an opened image is a PPM or PGM whose numbers do not end at 255.

    Pillow goes through these one by one, in Python: a second for a megapixel of colour.
    """
    scaled = image.format == "PPM" and image.tile[0].codec_name == "ppm"
    return scaled and image.mode in ("L", "RGB")


def decode_scaled_ppm(image: Any, data: bytes) -> Image.Image:
    """The pixels of such an image: Pillow's, to the bit.

    Raises
    ------
    ValueError
        If the file is cut short.
    """
    (_, most), start = image.tile[0].args, image.tile[0].offset
    width, height = image.size
    line = width * len(image.getbands())
    stored = np.frombuffer(data, np.uint8 if most < 256 else ">u2", line * height, start)
    level = np.array([min(255, round(n / most * 255)) for n in range(65536)], np.uint8)
    found = np.empty(line * height, np.uint8)
    for first in range(0, len(found), STRIP_PIXELS):
        part = slice(first, first + STRIP_PIXELS)
        found[part] = level[stored[part]]
    shape = (height, width) if image.mode == "L" else (height, width, 3)
    return Image.fromarray(found.reshape(shape))


def compute_resized_size(width: int, height: int, resize: int) -> tuple[int, int]:
    """Width and height when the shorter side has become `resize`."""
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def find_transpose(image: Image.Image) -> Image.Transpose | None:
    """How the image has to be turned to stand upright."""
    with suppress(Exception):  # damaged EXIF must not cost the picture
        if len(image.info.get("exif", b"")) <= MAX_EXIF_BYTES:
            return _TRANSPOSE_BY_ORIENTATION.get(image.getexif().get(_ORIENTATION, 1))
    return None


def _to_upright_rgb(
    image: Image.Image, transpose: Image.Transpose | None, upright_size: tuple[int, int]
) -> Image.Image:
    """The image turned upright, in RGB."""
    if transpose is None and is_opaque_rgb(image):
        return image  # nothing is copied
    if upright_size[0] * upright_size[1] <= STRIP_PIXELS:
        return _to_rgb(_transpose(image, transpose))
    found = Image.new("RGB", upright_size)
    for top, box in _iter_strips(image, transpose, upright_size):
        found.paste(_to_rgb(_transpose(image.crop(box), transpose)), (0, top))
    return found


def _transpose(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return image if transpose is None else image.transpose(transpose)


def _iter_strips(
    image: Image.Image, transpose: Image.Transpose | None, upright_size: tuple[int, int]
) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """First row of each strip of the upright image, and where it lies in the stored one."""
    width, height = image.size
    step = max(1, STRIP_PIXELS // upright_size[0])
    for top in range(0, upright_size[1], step):
        bottom = min(top + step, upright_size[1])
        first, last = (
            (upright_size[1] - bottom, upright_size[1] - top)
            if transpose in _REVERSING
            else (top, bottom)
        )
        sideways = transpose in _SIDE_SWAPPING
        yield top, (first, 0, last, height) if sideways else (0, first, width, last)


def is_opaque_rgb(image: Image.Image) -> bool:
    """Whether an image is opaque RGB as it is."""
    return image.mode == "RGB" and not image.has_transparency_data


def _to_rgb(image: Image.Image) -> Image.Image:
    if is_opaque_rgb(image):
        return image  # `convert` would copy it
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255; the high byte is what it keeps of 16-bit colour.
        high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("numbers of unknown range; save it as 8-bit or 16-bit")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _compute_crop_start(side: int, crop: int) -> int:
    """Where the centre begins along one side, as torchvision has it: to the pixel."""
    if crop > side:
        return -((crop - side) // 2)
    return round((side - crop) / 2)

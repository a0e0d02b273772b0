"""How much memory decoding an image takes, told from its header before anything is decoded.

The figures are peaks measured with Pillow 13 (``tests/featurize/test_limits.py`` holds them):
what an image takes in Pillow, and what the library that decodes it holds beside that.
"""

from typing import Any

from PIL import Image

from featurize import bounds
from featurize.pixels import STRIP_BYTES, STRIP_PIXELS, is_plain, resized, turn_of

_FIXED = 1 << 20
_WEBP = 13  # beside the image: canvas, the frame before, a copy for Pillow, alpha
_COEFFICIENT = 2  # bytes of a sample that libjpeg keeps until the last scan has come
_FEW = 400_000  # pixels, before and after, and bytes of the file: not worth a closer look
_LITTLE = 40 * _FEW  # bytes; 40 a pixel is the most
_SMALL_PIXELS = {"1": 1, "L": 1, "P": 1}


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in a WebP's header; 0, 0 where it is none."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0, 0
    kind, start = data[12:16], data[20:30]
    if len(start) == 10 and kind == b"VP8X":
        return 1 + int.from_bytes(start[4:7], "little"), 1 + int.from_bytes(start[7:10], "little")
    if len(start) == 10 and kind == b"VP8 ":
        sides = (int.from_bytes(start[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return next(sides), next(sides)
    if kind == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return 0, 0


def of_webp(pixels: int, file_bytes: int) -> int:
    """Bytes at the peak of decoding and preparing a WebP of so many pixels and bytes."""
    return _FIXED + (_WEBP + 4) * pixels + 2 * file_bytes + _strips(pixels)


def needed(image: Image.Image, stored: tuple[int, int], data: bytes, resize: int) -> int:
    """Bytes at the peak of decoding and preparing an image that has been opened.

    Parameters
    ----------
    image : Image
        Opened, not loaded; where it is drafted, drafted.
    stored : tuple of int
        Width and height in the file.
    data : bytes
        The file.
    resize : int
        Pixels of the shorter side in the end.
    """
    short, long = sorted(stored)
    if max(short * long, resize * resize * long // max(short, 1), len(data)) <= _FEW:
        return _LITTLE
    pixels = image.size[0] * image.size[1]
    held = pixels * _pixel_bytes(image.mode)
    beside = _beside(image, stored[0] * stored[1], data)
    if image.format != "PNG" and is_plain(image) and turn_of(image) is None:
        converted = 0
    else:  # a PNG may say only at its end how it is turned
        converted = _converted(pixels)
    return _FIXED + held + max(beside, converted + _resizing(image, resize))


def _pixel_bytes(mode: str) -> int:
    return 2 if mode.startswith("I;16") else _SMALL_PIXELS.get(mode, 4)


def _beside(image: Any, pixels: int, data: bytes) -> int:
    """What the decoder holds beside the image."""
    codec = image.tile[0].codec_name if image.tile else ""
    if image.format == "WEBP":
        return _WEBP * pixels + 2 * len(data)
    if codec == "jpeg":
        return _COEFFICIENT * _samples(image, pixels) if bounds.is_kept_whole(data) else 0
    if codec == "gif":
        return 2 * pixels  # what the next frame would be laid over
    if codec == "libtiff":
        return _tiff_strip(image)
    if codec in ("bmp_rle", "ppm", "ppm_plain"):  # written in Python: all pixels, twice
        return 2 * pixels * _pixel_bytes(image.mode)
    return 0


def _samples(image: Any, pixels: int) -> int:
    """Samples of all components of a JPEG."""
    across = max((h for _, h, _, _ in image.layer), default=1) or 1
    down = max((v for _, _, v, _ in image.layer), default=1) or 1
    share = sum(h * v for _, h, v, _ in image.layer) / (across * down)
    return int(pixels * share)


def _tiff_strip(image: Any) -> int:
    """A strip or tile, decompressed; and the whole image again where it is turned."""
    tags = image.tag_v2
    width, height = image.tile[0].extents[2:]
    pixels = int(width * height)
    if 322 in tags:  # tiles
        width, height = _number(tags.get(322), width), _number(tags.get(323), height)
    else:
        height = min(height, _number(tags.get(278), height))
    bits = tags.get(258, (1,))
    each = max(4, int(sum(bits)) // 8) + (8 if tags.get(259) in (6, 7) else 0)  # 7: JPEG
    turned = pixels * 4 if tags.get(274, 1) != 1 else 0
    return int(max(min(width * height, 4 * pixels) * each, turned))


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def _resizing(image: Image.Image, resize: int) -> int:
    """What resizing holds beside the image: half of it done, and all."""
    most = 0
    for width, height in (image.size, image.size[::-1]):
        wide, high = resized(width, height, resize)
        most = max(most, 4 * (max(wide * height, width * high) + wide * high))
    return most


def _converted(pixels: int) -> int:
    """A second copy, upright and in RGB, and a strip on its way there."""
    return 4 * pixels + _strips(pixels)


def _strips(pixels: int) -> int:
    return STRIP_BYTES * min(pixels, STRIP_PIXELS) // STRIP_PIXELS

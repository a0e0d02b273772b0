"""How much memory decoding an image takes, told from its header before anything is decoded.

The figures are peaks measured with Pillow 13 (``tests/featurize/test_limits.py`` holds them):
what an image takes in Pillow, and what the library that decodes it holds beside that.
"""

from typing import Any

from PIL import Image

from featurize.images import limits
from featurize.images.transforms import (
    STRIP_BYTES,
    STRIP_PIXELS,
    compute_resized_size,
    find_transpose,
    is_opaque_rgb,
)

_BASE_BYTES = 1 << 20
_WEBP_PIXEL_BYTES = 13  # beside the image: canvas, the frame before, a copy for Pillow, alpha
_COEFFICIENT_BYTES = 2  # bytes of a sample that libjpeg keeps until the last scan has come
_SMALL_IMAGE = 400_000  # pixels, before and after, and bytes of the file: not worth a closer look
_SMALL_IMAGE_BYTES = 40 * _SMALL_IMAGE  # bytes; 40 a pixel is the most
_MODE_BYTES = {"1": 1, "L": 1, "P": 1}


def read_webp_size(data: bytes) -> tuple[int, int]:
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


def estimate_webp_bytes(pixels: int, file_bytes: int) -> int:
    """Bytes at the peak of decoding and preparing a WebP of so many pixels and bytes."""
    return (
        _BASE_BYTES
        + (_WEBP_PIXEL_BYTES + 4) * pixels
        + 2 * file_bytes
        + _estimate_strip_bytes(pixels)
    )


def estimate_bytes(
    image: Image.Image, stored_size: tuple[int, int], data: bytes, resize: int
) -> int:
    """Bytes at the peak of decoding and preparing an image that has been opened.

    Parameters
    ----------
    image : Image
        Opened, not loaded; where it is drafted, drafted.
    stored_size : tuple of int
        Width and height in the file.
    data : bytes
        The file.
    resize : int
        Pixels of the shorter side in the end.
    """
    short, long = sorted(stored_size)
    if max(short * long, resize * resize * long // max(short, 1), len(data)) <= _SMALL_IMAGE:
        return _SMALL_IMAGE_BYTES
    pixels = image.size[0] * image.size[1]
    held = pixels * _get_pixel_bytes(image.mode)
    beside = _estimate_decoder_bytes(image, stored_size[0] * stored_size[1], data)
    if image.format != "PNG" and is_opaque_rgb(image) and find_transpose(image) is None:
        converted = 0
    else:  # a PNG may say only at its end how it is turned
        converted = _estimate_convert_bytes(pixels)
    return _BASE_BYTES + held + max(beside, converted + _estimate_resize_bytes(image, resize))


def _get_pixel_bytes(mode: str) -> int:
    return 2 if mode.startswith("I;16") else _MODE_BYTES.get(mode, 4)


def _estimate_decoder_bytes(image: Any, pixels: int, data: bytes) -> int:
    """What the decoder holds beside the image."""
    codec = image.tile[0].codec_name if image.tile else ""
    if image.format == "WEBP":
        return _WEBP_PIXEL_BYTES * pixels + 2 * len(data)
    if codec == "jpeg":
        return (
            _COEFFICIENT_BYTES * _count_samples(image, pixels) if limits.is_multi_scan(data) else 0
        )
    if codec == "gif":
        return 2 * pixels  # what the next frame would be laid over
    if codec == "libtiff":
        return _estimate_tiff_bytes(image)
    if codec in ("bmp_rle", "ppm", "ppm_plain"):  # written in Python: all pixels, twice
        return 2 * pixels * _get_pixel_bytes(image.mode)
    return 0


def _count_samples(image: Any, pixels: int) -> int:
    """Samples of all components of a JPEG."""
    across = max((h for _, h, _, _ in image.layer), default=1) or 1
    down = max((v for _, _, v, _ in image.layer), default=1) or 1
    share = sum(h * v for _, h, v, _ in image.layer) / (across * down)
    return int(pixels * share)


def _estimate_tiff_bytes(image: Any) -> int:
    """A strip or tile, decompressed; and the whole image again where it is turned."""
    tags = image.tag_v2
    width, height = image.tile[0].extents[2:]
    pixels = int(width * height)
    if 322 in tags:  # tiles
        width, height = _positive_int(tags.get(322), width), _positive_int(tags.get(323), height)
    else:
        height = min(height, _positive_int(tags.get(278), height))
    bits = tags.get(258, (1,))
    each = max(4, int(sum(bits)) // 8) + (8 if tags.get(259) in (6, 7) else 0)  # 7: JPEG
    turned = pixels * 4 if tags.get(274, 1) != 1 else 0
    return int(max(min(width * height, 4 * pixels) * each, turned))


def _positive_int(value: object, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def _estimate_resize_bytes(image: Image.Image, resize: int) -> int:
    """What resizing holds beside the image: half of it done, and all."""
    most = 0
    for width, height in (image.size, image.size[::-1]):
        wide, high = compute_resized_size(width, height, resize)
        most = max(most, 4 * (max(wide * height, width * high) + wide * high))
    return most


def _estimate_convert_bytes(pixels: int) -> int:
    """A second copy, upright and in RGB, and a strip on its way there."""
    return 4 * pixels + _estimate_strip_bytes(pixels)


def _estimate_strip_bytes(pixels: int) -> int:
    return STRIP_BYTES * min(pixels, STRIP_PIXELS) // STRIP_PIXELS

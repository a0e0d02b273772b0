"""Estimate the memory for decoding an image from its header, before anything is decoded.

The figures are peaks measured with Pillow 13. ``tests/featurize/images/test_limits.py`` checks
them. They cover the image in Pillow and the additional memory of the library that decodes it.
"""

from typing import Any

from PIL import Image

from featurize.images import limits
from featurize.images.transforms import (
    STRIP_BYTES,
    STRIP_PIXELS,
    compute_resized_size,
    count_resized_pixels,
    find_transpose,
    is_opaque_rgb,
)

_BASE_BYTES = 1 << 20
_WEBP_PIXEL_BYTES = 13  # besides the image: canvas, previous frame, a copy for Pillow, alpha
_COEFFICIENT_BYTES = 2  # per sample; libjpeg keeps them until the last scan
_SMALL_IMAGE = 400_000  # pixels before and after, and bytes of the file: no closer estimate
_SMALL_IMAGE_BYTES = 40 * _SMALL_IMAGE  # at most 40 bytes per pixel
_MODE_BYTES = {"1": 1, "L": 1, "P": 1}


def read_webp_size(data: bytes) -> tuple[int, int]:
    """Read width and height from the header of a WebP file.

    Parameters
    ----------
    data : bytes
        Content of a file.

    Returns
    -------
    width, height : int
        Size in pixels; 0, 0 if the file is not WebP.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0, 0
    chunk_type, header = data[12:16], data[20:30]
    if len(header) == 10 and chunk_type == b"VP8X":
        return 1 + int.from_bytes(header[4:7], "little"), 1 + int.from_bytes(header[7:10], "little")
    if len(header) == 10 and chunk_type == b"VP8 ":
        sides = (
            int.from_bytes(header[offset : offset + 2], "little") & 0x3FFF for offset in (6, 8)
        )
        return next(sides), next(sides)
    if chunk_type == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return 0, 0


def estimate_webp_bytes(pixels: int, file_bytes: int) -> int:
    """Estimate the peak memory for decoding and preprocessing a WebP file.

    Parameters
    ----------
    pixels : int
        Width times height.
    file_bytes : int
        Size of the file in bytes.

    Returns
    -------
    int
        Bytes.
    """
    return (
        _BASE_BYTES
        + (_WEBP_PIXEL_BYTES + 4) * pixels
        + 2 * file_bytes
        + _estimate_strip_bytes(pixels)
    )


def estimate_bytes(
    image: Image.Image, stored_size: tuple[int, int], data: bytes, resize: int, fit: str
) -> int:
    """Estimate the peak memory for decoding and preprocessing an opened image.

    Parameters
    ----------
    image : Image
        Opened, not loaded; after `Image.draft` if that is used.
    stored_size : tuple of int
        Width and height in the file, in pixels.
    data : bytes
        Content of the file.
    resize : int
        Length of a side after resizing, in pixels.
    fit : {"crop", "squash", "border"}
        See `featurize.images.preprocess.Preprocess`.

    Returns
    -------
    int
        Bytes; for a small image an upper bound.
    """
    short, long = sorted(stored_size)
    resized_pixels = count_resized_pixels(short, long, resize, fit)
    if max(short * long, resized_pixels, len(data)) <= _SMALL_IMAGE:
        return _SMALL_IMAGE_BYTES
    pixels = image.size[0] * image.size[1]
    image_bytes = pixels * _get_pixel_bytes(image.mode)
    decoder_bytes = _estimate_decoder_bytes(image, stored_size[0] * stored_size[1], data)
    if image.format != "PNG" and is_opaque_rgb(image) and find_transpose(image) is None:
        convert_bytes = 0
    else:  # a PNG may have its EXIF orientation at the end
        convert_bytes = _estimate_convert_bytes(pixels)
    return (
        _BASE_BYTES
        + image_bytes
        + max(decoder_bytes, convert_bytes + _estimate_resize_bytes(image, resize, fit))
    )


def _get_pixel_bytes(mode: str) -> int:
    return 2 if mode.startswith("I;16") else _MODE_BYTES.get(mode, 4)


def _estimate_decoder_bytes(image: Any, pixels: int, data: bytes) -> int:
    """Estimate the memory of the decoder besides the image."""
    codec = image.tile[0].codec_name if image.tile else ""
    if image.format == "WEBP":
        return _WEBP_PIXEL_BYTES * pixels + 2 * len(data)
    if codec == "jpeg":
        return (
            _COEFFICIENT_BYTES * _count_samples(image, pixels) if limits.is_multi_scan(data) else 0
        )
    if codec == "gif":
        return 2 * pixels  # the canvas for the next frame
    if codec == "libtiff":
        return _estimate_tiff_bytes(image)
    if codec in ("bmp_rle", "ppm", "ppm_plain"):  # in Python: all pixels, twice
        return 2 * pixels * _get_pixel_bytes(image.mode)
    return 0


def _count_samples(image: Any, pixels: int) -> int:
    """Count the samples of all components of a JPEG, which may be subsampled."""
    max_h = max((h for _, h, _, _ in image.layer), default=1) or 1
    max_v = max((v for _, _, v, _ in image.layer), default=1) or 1
    samples_per_pixel = sum(h * v for _, h, v, _ in image.layer) / (max_h * max_v)
    return int(pixels * samples_per_pixel)


def _estimate_tiff_bytes(image: Any) -> int:
    """Estimate a decompressed strip or tile, or a copy of the image if it is rotated."""
    tags = image.tag_v2
    width, height = image.tile[0].extents[2:]
    pixels = int(width * height)
    if 322 in tags:  # tiles
        width, height = _positive_int(tags.get(322), width), _positive_int(tags.get(323), height)
    else:
        height = min(height, _positive_int(tags.get(278), height))
    bits = tags.get(258, (1,))
    pixel_bytes = max(4, int(sum(bits)) // 8) + (8 if tags.get(259) in (6, 7) else 0)  # 7: JPEG
    rotated_bytes = pixels * 4 if tags.get(274, 1) != 1 else 0
    return int(max(min(width * height, 4 * pixels) * pixel_bytes, rotated_bytes))


def _positive_int(value: object, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def _estimate_resize_bytes(image: Image.Image, resize: int, fit: str) -> int:
    """Estimate the memory of resizing: the intermediate image after one axis, and the result."""
    max_bytes = 0
    for width, height in (image.size, image.size[::-1]):
        new_width, new_height = compute_resized_size(width, height, resize, fit)
        max_bytes = max(
            max_bytes, 4 * (max(new_width * height, width * new_height) + new_width * new_height)
        )
    return max_bytes


def _estimate_convert_bytes(pixels: int) -> int:
    """Estimate a second copy, upright and in RGB, and one strip during its conversion."""
    return 4 * pixels + _estimate_strip_bytes(pixels)


def _estimate_strip_bytes(pixels: int) -> int:
    return STRIP_BYTES * min(pixels, STRIP_PIXELS) // STRIP_PIXELS

"""Transform a decoded image into the input of a network: upright, RGB, resized, cropped.

Large images are rotated and converted in strips, so that two copies are in memory at once instead
of five. They are resized as a whole: Pillow itself chooses whether rows or columns come first, and
rounds in between, so strips would change the result.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from featurize.images.preprocess import QUICK_DECODE_MODES, Preprocess
from featurize.images.quick import INTERPOLATIONS, decode_jpeg, is_quick_jpeg, resize

STRIP_PIXELS = 1 << 21
STRIP_BYTES = 5 * 4 * STRIP_PIXELS  # copies: cropped, rotated, with alpha, over white, RGB
MAX_EXIF_BYTES = 8 << 20  # no camera writes as many

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
# What is left to do once rows are columns.
_MIRROR_AFTER_SWAP = {
    Image.Transpose.TRANSPOSE: None,
    Image.Transpose.ROTATE_270: Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_90: Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSVERSE: Image.Transpose.ROTATE_180,
}
# The first row of the result is the last stored row or column.
_REVERSING = frozenset(_TRANSPOSE_BY_ORIENTATION[orientation] for orientation in (3, 4, 7, 8))


def resize_and_crop(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resize an image, then crop its centre.

    EXIF orientation is applied first, transparency is composed over white, and 16-bit grey keeps
    its high byte.

    Parameters
    ----------
    image : Image
        A loaded image.
    preprocess : Preprocess
        Sizes, filter, and how an image that is not square becomes one.

    Returns
    -------
    uint8 array of shape (crop, crop, 3)
        RGB pixels; where `decode` is ``exact``, bit for bit as in torchvision and timm.

    Raises
    ------
    ValueError
        If the range of the image's values is unknown.
    """
    transpose = find_transpose(image)
    width, height = reversed(image.size) if transpose in _SIDE_SWAPPING else image.size
    size = compute_resized_size(width, height, preprocess.resize, preprocess.fit)
    upright = _to_upright_rgb(image, transpose, (width, height))
    if size == upright.size:
        return _crop(upright, preprocess)
    if preprocess.decode in QUICK_DECODE_MODES and preprocess.interpolation in INTERPOLATIONS:
        pixels = resize(_to_pixels(upright), size, preprocess.interpolation)
        return _crop(_from_pixels(pixels), preprocess)
    resample = Image.Resampling[preprocess.interpolation.upper()]
    return _crop(upright.resize(size, resample), preprocess)


def decode_and_crop_quickly(
    data: bytes, image: Image.Image, preprocess: Preprocess
) -> np.ndarray | None:
    """Decode a JPEG by simplejpeg, resize it by torch, and crop its centre.

    Parameters
    ----------
    data : bytes
        Content of an image file.
    image : Image
        The same file, opened and not loaded.
    preprocess : Preprocess
        As in `resize_and_crop`, with a quick decode mode.

    Returns
    -------
    uint8 array of shape (crop, crop, 3) or None
        RGB pixels; None if Pillow has to decode it, see `featurize.images.quick.decode_jpeg`.

    Raises
    ------
    CallError
        If simplejpeg is not installed.
    """
    transpose = find_transpose(image)
    swaps_sides = transpose in _SIDE_SWAPPING
    pixels = decode_jpeg(data, image, preprocess, swaps_sides=swaps_sides)
    if pixels is None:
        return None
    height, width = pixels.shape[:2]
    size = compute_resized_size(width, height, preprocess.resize, preprocess.fit)
    if size != (width, height):
        pixels = resize(pixels, size, preprocess.interpolation)
    # Where few pixels are left, they are mirrored faster.
    mirror = _MIRROR_AFTER_SWAP[transpose] if swaps_sides and transpose else transpose
    return _crop(_transpose(_from_pixels(pixels), mirror), preprocess)


def estimate_quick_bytes(image: Image.Image) -> int:
    """Estimate the memory that a quick decode mode takes beyond that of the others.

    Parameters
    ----------
    image : Image
        An opened image, drafted if it will be.

    Returns
    -------
    int
        Bytes: of turned pixels, or of a copy for torch.
    """
    if is_quick_jpeg(image) and find_transpose(image) not in _SIDE_SWAPPING:
        return 0
    return 4 * image.size[0] * image.size[1]


def _to_pixels(image: Image.Image) -> np.ndarray:
    """Copy an RGB image in strips: Pillow hands it out by way of another copy."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    n_rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, n_rows):
        strip = (0, top, image.width, min(top + n_rows, image.height))
        pixels[top : top + n_rows] = np.asarray(image.crop(strip))
    return pixels


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))


def _crop(resized: Image.Image, preprocess: Preprocess) -> np.ndarray:
    crop = preprocess.crop
    left, top = (_compute_crop_start(side, crop) for side in resized.size)
    if preprocess.fit == "border":
        canvas = Image.new("RGB", (crop, crop), _compute_fill(preprocess.mean))
        canvas.paste(resized, (-left, -top))
        return np.asarray(canvas, np.uint8)
    # Pillow fills the area outside of the image with black.
    return np.asarray(resized.crop((left, top, left + crop, top + crop)), np.uint8)


def is_scaled_ppm(image: Any) -> bool:
    """Tell whether an opened image is a PPM or PGM whose maximum value is not 255.

    Pillow decodes these value by value, in Python: a megapixel of colour takes a second.

    Parameters
    ----------
    image : Image
        Opened, not loaded.

    Returns
    -------
    bool
        Whether `decode_scaled_ppm` can decode it.
    """
    scaled = image.format == "PPM" and image.tile[0].codec_name == "ppm"
    return scaled and image.mode in ("L", "RGB")


def decode_scaled_ppm(image: Any, data: bytes) -> Image.Image:
    """Decode a PPM or PGM whose maximum value is not 255, bit for bit as Pillow does.

    Parameters
    ----------
    image : Image
        Opened, not loaded; `is_scaled_ppm` accepts it.
    data : bytes
        Content of the file.

    Returns
    -------
    Image
        Of mode ``L`` or ``RGB``.

    Raises
    ------
    ValueError
        If the file is truncated.
    """
    (_, max_value), offset = image.tile[0].args, image.tile[0].offset
    width, height = image.size
    row_samples = width * len(image.getbands())
    values = np.frombuffer(
        data, np.uint8 if max_value < 256 else ">u2", row_samples * height, offset
    )
    lookup = np.array(
        [min(255, round(value / max_value * 255)) for value in range(65536)], np.uint8
    )
    samples = np.empty(row_samples * height, np.uint8)
    for begin in range(0, len(samples), STRIP_PIXELS):
        block = slice(begin, begin + STRIP_PIXELS)
        samples[block] = lookup[values[block]]
    shape = (height, width) if image.mode == "L" else (height, width, 3)
    return Image.fromarray(samples.reshape(shape))


def compute_resized_size(width: int, height: int, resize: int, fit: str) -> tuple[int, int]:
    """Compute the size of an image after it is resized.

    Parameters
    ----------
    width, height : int
        Size of the image in pixels.
    resize : int
        New length in pixels: of the shorter side, of both, or of the longer side.
    fit : {"crop", "squash", "border"}
        See `Preprocess`.

    Returns
    -------
    width, height : int
        New size in pixels. The longer side of a crop is rounded down, as in torchvision; the
        shorter one inside a border is rounded, as in timm, and is one pixel at least.
    """
    if fit == "squash":
        return resize, resize
    if fit == "border":
        # Divided twice, as timm does: one division may round to the other side.
        ratio = max(width / resize, height / resize)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def count_resized_pixels(short: int, long: int, resize: int, fit: str) -> int:
    """Count the pixels of the largest image that resizing makes, between both axes or at the end.

    Parameters
    ----------
    short, long : int
        Sides of the image in pixels.
    resize : int
        New length of a side in pixels.
    fit : {"crop", "squash", "border"}
        See `Preprocess`.

    Returns
    -------
    int
        Pixels, rounded up.
    """
    if fit == "squash":
        return resize * max(long, resize)
    if fit == "border":
        return resize * max(short, -(-resize * short // max(long, 1)), 1)
    return -(-resize * resize * long // max(short, 1))


def find_transpose(image: Image.Image) -> Image.Transpose | None:
    """Find the transposition that brings an image upright, by its EXIF orientation.

    Parameters
    ----------
    image : Image
        An opened image.

    Returns
    -------
    Transpose or None
        Pillow's operation; None if the image is upright, or its EXIF data are missing, damaged or
        longer than `MAX_EXIF_BYTES`.
    """
    with suppress(Exception):  # damaged EXIF data must not make the image fail
        if len(image.info.get("exif", b"")) <= MAX_EXIF_BYTES:
            return _TRANSPOSE_BY_ORIENTATION.get(image.getexif().get(_ORIENTATION, 1))
    return None


def _to_upright_rgb(
    image: Image.Image, transpose: Image.Transpose | None, upright_size: tuple[int, int]
) -> Image.Image:
    """Transpose an image to upright and convert it to RGB."""
    if transpose is None and is_opaque_rgb(image):
        return image  # without a copy
    if upright_size[0] * upright_size[1] <= STRIP_PIXELS:
        return _to_rgb(_transpose(image, transpose))
    upright = Image.new("RGB", upright_size)
    for top, box in _iter_strips(image, transpose, upright_size):
        upright.paste(_to_rgb(_transpose(image.crop(box), transpose)), (0, top))
    return upright


def _transpose(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return image if transpose is None else image.transpose(transpose)


def _iter_strips(
    image: Image.Image, transpose: Image.Transpose | None, upright_size: tuple[int, int]
) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yield the first row of each strip of the upright image, and its box in the stored one."""
    width, height = image.size
    strip_rows = max(1, STRIP_PIXELS // upright_size[0])
    for top in range(0, upright_size[1], strip_rows):
        bottom = min(top + strip_rows, upright_size[1])
        begin, end = (
            (upright_size[1] - bottom, upright_size[1] - top)
            if transpose in _REVERSING
            else (top, bottom)
        )
        swaps_sides = transpose in _SIDE_SWAPPING
        yield top, (begin, 0, end, height) if swaps_sides else (0, begin, width, end)


def is_opaque_rgb(image: Image.Image) -> bool:
    """Tell whether an image is opaque RGB without conversion.

    Parameters
    ----------
    image : Image
        An opened image.

    Returns
    -------
    bool
        True if its mode is RGB and no colour is transparent.
    """
    return image.mode == "RGB" and not image.has_transparency_data


def _to_rgb(image: Image.Image) -> Image.Image:
    if is_opaque_rgb(image):
        return image  # `convert` would copy it
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255. Of 16-bit colour, too, Pillow keeps the high byte.
        high_byte = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("numbers of unknown range; save it as 8-bit or 16-bit")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _compute_fill(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Compute the colour of a border: the mean, which a network gets as zero but for rounding."""
    red, green, blue = (min(255, max(0, round(255 * value))) for value in mean)
    return red, green, blue


def _compute_crop_start(side: int, crop: int) -> int:
    """Compute the start of the centre crop along one side, to the pixel as in torchvision."""
    if crop > side:
        return -((crop - side) // 2)
    return round((side - crop) / 2)

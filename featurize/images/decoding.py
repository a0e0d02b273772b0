"""Decode the bytes of image files into oriented, resized and cropped pixels.

A broken image becomes one failed row: any defect of a file raises `ImageUnreadableError` with a
reason code, never another exception.
"""

import ctypes
import io
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
from PIL import Image

from featurize.errors import CallError, ImageUnreadableError
from featurize.images import footprint, limits, transforms
from featurize.images.preprocess import MIN_REDUCTION, QUICK_DECODE_MODES, Preprocess
from featurize.images.reasons import (
    DAMAGED,
    NO_MEMORY,
    NOT_AN_IMAGE,
    TOO_LARGE,
    UNSUPPORTED,
)
from featurize.system import memory

# Pillow may use only these readers: some of the others start external programs.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM")
# First bytes of these formats. A file that begins so but cannot be opened is damaged.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")

MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb

_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "insufficient memory",
    "decoder error -9",
    "cannot allocate",
)


def decode_image(data: bytes, preprocess: Preprocess) -> np.ndarray:
    """Decode an image file and preprocess its pixels.

    EXIF orientation is applied first, transparency is composed over white, the first frame of an
    animation is taken, and 16-bit grey keeps its high byte. Then the image is resized and its
    centre cropped; where `decode` is ``exact``, bit for bit as in torchvision and timm.

    An image that needs much memory is decoded alone, whatever the number of threads. It is refused
    if too little memory is available. If memory runs out anyway, decoding is tried once more,
    alone.

    Parameters
    ----------
    data : bytes
        Content of an image file.
    preprocess : Preprocess
        Sizes, fit, interpolation and decode mode. Engines normalise: of mean and standard deviation
        only the mean is used, as the colour of a border.

    Returns
    -------
    uint8 array of shape (crop, crop, 3)
        RGB pixels.

    Raises
    ------
    ImageUnreadableError
        If the image cannot be decoded, with the reason.
    CallError
        If the package that the decode mode needs is not installed.
    """
    try:
        return _decode_once(data, preprocess)
    except MemoryError:
        pass
    except ImageUnreadableError as error:
        if error.reason != NO_MEMORY:
            raise
    try:
        with memory.take_turn():
            return _decode_once(data, preprocess)
    except MemoryError as error:
        raise ImageUnreadableError("not enough memory", NO_MEMORY) from error


def _decode_once(data: bytes, preprocess: Preprocess) -> np.ndarray:
    resize, fit = preprocess.resize, preprocess.fit
    limits.check_bytes(data)
    with ExitStack() as reservations:
        width, height = footprint.read_webp_size(data)
        if width * height > MAX_PIXELS:
            raise ImageUnreadableError(f"{width} x {height} pixels", TOO_LARGE)
        needed_bytes = 2 * len(data)
        if width * height:  # a WebP: its decoder takes memory before Pillow knows the size
            needed_bytes = footprint.estimate_webp_bytes(width * height, len(data))
            _reserve_memory(reservations, needed_bytes, width, height)
        image = _open_image(data, needed_bytes)
        stored_size = image.size
        short, long = sorted(stored_size)
        resized_pixels = transforms.count_resized_pixels(short, long, resize, fit)
        if max(short * long, resized_pixels) > MAX_PIXELS:
            raise ImageUnreadableError(f"{stored_size[0]} x {stored_size[1]} pixels", TOO_LARGE)
        try:
            limits.check_opened_image(image, data)
            if preprocess.decode in MIN_REDUCTION:
                # So that the resize below still filters properly. Of a border it is more than
                # that: the shorter side gets smaller than `resize`.
                least = MIN_REDUCTION[preprocess.decode] * resize
                image.draft("RGB", (least, least))
            needed_bytes = footprint.estimate_bytes(image, stored_size, data, resize, fit)
            if preprocess.decode in QUICK_DECODE_MODES:
                needed_bytes += transforms.estimate_quick_bytes(image)
            if needed_bytes >= memory.MIN_COUNTED_BYTES and image.format != "WEBP":
                _reserve_memory(reservations, needed_bytes, *stored_size)
            if preprocess.decode in QUICK_DECODE_MODES:
                pixels = transforms.decode_and_crop_quickly(data, image, preprocess)
                if pixels is not None:
                    return pixels
            if transforms.is_scaled_ppm(image):
                image = transforms.decode_scaled_ppm(image, data)
            else:
                image.load()
        except (ImageUnreadableError, CallError):
            raise
        except Exception as error:
            raise _to_image_error(error, DAMAGED, needed_bytes) from error
        try:
            return transforms.resize_and_crop(image, preprocess)
        except Exception as error:
            raise _to_image_error(
                error, UNSUPPORTED, needed_bytes, f"mode {image.mode}: "
            ) from error


def _open_image(data: bytes, needed_bytes: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageUnreadableError(str(error), TOO_LARGE) from error
    except Exception as error:  # Pillow's plugins raise any exception on hostile headers
        reason = DAMAGED if data.startswith(MAGIC) else NOT_AN_IMAGE
        raise _to_image_error(error, reason, needed_bytes) from error


def _reserve_memory(reservations: ExitStack, n_bytes: int, width: int, height: int) -> None:
    try:
        reservations.enter_context(memory.reserve(n_bytes, f"{width:,} x {height:,} pixels"))
    except MemoryError as error:
        raise ImageUnreadableError(str(error), NO_MEMORY) from error


def _to_image_error(
    error: Exception, reason: int, needed_bytes: int, where: str = ""
) -> ImageUnreadableError:
    """Attribute a failure to the file, or to a lack of memory.

    libjpeg and libtiff report both in the same words, so the available memory decides.
    """
    messages = " ".join(str(cause).lower() for cause in _iter_causes(error))
    if (
        any(isinstance(cause, MemoryError) for cause in _iter_causes(error))
        or any(text in messages for text in _OUT_OF_MEMORY_TEXTS)
        or memory.is_short(needed_bytes)
    ):
        return ImageUnreadableError(f"not enough memory: {where}{error}", NO_MEMORY)
    return ImageUnreadableError(f"{where}{error}", reason)


def _iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return iter(causes)


def _silence_libtiff() -> None:
    """Prevent libtiff from writing to standard error; its errors also raise exceptions.

    Pillow turns off libtiff's warnings, not its errors. The function is found through Pillow's own
    library, which has loaded libtiff.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        handler = library.TIFFSetErrorHandler
        handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        handler(None)


Image.init()  # otherwise several readers are loaded only on first use
_silence_libtiff()

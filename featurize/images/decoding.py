"""Read images, hash them, and turn their bytes into oriented, cropped pixels.

One broken image is one failed row: whatever is wrong with a file comes out as
`ImageUnreadableError` with a reason code, never as another exception.
"""

import ctypes
import io
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
from PIL import Image

from featurize.errors import ImageUnreadableError
from featurize.images import footprint, limits, transforms
from featurize.images.preprocess import Preprocess
from featurize.images.reasons import (
    DAMAGED,
    NO_MEMORY,
    NOT_AN_IMAGE,
    TOO_LARGE,
    UNSUPPORTED,
)
from featurize.system import memory

# Pillow is asked for these readers and no others: some of the rest start other programs.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM")
# How files of these kinds begin; what else they lack makes them damaged, not something else.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")

MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb

_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "insufficient memory",
    "decoder error -9",
    "cannot allocate",
)


def decode_image(data: bytes, preprocess: Preprocess) -> np.ndarray:
    """Turn a file's bytes into the pixels that a network's preprocessing asks for.

    EXIF orientation is applied first, transparency is laid over white, the first
    frame of an animation is taken, 16-bit grey keeps its high byte. Then the shorter
    side is resized and the centre cropped, to the bit as torchvision does it.

    An image that takes much memory is decoded alone, whatever the number of threads, and not at
    all where there is less. Where memory ends all the same, it is tried once more, alone.

    Parameters
    ----------
    data : bytes
        An image file.
    preprocess : Preprocess
        Its mean and deviation are not used: engines normalise.

    Returns
    -------
    uint8 array of shape (crop, crop, 3)

    Raises
    ------
    ImageUnreadable
        With the reason, whatever is wrong with the bytes.
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
    resize, crop = preprocess.resize, preprocess.crop
    resample = Image.Resampling[preprocess.interpolation.upper()]
    limits.check_bytes(data)
    with ExitStack() as claims:
        width, height = footprint.read_webp_size(data)
        if width * height > MAX_PIXELS:
            raise ImageUnreadableError(f"{width} x {height} pixels", TOO_LARGE)
        need = 2 * len(data)
        if width * height:  # its decoder takes memory before Pillow says a size
            need = footprint.estimate_webp_bytes(width * height, len(data))
            _reserve_memory(claims, need, width, height)
        image = _open_image(data, need)
        stored = image.size
        short, long = sorted(stored)
        if short * long > MAX_PIXELS or resize * resize * long > MAX_PIXELS * max(short, 1):
            raise ImageUnreadableError(f"{stored[0]} x {stored[1]} pixels", TOO_LARGE)
        try:
            limits.check_opened_image(image, data)
            if preprocess.decode == "fast":
                # Twice the target is kept, so that the resize below still filters properly.
                image.draft("RGB", (2 * resize, 2 * resize))
            need = footprint.estimate_bytes(image, stored, data, resize)
            if need >= memory.MIN_COUNTED_BYTES and image.format != "WEBP":
                _reserve_memory(claims, need, *stored)
            if transforms.is_scaled_ppm(image):
                image = transforms.decode_scaled_ppm(image, data)
            else:
                image.load()
        except ImageUnreadableError:
            raise
        except Exception as error:
            raise _to_image_error(error, DAMAGED, need) from error
        try:
            return transforms.resize_and_crop(image, resize, crop, resample)
        except Exception as error:
            raise _to_image_error(error, UNSUPPORTED, need, f"mode {image.mode}: ") from error


def _open_image(data: bytes, needed_bytes: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageUnreadableError(str(error), TOO_LARGE) from error
    except Exception as error:  # Pillow's plugins raise anything on hostile headers
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
    """What a failure is put down to: the file, or memory that was short."""
    texts = " ".join(str(one).lower() for one in _iter_causes(error))
    if (
        any(isinstance(one, MemoryError) for one in _iter_causes(error))
        or any(text in texts for text in _OUT_OF_MEMORY_TEXTS)
        or memory.is_short(
            needed_bytes
        )  # libjpeg and libtiff say the same of this as of damaged bytes
    ):
        return ImageUnreadableError(f"not enough memory: {where}{error}", NO_MEMORY)
    return ImageUnreadableError(f"{where}{error}", reason)


def _iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return iter(seen)


def _silence_libtiff() -> None:
    """Keep libtiff from writing to standard error; what it has to say comes as an exception too.

    Pillow turns off its warnings, not its errors. The library is looked up among those that
    Pillow has loaded.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        handler = library.TIFFSetErrorHandler
        handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        handler(None)


Image.init()  # several of these readers are not loaded until asked for
_silence_libtiff()

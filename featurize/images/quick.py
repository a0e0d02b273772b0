"""Decoding for ``--decode quick`` and ``fastest``: JPEGs by simplejpeg, sizes by torch.

Both do what Pillow does in less time. simplejpeg hands the whole file to libjpeg-turbo, which
Pillow uses too, so at full size the pixels are the same. torch resizes bytes as bytes, and rounds
as Pillow does but for a few values, which differ by one level.
"""

from importlib.util import find_spec

import numpy as np
from PIL import Image

from featurize.errors import CallError
from featurize.images.preprocess import QUICK_DECODE_MODES, Preprocess

STRIP_ROWS = 64
INTERPOLATIONS = ("bilinear", "bicubic")  # of bytes; the other filters are Pillow's


def check_decode_mode(mode: str) -> None:
    """Check that the package that a decode mode needs is installed.

    Parameters
    ----------
    mode : str
        One of `featurize.images.preprocess.DECODE_MODES`.

    Raises
    ------
    CallError
        If it is not.
    """
    if mode in QUICK_DECODE_MODES and find_spec("simplejpeg") is None:
        raise CallError(
            f"--decode {mode} needs the package simplejpeg: pip install 'headgraft[quick]'"
        )


def decode_jpeg(
    data: bytes, image: Image.Image, preprocess: Preprocess, *, swaps_sides: bool
) -> np.ndarray | None:
    """Decode a JPEG.

    Parameters
    ----------
    data : bytes
        Content of an image file.
    image : Image
        The same file, opened and not loaded. Its size is what is decoded, also after
        `Image.draft`.
    preprocess : Preprocess
        With a `decode` that is ``quick`` or ``fastest``.
    swaps_sides : bool
        Whether rows are to become columns.

    Returns
    -------
    uint8 array of shape (height, width, 3 or 4) or None
        RGB; a fourth channel means nothing.
        None if Pillow has to decode it: it is not a JPEG in grey or colour, or it is damaged, or
        another filter is asked for.

    Raises
    ------
    CallError
        If simplejpeg is not installed.
    """
    if not is_quick_jpeg(image) or preprocess.interpolation not in INTERPOLATIONS:
        return None
    try:
        import simplejpeg
    except ImportError:
        check_decode_mode(preprocess.decode)
        raise
    try:
        width, height = image.size
        # Pixels of four bytes are turned in half the time of those of three.
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, "RGBX" if swaps_sides else "RGB", min_height=height, min_width=width
        )
    except (ValueError, MemoryError):
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return _swap_sides(pixels) if swaps_sides else pixels


def is_quick_jpeg(image: Image.Image) -> bool:
    """Tell whether simplejpeg decodes an image: a JPEG in grey or colour.

    Parameters
    ----------
    image : Image
        An opened image.

    Returns
    -------
    bool
    """
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")


def _swap_sides(pixels: np.ndarray) -> np.ndarray:
    """Make rows columns, in strips that fit into the processor's cache."""
    whole = pixels.view(np.uint32)[..., 0]
    height, width = whole.shape
    turned = np.empty((width, height), np.uint32)
    for top in range(0, height, STRIP_ROWS):
        strip = slice(top, top + STRIP_ROWS)
        turned[:, strip] = whole[strip].T
    return turned[..., None].view(np.uint8)


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize an image.

    Parameters
    ----------
    pixels : uint8 array of shape (height, width, 3 or 4)
    size : tuple of int
        New width and height.
    interpolation : {"bilinear", "bicubic"}
        One of `INTERPOLATIONS`.

    Returns
    -------
    uint8 array of shape (new height, new width, 3 or 4)
        Not necessarily contiguous.
    """
    import torch
    from torch.nn import functional

    # Seen as channels last, for which torch has a kernel of its own.
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = functional.interpolate(
        batch, (size[1], size[0]), mode=interpolation, antialias=True, align_corners=False
    )
    found: np.ndarray = resized[0].permute(1, 2, 0).numpy()
    return found

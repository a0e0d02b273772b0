"""Find images, read them, hash them, and turn their bytes into oriented, cropped pixels.

One broken image is one failed row: whatever is wrong with a file comes out as
`ImageUnreadable` with a reason code, never as another exception.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from featurize.errors import CallError, ImageUnreadable

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "dib", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm"),
    )
)
# Pillow is asked for these readers and no others: some of the rest start other programs.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM")
# How files of these kinds begin; what else they lack makes them damaged, not something else.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")

Image.init()  # several of these readers are not loaded until asked for

MAX_FILE_BYTES = 1 << 30
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb

# Why a row failed: the codes of the cache's `reason` column (docs/cache-format.md).
OK = 0
EMPTY, NOT_AN_IMAGE, DAMAGED, TOO_LARGE, UNSUPPORTED, NOT_A_FILE = 1, 2, 3, 4, 5, 6
NO_PERMISSION, READ_ERROR, VANISHED = 7, 8, 9
NOT_FINITE = 10
REASONS = {
    EMPTY: "empty file",
    NOT_AN_IMAGE: "not an image",
    DAMAGED: "truncated or damaged",
    TOO_LARGE: "too large",
    UNSUPPORTED: "unsupported pixel format",
    NOT_A_FILE: "not a regular file",
    NO_PERMISSION: "permission denied",
    READ_ERROR: "read error",
    VANISHED: "vanished while running",
    NOT_FINITE: "features are not finite",
}
# The system's fault rather than the file's: tried again by every run.
TRANSIENT = frozenset({NO_PERMISSION, READ_ERROR, VANISHED})


@dataclass(frozen=True)
class Listing:
    """The images of one folder, sorted by path.

    Attributes
    ----------
    root : Path
        The folder.
    paths : list of str
        POSIX paths relative to `root`, sorted.
    sizes, mtimes_ns : int64 arrays of shape (N,)
        File sizes in bytes and modification times in nanoseconds.
    passed_over : list of str
        Files that cannot be rows, because their names are not UTF-8.
    """

    root: Path
    paths: list[str]
    sizes: np.ndarray
    mtimes_ns: np.ndarray
    passed_over: list[str]


def find(folder: str | os.PathLike[str]) -> Listing:
    """List every image below a folder, without opening any.

    Hidden files and folders are passed over. Links are followed, loops are not.
    A folder with an image's suffix becomes a row too (which will fail), so that
    nothing that looks like an image disappears silently.

    Raises
    ------
    CallError
        If the folder is missing, cannot be read or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise CallError(f"{root} {what}; give the folder that holds the images")
    found: list[tuple[str, int, int]] = []
    passed_over: list[str] = []
    try:
        for name, size, mtime_ns in _walk(str(root), "", ()):
            try:
                name.encode()
            except UnicodeEncodeError:
                passed_over.append(ascii(name))
            else:
                found.append((name, size, mtime_ns))
    except PermissionError as error:
        raise CallError(f"cannot list {error.filename}: permission denied") from error
    if not found:
        raise CallError(f"no image in {root}; looked for {' '.join(sorted(SUFFIXES))}")
    found.sort()
    return Listing(
        root,
        [row[0] for row in found],
        np.array([row[1] for row in found], np.int64),
        np.array([row[2] for row in found], np.int64),
        passed_over,
    )


def _walk(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, int, int]]:
    here = os.stat(folder)
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        return  # a link that leads back to a folder we are in
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = prefix + entry.name
            looks_like_image = os.path.splitext(entry.name)[1].lower() in SUFFIXES
            if looks_like_image:
                try:
                    info = entry.stat()
                except OSError:  # a dangling link, or gone already: a row that fails
                    yield name, 0, 0
                    continue
                yield name, info.st_size, info.st_mtime_ns
            try:
                folder_inside = entry.is_dir()
            except OSError:  # a link to itself
                continue
            if folder_inside:
                yield from _walk(entry.path, name + "/", (*above, identity))


def read(path: str | os.PathLike[str]) -> bytes:
    """Read one file whole.

    Raises
    ------
    ImageUnreadable
        If it cannot be read, is empty, is no regular file or is over a gigabyte.
    """
    try:
        # Without O_NONBLOCK a named pipe would hang the run for ever.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise ImageUnreadable(f"{path} is not a regular file", NOT_A_FILE)
            if info.st_size > MAX_FILE_BYTES:
                raise ImageUnreadable(f"{path} has {info.st_size:,} bytes", TOO_LARGE)
            with open(fd, "rb", closefd=False) as file:
                data = file.read()
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise ImageUnreadable(f"{path} is gone", VANISHED) from error
    except PermissionError as error:
        raise ImageUnreadable(f"{path} may not be read", NO_PERMISSION) from error
    except OSError as error:
        raise ImageUnreadable(f"{path} cannot be read: {error}", READ_ERROR) from error
    if not data:
        raise ImageUnreadable(f"{path} is empty", EMPTY)
    return data


def digest(data: bytes) -> bytes:
    """SHA-256 of a file's bytes, 32 bytes long."""
    return hashlib.sha256(data).digest()


def decode(data: bytes, recipe: dict[str, object]) -> np.ndarray:
    """Turn a file's bytes into the pixels that a network's preprocessing asks for.

    EXIF orientation is applied first, transparency is laid over white, the first
    frame of an animation is taken, 16-bit grey keeps its high byte. Then the shorter
    side is resized and the centre cropped, to the bit as torchvision does it.

    Parameters
    ----------
    data : bytes
        An image file.
    recipe : dict
        ``resize`` and ``crop`` in pixels, ``interpolation``, ``decode``
        (``"exact"``, or ``"fast"`` for JPEG's reduced-size decoding).

    Returns
    -------
    uint8 array of shape (crop, crop, 3)

    Raises
    ------
    ImageUnreadable
        With the reason, whatever is wrong with the bytes.
    """
    resize, crop = int(str(recipe["resize"])), int(str(recipe["crop"]))
    resample = Image.Resampling[str(recipe["interpolation"]).upper()]
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageUnreadable(str(error), TOO_LARGE) from error
    except Exception as error:  # Pillow's plugins raise anything on hostile headers
        reason = DAMAGED if data.startswith(MAGIC) else NOT_AN_IMAGE
        raise ImageUnreadable(str(error), reason) from error
    short, long = sorted(image.size)
    if short * long > MAX_PIXELS or resize * resize * long > MAX_PIXELS * max(short, 1):
        raise ImageUnreadable(f"{image.size[0]} x {image.size[1]} pixels", TOO_LARGE)
    try:
        if recipe["decode"] == "fast":
            # Twice the target is kept, so that the resize below still filters properly.
            image.draft("RGB", (2 * resize, 2 * resize))
        image.load()
    except MemoryError as error:
        raise ImageUnreadable("not enough memory to decode it", TOO_LARGE) from error
    except Exception as error:
        raise ImageUnreadable(str(error), DAMAGED) from error
    try:
        rgb = _to_rgb(_orient(image))
        return np.asarray(_resize_and_crop(rgb, resize, crop, resample), np.uint8)
    except Exception as error:
        raise ImageUnreadable(f"mode {image.mode}: {error}", UNSUPPORTED) from error


def _orient(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # damaged EXIF must not cost the picture
        ImageOps.exif_transpose(image, in_place=True)  # else a copy even of what is upright
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
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


def _resize_and_crop(
    image: Image.Image, resize: int, crop: int, resample: Image.Resampling
) -> Image.Image:
    width, height = image.size
    if width <= height:
        size = (resize, int(resize * height / width))
    else:
        size = (int(resize * width / height), resize)
    if size != image.size:
        image = image.resize(size, resample)
    left, top = _start(size[0], crop), _start(size[1], crop)
    return image.crop((left, top, left + crop, top + crop))  # pads with black outside


def _start(side: int, crop: int) -> int:
    """Where the centre begins along one side, as torchvision has it: to the pixel."""
    if crop > side:
        return -((crop - side) // 2)
    return round((side - crop) / 2)

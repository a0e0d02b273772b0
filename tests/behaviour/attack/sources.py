"""Small sound pictures in every format that is read, in many of its variants."""

from io import BytesIO

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    image.copy().save(file, form, **options)  # Pillow keeps what one encoder was told
    return file.getvalue()


def sources(seed: int = 0) -> dict[str, list[bytes]]:
    """By suffix, sound files of that format."""
    plain, other = picture(seed), picture(seed + 1)
    grey, palette, clear = plain.convert("L"), plain.convert("P"), plain.convert("RGBA")
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    frames = {"save_all": True, "append_images": [other.copy(), plain.copy()]}
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    return {
        "jpg": [
            saved(plain, "JPEG", exif=exif),
            saved(plain, "JPEG", progressive=True, optimize=True),
            saved(plain.convert("CMYK"), "JPEG"),
            saved(grey, "JPEG", quality=20),
            saved(plain, "MPO", save_all=True, append_images=[other.copy()]),
            saved(picture(seed, (600, 500)), "JPEG"),
        ],
        "png": [
            saved(plain, "PNG", exif=exif),
            saved(clear, "PNG"),
            saved(palette, "PNG", transparency=3),
            saved(deep, "PNG"),
            saved(plain, "PNG", **frames),
            saved(plain.convert("1"), "PNG"),
        ],
        "gif": [saved(plain, "GIF", **frames), saved(palette, "GIF", transparency=1, comment=b"c")],
        "webp": [
            saved(plain, "WEBP"),
            saved(clear, "WEBP", lossless=True, exif=exif),
            saved(plain, "WEBP", **frames),
        ],
        "tif": [
            *(
                saved(plain, "TIFF", compression=name, exif=exif)
                for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", None)
            ),
            saved(plain.convert("1"), "TIFF", compression="group4"),
            saved(deep, "TIFF"),
            saved(plain, "TIFF", compression="tiff_lzw", **frames),
        ],
        "bmp": [saved(plain, "BMP"), saved(palette, "BMP"), saved(plain.convert("1"), "BMP")],
        "ppm": [
            saved(plain, "PPM"),
            saved(grey, "PPM"),
            saved(plain.convert("1"), "PPM"),
            b"P3\n4 3\n255\n" + b"9 80 200 " * 12,
        ],
    }

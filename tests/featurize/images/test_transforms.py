"""Large images go through in strips: the pixels are those of the whole image, to the bit."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageOps

from featurize.images import decoding, transforms
from featurize.images.preprocess import Preprocess

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16")
MEAN, STD = (0.5,) * 3, (0.25,) * 3  # decoding does not use them
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def plain(data, preprocess):
    """The same, the simple way: everything at once, one step after the other."""
    image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    (width, height), side, crop = image.size, preprocess.resize, preprocess.crop
    size = (side, side * height // width) if width <= height else (side * width // height, side)
    image = image.resize(size, Image.Resampling[preprocess.interpolation.upper()])
    left, top = (_middle(n, crop) for n in size)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def _middle(side, crop):
    return -((crop - side) // 2) if crop > side else round((side - crop) / 2)


def drawn(mode, width, height, orientation, seed):
    """A file of noise: its bytes, in a format that keeps the mode."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (height, width), np.uint8))
    form, options = "PNG", {}
    if mode in ("LA", "RGBA"):
        image = colours.convert(mode[:-1])
        image.putalpha(alpha)
    elif mode in ("P", "PA"):
        image = colours.convert("P", palette=Image.Palette.ADAPTIVE)
        if mode == "PA":
            options["transparency"] = rng.integers(0, 256, 256, np.uint8).tobytes()
    elif mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    else:
        image = colours.convert(mode)
        form = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    if mode == "RGB" and seed % 2:
        options["transparency"] = tuple(rng.integers(0, 256, 3).tolist())
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_strips_are_the_whole_image_to_the_bit(mode, orientation, monkeypatch):
    random.seed(f"{mode}{orientation}")
    for k, interpolation in enumerate(FILTERS):
        width, height = random.randint(40, 190), random.randint(40, 190)
        side = random.choice([17, 31, 32, 64, 199, height])
        preprocess = Preprocess(side, 29, MEAN, STD, interpolation)
        data = drawn(mode, width, height, orientation, k)
        expected = plain(data, preprocess)
        for strip in (1, 300, 1111, 5000, 1 << 22):  # from a row at a time to all at once
            monkeypatch.setattr(transforms, "STRIP_PIXELS", strip)
            np.testing.assert_array_equal(decoding.decode_image(data, preprocess), expected)


@pytest.mark.parametrize(
    "mode", ["RGB", "RGBA", pytest.param("PA", marks=pytest.mark.slow), "CMYK", "I;16", "1"]
)
def test_an_image_of_several_strips(mode):
    preprocess = Preprocess(256, 224, MEAN, STD)
    data = drawn(mode, 2601, 3333, 6, 0)
    np.testing.assert_array_equal(decoding.decode_image(data, preprocess), plain(data, preprocess))

"""`--decode quick` and `fastest`: what exact decodes, in less time and nearly the same pixels."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize import FeatureCache, load_backbone, run
from featurize.errors import CallError, ImageUnreadableError
from featurize.images import quick
from featurize.images.decoding import decode_image
from featurize.images.preprocess import Preprocess

EXACT = Preprocess(64, 56, mean=(0.5,) * 3, std=(0.25,) * 3)
QUICK, FASTEST = replace(EXACT, decode="quick"), replace(EXACT, decode="fastest")
MAX_SHARE = 0.01  # of values that are one level off


def make_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Colours that change over the picture, with grain, as a photograph has."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    values = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-9, 10, (height, width, 1))
    return Image.fromarray(np.clip(values + grain, 0, 255).astype(np.uint8))


def to_bytes(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def check_close(data: bytes, exact: Preprocess, mode: str = "quick") -> None:
    expected = decode_image(data, exact).astype(int)
    difference = np.abs(decode_image(data, replace(exact, decode=mode)).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < MAX_SHARE


@pytest.mark.parametrize(
    ("width", "height"),
    [(320, 240), (240, 320), (500, 375), (641, 479), (333, 500), (1024, 768), (80, 60), (40, 30)],
)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_photographs_are_one_level_off_at_most(width, height, subsampling):
    data = to_bytes(make_picture(width, height), quality=90, subsampling=subsampling)
    for interpolation in ("bilinear", "bicubic"):
        check_close(data, replace(EXACT, interpolation=interpolation))


@pytest.mark.long
def test_photographs_of_twelve_megapixels_too():
    data = to_bytes(make_picture(4000, 3000), quality=90)
    check_close(data, Preprocess(256, 224, mean=(0.5,) * 3, std=(0.25,) * 3))


@pytest.mark.parametrize("fit", ["squash", "border"])
def test_every_fit(fit):
    for width, height in ((640, 360), (300, 500)):
        check_close(to_bytes(make_picture(width, height), quality=95), replace(EXACT, fit=fit))


@pytest.mark.parametrize("mode", ["quick", "fastest"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = to_bytes(make_picture(150, 101), quality=95, exif=exif)
    check_close(data, EXACT, mode)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"optimize": True, "restart_marker_blocks": 4}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "L", {}),
        ("WEBP", "RGB", {"quality": 90}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("GIF", "P", {}),
    ],
)
def test_every_kind_of_file(kind, mode, options):
    check_close(to_bytes(make_picture(301, 203).convert(mode), kind, **options), EXACT)


def test_at_full_size_pixels_are_the_same():
    """As they are before they are resized: the same library decodes."""
    for width, height in ((56, 56), (57, 61)):
        data = to_bytes(make_picture(width, height), quality=85)
        unscaled = replace(EXACT, resize=min(width, height))
        expected = decode_image(data, unscaled)
        assert np.array_equal(decode_image(data, replace(unscaled, decode="quick")), expected)


def test_other_filters_are_pillows():
    data = to_bytes(make_picture(300, 200), quality=90)
    for interpolation in ("nearest", "box", "hamming", "lanczos"):
        exact = replace(EXACT, interpolation=interpolation)
        expected = decode_image(data, exact)
        assert np.array_equal(decode_image(data, replace(exact, decode="quick")), expected)


def test_fastest_decodes_at_a_reduced_size(monkeypatch):
    shapes = []
    through = quick.resize

    def noting(pixels, size, interpolation):
        shapes.append(pixels.shape)
        return through(pixels, size, interpolation)

    monkeypatch.setattr("featurize.images.transforms.resize", noting)
    for width, height in ((1024, 768), (2050, 2100), (500, 400)):
        data = to_bytes(make_picture(width, height), quality=90)
        found = decode_image(data, FASTEST).astype(int)
        assert np.abs(found - decode_image(data, EXACT)).max() <= 12
    # A half and an eighth, and not less than four times 64.
    assert shapes == [(384, 512, 3), (263, 257, 3), (400, 500, 3)]


@pytest.mark.parametrize("preprocess", [QUICK, FASTEST], ids=["quick", "fastest"])
def test_damaged_files_fail_as_they_do_in_exact(preprocess):
    """And what exact reads in spite of its damage, is read."""
    whole = to_bytes(make_picture(200, 150), quality=85)
    rng = np.random.default_rng(1)
    outcomes = []
    for number in range(300):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: int(rng.integers(2, len(data)))]
        for place in rng.integers(2, len(data), int(rng.integers(1, 4))):
            data[place] = rng.integers(0, 256)
        results = []
        for recipe in (replace(preprocess, decode="exact"), preprocess):
            try:
                results.append(decode_image(bytes(data), recipe).shape)
            except ImageUnreadableError as error:
                results.append(error.reason)
        outcomes.append(tuple(results))
    assert [pair for pair in outcomes if pair[0] != pair[1]] == []
    assert 50 < sum(isinstance(exact, tuple) for exact, _ in outcomes) < 290


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(12):
        data = to_bytes(make_picture(300, 200, number), quality=90)
        (tmp_path / "images" / f"{number:02}.jpg").write_bytes(data)
    return tmp_path / "images"


def test_a_run_has_a_fingerprint_of_its_own(folder, tmp_path, cli):
    exact, other = tmp_path / "exact.h5", tmp_path / "quick.h5"
    run(folder, exact, backbone="seedling")
    run(folder, other, backbone="seedling", decode="quick")
    ours, theirs = FeatureCache(other), FeatureCache(exact)
    (layer,) = theirs.layers
    assert ours.extractor.preprocess.decode == "quick"
    assert ours.layers[layer].fingerprint != theirs.layers[layer].fingerprint
    a, b = ours.features(layer), theirs.features(layer)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999
    assert not np.array_equal(a, b)
    assert ours.verify() == []
    refused = cli("run", folder, "-o", exact, "--decode", "quick")
    assert refused.exit_code == 2
    assert "preprocess.decode is 'exact', asked for 'quick'" in refused.stderr
    # Without --decode a cache goes on as it was begun.
    (folder / "12.jpg").write_bytes((folder / "11.jpg").read_bytes() + b" ")
    assert run(folder, other).computed == 1


def test_a_missing_package_is_named_before_anything_is_read(folder, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(quick, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    done = cli(
        "run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling", "--decode", "quick"
    )
    assert done.exit_code == 2
    assert "pip install 'headgraft[quick]'" in done.stderr
    assert not (tmp_path / "c.h5").exists()
    with pytest.raises(CallError, match=r"pip install 'headgraft\[quick\]'"):
        decode_image((folder / "00.jpg").read_bytes(), QUICK)


def test_a_backbone_of_ones_own_has_its_own_decoding(folder, tmp_path):
    backbone = load_backbone("seedling", decode="quick")
    run(folder, tmp_path / "c.h5", backbone=backbone, decode="quick")
    assert FeatureCache(tmp_path / "c.h5").extractor.preprocess.decode == "quick"
    with pytest.raises(CallError, match="a Backbone has its own preprocessing"):
        run(folder, tmp_path / "d.h5", backbone=backbone, decode="fastest")


PEAK = """
import io, sys
import numpy as np
from PIL import Image
from featurize.images import decoding
from featurize.images.preprocess import Preprocess

kind, mode, orientation, decode = sys.argv[1:]
preprocess = Preprocess(256, 224, mean=(0.5,) * 3, std=(0.25,) * 3, decode=decode)
noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
picture = Image.fromarray(noise).resize((6000, 5000)).convert(mode)
exif, file = Image.Exif(), io.BytesIO()
exif[0x0112] = int(orientation)
picture.save(file, kind, exif=exif)
data = file.getvalue()
del picture, file
small = io.BytesIO()
Image.new("RGB", (500, 400)).save(small, "JPEG")
decoding.decode_image(small.getvalue(), preprocess)  # imports are no part of it
reserved, reserve = [0], decoding._reserve_memory

def noting(reservations, n_bytes, *size):
    reserved.append(n_bytes)
    reserve(reservations, n_bytes, *size)

def read(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

decoding._reserve_memory = noting
open("/proc/self/clear_refs", "w").write("5")
before = read("VmRSS")
decoding.decode_image(data, preprocess)
peak = read("VmHWM") - before
assert peak <= max(reserved), (peak >> 20, max(reserved) >> 20)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read in /proc")
@pytest.mark.parametrize(
    ("kind", "mode", "orientation"),
    [
        ("TIFF", "RGB", 1),
        ("PNG", "L", 1),
        ("JPEG", "CMYK", 1),
        ("JPEG", "L", 6),
        ("JPEG", "RGB", 6),
    ],
)
def test_no_more_memory_is_taken_than_was_reserved(kind, mode, orientation):
    line = [sys.executable, "-c", PEAK, kind, mode, str(orientation), "quick"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

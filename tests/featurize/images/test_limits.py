"""What one image may take: memory, which may be short for a moment, and work, which is bounded."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from featurize import FeatureCache
from featurize.errors import ImageUnreadableError
from featurize.images import decoding, reading, reasons
from featurize.images.preprocess import Preprocess

PREPROCESS = Preprocess(resize=64, crop=56, mean=(0.5,) * 3, std=(0.25,) * 3)
AS_JSON = json.dumps(PREPROCESS.to_dict())
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")


def coded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def flat_webp(side: int) -> bytes:
    """A lossless WebP of one colour: a few bytes, however large it is."""
    return coded(Image.new("RGB", (side, side), (3, 90, 4)), "WEBP", lossless=True, method=0)


def wide_webp(side: int) -> bytes:
    """A WebP that says it is so large, in its header alone."""
    data = flat_webp(64)
    at = data.index(b"VP8L") + 9
    return data[:at] + ((side - 1) | (side - 1) << 14).to_bytes(4, "little") + data[at + 4 :]


def reason_of(data: bytes) -> int:
    with pytest.raises(ImageUnreadableError) as found:
        decoding.decode_image(data, PREPROCESS)
    return found.value.reason


# --- memory --------------------------------------------------------------------------------

# What runs in a process of its own, whose memory is measured or bounded.
HEAD = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from featurize.images import footprint
from featurize.images import decoding
from featurize.images.preprocess import Preprocess
from featurize.system import memory
from featurize.errors import ImageUnreadableError
def now(what):
    line = next(n for n in open("/proc/self/status") if n.startswith(what))
    return 1024 * int(line.split()[1])
def leave(count):
    resource.setrlimit(resource.RLIMIT_AS, (now("VmSize") + count, resource.RLIM_INFINITY))
def tried(data, recipe):
    try:
        return decoding.decode_image(data, recipe).shape
    except ImageUnreadableError as error:
        return error.reason, str(error)
recipe = Preprocess.from_dict(json.loads(sys.argv[1]))
files = [Path(name).read_bytes() for name in sys.argv[2:]]
tried(files[0][:100], recipe)
"""


def measured(script: str, files: list[Path], **environment: str) -> list[object]:
    """What a process prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HEAD + script, AS_JSON, *files],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "MALLOC_ARENA_MAX": "1", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of_every_kind(side: int) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (side // 20, side // 20, 3), np.uint8)
    colours = Image.fromarray(small).resize((side, side))
    grey = colours.convert("L")
    alpha = colours.copy()
    alpha.putalpha(grey)
    palette = colours.quantize(64)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "baseline": coded(colours, "JPEG"),
        "progressive": coded(colours, "JPEG", progressive=True, subsampling=0),
        "turned": coded(colours, "JPEG", exif=turned),
        "cmyk": coded(colours.convert("CMYK"), "JPEG", progressive=True),
        "grey": coded(grey, "JPEG"),
        "rgb.png": coded(colours, "PNG", compress_level=1),
        "alpha.png": coded(alpha, "PNG", compress_level=1),
        "palette.png": coded(palette, "PNG", transparency=bytes(range(64))),
        "lossy.webp": coded(colours, "WEBP", method=0),
        "alpha.webp": coded(alpha, "WEBP", method=0, lossless=True, quality=0),
        "palette.gif": coded(palette, "GIF", transparency=3),
        "strips.tif": coded(colours, "TIFF", compression="tiff_lzw"),
        "strip.tif": coded(colours, "TIFF", compression="tiff_lzw", tiffinfo={278: side}),
        "turned.tif": coded(colours, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}),
        "sixteen.tif": coded(Image.fromarray(np.asarray(grey).astype(np.uint16)), "TIFF"),
        "rgb.bmp": coded(colours, "BMP"),
        "rgb.ppm": coded(colours, "PPM"),
    }


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    """Files of five megapixels, of every kind."""
    folder, found = tmp_path_factory.mktemp("kinds"), []
    for name, data in of_every_kind(2200).items():
        found.append(folder / name)
        found[-1].write_bytes(data)
    return found


@pytest.mark.slow
@needs_proc
def test_what_an_image_takes_is_known_beforehand(paths):
    """The claim is never less than the peak, nor far more; 32 MB are left for other things."""
    found = {}
    for path in paths:
        found[path.name] = measured(
            """
claims = []
claim = memory.reserve
def noted(count, what):
    claims.append(count)
    return claim(count, what)
memory.reserve = noted
before = now("VmHWM")
shape = tried(files[0], recipe)
print(json.dumps([now("VmHWM") - before, max(claims), shape]))
""",
            [path],
        )
    for name, (real, claimed, shape) in found.items():
        assert shape == [56, 56, 3], name
        assert real < claimed + (8 << 20), (name, real, claimed)
        assert claimed < 4 * real + (64 << 20), (name, real, claimed)


@pytest.mark.long
@needs_proc
def test_large_images_are_decoded_one_at_a_time(tmp_path):
    """However many threads there are: 34 bytes that take 400 MB each."""
    path = tmp_path / "bomb.webp"
    path.write_bytes(flat_webp(4800))
    assert len(path.read_bytes()) < 100
    peak, shapes = measured(
        """
before = now("VmHWM")
with ThreadPoolExecutor(6) as pool:
    shapes = list(pool.map(lambda _: tried(files[0], recipe), range(6)))
print(json.dumps([now("VmHWM") - before, shapes]))
""",
        [path],
    )
    assert shapes == [[56, 56, 3]] * 6
    assert peak < 600 << 20


@pytest.mark.long
@needs_proc
def test_what_cannot_fit_is_not_tried(tmp_path):
    path = tmp_path / "bomb.webp"
    path.write_bytes(wide_webp(13_000))
    ((reason, text),) = measured(
        "leave(2 << 30); print(json.dumps([tried(files[0], recipe)]))", [path]
    )
    assert reason == reasons.NO_MEMORY
    assert "13,000 x 13,000 pixels need" in text
    assert "MB are free" in text


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize("left", [10, 40, 70])
def test_memory_that_is_short_is_not_the_images_fault(left, paths):
    """Also where a library says no more than that it failed, as when nobody looks beforehand."""
    script = f"leave({left} << 20); print(json.dumps([tried(data, recipe) for data in files]))"
    blind = "memory._require_available = lambda *_: None\n"
    for found in (measured(script, paths), measured(blind + script, paths)):
        wrong = {
            path.name: outcome
            for path, outcome in zip(paths, found, strict=True)
            if outcome != [56, 56, 3] and outcome[0] != reasons.NO_MEMORY
        }
        assert wrong == {}
        assert any(outcome != [56, 56, 3] for outcome in found)


def test_what_was_short_for_a_moment_is_tried_once_more_alone(monkeypatch):
    """Only what fails twice is recorded."""
    data = coded(Image.new("RGB", (60, 60), (90, 120, 30)), "JPEG")
    whole, load, fail = decoding.decode_image(data, PREPROCESS), ImageFile.ImageFile.load, [2]

    def short(image):
        fail[0] -= 1
        if fail[0] >= 0:
            raise MemoryError
        return load(image)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", short)
    with pytest.raises(ImageUnreadableError) as caught:
        decoding.decode_image(data, PREPROCESS)
    assert caught.value.reason == reasons.NO_MEMORY
    fail[0] = 1
    assert (decoding.decode_image(data, PREPROCESS) == whole).all()


SHORT = """
import resource, sys, torch
from featurize import Backbone, run
from featurize.errors import FeaturizeError
torch.set_num_threads(1)
torch.manual_seed(0)
recipe = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
if sys.argv[3] == "short":
    def short():
        size = next(n for n in open("/proc/self/status") if n.startswith("VmSize"))
        most = 1024 * int(size.split()[1]) + (110 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    short()
done = run(sys.argv[1], sys.argv[2], backbone=Backbone(network, name="toy", preprocess=recipe),
    layers="0", engine="eager")
print(done.computed, done.failed)
print(sorted(done.failures.items()))
"""


@pytest.mark.slow
@needs_proc
def test_a_run_that_was_short_of_memory_is_made_good_by_the_next(tmp_path, draw):
    """Sound photographs of 24 megapixels, under a limit as batch systems set it."""
    folder = draw(tmp_path / "images", [f"small {k}.png" for k in range(5)])
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).resize((6000, 4000))
    for k, (form, options) in enumerate([("JPEG", {}), ("PNG", {}), ("JPEG", {"progressive": 1})]):
        (folder / f"large {k}.{form.lower()}").write_bytes(coded(large, form, **options))
    found = []
    for memory in ("short", "enough"):
        done = subprocess.run(
            [sys.executable, "-c", SHORT, folder, tmp_path / "c.h5", memory],
            capture_output=True,
            text=True,
            timeout=180,
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.splitlines()[0])
        cache = FeatureCache(tmp_path / "c.h5")
        if memory == "short":
            assert set(cache.failures.values()) == {"not enough memory"}
            assert len(cache.failures) == 3
    assert found == ["5 3", "3 0"]


# --- work ----------------------------------------------------------------------------------


def many_scans(count: int) -> bytes:
    """A progressive JPEG with its first AC scan over and over."""
    data = coded(Image.new("RGB", (200, 200), (90, 120, 30)), "JPEG", progressive=True)
    first, second = (
        data.rfind(b"\xff\xc4", 0, scan)
        for scan in [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"][1:3]
    )
    return data[:second] + data[first:second] * count + data[second:]


def chunks(count: int) -> bytes:
    data = coded(Image.new("RGB", (64, 64)), "PNG")
    return (
        data[:33]
        + (struct.pack(">I", 0) + b"prVt" + zlib.crc32(b"prVt").to_bytes(4)) * count
        + data[33:]
    )


def in_gif(what: bytes) -> bytes:
    data = coded(Image.new("P", (64, 64)), "GIF")
    at = data.index(b",", 13)
    return data[:at] + what + data[at:]


def in_tiff(data: bytes, compression: int, width: int, height: int) -> bytes:
    """A TIFF of one strip, in colour."""
    tags = [(256, width), (257, height), (258, 8), (259, compression), (262, 2), (273, 8)]
    tags += [(277, 3), (278, height), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    ifd = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd


def tags(count: int, each: int, kind: int = 7) -> bytes:
    """A TIFF whose tags all take the same bytes."""
    data = coded(Image.new("RGB", (64, 64)), "TIFF")
    at = struct.unpack_from("<I", data, 4)[0]
    old = struct.unpack_from("<H", data, at)[0]
    more = b"".join(struct.pack("<HHII", 50_000 + k, kind, each, 8) for k in range(count))
    ifd = struct.pack("<H", old + count) + data[at + 2 : at + 2 + 12 * old] + more + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + ifd


def runs(width: int, height: int) -> bytes:
    """A BMP of run lengths, one pixel each."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 256)
    body = head + bytes(1024) + (b"\1\7" * width + bytes(2)) * height
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + body


ENDLESS = {
    "scans": lambda: many_scans(12_000),
    "segments": lambda: b"\xff\xd8" + b"\xff\xe5\0\2" * 3_000_000 + many_scans(0)[2:],
    "long segments": lambda: (
        b"\xff\xd8" + (b"\xff\xe1\xff\xff" + bytes(65533)) * 600 + many_scans(0)[2:]
    ),
    "no segments": lambda: b"\xff\xd8\xff\xff" + b"\xff" * 3_000_000 + many_scans(0)[2:],
    "chunks": lambda: chunks(2_000_000),
    "comments": lambda: in_gif(b"!\xfe\1x\0" * 1_000_000),
    "one comment": lambda: in_gif(b"!\xfe" + b"\1x" * 1_000_000 + b"\0"),
    "no blocks": lambda: in_gif(b"x" * 3_000_000),
    "tags": lambda: tags(15_000, 1),
    "numbers": lambda: tags(8, 100_000, kind=3) + bytes(2_000_000),
    "the same bytes": lambda: tags(4_000, 1_000_000) + bytes(1_000_000),
    "plain": lambda: b"P3 3000 3000 255\n" + b"7 " * 27_000_000,
    "plain bits": lambda: b"P1 8500 8500\n" + b"1" * 72_250_000,
    "remarks": lambda: b"P3 200 200 255\n" + b"#\n" * 1_000_000,
    "blanks": lambda: b"P6 " + b" " * 3_000_000,
    "a long remark": lambda: b"P6 #" + b" " * 3_000_000,
    "runs": lambda: runs(4500, 4500),
    "lzma": lambda: in_tiff(b"lzma", 34925, 10_000, 9_000),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_would_take_ages_is_too_large(kind):
    data = ENDLESS[kind]()
    start = time.process_time()
    assert reason_of(data) == reasons.TOO_LARGE
    assert time.process_time() - start < 5  # ages are not begun


SOUND = {
    "scans": lambda: many_scans(400),
    "chunks": lambda: chunks(200_000),
    "comments": lambda: in_gif(b"!\xfe\5hello\0" * 1000),
    "tags": lambda: tags(500, 1),
    "plain": lambda: b"P3 300 300 255\n# remark\n" + b"7 " * 270_000,
    "runs": lambda: runs(300, 300),
    # Phones append films, and programs put thumbnails and previews before the picture.
    "a film behind": lambda: many_scans(0) + b"\xff\xda" * 2000,
    "previews": lambda: (
        b"\xff\xd8" + (b"\xff\xe5\x10\2" + b"\xff\xda" * 2048) * 3 + many_scans(0)[2:]
    ),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_large_but_sound_is_read(kind):
    assert decoding.decode_image(SOUND[kind](), PREPROCESS).shape == (56, 56, 3)


@pytest.mark.parametrize("most", [1, 3, 100, 254, 256, 1023, 4095, 65534, 65535])
def test_ppm_of_any_range_has_pillows_pixels(most):
    rng = np.random.default_rng(most)
    for form, bands in (b"P6", 3), (b"P5", 1):
        if form == b"P5" and most > 255:
            continue  # numbers of 16 bits: refused
        numbers = rng.integers(0, min(most + 9, 65536), 80 * 64 * bands)
        stored = numbers.astype(np.uint8 if most < 256 else ">u2").tobytes()
        data = b"%s 80 64 %d\n" % (form, most) + stored
        found = decoding.decode_image(data, replace(PREPROCESS, crop=64))
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(image.convert("RGB").crop((8, 0, 72, 64)))
        np.testing.assert_array_equal(found, expected)
        assert reason_of(data[:-1]) == reasons.DAMAGED


def test_exif_that_is_all_too_long_is_left_aside():
    exif = (
        b"Exif\0\0II*\0"
        + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 9_000_000, 26)
        + bytes(18_000_000)
    )
    data = coded(Image.new("RGB", (64, 64), (255, 0, 0)), "PNG", exif=exif)
    start = time.process_time()
    assert decoding.decode_image(data, PREPROCESS)[0, 0].tolist() == [255, 0, 0]
    assert time.process_time() - start < 5


# --- reading -------------------------------------------------------------------------------


def test_a_file_is_read_with_its_size_and_time(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"image")
    now = time.time_ns()
    for age, kept in ((60, True), (3, True), (1, False), (0, False), (-3600, False)):
        stamp = now - age * 10**9
        os.utime(path, ns=(stamp, stamp))
        # Young files may change once more within a tick of their clock: they are looked at again.
        assert reading.read_image_file(path) == (b"image", 5, stamp if kept else 0)


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    stat, left = os.fstat, [0]

    def changed(fd):
        """The file as it stands; then it changes."""
        found = stat(fd)
        if left[0]:
            left[0] -= 1
            path.write_bytes(b"new" * (left[0] + 1))
            os.utime(path, ns=(10**18 + left[0], 10**18 + left[0]))
        return found

    monkeypatch.setattr(os, "fstat", changed)
    for left[0] in (1, 2):
        path.write_bytes(b"old, and longer")
        assert reading.read_image_file(path) == (b"new", 3, 10**18)
    left[0] = 100
    path.write_bytes(b"old")
    with pytest.raises(ImageUnreadableError, match="changes while it is read") as found:
        reading.read_image_file(path)
    assert found.value.reason in reasons.TRANSIENT


# --- what libraries write ------------------------------------------------------------------


def test_no_library_writes_to_standard_error(tmp_path):
    """As they would, of broken files, into the midst of the live line."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8))
    paths = []
    for k, (form, mode, options) in enumerate(
        [
            ("TIFF", "1", {"compression": "group4"}),
            ("TIFF", "RGB", {"compression": "tiff_lzw"}),
            ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
            ("TIFF", "RGB", {"compression": "jpeg"}),
            ("JPEG", "RGB", {}),
            ("JPEG", "RGB", {"progressive": True}),
        ]
    ):
        data = bytearray(coded(noise.convert(mode), form, **options))
        for at in rng.integers(300, len(data), 30):
            data[at] ^= 0xFF
        paths.append(tmp_path / str(k))
        paths[-1].write_bytes(data)
    script = HEAD + "print(json.dumps([tried(data, recipe) for data in files]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, AS_JSON, *paths],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert sum(len(outcome) == 2 for outcome in json.loads(done.stdout)) >= 2

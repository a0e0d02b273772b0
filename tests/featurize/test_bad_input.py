"""One bad image is one failed row, one wrong call is one line: nothing else is lost.

Files are really broken, really unreadable, really folders and pipes.
"""

import ctypes
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from featurize import FeatureCache, run
from featurize.cli.app import app

RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
REASONS = {
    "empty": "empty file",
    "none": "not an image",
    "damaged": "truncated or damaged",
    "large": "too large",
    "format": "unsupported pixel format",
    "no file": "not a regular file",
    "denied": "permission denied",
    "unread": "read error",
    "gone": "vanished while running",
}


def picture(seed: int, size: tuple[int, int] = (24, 18)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encoded(form: str, seed: int = 77, image: Image.Image | None = None, **options) -> bytes:
    file = io.BytesIO()
    (image or picture(seed)).save(file, form, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8), kind: int = 2) -> bytes:
    """A PNG written by hand: its header, then these chunks."""
    header = struct.pack(">IIBBBBB", *size, 8, kind, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        whole += struct.pack(">I", len(data)) + name + data
        whole += struct.pack(">I", zlib.crc32(name + data))
    return whole


def scanlines(width: int = 8, height: int = 8, value: int = 90) -> bytes:
    return zlib.compress((b"\0" + bytes([value]) * 3 * width) * height)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


JPEG, PNG = encoded("JPEG", image=picture(77, (320, 240))), encoded("PNG")
IDAT = PNG.index(b"IDAT")
PIXELS = scanlines(height=64)

# What a file holds, and why its row fails. "none" or "damaged" is a matter of how early a
# parser notices; where both are honest, both are allowed.
BROKEN: dict[str, tuple[bytes, str]] = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "damaged"),
    "last byte.jpg": (JPEG[:-40], "damaged"),
    "first bytes.jpg": (JPEG[:10], "damaged"),
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"This is my shopping list.\n" * 9, "none"),
    "page.png": (b"<!doctype html><title>404 Not Found</title>", "none"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "none"),
    "zeros.jpg": (bytes(4096), "none"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "none"),
    "truncated.png": (PNG[:-60], "damaged"),
    "flipped data.png": (flipped(PNG, IDAT + 40), "damaged"),
    "flipped sum.png": (flipped(PNG, IDAT + 8), "damaged"),
    "flipped header.png": (flipped(PNG, 20), "none damaged"),
    "no pixels.png": (png(), "damaged none"),
    "first chunk only.png": (png((b"IDAT", PIXELS[:20]), size=(8, 64)), "damaged"),
    "truncated.gif": (encoded("GIF")[:-80], "damaged"),
    "truncated.webp": (encoded("WEBP", quality=90)[:-50], "damaged none"),
    "truncated.bmp": (encoded("BMP")[:-50], "damaged"),
    "truncated.tif": (encoded("TIFF")[:200], "damaged none"),
    "huge count.tif": (
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 256, 4, 0xFFFFFFFF, 0) + bytes(4),
        "damaged none",
    ),
    "bomb.png": (png((b"IDAT", scanlines()), size=(20_000, 20_000)), "large"),
    "bomb.jpg": (
        # the height and width in its frame header, made 65,500 each
        (lambda at: JPEG[: at + 5] + b"\xff\xdc\xff\xdc" + JPEG[at + 9 :])(JPEG.index(b"\xff\xc0")),
        "large",
    ),
    "thin.png": (encoded("PNG", image=Image.new("RGB", (3_000_000, 1))), "large"),
    "text bomb.png": (
        png(
            (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000))),
            (b"IDAT", scanlines()),
        ),
        "damaged none large",
    ),
    "floats.tif": (
        encoded("TIFF", image=Image.fromarray(np.full((8, 8), 0.5, np.float32))),
        "format",
    ),
}


def transparent_palette() -> Image.Image:
    image = Image.new("P", (24, 18), 0)
    image.putpalette([200, 30, 60, 9, 9, 9])
    image.paste(1, (0, 9, 24, 18))
    return image


def half_red() -> Image.Image:
    image = Image.new("RGB", (24, 18), (200, 30, 60))
    image.paste((255, 255, 255), (0, 9, 24, 18))
    return image


def long_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "x" * 65_000  # a segment can hold no more
    exif[0x0112] = 3
    return encoded("JPEG", image=picture(5).rotate(180), exif=exif, quality=98, subsampling=0)


def sixteen() -> Image.Image:
    return Image.fromarray(np.arange(24 * 18, dtype=np.uint16).reshape(18, 24) * 150)


# What is odd but an image all the same; and the plain picture it has to be read as.
ODD: dict[str, tuple[bytes, Image.Image]] = {
    "cmyk.tif": (encoded("TIFF", image=picture(1).convert("CMYK")), picture(1)),
    "cmyk.jpg": (encoded("JPEG", image=picture(1).convert("CMYK"), quality=100), picture(1)),
    "sixteen.png": (
        encoded("PNG", image=sixteen()),
        Image.fromarray((np.asarray(sixteen()) >> 8).astype(np.uint8)),
    ),
    "palette.png": (encoded("PNG", image=transparent_palette(), transparency=1), half_red()),
    "palette.gif": (encoded("GIF", image=transparent_palette(), transparency=1), half_red()),
    "animated.gif": (
        encoded(
            "GIF",
            image=Image.new("RGB", (24, 18), (200, 30, 60)),
            save_all=True,
            append_images=[picture(2)],
        ),
        Image.new("RGB", (24, 18), (200, 30, 60)),
    ),
    "animated.png": (
        encoded("PNG", image=picture(3), save_all=True, append_images=[picture(2)]),
        picture(3),
    ),
    "dot.png": (encoded("PNG", image=Image.new("RGB", (1, 1), (9, 99, 199))), None),
    "trailer.png": (PNG + b"and some more" * 99, picture(77)),
    "no end.png": (PNG[:-12], picture(77)),
    "wrong suffix.jpg": (PNG, picture(77)),
    "huge exif.jpg": (long_exif(), picture(5)),
    "long comment.png": (
        png((b"tEXt", b"Comment\0" + b"x" * 5_000_000), (b"IDAT", scanlines())),
        Image.new("RGB", (8, 8), (90, 90, 90)),
    ),
    "unknown chunk.png": (
        png((b"haHa", bytes(999)), (b"IDAT", scanlines())),
        Image.new("RGB", (8, 8), (90, 90, 90)),
    ),
    # Over Pillow's limit for a warning, below the one for an error.
    "large.png": (
        encoded("PNG", image=Image.new("1", (10_000, 9_000), 1)),
        Image.new("RGB", (100, 90), "white"),
    ),
}
ODD["dot.png"] = (ODD["dot.png"][0], Image.new("RGB", (24, 18), (9, 99, 199)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, toy):
    """Thirty-four good images, enough for several batches, and their cache."""
    home = tmp_path_factory.mktemp("plain")
    (home / "images").mkdir()
    for k in range(34):
        picture(k, (20 + k, 50 - k)).save(home / "images" / f"{k:02}.png")
    run(home / "images", home / "c.h5", backbone=toy, layers="0,2:max")
    return home


@pytest.fixture
def folder(plain, tmp_path):
    """A folder to spoil, with the good images in it."""
    images = tmp_path / "images"
    images.mkdir()
    for path in (plain / "images").iterdir():
        os.link(path, images / path.name)
    return images


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(
        "featurize.engines.torch_settings._PIXELS_PER_BATCH", 0
    )  # eight images each


def neighbours_agree(found: FeatureCache, plain: Path) -> bool:
    """Whether all good images have the features of a run without the bad ones."""
    expected = FeatureCache(plain / "c.h5")
    rows = [found.paths.index(path) for path in expected.paths]
    for layer in expected.layers:
        here, there = found.features(layer, rows), expected.features(layer)
        off = np.linalg.norm(here - there, axis=1)
        if not (off <= 1e-5 * np.linalg.norm(there, axis=1)).all():
            return False
    return found.verify() == []


# --- files that are no images --------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_failed_row(name, folder, tmp_path, toy, plain):
    content, reasons = BROKEN[name]
    (folder / f"1{name}").write_bytes(content)
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="0,2:max")
    assert (done.rows, done.computed, done.failed) == (35, 34, 1)
    assert list(done.failures) == [f"1{name}"]
    allowed = ("damaged none format large" if " " in reasons else reasons).split()
    assert done.failures[f"1{name}"] in [REASONS[key] for key in allowed]
    if " " not in reasons:
        assert done.failures[f"1{name}"] == REASONS[reasons]
    assert neighbours_agree(FeatureCache(tmp_path / "c.h5"), plain)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_read_as_the_picture_it_is(name, folder, tmp_path, toy, plain):
    content, same = ODD[name]
    (folder / f"1{name}").write_bytes(content)
    same.convert("RGB").save(folder / "2 same.bmp")
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="0,2:max")
    assert (done.rows, done.failures) == (36, {})
    found = FeatureCache(tmp_path / "c.h5")
    rows = [found.paths.index(f"1{name}"), found.paths.index("2 same.bmp")]
    for layer in found.layers:
        odd, bitmap = found.features(layer, rows)
        # JPEG loses a little; everything else is the same to the bit.
        limit = 0.05 if name.endswith(".jpg") and content[:2] == b"\xff\xd8" else 1e-5
        assert np.linalg.norm(odd - bitmap) <= limit * np.linalg.norm(bitmap), layer
    assert neighbours_agree(found, plain)


def plant(kind: str, folder: Path, name: str) -> None:
    """Put something into a folder that is no regular file, or none that can be read."""
    path = folder / name
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(folder / "nothing here.png")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "link to a folder":
        (folder.parent / "elsewhere").mkdir()
        path.symlink_to(folder.parent / "elsewhere")
    elif kind == "failing disk":
        path.symlink_to("/proc/self/mem")  # its first byte cannot be read: EIO


SPECIAL = {
    "folder": "no file",
    "link to a folder": "no file",
    "dangling link": "gone",
    "link to itself": "unread",
    "failing disk": "unread",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_one_failed_row(kind, folder, tmp_path, toy, plain):
    plant(kind, folder, "1 special.jpg")
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="0,2:max", follow=True)
    assert done.failures == {"1 special.jpg": REASONS[SPECIAL[kind]]}
    assert done.computed == 34
    assert neighbours_agree(FeatureCache(tmp_path / "c.h5"), plain)


def test_pipes_and_devices_do_not_hang_the_run(spoiled, tmp_path, command):
    """In a process of its own, which is killed where it does."""
    os.mkfifo(tmp_path / "images" / "1 pipe.jpg")
    (tmp_path / "images" / "2 zero.jpg").symlink_to("/dev/zero")
    done = command("featurize", "run", tmp_path / "images", "-o", tmp_path / "c.h5", "--follow")
    assert done.returncode == 0, done.stderr
    found = FeatureCache(tmp_path / "c.h5")
    assert found.counts == {"ok": 34, "failed": 4, "pending": 0}
    assert found.failures["1 pipe.jpg"] == found.failures["2 zero.jpg"] == REASONS["no file"]
    assert found.verify() == []


@pytest.mark.parametrize("where", ["in_threads", "in_processes"])
def test_all_of_them_at_once(where, folder, tmp_path, toy, plain, request):
    """In one folder, in between the good ones, and in folders of their own."""
    if where == "in_processes":
        request.getfixturevalue(where)
    expected = {}
    for k, (name, (content, _)) in enumerate(BROKEN.items()):
        path = folder / f"{k:02} {name}"
        path.write_bytes(content)
        expected[path.name] = None
    for k, (name, (content, _)) in enumerate(ODD.items()):
        (folder / f"{k:02} odd {name}").write_bytes(content)
    for k, kind in enumerate(SPECIAL):
        plant(kind, folder, f"{k:02} special.png")
        expected[f"{k:02} special.png"] = None
    (folder / "deep.jpg" / "er").mkdir(parents=True)
    (folder / "deep.jpg" / "er" / "a.png").write_bytes(PNG)
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="0,2:max", follow=True)
    assert set(done.failures) == {*expected, "deep.jpg"}
    assert done.rows == 34 + len(BROKEN) + len(ODD) + len(SPECIAL) + 2
    assert done.rows == done.computed + done.reused + done.failed
    assert neighbours_agree(FeatureCache(tmp_path / "c.h5"), plain)
    again = run(folder, tmp_path / "c.h5", backbone=toy, follow=True)
    assert (again.computed, again.failures) == (0, done.failures)


def test_broken_files_that_repeat_each_other(folder, tmp_path, toy, plain):
    for k in range(5):
        (folder / f"{k}5 same.jpg").write_bytes(JPEG[: len(JPEG) // 2])
        (folder / f"{k}6 empty.jpg").touch()
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="0,2:max")
    assert (done.failed, done.computed) == (10, 34)
    assert set(done.failures.values()) == {REASONS["damaged"], REASONS["empty"]}
    assert neighbours_agree(FeatureCache(tmp_path / "c.h5"), plain)


def test_a_folder_of_nothing_but_broken_files(tmp_path, toy):
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(40):
        (folder / f"{k}.jpg").write_bytes(b"no image" + bytes([k]))
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="2")
    assert (done.rows, done.computed, done.failed) == (40, 0, 40)
    assert FeatureCache(tmp_path / "c.h5").verify() == []
    Image.new("RGB", (9, 9)).save(folder / "0.jpg")
    assert run(folder, tmp_path / "c.h5", backbone=toy).computed == 1


# --- without permission --------------------------------------------------------------------


def without_powers() -> None:
    """For a child process: root loses its right to read what its modes deny."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
            os._exit(98)


def as_somebody(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process that file modes apply to."""
    line = [str(Path(sys.executable).with_name("featurize")), *map(str, arguments)]
    before = without_powers if hasattr(os, "geteuid") and os.geteuid() == 0 else None
    return subprocess.run(line, capture_output=True, text=True, timeout=180, preexec_fn=before)


@pytest.fixture(scope="module")
def _modes_apply(tmp_path_factory):
    closed = tmp_path_factory.mktemp("closed") / "file"
    closed.touch(0o000)
    before = without_powers if os.geteuid() == 0 else None
    line = [sys.executable, "-c", f"open({str(closed)!r})"]
    done = subprocess.run(line, capture_output=True, text=True, preexec_fn=before)
    if "PermissionError" not in done.stderr:
        pytest.skip("this user reads any file, and cannot give up the right to")


@pytest.mark.slow
@pytest.mark.usefixtures("_modes_apply")
def test_a_file_without_permission_is_tried_again_by_itself(spoiled, tmp_path):
    closed = tmp_path / "images" / "3 mine.png"
    picture(99).save(closed)
    closed.chmod(0)
    line = ("run", tmp_path / "images", "-o", tmp_path / "c.h5", "--json")
    for _ in range(2):
        done = as_somebody(*line)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["failures"]["3 mine.png"] == "permission denied"
        assert (found["computed"], found["reused"], found["failed"]) == (0, 34, 3)
    closed.chmod(0o644)  # its size and time stay as they were
    found = json.loads(as_somebody(*line).stdout)
    assert (found["computed"], found["reused"], found["failed"]) == (1, 34, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("_modes_apply")
def test_folders_without_permission(folder, tmp_path):
    """One costs itself alone; where it is the whole, that is a clear error."""
    (folder / "closed").mkdir()
    (folder / "closed" / "a.png").write_bytes(PNG)
    (folder / "closed").chmod(0)
    (tmp_path / "out").mkdir()
    for images, code, words in (
        (folder / "closed", 2, "is not readable"),
        (folder, 0, "passed over closed/: the folder cannot be listed: permission denied"),
    ):
        done = as_somebody("run", images, "-o", tmp_path / "c.h5", "--backbone", "seedling")
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert (tmp_path / "c.h5").exists() is (code == 0)
    (folder / "closed").chmod(0o755)
    assert "closed/a.png" not in FeatureCache(tmp_path / "c.h5").paths
    (tmp_path / "out").chmod(0o555)
    done = as_somebody("run", folder, "-o", tmp_path / "out" / "c.h5", "--backbone", "seedling")
    (tmp_path / "out").chmod(0o755)
    assert done.returncode == 2
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


# --- the list at the end, --max-errors, --retry-failed -------------------------------------


@pytest.fixture(scope="module")
def spoiled_once(plain):
    """Two of the files are broken; the cache is made with seedling."""
    home = plain.with_name("spoiled")
    shutil.copytree(plain / "images", home / "images")
    for name, content in (("1 text.jpg", b"text"), ("2 half.jpg", JPEG[: len(JPEG) // 2])):
        (home / "images" / name).write_bytes(content)
        os.utime(home / "images" / name, ns=(10**18, 10**18))  # not so young as to be read again
    line = ("run", home / "images", "-o", home / "c.h5", "--backbone", "seedling")
    done = CliRunner().invoke(app, [str(word) for word in line])
    assert done.exit_code == 0, done.stderr
    return home, done


@pytest.fixture
def spoiled(spoiled_once, tmp_path):
    """A copy of that, times included: the images, the cache, and what the run said."""
    home, done = spoiled_once
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    return done


def test_the_run_ends_with_the_list(spoiled, tmp_path, cli):
    lines = spoiled.stdout.splitlines()
    assert lines[:3] == [
        "2 failed:",
        "  1 text.jpg: not an image",
        "  2 half.jpg: truncated or damaged",
    ]
    assert "36 rows; 34 computed, 0 reused, 2 failed" in lines[3]
    shown = cli("info", tmp_path / "c.h5")
    assert "failed    1 text.jpg: not an image" in shown.stdout


def test_a_long_list_says_where_the_rest_is(folder, tmp_path, cli):
    for k in range(30):
        (folder / f"{k:02} bad.jpg").write_bytes(b"text %d" % k)
    done = cli("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling")
    assert "30 failed:" in done.stdout
    assert done.stdout.count(" bad.jpg: not an image") == 20
    hint = next(line for line in done.stdout.splitlines() if "info" in line)
    assert str(tmp_path / "c.h5") in hint
    assert "--json" in hint
    found = json.loads(cli("info", tmp_path / "c.h5", "--json").stdout)
    assert len(found["failures"]) == 30


@pytest.mark.parametrize(("limit", "code"), [(0, 3), (1, 3), (2, 0), (99, 0)])
def test_max_errors(limit, code, spoiled, tmp_path, cli):
    # Of a cache that is there and has nothing left to do, and of a new one.
    for name in ("c.h5", "new.h5") if limit == 1 else ("c.h5",):
        line = ("run", tmp_path / "images", "-o", tmp_path / name, "--backbone", "seedling")
        done = cli(*line, "--max-errors", limit, "--json")
        assert done.exit_code == code
        found = json.loads(done.stdout)  # all of it is done and kept all the same
        assert found["failed"] == 2
        assert found["computed"] + found["reused"] == 34
        assert ("error: 2 images failed" in done.stderr) == (code == 3)


def test_max_errors_is_no_negative_number(folder, tmp_path, cli):
    done = cli("run", folder, "-o", tmp_path / "c.h5", "--max-errors", "-1")
    assert done.exit_code == 2
    assert not (tmp_path / "c.h5").exists()


def mended(path: Path) -> None:
    """Put a whole picture into a file, its size and time unchanged."""
    info = path.stat()
    whole = encoded("PNG", image=Image.new("RGB", (4, 4), "red"))
    assert len(whole) <= info.st_size
    path.write_bytes(whole.ljust(info.st_size, b"\0"))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def test_retry_failed_tries_again(spoiled, tmp_path, cli):
    line = ("run", tmp_path / "images", "-o", tmp_path / "c.h5", "--json")
    mended(tmp_path / "images" / "2 half.jpg")
    found = json.loads(cli(*line).stdout)
    assert (found["computed"], found["failed"]) == (0, 2)  # a file at fault stays at fault
    found = json.loads(cli(*line, "--retry-failed").stdout)
    assert (found["computed"], found["reused"], found["failed"]) == (1, 34, 1)
    assert list(found["failures"]) == ["1 text.jpg"]
    assert FeatureCache(tmp_path / "c.h5").verify() == []


def test_a_failed_file_that_changed_is_tried_by_itself(spoiled, tmp_path, cli):
    picture(99).save(tmp_path / "images" / "1 text.jpg", "PNG")
    found = json.loads(cli("run", tmp_path / "images", "-o", tmp_path / "c.h5", "--json").stdout)
    assert (found["computed"], found["reused"], found["failed"]) == (1, 34, 1)


@pytest.mark.parametrize("kind", ["dangling link", "failing disk"])
def test_the_systems_failures_are_tried_again(kind, folder, tmp_path, toy, plain):
    plant(kind, folder, "1 special.png")
    cache = tmp_path / "c.h5"
    assert run(folder, cache, backbone=toy, layers="0,2:max", follow=True).failed == 1
    assert run(folder, cache, backbone=toy, follow=True).failed == 1
    if kind == "failing disk":
        (folder / "1 special.png").unlink()
    picture(99).save(folder / ("1 special.png" if kind == "failing disk" else "nothing here.png"))
    done = run(folder, cache, backbone=toy)
    assert (done.computed, done.failed) == (1, 0)
    assert neighbours_agree(FeatureCache(cache), plain)


def test_failures_survive_growing(spoiled, tmp_path, cli):
    """A new layer and new images: known failures are taken over, and can be retried."""
    cache = tmp_path / "c.h5"
    mended(tmp_path / "images" / "2 half.jpg")
    picture(98).save(tmp_path / "images" / "new.png")
    line = ("run", tmp_path / "images", "-o", cache, "--layers", "stage1:max", "--json")
    found = json.loads(cli(*line).stdout)
    assert set(found["failures"]) == {"1 text.jpg", "2 half.jpg"}
    picture(97).save(tmp_path / "images" / "newer.png")
    found = json.loads(cli(*line, "--retry-failed").stdout)
    assert set(found["failures"]) == {"1 text.jpg"}
    assert FeatureCache(cache).verify() == []


# --- outputs that are not ours -------------------------------------------------------------


def foreign(kind: str, path: Path, plain: Path) -> None:
    if kind == "text":
        path.write_text("my thesis")
    elif kind == "empty":
        path.touch()
    elif kind == "image":
        path.write_bytes(PNG)
    elif kind == "other HDF5":
        with h5py.File(path, "w") as file:
            file["features"] = np.ones(9)
    elif kind == "HDF5 with our groups":
        with h5py.File(path, "w") as file:
            file.attrs["format"] = "somebody-else's"
            for name in ("images", "features", "extractor"):
                file.create_group(name)
    elif kind == "half a cache":
        path.write_bytes((plain / "c.h5").read_bytes()[:5000])


@pytest.mark.parametrize(
    "kind",
    ["text", "empty", "image", "other HDF5", "HDF5 with our groups", "half a cache"],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--prune", "--rehash")], ids=str)
def test_an_output_that_is_not_ours_is_left_alone(kind, more, folder, tmp_path, plain, cli):
    output = tmp_path / "thesis.h5"
    foreign(kind, output, plain)
    before = output.read_bytes(), output.stat().st_mtime_ns, output.stat().st_ino
    done = cli("run", folder, "-o", output, "--backbone", "seedling", *more)
    assert done.exit_code == 2
    assert "thesis.h5" in done.stderr
    assert "give another -o" in done.stderr
    assert done.stdout == ""
    assert (output.read_bytes(), output.stat().st_mtime_ns, output.stat().st_ino) == before
    left = {path.name for path in tmp_path.iterdir()} - {"images", "thesis.h5", "thesis.h5.lock"}
    assert left == set()


def test_what_stands_where_a_cache_grows_is_left_alone(spoiled, tmp_path, cli):
    cache, part = tmp_path / "c.h5", tmp_path / "c.h5.part"
    part.write_text("my thesis")
    before = cache.read_bytes()
    done = cli("run", tmp_path / "images", "-o", cache, "--layers", "stage1")
    assert done.exit_code == 2
    assert "c.h5.part" in done.stderr
    assert "remove it" in done.stderr
    assert (part.read_text(), cache.read_bytes()) == ("my thesis", before)


# --- caches of another fingerprint ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--backbone", "squeezenet1_1"], "backbone is 'seedling', asked for 'squeezenet1_1'"),
        (["--dtype", "float16"], "dtype is 'float32', asked for 'float16'"),
        (["--precision", "bf16"], "precision is 'float32', asked for 'bf16'"),
        (["--decode", "fast"], "preprocess.decode is 'exact', asked for 'fast'"),
        (["--preprocess", "HERE/recipe.json"], "preprocess.resize is 32, asked for 40"),
        (["--weights", "HERE/other.safetensors"], "weights_sha256 is "),
        (["--dtype", "float16", "--decode", "fast"], "dtype is"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_cache_of_another_fingerprint_names_the_fields(options, field, spoiled, tmp_path, cli):
    from safetensors.numpy import load_file, save_file

    import featurize

    recipe = FeatureCache(tmp_path / "c.h5").extractor.preprocess
    assert recipe["resize"] == 32
    other = {key: value for key, value in recipe.items() if key != "decode"} | {"resize": 40}
    (tmp_path / "recipe.json").write_text(json.dumps(other))
    shipped = Path(featurize.__file__).parent / "backbones" / "seedling" / "seedling.safetensors"
    tensors = load_file(shipped)
    moved = {key: np.asarray(value + value.dtype.type(1)) for key, value in tensors.items()}
    save_file(moved, tmp_path / "other.safetensors")
    before = (tmp_path / "c.h5").read_bytes()
    words = [word.replace("HERE", str(tmp_path)) for word in options]
    done = cli("run", tmp_path / "images", "-o", tmp_path / "c.h5", *words, "--layers", "stage1")
    assert done.exit_code == 2
    assert field in done.stderr
    if len(options) == 4:
        assert "preprocess.decode is" in done.stderr
    assert "give another -o" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "c.h5").read_bytes() == before
    assert not (tmp_path / "c.h5.part").exists()


# --- calls that are wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run HERE/nowhere -o HERE/c.h5", "nowhere does not exist"),
        ("run HERE/notes.txt -o HERE/c.h5", "notes.txt is of no kind that is read"),
        ("run HERE/void -o HERE/c.h5", "no image in"),
        ("run HERE/hidden -o HERE/c.h5", "no image in"),
        ("run HERE/images -o HERE/no/c.h5", "there is no folder"),
        ("run HERE/images -o HERE/void", "is a folder; give the cache a file name"),
        ("run HERE/images -o HERE/notes.txt/c.h5", "there is no folder"),
        ("run HERE/images -o HERE/c.h5 --backbone sedling", "did you mean 'seedling'?"),
        ("run HERE/images -o HERE/c.h5 --backbone resnet5O", "did you mean 'resnet50'?"),
        ("run HERE/images -o HERE/c.h5 --backbone HERE/none.pth", "there is no file"),
        ("run HERE/images -o HERE/c.h5 --weights HERE/none.pth", "there is no file"),
        ("run HERE/images -o HERE/c.h5 --backbone resnet50 --weights IMAGENET1K_V7", "it has"),
        ("run HERE/images -o HERE/c.h5 --backbone seedling --layers stage9", "did you mean"),
        ("run HERE/images -o HERE/c.h5 --backbone seedling --layers stage1:sum", "there are avg"),
        ("run HERE/images -o HERE/c.h5 --backbone seedling --layers ,", "empty name"),
        ("run HERE/images -o HERE/c.h5 --backbone seedling --pool sum", "no pool 'sum'"),
        ("run HERE/images -o HERE/c.h5 --dtype float8", "--dtype is one of float32, float16"),
        ("run HERE/images -o HERE/c.h5 --precision half", "--precision is one of"),
        ("run HERE/images -o HERE/c.h5 --decode slow", "--decode is one of exact, quick, fast"),
        ("run HERE/images -o HERE/c.h5 --engine steam", "--engine is one of"),
        (
            "run HERE/images -o HERE/c.h5 --backbone seedling --device tpu",
            "the device 'tpu' is not supported",
        ),
        ("run HERE/images -o HERE/c.h5 --backbone seedling --device cuda:x", "no device"),
        ("run HERE/images -o HERE/c.h5 --backbone seedling --preprocess HERE/x.json", "x.json"),
        ("run HERE/images -o HERE/c.h5 --backbon seedling", "--backbon"),
        ("run HERE/images", "--output"),
        ("info HERE/none.h5", "none.h5"),
        ("info HERE/notes.txt", "notes.txt"),
        ("info HERE/void", "void"),
        ("verify HERE/none.h5", "none.h5"),
        ("export HERE/none.h5 -o HERE/f.npz", "none.h5"),
        ("export HERE/none.h5 -o HERE/f.csv", "has to end in .npz or .parquet"),
        ("layers resnet5O", "did you mean 'resnet50'?"),
        ("ran HERE/images", "ran"),
    ],
)
def test_a_wrong_call_is_one_line(line, message, folder, tmp_path, cli):
    for name in ("void", "hidden/.git"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "hidden" / ".git" / "a.png").write_bytes(PNG)
    (tmp_path / "hidden" / ".b.png").write_bytes(PNG)
    (tmp_path / "notes.txt").write_text("notes")
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    words = line.replace("HERE", str(tmp_path)).split()
    done = cli(*words)
    assert done.exit_code == 2, done.stderr
    # Typer draws a box around what it refuses by itself, and may break its lines.
    said = " ".join(done.stderr.replace("│", " ").split())
    assert message in said
    assert "Traceback" not in done.output
    assert done.stdout == ""
    if "error: " in done.stderr:
        errors = done.stderr[done.stderr.index("error: ") :]
        assert len(errors.strip().splitlines()) <= 2
    left = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} - before
    assert left <= {Path("c.h5.lock")}


def test_errors_of_a_real_process(command, folder, tmp_path):
    line = ("run", tmp_path / "nowhere", "-o", tmp_path / "c.h5")
    done = command("featurize", *line)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    done = command("featurize", *line, "--debug")
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert "CallError" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    done = command("featurize", *line, "--json")
    assert (done.returncode, done.stdout) == (2, "")


def test_the_unexpected_is_exit_1(folder, tmp_path, cli, monkeypatch):
    def broken(*_arguments, **_options):
        raise ZeroDivisionError("of a bug of ours")

    monkeypatch.setattr("featurize.sources.folder.list_images", broken)
    line = ("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling")
    done = cli(*line)
    assert done.exit_code == 1
    assert (
        "unexpected ZeroDivisionError: of a bug of ours; --debug shows the traceback" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert "Traceback" in cli(*line, "--debug").stderr


def test_errors_are_of_one_tree_and_builtins():
    from featurize import FeaturizeError, HeadgraftError, errors

    assert issubclass(FeaturizeError, HeadgraftError)
    leaves = [
        e
        for e in vars(errors).values()
        if isinstance(e, type) and e.__module__.endswith("errors") and e is not HeadgraftError
    ]
    assert len(leaves) > 8
    for leaf in leaves:
        assert issubclass(leaf, FeaturizeError)
        if leaf is not FeaturizeError:
            builtin = (ValueError, OSError, LookupError, RuntimeError)
            assert issubclass(leaf, builtin), leaf

"""Which files are images, and what pixels they become.

Everything goes through `run`, with a network that hands its input on: the features are the
prepared pixels, so they can be compared with torchvision's transforms to the bit.
"""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from featurize import Backbone, FeatureCache, run
from featurize.sources import folder as folder_source

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PLAIN = {"resize": 8, "crop": 8, "mean": [0.0] * 3, "std": [1.0] * 3}
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def features_of(folder: Path, recipe: dict) -> tuple[dict[str, torch.Tensor], FeatureCache]:
    """What reaches the network, by path: (3, crop, crop)."""
    backbone = Backbone(nn.Sequential(nn.Identity()), name="eye", preprocess=recipe)
    output = folder.with_name("eye.h5")
    output.unlink(missing_ok=True)
    run(folder, output, backbone=backbone, layers="0:none")
    cache = FeatureCache(output)
    rows = np.flatnonzero(cache.status == 1)
    shape = (3, recipe["crop"], recipe["crop"])
    values = torch.from_numpy(cache.features("0@none", rows)).unflatten(1, shape)
    return {cache.paths[row]: value for row, value in zip(rows, values, strict=True)}, cache


def pixels_of(folder: Path, recipe: dict = PLAIN) -> dict[str, np.ndarray]:
    """The same as grey levels, (crop, crop, 3)."""
    found, cache = features_of(folder, recipe)
    assert cache.failures == {}
    return {path: (255 * x).round().byte().permute(1, 2, 0).numpy() for path, x in found.items()}


def official(image: Image.Image, recipe: dict) -> torch.Tensor:
    return ImageClassification(
        crop_size=recipe["crop"],
        resize_size=recipe["resize"],
        mean=tuple(recipe["mean"]),
        std=tuple(recipe["std"]),
        interpolation=InterpolationMode(recipe.get("interpolation", "bilinear")),
    )(image)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "images"
    made.mkdir()
    return made


# --- resizing and cropping -----------------------------------------------------------------

SIZES = [(1, 1), (1, 9), (31, 33), (32, 32), (33, 100), (100, 33), (64, 48), (257, 63), (640, 7)]


@pytest.mark.parametrize(
    ("resize", "crop", "interpolation"),
    [
        (32, 32, "bilinear"),
        (37, 32, "bilinear"),
        (40, 33, "bicubic"),
        (36, 31, "bicubic"),
        (33, 32, "nearest"),
        (35, 30, "lanczos"),
        (34, 31, "box"),
        (35, 32, "hamming"),
        # The crop reaches over the edge; by one, two, three ... pixels, which round differently.
        (31, 32, "bilinear"),
        (30, 32, "bilinear"),
        (29, 32, "bilinear"),
        (28, 32, "bilinear"),
        (27, 32, "bilinear"),
        (25, 32, "bilinear"),
        (8, 31, "bicubic"),
    ],
)
def test_pixels_are_the_official_ones_to_the_bit(folder, resize, crop, interpolation):
    recipe = {"resize": resize, "crop": crop, "interpolation": interpolation}
    recipe |= {"mean": MEAN, "std": STD}
    expected = {}
    for k, (width, height) in enumerate(SIZES):
        image = noise(width, height, seed=k)
        name = f"{width}x{height}.png"
        image.save(folder / name)
        expected[name] = official(image, recipe)
    found, cache = features_of(folder, recipe)
    assert cache.failures == {}
    wrong = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert wrong == []


@pytest.mark.parametrize("fit", ["crop", "squash", "border"])
@pytest.mark.parametrize(
    ("crop", "crop_pct", "interpolation"),
    [
        (32, 1.0, "bicubic"),
        (33, 0.875, "bicubic"),
        (32, 0.9, "bilinear"),
        (31, 0.95, "nearest"),
        (37, 0.891, "lanczos"),
        (32, 1.07, "bicubic"),  # the crop reaches over the edge of the squashed image too
    ],
)
def test_pixels_are_those_of_timm_to_the_bit(folder, fit, crop, crop_pct, interpolation):
    reason = "timm is not installed, so its pixels cannot be compared"
    timm_data = pytest.importorskip("timm.data", reason=reason)
    transform = timm_data.create_transform(
        input_size=(3, crop, crop),
        crop_pct=crop_pct,
        crop_mode={"crop": "center"}.get(fit, fit),
        interpolation=interpolation,
        mean=tuple(MEAN),
        std=tuple(STD),
        is_training=False,
    )
    recipe = {"resize": math.floor(crop / crop_pct), "crop": crop, "fit": fit}
    recipe |= {"interpolation": interpolation, "mean": MEAN, "std": STD}
    expected = {}
    # timm itself fails where a side is rounded to nothing; 45 and 75 are halves to be rounded.
    for k, (width, height) in enumerate([*SIZES[:-1], (640, 17), (64, 45), (75, 64), (500, 333)]):
        image = noise(width, height, seed=k)
        name = f"{width}x{height}.png"
        image.save(folder / name)
        expected[name] = transform(image)
    found, cache = features_of(folder, recipe)
    assert cache.failures == {}
    wrong = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert wrong == []


def test_the_whole_of_a_long_image_lies_inside_its_border(folder):
    Image.new("RGB", (400, 2), BLUE).save(folder / "line.png")  # 8 x 0.04 pixels
    Image.new("RGB", (2, 400), BLUE).save(folder / "post.png")
    recipe = {**PLAIN, "fit": "border", "mean": [1.0, 0.5, 0.0]}
    found, _ = features_of(folder, recipe)
    blue, border = [-1.0, -0.5, 1.0], [0.0, 128 / 255 - 0.5, 0.0]
    for name, along in {"line.png": 1, "post.png": 2}.items():
        lines = found[name].movedim(along, 0)  # line by line: (8, 3, 8)
        is_blue = torch.isclose(lines, torch.tensor(blue)[:, None]).all(dim=(1, 2))
        assert is_blue.sum() == 1
        assert torch.isclose(lines[~is_blue], torch.tensor(border)[:, None]).all()


@pytest.mark.parametrize("fit", ["squash", "border"])
def test_fast_decoding_is_close_in_every_fit(folder, fit):
    gradient = np.linspace(0, 255, 900).astype(np.uint8)
    picture = np.stack([np.tile(gradient, (300, 1))] * 3, axis=2)
    Image.fromarray(picture).save(folder / "a.jpg", quality=95)
    recipe = {**PLAIN, "resize": 32, "crop": 32, "fit": fit, "interpolation": "bicubic"}
    exact, fast = (pixels_of(folder, recipe | {"decode": d})["a.jpg"] for d in ("exact", "fast"))
    assert np.abs(exact.astype(int) - fast.astype(int)).max() <= 3


def test_a_pencil_of_an_image_is_too_large_to_squash(folder):
    Image.new("L", (1, 1 << 20)).save(folder / "pencil.png")
    recipe = {**PLAIN, "resize": 256, "fit": "squash"}
    _, cache = features_of(folder, recipe)
    assert cache.failures == {"pencil.png": "too large"}
    assert features_of(folder, recipe | {"fit": "border"})[1].failures == {}


def test_photographs_are_prepared_as_the_weights_say(photos, tmp_path):
    from torchvision.models import SqueezeNet1_1_Weights

    transforms = SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    (tmp_path / "images").symlink_to(photos)
    found, _ = features_of(
        tmp_path / "images", {"resize": 256, "crop": 224, "mean": MEAN, "std": STD}
    )
    assert len(found) == 12
    for path, pixels in found.items():
        with Image.open(photos / path) as image:
            assert torch.equal(pixels, transforms(image.convert("RGB"))), path


# --- orientation ---------------------------------------------------------------------------

# How an upright picture is stored under each EXIF orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("webp", {"lossless": True}),
        ("tif", {}),
        ("jpg", {"quality": 100, "subsampling": 0}),
    ],
)
def test_orientation_is_applied_first(folder, suffix, options):
    recipe = {**PLAIN, "resize": 20, "crop": 14}
    # Blocks of 8 x 8 pixels of even colour, so that JPEG keeps them in any orientation.
    upright = noise(6, 3).resize((48, 24), Image.Resampling.NEAREST)
    for orientation, operation in STORED.items():
        stored = upright.transpose(operation) if operation is not None else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(folder / f"{orientation}.{suffix}", exif=exif, **options)
    expected = (255 * official(upright, recipe)).round().permute(1, 2, 0).numpy()
    for path, pixels in pixels_of(folder, recipe).items():
        off = np.abs(pixels.astype(int) - expected).max()
        # JPEG's colours are off by a few levels; a wrong orientation by a hundred.
        assert off <= (6 if suffix == "jpg" else 0), path


def test_damaged_exif_does_not_cost_the_picture(folder):
    Image.new("RGB", (9, 9), RED).save(folder / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    Image.new("RGB", (9, 9), RED).save(folder / "b.jpg", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    for pixels in pixels_of(folder).values():
        assert np.abs(pixels.astype(int) - RED).max() <= 2


# --- pixel formats -------------------------------------------------------------------------


def test_sixteen_bit_grey_keeps_its_high_byte(folder):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000 + 77
    Image.fromarray(levels).save(folder / "a.png")
    Image.fromarray(levels).save(folder / "b.tif")
    for pixels in pixels_of(folder).values():
        assert np.array_equal(pixels, np.repeat((levels >> 8)[..., None], 3, axis=2))


def test_cmyk_keeps_its_colours(folder):
    colours = noise(1, 1).resize((8, 8))
    colours.convert("CMYK").save(folder / "a.jpg", quality=100)
    colours.convert("CMYK").save(folder / "b.tif")
    for pixels in pixels_of(folder).values():
        assert np.abs(pixels.astype(int) - np.asarray(colours)).max() <= 2


def test_transparency_lies_over_white(folder):
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    alpha[0] = 128
    mask = Image.fromarray(alpha)
    rgba = Image.new("RGBA", (8, 8), RED)
    rgba.putalpha(mask)
    rgba.save(folder / "rgba.png")
    rgba.save(folder / "rgba.webp", lossless=True, exact=True)
    grey = Image.new("L", (8, 8), 0)
    Image.merge("LA", (grey, mask)).save(folder / "la.png")
    found = pixels_of(folder)
    for name in ("rgba.png", "rgba.webp"):
        assert np.array_equal(found[name][1:4], np.broadcast_to(RED, (3, 8, 3)))
        assert np.array_equal(found[name][4:], np.broadcast_to(WHITE, (4, 8, 3)))
        assert np.abs(found[name][0].astype(int) - (255, 127, 127)).max() <= 1
    assert np.abs(found["la.png"][0].astype(int) - 127).max() <= 1
    assert not found["la.png"][1:4].any()
    assert (found["la.png"][4:] == 255).all()


def test_palette_with_transparency_lies_over_white(folder):
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (0, 4, 8, 8))
    palette.save(folder / "one.png", transparency=1)
    palette.save(folder / "each.png", transparency=bytes([128, 0]))
    palette.save(folder / "one.gif", transparency=1)
    palette.save(folder / "opaque.png")
    Image.new("L", (8, 8), 7).save(folder / "key.png", transparency=7)
    found = pixels_of(folder)
    for name in ("one.png", "one.gif"):
        assert np.array_equal(found[name][:4], np.broadcast_to(RED, (4, 8, 3)))
    for name in ("one.png", "one.gif", "each.png"):
        assert np.array_equal(found[name][4:], np.broadcast_to(WHITE, (4, 8, 3)))
    assert np.abs(found["each.png"][:4].astype(int) - (255, 127, 127)).max() <= 1
    assert np.array_equal(found["opaque.png"][4:], np.broadcast_to(BLUE, (4, 8, 3)))
    assert (found["key.png"] == 255).all()


def test_one_bit_and_grey(folder):
    bits = np.indices((8, 8)).sum(0) % 2 == 0
    Image.fromarray(bits).save(folder / "a.png")
    Image.fromarray(bits).save(folder / "b.tif", compression="group4")
    Image.fromarray(bits).save(folder / "c.pbm")
    Image.fromarray((bits * 255).astype(np.uint8)).save(folder / "d.bmp")
    for pixels in pixels_of(folder).values():
        assert np.array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


def test_animations_give_their_first_frame(folder):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], **options)
    found = pixels_of(folder)
    assert len(found) == 4
    for name, pixels in found.items():
        assert np.array_equal(pixels, np.broadcast_to(RED, (8, 8, 3))), name


def test_numbers_of_unknown_range_are_refused(folder):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(folder / "int.tif")
    Image.new("RGB", (8, 8)).save(folder / "ok.png")
    _, cache = features_of(folder, PLAIN)
    assert cache.failures == dict.fromkeys(["float.tif", "int.tif"], "unsupported pixel format")


def test_a_line_of_pixels(folder):
    # Its shorter side is 1: made 8, it would have 8 x 400,000 pixels; made 256, 26 billion.
    noise(50_000, 1).save(folder / "line.png")
    found, cache = features_of(folder, PLAIN)
    assert torch.equal(found["line.png"], official(noise(50_000, 1), PLAIN))
    _, cache = features_of(folder, {**PLAIN, "resize": 256})
    assert cache.failures == {"line.png": "too large"}


# --- fast decoding -------------------------------------------------------------------------


def test_fast_decoding_is_close_and_part_of_the_fingerprint(folder):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    coarse.resize((1600, 1200), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=92)
    noise(300, 200).save(folder / "other.png")
    noise(70, 80).save(folder / "small.jpg")
    recipe = {**PLAIN, "resize": 64, "crop": 56}
    exact, plain = features_of(folder, recipe)
    fast, quick = features_of(folder, {**recipe, "decode": "fast"})
    assert torch.equal(exact["other.png"], fast["other.png"])
    assert torch.equal(exact["small.jpg"], fast["small.jpg"])  # too small to be reduced
    off = 255 * (exact["large.jpg"] - fast["large.jpg"]).abs()
    assert 0 < off.max() <= 5
    assert off.mean() < 1
    assert quick.extractor.preprocess["decode"] == "fast"
    assert plain.layers["0@none"].fingerprint != quick.layers["0@none"].fingerprint


def test_fast_decoding_is_turned_upright_too(folder):
    image = noise(10, 6).resize((800, 480), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "a.jpg", exif=exif, quality=95)
    found, _ = features_of(folder, {**PLAIN, "resize": 32, "crop": 32, "decode": "fast"})
    expected = official(image, {**PLAIN, "resize": 32, "crop": 32})
    assert 255 * (found["a.jpg"] - expected).abs().mean() < 2


# --- finding -------------------------------------------------------------------------------


def test_every_suffix_in_either_case(folder):
    image = Image.new("RGB", (8, 8), RED)
    formats = {
        **dict.fromkeys([".jpg", ".jpeg", ".jpe", ".jfif"], "JPEG"),
        **dict.fromkeys([".tif", ".tiff"], "TIFF"),
        **{".png": "PNG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP"},
        **dict.fromkeys([".ppm", ".pnm"], "PPM"),
    }
    for suffix, form in formats.items():
        image.save(folder / f"lower{suffix}", format=form)
        image.save(folder / f"UPPER{suffix.upper()}", format=form)
    image.save(folder / "mislabelled.jpg", format="PNG")
    (folder / "notes.txt").write_text("no image")
    (folder / "jpg").write_text("no suffix")
    found = pixels_of(folder)
    expected = {f"{name}{s}" for s in formats for name in ("lower",)}
    expected |= {f"UPPER{s.upper()}" for s in formats} | {"mislabelled.jpg"}
    assert set(found) == expected


def test_hidden_files_and_folders_are_passed_over(folder):
    (folder / ".trash").mkdir()
    for name in (".hidden.png", ".trash/a.png", "seen.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    assert set(pixels_of(folder)) == {"seen.png"}


def test_rows_are_sorted_by_path(folder):
    for name in ("b.png", "a/z.png", "a.png", "a-b.png", "a/ä.png", "Z.png", "日本.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        noise(8, 8, seed=len(name)).save(folder / name)
    _, cache = features_of(folder, PLAIN)
    assert cache.paths == sorted(cache.paths)
    assert len(cache.paths) == 7
    assert "a/ä.png" in cache.paths


def test_links_are_followed_inside_the_folder(folder, tmp_path):
    (folder / ".store" / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 8), RED).save(folder / ".store" / "deep" / "a.png")
    Image.new("RGB", (8, 8), BLUE).save(folder / "own.png")
    (folder / "file.png").symlink_to(".store/deep/a.png")
    (folder / "linked").symlink_to(folder / ".store")
    (folder / "linked again").symlink_to(folder / ".store")  # no folder twice
    (folder / ".store" / "up").symlink_to(folder)
    (folder / ".store" / "deep" / "self").symlink_to(folder / ".store" / "deep")
    (tmp_path / "by link").symlink_to(folder)  # the folder itself may be one
    for root in (folder, tmp_path / "by link"):
        found = pixels_of(root)
        assert set(found) == {"own.png", "file.png", "linked/deep/a.png"}
        assert np.array_equal(found["file.png"][0, 0], RED)
    assert [
        line for line in folder_source.list_images(folder).skipped if "linked again" in line
    ] == ["passed over linked again: it is a link to a folder that is listed already"]


@pytest.mark.slow
def test_links_that_lead_out_are_followed_where_that_is_asked_for(folder, tmp_path, command):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 8), RED).save(elsewhere / "deep" / "a.png")
    Image.new("RGB", (8, 8), BLUE).save(folder / "own.png")
    (folder / "file.png").symlink_to(elsewhere / "deep" / "a.png")
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "everything").symlink_to("/")
    (folder / "gone.png").symlink_to(elsewhere / "gone.png")
    options = "run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling"
    done = command("featurize", *options)
    assert done.returncode == 0, done.stderr
    assert FeatureCache(tmp_path / "c.h5").paths == ["own.png"]
    for name in ("everything", "file.png", "gone.png"):
        assert f"passed over {name}: it is a link that leads out of the folder" in done.stderr
    assert "passed over 1 more for that reason" in done.stderr
    (folder / "everything").unlink()
    done = command("featurize", *options, "--follow")
    assert done.returncode == 0, done.stderr
    cache = FeatureCache(tmp_path / "c.h5")
    assert cache.paths == ["file.png", "gone.png", "linked/deep/a.png", "own.png"]
    assert cache.failures == {"gone.png": "vanished while running"}


@pytest.mark.parametrize("name", ["loop", "loop.png"])
def test_a_link_to_itself_ends_nothing(folder, name):
    Image.new("RGB", (8, 8), BLUE).save(folder / "own.png")
    (folder / name).symlink_to(folder / name)
    found, cache = features_of(folder, PLAIN)
    assert set(found) == {"own.png"}
    assert set(cache.failures) == {name} - {"loop"}


def test_names_that_are_not_utf8_are_passed_over_and_said(folder, tmp_path):
    Image.new("RGB", (8, 8)).save(folder / "ok.png")
    try:
        bad = os.fsencode(folder) + b"/caf\xe9.png"
        with open(bad, "wb") as file:
            file.write((folder / "ok.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    said = []
    backbone = Backbone(nn.Sequential(nn.Identity()), name="eye", preprocess=PLAIN)
    done = run(folder, tmp_path / "c.h5", backbone=backbone, layers="0", say=said.append)
    assert done.rows == 1
    assert any("caf" in text and "UTF-8" in text for text in said)

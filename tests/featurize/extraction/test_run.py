"""Once is once: what a second run computes, and what it does not."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from torch import nn

from featurize import Backbone, FeatureCache, run
from featurize.cache.layout import read_layout
from featurize.cache.lock import WriteLock
from featurize.errors import (
    BackboneError,
    CacheBusyError,
    CacheFormatError,
    CallError,
    FingerprintMismatchError,
)
from featurize.extraction.completion.partial_cache import partial_path

RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    for label in ("a", "b"):
        (images / label).mkdir(parents=True)
        for k in range(10):
            pixels = rng.integers(0, 255, (9, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / label / f"{k}.png")
            os.utime(images / label / f"{k}.png", ns=(10**18 + k, 10**18 + k))
    return images


@pytest.fixture
def backbone():
    import torch

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=2)
    )
    return Backbone(network, name="toy", preprocess=RECIPE)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "c.h5"


def same_as_fresh(cache, folder, backbone, tmp_path, layers="2"):
    other = tmp_path / "fresh.h5"
    other.unlink(missing_ok=True)
    run(folder, other, backbone=backbone, layers=layers)
    left, right = FeatureCache(cache), FeatureCache(other)
    assert left.paths == right.paths
    assert left.status.tolist() == right.status.tolist()
    assert list(left.layers) == list(right.layers)
    rows = np.flatnonzero(left.status == 1)
    for name in left.layers:
        a, b = left.features(name, rows), right.features(name, rows)
        assert np.abs(a - b).max() <= 1e-5 * np.linalg.norm(b, axis=1).min()
    assert left.column("sha256").tolist() == right.column("sha256").tolist()
    assert left.verify() == []


def test_rerun_computes_nothing(folder, cache, backbone):
    first = run(folder, cache, backbone=backbone, layers="2")
    before = cache.read_bytes()
    again = run(folder, cache, backbone=backbone)
    assert (first.rows, first.computed, first.reused, first.failed) == (20, 20, 0, 0)
    assert (again.rows, again.computed, again.reused, again.failed) == (20, 0, 20, 0)
    assert cache.read_bytes() == before


def test_unchanged_collection_opens_no_image_and_no_torch(folder, cache):
    run(folder, cache, backbone="seedling")
    times = {path: path.stat().st_atime_ns for path in folder.rglob("*.png")}
    for path in times:  # unreadable contents would show if they were looked at
        info = path.stat()
        path.write_bytes(b"x" * info.st_size)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    code = (
        "import sys, featurize\n"
        f"done = featurize.run({str(folder)!r}, {str(cache)!r}, layers='last')\n"
        "assert done.reused == 20, done\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rehash_reads_every_file(folder, cache, backbone, tmp_path):
    run(folder, cache, backbone=backbone, layers="2")
    path = folder / "a" / "3.png"
    info = path.stat()
    Image.effect_noise((8, 8), 90).save(path, compress_level=0)
    path.write_bytes(path.read_bytes().ljust(info.st_size, b"\0")[: info.st_size])
    if path.stat().st_size != info.st_size:
        pytest.fail("the planted file has another size")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert run(folder, cache, backbone=backbone).computed == 0
    assert run(folder, cache, backbone=backbone, rehash=True).reused == 19
    same_as_fresh(cache, folder, backbone, tmp_path)


def test_touched_files_are_read_but_not_computed(folder, cache, backbone, tmp_path):
    run(folder, cache, backbone=backbone, layers="2")
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    assert run(folder, cache, backbone=backbone).computed == 0
    # and the new times are remembered
    assert (FeatureCache(cache).column("mtime_ns") == 1).all()
    same_as_fresh(cache, folder, backbone, tmp_path)


def test_changed_image_is_computed_again(folder, cache, backbone, tmp_path):
    run(folder, cache, backbone=backbone, layers="2")
    Image.new("RGB", (20, 20), "red").save(folder / "a" / "3.png")
    done = run(folder, cache, backbone=backbone)
    assert (done.computed, done.reused) == (1, 19)
    same_as_fresh(cache, folder, backbone, tmp_path)


def test_added_and_removed_images(folder, cache, backbone, tmp_path):
    run(folder, cache, backbone=backbone, layers="2")
    (folder / "a" / "3.png").unlink()
    Image.new("RGB", (20, 20), "red").save(folder / "b" / "new.png")
    done = run(folder, cache, backbone=backbone)
    assert (done.rows, done.computed, done.reused) == (20, 1, 19)
    assert not partial_path(cache).exists()
    same_as_fresh(cache, folder, backbone, tmp_path)


def test_renamed_images_cost_nothing(folder, cache, backbone, tmp_path):
    run(folder, cache, backbone=backbone, layers="2")
    (folder / "a").rename(folder / "renamed")  # half of all paths vanish; no content does
    done = run(folder, cache, backbone=backbone)
    assert (done.rows, done.computed, done.reused) == (20, 0, 20)
    same_as_fresh(cache, folder, backbone, tmp_path)


def test_duplicates_are_computed_once(folder, cache, backbone, tmp_path):
    for k in range(5):
        shutil.copy(folder / "a" / "1.png", folder / "b" / f"copy{k}.png")
    done = run(folder, cache, backbone=backbone, layers="2")
    assert (done.rows, done.computed, done.reused) == (25, 20, 5)
    shutil.copy(folder / "b" / "9.png", folder / "a" / "later.png")
    assert run(folder, cache, backbone=backbone).computed == 0
    same_as_fresh(cache, folder, backbone, tmp_path)


def test_swapped_files_are_told_apart(folder, cache, backbone, tmp_path):
    run(folder, cache, backbone=backbone, layers="2")
    one, two = folder / "a" / "1.png", folder / "b" / "2.png"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    run(folder, cache, backbone=backbone)
    same_as_fresh(cache, folder, backbone, tmp_path)


def test_new_layer_keeps_the_old_one(folder, cache, backbone, tmp_path):
    run(folder, cache, backbone=backbone, layers="2")
    before = FeatureCache(cache).features("2").copy()
    done = run(folder, cache, backbone=backbone, layers="0:max")
    assert done.computed == 20
    assert done.layers == ["0@max", "2"]  # by depth
    assert np.array_equal(FeatureCache(cache).features("2"), before)
    same_as_fresh(cache, folder, backbone, tmp_path, layers="0:max,2")
    assert run(folder, cache, backbone=backbone, layers="2").computed == 0
    assert run(folder, cache, backbone=backbone, layers="0@max").computed == 0


def test_new_layer_and_changed_collection_at_once(folder, cache, backbone, tmp_path):
    run(folder, cache, backbone=backbone, layers="2")
    (folder / "a" / "3.png").unlink()
    (folder / "a" / "4.png").rename(folder / "b" / "moved.png")
    shutil.copy(folder / "a" / "5.png", folder / "b" / "copy.png")
    Image.new("RGB", (20, 20), "red").save(folder / "a" / "6.png")
    run(folder, cache, backbone=backbone, layers="0")
    same_as_fresh(cache, folder, backbone, tmp_path, layers="0,2")


def test_interrupted_growth_is_gone_on_with(folder, cache, backbone, tmp_path, monkeypatch):
    run(folder, cache, backbone=backbone, layers="2")

    def stop_after_first(measure):
        if measure.images_run >= 8:
            raise KeyboardInterrupt

    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)  # batches of 8
    with pytest.raises(Exception, match="The same command goes on") as stopped:
        run(folder, cache, backbone=backbone, layers="0", report=stop_after_first)
    assert type(stopped.value).__name__ == "RunInterruptedError"
    kept = FeatureCache(partial_path(cache)).counts["ok"]
    assert kept >= 8
    assert FeatureCache(cache).counts["ok"] == 20  # still whole, as it was
    done = run(folder, cache, backbone=backbone, layers="0")
    assert done.computed == 20 - kept
    same_as_fresh(cache, folder, backbone, tmp_path, layers="0,2")


def test_vanished_images_need_prune(folder, cache, backbone):
    run(folder, cache, backbone=backbone, layers="2")
    before = cache.read_bytes()
    shutil.rmtree(folder / "b")
    with pytest.raises(CallError, match=r"10 of the 20 images .* --prune"):
        run(folder, cache, backbone=backbone)
    assert cache.read_bytes() == before
    assert run(folder, cache, backbone=backbone, prune=True).rows == 10


def test_another_network_is_refused(folder, cache, backbone):
    run(folder, cache, backbone=backbone, layers="2")
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2))
    other = Backbone(network, name="toy", preprocess={**RECIPE, "resize": 9})
    with pytest.raises(
        FingerprintMismatchError, match=r"weights_sha256 is .*preprocess\.resize is 8"
    ):
        run(folder, cache, backbone=other)
    with pytest.raises(FingerprintMismatchError, match="backbone is 'toy', asked for 'seedling'"):
        run(folder, cache, backbone="seedling")
    with pytest.raises(FingerprintMismatchError, match="dtype is 'float32', asked for 'float16'"):
        run(folder, cache, backbone=backbone, dtype="float16")
    with pytest.raises(CallError, match="continue it from Python"):
        run(folder, cache, layers="0")


def test_foreign_output_is_left_alone(folder, tmp_path):
    output = tmp_path / "thesis.h5"
    output.write_text("my thesis")
    with pytest.raises(CacheFormatError, match="left as it is; give another -o"):
        run(folder, output, backbone="seedling")
    assert output.read_text() == "my thesis"


def test_float16_overflow_is_a_failed_row(folder, cache):
    import torch

    network = nn.Sequential(nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        network[0].weight.fill_(1e6)
    huge = Backbone(network, name="huge", preprocess=RECIPE)
    done = run(folder, cache, backbone=huge, layers="0", dtype="float16")
    assert done.failed > 0
    assert set(done.failures.values()) == {"features are not finite"}
    assert FeatureCache(cache).verify() == []


def test_dry_run_writes_nothing(folder, tmp_path, cache):
    found = run(folder, cache, backbone="seedling", layers="auto", dry_run=True)
    assert (found.rows, found.to_compute) == (20, 20)
    assert found.bytes > 20 * 4 * (32 + 64 + 128)
    assert found.seconds > 0
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def featurize(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("featurize")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.long
def test_command_prints_one_json_object(folder, cache):
    done = featurize("run", folder, "-o", cache, "--backbone", "seedling", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= {
        *("cache", "rows", "computed", "reused", "failed", "seconds"),
        *("images_per_second", "bound", "layers"),
    }
    assert found["rows"] == found["computed"] + found["reused"] + found["failed"] == 20
    assert found["bound"] in ("read", "decode", "run", "write")
    shown = json.loads(featurize("info", cache, "--json").stdout)
    assert {"format_version", "rows", "status", "backbone", "weights_sha256", "layers"} <= set(
        shown
    )
    assert shown["status"] == {"ok": 20, "failed": 0, "pending": 0}
    sound = featurize("verify", cache, folder, "--json")
    assert json.loads(sound.stdout) == {"ok": True, "problems": []}


@pytest.mark.slow
def test_verify_finds_what_was_altered(folder, cache):
    featurize("run", folder, "-o", cache, "--backbone", "seedling")
    extents = read_layout(cache).extents
    extent, checksums = extents["features/stage4"], extents["checksums/stage4"]
    with open(cache, "r+b") as file:
        file.seek(extent.offset + 3 * extent.row_bytes)
        file.write(np.full(512, 2.0, "<f4").tobytes())
        file.flush()
        done = featurize("verify", cache, folder, "--json")
        assert json.loads(done.stdout)["problems"][0].startswith("features/stage4: the numbers of")
        file.seek(checksums.offset + 3 * checksums.row_bytes)
        file.write(bytes(8))  # as in a cache of 1.0, which has no checksums: the images tell
    done = featurize("verify", cache, folder, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["problems"][0].startswith("features/stage4 of a/3.png differ")


@pytest.mark.long
def test_export(folder, cache, tmp_path):
    featurize("run", folder, "-o", cache, "--backbone", "seedling", "--layers", "stage1,stage4")
    found = FeatureCache(cache)
    assert featurize("export", cache, "-o", tmp_path / "f.npz").returncode == 0
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert arrays["path"].tolist() == found.paths
        assert np.array_equal(arrays["stage1"], found.features("stage1"))
    assert featurize("export", cache, "-o", tmp_path / "f.parquet").returncode == 0
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "f.parquet")
    assert table["path"].to_pylist() == found.paths
    assert np.allclose(table["stage4"].to_pylist(), found.features("stage4"))


@pytest.mark.parametrize("growing", [False, True])
def test_what_a_row_to_be_looked_at_holds_is_not_computed_again(
    cache, folder, backbone, tmp_path, growing
):
    """Its file is too young to be sure by the time; its copy's row is pending, after a kill."""
    shutil.copy(folder / "a" / "0.png", folder / "b" / "copy.png")
    now = time.time_ns() + 3600 * 10**9
    os.utime(folder / "b" / "copy.png", ns=(now, now))
    killed = cache
    run(folder, cache, backbone=backbone, layers="0")
    if growing:
        killed = partial_path(cache)
        run(folder, tmp_path / "grown.h5", backbone=backbone, layers="0,2")
        shutil.copy(tmp_path / "grown.h5", killed)
    with h5py.File(killed, "r+") as file:
        row = FeatureCache(killed).row_of["a/0.png"]
        for name in ("status", "sha256", "size", "mtime_ns"):
            file[f"images/{name}"][row] = 0
    done = run(folder, cache, backbone=backbone, layers="0,2" if growing else "0")
    assert done.computed == 0
    same_as_fresh(cache, folder, backbone, tmp_path, "0,2" if growing else "0")


def test_a_mistyped_backbone_leaves_nothing_behind(folder, tmp_path):
    with pytest.raises(BackboneError, match="did you mean 'resnet50'"):
        run(folder, tmp_path / "c.h5", backbone="resnet5O")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_that_another_run_is_writing_is_said_before_a_network_is_loaded(folder, tmp_path):
    with WriteLock(tmp_path / "c.h5"), pytest.raises(CacheBusyError):
        run(folder, tmp_path / "c.h5", backbone="resnet5O")

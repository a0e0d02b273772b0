"""Images where people keep them: archives, shards and tables in place of a folder, in each verb."""

import csv
import io
import json
import os
import shlex
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from classify.data.source_images import SourceImages
from classify.data.units import find_image_copies
from classify.finetuning.datasets import images as datasets
from classify.finetuning.datasets.loader import EpochSampler, make_dataloader
from featurize import FeatureCache
from featurize.errors import CallError, UnknownPathError
from featurize.images.preprocess import Preprocess
from featurize.sources.folder import FolderSource

NAMES = {"1": "one", "7": "seven", "9": "nine"}
KINDS = ("zip", "tar", "parquet")


@pytest.fixture(scope="module")
def sources(pictured, tmp_path_factory) -> dict[str, Path]:
    """The pictured digits as a zip of folders, two WebDataset shards, and a Parquet table."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    home = tmp_path_factory.mktemp("sources")
    with zipfile.ZipFile(home / "digits.zip", "w") as archive:
        for path in pictured.paths:
            archive.write(pictured.images / path, path)
    (home / "shards").mkdir()
    for part, rows in enumerate((range(0, 60, 2), range(1, 60, 2))):
        with tarfile.open(home / "shards" / f"digits-{part:03}.tar", "w") as shard:
            for row in rows:
                image = (pictured.images / pictured.paths[row]).read_bytes()
                label = NAMES[pictured.labels[row]].encode()
                for suffix, data in (("png", image), ("cls", label)):
                    member = tarfile.TarInfo(f"{row:04}.{suffix}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
    names = list(NAMES.values())
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    order = np.random.default_rng(0).permutation(60)
    table = pa.table(
        {
            "image": [
                {"bytes": (pictured.images / pictured.paths[row]).read_bytes(), "path": None}
                for row in order
            ],
            "label": [names.index(NAMES[pictured.labels[row]]) for row in order],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, home / "digits.parquet", row_group_size=16)
    found = {"zip": home / "digits.zip", "tar": home / "shards", "parquet": home / "digits.parquet"}
    for path in (*found.values(), *found["tar"].iterdir()):
        os.utime(path, (1e9, 1e9))  # not written just now: its time proves that it is unchanged
    return found


@pytest.fixture(scope="module")
def made(sources, command, tmp_path_factory):
    """A cache and a head of each source, by the commands."""
    home, found = tmp_path_factory.mktemp("made"), {}
    for kind, source in sources.items():
        cache, head = home / f"{kind}.h5", home / f"{kind}.head"
        options = ("--backbone", "seedling", "--layers", "stage3,stage4", "--device", "cpu")
        done = command("featurize", "run", source, "-o", cache, *options)
        assert done.returncode == 0, done.stderr
        done = command("classify", "fit", cache, "-o", head, "--head", "lda", "--json")
        assert done.returncode == 0, done.stderr
        found[kind] = SimpleNamespace(
            source=source, cache=cache, head=head, record=json.loads(done.stdout), said=done.stderr
        )
    return found


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_along_or_from_folders(made, kind):
    record, said = made[kind].record, made[kind].said
    assert record["accuracy"] > 0.8
    if kind == "zip":
        assert (record["task"], record["classes"]) == ("folders", sorted(NAMES))
        return
    assert (record["task"], record["classes"]) == ("labels", sorted(NAMES.values()))
    assert f"labels came with the images: {made[kind].cache}.labels.csv" in said


@pytest.mark.parametrize("kind", KINDS)
def test_predict_gives_what_the_cache_gives(made, command, kind):
    tables = []
    for images in (made[kind].source, made[kind].cache):
        done = command("classify", "predict", made[kind].head, images)
        assert done.returncode == 0, done.stderr
        assert "headgraft-" not in done.stderr
        tables.append(list(csv.reader(io.StringIO(done.stdout))))
    assert len(tables[0]) == 61
    assert [row[:2] for row in tables[0]] == [row[:2] for row in tables[1]]


def test_predict_says_of_what_kind_nothing_is(made, command, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no images")
    for given, message in ((text, "is of no kind that is read"), ("nowhere.zip", "does not exist")):
        done = command("classify", "predict", made["zip"].head, given, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    broken = tmp_path / "broken.h5"
    broken.write_text("no cache")
    done = command("classify", "predict", made["zip"].head, broken)
    assert "is not a feature cache" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_shows_the_pictures(made, command, pictured, tmp_path, kind):
    """As many as of the folder, and the very same."""
    pytest.importorskip("bokeh")
    pages = []
    for name, cache, images in (
        ("source", made[kind].cache, made[kind].source),
        ("folder", made["zip"].cache, pictured.images),
    ):
        page = tmp_path / f"{name}.html"
        options = ("--heads", "ncm", "--layers", "stage4", "--images", images)
        done = command("classify", "report", cache, "-o", page, *options)
        assert done.returncode == 0, done.stderr
        pages.append(json.loads(page.read_text().split('id="pictures">')[1].split("</script>")[0]))
    assert len(pages[0]) == 60
    assert sorted(pages[0].values()) == sorted(pages[1].values())


def test_a_report_leaves_out_pictures_that_are_gone(made, command, sources, pictured, tmp_path):
    pytest.importorskip("bokeh")
    with zipfile.ZipFile(tmp_path / "fewer.zip", "w") as archive:
        for path in pictured.paths[5:]:
            archive.write(pictured.images / path, path)
    page = tmp_path / "r.html"
    options = ("--heads", "ncm", "--layers", "stage4", "--images", tmp_path / "fewer.zip")
    done = command("classify", "report", made["zip"].cache, "-o", page, *options)
    assert done.returncode == 0, done.stderr
    pictures = json.loads(page.read_text().split('id="pictures">')[1].split("</script>")[0])
    assert len(pictures) == 55


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_cache", [False, True])
def test_finetune_trains_on_them(made, command, tmp_path, kind, with_cache):
    output = tmp_path / "tuned.safetensors"
    options = ["--backbone", "seedling", "--tune", "stage4", "--epochs", "1", "--device", "cpu"]
    options += ["--cache", made[kind].cache] if with_cache else []
    done = command("classify", "finetune", made[kind].source, "-o", output, *options, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["classes"] == made[kind].record["classes"]
    assert record["n_train"] + record["n_validation"] + record["n_test"] == 60
    assert ("labels came with the images" in done.stderr) == (kind != "zip")


@pytest.mark.long
def test_auto_carries_out_what_is_advised(made, command, tmp_path):
    output = tmp_path / "M"
    options = ("--backbone", "seedling", "--size", "small", "--similarity", "similar", "--json")
    done = command("classify", "auto", made["parquet"].source, "-o", output, *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["strategy"] == "linear-probe"
    assert told["accuracy"] > 0.8
    assert output.exists()
    assert "labels came with the images" in done.stderr


def test_auto_refuses_a_table_without_labels_before_any_work(sources, command, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    bare = tmp_path / "bare.parquet"
    parquet.write_table(parquet.read_table(sources["parquet"]).drop_columns(["label"]), bare)
    done = command("classify", "auto", bare, "-o", tmp_path / "M", "--backbone", "seedling")
    assert done.returncode == 2
    assert "no folder names" in done.stderr
    assert "--labels T.csv" in done.stderr
    assert not list(tmp_path.glob("*.h5*"))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_commands_of_an_advice_name_the_source(made, command, kind):
    done = command("classify", "advise", made[kind].cache, "--json")
    assert done.returncode == 0, done.stderr
    words = shlex.split(json.loads(done.stdout)["commands"]["finetune"])
    assert Path(words[2]).samefile(made[kind].source)
    assert "--labels" not in words


# --- one listing ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_located_by_one_listing(made, monkeypatch, kind):
    source = type(SourceImages(made[kind].source).source)
    listings, list_images = [], source.list_images
    monkeypatch.setattr(
        source, "list_images", lambda self, known=None: listings.append(known) or list_images(self)
    )
    cache = FeatureCache(made[kind].cache)
    found = SourceImages(made[kind].source, cache)
    assert found.locate(cache.paths[7:3:-1]).paths == cache.paths[7:3:-1]
    assert found.locate_present([*cache.paths[:2], "nowhere"]).paths == cache.paths[:2]
    with pytest.raises(UnknownPathError, match="'nowhere'"):
        found.locate(["nowhere"])
    assert len(listings) == 1
    assert listings[0].paths == cache.paths  # so unchanged containers need not be opened


def test_a_folder_is_not_listed(pictured, monkeypatch):
    monkeypatch.setattr(FolderSource, "list_images", None)
    found = SourceImages(pictured.images)
    assert found.locate(["7/nowhere.png"]).paths == ["7/nowhere.png"]
    with pytest.raises(CallError, match="does not exist"):
        SourceImages(pictured.images / "nowhere")


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_the_same_bytes_are_found_whether_sizes_are_known_or_not(sources, pictured, tmp_path, kind):
    listing = SourceImages(sources[kind]).listing
    assert (listing.sizes < 0).any() == (kind == "parquet")
    assert not len(find_image_copies(listing).exact)
    if kind == "zip":
        twice = tmp_path / "twice.zip"
        with zipfile.ZipFile(twice, "w") as archive:
            for row in (0, 1, 2, 1, 0):
                archive.write(pictured.images / pictured.paths[row], f"{archive.fp.tell()}.png")
        expected = {frozenset((0, 4)), frozenset((1, 3))}
    else:
        parquet, twice = pytest.importorskip("pyarrow.parquet"), tmp_path / "twice.parquet"
        parquet.write_table(parquet.read_table(sources[kind]).take([0, 1, 2, 1, 0]), twice)
        expected = {frozenset((0, 4)), frozenset((1, 3))}
    found = SourceImages(twice).listing
    in_order = sorted(range(5), key=lambda row: int(found.paths[row].removesuffix(".png")))
    pairs = find_image_copies(found.select([found.paths[row] for row in in_order])).exact
    assert {frozenset(pair) for pair in pairs.tolist()} == expected


# --- every epoch ---------------------------------------------------------------------------


def decode(listing, monkeypatch=None) -> datasets.DecodedImages:
    """Decoded images of 32 x 32 pixels; not held in memory with a monkeypatch."""
    if monkeypatch is not None:
        monkeypatch.setattr(datasets, "MAX_PIXEL_BYTES", 0)
        monkeypatch.setattr(datasets, "MAX_MEMORY_SHARE", 0)
    return datasets.DecodedImages(listing, Preprocess(32, 32, (0.0,) * 3, (1.0,) * 3))


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_not_held_are_read_in_each_epoch(sources, monkeypatch, tmp_path, kind):
    listing, log = SourceImages(sources[kind]).listing, tmp_path / "pids"
    source, open_reader = type(listing.source), type(listing.source).open_reader

    def open_and_log(self, listing):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return open_reader(self, listing)

    monkeypatch.setattr(source, "open_reader", open_and_log)
    held, read = decode(listing), decode(listing, monkeypatch)
    assert held.is_in_memory
    assert not held.describe_rereading()
    assert "each epoch reads them again" in read.describe_rereading()
    assert (held.sha256 == read.sha256).all()
    assert (read[5] == held[5]).all()  # opens a file that workers must not share
    batches = []
    for dataset in (datasets.ImageDataset(decoded, np.arange(60), 24) for decoded in (held, read)):
        loader = make_dataloader(dataset, 7, "cpu", EpochSampler(60, 1, 0))
        batches.append([(pixels.numpy(), y.tolist()) for pixels, y in loader])
    assert loader.num_workers > 0
    assert len(set(log.read_text().split())) == 1 + loader.num_workers
    assert len(batches[0]) == len(batches[1]) == 8
    for (pixels, y), (expected, y_expected) in zip(*batches, strict=True):
        assert y == y_expected
        assert (pixels == expected).all()


def test_images_of_a_network_are_read_in_one_process(pictured, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for path in pictured.paths:
        store.pipe(f"/digits/{path}", (pictured.images / path).read_bytes())
    here = SourceImages(pictured.images).locate(pictured.paths)
    there = SourceImages("memory://digits").locate(pictured.paths)
    held, read = decode(here), decode(there, monkeypatch)
    dataset = datasets.ImageDataset(read, np.arange(60), 32)
    assert make_dataloader(dataset, 7, "cpu").num_workers == 0
    assert "memory://digits" in read.describe_rereading()
    for pixels, expected in zip(read.select([9, 2, 9]), held.select([9, 2, 9]), strict=True):
        assert (pixels == expected).all()
    assert not decode(here, monkeypatch).describe_rereading()  # a folder is quick


def test_what_cannot_be_decoded_is_named(pictured, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for row, path in enumerate(pictured.paths[:9]):
            data = (pictured.images / path).read_bytes()
            archive.writestr(path, data[:40] if row in (7, 2) else data)
    decoded = decode(SourceImages(tmp_path / "some.zip").listing)
    assert list(decoded.failures) == [pictured.paths[2], pictured.paths[7]]
    assert set(decoded.failures.values()) == {"truncated or damaged"}
    assert np.flatnonzero(~decoded.is_readable).tolist() == [2, 7]

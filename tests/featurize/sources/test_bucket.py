"""Images that are objects of a store behind a network."""

import pickle

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from featurize.errors import CallError
from featurize.images import reasons
from featurize.sources.bucket import MAX_CHUNK_BYTES, BucketSource
from featurize.sources.listing import ImageListing, read_images
from featurize.sources.opening import open_source
from featurize.sources.source import SourceOptions
from featurize.sources.stores.addresses import parse_address
from featurize.sources.stores.remote_store import MAX_REQUESTS, RemoteStore

FILES = {
    "/box/photos/cats/1.jpg": b"one",
    "/box/photos/cats/2.PNG": b"two",
    "/box/photos/dogs/ü 3#?.webp": b"three",
    "/box/photos/.hidden/4.jpg": b"",
    "/box/photos/cats/.5.jpg": b"",
    "/box/photos/cats/notes.txt": b"",
    "/box/photos/jpg": b"",
    "/box/photos/" + "x" * 600 + ".jpg": b"",
    "/box/photos2/6.jpg": b"",
}
KEYS = ["cats/1.jpg", "cats/2.PNG", "dogs/ü 3#?.webp"]


def test_a_bucket_is_listed_as_a_folder(in_memory):
    in_memory(FILES)
    source = open_source("memory://box/photos")
    listing = source.list_images()
    assert (source.kind, source.root, source.is_remote) == ("bucket", "memory://box/photos", True)
    assert listing.paths == KEYS
    assert listing.sizes.tolist() == [3, 3, 5]
    assert (listing.stamps > 0).all()
    assert (listing.places, listing.columns, listing.root) == (None, {}, "memory://box/photos")
    (sentence,) = listing.skipped
    assert sentence.startswith("passed over xxx")
    assert "604 bytes" in sentence
    images = [read.image.data for read in read_images(listing, range(3))]
    assert sorted(images) == [b"one", b"three", b"two"]


def test_globs_choose_images(in_memory):
    in_memory(FILES)
    options = SourceOptions(include=("cats/*", "no such"), exclude=("*.PNG",))
    listing = open_source("memory://box/photos", options).list_images()
    assert (listing.paths, listing.include, listing.exclude) == (
        ["cats/1.jpg"],
        options.include,
        options.exclude,
    )
    assert listing.skipped[1:] == ["the pattern 'no such' matches no image in memory://box/photos"]
    with pytest.raises(CallError, match="none of the 3 images in memory://box/photos is left by"):
        open_source("memory://box/photos", SourceOptions(include=("x",))).list_images()
    with pytest.raises(CallError, match=r"no image in memory://box/no; looked for \.bmp"):
        BucketSource(RemoteStore(parse_address("memory://box/no"))).list_images()


def test_images_are_found_by_key_without_listing(in_memory, monkeypatch):
    in_memory(FILES)
    source = BucketSource(RemoteStore(parse_address("memory://box/photos")))
    monkeypatch.setattr(MemoryFileSystem, "find", None)
    listing = source.locate([KEYS[1], "gone.jpg"])
    read = {read.row: read.image for read in read_images(listing, [0, 1])}
    assert (read[0].data, read[1].reason) == (b"two", reasons.VANISHED)


def test_what_was_found_at_opening_is_not_listed_again_nor_kept(in_memory, monkeypatch):
    in_memory(FILES)
    source = open_source("memory://box/photos")
    find = MemoryFileSystem.find
    monkeypatch.setattr(MemoryFileSystem, "find", None)
    listing = source.list_images()
    assert vars(listing.source)["files"] is None
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert (again, vars(again)["files"]) == (source, None)
    monkeypatch.setattr(MemoryFileSystem, "find", find)
    in_memory({"/box/photos/new.jpg": b"new"})
    assert listing.source.list_images().paths == [*KEYS, "new.jpg"]
    assert open_source("memory://box/photos").list_images().paths == [*KEYS, "new.jpg"]


def test_chunks_are_what_one_reader_asks_for_at_once():
    source = BucketSource(RemoteStore(parse_address("memory://box")))
    sizes = np.full(300, 1000)
    sizes[100:200] = MAX_CHUNK_BYTES // 3
    sizes[150] = 10 * MAX_CHUNK_BYTES
    sizes[250] = -1
    listing = ImageListing(source, [str(k) for k in range(300)], sizes, np.zeros(300, np.int64))
    rows = np.arange(1, 300)
    chunks = source.split_rows(listing, rows)
    assert np.array_equal(np.concatenate(chunks), rows)
    assert max(map(len, chunks)) == MAX_REQUESTS
    sums = [np.maximum(sizes[chunk], 0).sum() for chunk in chunks]
    assert sorted(sums)[-2] <= MAX_CHUNK_BYTES
    assert [chunk.tolist() for chunk in chunks if 150 in chunk] == [[150]]
    assert source.split_rows(listing, rows[:0]) == []


class FakeHub(MemoryFileSystem):
    """As the hub of Hugging Face: not asynchronous, and with paths of its own."""

    protocol = "hf"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("hf://", "memory://"))


@pytest.fixture
def _fake_hub(in_memory):
    fsspec.register_implementation("hf", FakeHub, clobber=True)
    yield
    from fsspec.registry import _registry

    _registry.pop("hf", None)


@pytest.mark.usefixtures("_fake_hub")
def test_a_data_set_of_the_hub(in_memory):
    in_memory({f"/datasets/me/cats/{k}.jpg": b"%d" % k for k in range(100)})
    listing = open_source("hf://datasets/me/cats").list_images()
    assert listing.root == "hf://datasets/me/cats"
    read = [read.image.data for read in read_images(listing, range(100))]
    assert sorted(read) == sorted(b"%d" % k for k in range(100))

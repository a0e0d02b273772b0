"""Tables of places and of results, there and back, without Ray."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from featurize.extraction.cluster import blocks, results
from featurize.images import reasons
from featurize.pipeline.prefetch import PrefetchedImage
from featurize.sources.listing import ImageListing, read_images
from featurize.sources.opening import open_source
from featurize.sources.source import SourceOptions

pytest.importorskip("pyarrow")
LAYERS = {"layer3@max": "<f4", "layer4": "<f2"}


@pytest.mark.parametrize(
    ("row_bytes", "n_rows", "n_actors", "on_gpu", "expected"),
    [
        (8192, 1_000_000, 8, True, 2048),  # 16 MB
        (256, 1_000_000, 8, True, blocks.MAX_BLOCK_ROWS),
        (8192, 1_000_000, 8, False, blocks.MAX_BLOCK_ROWS_ON_CPU),
        (8192, 300, 2, False, 37),  # four for each worker
        (1 << 30, 300, 1, True, 1),
        (8192, 3, 8, True, 1),
    ],
)
def test_block_rows(row_bytes, n_rows, n_actors, on_gpu, expected):
    assert blocks.choose_block_rows(row_bytes, n_rows, n_actors, on_gpu=on_gpu) == expected


def pack(folder: Path, home: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    for shard in range(2):
        with tarfile.open(home / f"{shard}.tar", "w") as archive:
            for path in reversed(files[shard::2]):  # keys do not ascend as bytes lie
                info = tarfile.TarInfo(path.name)
                info.size = path.stat().st_size
                archive.addfile(info, io.BytesIO(path.read_bytes()))


def write_list(folder: Path, home: Path) -> None:
    rows = [f"{k},{path}\n" for k, path in enumerate(sorted(folder.rglob("*.png")))]
    (home / "list.csv").write_text("id,path\n" + "".join(rows))


def list_source(kind: str, draw, tmp_path: Path) -> ImageListing:
    folder = draw(tmp_path / "images", [f"{k:02}.png" for k in range(20)])
    home = tmp_path / "packed"
    home.mkdir()
    options = SourceOptions()
    if kind == "folder":
        home = folder
    elif kind == "tar":
        pack(folder, home)
    else:
        write_list(folder, home)
        home, options = home / "list.csv", SourceOptions(root=str(folder))
    return open_source(home, options).list_images()


@pytest.mark.parametrize("kind", ["folder", "tar", "list"])
def test_a_block_reads_the_same_images(kind, draw, tmp_path):
    listing = list_source(kind, draw, tmp_path)
    rows = np.array([0, 1, 2, 5, 8, 13, 14, 19])
    recorded = np.arange(20 * 32, dtype=np.uint8).reshape(20, 32)
    expected = {read.row: read.image.data for read in read_images(listing, rows)}
    found, numbers = {}, []
    parts = pickle.loads(pickle.dumps(blocks.SourceParts.of(listing)))  # noqa: S301 - our own
    split = blocks.split_blocks(listing, rows, 3)
    assert [len(block) for block in split] == [3, 3, 2]
    for table in blocks.make_place_tables(listing, split, recorded):
        block = blocks.open_block(table, parts)
        numbers.append(block.number)
        assert (block.recorded_sha256 == recorded[block.rows]).all()
        assert block.listing.paths == [listing.paths[row] for row in block.rows]
        for read in read_images(block.listing, range(len(block.rows))):
            found[int(block.rows[read.row])] = read.image.data
    assert numbers == [0, 1, 2]
    assert found == expected


def make_items() -> tuple[results.BlockSink, np.ndarray]:
    """A block of rows 10 to 17: three computed, then all that may else happen."""
    rows, sink = np.arange(10, 18), results.BlockSink(LAYERS)
    digests = [bytes([k]) * 32 for k in range(8)]
    computed = [PrefetchedImage(k, 100 + k, 200 + k, digests[k]) for k in (2, 0, 1)]
    features = [np.arange(12).reshape(3, 4), np.array([[1, 2], [3, 4], [1e9, 0]])]
    sink.put(computed[:2], [values[:2].astype(np.float32) for values in features])
    sink.put(computed[2:], [values[2:].astype(np.float32) for values in features])
    sink.put([PrefetchedImage(3, 1, 2, digests[3], is_unchanged=True)], None)
    sink.put([PrefetchedImage(4, 1, 2, digests[4], is_changed=True)], None)
    sink.put([PrefetchedImage(5, 1, 2, reason=reasons.EMPTY)], None)
    sink.put([PrefetchedImage(6, 1, 2, digests[6], copy_of=results.KNOWN)], None)
    sink.put([PrefetchedImage(7, 1, 2, digests[2], copy_of=2)], None)
    return sink, rows


def test_results_come_back_as_they_were():
    sink, rows = make_items()
    is_open = np.zeros(30, bool)
    is_open[rows] = True
    found = results.read_result_table(
        results.make_result_table(sink, rows, LAYERS), list(LAYERS), is_open
    )
    assert [item.row for item in found.computed] == [12, 10, 11]
    assert [item.size for item in found.computed] == [102, 100, 101]
    assert [values.dtype for values in found.features] == [np.float32, np.float16]
    assert (found.features[0] == np.arange(12).reshape(3, 4)).all()
    assert np.isinf(found.features[1][2, 0])  # the writer makes a failed row of it
    unchanged, changed, empty, known, copy = found.others
    assert (unchanged.is_unchanged, changed.is_changed) == (True, True)
    assert (empty.reason, empty.copy_of) == (reasons.EMPTY, None)
    assert (known.copy_of, copy.copy_of) == (results.KNOWN, 12)
    assert copy.digest == bytes([2]) * 32
    assert not is_open.any()


def test_rows_that_came_before_are_left_out():
    sink, rows = make_items()
    is_open = np.zeros(30, bool)
    is_open[[10, 15]] = True
    found = results.read_result_table(
        results.make_result_table(sink, rows, LAYERS), list(LAYERS), is_open
    )
    assert [item.row for item in found.computed] == [10]
    assert (found.features[0] == [[4, 5, 6, 7]]).all()
    assert [item.row for item in found.others] == [15]


def test_a_worker_that_cannot_go_on_gives_no_row():
    found = results.read_result_table(
        results.make_empty_table(LAYERS), list(LAYERS), np.ones(30, bool)
    )
    assert found == results.Results([], [], [])

"""What is kept beside a cache: never stale, never trusted, and done without where it must be."""

import ctypes
import json
import os
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.numpy import save_file

import featurize
from classify import compare
from classify.labels.table import LabelTable
from classify.solvers import gram_cache
from classify.store import MAX_FILE_BYTES, store_dir
from featurize.cache.reader import FeatureCache

N = 200
HEADS, CELLS = "softmax,ridge,knn", 9  # on each of two layers and on both


def clone(cache, folder) -> FeatureCache:
    """The same cache in another folder, with nothing kept beside it."""
    folder.mkdir(exist_ok=True)
    return FeatureCache(shutil.copy(cache.path, folder / "c.h5"))


def compared(cache, table, heads=HEADS):
    gram_cache._recent.clear()  # as in another process
    return compare(cache.path, table, heads, jobs=1)


def said(found):
    """All that a comparison says but how long it took."""
    records = [replace(record, seconds=0) for record in found.records]
    return records, [result.test.predicted.tolist() for result in found.results]


def kept(cache, kind="*") -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in store_dir(cache).glob(f"{kind}-*.safetensors")}


# --- never stale ---------------------------------------------------------------------------


def draw(path, cells) -> None:
    Image.fromarray(np.uint8(255 * cells.reshape(8, 8))).save(path)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, digits):
    """A folder of 200 real digits, and its cache."""
    home = tmp_path_factory.mktemp("embedded")
    (home / "images").mkdir()
    for i in range(N):
        draw(home / "images" / f"{i:04}.png", digits[0][i])
    return home


@pytest.fixture
def home(embedded, tmp_path):
    shutil.copytree(embedded, tmp_path, dirs_exist_ok=True)
    return tmp_path


def embed(home, computed) -> FeatureCache:
    done = featurize.run(
        home / "images", home / "c.h5", backbone="seedling", layers="stage2,stage3"
    )
    assert done.computed == computed
    return FeatureCache(home / "c.h5")


def odd_or_even(cache, digits, flipped=()) -> LabelTable:
    """The parity of each digit of a cache; its paths are numbers."""
    labels = [
        ("even", "odd")[(digits[1][int(path[:4])] + (path in flipped)) % 2] for path in cache.paths
    ]
    return LabelTable("parity", "parity.csv", list(cache.paths), labels)


@pytest.mark.long
def test_a_changed_image_renews_everything_and_changed_back_finds_it_again(home, digits):
    cache = embed(home, N)
    table = odd_or_even(cache, digits)
    first = compared(cache, table)
    before = kept(cache)
    image = home / "images" / "0003.png"
    ImageOps.invert(Image.open(image)).save(image)
    cache = embed(home, 1)
    again = compared(cache, table)
    assert again.n_reused == 0
    assert said(again) == said(compared(clone(cache, home / "fresh"), table))
    assert len(kept(cache)) == 2 * len(before)
    assert {name: kept(cache)[name] for name in before} == before
    draw(image, digits[0][3])
    back = compared(embed(home, 1), table)
    assert back.n_reused == CELLS
    assert back.records == first.records


@pytest.mark.slow
def test_a_grown_cache_is_another(home, digits):
    cache = embed(home, N)
    old = odd_or_even(cache, digits)
    first = compared(cache, old)
    for i in range(N, N + 40):
        draw(home / "images" / f"{i:04}.png", digits[0][i])
    draw(home / "images" / "0000 again.png", digits[0][0] * 0.9)  # all rows after it move on
    cache = embed(home, 41)
    grown = odd_or_even(cache, digits)
    found = compared(cache, grown)
    assert found.n_reused == 0
    assert {record.n_train + record.n_test for record in found.records} == {N + 41}
    assert said(found) == said(compared(clone(cache, home / "fresh"), grown))
    # The labels of before over the cache of now: other rows of it, the same images.
    found = compared(cache, old)
    assert {r.head: r.accuracy for r in found.records} == {
        r.head: r.accuracy for r in first.records
    }
    assert [r.test.rows.tolist() for r in found.results] != [
        r.test.rows.tolist() for r in first.results
    ]
    assert said(found) == said(compared(clone(cache, home / "fresher"), old))


@pytest.mark.long
def test_a_changed_label_renews_results_and_leaves_the_statistics(cache, digits, tmp_path):
    mine = clone(cache, tmp_path)
    compared(mine, odd_or_even(mine, digits))
    before = kept(mine)
    other = odd_or_even(mine, digits, flipped=["0005.png"])
    found = compared(mine, other, "ridge")
    assert found.n_reused == 0
    assert said(found) == said(compared(clone(cache, tmp_path / "fresh"), other, "ridge"))
    assert {name: kept(mine)[name] for name in before} == before
    assert len(kept(mine)) > len(before)


# --- never trusted -------------------------------------------------------------------------


class Bomb:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def odd_type(path) -> None:
    """A safetensors file with a type of number that numpy does not know."""
    with safe_open(path, "np") as file:
        header = {"__metadata__": file.metadata()}
    header["a"] = {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0")


def folder(path) -> None:
    path.unlink()
    path.mkdir()


def loop(path) -> None:
    path.unlink()
    path.symlink_to(path)


def cut(path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "cut short": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("accuracy: 1.0\n" * 100),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Bomb(path.parents[1] / "mark"))),
    "a header of petabytes": lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "larger than memory": lambda path: os.truncate(
        path, MAX_FILE_BYTES + 1
    ),  # a hole, not a disk full
    "an unknown type": odd_type,
    "a folder": folder,
    "a link to itself": loop,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_count_as_not_there(cache, digits, tmp_path, damage):
    mine = clone(cache, tmp_path)
    table = odd_or_even(mine, digits)
    first = compared(mine, table, "ridge")
    names = set(kept(mine))
    assert {name.partition("-")[0] for name in names} == {"spectra", "copies", "result"}
    for name in names:
        damage(store_dir(mine) / name)
    again = compared(mine, table, "ridge")
    assert again.n_reused == 0
    assert said(again) == said(first)
    assert not (tmp_path / "mark").exists()
    assert not list(store_dir(mine).glob("*.tmp"))
    if damage is not folder:  # which is nothing to be replaced by a file
        assert compared(mine, table, "ridge").n_reused == 3


@pytest.mark.slow
def test_a_pipe_is_not_waited_for(cache, parity, tmp_path, run_cli):
    mine = clone(cache, tmp_path)
    options = ("compare", mine.path, "--labels", parity, "--heads", "ridge", "--json")
    first = run_cli(*options)
    for name in kept(mine):
        (store_dir(mine) / name).unlink()
        os.mkfifo(store_dir(mine) / name)
    again = run_cli(*options)
    assert again.returncode == 0
    assert (
        json.loads(again.stdout)["best"]["accuracy"] == json.loads(first.stdout)["best"]["accuracy"]
    )


def lie(path, change) -> None:
    """Rewrite a file, under its own key and as well formed as ever, with the right checksum."""
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    told = json.loads(metadata["about"])
    told = change(arrays, told) or told
    metadata["about"] = told if isinstance(told, str) else json.dumps(told)
    metadata["crc32"] = checksum(arrays, metadata["about"])
    save_file(arrays, path, metadata)


def checksum(arrays, about) -> str:
    parts = [about.encode()]
    for name in sorted(arrays):
        parts += [name.encode(), np.ascontiguousarray(arrays[name]).tobytes()]
    return f"{crc32(b''.join(parts)):08x}"


def put(name, value):
    """Another value in an array of the file, or another array."""

    def change(arrays, _):
        assert name in arrays
        if callable(value):
            arrays[name] = np.ascontiguousarray(value(arrays[name]))
        else:
            arrays[name][...] = value

    return change


def tell(**fields):
    """Something else in the record."""

    def change(_, told):
        told["record"] |= fields

    return change


LIES = {
    "spectra": [
        put("0.vectors", np.inf),
        put("0.scale", 0),
        put("0.values", lambda a: -a),
        put("0.values", lambda a: a[0]),
        put("0.count", lambda a: np.array([a, a])),
        put("0.mean", lambda a: a[:-1]),
        lambda arrays, _: arrays.pop("0.mean") is None or None,
    ],
    "result": [
        put("test.predicted", 7),
        put("test.predicted", -1),
        put("test.predicted", lambda a: 1 - a),  # which is not the accuracy that the record tells
        put("test.truth", lambda a: a[::-1]),
        put("test.rows", lambda a: a + 10_000),
        put("test.rows", lambda a: a.astype(np.float64)),
        put("test.confidence", lambda a: a[:-1]),
        put("validation.rows", lambda a: a[:1]),
        lambda arrays, _: [arrays.pop(k) for k in list(arrays) if k.startswith("test.")] and None,
        tell(accuracy="high"),
        tell(accuracy=1.0),
        tell(accuracy=None),
        tell(task="another"),
        tell(head="knn"),
        tell(classes=["a", "b"]),
        tell(classes=[[], {}]),
        tell(seconds=float("nan")),
        tell(scores=[]),
        tell(scores={"macro_f1": "<b>"}),
        tell(settings={"alpha": "large"}),
        tell(surplus=1),
        lambda _, told: {"notices": told["notices"]},
        lambda *_: "[" * 100_000,
        lambda *_: "[]",
        lambda *_: "null",
        lambda *_: "{",
    ],
}


@pytest.mark.long
@pytest.mark.parametrize("kind", LIES)
def test_what_cannot_be_is_not_believed(cache, digits, tmp_path, kind):
    mine = clone(cache, tmp_path)
    table = odd_or_even(mine, digits)
    first = compared(mine, table, "ridge")
    for change in LIES[kind]:
        names = kept(mine, kind)
        for name in names:
            lie(store_dir(mine) / name, change)
        if kind != "result":  # else it is found, and the statistics are not asked for
            for name in kept(mine, "result"):
                (store_dir(mine) / name).unlink()
        again = compared(mine, table, "ridge")
        assert again.n_reused == 0
        assert said(again) == said(first)


@pytest.mark.parametrize("kind", ["spectra", "result"])
def test_no_flipped_byte_is_taken(cache, digits, tmp_path, kind):
    mine = clone(cache, tmp_path)
    table = odd_or_even(mine, digits)
    first = compared(mine, table, "ridge")
    rng = np.random.default_rng(0)
    for bit in (1, 1, 1, 16, 16, 64):  # low bits of numbers leave them possible
        for name in kept(mine, kind):
            path = store_dir(mine) / name
            content = bytearray(path.read_bytes())
            start = 8 + int.from_bytes(content[:8], "little")
            content[int(rng.integers(start, len(content)))] ^= bit
            path.write_bytes(content)
        if kind == "spectra":  # else results are found, and these are not asked for
            for name in kept(mine, "result"):
                (store_dir(mine) / name).unlink()
        before = kept(mine, kind)
        again = compared(mine, table, "ridge")
        assert again.n_reused == 0
        assert said(again) == said(first)
        after = kept(mine, kind)
        assert all(after[name] != before[name] for name in before)  # each was written anew


def test_a_result_of_before_without_a_checksum_is_found(cache, digits, tmp_path):
    mine = clone(cache, tmp_path)
    table = odd_or_even(mine, digits)
    first = compared(mine, table, "ridge")
    for name in kept(mine, "result"):
        with safe_open(store_dir(mine) / name, "np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = {k: v for k, v in file.metadata().items() if k != "crc32"}
        save_file(arrays, store_dir(mine) / name, metadata)
    again = compared(mine, table, "ridge")
    assert again.n_reused == 3
    assert said(again) == said(first)


def test_results_under_each_others_names_are_not_taken_for_each_other(cache, digits, tmp_path):
    mine = clone(cache, tmp_path)
    table = odd_or_even(mine, digits)
    first = compared(mine, table, "ridge")
    one, two, three = (store_dir(mine) / name for name in sorted(kept(mine, "result")))
    one.rename(tmp_path / "aside")
    two.rename(one)
    three.rename(two)
    (tmp_path / "aside").rename(three)
    again = compared(mine, table, "ridge")
    assert again.n_reused == 0
    assert said(again) == said(first)


# --- done without --------------------------------------------------------------------------


def without_powers() -> None:
    """For a child process: root loses its right to write where modes deny it."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0):  # CAP_DAC_OVERRIDE, dropped
        os._exit(98)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes of folders mean nothing here")
def test_a_read_only_folder_is_read_and_left_alone(cache, parity, tmp_path, run_cli):
    mine = clone(cache, tmp_path / "closed")
    options = ("compare", mine.path, "--labels", parity, "--heads", "ridge,knn")
    mine.path.parent.chmod(0o555)
    try:
        done = run_cli(*options, preexec_fn=without_powers)
        assert done.returncode == 0, done.stderr
        assert "Best by validation, parity: " in done.stdout
        assert "had been trained before" not in done.stdout
        assert [path.name for path in mine.path.parent.iterdir()] == ["c.h5"]
    finally:
        mine.path.parent.chmod(0o755)
    assert run_cli(*options).returncode == 0
    names = kept(mine)
    store_dir(mine).chmod(0o555)
    try:
        done = run_cli(*options, "--heads", "ridge,knn,lda", preexec_fn=without_powers)
        assert done.returncode == 0, done.stderr
        assert "6 of them had been trained before" in done.stdout
        assert kept(mine) == names
    finally:
        store_dir(mine).chmod(0o755)


def test_where_no_folder_can_be_made_nothing_is_kept(cache, digits, tmp_path):
    mine = clone(cache, tmp_path)
    store_dir(mine).write_text("mine")
    table = odd_or_even(mine, digits)
    first = compared(mine, table, "ridge")
    assert (first.n_reused, compared(mine, table, "ridge").n_reused) == (0, 0)
    assert store_dir(mine).read_text() == "mine"

"""Caches with changed bytes: no crash, no hang, and no number taken that `verify` calls sound."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from .starting import Ended, Starter
from .world import NETWORK, classes

KINDS = ("structure", "attributes", "columns", "features", "anywhere")


class Caches:
    """A small sound cache, where its parts lie, and what it holds."""

    def __init__(self, start: Starter, home: Path) -> None:
        self.start, self.path = start, home / "c.h5"
        classes(home / "images", each=6)
        (home / "images" / "a" / "broken.png").write_bytes(b"no image")
        words = ("run", home / "images", "-o", self.path, *NETWORK, "--layers", "stage2,stage4")
        assert start("featurize", *words).code == 0
        self.data = self.path.read_bytes()
        self.arrays: dict[str, tuple[int, int]] = {}
        with h5py.File(self.path) as file:
            for group in ("images", "features"):
                for name, array in file[group].items():
                    begin = array.id.get_offset()
                    self.arrays[f"{group}/{name}"] = (begin, begin + array.nbytes)
            self.marked = file["images/status"][:] == 1
            self.rows = {name: file[f"features/{name}"][:] for name in file["features"]}
            names = file["images/path"].asstr()[:]
        self.row_of = {str(name): row for row, name in enumerate(names)}
        inside = np.zeros(len(self.data), bool)
        for begin, end in self.arrays.values():
            inside[begin:end] = True
        used = np.frombuffer(self.data, np.uint8) != 0
        self.structure = np.flatnonzero(~inside & used)

    def place(self, kind: str, rng: np.random.Generator) -> int:
        """Where a change falls."""
        if kind == "structure":
            return int(rng.choice(self.structure))
        if kind == "attributes":  # of text: names, fingerprints, recipes
            text = [k for k in self.structure.tolist() if 32 < self.data[k] < 127]
            return int(rng.choice(text))
        if kind == "anywhere":
            return int(rng.integers(len(self.data)))
        wanted = "images/" if kind == "columns" else "features/"
        names = sorted(name for name in self.arrays if name.startswith(wanted))
        begin, end = self.arrays[names[rng.integers(len(names))]]
        return int(rng.integers(begin, end))

    def change(self, kind: str, rng: np.random.Generator) -> tuple[bytes, int]:
        """The file with a byte, or a few, changed; and where the first is."""
        data, at = bytearray(self.data), self.place(kind, rng)
        how = rng.integers(4) if kind == "structure" else 0
        if how == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            data[at] = int(rng.integers(256))
        elif how == 2:
            data[at : at + 8] = bytes([0xFF]) * len(data[at : at + 8])
        else:
            data[at : at + 4] = rng.bytes(len(data[at : at + 4]))
        return bytes(data), at

    def in_marked_row(self, at: int) -> bool:
        """Whether a byte belongs to features that mean something."""
        for name, rows in self.rows.items():
            begin, end = self.arrays[f"features/{name}"]
            if begin <= at < end:
                return bool(self.marked[(at - begin) // rows[0].nbytes])
        return False

    def check_export(self, path: Path, kind: str) -> None:
        """Every row that was exported is one of the sound cache's, under the same path."""
        with np.load(path) as found:
            for name in set(found.files) & set(self.rows):
                for image, row in zip(found["path"].tolist(), found[name], strict=True):
                    if kind in ("features", "attributes", "structure"):
                        assert image in self.row_of, f"{image!r} is no image"
                    if image in self.row_of:
                        right = self.rows[name][self.row_of[image]]
                        assert np.array_equal(row, right), f"{name} of {image}: other numbers"


@pytest.fixture(scope="module")
def caches(start: Starter, tmp_path_factory):
    return Caches(start, tmp_path_factory.mktemp("caches"))


def ends_well(done: Ended) -> None:
    assert done.code in (0, 2), done.said
    assert "Traceback" not in done.err, done.said
    assert "unexpected" not in done.err, done.said


def attack(caches: Caches, seed: int, number: int, folder: Path) -> None:
    """One change, four commands on it."""
    rng = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    data, at = caches.change(kind, rng)
    print(f"cache {number}: {kind}, byte {at}")
    path = folder / "c.h5"
    path.write_bytes(data)
    start = caches.start
    ends_well(start("featurize", "info", path, hang=40))
    verified = start("featurize", "verify", path, hang=40)
    ends_well(verified)
    if data != caches.data and caches.in_marked_row(at):
        assert verified.code == 2, f"a changed feature was not found: {verified.said}"
    exported = start("featurize", "export", path, "-o", folder / "x.npz", hang=40)
    ends_well(exported)
    if exported.code == 0 and verified.code == 0:
        caches.check_export(folder / "x.npz", kind)
    ends_well(start("classify", "fit", path, "-o", folder / "h", "--head", "ncm", hang=60))
    assert path.read_bytes() == data
    shutil.rmtree(folder)


@pytest.mark.parametrize("number", range(5))
def test_mutated(caches, seed, number, tmp_path):
    attack(caches, seed, number, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1000, 1650))
def test_many_mutated(caches, seed, number, tmp_path):
    attack(caches, seed, number, tmp_path)

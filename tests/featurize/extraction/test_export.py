"""Exports: whole or not at all, over exports only, through no link."""

import os

import numpy as np
import pytest

from featurize import FeatureCache, export
from featurize.errors import CallError, OutputError

SUFFIXES = [".npz", ".parquet"]


def read(path):
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_in_it(cache, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    assert export(cache, target) == 3
    found, there = read(target), FeatureCache(cache)
    assert found["path"].tolist() == there.paths[:3]
    for name in there.layers:
        assert np.array_equal(found[name], there.features(name, [0, 1, 2]))
    assert export(cache, target, ["layer4"]) == 3  # an export may be replaced
    assert set(read(target)) == {"path", "layer4"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([target.name, cache.name])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_an_export_is_left_alone(cache, tmp_path, suffix):
    target = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        np.savez(target, weights=np.ones(3))
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"path": ["a"], "label": ["b"]}), target)
    before = target.read_bytes()
    with pytest.raises(OutputError, match="exists and is not an exported"):
        export(cache, target)
    target.with_suffix(f".x{suffix}").write_text("a document")
    with pytest.raises(OutputError):
        export(cache, target.with_suffix(f".x{suffix}"))
    assert target.read_bytes() == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_link_of_a_temporary_name_is_followed(cache, tmp_path, suffix):
    """Whoever may write into the folder cannot have another file overwritten or removed."""
    letter = tmp_path / "letter.txt"
    letter.write_text("mine")
    target = tmp_path / f"out{suffix}"
    traps = [tmp_path / f"out{suffix}{end}" for end in (".tmp", f".{os.getpid()}.tmp")]
    for trap in traps:
        trap.symlink_to(letter)
    export(cache, target)
    assert letter.read_text() == "mine"
    assert all(trap.is_symlink() for trap in traps)


def test_after_an_error_nothing_is_left(cache, tmp_path, monkeypatch):
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(FeatureCache, "stored", lambda *_: 1 / 0)
    for suffix in SUFFIXES:
        with pytest.raises(ZeroDivisionError):
            export(cache, tmp_path / f"out{suffix}")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(CallError, match=r"has to end in \.npz or \.parquet"):
        export(cache, tmp_path / "out.csv")

"""Several caches read as one: the images that all have, and the layers of each."""

import pickle
import shutil

import numpy as np
import pytest

from classify.data.features import FeatureRows
from classify.data.sets.cache_set import (
    CacheSet,
    find_deepest_layer,
    label_joined_layers,
    list_files,
    open_caches,
)
from classify.errors import CallError
from featurize.errors import UnknownLayerError, UnknownPathError

PATHS = [f"{letter}.png" for letter in "abcdefgh"]


@pytest.fixture
def pair(tmp_path, make_cache):
    """Caches ``wide`` and ``deep``; only c, d, f and g are finished in both, g has other bytes."""
    rng = np.random.default_rng(0)
    wide = make_cache(
        tmp_path / "wide.h5",
        {"one": rng.random((7, 3), np.float32), "two": rng.random((7, 5), np.float32)},
        PATHS[:7],
        failed=(0,),
    )
    deep = make_cache(
        tmp_path / "deep.h5",
        {"two": rng.random((7, 2)).astype(np.float16)},
        PATHS[1:],
        pending=(0, 3),
        contents=[path.replace("g.png", "changed") for path in PATHS[1:]],
    )
    return wide, deep


def test_rows_are_the_images_that_all_caches_have(pair):
    both = CacheSet(pair)
    assert both.paths == ["c.png", "d.png", "f.png"]
    assert both.unfinished == {"a.png", "b.png", "e.png", "h.png"}
    assert both.changed == {"g.png"}
    assert both.counts == {"ok": 3, "failed": 0, "pending": 0}
    for cache, rows in zip(pair, both.rows_in.values(), strict=True):
        assert [cache.paths[row] for row in rows] == both.paths
    assert (both.column("sha256") == pair[0].column("sha256")[[2, 3, 5]]).all()
    with pytest.raises(UnknownPathError, match=r"h\.png"):
        both.rows_for(["h.png"])


def test_features_of_an_image_lie_side_by_side(pair):
    wide, deep = pair
    both = CacheSet([deep, wide])
    joined = FeatureRows.from_cache(both, ("wide:one", "deep:two"), np.array([2, 0])).to_array()
    for row, path in zip(joined, ("f.png", "c.png"), strict=True):
        parts = [
            wide.features("one", [wide.row_of[path]]),
            deep.features("two", [deep.row_of[path]]),
        ]
        assert (row == np.concatenate([part[0] for part in parts])).all()


def test_layers_bear_the_names_of_their_caches(pair):
    both = CacheSet(pair)
    assert list(both.layers) == ["wide:one", "wide:two", "deep:two"]
    assert [info.name for info in both.layers.values()] == list(both.layers)
    assert both.layer().name == "wide:two"
    assert both.layer("deep:two").fingerprint == pair[1].layer("two").fingerprint
    with pytest.raises(UnknownLayerError, match=r"no layer 'two'.*wide:one, wide:two, deep:two"):
        both.layer("two")


def test_what_is_said_of_a_place_fits_one_cache_and_several(pair):
    wide, deep = pair
    both = CacheSet(pair)
    assert find_deepest_layer(both, "wide:one+wide:two") == "wide:two"
    assert find_deepest_layer(both, "deep:two") == "deep:two"
    assert find_deepest_layer(wide, "one") == "two"
    assert label_joined_layers(wide) == {"one+two": "all 2 joined"}
    assert label_joined_layers(deep) == list_files(deep) == {}
    assert label_joined_layers(both) == {
        "wide:one+wide:two": "all 2 joined",
        "wide:two+deep:two": "last of each",
    }
    assert list_files(both) == {"wide": str(wide.path), "deep": str(deep.path)}


def test_a_copy_in_another_process_reads_the_same(pair):
    both = CacheSet(pair)
    rows = np.arange(both.n_rows)
    there = pickle.loads(pickle.dumps(both))  # noqa: S301
    assert there.paths == both.paths
    assert (there.stored("deep:two", rows) == both.stored("deep:two", rows)).all()


def test_short_names_are_unique(tmp_path, pair):
    wide, _ = pair
    for name in ("x/c.h5", "y/c.h5", "y/a+b,c: d.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(wide.path, tmp_path / name)
    paths = [tmp_path / name for name in ("x/c.h5", "y/c.h5", "y/a+b,c: d.h5")]
    assert list(CacheSet(paths).caches) == ["x/c", "y/c", "a_b_c__d"]
    shutil.copy(wide.path, tmp_path / "x" / "c.hdf5")
    assert len(CacheSet([tmp_path / "x" / "c.h5", tmp_path / "x" / "c.hdf5"]).caches) == 2


def test_what_makes_no_set_is_refused(tmp_path, pair, make_cache):
    wide, _ = pair
    with pytest.raises(CallError, match="given twice"):
        CacheSet([wide.path, wide.path.parent / "." / "wide.h5"])
    other = make_cache(tmp_path / "other.h5", {"one": np.ones((2, 2), np.float32)}, ["x", "y"])
    with pytest.raises(CallError, match=r"no image is finished in each.*'a.png' and 'x'"):
        CacheSet([wide, other])
    with pytest.raises(CallError, match="no feature cache"):
        open_caches([])
    assert open_caches([wide]) is wide

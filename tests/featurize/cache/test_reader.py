"""What a reader of a cache looks up: rows by path."""

import numpy as np
import pytest

from featurize import FeatureCache
from featurize.errors import FeaturizeError, UnknownPathError


@pytest.fixture
def cache(allocate, tmp_path):
    return FeatureCache(allocate(tmp_path / "c.h5"))


def test_rows_are_found_in_the_order_of_the_paths(cache):
    rows = cache.rows_for(["b/ö.png", "a/1.png", "b/ö.png"])
    assert rows.tolist() == [3, 0, 3]
    assert rows.dtype == np.intp
    assert cache.rows_for(cache.paths).tolist() == list(range(6))
    assert cache.rows_for([]).shape == (0,)
    assert cache.rows_for(np.array(["c/5.png"], object)).tolist() == [5]


@pytest.mark.parametrize(
    ("absent", "listed"),
    [(["x"], "'x'; its"), (list("xyz"), "'x', 'y', 'z'; its"), (list("xyzw"), "'z', ...; its")],
)
def test_paths_that_are_not_there_are_counted_and_three_of_them_named(cache, absent, listed):
    with pytest.raises(UnknownPathError) as caught:
        cache.rows_for(["a/1.png", *absent])
    message = str(caught.value)
    assert f"{len(absent)} of {len(absent) + 1} images are not in {cache.path}: 'x'" in message
    assert f"{listed} paths look like 'a/1.png', below /photos" in message
    assert isinstance(caught.value, FeaturizeError)
    assert isinstance(caught.value, KeyError)

"""A small cache and the same in parts."""

import numpy as np
import pytest

from featurize.cache.writer import CacheWriter
from tests.parts import cut_cache

NAMES = [f"{folder}/{k:02}.png" for folder in ("a", "b", "é", "中") for k in range(10)]
STARTS = [0, 7, 8, 30]


@pytest.fixture
def whole(allocate, fill, tmp_path):
    """A cache of 40 rows: two failed, one pending, the others marked."""
    path = allocate(tmp_path / "whole.h5", paths=NAMES)
    with CacheWriter(path) as into:
        fill(into, np.setdiff1d(np.arange(40), [7, 20, 33]))
        digests = np.array([[7] * 32, [0] * 32], np.uint8)
        into.record_failures(np.array([7, 33]), np.array([3, 7]), digests, np.zeros(2), np.zeros(2))
    return path


@pytest.fixture
def folder(whole, tmp_path):
    """The same rows in four parts, of 7, 1, 22 and 10."""
    return cut_cache(whole, tmp_path / "photos.parts", STARTS)

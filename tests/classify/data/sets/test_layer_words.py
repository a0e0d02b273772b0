"""The words of `--layers` over several caches."""

import numpy as np
import pytest

from classify.data.sets.cache_set import CacheSet
from classify.data.sets.layer_words import list_layer_sets
from classify.errors import CallError
from featurize.errors import UnknownLayerError


@pytest.fixture(scope="module")
def caches(tmp_path_factory, make_cache):
    """``A`` with low, mid and top; ``low`` (a cache's name too) with mid and end."""
    home = tmp_path_factory.mktemp("words")
    features = np.ones((3, 2), np.float32)
    make_cache(home / "A.h5", dict.fromkeys(("low", "mid", "top"), features))
    make_cache(home / "low.h5", dict.fromkeys(("mid", "end"), features))
    return CacheSet([home / "A.h5", home / "low.h5"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("each", "A:low A:mid A:top low:mid low:end"),
        ("joined", "A:low+A:mid+A:top low:mid+low:end"),
        ("joined,each", "A:low+A:mid+A:top low:mid+low:end A:low A:mid A:top low:mid low:end"),
        (
            "each,joined",
            "A:low A:mid A:top low:mid low:end A:low+A:mid+A:top low:mid+low:end A:top+low:end",
        ),
        ("last", "A:top low:end"),
        ("mid", "A:mid low:mid"),
        ("low", "A:low"),
        ("low+mid", "A:low+A:mid"),
        ("A:last+low:last", "A:top+low:end"),
        (["low:mid + A:low", "A:low"], "low:mid+A:low A:low"),
        ("mid:avg", "A:mid low:mid"),
        ("mid+last", "A:mid+A:top low:mid+low:end"),
        ("A:mid:avg", "A:mid"),
    ],
)
def test_words_name_layers(caches, words, expected):
    assert ["+".join(layers) for layers in list_layer_sets(caches, words)] == expected.split()


def test_a_pool_is_no_cache(tmp_path, pictured):
    """``stage3:none`` is a layer and its pool, in a cache or in all that have it."""
    (tmp_path / "second.h5").write_bytes(pictured.cache.read_bytes())
    both = CacheSet([pictured.cache, tmp_path / "second.h5"])
    assert list_layer_sets(both, "c:stage3:none") == [("c:stage3@none",)]
    assert list_layer_sets(both, "stage3:none") == [("c:stage3@none",), ("second:stage3@none",)]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("B:last", CallError, "'B:last': there is no cache 'B'; there are A, low"),
        ("A:last+mid", CallError, "names the cache of some layers only"),
        ("A:top+A:last", CallError, "named once each, not A:top, A:top"),
        ("nowhere", UnknownLayerError, "A.h5 has no layer 'nowhere'"),
        ("low:low", UnknownLayerError, "low.h5 has no layer 'low'"),
    ],
)
def test_other_words_are_refused(caches, words, error, message):
    with pytest.raises(error, match=message):
        list_layer_sets(caches, words)

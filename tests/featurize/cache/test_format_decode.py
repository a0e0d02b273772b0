"""The clause of docs/cache-format.md on libraries that decode, since 1.4."""

import copy
import json
from dataclasses import replace

import h5py
import pytest

import featurize
from featurize import FeatureCache
from featurize.errors import CacheFormatError
from featurize.fingerprint import canonical_json

NAMES = [f"{k}.png" for k in range(4)]


def make_cache(draw, toy, tmp_path, decode):
    path = tmp_path / f"{decode}.h5"
    folder = draw(tmp_path / "photos", NAMES)
    decoding = copy.copy(toy)
    decoding.preprocess = replace(toy.preprocess, decode=decode)
    featurize.run(folder, path, backbone=decoding, layers="0")
    return path


@pytest.mark.parametrize("decode", ["quick", "fastest"])
def test_c47_other_libraries_ask_for_a_reader_that_knows(draw, toy, tmp_path, monkeypatch, decode):
    path = make_cache(draw, toy, tmp_path, decode)
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == "1.4"
        assert json.loads(file.attrs["required_features"]) == ["preprocess.decode"]
    cache = FeatureCache(path)
    assert (cache.extractor.preprocess.decode, cache.verify()) == (decode, [])
    # A release that knows only 1.3 has no such feature.
    known = frozenset({"preprocess.fit"})
    monkeypatch.setattr("featurize.cache.violations.SUPPORTED_FEATURES", known)
    with pytest.raises(CacheFormatError, match=r"\(preprocess\.decode\); upgrade it"):
        FeatureCache(path)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_c47_what_was_there_before_has_the_version_it_had(draw, toy, tmp_path, decode):
    with h5py.File(make_cache(draw, toy, tmp_path, decode)) as file:
        assert file.attrs["format_version"] == "1.1"
        assert file.attrs["required_features"] == "[]"


@pytest.mark.parametrize(
    ("decode", "required", "message"),
    [
        ("quick", "[]", "names preprocess.decode where preprocess has it, and only there"),
        ("exact", '["preprocess.decode"]', "names preprocess.decode where preprocess has it"),
        ("slow", "[]", "--decode is one of"),
    ],
)
def test_c47_what_says_it_otherwise_is_refused(draw, toy, tmp_path, decode, required, message):
    path = make_cache(draw, toy, tmp_path, "exact")
    with h5py.File(path, "r+") as file:
        fields = json.loads(file["extractor"].attrs["preprocess"]) | {"decode": decode}
        file["extractor"].attrs["preprocess"] = canonical_json(fields)
        file.attrs["required_features"] = required
    with pytest.raises(CacheFormatError, match=message):
        FeatureCache(path)

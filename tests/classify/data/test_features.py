"""Features out of a cache, by row and by path."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from classify.data.features import FeatureRows, open_cache, resolve_layer_sets, resolve_layers
from classify.errors import CallError, UnknownPathError
from classify.training.cached_features import CachedFeatures
from featurize.errors import RowNotReadyError, UnknownLayerError


def test_joined_layers_stand_side_by_side(cache, digits):
    pixels, _ = digits
    rows = np.array([5, 0, 599])
    joined = FeatureRows.from_cache(cache, ["coarse", "fine"], rows).to_array()
    assert joined.dtype == np.float32
    assert joined.shape == (3, 80)
    assert (joined[:, 16:] == pixels[rows]).all()


def test_half_precision_becomes_single(make_cache, tmp_path, digits):
    half = make_cache(tmp_path / "half.h5", {"fine": digits[0].astype(np.float16)})
    assert FeatureRows.from_cache(half, ["fine"], np.arange(3)).to_array().dtype == np.float32


def test_layer_options(cache):
    assert resolve_layers(cache) == ("coarse",)
    assert resolve_layers(cache, "fine") == ("fine",)
    for both in ("fine,coarse", "fine+coarse", "joined", ["fine", "coarse"], ("fine", "coarse")):
        assert resolve_layers(cache, both) == ("fine", "coarse")
    with pytest.raises(UnknownLayerError, match="no layer 'deep'; it has fine, coarse"):
        resolve_layers(cache, "fine,deep")
    with pytest.raises(CallError, match="once each, not fine, fine"):
        resolve_layers(cache, "fine,fine")
    with pytest.raises(CallError, match="not none"):
        resolve_layers(cache, [])


def test_layer_sets(cache, make_cache, tmp_path, digits):
    each = [("fine",), ("coarse",)]
    assert resolve_layer_sets(cache, "each,joined") == [*each, ("fine", "coarse")]
    assert resolve_layer_sets(cache, "coarse") == [("coarse",)]
    assert resolve_layer_sets(cache, ["fine", "fine+coarse", "joined", "each"]) == [
        ("fine",),
        ("fine", "coarse"),
        ("coarse",),
    ]
    single = make_cache(tmp_path / "one.h5", {"only": digits[0]})
    assert resolve_layer_sets(single, "each,joined") == [("only",)]


def test_an_unchanged_cache_is_looked_at_once_and_a_changed_one_again(cache, tmp_path):
    assert open_cache(str(cache.path)) is open_cache(cache.path)
    assert open_cache(cache) is cache
    copy = tmp_path / "copy.h5"
    copy.write_bytes(cache.path.read_bytes())
    before = open_cache(copy)
    os.utime(copy, ns=(1, 1))
    assert open_cache(copy) is not before
    with pytest.raises(FileNotFoundError, match=r"none\.h5 does not exist; make it with"):
        open_cache(tmp_path / "none.h5")


def test_paths_become_rows_in_their_order(cache, digits):
    pixels, _ = digits
    paths = np.array(["0007.png", "0001.png", "0007.png"])
    for shape in ((3,), (3, 1)):
        found = CachedFeatures(cache.path, "fine").fit_transform(paths.reshape(shape))
        assert (found == pixels[[7, 1, 7]]).all()
    assert CachedFeatures(cache).transform(list(paths)).shape == (3, 16)


@pytest.mark.parametrize(
    ("root", "given"),
    [
        ("s3://bucket/photos", ["s3://bucket/photos/a/1.png", "b/../a/1.png", "./a/1.png"]),
        ("/data/photos.zip", ["/data/photos.zip/a/1.png", "/data/b/../photos.zip/a/1.png"]),
    ],
)
def test_paths_below_a_url_or_a_file_become_keys(make_cache, tmp_path, root, given):
    features = np.eye(2, dtype=np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": features}, ["a/1.png", "b.png"], root=root)
    assert (CachedFeatures(cache).transform(given) == features[0]).all()
    for absent in ("s3://bucket/other/a/1.png", "/elsewhere/a/1.png"):
        with pytest.raises(UnknownPathError, match=re.escape(absent)):
            CachedFeatures(cache).transform([absent])


def test_unknown_paths_layers_and_shapes_are_refused(cache):
    features = CachedFeatures(cache.path)
    with pytest.raises(
        UnknownPathError, match=r"1 of 2 images are not in .*'x\.png'; its paths look"
    ):
        features.transform(["0001.png", "x.png"])
    with pytest.raises(CallError, match=r"shape \(n,\), not \(1, 2\)"):
        features.transform([["0001.png", "0002.png"]])
    with pytest.raises(UnknownLayerError):
        CachedFeatures(cache.path, "deep").fit()


def test_rows_without_features_are_refused(make_cache, tmp_path):
    cache = make_cache(tmp_path / "c.h5", {"l": np.eye(3, dtype=np.float32)}, failed=(1,))
    with pytest.raises(RowNotReadyError):
        CachedFeatures(cache).transform(["0001.png"])


def test_it_is_a_scikit_learn_transformer(cache, digits):
    _, y = digits
    X = np.array(cache.paths)
    features = CachedFeatures(str(cache.path), layer=["fine", "coarse"])
    assert clone(features).get_params() == features.get_params()
    assert get_tags(features).input_tags.string
    assert not get_tags(features).requires_fit
    pipeline = make_pipeline(features, LogisticRegression(max_iter=1000))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.8


def test_a_layer_is_a_hyper_parameter(cache, digits):
    _, y = digits
    pipeline = make_pipeline(CachedFeatures(str(cache.path)), LogisticRegression(max_iter=1000))
    search = GridSearchCV(pipeline, {"cachedfeatures__layer": ["coarse", "fine"]}, cv=3)
    search.fit(np.array(cache.paths), y)
    assert search.best_params_ == {"cachedfeatures__layer": "fine"}


@pytest.mark.parametrize(
    "write",
    ["/images/{}", "./{}", "a/../{}", "/images/./a/../{}", "//images/{}", Path],
    ids=str,
)
def test_a_path_may_be_written_in_other_ways(cache, digits, write):
    written = [write(p) if write is Path else write.format(p) for p in ("0007.png", "0001.png")]
    found = CachedFeatures(cache, "fine").transform(np.array(written, object))
    assert (found == digits[0][[7, 1]]).all()


@pytest.mark.parametrize("path", ["/elsewhere/0001.png", "/0001.png", "../0001.png", "", 7, None])
def test_paths_of_other_folders_are_refused(cache, path):
    with pytest.raises(
        UnknownPathError, match=r"below /images\. Give paths of that folder; `featurize"
    ):
        CachedFeatures(cache).transform(np.array([path], object))


def test_columns_have_names(cache):
    found = CachedFeatures(cache, "fine,coarse").get_feature_names_out()
    assert found.dtype == object
    assert list(found[:2]) == ["fine_0", "fine_1"]
    assert list(found[63:66]) == ["fine_63", "coarse_0", "coarse_1"]
    assert len(found) == 80
    pipeline = make_pipeline(CachedFeatures(cache), SelectKBest(k=2))
    pipeline.fit(cache.paths, np.arange(600) % 3)
    assert all(name.startswith("coarse_") for name in pipeline.get_feature_names_out())
    assert pipeline.n_features_in_ == 1


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_come_out(cache, library):
    pytest.importorskip(library, reason=f"{library} is not installed, and no dependency")
    features = CachedFeatures(cache, "coarse").set_output(transform=library)
    found = features.fit_transform(cache.paths[:3])
    assert list(found.columns) == [f"coarse_{i}" for i in range(16)]
    assert found.shape == (3, 16)

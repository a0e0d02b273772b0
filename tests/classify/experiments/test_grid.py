"""Several caches in one comparison: the figures of each alone, and layers joined across them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from classify import compare, fit
from classify.errors import CallError, UnknownPathError
from classify.evaluation.paired import compare_paired
from classify.heads.record import CACHE_FIELDS
from classify.store import store_dir
from featurize.cache.reader import FeatureCache

N = 240


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits, make_cache, make_table):
    """Digits as pixels in ``pixels.h5``, as means of rows and columns in ``means.h5``."""
    home = tmp_path_factory.mktemp("home")
    pixels, y = digits[0][:N], digits[1][:N]
    grid = pixels.reshape(N, 8, 8)
    coarse = grid.reshape(N, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(N, 16)
    make_cache(home / "pixels.h5", {"fine": pixels, "coarse": coarse})
    means = {"rows": grid.mean(axis=2), "columns": grid.mean(axis=1)}
    make_cache(home / "means.h5", means)
    paths = [f"{i:04}.png" for i in range(N)]
    make_table(home / "digit.csv", "path,label", list(zip(paths, y, strict=True)))
    return home


@pytest.fixture(scope="module")
def found(home):
    for path in home.glob("*.kept"):
        shutil.rmtree(path)
    files = [home / "pixels.h5", home / "means.h5"]
    return compare(files, home / "digit.csv", "lda,ncm", jobs=1)


def alone(record):
    """What a record says where no other cache is compared."""
    fresh = dict.fromkeys(CACHE_FIELDS)
    return replace(record, **fresh, seconds=0, distinguishable=None, worse=None)


@pytest.mark.long
def test_each_cache_has_the_figures_that_it_has_alone(found, home, tmp_path):
    for name in ("pixels", "means"):
        shutil.copy(home / f"{name}.h5", tmp_path)  # without what is kept
        single = compare(tmp_path / f"{name}.h5", home / "digit.csv", "lda,ncm", jobs=1)
        assert single.n_reused == 0
        expected = [alone(record) for record in single.records]
        assert [alone(r) for r in found.records if r.cache == name] == expected
        assert not {*CACHE_FIELDS, "caches"} & (
            single.to_dict().keys() | single.best.to_dict().keys()
        )


def test_results_of_one_cache_are_shared_with_its_own_comparisons(found, home):
    single = compare(home / "means.h5", home / "digit.csv", "lda,ncm", jobs=1)
    assert single.n_reused == len(single.records) == 6
    assert all(record.cache is None for record in single.records)
    again = compare([home / "pixels.h5", home / "means.h5"], home / "digit.csv", "lda,ncm", jobs=1)
    assert again.n_reused == len(again.records) == 14
    assert again.to_dict() == found.to_dict()


def test_records_say_cache_and_cost(found, home):
    last = [record for record in found.records if record.cache == "pixels+means"]
    assert [record.layer for record in last] == ["pixels:coarse+means:columns"] * 2
    assert (last[0].columns, last[0].row_bytes) == (24, 96)
    (rows,) = [r for r in found.records if (r.head, r.layer) == ("ncm", "rows")]
    assert rows.to_dict().items() >= {"cache": "means", "columns": 8, "row_bytes": 32}.items()
    assert found.to_dict()["caches"] == {
        name: str(home / f"{name}.h5") for name in ("pixels", "means")
    }
    assert sum(record.distinguishable is None for record in found.records) == 1


def test_differences_are_paired_across_caches(found):
    task = found.tasks[0]
    (best,) = [result for result in found.results if result.record is found.best]
    for result in found.results:
        assert (result.test.rows == best.test.rows).all()
        assert (result.test.truth == best.test.truth).all()
        if result is not best:
            unit = task.units_for(best.test.rows)
            expected = compare_paired(best.test, result.test, unit).distinguishable
            assert result.record.distinguishable == expected
    assert {result.record.cache for result in found.results if result.record.worse} >= {"means"}


def test_layers_across_caches_equal_one_cache_that_has_both(home, tmp_path, make_cache):
    """Each layer is prepared by itself, so where it lies makes no difference."""
    caches = [home / "pixels.h5", home / "means.h5"]
    layers = "pixels:fine+means:rows"
    for prepare in ("root-l2", "standardise"):
        across = compare(caches, home / "digit.csv", "lda", layers, prepare=prepare, jobs=1)
        features = {"fine": FeatureCache(caches[0]).features("fine")}
        features["rows"] = FeatureCache(caches[1]).features("rows")
        # The deepest layer tells near-copies: the same in both.
        features["coarse"] = FeatureCache(caches[0]).features("coarse")
        shutil.rmtree(tmp_path / "one.h5.kept", ignore_errors=True)
        one = make_cache(tmp_path / "one.h5", features)
        whole = compare(one, home / "digit.csv", "lda", "fine+rows", prepare=prepare, jobs=1)
        assert replace(alone(across.best), layer="") == replace(alone(whole.best), layer="")


def test_a_result_across_caches_is_kept_by_the_fingerprints_of_all_layers(
    home, tmp_path, make_cache
):
    """Another network in a file of the same name must not be given the old result."""
    names = ("pixels.h5", "means.h5")
    for name in names:
        shutil.copy(home / name, tmp_path)
    caches = [tmp_path / name for name in names]
    options = (home / "digit.csv", "lda", "pixels:coarse+means:columns")
    first = compare(caches, *options, jobs=1)
    assert len(list(store_dir_of(caches[0]).glob("result-*"))) == 1
    assert not list(store_dir_of(caches[1]).glob("result-*"))
    assert compare(caches, *options, jobs=1).n_reused == 1
    rng = np.random.default_rng(0)
    caches[1].unlink()
    noise = {name: rng.random((N, 8), np.float32) for name in ("rows", "columns")}
    make_cache(caches[1], noise, backbone="another")
    second = compare(caches, *options, jobs=1)
    assert second.n_reused == 0
    assert second.best.scores["log_loss"] != first.best.scores["log_loss"]


def store_dir_of(path):
    return store_dir(FeatureCache(path))


def test_images_that_a_cache_lacks_are_left_out(home, tmp_path, digits, make_cache):
    """The second cache has other rows; the figures are those of each alone on the same images."""
    kept = np.setdiff1d(np.arange(N), [0, 1, 50])
    grid = digits[0][:N].reshape(N, 8, 8)[kept]
    paths = [f"{i:04}.png" for i in kept]
    contents = [path if path != "0100.png" else "edited" for path in paths]
    fewer = make_cache(
        tmp_path / "fewer.h5", {"rows": grid.mean(axis=2)}, paths, failed=(5,), contents=contents
    )
    files = [home / "pixels.h5", fewer.path]
    joint = compare(files, home / "digit.csv", "ncm", "coarse,rows", jobs=1)
    lost = {"0000.png", "0001.png", "0050.png", paths[5], "0100.png"}
    assert joint.best.n_train + joint.best.n_test == N - len(lost)
    (notice,) = joint.notices
    assert "4 images are left out, not being finished in every cache" in notice
    assert (
        "1 images are left out, as their bytes differ from one cache to another ('0100.png')"
        in (notice)
    )
    lines = (home / "digit.csv").read_text().splitlines()
    table = tmp_path / "digit.csv"
    table.write_text("\n".join(line for line in lines if line.split(",")[0] not in lost))
    for record, path in zip(joint.records, files, strict=True):
        single = compare(path, table, "ncm", record.layer, jobs=1)
        assert alone(single.best) == alone(record)
    table.write_text("path,label\n" + "\n".join(f"{i:04}.png,{i % 2}" for i in (8, 9, 10, 999)))
    with pytest.raises(UnknownPathError, match=r"0999\.png"):
        compare(files, table, "ncm", jobs=1)


def test_draws_go_over_several_caches(home):
    files = [home / "pixels.h5", home / "means.h5"]
    options = (home / "digit.csv", "ncm")
    joint = compare(files, *options, "last,pixels:last+means:last", folds=3, jobs=1)
    single = compare(files[1], *options, "columns", folds=3, jobs=1)
    caches = [row.cache for row in joint.rows]
    assert caches == ["pixels", "means", "pixels+means"]
    assert joint.rows[1].accuracy == single.rows[0].accuracy
    assert joint.rows[1].runs == single.rows[0].runs
    assert joint.to_dict()["rows"][2].items() >= {"columns": 24, "row_bytes": 96}.items()
    assert not {*CACHE_FIELDS} & single.to_dict()["rows"][0].keys()


@pytest.mark.long
def test_workers_read_several_caches(home, tmp_path, monkeypatch):
    """In other processes, from another folder, by relative paths."""
    for name in ("pixels.h5", "means.h5"):
        shutil.copy(home / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    found = compare(["pixels.h5", "means.h5"], home / "digit.csv", "ncm", jobs=2)
    assert found.n_reused == 0
    assert len(found.records) == 7


def test_fit_takes_one_cache(home):
    with pytest.raises(CallError, match="fit takes one cache"):
        fit([home / "pixels.h5", home / "means.h5"], home / "digit.csv")

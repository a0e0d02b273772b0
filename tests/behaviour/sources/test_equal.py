"""The same images give the same features, from wherever they come, and are never computed twice."""

import json
import subprocess
import sys

import pytest

import featurize

from .conftest import COUNT, LOCAL_KINDS, PLAIN_KINDS, SEEDLING
from .making import (
    Server,
    assert_same_features,
    draw_images,
    hash_all,
    read_features,
    read_keys,
    write_csv,
    write_folder,
    write_shards,
)

IMPORTED = ("torch", "torchvision", "pyarrow", "fsspec", "aiohttp", "ray", "pandas")

# A second run of one process for all kinds; torch ends it.
AGAIN = """
import json, sys
import featurize
found = {}
for kind, source, cache in json.loads(sys.argv[1]):
    done = featurize.run(source, cache)
    loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    found[kind] = [done.rows, done.computed, done.reused, done.failed, loaded]
print(json.dumps(found))
"""


@pytest.mark.long
def test_all_images_are_there(made, images, truth):
    assert truth.keys() == hash_all(images)
    assert len(truth) == COUNT
    assert len({features.tobytes() for features in truth.values()}) == COUNT


@pytest.mark.parametrize("kind", LOCAL_KINDS[1:])
def test_features_are_those_of_the_folder(made, truth, kind):
    assert_same_features(read_features(made[kind]), truth)


def test_a_second_run_computes_nothing_and_loads_no_network(made, kinds, poison):
    order = sorted(LOCAL_KINDS, key=lambda kind: kind not in PLAIN_KINDS)
    jobs = [(kind, str(kinds[kind]), str(made[kind])) for kind in order]
    before = {kind: made[kind].read_bytes() for kind in order}
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, json.dumps(jobs), json.dumps(IMPORTED)],
        **{"env": poison("torch", "torchvision"), "capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kind in order:
        *counts, loaded = found[kind]
        assert counts == [COUNT, 0, COUNT, 0], kind
        assert loaded == ([] if kind in PLAIN_KINDS else ["pyarrow"]), kind
        assert made[kind].read_bytes() == before[kind], kind


@pytest.mark.long
def test_a_finished_run_of_this_machine_and_help_import_no_store_and_no_table(
    command, run, made, kinds, poison
):
    environment = poison("torch", "torchvision", "pyarrow", "fsspec", "ray", "aiohttp", "s3fs")
    for kind in ("folder", "shards"):
        assert run(kinds[kind], made[kind], env=environment).computed == 0
    done = command("featurize", "run", "--help", env=environment)
    assert (done.returncode, "POISON" in done.stderr) == (0, False), done.stderr
    # The poison works.
    line = ("run", kinds["parquet"], "-o", made["parquet"])
    done = command("featurize", *line, env=environment)
    assert (done.returncode, "POISON pyarrow" in done.stderr) == (99, True)


@pytest.mark.long
def test_files_in_a_store_and_behind_a_server(images, truth, tmp_path):
    """In one process: the store of memory is this process's own."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    store = fsspec.filesystem("memory")
    store.store.clear()
    for name, data in images.items():
        store.pipe(f"/acceptance/photos/{name}", data)
    shards = write_shards(tmp_path / "shards", images, 10)
    for shard in sorted(shards.iterdir()):
        store.pipe(f"/acceptance/shards/{shard.name}", shard.read_bytes())
    with Server(images) as server:
        urls = write_csv(
            tmp_path / "urls.csv", [f"{server.url}/{n}" for n in images], ("url", "label")
        )
        sources = ["memory://acceptance/photos", "memory://acceptance/shards", urls]
        for number, source in enumerate(sources):
            cache = tmp_path / f"{number}.h5"
            line = {"backbone": "seedling", "engine": "eager", "device": "cpu"}
            first = featurize.run(source, cache, **line)
            assert (first.rows, first.computed, first.failed) == (COUNT, COUNT, 0)
            assert_same_features(read_features(cache), truth)
            n_requests = len(server.paths)
            again = featurize.run(source, cache)
            assert (again.computed, again.reused, len(server.paths)) == (0, COUNT, n_requests)
        assert sorted(server.paths) == sorted(f"/{name}" for name in images)
    store.store.clear()


@pytest.mark.long
def test_a_second_run_of_a_list_of_urls_imports_no_network(run, images, tmp_path, poison):
    pytest.importorskip("aiohttp")
    with Server(images) as server:
        urls = write_csv(
            tmp_path / "urls.csv", [f"{server.url}/{n}" for n in images], ("url", "label")
        )
        first = run(urls, tmp_path / "c.h5")
        assert (first.computed, first.failed) == (COUNT, 0)
    # The server is gone, and nobody misses it.
    again = run(urls, tmp_path / "c.h5", env=poison("torch", "torchvision", "aiohttp"))
    assert (again.computed, again.reused) == (0, COUNT)


@pytest.mark.long
def test_three_hundred_images_from_a_folder_to_shards(run, tmp_path):
    images, cache = draw_images(300, seed=1, side=16), tmp_path / "c.h5"
    folder = write_folder(tmp_path / "photos", images)
    first = run(folder, cache, *SEEDLING, "--layers", "stem:max")
    assert (first.rows, first.computed) == (300, 300)
    before = read_features(cache)
    moved = run(write_shards(tmp_path / "shards", images, 100), cache)
    assert (moved.rows, moved.computed, moved.reused, moved.failed) == (300, 0, 300, 0)
    assert read_keys(cache)[0].startswith("shard-000000.tar/")
    assert_same_features(read_features(cache), before)


@pytest.mark.long
def test_as_many_images_from_kind_to_kind(run, kinds, images, truth, tmp_path):
    """One cache follows its images through all kinds, and computes none again."""
    cache = tmp_path / "c.h5"
    assert run(kinds["zip"], cache).computed == COUNT
    for kind in ("parquet", "csv", "saved", "tar", "jsonl", "shards", "folder"):
        done = run(kinds[kind], cache)
        assert (done.rows, done.computed, done.reused) == (COUNT, 0, COUNT), kind
        assert_same_features(read_features(cache), truth)

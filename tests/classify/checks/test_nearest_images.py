"""The nearest training image of a class, beside a search without blocks."""

import numpy as np
import pytest

from classify.checks.nearest_images import find_nearest_images
from classify.data import features
from classify.data.preparation import root_l2
from classify.data.targets.spec import TaskSpec

N = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory, make_cache, make_table):
    """Two layers, three classes; every third image is tested on."""
    home = tmp_path_factory.mktemp("nearest")
    rng = np.random.default_rng(0)
    layers = {
        name: rng.gamma(1, size=(N, dim)).astype(np.float32) for name, dim in (("a", 5), ("b", 3))
    }
    cache = make_cache(home / "c.h5", layers)
    split = ["test" if i % 3 == 0 else "train" for i in range(N)]
    rows = list(zip(cache.paths, ["xyz"[i % 7 % 3] for i in range(N)], split, strict=True))
    table = make_table(home / "t.csv", "path,label,split", rows)
    return cache, layers, TaskSpec(table).make_task(cache)


def prepare_directly(layers, prepare, is_train):
    if prepare == "root-l2":
        return np.concatenate([root_l2(layer) for layer in layers.values()], axis=1)
    X = np.concatenate(list(layers.values()), axis=1).astype(float)
    return (X - X[is_train].mean(axis=0)) / X[is_train].std(axis=0)


@pytest.mark.parametrize("prepare", ["root-l2", "standardise"])
def test_nearest_is_that_of_a_direct_search(world, prepare, monkeypatch):
    cache, layers, task = world
    monkeypatch.setattr(features, "BLOCK_BYTES", 1000)  # several blocks
    is_train = task.split == "train"
    X = prepare_directly(layers, prepare, is_train)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    queries = [(row, k) for row in range(N) for k in range(3)]
    found = find_nearest_images(cache, task, ["a", "b"], prepare, queries)
    for (row, k), nearest in zip(queries, found, strict=True):
        candidates = np.flatnonzero(is_train & (task.y == k) & (np.arange(N) != row))
        assert nearest == candidates[np.argmax(X[candidates] @ X[row])]


def test_a_class_without_another_training_image_has_none(world):
    cache, _, task = world
    row = int(task.rows[task.split == "train"][0])
    alone = task.y.copy()
    alone[:] = 0
    alone[row] = 1
    lonely = type(task)(**(vars(task) | {"y": alone}))
    assert find_nearest_images(cache, lonely, ["a"], "root-l2", [(row, 1)]) == [None]
    assert find_nearest_images(cache, lonely, ["a"], "root-l2", []) == []

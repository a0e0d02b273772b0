"""What `classify` and `featurize` say of a cache of parts is what they say of one file."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize import FeatureCache

from .conftest import COUNT, PART_ROWS

# One file with the very bits of the parts. The file of a run of its own has other batches, and some
# processors add up in another order in a batch of another size.
CACHES = ("joined.h5", "parts")
# How each verb is called on a cache C and a head H; of what it says only times may differ.
VERBS = {
    "fit": ("fit", "C", "-o", "O"),
    "fit-table": ("fit", "C", "--labels", "T", "-o", "O", "--head", "ridge"),
    "compare": ("compare", "C", "--heads", "softmax,lda"),
    "compare-shots": ("compare", "C", "--shots", "2,4", "--repeats", "2", "--heads", "ridge,ncm"),
    "advise": ("advise", "C"),
    "predict": ("predict", "H", "C", "--top", "2"),
    "evaluate": ("evaluate", "H", "C"),
}


def without_times(told: Any) -> Any:
    if isinstance(told, dict):
        return {name: without_times(each) for name, each in told.items() if name != "seconds"}
    return [without_times(each) for each in told] if isinstance(told, list) else told


@pytest.fixture(scope="module")
def head(home, command) -> Path:
    path = home / "own.head"
    done = command("classify", "fit", home / "single.h5", "-o", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def table(home) -> Path:
    """Labels that cut across the folders, for some of the images, in no order."""
    paths = FeatureCache(home / "single.h5").paths
    chosen = [path for i, path in enumerate(paths) if i % 7][::-1]
    with open(home / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((path, "odd" if int(path[-5]) % 2 else "even") for path in chosen)
    return home / "labels.csv"


@pytest.mark.parametrize("other", CACHES)
def test_rows_are_those_of_one_file(home, other):
    single, cache = FeatureCache(home / "single.h5"), FeatureCache(home / other)
    assert single.n_rows == COUNT
    assert list(cache.paths) == list(single.paths)
    assert cache.layers == single.layers
    for name in single.layers:
        wanted, found = single.features(name), cache.features(name)
        distances = np.linalg.norm(found - wanted, axis=1)
        assert (distances <= 1e-5 * np.linalg.norm(wanted, axis=1)).all()
        assert np.array_equal(found, FeatureCache(home / "parts").features(name))
    if other == "parts":
        assert len(list((home / other).glob("part-*.h5"))) == -(-COUNT // PART_ROWS)


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_say_the_same(home, head, table, command, tmp_path, verb):
    told = {}
    for cache in CACHES:
        names = {"C": home / cache, "H": head, "T": table, "O": tmp_path / f"{cache}.head"}
        line = [names.get(word, word) for word in VERBS[verb]]
        done = command("classify", *line, "--json")
        assert done.returncode == 0, done.stderr
        # Paths and the name of the cache are all that may differ, beside times.
        out = done.stdout.replace(str(names["O"]), "OUTPUT").replace(str(home / cache), "CACHE")
        told[cache] = without_times(json.loads(out.replace(f'"{cache}"', '"CACHE"')))
    assert len(json.dumps(told["parts"])) > 200  # it says something
    assert told["parts"] == told["joined.h5"]


def test_heads_and_exports_are_equal(home, command, tmp_path):
    predictions, exported = [], []
    for cache in CACHES:
        made = tmp_path / f"{cache}.head"
        line = ("fit", home / cache, "--head", "softmax", "-o", made)
        assert command("classify", *line).returncode == 0
        predictions.append(command("classify", "predict", made, home / "single.h5").stdout)
        target = tmp_path / f"{cache}.npz"
        done = command("featurize", "export", home / cache, "-o", target)
        assert done.returncode == 0, done.stderr
        with np.load(target) as file:
            exported.append({name: file[name] for name in file.files})
    assert predictions[0].count("\n") == COUNT + 1
    assert predictions[0] == predictions[1]
    joined, parts = exported
    assert parts.keys() == joined.keys()
    assert all(np.array_equal(parts[name], joined[name]) for name in joined)


def test_one_part_is_a_cache_by_itself(home, command, tmp_path):
    part = home / "parts" / "part-00002.h5"
    done = command("featurize", "verify", part)
    assert done.returncode == 0, done.stderr
    assert FeatureCache(part).n_rows == PART_ROWS


def test_a_joined_file_is_complete_for_the_next_run(home, photos, run):
    before = (home / "joined.h5").read_bytes()
    said = run(photos, home / "joined.h5")
    assert f"0 computed, {COUNT} reused" in said
    assert (home / "joined.h5").read_bytes() == before


def test_one_file_cannot_be_joined(home, command, tmp_path):
    done = command("featurize", "join", home / "single.h5", "-o", tmp_path / "o.h5")
    assert done.returncode == 2
    assert "single.h5 is one file" in done.stderr
    assert not list(tmp_path.iterdir())

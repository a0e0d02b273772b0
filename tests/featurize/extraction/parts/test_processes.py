"""Any number of processes on one cache of parts: kills, launchers, locks."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from featurize import FeatureCache
from featurize.cache.parts.index import read_index
from featurize.extraction.parts.process_rank import ProcessRank

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture
def start(tmp_path):
    """Start a worker on ``photos.parts``: ``start(source, log, part_rows, ...)``."""
    started = []

    def start(source, log, part_rows=40, *limits, output="photos.parts/", **environment):
        line = [sys.executable, WORKER, source, f"{tmp_path}/{output}", part_rows, log, *limits]
        process = subprocess.Popen(
            [str(word) for word in line],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def die(process):
    _, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, err


def is_like_single(start, source, whole, tmp_path):
    """Batches differ, so the last bits may: a single file has the same rows to 1e-5 of the norm."""
    finish(start(source, tmp_path / "single.txt", 0, output="single.h5"))
    parts, single = whole(tmp_path / "photos.parts"), whole(tmp_path / "single.h5")
    assert parts.paths == single.paths
    assert np.array_equal(parts.digests, single.digests)
    assert (parts.status == 1).all()
    assert all(part.verify() == [] for part in parts.parts)
    left, right = parts.read("2"), single.read("2")
    return (np.linalg.norm(left - right, axis=1) <= 1e-5 * np.linalg.norm(right, axis=1)).all()


@pytest.mark.long
def test_one_of_two_dies_and_the_other_takes_over(start, make_source, read_log, whole, tmp_path):
    """The one that dies has a part, and has marked some of its rows, whatever the other does."""
    source, first = make_source("shards", range(120)), tmp_path / "photos.parts" / "part-00000.h5"
    dies = start(source, tmp_path / "dies.log", 40, 21, RANK="0", WORLD_SIZE="2")
    while not first.exists():
        assert dies.poll() in (None, -signal.SIGKILL)
        time.sleep(0.001)
    lives = start(source, tmp_path / "lives.log", 40, RANK="1", WORLD_SIZE="2")
    die(dies)
    done = finish(lives)
    again = finish(start(source, tmp_path / "again.log"))
    assert again["parts"] == {
        "total": 3, "completed": 3, "by_this_process": again["parts"]["by_this_process"], "busy": 0
    }  # fmt: skip
    logged = list(chain.from_iterable(chain.from_iterable(read_log(tmp_path).values())))
    assert len({tuple(row) for row in logged}) == len(logged)  # no row twice
    lost = 120 - len(logged)  # marked, and killed before it was logged
    assert 0 <= lost <= 32
    computed = {name: len(list(chain(*life))) for name, life in read_log(tmp_path).items()}
    assert done["computed"] == computed["lives.log"]
    assert again["computed"] == computed.get("again.log", 0)
    assert is_like_single(start, source, whole, tmp_path)


@pytest.mark.long
def test_an_interrupt_keeps_what_is_done(make_source, tmp_path):
    source, folder = make_source("folder", range(200)), tmp_path / "photos.parts"
    featurize = Path(sys.executable).with_name("featurize")
    line = [featurize, "run", source, "-o", f"{folder}/", "--part-rows", "50", "--json"]
    process = subprocess.Popen(
        [*line, "--backbone", "seedling", "--engine", "eager"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = folder / "part-00000.h5"
    deadline = time.monotonic() + 120
    while not (first.exists() and FeatureCache(first).counts["ok"]):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "stopped; " in err
    assert "of 4 parts are complete" in err
    assert "Traceback" not in err
    marked = sum(FeatureCache(path).counts["ok"] for path in folder.glob("*.h5"))
    done = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert (done["rows"], done["computed"]) == (200, 200 - marked)
    assert out


ENVIRONMENTS = [
    ({}, ProcessRank()),
    (
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
        ProcessRank(5, 8, 1, 4),
    ),
    (
        {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5"},
        ProcessRank(2, 3),
    ),
    ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, ProcessRank(3, 4, 1)),
    (
        {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "RANK": "1", "WORLD_SIZE": "2"},
        ProcessRank(3, 4),
    ),
    ({"RANK": "x", "WORLD_SIZE": "-1", "LOCAL_RANK": "9" * 20}, ProcessRank()),
    ({"RANK": "9", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "0"}, ProcessRank(1, 4)),
]


@pytest.mark.parametrize(("environment", "rank"), ENVIRONMENTS)
def test_ranks_are_read_from_the_environment(environment, rank):
    assert ProcessRank.of_environment(environment) == rank


def test_ranks_begin_at_places_of_their_own():
    orders = [ProcessRank(rank, 4).order(range(8)) for rank in range(4)]
    assert [order[0] for order in orders] == [0, 2, 4, 6]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert [ProcessRank(local_world_size=n).share(6) for n in (1, 4, 16)] == [6, 1, 1]


@pytest.mark.long
def test_each_process_begins_at_its_place(start, make_source, read_log, tmp_path):
    source = make_source("shards")
    process = start(source, tmp_path / "one.log", 20, 1, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    die(process)
    (events,) = read_log(tmp_path).values()
    assert {file for file, _ in events[0]} == {"part-00001.h5"}
    assert not (tmp_path / "photos.parts" / "part-00000.h5").exists()


@pytest.mark.slow
def test_three_processes_are_killed_thirty_times(start, make_source, read_log, whole, tmp_path):
    """At 30 random instants in all, restarted until they are done: every row once."""
    source = make_source("shards", range(1500))
    rng = np.random.default_rng(19)
    n_kills, number, at_work = 0, 0, []
    while n_kills < 30 or at_work:
        while n_kills + len(at_work) < 30 and len(at_work) < 3:
            limits = (0, rng.uniform(0.01, 1.0))
            at_work.append(start(source, tmp_path / f"{number:03}.log", 100, *limits))
            number += 1
        if not at_work:
            break
        process = at_work.pop(0)
        process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0:  # all was done before its time was up
            break
        n_kills += 1
    for process in at_work:
        process.communicate(timeout=300)
    last = [start(source, tmp_path / f"last-{k}.log", 100) for k in range(3)]
    done = [finish(process) for process in last]
    assert n_kills == 30
    assert max(each["rows"] for each in done) == 1500
    logged = list(chain.from_iterable(chain.from_iterable(read_log(tmp_path).values())))
    assert len({tuple(row) for row in logged}) == len(logged)  # what was marked is never done again
    assert len(logged) >= 1500 - 30 * 128
    assert len(read_index(tmp_path / "photos.parts").parts) == 15
    assert is_like_single(start, source, whole, tmp_path)

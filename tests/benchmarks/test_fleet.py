"""The simulation of fleets, held to closed forms where there are some, and to its own sums."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fleet.py"
spec = importlib.util.spec_from_file_location("fleet_of_benchmarks", SCRIPT)
fleet = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = fleet
spec.loader.exec_module(fleet)
Driver, Fleet, Parts, simulate = fleet.Driver, fleet.Fleet, fleet.Parts, fleet.simulate


def mean_seconds(images, of, way, seeds):
    """Mean over seeds, and its standard error."""
    seconds = [simulate(images, of, way, seed).seconds for seed in range(seeds)]
    return np.mean(seconds), np.std(seconds) / math.sqrt(seeds)


@pytest.mark.parametrize(("workers", "n_parts"), [(1, 5), (4, 8), (4, 9), (7, 3), (10, 100)])
def test_without_failures_parts_come_in_waves(workers, n_parts):
    """Of equal parts a worker has `ceil(P / w)` at most: the tail of parts that are too large."""
    found = simulate(
        100.0 * n_parts, Fleet(workers, 10, restart_seconds=7), Parts(100, claim_seconds=3), 0
    )
    waves = math.ceil(n_parts / workers)
    assert found.seconds == pytest.approx(7 + waves * (3 + 10))
    assert found.overhead == pytest.approx(found.seconds / (10 * n_parts / workers) - 1)
    assert found.idle == pytest.approx((workers * waves - n_parts) * 13)
    assert (found.failures, found.lost) == (0, 0)


@pytest.mark.parametrize(("mean_up", "sync", "restart"), [(50, 5, 10), (20, 10, 0), (200, 1, 100)])
def test_one_worker_takes_what_checkpoints_cost(mean_up, sync, restart):
    """The expected time of work with checkpoints under exponential failures.

    A stretch of s seconds takes (M + R) (exp(s / M) - 1) on average: Young (1974), Daly (2006).
    """
    work = 400  # seconds, at 10 images/s
    found, error = mean_seconds(
        10 * work, Fleet(1, 10, 1, mean_up, restart), Parts(10 * work, 0, sync), 400
    )
    expected = restart + work / sync * (mean_up + restart) * math.expm1(sync / mean_up)
    assert abs(found - expected) < 4 * error
    assert error < 0.05 * expected


def test_a_large_fleet_loses_what_it_is_down():
    """Far from the end, overhead is R / M + s / 2M: down, and half an interval a failure."""
    of = Fleet(20, 10, 1, 100, 30)
    outcomes = [simulate(200_000, of, Parts(500, 0, 4), seed) for seed in range(20)]
    per_useful = np.mean([(o.down - 20 * 30) / o.useful for o in outcomes])
    assert per_useful == pytest.approx(30 / 100, rel=0.1)
    assert np.mean([o.lost / o.useful for o in outcomes]) == pytest.approx(4 / 200, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_node", [1, 4])
def test_all_seconds_are_accounted_for(seed, per_node):
    of = Fleet(8, 10, per_node, 60, 20, 0.0)
    for way in (Parts(700, 5, 2), Driver(50, 60, 300, 40, 2)):
        found = simulate(20_050, of, way, seed)
        assert found.failures > 0
        # Each image is computed once for good, whatever was lost meanwhile.
        assert found.useful == pytest.approx(20_050 / 10)
        assert found.useful + found.lost + found.down + found.claiming <= 8 * found.seconds + 1e-6
        assert found.idle >= -1e-6
        shares = sum(found.share(name) for name in ("lost", "down", "claiming", "idle"))
        assert shares == pytest.approx(found.overhead)


def test_a_kill_loses_an_interval_at_most():
    of = Fleet(8, 10, 2, 30, 5)
    lost = simulate(50_000, of, Parts(5000, 1, 2), 0).lost_images
    assert len(lost) > 50
    assert 0 <= min(lost) < max(lost) <= 2 * 10
    in_blocks = simulate(50_000, of, Driver(100), 0).lost_images
    assert max(in_blocks) <= 100  # a block, as it comes back whole


def test_a_driver_is_no_faster_than_it_takes_rows():
    of = Fleet(8, 100)
    assert simulate(80_000, of, Driver(100), 0).seconds == pytest.approx(100)
    assert simulate(80_000, of, Driver(100, 400), 0).seconds == pytest.approx(200)
    blocks = simulate(90_000, Fleet(8, 100), Driver(10_000), 0)
    assert blocks.seconds == pytest.approx(200)  # nine blocks, eight workers


def test_a_driver_that_dies_takes_all_with_it():
    """Its failures alone, with blocks of no size: M and R as for one worker."""
    way = Driver(10, failure_seconds=100, restart_seconds=50, sync_seconds=1)
    found, error = mean_seconds(32_000, Fleet(4, 20), way, 200)
    assert abs(found - (400 + 4 * 50 + 4 * 0.6)) < 4 * error + 3


def test_a_process_that_found_nothing_to_do_has_ended():
    """Only the worker that holds the one part can fail, and nobody takes it over."""
    found = simulate(2000, Fleet(4, 10, 1, 20, 5), Parts(2000), 0)
    assert found.failures == len(found.lost_images) > 3
    assert found.down == pytest.approx(4 * 5 + found.failures * 5)


def test_seeds_decide():
    of, way = Fleet(8, 10, 2, 100, 10, 0.2), Parts(1000, 1)
    once = [simulate(50_000, of, way, seed).seconds for seed in (0, 1, 0)]
    assert once[0] == once[2] != once[1]


def test_parts_too_small_and_too_large_cost_more():
    of = Fleet(16, 10, 1, 2000, 60, 0.1)
    overheads = {
        size: np.mean([simulate(200_000, of, Parts(size, 5), seed).overhead for seed in range(10)])
        for size in (50, 200, 800, 3200, 12_800)
    }
    low, high = fleet.advise(overheads, slack=0.05)
    assert min(overheads) < low <= high < max(overheads)
    assert overheads[50] > overheads[800] < overheads[12_800]
    assert fleet.advise({1: 0.5, 2: 0.2, 3: 0.205, 4: 0.3}) == (2, 3)

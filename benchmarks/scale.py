"""How large should a part be, and parts or one driver? A simulation of fleets that fail.

Overhead is time beyond that of all workers at work from the first second to the last. The model is
benchmarks/fleet.py; tests hold it to closed forms. Rates, times to claim a part and mean times
between failures are assumptions, printed with each table; measured ones are given by options.

    python benchmarks/scale.py --images 1e9 --workers 64 --rate 2500 --between-failures 6
"""

import argparse
import math
from dataclasses import replace

import numpy as np
from fleet import Driver, Fleet, Parts, advise, simulate
from machine import describe
from table import Row, show

from featurize.cache.writer import SYNC_INTERVAL_SECONDS

HOUR, DAY = 3600.0, 86400.0
# Rates differ by a tenth of a worker's, as between nodes of one kind.
FLEETS = {
    "8 GPUs, one machine": Fleet(8, 2500, 8, 30 * DAY, 120, 0.1),
    "64 GPUs, 8 machines": Fleet(64, 2500, 8, 30 * DAY, 300, 0.1),
    "64 GPUs, preemptible": Fleet(64, 2500, 1, 6 * HOUR, 300, 0.1),
}
PART_IMAGES = (30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
CLAIM_SECONDS = 5.0
DRIVER = Driver(2000, 20_000, 30 * DAY, 600, SYNC_INTERVAL_SECONDS)


def overheads(images: float, fleet: Fleet, way: Parts | Driver, seeds: int) -> tuple[Row, float]:
    """A line of a table, and the mean overhead."""
    outcomes = [simulate(images, fleet, way, seed) for seed in range(seeds)]
    found = np.array([outcome.overhead for outcome in outcomes])
    low, high = np.percentile(found, [2.5, 97.5])
    row: Row = {"overhead %": 100 * float(found.mean())}
    row["95 % of runs"] = f"{100 * low:.1f} to {100 * high:.1f}"
    for name in ("lost", "down", "claiming", "idle"):
        row[f"{name} %"] = 100 * float(np.mean([outcome.share(name) for outcome in outcomes]))
    row["failures"] = float(np.mean([outcome.failures for outcome in outcomes]))
    return row, float(found.mean())


def describe_fleet(fleet: Fleet) -> str:
    hours = fleet.failure_seconds / HOUR
    failures = "no failures" if math.isinf(hours) else f"a failure a node in {hours:,.0f} h"
    return (
        f"{fleet.workers:,} workers, {fleet.workers_per_node} a node, "
        f"{fleet.rate:,.0f} images/s each, {failures}, "
        f"{fleet.restart_seconds:,.0f} s to start (again)"
    )


def show_part_sizes(name: str, fleet: Fleet, given: argparse.Namespace) -> None:
    """Overhead by part size, and which sizes are good."""
    rows, means = [], {}
    for size in PART_IMAGES:
        count = math.ceil(given.images / size)
        if count < fleet.workers and len(rows) and rows[-1]["parts"] < fleet.workers:
            break  # even more workers would stand idle
        parts = Parts(size, given.claim, given.sync)
        row, means[size] = overheads(given.images, fleet, parts, given.seeds)
        rows.append({"images a part": size, "parts": count, **row})
    low, high = advise(means)
    size = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    about = f"{describe_fleet(fleet)}; {given.claim:g} s to claim a part"
    title = f"{name}: {given.images:,.0f} images in parts"
    show(title, rows, f"{about}. Good: parts of {size} images.")


def show_driver(fleets: dict[str, Fleet], given: argparse.Namespace) -> None:
    """One driver for the same fleets."""
    rows = []
    for name, fleet in fleets.items():
        row, _ = overheads(given.images, fleet, given.driver, given.driver_seeds)
        hours = given.images / (fleet.workers * fleet.rate) / HOUR
        rows.append({"fleet": name, "hours without overhead": hours, **row})
    driver = given.driver
    show(
        f"One driver: {given.images:,.0f} images in blocks of {driver.block_images:,}",
        rows,
        f"The driver takes {driver.rate:,.0f} rows/s; it fails once in "
        f"{driver.failure_seconds / DAY:,.0f} days and is back in {driver.restart_seconds:,.0f} s. "
        "Idle: workers that wait for it.",
    )


def read_options() -> argparse.Namespace:
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=float, default=1e9)
    options.add_argument("--workers", type=int, help="One fleet, in place of the three")
    options.add_argument("--per-node", type=int, default=1)
    options.add_argument("--rate", type=float, help="Images/s of a worker")
    options.add_argument(
        "--between-failures", type=float, default=math.inf, help="Hours, of a node"
    )
    options.add_argument("--restart", type=float, default=300, help="Seconds")
    options.add_argument("--spread", type=float, default=0.1)
    options.add_argument("--claim", type=float, default=CLAIM_SECONDS, help="Seconds a part")
    options.add_argument("--sync", type=float, default=SYNC_INTERVAL_SECONDS, help="Seconds")
    options.add_argument("--block", type=int, default=DRIVER.block_images)
    options.add_argument("--driver-rate", type=float, default=DRIVER.rate, help="Rows/s")
    options.add_argument("--seeds", type=int, default=40)
    options.add_argument("--driver-seeds", type=int, default=5)
    given = options.parse_args()
    given.driver = replace(
        DRIVER, block_images=given.block, rate=given.driver_rate, sync_seconds=given.sync
    )
    return given


def main() -> None:
    given = read_options()
    print(describe())
    fleets = dict(FLEETS)
    if given.workers:
        fleet = Fleet(
            given.workers,
            given.rate or 2500,
            given.per_node,
            given.between_failures * HOUR,
            given.restart,
            given.spread,
        )
        fleets = {"This fleet": fleet}
    elif given.rate:
        fleets = {name: replace(fleet, rate=given.rate) for name, fleet in fleets.items()}
    for name, fleet in fleets.items():
        show_part_sizes(name, fleet, given)
    show_driver(fleets, given)


if __name__ == "__main__":
    main()

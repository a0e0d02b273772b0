"""Kills at random instants of every way a cache is written: nothing is lost, nothing is wrong."""

import functools
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from .starting import left_after
from .world import World

SIGNS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
KINDS = ("create", "change", "layer", "images", "prune")


@pytest.fixture(scope="module")
def seconds(world: World, tmp_path_factory) -> Callable[[str], float]:
    """How long a kind of run takes when nobody disturbs it."""

    @functools.cache
    def took(kind: str) -> float:
        folder = tmp_path_factory.mktemp(kind)
        path = world.lay(folder, kind)
        done = world.start("featurize", *world.words(path), often=True)
        assert done.code == 0, done.said
        world.check(folder)
        return done.seconds

    return took


def hit(world: World, folder, wait: float, sign: int) -> int | None:
    """Start a run, send it a signal after a while; its exit code."""
    path = folder / "c.h5"
    run = world.start.start("featurize", *world.words(path), often=True)
    while not run.listens() and run.poll() is None:
        time.sleep(0.001)
    run.poll(wait)
    run.send(sign)
    if sign == signal.SIGSTOP:
        look_and_write(world, folder)
        run.send(signal.SIGCONT if np.random.default_rng(int(wait * 1e6)).random() < 0.5 else 9)
    ended = run.wait(20)
    allowed = {signal.SIGKILL: (-9, 0), signal.SIGSTOP: (-9, 0, 2)}.get(sign, (3, 0))
    assert ended.code in allowed, ended.said
    assert "Traceback" not in ended.err, ended.said
    assert not left_after(run.pid)
    return ended.code


def look_and_write(world: World, folder) -> None:
    """A reader and a second writer, while the first writer is stopped in whatever it did."""
    world.check(folder)
    if (folder / "c.h5").exists():
        assert world.start("featurize", "verify", folder / "c.h5").code == 0
    second = world.start("featurize", *world.words(folder / "c.h5"), hang=20)
    # Before the first has the lock the second does the work; after that it is refused.
    assert second.code in (0, 2), second.said
    if second.code == 2:
        assert "another process is writing" in second.err, second.said


def attack(world: World, seconds, seed: int, row: int, folder) -> None:
    """One to five kills in a row, from one start, then a rerun that has to end well."""
    rng = np.random.default_rng([seed, row])
    kind = KINDS[rng.integers(len(KINDS))]
    world.lay(folder, kind)
    marks: dict[str, bytes] = {}
    for k in range(int(rng.integers(1, 6))):
        sign = SIGNS[rng.integers(len(SIGNS))]
        share = rng.choice([0.15, 1])  # many of them early, while the file is laid out
        wait = share * rng.uniform(0, seconds(kind))
        print(f"{kind}: {sign.name} after {wait:.3f} s")
        hit(world, folder, wait, sign)
        found = world.check(folder)
        assert kind == "create" or "c.h5" in found, "the cache is gone"
        kept = found.get("c.h5", {}).keys() | found.get("c.h5.part", {}).keys()
        still = {p for p, digest in marks.items() if world.right.get(p) == digest}
        assert still <= kept, f"kill {k}: marked rows are lost"
        marks = found.get("c.h5", {})
    world.finish(folder)


# A row has three kills in the mean.
@pytest.mark.long
@pytest.mark.parametrize("row", range(4))
def test_kills(world: World, seconds, seed, row, tmp_path):
    attack(world, seconds, seed, row, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("row", range(100, 180))
def test_many_kills(world: World, seconds, seed, row, tmp_path):
    attack(world, seconds, seed, row, tmp_path)

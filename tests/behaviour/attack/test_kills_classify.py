"""Kills of what trains: after any the same command gives the result of an unbroken one."""

import functools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from .starting import end_session, left_after
from .stopping import Stops

KINDS = ("compare", "fit", "finetune", "report")


@pytest.fixture(scope="module")
def stops(start, world, tmp_path_factory):
    return Stops(start, tmp_path_factory.mktemp("killed"), world)


@pytest.fixture(scope="module")
def unbroken(stops) -> Callable[[str], object]:
    """What a command of a kind gives that nobody kills."""

    @functools.cache
    def give(kind: str) -> object:
        folder = stops.lay(kind, f"unbroken-{kind}")
        name, *words = stops.words(kind, folder)
        done = stops.start(str(name), *words, hang=120)
        assert done.code == 0, done.said
        return result(kind, folder, done)

    return give


def result(kind: str, folder: Path, done) -> object:
    """What came out, but for how long it took."""
    if kind == "compare":
        told = json.loads(done.out)
        for record in (*told["records"], told["best"]):
            del record["seconds"]
        return told
    if kind == "report":  # its provenance has times and places
        return (folder / "out").read_text().count("<section")
    with safe_open(folder / "out", "np") as file:
        names = sorted(file.keys())
        return {name: file.get_tensor(name).tobytes() for name in names}


def kill(stops, unbroken, seed: int, number: int) -> None:
    """Kill a command, its workers with it or not; then run it again to the same result."""
    rng = np.random.default_rng([seed, number, 2])
    kind, group = KINDS[number % len(KINDS)], bool(rng.random() < 0.5)
    instant = rng.uniform(0, stops.took(kind, False))
    print(f"kill {number}: {kind}, {'its group' if group else 'it alone'}, after {instant:.3f} s")
    folder = stops.lay(kind, f"kill-{number}")
    name, *words = stops.words(kind, folder)
    run = stops.start.start(str(name), *words)
    run.poll(instant)
    run.send(signal.SIGKILL, group)
    killed = run.wait(20)
    assert killed.code in (-9, 0), killed.said
    began = time.monotonic()
    left = left_after(run.pid, 20)
    if left:
        end_session(run.pid)
    assert not left, f"workers outlive it: {left}"
    print(f"nobody at work {time.monotonic() - began:.2f} s after the kill")
    if kind != "compare" and (folder / "out").exists():
        stops.check_output(kind, folder, killed)
    drafts = set(folder.rglob("*.tmp"))
    assert len(drafts) <= 1 + len(list(folder.glob("*.kept"))), drafts
    again = stops.start(str(name), *words, hang=120)
    assert again.code == 0, again.said
    assert result(kind, folder, again) == unbroken(kind), "the rerun has another result"


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
def test_a_kill(stops, unbroken, seed, number):
    kill(stops, unbroken, seed, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(100, 168))
def test_more_kills(stops, unbroken, seed, number):
    kill(stops, unbroken, seed, number)

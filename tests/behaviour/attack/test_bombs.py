"""Decompression bombs: each is refused, or decoded with thrift, and holds nobody up for long."""

import json
import os
import time

import numpy as np
import pytest

from featurize import FeatureCache

from . import bombs
from .memory import limited
from .starting import Starter, left_after
from .world import FAILED, MARKED, NETWORK, draw

LIMIT = 2 << 30
SECONDS = 60.0  # for one bomb and its neighbours
CODE = """
import json, resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from featurize.errors import ImageUnreadableError
from featurize.images.decoding import decode_image
from featurize.images.preprocess import Preprocess
preprocess = Preprocess(32, 32, (0.5,) * 3, (0.25,) * 3, decode=sys.argv[2])
if sys.platform == "linux":  # two gigabytes more, however many there are
    size = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
    most = 1024 * int(size.split()[1]) + (2 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
began = time.process_time()
try:
    pixels = decode_image(Path(sys.argv[1]).read_bytes(), preprocess)
    said = str(pixels.shape)
except ImageUnreadableError as error:
    said = f"refused: {error}"
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps({"said": said, "seconds": time.process_time() - began, "peak": peak}))
"""
SMALL = ("chunks.png", "huge.png", "thin.png", "text.png", "profile.png", "frames.gif", "plain.ppm")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(name)`` writes a bomb to a file of its own, once."""
    home = tmp_path_factory.mktemp("bombs")

    def make(name: str):
        path = home / name
        if not path.exists():
            path.write_bytes((bombs.REFUSED | bombs.EITHER)[name]())
            then = time.time() - 86_400
            os.utime(path, (then, then))
        return path

    return make


def check_alone(start: Starter, path, mode: str, tmp_path) -> None:
    code = tmp_path / "code.py"
    code.write_text(CODE)
    told = start(str(code), path, mode, hang=SECONDS)
    assert told.code == 0, told.said
    found = told.json()
    print(path.name, mode, found)
    if path.name in bombs.REFUSED:
        assert found["said"].startswith("refused"), found
    assert found["seconds"] < 20, found
    assert found["peak"] < LIMIT, found


@pytest.mark.parametrize("name", SMALL)
def test_a_bomb(start: Starter, made, name, tmp_path):
    check_alone(start, made(name), "exact", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("name", [*bombs.REFUSED, *bombs.EITHER])
def test_every_bomb(start: Starter, made, name, mode, tmp_path):
    check_alone(start, made(name), mode, tmp_path)


def run_beside(start: Starter, bomb, tmp_path, sign: int | None = None):
    """A run over some sound pictures and a bomb that comes first."""
    folder = tmp_path / "images"
    for k in range(8):
        draw(folder / f"p{k}.png", k)
    os.link(bomb, folder / f"0 {bomb.name}")
    words = ("run", folder, "-o", tmp_path / "c.h5", *NETWORK)
    run = start.start("featurize", *words, often=True)
    if sign is not None:
        run.poll(1.5)  # it decodes by now
        told = time.monotonic()
        run.send(sign)
        ended = run.wait(SECONDS)
        assert time.monotonic() - told < 3, ended.said
        assert ended.code in (3, 0), ended.said
        assert not left_after(run.pid)
        return ended
    return run.wait(SECONDS)


@pytest.mark.parametrize("name", ["scans.jpg"])
def test_a_bomb_holds_nobody_up(start: Starter, made, name, tmp_path):
    """What comes after it is done, and is kept."""
    bomb = made(name)
    ended = run_beside(start, bomb, tmp_path)
    assert ended.code == 0, ended.said
    cache = FeatureCache(tmp_path / "c.h5")
    assert list(cache.failures) == [f"0 {name}"]
    assert cache.counts == {"ok": 8, "failed": 1, "pending": 0}


@pytest.mark.slow
@pytest.mark.parametrize("sign", [2, 15])
@pytest.mark.parametrize("name", ["scans.jpg", "plain.pbm", "34 bytes.webp", "rgba.png"])
def test_a_signal_is_heard_while_a_bomb_decodes(start: Starter, made, name, sign, tmp_path):
    run_beside(start, made(name), tmp_path, sign)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["ten", "all"])
def test_sixty_photographs_and_ten_bombs_in_two_gigabytes(made, chosen, tmp_path):
    """It ends by itself, or after a kill the same command does, within a few runs."""
    folder, path = tmp_path / "images", tmp_path / "c.h5"
    folder.mkdir()
    names = [*bombs.REFUSED, *(bombs.EITHER if chosen == "all" else ())]
    for k in range(60):
        (folder / f"photo {k:02}.jpg").write_bytes(bombs.photograph(k))
    for k, name in enumerate(names):
        os.link(made(name), folder / f"photo {6 * k % 60:02} {name}")
    words = ("run", folder, "-o", path, *NETWORK, "--json")
    in_group = "HEADGRAFT_CGROUP" in os.environ
    for number in range(1, 4 if in_group else 11):
        run = limited("featurize", *words, limit=LIMIT, seconds=600, said=tmp_path / "said")
        print(
            f"run {number}: exit {run.code} after {run.seconds:.1f} s, "
            f"{run.peak >> 20} MB{', killed' if run.killed else ''}"
        )
        if not run.killed:
            break
    assert not run.killed, "it was killed every time"
    assert run.code == 0, run.out[-3000:]
    cache = FeatureCache(path)
    assert cache.verify() == []
    status = dict(zip(cache.paths, cache.status.tolist(), strict=True))
    photos = [name for name in status if name.count(" ") == 1]
    assert len(photos) == 60
    assert {status[name] for name in photos} == {MARKED}, cache.counts
    bad = {name for name in status if any(name.endswith(bomb) for bomb in bombs.REFUSED)}
    assert len(bad) == 10
    assert {status[name] for name in bad} == {FAILED}, cache.failures
    assert bad <= set(cache.failures)
    told = json.loads(run.out[run.out.index("{") :].splitlines()[0])
    assert bad <= set(told["failures"]), "the bombs are not named"
    assert np.isfinite(cache.features(None, [cache.row_of[name] for name in photos])).all()

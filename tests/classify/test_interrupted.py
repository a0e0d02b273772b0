"""A comparison that is killed or stopped: nobody is left at work, and a rerun trains the rest."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from classify.experiments.compare import compare_classes as compare
from classify.store import store_dir
from featurize.cache.reader import FeatureCache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
HEADS = "softmax,ridge,lda,ncm,knn"
CELLS = 30  # with three choices of layers and two tables


@pytest.fixture(scope="module")
def line(table, parity):
    """The options of every comparison here."""
    return ("--labels", table, "--labels", parity, "--heads", HEADS)


@pytest.fixture(scope="module")
def unbroken(cache, line, run_cli, tmp_path_factory):
    """What a comparison says that is left alone, and what it keeps."""
    found = clone(cache, tmp_path_factory.mktemp("unbroken"))
    return report(run_cli("compare", found.path, *line, "--json")), set(results(found))


@pytest.fixture
def mine(cache, tmp_path):
    """The cache in a folder of its own, with nothing kept beside it."""
    return clone(cache, tmp_path)


def clone(cache, folder) -> FeatureCache:
    return FeatureCache(shutil.copy(cache.path, folder / "c.h5"))


def report(done) -> dict[str, object]:
    """What was printed as JSON, but for the seconds."""
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for record in (*told["records"], told["best"], *told["best_per_task"].values()):
        del record["seconds"]
    return told


def results(cache) -> dict[str, tuple[int, int]]:
    """The results that are kept, and when which file was written."""
    found = store_dir(cache).glob("result-*.safetensors")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def started(cache, line) -> subprocess.Popen[str]:
    """A comparison at work, in a session of its own: the first results are there."""
    command = [Path(sys.executable).with_name("classify"), "compare", cache.path, *line]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what is in the background deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until(lambda: len(results(cache)) >= 2 or process.poll() is not None)
    assert process.poll() is None
    return process


def until(holds) -> None:
    """Look again and again, for two minutes at most."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "waited for two minutes"
        time.sleep(0.01)


def at_work(session: int) -> list[str]:
    """Which processes of a session are left, by their command lines; the dead do not count."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            # After the name, in brackets: state, parent, group, session.
            state, _, _, of = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state not in "ZX":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue  # not a process, or not any more
    return found


def rerun_and_compare(cache, line, run_cli, unbroken):
    """What was there stays as it is; the rest is added; all is said as if in one go."""
    before = results(cache)
    assert 0 < len(before) < CELLS
    told, names = unbroken
    assert report(run_cli("compare", cache.path, *line, "--json")) == told
    after = results(cache)
    assert set(after) == names
    assert len(after) == len(told["records"]) == CELLS
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    "group",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["as a terminal does", "one process"],
)
def test_ctrl_c_ends_it_with_status_3_and_the_workers_too(mine, line, run_cli, unbroken, group):
    process = started(mine, line)
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert out == ""
    assert (
        err.splitlines()[-1]
        == "stopped; what was finished is kept, and the same command goes on from there"
    )
    assert "Traceback" not in err
    until(lambda: not at_work(process.pid))
    assert not list(store_dir(mine).glob("*.tmp"))
    rerun_and_compare(mine, line, run_cli, unbroken)


def test_what_a_worker_was_writing_when_it_was_ended_goes(mine, table):
    folder = store_dir(mine)
    folder.mkdir()
    ours, another_s = (folder / f"result-0.safetensors.{pid}.1.tmp" for pid in (os.getpid(), 1))
    ours.write_bytes(b"half")
    another_s.write_bytes(b"half")

    def stop(record, done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(mine, table, HEADS, jobs=2, progress=stop)
    assert list(folder.glob("*.tmp")) == [another_s]


@pytest.mark.parametrize(
    "group",
    [pytest.param(True, marks=pytest.mark.slow), False],
    ids=["all at once", "one process"],
)
def test_a_kill_loses_only_what_was_at_work(mine, line, run_cli, unbroken, group):
    process = started(mine, line)
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    until(lambda: not at_work(process.pid))  # orphans finish what they have, then end
    rerun_and_compare(mine, line, run_cli, unbroken)


ENDED_AT_ONCE = """
import os, time
from joblib import delayed
from classify.workers import run_parallel
from featurize.system import signals
signals.install_handlers()
with run_parallel([delayed(time.sleep)(seconds) for seconds in (0.1, 30)], jobs=2) as done:
    next(done)
    os._exit(3)
"""


@pytest.mark.long
def test_what_sweeps_up_after_a_command_that_was_ended_says_nothing():
    """That is joblib's tracker, a process of its own, which ends after ours."""
    line = [sys.executable, "-c", ENDED_AT_ONCE]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _, err = process.communicate(timeout=60)  # which the tracker holds open as well
    assert (process.returncode, err) == (3, "")
    until(lambda: not at_work(process.pid))

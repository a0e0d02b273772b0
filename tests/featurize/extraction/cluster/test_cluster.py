"""Runs on real Ray clusters: the same rows as a plain run, whatever is killed on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize import FeatureCache, verify

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
FEATURIZE = Path(sys.executable).with_name("featurize")
N_IMAGES, MIN_MARKED = 1_800, 100
SECONDS = 400
ENGINE = ("--backbone", "seedling", "--engine", "eager")
# Addresses and states as the system writes them, in hexadecimal.
LOOPBACK = "0100007F"
LOOPBACK_6 = ("00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
LISTEN = "0A"
WORKER = "ray::MapWorker"
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled"}
# Ray would ask for a cluster on loopback at this machine's outer address.
ON_LOOPBACK = ENVIRONMENT | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def read_command_lines() -> dict[int, str]:
    """Command lines of all processes, by number."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
    return found


def list_family(pid: int) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except OSError:
                continue
    family = {pid}
    while new := {child for child, parent in parents.items() if parent in family} - family:
        family |= new
    return family


def find_workers(pid: int) -> list[int]:
    """Workers of Ray that descend from a process."""
    lines = read_command_lines()
    return [child for child in list_family(pid) if lines.get(child, "").startswith(WORKER)]


def start_run(*arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [FEATURIZE, "run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=options.pop("env", ENVIRONMENT),
        **options,
    )


def wait_for_rows(cache: Path, run: subprocess.Popen[str], count: int = MIN_MARKED) -> None:
    """Wait until so many rows are marked and the run goes on."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and run.poll() is None:
        if cache.exists() and FeatureCache(cache).counts["ok"] >= count:
            return
        time.sleep(0.1)
    pytest.fail(f"the run ended before {count} rows: {run.communicate()}")


def assert_same_features(path: Path, expected: FeatureCache, rows: np.ndarray) -> None:
    cache = FeatureCache(path)
    assert list(cache.paths) == list(expected.paths)
    assert (cache.column("sha256")[rows] == expected.column("sha256")[rows]).all()
    for name in expected.layers:
        values, wanted = (
            np.asarray(found.stored(name, rows), np.float64) for found in (cache, expected)
        )
        distance = np.linalg.norm(values - wanted, axis=1)
        assert (distance <= 1e-5 * np.linalg.norm(wanted, axis=1)).all()
    assert verify(path) == []


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise, large enough for some to be left when a worker is killed."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(N_IMAGES):
        small = Image.fromarray(rng.integers(0, 200, (12, 16, 3), dtype=np.uint8))
        path = folder / f"{k % 7}" / f"{k:04}.jpg"
        path.parent.mkdir(exist_ok=True)
        small.resize((400, 300)).save(path, quality=90)
        then = time.time_ns() - 10**10
        os.utime(path, ns=(then, then))
    return folder


@pytest.fixture(scope="module")
def plain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    path = tmp_path_factory.mktemp("plain") / "c.h5"
    run = start_run(images, "-o", path, *ENGINE)
    _, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, said
    return FeatureCache(path)


@pytest.fixture
def nodes():
    """A cluster of two nodes: its process."""
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/hgt-XXXXXX"], text=True).strip())
    host = subprocess.Popen(
        [sys.executable, HERE / "two_nodes.py", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ON_LOOPBACK | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    yield host
    host.stdin.close()
    host.stdout.close()
    host.wait(60)
    subprocess.run(["rm", "-r", "--", folder], check=False)


def test_a_killed_worker_costs_nothing(images, plain, tmp_path):
    """Two workers of a local cluster, one killed after a hundred rows."""
    path = tmp_path / "c.h5"
    run = start_run(*(images, "-o", path, *ENGINE, "--cluster", "local", "--actors", 2, "--json"))
    wait_for_rows(path, run)
    os.kill(find_workers(run.pid)[0], signal.SIGKILL)
    output, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, said
    summary = json.loads(output)
    assert (summary["computed"], summary["failed"]) == (N_IMAGES, 0)
    assert "lost" in summary["verdict"]
    assert "a worker was lost" in said
    assert "raylet" not in said
    assert_same_features(path, plain, np.arange(N_IMAGES))


def test_a_killed_node_costs_nothing(nodes, images, plain, tmp_path):
    path = tmp_path / "c.h5"
    address = nodes.stdout.readline().strip()
    line = (images, "-o", path, *ENGINE, "--cluster", address, "--json")
    run = start_run(*line, env=ON_LOOPBACK)
    wait_for_rows(path, run)
    nodes.stdin.write("kill\n")
    nodes.stdin.flush()
    assert nodes.stdout.readline() == "killed\n"
    output, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, said
    assert f"cluster {address}, 2 machines: 2 workers" in said
    summary = json.loads(output)
    assert (summary["computed"], summary["failed"]) == (N_IMAGES, 0)
    assert_same_features(path, plain, np.arange(N_IMAGES))


def test_an_image_that_kills_its_worker_is_one_failed_row(draw, tmp_path):
    """It is the system's fault until it is known better: the next run tries it alone."""
    folder = draw(tmp_path / "images", [f"{k:03}.png" for k in range(300)])
    Image.new("RGB", (8, 8), (255,) * 3).save(folder / "007.png")
    then = time.time_ns() - 10**10
    os.utime(folder / "007.png", ns=(then, then))
    line = [sys.executable, HERE / "guarded_run.py", folder, tmp_path / "c.h5", "local"]
    for computed in (299, 0):
        done = subprocess.run(
            line, capture_output=True, text=True, env=ENVIRONMENT, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert summary["failures"] == {"007.png": "took its worker down"}
        assert summary["computed"] == computed
    assert verify(tmp_path / "c.h5") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on(number, images, plain, tmp_path):
    path = tmp_path / "c.h5"
    line = (images, "-o", path, *ENGINE, "--json")
    folders = {*Path("/tmp").glob("hg-*")}
    run = start_run(*line, "--cluster", "local")
    wait_for_rows(path, run)
    family = list_family(run.pid)
    folders = {*Path("/tmp").glob("hg-*")} - folders
    run.send_signal(number)
    _, said = run.communicate(timeout=SECONDS)
    if number == signal.SIGTERM:
        assert run.returncode == 3
        assert "The same command goes on from there" in said
        assert "***" not in said  # a stack of C++
        assert not any(folder.exists() for folder in folders)
    assert verify(path) == []
    counts = FeatureCache(path).counts
    assert counts["ok"] >= MIN_MARKED
    assert counts["failed"] == 0
    again = start_run(*line)
    output, said = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, said
    assert json.loads(output)["computed"] == counts["pending"] > 0
    assert_same_features(path, plain, np.arange(N_IMAGES))
    deadline = time.monotonic() + 120
    while (left := family & read_command_lines().keys()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


@pytest.mark.skipif(not shutil.which("unshare"), reason="there is no unshare here")
def test_a_local_cluster_is_on_loopback_alone(draw, tmp_path):
    """In a network of its own, where nothing but the loopback is up."""
    folder = draw(tmp_path / "images", [f"{k:03}.png" for k in range(40)])
    cache = tmp_path / "c.h5"
    line = f"{FEATURIZE} run {folder} -o {cache} --backbone seedling --cluster local"
    shell = ["unshare", "-rn", "sh", "-c", f"ip link set lo up && exec {line}"]
    listening: set[str] = set()
    with subprocess.Popen(shell, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as run:
        while run.poll() is None:
            is_apart = False
            with suppress(OSError):
                is_apart = os.readlink(f"/proc/{run.pid}/ns/net") != os.readlink(
                    "/proc/self/ns/net"
                )
            for name in ("tcp", "tcp6") if is_apart else ():
                table = Path(f"/proc/{run.pid}/net/{name}")
                with suppress(OSError):
                    fields = [row.split() for row in table.read_text().splitlines()[1:]]
                    listening |= {row[1].split(":")[0] for row in fields if row[3] == LISTEN}
            time.sleep(0.1)
        said = run.stderr.read()
    if "unshare:" in said:
        pytest.skip(said)
    assert run.returncode == 0, said
    assert FeatureCache(cache).counts["ok"] == 40
    assert LOOPBACK in listening
    assert listening <= {LOOPBACK, *LOOPBACK_6}


def test_a_slow_driver_spills_nothing(draw, tmp_path):
    """More features than the store holds, and workers that are quicker than the disk."""
    names = [f"{k % 10}/{k:04}.png" for k in range(6000)]
    folder = draw(tmp_path / "images", names)
    line = [sys.executable, HERE / "slow_driver.py", folder, tmp_path / "c.h5"]
    done = subprocess.run(
        line, capture_output=True, text=True, env=ENVIRONMENT, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == len(names)
    assert found["spilled"] == 0
    assert found["peak"] < 1.5e9


def test_auto_without_a_cluster_says_so(images, tmp_path):
    run = start_run(images, "-o", tmp_path / "c.h5", *ENGINE, "--cluster", "auto")
    _, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 2
    assert "no cluster that this machine is part of; --cluster local starts one" in said

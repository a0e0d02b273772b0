"""The system's faults, one at a time, while a cache is made and while it grows.

What holds after each: the message names a file and is no traceback, the code is not that of the
unexpected, the old cache is kept, no marked row is wrong, and the next run ends well.
"""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from featurize import FeatureCache

from .faults import ALWAYS, DELAY_ONLY, FAULTS, PLAN, Fault
from .starting import Ended, Starter
from .world import NETWORK, World

KINDS = ("create", "images")
QUICK = [
    Fault("pwrite", errno.ENOSPC, 30),
    Fault("fdatasync", errno.EIO, 1),
    Fault("rename", errno.EROFS),
    Fault("posix_fallocate", errno.ENOSPC),
    Fault("open", errno.EMFILE, 3),
    Fault("pread", errno.EIO, 1),
    Fault("flock", errno.ENOLCK),
]
BREAKS = {"pwrite", "fdatasync", "fsync", "rename", "posix_fallocate", "write"}


@pytest.fixture(autouse=True)
def _compiled(shim):
    if shim is None:
        pytest.skip("there is no C compiler (cc) here to make the library of faults with")


def check_said(done: Ended, folder: Path) -> None:
    """Ended as commands end: no crash, no traceback; if not well, then with a path."""
    assert done.code in (0, 2, 3), done.said
    assert "Traceback" not in done.err, done.said
    assert "unexpected" not in done.err, done.said
    if done.code:
        assert str(folder.parent) in done.err + done.out, f"names no path: {done.said}"


def attack(world: World, kind: str, fault: Fault, folder: Path) -> Ended:
    """Let it happen to a run; then all that has to hold."""
    path = world.lay(folder, kind)
    before = path.read_bytes() if path.exists() else None
    done = world.start(
        "featurize", *world.words(path), often=True, fault=fault.below(folder), hang=30
    )
    check_said(done, folder)
    found = world.check(folder)
    if done.code and before is not None:
        assert path.read_bytes() == before, "the old cache is another"
    if done.code == 0:  # then a row is missing only where its image could not be read
        missing = world.right.keys() - found["c.h5"].keys()
        assert missing <= set(FeatureCache(path).failures), "exit 0, but rows are missing"
    world.finish(folder)
    return done


@pytest.mark.long
@pytest.mark.parametrize("fault", QUICK, ids=str)
def test_a_fault(world: World, fault, tmp_path):
    attack(world, "images" if fault.first > 1 else "create", fault, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_fault(world: World, kind, fault, tmp_path):
    attack(world, kind, fault, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.call in BREAKS and f.error > 0], ids=str)
def test_faults_of_the_other_outputs(start: Starter, taught, fault, tmp_path):
    """A head, labels, an export, a report: whole or not at all, and said with the path."""
    for name, *words in (
        ("classify", "fit", taught / "c.h5", "-o", tmp_path / "h", "--head", "ncm"),
        ("classify", "predict", taught / "h", taught / "c.h5", "-o", tmp_path / "p.csv"),
        ("featurize", "export", taught / "c.h5", "-o", tmp_path / "x.npz"),
    ):
        done = start(name, *words, fault=fault.below(tmp_path), hang=30)
        check_said(done, tmp_path / "any")
        output = Path(str(words[words.index("-o") + 1]))
        assert output.exists() == (done.code == 0), done.said
        assert {path.name for path in tmp_path.iterdir()} <= {output.name}
        output.unlink(missing_ok=True)


def test_the_library_makes_calls_fail(start: Starter, tmp_path):
    """The attack itself: of three reads the second fails, of other folders none."""
    (tmp_path / "in").mkdir()
    for place in ("in/x", "out"):
        (tmp_path / place).write_text("abc")
    code = tmp_path / "code.py"
    code.write_text(
        "import os, sys\n"
        "for path in sys.argv[1:]:\n"
        "    for _ in range(3):\n"
        "        fd = os.open(path, os.O_RDONLY)\n"
        "        try:\n"
        "            print(os.pread(fd, 3, 0))\n"
        "        except OSError as error:\n"
        "            print(error.errno)\n"
    )
    fault = Fault("pread", errno.EIO, 2).below(tmp_path / "in")
    done = start(str(code), tmp_path / "in" / "x", tmp_path / "out", fault=fault)
    assert done.out.split() == ["b'abc'", str(errno.EIO), *["b'abc'"] * 4], done.said
    assert set(PLAN) >= BREAKS


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        ("info", Fault("pread", errno.EIO, 1, ALWAYS)),
        ("info", Fault("pread", errno.EIO, 5)),
        ("info", Fault("open", errno.EMFILE, 1, ALWAYS)),
        ("verify", Fault("open", errno.EIO, 1, ALWAYS)),
        ("info", Fault("fork", errno.EAGAIN, 1, ALWAYS)),
    ],
    ids=str,
)
def test_a_sound_cache_is_never_called_damaged(start: Starter, taught, verb, fault):
    """Who is told that a cache is damaged deletes days of work."""
    done = start("featurize", verb, taught / "c.h5", fault=fault.below(taught), hang=30)
    check_said(done, taught / "c.h5")
    assert "damaged" not in done.err + done.out, done.said
    assert "not a feature cache" not in done.err + done.out, done.said
    if fault.call == "fork":
        assert done.code == 0, done.said  # it can be read without
    elif done.code:
        assert os.strerror(fault.error) in done.err, done.said


@pytest.mark.slow
def test_a_disk_that_takes_half_a_second_a_read_is_waited_for(start: Starter, taught):
    """A tape, a far server, a machine that was asleep: `info` makes some eighty reads."""
    for call in ("pread", "read"):
        slow = Fault(call, DELAY_ONLY, 1, ALWAYS, delay_ms=500).below(taught / "c.h5")
        done = start("featurize", "info", taught / "c.h5", fault=slow, hang=300)
        assert done.code == 0, done.said


# Limits and disks of the system's own


@pytest.mark.long
@pytest.mark.parametrize(
    "limits",
    [
        {"RLIMIT_NOFILE": 14},
        {"RLIMIT_FSIZE": 100_000},
        {"RLIMIT_AS": 30 << 20},
    ],
    ids=str,
)
def test_limits(world: World, limits, tmp_path):
    check_limits(world, "create", limits, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "limits",
    [
        *({"RLIMIT_NOFILE": n} for n in range(10, 40, 3)),
        *({"RLIMIT_FSIZE": n} for n in (4096, 20_000, 50_000, 100_000, 200_000)),
        *({"RLIMIT_AS": n << 20} for n in (30, 50, 100, 200, 400)),
    ],
    ids=str,
)
def test_more_limits(world: World, kind, limits, tmp_path):
    check_limits(world, kind, limits, tmp_path)


def check_limits(world: World, kind: str, limits: dict[str, int], folder: Path) -> None:
    path = world.lay(folder, kind)
    before = path.read_bytes() if path.exists() else None
    done = world.start("featurize", *world.words(path), limits=limits, hang=60)
    # Where no memory is left, what ends the run may be anybody's exception.
    assert done.code in ((0, 1, 2, 3) if "RLIMIT_AS" in limits else (0, 2, 3)), done.said
    assert "Traceback" not in done.err, done.said
    world.check(folder)
    if done.code and before is not None:
        assert path.read_bytes() == before
    world.finish(folder)


@pytest.fixture
def disk(tmp_path):
    """``disk(kilobytes)`` mounts a disk of that size."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no `mount` here to make a small disk with")
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [8])
def test_a_small_disk(world: World, disk, kilobytes, tmp_path):
    folder = disk(kilobytes)
    done = world.start("featurize", *world.words(folder / "c.h5"))
    check_said(done, folder)
    world.check(folder)
    if done.code:
        assert {path.name for path in folder.iterdir()} <= {"c.h5.lock"}
    assert "needs 0.00 GB but 0.00 GB" not in done.err, done.said


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 12, 16, 64, 100, 150, 200, 400, 1500])
@pytest.mark.parametrize("kind", KINDS)
def test_more_small_disks(world: World, disk, kind, kilobytes):
    folder = disk(kilobytes)
    if len(world.starts[kind]) > (kilobytes - 4) << 10:
        return  # not even the start has room
    path = world.lay(folder, kind)
    done = world.start("featurize", *world.words(path))
    check_said(done, folder)
    world.check(folder)
    if done.code and world.starts[kind]:
        assert path.read_bytes() == world.starts[kind]


def test_a_finished_cache_on_a_disk_that_is_read_only(world: World, disk):
    """There is nothing to do, so nothing has to be written, not even a lock."""
    folder = disk(4000)
    world.lay(folder, "create")
    world.finish(folder)
    (folder / "c.h5.lock").unlink(missing_ok=True)
    remount = ["mount", "-o", "remount,ro", str(folder)]
    subprocess.run(remount, check=True)
    done = world.start("featurize", *world.words(folder / "c.h5"))
    assert done.code == 0, done.said
    words = ("run", world.now, "-o", folder / "new.h5", *NETWORK)
    refused = world.start("featurize", *words)
    check_said(refused, folder)
    assert refused.code == 2, refused.said
    assert os.strerror(errno.EROFS) in refused.err, refused.said
    assert FeatureCache(folder / "c.h5").verify() == []

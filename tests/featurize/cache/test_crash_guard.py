"""What a cache is called depends on what is wrong: the file, or the system it lies on."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from featurize import FeatureCache
from featurize.cache import crash_guard, layout
from featurize.errors import CacheFormatError, CacheUnreachableError

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")


def test_outcomes():
    assert crash_guard.probe_in_child(lambda: None) == crash_guard.COMPLETED
    assert crash_guard.probe_in_child(lambda: 1 / 0) == crash_guard.COMPLETED
    assert (
        crash_guard.probe_in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
        == crash_guard.CRASHED
    )


def loop():
    while True:
        pass


def test_a_loop_is_cut_off_by_its_processor_time(monkeypatch):
    monkeypatch.setattr(crash_guard, "MAX_CPU_SECONDS", 1)
    assert crash_guard.probe_in_child(loop) == crash_guard.CRASHED


@pytest.mark.long
def test_a_slow_disk_is_not_damage(cache, monkeypatch):
    """Waiting takes no processor time: only the clock ends it, far later, and says so."""
    monkeypatch.setattr(crash_guard, "MAX_CPU_SECONDS", 1)
    assert crash_guard.probe_in_child(lambda: time.sleep(1.5)) == crash_guard.COMPLETED
    monkeypatch.setattr(crash_guard, "MAX_WALL_SECONDS", 0.5)
    assert crash_guard.probe_in_child(lambda: time.sleep(60)) == crash_guard.TIMED_OUT
    monkeypatch.setattr(layout, "_check_and_parse", lambda _: time.sleep(60))
    with pytest.raises(CacheUnreachableError, match=r"did not answer within .* It may be sound"):
        FeatureCache(cache)


def test_signals_of_the_terminal_are_not_damage(monkeypatch):
    """Ctrl-C reaches the child too: it must not look as if the file had ended it."""
    assert (
        crash_guard.probe_in_child(lambda: os.kill(os.getpid(), signal.SIGINT))
        == crash_guard.COMPLETED
    )
    assert (
        crash_guard.probe_in_child(lambda: os.kill(os.getpid(), signal.SIGTERM))
        == crash_guard.COMPLETED
    )


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_no_process_to_be_had(cache, monkeypatch, number):
    def fork():
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fork", fork)
    assert FeatureCache(cache).n_rows == 6


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output error"),
        (OSError("... errno = 5, error message = 'Input/output error'"), "Input/output error"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
    ],
)
def test_errors_of_the_system_are_passed_on(cache, monkeypatch, error, match):
    def look(_):
        raise error

    monkeypatch.setattr(layout, "_check_and_parse", look)
    with pytest.raises(CacheUnreachableError, match=match):
        FeatureCache(cache)


def test_an_address_that_cannot_be_is_damage(cache, monkeypatch):
    def look(_):
        raise OSError("unable to seek, errno = 22, error message = 'Invalid argument'")

    monkeypatch.setattr(layout, "_check_and_parse", look)
    with pytest.raises(CacheFormatError, match="is damaged"):
        FeatureCache(cache)


@linux
def test_too_few_descriptors(cache):
    """As with `ulimit -n`: the command says what is lacking, and of the cache nothing bad."""
    code = (
        "import sys, os\nfrom featurize import FeatureCache\n"
        "from featurize.errors import CacheUnreachableError\n"
        "held = [os.open(os.devnull, os.O_RDONLY)]\n"
        "try:\n    while True: held.append(os.dup(held[0]))\n"
        "except OSError: pass\n"
        "try: FeatureCache(sys.argv[1])\n"
        "except (CacheUnreachableError, OSError) as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cache],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)),
    )
    assert "Too many open files" in done.stdout, done.stderr
    assert "damaged" not in done.stdout


def test_a_disk_that_fails_while_a_cache_is_open(cache, monkeypatch):
    reader = FeatureCache(cache)

    def preadv(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(CacheUnreachableError, match=r"c?.*\.h5 cannot be read: Input/output error"):
        reader.features("layer4", [0])
    monkeypatch.setattr(os, "pread", preadv)
    with pytest.raises(CacheUnreachableError, match="Input/output error"):
        reader.check_unchanged()

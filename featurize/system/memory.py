"""How much memory this process may use, and who may use much of it; freed memory kept."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featurize.system.cgroups import list_cgroups

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in <malloc.h>
MAX_RETAINED_BYTES = 1 << 30  # bytes; a block above that goes back at once, as before

MAX_AGE_SECONDS = 0.1  # seconds for which what was found out still counts
MIN_COUNTED_BYTES = 1 << 24  # bytes; for less nothing is counted
MIN_EXCLUSIVE_BYTES = 256 << 20  # bytes; from here on one at a time: a photograph of 64 megapixels
MARGIN_BYTES = 32 << 20  # bytes that stay free, for what else the process does in between


def retain_freed_memory() -> None:
    """Ask glibc to hold on to large blocks that are freed, for this process.

    By itself it hands blocks of many megabytes back to the system, and fetches them anew for every
    layer of every batch, zeroed page by page: that can take as long as the arithmetic. The most
    that is held is what was in use at once. Elsewhere than on glibc nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no such call
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, MAX_RETAINED_BYTES)
            libc.mallopt(_TRIM_THRESHOLD, MAX_RETAINED_BYTES)


# --- how much there is ---------------------------------------------------------------------


def read_available_bytes() -> int:
    """Bytes that this process may still take, as it stands now.

    The least of what the machine has, what its control groups (version 1 or 2) leave, and what
    its own limits on address space and data leave. Where the system does not say: no limit.
    """
    found = [sys.maxsize]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(n for n in lines if n.startswith("MemAvailable")).split()[1]))
    found += _read_cgroup_headroom()
    found += _read_rlimit_headroom()
    return max(0, min(found))


def _read_cgroup_headroom() -> Iterator[int]:
    for group in list_cgroups():
        yield from _read_headroom(group, "memory.max", "memory.current", "inactive_file")
    for group in list_cgroups("memory"):
        names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        yield from _read_headroom(group, *names)


def _read_headroom(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # no limit here, or "max"
        most = int((group / limit).read_text())
        used = int((group / usage).read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            if line.startswith(f"{reclaimable} "):  # files' pages, which go when room is needed
                used -= int(line.split()[1])
        yield most - used


def _read_rlimit_headroom() -> Iterator[int]:
    with suppress(OSError, ImportError, ValueError):
        import resource

        pages = [int(n) for n in Path("/proc/self/statm").read_text().split()]
        for limit, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                yield most - used * resource.getpagesize()


class _State:
    """Who uses much memory; there is one."""

    turn_lock = threading.RLock()
    turn_depth = 0
    shared_fd: int | None = None  # a file whose lock other decoding processes wait for too
    count_lock = threading.Lock()
    reserved_bytes = 0
    last_available = 0, -MAX_AGE_SECONDS  # bytes, when


def _get_available_bytes() -> int:
    bytes_, when = _State.last_available
    if time.monotonic() - when > MAX_AGE_SECONDS:
        bytes_ = read_available_bytes()
        _State.last_available = bytes_, time.monotonic()
    return bytes_


# --- who may use it ------------------------------------------------------------------------


def share_turn_lock(fd: int) -> None:
    """Let this process take turns with others that were given the same file."""
    _State.shared_fd = fd


@contextmanager
def take_turn() -> Iterator[None]:
    """Wait for one's turn: a single thread is inside at a time, also of processes that share."""
    with _State.turn_lock:
        _State.turn_depth += 1
        try:
            if _State.turn_depth == 1:
                _lock_shared_file()
            yield
        finally:
            _State.turn_depth -= 1
            if not _State.turn_depth:
                _lock_shared_file(unlock=True)


def _lock_shared_file(unlock: bool = False) -> None:
    if _State.shared_fd is not None:
        import fcntl

        # By process, not by open file: the file was opened once, for all of them.
        fcntl.lockf(_State.shared_fd, fcntl.LOCK_UN if unlock else fcntl.LOCK_EX)


@contextmanager
def reserve(n_bytes: int, subject: str) -> Iterator[None]:
    """Use so many bytes inside: alone, where they are many.

    Parameters
    ----------
    count : int
        Bytes that will be needed at once.
    subject : str
        What needs them, for the error.

    Raises
    ------
    MemoryError
        If there are not as many; before anything is tried.
    """
    if n_bytes < MIN_COUNTED_BYTES:
        yield
        return
    if n_bytes >= MIN_EXCLUSIVE_BYTES:
        with take_turn():
            _require_available(n_bytes, subject, read_available_bytes())
            yield
        return
    with _State.count_lock:
        # What others have claimed may be in use already, and count twice: this one then comes
        # again in its turn, when it has to fit into what is free and no more.
        others = 0 if _State.turn_depth else _State.reserved_bytes
        _require_available(n_bytes + others, subject, _get_available_bytes())
        _State.reserved_bytes += n_bytes
    try:
        yield
    finally:
        with _State.count_lock:
            _State.reserved_bytes -= n_bytes


def _require_available(n_bytes: int, subject: str, available_bytes: int) -> None:
    if n_bytes + n_bytes // 8 + MARGIN_BYTES > available_bytes:
        raise MemoryError(
            f"{subject} need {n_bytes / 1e6:,.0f} MB; {available_bytes / 1e6:,.0f} MB are free"
        )


def is_short(n_bytes: int) -> bool:
    """Whether a failure may be for want of memory: libraries do not always say so."""
    return 2 * n_bytes + MARGIN_BYTES > read_available_bytes()


def _reset_after_fork() -> None:
    # Another thread of the parent may have held them.
    _State.turn_lock, _State.count_lock = threading.RLock(), threading.Lock()
    _State.turn_depth = _State.reserved_bytes = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)

"""Memory: how much this process may use, turns for large uses, retention of freed blocks."""

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
MAX_RETAINED_BYTES = 1 << 30  # a larger block goes back to the system at once

MAX_AGE_SECONDS = 0.1  # for this long a measurement of available memory is reused
MIN_COUNTED_BYTES = 1 << 24  # smaller uses are not counted
MIN_EXCLUSIVE_BYTES = 256 << 20  # from here on one at a time: a photograph of 64 megapixels
MARGIN_BYTES = 32 << 20  # stays free for the other work of the process


def retain_freed_memory() -> None:
    """Make glibc retain large blocks that this process frees.

    By default glibc returns blocks of many megabytes to the system and requests them again for
    every layer of every batch. The system zeroes them page by page, which can take as long as the
    arithmetic. At most the peak use is retained. Without glibc nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no such call
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, MAX_RETAINED_BYTES)
            libc.mallopt(_TRIM_THRESHOLD, MAX_RETAINED_BYTES)


# --- available memory ----------------------------------------------------------------------


def read_available_bytes() -> int:
    """Read how many bytes this process may still allocate.

    This is the minimum of the machine's available memory, the headroom of the control groups
    (version 1 or 2), and the headroom of the process's limits on address space and data. A value
    that the system does not report counts as no limit.

    Returns
    -------
    int
        Bytes, at least 0; ``sys.maxsize`` if nothing is limited.
    """
    limits = [sys.maxsize]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(
            1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
        )
    limits += _read_cgroup_headroom()
    limits += _read_rlimit_headroom()
    return max(0, min(limits))


def _read_cgroup_headroom() -> Iterator[int]:
    for group in list_cgroups():
        yield from _read_headroom(group, "memory.max", "memory.current", "inactive_file")
    for group in list_cgroups("memory"):
        names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        yield from _read_headroom(group, *names)


def _read_headroom(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # no limit here, or "max"
        max_bytes = int((group / limit).read_text())
        used_bytes = int((group / usage).read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            # Cached pages of files, which the system can drop.
            if line.startswith(f"{reclaimable} "):
                used_bytes -= int(line.split()[1])
        yield max_bytes - used_bytes


def _read_rlimit_headroom() -> Iterator[int]:
    with suppress(OSError, ImportError, ValueError):
        import resource

        pages = [int(text) for text in Path("/proc/self/statm").read_text().split()]
        for limit, used_pages in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            max_bytes = resource.getrlimit(limit)[0]
            if max_bytes != resource.RLIM_INFINITY:
                yield max_bytes - used_pages * resource.getpagesize()


class _State:
    """The memory use of this process; a single instance in effect."""

    turn_lock = threading.RLock()
    turn_depth = 0
    shared_fd: int | None = None  # a file on whose lock other decoding processes wait too
    count_lock = threading.Lock()
    reserved_bytes = 0
    last_available = 0, -MAX_AGE_SECONDS  # bytes, time of the measurement


def _get_available_bytes() -> int:
    available_bytes, measured_at = _State.last_available
    if time.monotonic() - measured_at > MAX_AGE_SECONDS:
        available_bytes = read_available_bytes()
        _State.last_available = available_bytes, time.monotonic()
    return available_bytes


# --- turns and reservations ----------------------------------------------------------------


def share_turn_lock(fd: int) -> None:
    """Let this process take turns with others that have the same file.

    Parameters
    ----------
    fd : int
        Descriptor of an open file, on whose lock the processes wait.
    """
    _State.shared_fd = fd


@contextmanager
def take_turn() -> Iterator[None]:
    """Wait for a turn: one thread at a time is inside, over all processes that share the lock.

    Yields
    ------
    None
        The turn ends with the block. A thread may nest turns.
    """
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

        # POSIX locks belong to a process. A lock of the open file would be shared by them all.
        fcntl.lockf(_State.shared_fd, fcntl.LOCK_UN if unlock else fcntl.LOCK_EX)


@contextmanager
def reserve(n_bytes: int, subject: str) -> Iterator[None]:
    """Reserve memory for a block of code. A large reservation excludes all others.

    Parameters
    ----------
    n_bytes : int
        Peak number of bytes. Below `MIN_COUNTED_BYTES` nothing is checked; from
        `MIN_EXCLUSIVE_BYTES` on the block takes a turn (`take_turn`).
    subject : str
        What needs the memory, for the message; in the plural.

    Yields
    ------
    None
        The reservation ends with the block.

    Raises
    ------
    MemoryError
        If too little memory is available; raised before the block runs.
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
        # Memory reserved by others may be in use already, and then counts twice. A caller that is
        # refused for that tries again in its turn, where only free memory counts.
        others_bytes = 0 if _State.turn_depth else _State.reserved_bytes
        _require_available(n_bytes + others_bytes, subject, _get_available_bytes())
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
    """Tell whether a failure may be due to a lack of memory; libraries do not always say so.

    Parameters
    ----------
    n_bytes : int
        Bytes that the failed work needs.

    Returns
    -------
    bool
        True if less than twice that, and a margin, is available.
    """
    return 2 * n_bytes + MARGIN_BYTES > read_available_bytes()


def _reset_after_fork() -> None:
    # Another thread of the parent may have held the locks.
    _State.turn_lock, _State.count_lock = threading.RLock(), threading.Lock()
    _State.turn_depth = _State.reserved_bytes = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)

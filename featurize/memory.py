"""How much memory this process may use, and who may use much of it; freed memory kept."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in <malloc.h>
MOST = 1 << 30  # bytes; a block above that goes back at once, as before

GROUPS = Path("/sys/fs/cgroup")
FRESH = 0.1  # seconds for which what was found out still counts
SMALL = 1 << 24  # bytes; for less nothing is counted
LARGE = 256 << 20  # bytes; from here on one at a time: a photograph of 64 megapixels
RESERVE = 32 << 20  # bytes that stay free, for what else the process does in between


def keep() -> None:
    """Ask glibc to hold on to large blocks that are freed, for this process.

    By itself it hands blocks of many megabytes back to the system, and fetches them anew for every
    layer of every batch, zeroed page by page: that can take as long as the arithmetic. The most
    that is held is what was in use at once. Elsewhere than on glibc nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no such call
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, MOST)
            libc.mallopt(_TRIM_THRESHOLD, MOST)


# --- how much there is ---------------------------------------------------------------------


def available() -> int:
    """Bytes that this process may still take, as it stands now.

    The least of what the machine has, what its control groups (version 1 or 2) leave, and what
    its own limits on address space and data leave. Where the system does not say: no limit.
    """
    found = [sys.maxsize]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(n for n in lines if n.startswith("MemAvailable")).split()[1]))
    found += _left_by_groups()
    found += _left_by_limits()
    return max(0, min(found))


def _left_by_groups() -> Iterator[int]:
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, inside = line.split(":", 2)
            if controllers == "memory":
                tops = [GROUPS / "memory"]
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            elif controllers == "":
                tops = [GROUPS, GROUPS / "unified"]
                names = ("memory.max", "memory.current", "inactive_file")
            else:
                continue
            for top in tops:
                folder = top / inside.lstrip("/")
                for group in (folder, *folder.parents):
                    if group.is_relative_to(top):
                        yield from _left_by(group, *names)


def _left_by(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # no limit here, or "max"
        most = int((group / limit).read_text())
        used = int((group / usage).read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            if line.startswith(f"{reclaimable} "):  # files' pages, which go when room is needed
                used -= int(line.split()[1])
        yield most - used


def _left_by_limits() -> Iterator[int]:
    with suppress(OSError, ImportError, ValueError):
        import resource

        pages = [int(n) for n in Path("/proc/self/statm").read_text().split()]
        for limit, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                yield most - used * resource.getpagesize()


class _State:
    """Who uses much memory; there is one."""

    turn = threading.RLock()
    depth = 0
    between: int | None = None  # a file whose lock other decoding processes wait for too
    counting = threading.Lock()
    claimed = 0
    found = 0, -FRESH  # bytes, when


def _lately_available() -> int:
    bytes_, when = _State.found
    if time.monotonic() - when > FRESH:
        bytes_ = available()
        _State.found = bytes_, time.monotonic()
    return bytes_


# --- who may use it ------------------------------------------------------------------------


def share_turns(fd: int) -> None:
    """Let this process take turns with others that were given the same file."""
    _State.between = fd


@contextmanager
def alone() -> Iterator[None]:
    """Wait for one's turn: a single thread is inside at a time, also of processes that share."""
    with _State.turn:
        _State.depth += 1
        try:
            if _State.depth == 1:
                _lock_between()
            yield
        finally:
            _State.depth -= 1
            if not _State.depth:
                _lock_between(unlock=True)


def _lock_between(unlock: bool = False) -> None:
    if _State.between is not None:
        import fcntl

        # By process, not by open file: the file was opened once, for all of them.
        fcntl.lockf(_State.between, fcntl.LOCK_UN if unlock else fcntl.LOCK_EX)


@contextmanager
def claim(count: int, what: str) -> Iterator[None]:
    """Use so many bytes inside: alone, where they are many.

    Parameters
    ----------
    count : int
        Bytes that will be needed at once.
    what : str
        What needs them, for the error.

    Raises
    ------
    MemoryError
        If there are not as many; before anything is tried.
    """
    if count < SMALL:
        yield
        return
    if count >= LARGE:
        with alone():
            _check(count, what, available())
            yield
        return
    with _State.counting:
        # What others have claimed may be in use already, and count twice: this one then comes
        # again in its turn, when it has to fit into what is free and no more.
        others = 0 if _State.depth else _State.claimed
        _check(count + others, what, _lately_available())
        _State.claimed += count
    try:
        yield
    finally:
        with _State.counting:
            _State.claimed -= count


def _check(count: int, what: str, most: int) -> None:
    if count + count // 8 + RESERVE > most:
        raise MemoryError(f"{what} need {count / 1e6:,.0f} MB; {most / 1e6:,.0f} MB are free")


def is_short(count: int) -> bool:
    """Whether a failure may be for want of memory: libraries do not always say so."""
    return 2 * count + RESERVE > available()


def _after_fork() -> None:
    # Another thread of the parent may have held them.
    _State.turn, _State.counting = threading.RLock(), threading.Lock()
    _State.depth = _State.claimed = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

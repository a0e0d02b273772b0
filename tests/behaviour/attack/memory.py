"""A limit of memory for a command and all it starts.

Where HEADGRAFT_CGROUP names a folder of the memory controller in which groups may be made
(``/sys/fs/cgroup/memory`` or one of version 2), the system keeps the limit, and the command can
see it. Else a watcher adds up what the processes of the session hold and kills one of them above
the limit, as the system does when memory ends; the command does not know of it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .starting import at_work, end_session, marked


@dataclass
class Run:
    """How a limited command ended."""

    code: int
    out: str
    seconds: float
    peak: int
    killed: bool


def held(session: int) -> dict[int, int]:
    """Bytes that each of a session's processes holds; what several share is divided among them."""
    found = {}
    for pid in at_work(session):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found[pid] = 1024 * int(next(line for line in lines if line[:4] == "Pss:").split()[1])
    return found


def end_one(processes: dict[int, int], limit: int) -> None:
    """Kill the process that the system would: the largest, or the one that offered itself."""

    def badness(pid: int) -> float:
        try:
            offered = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        except OSError:
            offered = 0
        return processes[pid] + offered * limit / 1000

    with contextlib.suppress(ProcessLookupError):
        os.kill(max(processes, key=badness), signal.SIGKILL)


@contextlib.contextmanager
def group(limit: int) -> Iterator[Path | None]:
    """A control group of so many bytes, where one may be made."""
    home = os.environ.get("HEADGRAFT_CGROUP")
    if not home:
        yield None
        return
    folder = Path(home) / f"headgraft-attack-{os.getpid()}"
    folder.mkdir()
    try:
        version_1 = (folder / "memory.limit_in_bytes").exists()
        name = "memory.limit_in_bytes" if version_1 else "memory.max"
        (folder / name).write_text(str(limit))
        yield folder
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.05)


def limited(name: str, *arguments: object, limit: int, seconds: float, said: Path) -> Run:
    """Run an installed command within so many bytes and seconds."""
    words = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    began, peak = time.monotonic(), 0
    words = marked(words)
    with group(limit) as cell, open(said, "w+b") as out:
        if cell is not None:
            words = ["sh", "-c", f'echo $$ > {cell}/cgroup.procs && exec "$@"', "sh", *words]
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while process.poll() is None:
            now = held(process.pid)
            peak = max(peak, sum(now.values()))
            if cell is None and sum(now.values()) > limit:
                end_one(now, limit)
            if time.monotonic() - began > seconds:
                end_session(process.pid)
                process.wait()
                raise AssertionError(f"no end after {seconds} s: {said.read_text()[-2000:]}")
            time.sleep(0.01)
        end_session(process.pid)
    killed = process.returncode == -signal.SIGKILL
    took = time.monotonic() - began
    return Run(process.returncode, said.read_text(errors="replace"), took, peak, killed)

"""A limit of memory for a command and all it starts.

Where HEADGRAFT_CGROUP names a folder of the memory controller in which groups may be made
(``/sys/fs/cgroup/memory`` or one of version 2), the system keeps the limit, and the command can
see it. Else a watcher adds up what the processes of the session hold and kills them above the
limit, as the system does when memory ends; the command does not know of it.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .starting import at_work, end_session, marked

PAGE = resource.getpagesize()


@dataclass
class Run:
    """How a limited command ended."""

    code: int
    out: str
    seconds: float
    peak: int
    killed: bool


def held(session: int) -> int:
    """Bytes that a session's processes hold, shared ones counted in each."""
    total = 0
    for pid in at_work(session):
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return total


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
    began, peak, killed = time.monotonic(), 0, False
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
            peak = max(peak, now)
            if cell is None and now > limit:
                killed = True
                end_session(process.pid)
            if time.monotonic() - began > seconds:
                end_session(process.pid)
                process.wait()
                raise AssertionError(f"no end after {seconds} s: {said.read_text()[-2000:]}")
            time.sleep(0.01)
        end_session(process.pid)
    killed = killed or process.returncode == -signal.SIGKILL
    took = time.monotonic() - began
    return Run(process.returncode, said.read_text(errors="replace"), took, peak, killed)

"""Core-seconds spent by this process and those it started: what a busy machine does not change."""

import os
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def core_seconds() -> float:
    """Of this process, all its threads, and its living descendants."""
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            stats[int(entry.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICK
    family, found = {os.getpid()}, time.process_time()
    while new := {pid for pid, (parent, _) in stats.items() if parent in family} - family:
        family |= new
        found += sum(stats[pid][1] for pid in new)
    return found

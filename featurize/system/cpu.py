"""How many cores this process may use: by its affinity and by its control group's quota."""

import os
from contextlib import suppress
from pathlib import Path

from featurize.system.cgroups import list_cgroups

CPU_ROOT = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """Logical cores: what decoding threads are counted by."""
    return max(1, min(len(_list_cpus()), int(_read_quota())))


def physical_cores() -> int:
    """Physical cores: two threads of arithmetic on one core only get in each other's way."""
    cores = {_read_siblings(number) for number in _list_cpus()}
    return max(1, min(len(cores), int(_read_quota())))


def _list_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _read_siblings(number: int) -> str:
    """The logical cores that share one physical core with this one, as Linux lists them."""
    try:
        return (CPU_ROOT / f"cpu{number}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(number)


def _read_quota() -> float:
    """Read how many cores' worth of time the control groups (version 2) allow."""
    quotas = [float(os.cpu_count() or 1)]
    for group in list_cgroups():
        with suppress(OSError):  # it limits no processor time
            most, period = (group / "cpu.max").read_text().split()
            if most != "max":
                quotas.append(int(most) / int(period))
    return max(1.0, min(quotas))

"""Number of cores this process may use, by its affinity and its control groups' quota."""

import os
from contextlib import suppress
from pathlib import Path

from featurize.system.cgroups import list_cgroups

CPU_ROOT = Path("/sys/devices/system/cpu")
CPU_INFO = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """Count the logical cores; decoding uses as many threads.

    Returns
    -------
    int
        At least 1.
    """
    return max(1, min(len(_list_cpus()), int(_read_quota())))


def physical_cores() -> int:
    """Count the physical cores; arithmetic gains nothing from two threads on one core.

    Returns
    -------
    int
        At least 1.
    """
    cores = {_read_siblings(number) for number in _list_cpus()}
    return max(1, min(len(cores), int(_read_quota())))


def has_bfloat16_matrices() -> bool:
    """Tell whether the processor has instructions that multiply matrices of bfloat16 (AMX).

    They are several times as fast as those for float32 (``benchmarks/ceiling.py``).

    Returns
    -------
    bool
        False also where it is not known.
    """
    with suppress(OSError):
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("flags"):
                return "amx_bf16" in line.split()
    return False


def _list_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _read_siblings(number: int) -> str:
    """Read which logical cores share one physical core with this one, as Linux lists them."""
    try:
        return (CPU_ROOT / f"cpu{number}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(number)


def _read_quota() -> float:
    """Read the quota of processor time of the control groups (version 2), in cores."""
    quotas = [float(os.cpu_count() or 1)]
    for group in list_cgroups():
        with suppress(OSError):  # the group does not limit processor time
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
    return max(1.0, min(quotas))

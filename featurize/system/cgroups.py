"""The control groups of this process, by which a container or a job is given its share."""

from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def list_cgroups(controller: str = "") -> list[Path]:
    """List the folders of the control groups around this process.

    Parameters
    ----------
    controller : str
        Of version 1: ``memory``. Empty for version 2, which has one tree for all.

    Returns
    -------
    list of Path
        From the innermost outwards; empty where the system has none.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = [line.split(":", 2)[1:] for line in lines]
    inside = [place for controllers, place in groups if controllers == controller]
    if controller:
        tops = [CGROUP_ROOT / controller]
    else:  # version 2, which lies beside version 1 where a system has both
        tops, inside = [CGROUP_ROOT, CGROUP_ROOT / "unified"], inside or ["/"]
    return [
        group
        for place in inside
        for top in tops
        for group in (top / place.lstrip("/"), *(top / place.lstrip("/")).parents)
        if group.is_relative_to(top)
    ]

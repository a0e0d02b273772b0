"""The control groups of this process, which limit a container or a batch job."""

from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def list_cgroups(controller: str = "") -> list[Path]:
    """List the folders of the control groups around this process.

    Parameters
    ----------
    controller : str
        A controller of version 1, such as ``memory``. Empty for version 2, which has one tree
        for all controllers.

    Returns
    -------
    list of Path
        From the innermost group outwards; empty if the system has none.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    entries = [line.split(":", 2)[1:] for line in lines]
    paths = [path for controllers, path in entries if controllers == controller]
    if controller:
        roots = [CGROUP_ROOT / controller]
    else:  # version 2, which has a subfolder of its own on systems that also have version 1
        roots, paths = [CGROUP_ROOT, CGROUP_ROOT / "unified"], paths or ["/"]
    return [
        group
        for path in paths
        for root in roots
        for group in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents)
        if group.is_relative_to(root)
    ]

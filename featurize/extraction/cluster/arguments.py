"""What `--cluster`, `--actors` and `--device` ask for, and how a cluster is shared accordingly."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from featurize.errors import CallError
from featurize.text import format_count, to_printable

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 5.0
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_ADVICE = (
    "it is local (started here, for this run), auto (the cluster that this machine is part of) or "
    "HOST:PORT of a cluster's head, as head-node:6379"
)


@dataclass(frozen=True)
class ClusterAddress:
    """A cluster as it is asked for.

    Attributes
    ----------
    text : str
        ``local``, ``auto`` or ``HOST:PORT``.
    host : str
        Empty unless it is named.
    port : int
        0 unless it is named.
    """

    text: str
    host: str = ""
    port: int = 0


def parse_address(text: str) -> ClusterAddress:
    """Read the value of `--cluster`.

    Parameters
    ----------
    text : str

    Returns
    -------
    ClusterAddress

    Raises
    ------
    CallError
        If it is none.
    """
    if text in (LOCAL, AUTO):
        return ClusterAddress(text)
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65536:
        if text.startswith("ray://"):
            raise CallError(
                f"--cluster {to_printable(text)}: Ray Client is not used. Run the command on a "
                "machine of the cluster, with --cluster auto"
            )
        raise CallError(f"--cluster {to_printable(text)!r} is no cluster: {_ADVICE}")
    return ClusterAddress(text, match[1].strip("[]"), int(match[2]))


def check_arguments(cluster: str | None, n_actors: int | None, device: str) -> None:
    """Check the options of a cluster, before anything is started.

    Parameters
    ----------
    cluster : str, optional
        As given; None for this process alone.
    n_actors : int, optional
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises
    ------
    CallError
        If they do not fit, no cluster answers, or Ray is not installed.
    """
    if cluster is None:
        if n_actors is not None:
            raise CallError("--actors is of a cluster: give --cluster local too, or leave it out")
        return
    address = parse_address(cluster)
    if n_actors is not None and n_actors < 1:
        raise CallError(f"--actors {n_actors}: there is at least 1")
    if ":" in device:
        raise CallError(f"--device {device}: a cluster gives out its GPUs itself; use cuda")
    if not all(map(_is_installed, ("ray", "pyarrow", "pandas"))):
        raise CallError("--cluster needs Ray Data: pip install 'headgraft[cluster]'")
    if address.host:
        _check_reachable(address)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _check_reachable(address: ClusterAddress) -> None:
    """Ray would wait for a minute, and then end the process."""
    try:
        socket.create_connection((address.host, address.port), CONNECT_SECONDS).close()
    except OSError as error:
        raise CallError(
            f"no cluster answers at {address.text} ({error}); `ray status` on its head tells "
            "its address"
        ) from error


@dataclass(frozen=True)
class ActorPlan:
    """How many workers there are, and what each has.

    Attributes
    ----------
    n_actors : int
    n_cores : int
        Of each.
    device : {"cpu", "cuda"}
        With ``cuda`` each has one GPU.
    """

    n_actors: int
    n_cores: int
    device: str


def plan_actors(nodes: list[Mapping[str, float]], n_actors: int | None, device: str) -> ActorPlan:
    """Share the machines of a cluster among workers.

    Parameters
    ----------
    nodes : list of mapping of str to float
        ``CPU`` and ``GPU`` of each machine.
    n_actors : int, optional
    device : {"auto", "cpu", "cuda"}

    Returns
    -------
    ActorPlan
        Each worker has as many cores as all of them can have.

    Raises
    ------
    CallError
        If there is no room for them.
    """
    sizes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    n_gpus = sum(gpus for _, gpus in sizes)
    if device == "cuda" and not n_gpus:
        raise CallError("--device cuda: the cluster has no GPU; leave --device out")
    uses_gpus = device != "cpu" and n_gpus > 0
    n_machines = sum(1 for cores, _ in sizes if cores)
    wanted = n_actors or (n_gpus if uses_gpus else max(n_machines, 1))
    for n_cores in range(max((cores for cores, _ in sizes), default=0), 0, -1):
        room = sum(
            min(cores // n_cores, gpus) if uses_gpus else cores // n_cores for cores, gpus in sizes
        )
        if room >= wanted:
            return ActorPlan(wanted, n_cores, "cuda" if uses_gpus else "cpu")
    n_cores_in_all = sum(cores for cores, _ in sizes)
    raise CallError(
        f"the cluster has no room for {format_count(wanted, 'worker')}: it has "
        f"{format_count(n_cores_in_all, 'core')}, {format_count(n_gpus, 'GPU')}; give --actors"
    )


def describe_plan(plan: ActorPlan, n_nodes: int, address: str) -> str:
    """Say where rows are computed.

    Parameters
    ----------
    plan : ActorPlan
    n_nodes : int
        Machines of the cluster.
    address : str
        Of its head.

    Returns
    -------
    str
    """
    each = "a GPU and " if plan.device == "cuda" else ""
    each += format_count(plan.n_cores, "core")
    return (
        f"computing on the Ray cluster {address}, {format_count(n_nodes, 'machine')}: "
        f"{format_count(plan.n_actors, 'worker')} with {each} each"
    )

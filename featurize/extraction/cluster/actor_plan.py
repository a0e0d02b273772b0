"""How many workers a cluster has, and what each of them gets."""

from collections.abc import Mapping
from dataclasses import dataclass

from featurize.errors import CallError
from featurize.text import format_count


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

"""Which cluster `--cluster` means."""

import re
import socket
from dataclasses import dataclass
from importlib.util import find_spec

from featurize.errors import CallError
from featurize.text import to_printable

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

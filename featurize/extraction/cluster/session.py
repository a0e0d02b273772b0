"""A Ray cluster for one run: started or joined when it is needed, quiet, and left behind clean."""

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featurize.errors import CallError, EngineError
from featurize.extraction.cluster.address import AUTO, LOCAL, check_arguments, parse_address
from featurize.extraction.cluster.blocks import MAX_BLOCK_BYTES
from featurize.extraction.cluster.ledger import Ledger
from featurize.progress import Say
from featurize.system import cpu, signals
from featurize.text import format_bytes, format_count, to_printable

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone

CONNECT_SECONDS = 5.0
MIN_STORE_BYTES = 256 << 20
BLOCKS_IN_STORE = 8  # for each worker
MAX_FOLDER_LENGTH = 24  # sockets lie deep below it, and their paths end at 107 bytes
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_LOG_TO_STDERR": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LOGGERS = ("ray", "ray.data", "ray._private", "ray.tune", "ray.serve")
_TOKEN = secrets.token_hex(32)  # of the clusters that this process starts


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


class ClusterSession:
    """The cluster of a run; a context manager.

    Parameters
    ----------
    cluster : str
        ``local``, ``auto`` or ``HOST:PORT``.
    n_actors : int, optional
        Default one for each GPU, or one for each machine.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    say : callable

    Attributes
    ----------
    plan : ActorPlan
        Once `start` was called.
    """

    def __init__(self, cluster: str, n_actors: int | None, device: str, say: Say) -> None:
        self._address = parse_address(cluster)
        self._n_actors, self._device, self._say = n_actors, device, say
        self._exits = ExitStack()
        self._backbone: tuple[Backbone, Any] | None = None
        self._is_started = False
        self.plan = ActorPlan(1, 1, "cpu")

    def __enter__(self) -> "ClusterSession":
        return self

    def __exit__(self, *_: object) -> None:
        self._backbone = None
        with signals.delay_exit("the cluster to end"):
            self._exits.close()

    def start(self) -> None:
        """Start or join the cluster, unless that was done.

        Raises
        ------
        CallError
            If there is no such cluster, or it has no room for the workers.
        EngineError
            If Ray cannot be started.
        """
        if self._is_started:
            return
        self._exits.enter_context(_environment(_QUIET))
        if self._address.text == LOCAL:
            self._start_local()
        else:
            self._join()
        self._is_started = True
        import ray

        known_nodes: list[dict[str, Any]] = cast(Any, ray).nodes()
        nodes = [node["Resources"] for node in known_nodes if node["Alive"]]
        self.plan = plan_actors(nodes, self._n_actors, self._device)
        self._say(_describe(self.plan, len(nodes), ray.get_runtime_context().gcs_address))

    def start_ledger(self) -> Any:
        """Start the ledger of a job, on this machine.

        Returns
        -------
        ray.actor.ActorHandle
            Of a `Ledger`. It ends with its last reference.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
        remote = ray.remote(Ledger).options(
            num_cpus=0, max_restarts=0, scheduling_strategy=strategy
        )
        return remote.remote()

    def share(self, backbone: "Backbone") -> Any:
        """Put a backbone where all workers get it; its weights are sent once.

        Parameters
        ----------
        backbone : Backbone

        Returns
        -------
        ray.ObjectRef
        """
        import ray

        if self._backbone is None or self._backbone[0] is not backbone:
            self._backbone = backbone, ray.put(backbone)
        return self._backbone[1]

    def _start_local(self) -> None:
        # Before Ray is imported: it then listens on this machine's loopback alone.
        own = {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",  # else one is written to the user's home
            "RAY_AUTH_TOKEN": _TOKEN,
        }
        self._exits.enter_context(_environment(own))
        n_cores = cpu.usable_cores()
        store_bytes = max(
            MIN_STORE_BYTES, BLOCKS_IN_STORE * MAX_BLOCK_BYTES * (self._n_actors or 1)
        )
        self._warn_of_small_store(store_bytes)
        folder = make_session_folder()
        self._exits.callback(remove_session_folder, folder)
        import ray

        if ray.is_initialized():
            raise CallError(
                "Ray runs in this process already; --cluster auto uses the cluster it is part of"
            )
        self._connect(
            folder,
            address="local",
            num_cpus=n_cores,
            object_store_memory=store_bytes,
            include_dashboard=False,
            _temp_dir=str(folder),
        )

    def _warn_of_small_store(self, store_bytes: int) -> None:
        with suppress(OSError):
            free = shutil.disk_usage("/dev/shm").free
            if free < store_bytes:
                self._say(
                    f"/dev/shm has {format_bytes(free)} free, Ray wants "
                    f"{format_bytes(store_bytes)} and takes the disk, which is slower; in "
                    "Docker give --shm-size"
                )

    def _join(self) -> None:
        import ray

        if self._address.text == AUTO and ray.is_initialized():
            return  # the program's own
        if self._address.host:
            _check_reachable(self._address.host, self._address.port)
        folder = make_session_folder()
        self._exits.callback(remove_session_folder, folder)
        self._connect(folder, address=self._address.text)

    def _connect(self, folder: Path, **options: Any) -> None:
        import ray

        self._exits.callback(ray.shutdown)
        levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        self._exits.callback(_set_levels, levels)
        # Ray would add this process's folder to where workers search for modules, and write a
        # token that others can read.
        previous_umask = os.umask(0o077)
        try:
            with _keep_handlers(), chdir(folder), signals.defer_signals(), _hide_stderr(folder):
                ray.init(
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    configure_logging=False,
                    **options,
                )
                signals.import_uninterrupted("ray.data")
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise _to_start_error(error, self._address.text) from error
        finally:
            os.umask(previous_umask)
        _set_levels(dict.fromkeys(_LOGGERS, logging.CRITICAL))


@contextmanager
def open_session(
    cluster: str | None, n_actors: int | None, device: str, say: Say
) -> Iterator[ClusterSession | None]:
    """Open the cluster of a run; nothing is started before there is something to compute.

    Parameters
    ----------
    cluster : str, optional
        As given; None for this process alone.
    n_actors : int, optional
    device : str
    say : callable

    Yields
    ------
    ClusterSession or None

    Raises
    ------
    CallError
        If the options do not fit, or Ray is not installed.
    """
    check_arguments(cluster, n_actors, device)
    if cluster is None:
        yield None
        return
    with ClusterSession(cluster, n_actors, device, say) as session:
        yield session


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


def _describe(plan: ActorPlan, n_nodes: int, address: str) -> str:
    each = "a GPU and " if plan.device == "cuda" else ""
    each += format_count(plan.n_cores, "core")
    return (
        f"computing on the Ray cluster {address}, {format_count(n_nodes, 'machine')}: "
        f"{format_count(plan.n_actors, 'worker')} with {each} each"
    )


def make_session_folder() -> Path:
    """Make a private folder for Ray's sockets and logs; its name is short.

    Returns
    -------
    Path
    """
    parent = tempfile.gettempdir()
    if len(parent) > MAX_FOLDER_LENGTH and sys.platform != "win32":
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="hg-", dir=parent))


def remove_session_folder(folder: Path) -> None:
    """Remove Ray's folder, even if a process of Ray's that ends writes its last lines there.

    Parameters
    ----------
    folder : Path
    """
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that are not set; what Ray starts inherits them."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _keep_handlers() -> Iterator[None]:
    """Restore the handlers of signals: with Ray's own, SIGTERM aborts the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def _hide_stderr(folder: Path) -> Iterator[None]:
    """Send what Ray's own code writes past Python, while it starts, to a file."""
    own = os.dup(2)
    try:
        with (folder / "start.log").open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)


def _set_levels(levels: Mapping[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _check_reachable(host: str, port: int) -> None:
    """Ray would wait for a minute, and then end the process."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise CallError(
            f"no cluster answers at {host}:{port} ({error}); `ray status` on its head tells "
            "its address"
        ) from error


def _to_start_error(error: Exception, text: str) -> CallError | EngineError:
    first_line = to_printable((str(error).strip() or type(error).__name__).splitlines()[0])
    if text == LOCAL:
        return EngineError(f"Ray cannot be started here: {first_line}")
    if isinstance(error, ConnectionError) and text == AUTO:
        return CallError(
            "there is no cluster that this machine is part of; --cluster local starts one here"
        )
    return CallError(f"the cluster {text} cannot be joined: {first_line}")

"""A Ray cluster for one run: started or joined when it is needed, quiet, and left behind clean."""

import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featurize.engines.base import CPU_ENGINES
from featurize.errors import CallError, EngineError
from featurize.extraction.cluster.arguments import (
    AUTO,
    LOCAL,
    ActorPlan,
    check_arguments,
    describe_plan,
    parse_address,
    plan_actors,
)
from featurize.extraction.cluster.blocks import MAX_BLOCK_BYTES
from featurize.extraction.cluster.ledger import Ledger
from featurize.extraction.cluster.manners import (
    LOGGERS,
    LOOPBACK,
    QUIET,
    environment,
    hide_raylet,
    hide_stderr,
    keep_handlers,
    make_session_folder,
    remove_session_folder,
    set_levels,
)
from featurize.progress import Say
from featurize.system import cpu, signals
from featurize.text import format_bytes, to_printable

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone

MIN_STORE_BYTES = 256 << 20
BLOCKS_IN_STORE = 8  # for each worker
_RESTORE_SECONDS = 0.005
PLACE_BYTES = 160  # of an image that is still to be computed
_TOKEN = secrets.token_hex(32)  # of the clusters that this process starts


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

    def start(self, n_rows: int) -> None:
        """Start or join the cluster, unless that was done.

        Parameters
        ----------
        n_rows : int
            Rows to compute; what is started has room for their places.

        Raises
        ------
        CallError
            If there is no such cluster, or it has no room for the workers.
        EngineError
            If Ray cannot be started.
        """
        if self._is_started:
            return
        self._exits.enter_context(environment(QUIET))
        if self._address.text == LOCAL:
            self._start_local(n_rows)
        else:
            self._join()
        self._is_started = True
        import ray

        known_nodes: list[dict[str, Any]] = cast(Any, ray).nodes()
        nodes = [node["Resources"] for node in known_nodes if node["Alive"]]
        self.plan = plan_actors(nodes, self._n_actors, self._device)
        self._say(describe_plan(self.plan, len(nodes), ray.get_runtime_context().gcs_address))

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

    def _start_local(self, n_rows: int) -> None:
        # Set before Ray is imported. Without a token, Ray writes one to the user's home.
        self._exits.enter_context(environment(LOOPBACK, replaces=True))
        self._exits.enter_context(environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}))
        signals.import_uninterrupted("ray")
        import ray
        import torch

        if ray.is_initialized():
            raise CallError(
                "Ray runs in this process already; --cluster auto uses the cluster it is part of"
            )
        n_actors = self._n_actors or torch.cuda.device_count() or 1
        store_bytes = BLOCKS_IN_STORE * MAX_BLOCK_BYTES * n_actors + PLACE_BYTES * n_rows
        store_bytes = max(MIN_STORE_BYTES, store_bytes)
        self._warn_of_small_store(store_bytes)
        folder = self._make_folder()
        self._connect(
            folder,
            address=LOCAL,
            num_cpus=cpu.usable_cores(),
            object_store_memory=store_bytes,
            include_dashboard=False,
            _temp_dir=str(folder),
        )

    def _make_folder(self) -> Path:
        folder = make_session_folder()
        self._exits.callback(remove_session_folder, folder)
        return folder

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
        signals.import_uninterrupted("ray")
        import ray

        if self._address.text == AUTO and ray.is_initialized():
            return  # the program's own
        self._say(f"joining the Ray cluster {self._address.text}")
        self._connect(self._make_folder(), address=self._address.text)

    def _connect(self, folder: Path, **options: Any) -> None:
        import ray

        self._exits.enter_context(hide_raylet())
        levels = {name: logging.getLogger(name).level for name in LOGGERS}
        self._exits.callback(set_levels, levels)
        self._exits.callback(_leave)
        # Ray would add this process's folder to where workers search for modules, and write a
        # token that others can read.
        previous_umask, is_local = os.umask(0o077), self._address.text == LOCAL
        try:
            with (
                # What was started is left behind clean; joining may wait for ever.
                signals.delay_exit("Ray to start") if is_local else nullcontext(),
                signals.defer_signals(),
                keep_handlers(),
                hide_stderr(folder),
                chdir(folder),
            ):
                ray.init(
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    configure_logging=False,
                    **options,
                )
                signals.import_uninterrupted("ray.data")
        except SystemExit:  # Ray's own answer to SIGTERM, while it starts
            raise KeyboardInterrupt from None
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise _to_start_error(error, self._address.text) from error
        finally:
            os.umask(previous_umask)
        set_levels(dict.fromkeys(LOGGERS, logging.CRITICAL))


@contextmanager
def open_session(
    cluster: str | None, n_actors: int | None, engine: str, device: str, say: Say
) -> Iterator[ClusterSession | None]:
    """Open the cluster of a run; nothing is started before there is something to compute.

    Parameters
    ----------
    cluster : str, optional
        As given; None for this process alone.
    n_actors : int, optional
    engine, device : str
        As given.
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
    if device == "auto":  # some engines know one kind of device
        device = "cpu" if engine in CPU_ENGINES else "cuda" if engine == "cuda" else "auto"
    with ClusterSession(cluster, n_actors, device, say) as session:
        yield session


def _leave() -> None:
    """Leave the cluster.

    Ray takes the handler of SIGTERM away at once, and then takes seconds to end its processes: the
    signal would end this one in between, with all of that left behind. So it leaves in a thread,
    and this one puts the handlers back meanwhile.
    """
    import ray

    if threading.current_thread() is not threading.main_thread():
        ray.shutdown()
        return
    with signals.defer_signals():
        leaving = threading.Thread(target=ray.shutdown, name="leave", daemon=True)
        leaving.start()
        while leaving.is_alive():
            leaving.join(_RESTORE_SECONDS)
            with keep_handlers():
                pass


def _to_start_error(error: Exception, text: str) -> CallError | EngineError:
    first_line = to_printable((str(error).strip() or type(error).__name__).splitlines()[0])
    if text == LOCAL:
        return EngineError(f"Ray cannot be started here: {first_line}")
    if isinstance(error, ConnectionError) and text == AUTO:
        return CallError(
            "there is no cluster that this machine is part of; --cluster local starts one here"
        )
    return CallError(f"the cluster {text} cannot be joined: {first_line}")

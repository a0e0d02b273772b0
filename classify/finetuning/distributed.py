"""The devices a network is trained on: a CPU, a GPU, or several GPUs with a process each.

torch's launcher starts several processes: ``torchrun --nproc-per-node 4 --no-python classify
finetune ...``. Which of them this is, `classify.launcher` reads.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from classify.errors import CallError, PeerEndedError
from classify.launcher import count_local_processes, read_world_size
from featurize.engines.torch_settings import resolve_device

PEER_TIMEOUT = timedelta(minutes=5)  # for one exchange; the processes work at the same pace
_PEER_ENDED = re.compile(
    r"connection closed by peer|connection reset by peer|connection refused|broken pipe"
    r"|remote process exited|peer .* exited|nccl.*(aborted|remote error)|timed out",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Distributed:
    """One of the processes that train together.

    Attributes
    ----------
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    rank : int
        Number of this process, from 0.
    world_size : int
        Number of processes.
    """

    device: str
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Make a context of mixed precision on a GPU that has bfloat16, of float32 elsewhere.

        Returns
        -------
        context manager
        """
        # Older GPUs emulate it, more slowly than they compute in float32.
        if self.device == "cpu" or not torch.cuda.is_bf16_supported(including_emulation=False):
            return nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def broadcast(self, value: bool) -> bool:
        """Replace a value by that of the main process.

        A process that stopped alone would leave the others waiting.

        Parameters
        ----------
        value : bool
            The value in this process.

        Returns
        -------
        bool
            The value in the process of rank 0.
        """
        if self.world_size == 1:
            return value
        shared = torch.tensor(int(value), device=self.device)
        dist.broadcast(shared, 0)
        return bool(shared)

    def broadcast_object(self, value: Any) -> Any:
        """Replace a value by that of the main process, which alone has to have it.

        Parameters
        ----------
        value : object
            Passed on by pickle, between these processes alone.

        Returns
        -------
        object
            The value in the process of rank 0.
        """
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=torch.device(self.device))
        return box[0]

    def find_first(self, number: int | None) -> int | None:
        """Find the smallest number that any process has.

        Parameters
        ----------
        number : int or None
            At least 0; None if this process has none.

        Returns
        -------
        int or None
            The same in all processes; None if none has any.
        """
        if self.world_size == 1:
            return number
        missing = torch.iinfo(torch.int64).max
        shared = torch.tensor(missing if number is None else number, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MIN)
        return None if int(shared) == missing else int(shared)

    def average(self, value: float) -> float:
        """Average a number over all processes.

        Parameters
        ----------
        value : float

        Returns
        -------
        float
            The same in all processes.
        """
        if self.world_size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return float(shared) / self.world_size

    def wrap_ddp(self, net: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients are averaged over all processes.

        Parameters
        ----------
        net : Module
            On `device`.

        Returns
        -------
        Module
            The network itself if there is only one process.
        """
        if self.world_size == 1:
            return net
        devices = None if self.device == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(net, device_ids=devices)


@contextmanager
def init_distributed(device: str) -> Iterator[Distributed]:
    """Join the processes that a launcher has started, if there are several.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

    Yields
    ------
    Distributed
        This process, until the context ends.

    Raises
    ------
    CallError
        If there is no such device, or the processes would share one.
    PeerEndedError
        If another process ends within the context.
    """
    world_size = read_world_size()
    if world_size > 1 and ":" in device:
        raise CallError(
            f"--device {device} would put {world_size} processes on one GPU; use --device cuda"
        )
    resolved = resolve_device(device)
    if world_size == 1:
        yield Distributed(resolved)
        return
    device_id = None
    if resolved == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise CallError(
                f"process {local_rank + 1} of {count_local_processes()} on this machine has no GPU "
                f"of its own: there are {torch.cuda.device_count()}. Start as many with "
                "--nproc-per-node, or use --device cpu"
            )
        resolved = f"cuda:{local_rank}"
        torch.cuda.set_device(resolved)
        device_id = torch.device(resolved)
    dist.init_process_group(
        "gloo" if resolved == "cpu" else "nccl", timeout=PEER_TIMEOUT, device_id=device_id
    )
    try:
        yield Distributed(resolved, dist.get_rank(), world_size)
    except RuntimeError as error:
        # No teardown: it waits for all processes, and the others may be waiting for this one.
        if _PEER_ENDED.search(str(error)):
            raise PeerEndedError(
                "another process of this training has ended; it says why. The same command goes on "
                "after the last finished epoch"
            ) from error
        raise
    dist.destroy_process_group()


@contextmanager
def seed_torch(seed: int, device: str) -> Iterator[None]:
    """Seed torch within a context, and restore its generators afterwards.

    Parameters
    ----------
    seed : int
        Of the random weights drawn within the context.
    device : str
        The device whose generator is restored as well as the processor's.

    Yields
    ------
    None
    """
    # `torch.manual_seed` seeds every GPU's.
    gpus = [] if device == "cpu" else range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def derive_seed(*numbers: int) -> int:
    """Derive a seed from numbers, the same in every process and release.

    Parameters
    ----------
    *numbers : int

    Returns
    -------
    int
        For `torch.manual_seed`.
    """
    return hash(numbers) & 0x7FFFFFFF

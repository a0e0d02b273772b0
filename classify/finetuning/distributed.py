"""The devices a network is trained on: a CPU, a GPU, or several GPUs with a process each.

torch's launcher starts several processes: ``torchrun --nproc-per-node 4 --no-python classify
finetune ...``. It describes them in environment variables, which are read here.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from featurize.engines.torch_settings import resolve_device


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
        if self.device == "cpu" or not torch.cuda.is_bf16_supported():
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
        If there is no such device.
    """
    resolved = resolve_device(device)
    if _read_world_size() == 1:
        yield Distributed(resolved)
        return
    if resolved == "cuda":
        resolved = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(resolved)
    dist.init_process_group("gloo" if resolved == "cpu" else "nccl")
    try:
        yield Distributed(resolved, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Tell whether this process is the one that writes files and messages.

    Returns
    -------
    bool
    """
    return _read_world_size() == 1 or os.environ.get("RANK", "0") == "0"


def count_local_processes() -> int:
    """Count the processes that train together on this machine, and share its memory.

    Returns
    -------
    int
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", _read_world_size()))


def _read_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))

"""Where a network is trained: one processor or GPU, or several, each in a process of its own.

Several processes are started by torch's own launcher, ``torchrun --nproc-per-node 4 --no-python
classify finetune ...``. It describes them in environment variables, which are read here.
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
    """This process among those that train together.

    Attributes
    ----------
    device : str
    rank : int
        Number of this process, from 0.
    world_size : int
        Number of processes.
    """

    device: str
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision on a GPU that has bfloat16; float32 on a processor."""
        if self.device == "cpu" or not torch.cuda.is_bf16_supported():
            return nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def broadcast(self, value: bool) -> bool:
        """The value of the main process: one that stopped alone would leave the rest waiting."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(int(value), device=self.device)
        dist.broadcast(shared, 0)
        return bool(shared)

    def wrap_ddp(self, net: nn.Module) -> nn.Module:
        """The network, with gradients averaged over all processes."""
        if self.world_size == 1:
            return net
        devices = None if self.device == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(net, device_ids=devices)


@contextmanager
def init_distributed(device: str) -> Iterator[Distributed]:
    """Join the processes that a launcher has started, or be the only one.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

    Raises
    ------
    CallError
        If the device is not there.
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
    """Whether this process is the one that writes files and messages."""
    return _read_world_size() == 1 or os.environ.get("RANK", "0") == "0"


def _read_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))

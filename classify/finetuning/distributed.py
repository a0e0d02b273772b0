"""Where a network is trained: one processor or GPU, or several, each in a process of its own.

Several are started by torch's own launcher, ``torchrun --nproc-per-node 4 --no-python classify
finetune ...``; this room only reads what it says.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from featurize.engines.torch_settings import resolve_device


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together.

    Attributes
    ----------
    device : str
    rank, world : int
        This one's number, and how many there are.
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
        """What the lead decides, for all: one that stopped alone would leave the rest waiting."""
        if self.world_size == 1:
            return value
        told = torch.tensor(int(value), device=self.device)
        distributed.broadcast(told, 0)
        return bool(told)

    def wrap_ddp(self, net: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the crew."""
        if self.world_size == 1:
            return net
        devices = None if self.device == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(net, device_ids=devices)


@contextmanager
def init_distributed(device: str) -> Iterator[Distributed]:
    """Join the processes that a launcher has started, or be one alone.

    Raises
    ------
    CallError
        If the device is not there.
    """
    world = _world_size()
    found = resolve_device(device)
    if world == 1:
        yield Distributed(found)
        return
    if found == "cuda":
        found = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(found)
    distributed.init_process_group("gloo" if found == "cpu" else "nccl")
    try:
        yield Distributed(found, distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks for all."""
    return _world_size() == 1 or os.environ.get("RANK", "0") == "0"


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))

"""Loaders of batches, with an order that depends on the epoch."""

import multiprocessing
import os
from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from classify.finetuning.datasets.activations import ActivationDataset
from classify.finetuning.datasets.images import ImageDataset
from classify.finetuning.datasets.item_labels import ItemLabel
from classify.launcher import count_local_processes
from featurize.system.cpu import usable_cores

MAX_WORKERS = 8
PREFETCHED_BATCHES = 3  # of a worker: two that wait, and the one it makes
SHARED_MEMORY = "/dev/shm"  # often 64 MiB in containers; beyond that they end by a bus error


class EpochSampler(Sampler[int]):
    """The items of one epoch in random order, or this process's share of them.

    Image i of n in epoch e is item e n + i, see `ImageDataset`.

    Parameters
    ----------
    n : int
        Number of images.
    seed : int
        Together with the epoch it determines the order.
    rank : int
        Number of this process, from 0.
    world_size : int
        Number of processes. Each takes every `world_size`-th item, and all take equally many.

    Attributes
    ----------
    epoch : int
        From 0; set by the caller before the sampler is iterated over.
    """

    def __init__(self, n: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.n, self.seed, self.rank, self.world_size = n, seed, rank, world_size
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        share = order[self.rank :: self.world_size][: len(self)]
        return iter((share + self.epoch * self.n).tolist())

    def __len__(self) -> int:
        return self.n // self.world_size


def make_dataloader(
    dataset: ImageDataset | ActivationDataset,
    batch_size: int,
    device: str,
    sampler: EpochSampler | None = None,
) -> "DataLoader[tuple[Tensor, ItemLabel]]":
    """Make a loader of batches, for any number of epochs.

    Parameters
    ----------
    dataset : ImageDataset or ActivationDataset
        Images or activations, with labels.
    batch_size : int
        Items per batch.
    device : str
        The device that takes the batches. For a GPU they are loaded into pinned memory.
    sampler : EpochSampler, optional
        Gives the order. Without it the items come in the order of the dataset.

    Returns
    -------
    DataLoader
        Batches of images or activations, and of labels. Its worker processes live as long
        as it does.
    """
    n_workers = _count_workers(dataset, batch_size, device)
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        pin_memory=device != "cpu",
        # A small last batch would get a step as large as that of a full batch.
        drop_last=sampler is not None and len(sampler) > 2 * batch_size,
    )


def _count_workers(dataset: ImageDataset | ActivationDataset, batch_size: int, device: str) -> int:
    """Count the worker processes that help: where a GPU waits, or images are decoded anew."""
    images = dataset.images if isinstance(dataset, ImageDataset) else None
    is_decoded = images is None or images.is_in_memory
    if images is not None and not images.allows_workers:
        return 0
    if is_decoded and (device == "cpu" or multiprocessing.get_start_method() != "fork"):
        return 0  # they would be sent a copy of all that is held in memory
    # Each of the processes that train here has workers of its own.
    n_processes = count_local_processes()
    worker_bytes = PREFETCHED_BATCHES * batch_size * dataset[0][0].nbytes
    n_fitting = _count_shared_bytes() // n_processes // worker_bytes
    return int(min(MAX_WORKERS, max(1, usable_cores() // n_processes), n_fitting))


def _count_shared_bytes() -> int:
    """Count the bytes that workers may put batches into, with some room left."""
    try:
        stats = os.statvfs(SHARED_MEMORY)
    except OSError:  # not Linux: files of another kind, without this limit
        return 1 << 40
    return stats.f_bavail * stats.f_frsize * 3 // 4

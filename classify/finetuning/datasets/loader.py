"""Loaders of batches, with an order that depends on the epoch."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from classify.finetuning.datasets.activations import ActivationDataset
from classify.finetuning.datasets.images import ImageDataset
from featurize.system.cpu import usable_cores


class EpochSampler(Sampler[int]):
    """The items of one epoch in random order, or this process's share of them.

    Image i of n in epoch e is item e n + i, see `ImageDataset`.

    Parameters
    ----------
    n : int
        Number of images.
    epoch : int
        From 0.
    seed : int
        Together with `epoch` it determines the order.
    rank : int
        Number of this process, from 0.
    world_size : int
        Number of processes. Each takes every `world_size`-th item, and all take equally many.
    """

    def __init__(self, n: int, epoch: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        order = np.random.default_rng((seed, epoch)).permutation(n)
        share = order[rank::world_size][: n // world_size] if world_size > 1 else order
        self.indices = (share + epoch * n).tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def make_dataloader(
    dataset: ImageDataset | ActivationDataset,
    batch_size: int,
    device: str,
    sampler: EpochSampler | None = None,
) -> "DataLoader[tuple[Tensor, int]]":
    """Make a loader of batches.

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
        Batches of images or activations, and of class numbers.
    """
    # Worker processes help where a GPU waits, or where images are decoded in every epoch.
    images = dataset.images if isinstance(dataset, ImageDataset) else None
    decodes = images is not None and not images.is_in_memory
    n_workers = min(8, usable_cores()) if decodes or device != "cpu" else 0
    if images is not None and not images.allows_workers:
        n_workers = 0
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=n_workers,
        pin_memory=device != "cpu",
        # A small last batch would get a step as large as that of a full batch.
        drop_last=sampler is not None and len(sampler) > 2 * batch_size,
    )

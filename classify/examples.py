"""What a network is tuned on: images, cropped and flipped anew each time, or cached maps."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from classify.entering import Entering
from classify.errors import CallError
from featurize import images
from featurize.errors import ImageUnreadable

IN_MEMORY = 2 << 30
"""Bytes of decoded pixels that are held; beyond, images are decoded anew each time."""
AUGMENT = ("flips", "crops", "none")
SMALLEST = 0.35  # share of an image's area that a random crop keeps at least


class Pixels:
    """Decoded images, held in memory where they fit.

    Parameters
    ----------
    root : path
        The image folder.
    paths : sequence of str
        Relative to it.
    recipe : mapping
        Preprocessing of a backbone.
    whole : bool
        True gives all of the resized image's central square, to crop at random; False what the
        recipe crops, to the bit as `featurize` has it.
    report : callable, optional
        Told how many are decoded, and of how many.

    Attributes
    ----------
    readable : bool array of shape (n,)
    contents : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    failures : dict of str to str
        Why an image cannot be read, by path.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Sequence[str],
        recipe: Mapping[str, Any],
        *,
        whole: bool = False,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.root, self.paths = Path(root), list(paths)
        self.recipe = {**recipe, "crop": max(recipe["crop"], recipe["resize"])} if whole else recipe
        self.side = int(self.recipe["crop"])
        shape = (len(paths), self.side, self.side, 3)
        self._held = np.empty(shape, np.uint8) if np.prod(shape) <= IN_MEMORY else None
        self.readable = np.ones(len(paths), bool)
        self.contents = np.zeros((len(paths), 32), np.uint8)
        self.failures: dict[str, str] = {}
        with ThreadPoolExecutor(cpu_count()) as pool:
            # Looked at once even where they are not held: a broken file must not end an epoch.
            for i, error in enumerate(pool.map(self._take, range(len(paths)))):
                if error is not None:
                    self.readable[i] = False
                    self.failures[self.paths[i]] = images.REASONS[error.reason]
                report(i + 1, len(paths))

    def _take(self, i: int) -> ImageUnreadable | None:
        try:
            data = images.read(images.place_of(self.root, self.paths[i])).data
            pixels = images.decode(data, dict(self.recipe))
        except ImageUnreadable as error:
            return error
        self.contents[i] = np.frombuffer(images.digest(data), np.uint8)
        if self._held is not None:
            self._held[i] = pixels
        return None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def in_memory(self) -> bool:
        """Whether they are held."""
        return self._held is not None

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i: uint8 (side, side, 3)."""
        if self._held is not None:
            return np.asarray(self._held[i])
        data = images.read(images.place_of(self.root, self.paths[i])).data
        return images.decode(data, dict(self.recipe))


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images with labels, each epoch's seen anew.

    An item's number says its epoch too: image i of n in epoch e is item e n + i. What is random
    about it depends on that number and the seed alone, so that neither workers nor a stop and a
    resumed run change it.

    Parameters
    ----------
    pixels : Pixels
    y : int array of shape (n,)
    crop : int
        Side of what the network takes.
    augment : {"flips", "crops", "none"}
        ``flips``: random crops, mirrored half the time. ``crops``: without the mirror, for what
        has a left and a right, as letters do. ``none``: the centre.
    seed : int
    at : int array of shape (n,), optional
        Which of the decoded images they are; all, if not given.
    """

    def __init__(
        self,
        pixels: Pixels,
        y: np.ndarray,
        crop: int,
        augment: str = "none",
        seed: int = 0,
        *,
        at: np.ndarray | None = None,
    ) -> None:
        if augment not in AUGMENT:
            raise CallError(f"--augment is one of {', '.join(AUGMENT)}, not {augment!r}")
        self.pixels, self.y, self.crop, self.seed = pixels, y, crop, seed
        self.at = np.arange(len(y)) if at is None else at
        steps: list[Any] = [v2.CenterCrop(crop)]
        if augment != "none":
            steps = [v2.RandomResizedCrop(crop, scale=(SMALLEST, 1), antialias=True)]
        if augment == "flips":
            steps.append(v2.RandomHorizontalFlip())
        self.transform, self.random = v2.Compose(steps), augment != "none"

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """An image, uint8 (3, crop, crop), and its class number."""
        i = item % len(self.y)
        image = torch.from_numpy(self.pixels[int(self.at[i])]).permute(2, 0, 1)
        if self.random:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(hash((self.seed, item)) & 0x7FFFFFFF)
                image = self.transform(image)
        else:
            image = self.transform(image)
        return image, int(self.y[i])

    @property
    def paths(self) -> list[str]:
        """Of the images."""
        return [self.pixels.paths[i] for i in self.at]

    @property
    def contents(self) -> np.ndarray:
        """SHA-256 of each image's bytes: uint8 (n, 32)."""
        return self.pixels.contents[self.at]

    def plain(self, positions: np.ndarray) -> "Pictures":
        """Some of them as they are, without crops and flips."""
        return Pictures(self.pixels, self.y[positions], self.crop, at=self.at[positions])


class Maps(Dataset[tuple[Tensor, int]]):
    """Cached maps with labels: what enters the tuned part, read where it lies.

    Parameters
    ----------
    maps : Entering
        n of them.
    y : int array of shape (n,)
    """

    def __init__(self, maps: Entering, y: np.ndarray) -> None:
        self.maps, self.y = maps, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """A map, float32, and its class number."""
        i = item % len(self.y)
        row = np.array(self.maps.mapped[self.maps.rows[i]], np.float32)
        return torch.from_numpy(row.reshape(self.maps.shape)), int(self.y[i])

    @property
    def paths(self) -> list[str]:
        """Of the images."""
        return self.maps.paths

    @property
    def contents(self) -> np.ndarray:
        """SHA-256 of each image's bytes: uint8 (n, 32)."""
        return self.maps.contents

    def plain(self, positions: np.ndarray) -> "Maps":
        """Some of them."""
        return Maps(self.maps.at(positions), self.y[positions])


class Shuffled(Sampler[int]):
    """The items of one epoch in random order, or this process's share of them.

    Parameters
    ----------
    n : int
    epoch, seed : int
    rank, world : int
        Of several processes, each takes every world-th, the same number all.
    """

    def __init__(self, n: int, epoch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        order = np.random.default_rng((seed, epoch)).permutation(n)
        share = order[rank::world][: n // world] if world > 1 else order
        self.items = (share + epoch * n).tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def loader(
    examples: Pictures | Maps, batch_size: int, device: str, order: Shuffled | None = None
) -> "DataLoader[tuple[Tensor, int]]":
    """Batches of examples, in order if no other order is given.

    Worker processes help where a GPU waits, or where images are decoded anew each time.
    """
    busy = isinstance(examples, Pictures) and not examples.pixels.in_memory
    workers = min(8, cpu_count()) if busy or device != "cpu" else 0
    return DataLoader(
        examples,
        batch_size,
        sampler=order,
        num_workers=workers,
        pin_memory=device != "cpu",
        # What is left over would make a batch whose step counts as much as a whole one's.
        drop_last=order is not None and len(order) > 2 * batch_size,
    )

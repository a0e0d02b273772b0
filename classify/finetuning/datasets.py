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

from classify.errors import CallError
from classify.finetuning.activations import CachedActivations
from featurize.errors import ImageUnreadableError
from featurize.files import hash_bytes
from featurize.images import decoding, reading, reasons
from featurize.sources import folder

MAX_PIXEL_BYTES = 2 << 30
"""Bytes of decoded pixels that are held; beyond, images are decoded anew each time."""
AUGMENTATIONS = ("flips", "crops", "none")
MIN_CROP_AREA = 0.35  # share of an image's area that a random crop keeps at least


class DecodedImages:
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
        preprocess: Mapping[str, Any],
        *,
        uncropped: bool = False,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.root, self.paths = Path(root), list(paths)
        self.preprocess = (
            {**preprocess, "crop": max(preprocess["crop"], preprocess["resize"])}
            if uncropped
            else preprocess
        )
        self.side = int(self.preprocess["crop"])
        shape = (len(paths), self.side, self.side, 3)
        self._cached_pixels = (
            np.empty(shape, np.uint8) if np.prod(shape) <= MAX_PIXEL_BYTES else None
        )
        self.is_readable = np.ones(len(paths), bool)
        self.sha256 = np.zeros((len(paths), 32), np.uint8)
        self.failures: dict[str, str] = {}
        with ThreadPoolExecutor(cpu_count()) as pool:
            # Looked at once even where they are not held: a broken file must not end an epoch.
            for i, error in enumerate(pool.map(self._decode_image, range(len(paths)))):
                if error is not None:
                    self.is_readable[i] = False
                    self.failures[self.paths[i]] = reasons.REASONS[error.reason]
                report(i + 1, len(paths))

    def _decode_image(self, i: int) -> ImageUnreadableError | None:
        try:
            data = reading.read_image_file(folder.join_path(self.root, self.paths[i])).data
            pixels = decoding.decode_image(data, dict(self.preprocess))
        except ImageUnreadableError as error:
            return error
        self.sha256[i] = np.frombuffer(hash_bytes(data), np.uint8)
        if self._cached_pixels is not None:
            self._cached_pixels[i] = pixels
        return None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_in_memory(self) -> bool:
        """Whether they are held."""
        return self._cached_pixels is not None

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i: uint8 (side, side, 3)."""
        if self._cached_pixels is not None:
            return np.asarray(self._cached_pixels[i])
        data = reading.read_image_file(folder.join_path(self.root, self.paths[i])).data
        return decoding.decode_image(data, dict(self.preprocess))


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images with labels, each epoch's seen anew.

    An item's number says its epoch too: image i of n in epoch e is item e n + i. What is random
    about it depends on that number and the seed alone, so that neither workers nor a stop and a
    resumed run change it.

    Parameters
    ----------
    pixels : DecodedImages
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
        pixels: DecodedImages,
        y: np.ndarray,
        crop: int,
        augment: str = "none",
        seed: int = 0,
        *,
        indices: np.ndarray | None = None,
    ) -> None:
        if augment not in AUGMENTATIONS:
            raise CallError(f"--augment is one of {', '.join(AUGMENTATIONS)}, not {augment!r}")
        self.images, self.y, self.crop, self.seed = pixels, y, crop, seed
        self.indices = np.arange(len(y)) if indices is None else indices
        steps: list[Any] = [v2.CenterCrop(crop)]
        if augment != "none":
            steps = [v2.RandomResizedCrop(crop, scale=(MIN_CROP_AREA, 1), antialias=True)]
        if augment == "flips":
            steps.append(v2.RandomHorizontalFlip())
        self.transform, self.is_random = v2.Compose(steps), augment != "none"

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """An image, uint8 (3, crop, crop), and its class number."""
        i = item % len(self.y)
        image = torch.from_numpy(self.images[int(self.indices[i])]).permute(2, 0, 1)
        if self.is_random:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(hash((self.seed, item)) & 0x7FFFFFFF)
                image = self.transform(image)
        else:
            image = self.transform(image)
        return image, int(self.y[i])

    @property
    def paths(self) -> list[str]:
        """Of the images."""
        return [self.images.paths[i] for i in self.indices]

    @property
    def sha256(self) -> np.ndarray:
        """SHA-256 of each image's bytes: uint8 (n, 32)."""
        return self.images.sha256[self.indices]

    def without_augmentation(self, positions: np.ndarray) -> "ImageDataset":
        """Some of them as they are, without crops and flips."""
        return ImageDataset(
            self.images, self.y[positions], self.crop, indices=self.indices[positions]
        )


class ActivationDataset(Dataset[tuple[Tensor, int]]):
    """Cached maps with labels: what enters the tuned part, read where it lies.

    Parameters
    ----------
    maps : CachedActivations
        n of them.
    y : int array of shape (n,)
    """

    def __init__(self, activations: CachedActivations, y: np.ndarray) -> None:
        self.activations, self.y = activations, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """A map, float32, and its class number."""
        i = item % len(self.y)
        row = np.array(self.activations.memmap[self.activations.rows[i]], np.float32)
        return torch.from_numpy(row.reshape(self.activations.shape)), int(self.y[i])

    @property
    def paths(self) -> list[str]:
        """Of the images."""
        return self.activations.paths

    @property
    def sha256(self) -> np.ndarray:
        """SHA-256 of each image's bytes: uint8 (n, 32)."""
        return self.activations.sha256

    def without_augmentation(self, positions: np.ndarray) -> "ActivationDataset":
        """Some of them."""
        return ActivationDataset(self.activations.subset(positions), self.y[positions])


class EpochSampler(Sampler[int]):
    """The items of one epoch in random order, or this process's share of them.

    Parameters
    ----------
    n : int
    epoch, seed : int
    rank, world : int
        Of several processes, each takes every world-th, the same number all.
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
    """Batches of examples, in order if no other order is given.

    Worker processes help where a GPU waits, or where images are decoded anew each time.
    """
    busy = isinstance(dataset, ImageDataset) and not dataset.images.is_in_memory
    workers = min(8, cpu_count()) if busy or device != "cpu" else 0
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=device != "cpu",
        # What is left over would make a batch whose step counts as much as a whole one's.
        drop_last=sampler is not None and len(sampler) > 2 * batch_size,
    )

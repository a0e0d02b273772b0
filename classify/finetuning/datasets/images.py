"""Decoded images as a dataset, augmented differently in each epoch."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from classify.errors import TooFewImagesError
from featurize.errors import ImageUnreadableError
from featurize.files import hash_bytes
from featurize.images import decoding, reading, reasons
from featurize.images.preprocess import Preprocess
from featurize.progress import Report, Step, ignore
from featurize.sources.stores.local_store import join_path
from featurize.system.cpu import usable_cores

MAX_PIXEL_BYTES = 2 << 30
"""Limit of the decoded pixels held in memory. Beyond it, images are decoded in every epoch."""
MIN_CROP_AREA = 0.35  # smallest share of an image's area in a random crop


class DecodedImages:
    """Decoded images, held in memory where they fit.

    Parameters
    ----------
    root : path
        The image folder.
    paths : sequence of str
        The n image paths, relative to `root`.
    preprocess : Preprocess
        The backbone's preprocessing.
    uncropped : bool
        Whether to return the whole central square of the resized image, for random crops. False
        by default: the crop of `preprocess`, with pixels identical to those of `featurize`.
    report : callable
        Called with the `featurize.progress.Progress` of decoding.

    Attributes
    ----------
    side : int
        Side of the decoded images, in pixels.
    is_readable : bool array of shape (n,)
        Whether each image can be decoded.
    sha256 : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    failures : dict of str to str
        Why an image cannot be read, by path.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Sequence[str],
        preprocess: Preprocess,
        *,
        uncropped: bool = False,
        report: Report = ignore,
    ) -> None:
        self.root, self.paths = Path(root), list(paths)
        self.side = max(preprocess.crop, preprocess.resize) if uncropped else preprocess.crop
        self.preprocess = replace(preprocess, crop=self.side)
        shape = (len(paths), self.side, self.side, 3)
        self._cached_pixels = (
            np.empty(shape, np.uint8) if np.prod(shape) <= MAX_PIXEL_BYTES else None
        )
        self.is_readable = np.ones(len(paths), bool)
        self.sha256 = np.zeros((len(paths), 32), np.uint8)
        self.failures: dict[str, str] = {}
        with ThreadPoolExecutor(usable_cores()) as pool:
            # Decode all now, held or not: an unreadable file must not stop an epoch later.
            for i, error in enumerate(pool.map(self._decode_image, range(len(paths)))):
                if error is not None:
                    self.is_readable[i] = False
                    self.failures[self.paths[i]] = reasons.REASONS[error.reason]
                report(Step("reading images", i + 1, len(paths)))

    def _decode_image(self, i: int) -> ImageUnreadableError | None:
        try:
            data = reading.read_image_file(join_path(self.root, self.paths[i])).data
            pixels = decoding.decode_image(data, self.preprocess)
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
        """Whether the pixels are held in memory."""
        return self._cached_pixels is not None

    def __getitem__(self, i: int) -> np.ndarray:
        """Return image i, uint8 (side, side, 3)."""
        if self._cached_pixels is not None:
            return np.asarray(self._cached_pixels[i])
        data = reading.read_image_file(join_path(self.root, self.paths[i])).data
        return decoding.decode_image(data, self.preprocess)


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images with labels, augmented differently in each epoch.

    The item index includes the epoch: image i of n in epoch e is item e n + i. The augmentation of
    an item depends on its index and the seed alone. So it is the same with any number of workers,
    and in a training that was interrupted and resumed.

    Parameters
    ----------
    pixels : DecodedImages
        The images.
    y : int array of shape (n,)
        The class number of each item.
    crop : int
        Side of the network's input, in pixels.
    augment : {"flips", "crops", "none"}
        ``flips``: random crops, mirrored half the time. ``crops``: without mirroring, for images
        with a left and a right, such as letters. ``none`` (the default): the central crop.
    seed : int
        Of the augmentation.
    indices : int array of shape (n,), optional
        The position of each item in `pixels`. By default the items are all the images.

    Attributes
    ----------
    images, y, crop, seed, indices
        The parameters.
    is_random : bool
        Whether items are augmented.
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
        self.images, self.y, self.crop, self.seed = pixels, y, crop, seed
        self.indices = np.arange(len(y)) if indices is None else indices
        transforms: list[Any] = [v2.CenterCrop(crop)]
        if augment != "none":
            transforms = [v2.RandomResizedCrop(crop, scale=(MIN_CROP_AREA, 1), antialias=True)]
        if augment == "flips":
            transforms.append(v2.RandomHorizontalFlip())
        self.transform, self.is_random = v2.Compose(transforms), augment != "none"

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """Return an image, uint8 (3, crop, crop), and its class number."""
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
        """The n image paths."""
        return [self.images.paths[i] for i in self.indices]

    @property
    def sha256(self) -> np.ndarray:
        """SHA-256 of each image's bytes: uint8 (n, 32)."""
        return self.images.sha256[self.indices]

    def without_augmentation(self, positions: np.ndarray) -> "ImageDataset":
        """Select images by position, without random crops and flips.

        Parameters
        ----------
        positions : int array
            The items to select.

        Returns
        -------
        ImageDataset
            The selected items with central crops, on the same decoded images.
        """
        return ImageDataset(
            self.images, self.y[positions], self.crop, indices=self.indices[positions]
        )


def read_image_datasets(
    root: str | os.PathLike[str],
    paths: np.ndarray,
    y: np.ndarray,
    masks: Sequence[np.ndarray],
    *,
    classes: np.ndarray,
    preprocess: Preprocess,
    augment: str,
    seed: int,
    report: Report,
) -> list[ImageDataset]:
    """Decode the images to train on and those to validate by.

    Images that cannot be read are left out. Only the training images are augmented.

    Parameters
    ----------
    root : path
        The image folder.
    paths : array of str of shape (n,)
        Image paths relative to `root`.
    y : int array of shape (n,)
        Class numbers.
    masks : pair of bool arrays of shape (n,)
        Training images and validation images.
    classes : array of shape (K,)
        Class names.
    preprocess : Preprocess
        The backbone's preprocessing.
    augment : {"flips", "crops", "none"}
        See `ImageDataset`.
    seed : int
        Of the augmentation.
    report : callable
        Called with the `featurize.progress.Progress` of decoding.

    Returns
    -------
    list of ImageDataset
        The training set and the validation set.

    Raises
    ------
    TooFewImagesError
        If no image of some class can be read in one of the two.
    """
    datasets = []
    for mask, purpose in zip(masks, ("train on", "validate by"), strict=True):
        mode = augment if purpose == "train on" else "none"
        dataset = _read_image_dataset(root, paths[mask], y[mask], preprocess, mode, seed, report)
        missing = np.setdiff1d(y[mask], dataset.y)
        if len(missing):
            path, reason = next(iter(dataset.images.failures.items()))
            raise TooFewImagesError(
                f"no image of class {str(classes[missing[0]])!r} to {purpose} can be "
                f"read ({path}: {reason})"
            )
        datasets.append(dataset)
    return datasets


def _read_image_dataset(
    root: str | os.PathLike[str],
    paths: np.ndarray,
    y: np.ndarray,
    preprocess: Preprocess,
    augment: str,
    seed: int,
    report: Report,
) -> ImageDataset:
    uncropped = augment != "none"
    images = DecodedImages(root, paths.tolist(), preprocess, uncropped=uncropped, report=report)
    readable = np.flatnonzero(images.is_readable)
    return ImageDataset(images, y[readable], preprocess.crop, augment, seed, indices=readable)

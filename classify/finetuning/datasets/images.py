"""Decoded images as a dataset, augmented differently in each epoch."""

import os
import queue
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from classify.data.source_images import SourceImages
from classify.finetuning.datasets.item_labels import ItemLabel, get_label
from classify.launcher import count_local_processes
from featurize.errors import ImageUnreadableError
from featurize.files import hash_bytes
from featurize.images import decoding, reasons
from featurize.images.preprocess import Preprocess
from featurize.images.reading import ImageFile
from featurize.pipeline.read_ahead import ReadAhead
from featurize.progress import Report, Step, ignore
from featurize.sources.folder import FolderSource
from featurize.sources.listing import ImageListing, ImageRead
from featurize.sources.source import ImageReader
from featurize.system.cpu import usable_cores
from featurize.system.memory import read_available_bytes
from featurize.text import format_bytes

MAX_PIXEL_BYTES = 2 << 30
"""Limit of the decoded pixels held in memory. Beyond it, images are decoded in every epoch."""
MAX_MEMORY_SHARE = 0.5  # of what is available, for images that are slow to read one by one
MAX_IMAGES_AHEAD = 128  # read or being decoded, when all are
MIN_CROP_AREA = 0.35  # smallest share of an image's area in a random crop
LabelCheck = Callable[[np.ndarray, np.ndarray, str, Mapping[str, str]], None]


class DecodedImages:
    """Decoded images, held in memory where they fit.

    Parameters
    ----------
    listing : ImageListing
        The n images, in any order.
    preprocess : Preprocess
        The backbone's preprocessing.
    uncropped : bool
        Whether to return the whole central square of the resized image, for random crops. False
        by default: the crop of `preprocess`, with pixels identical to those of `featurize`.
    report : callable
        Called with the `featurize.progress.Progress` of decoding.

    Attributes
    ----------
    paths : list of str
        Their keys.
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
        listing: ImageListing,
        preprocess: Preprocess,
        *,
        uncropped: bool = False,
        report: Report = ignore,
    ) -> None:
        self.listing, self.paths = listing, listing.paths
        self._reader: tuple[int, ImageReader] | None = None  # by the process that opened it
        self.side = max(preprocess.crop, preprocess.resize) if uncropped else preprocess.crop
        self.preprocess = replace(preprocess, crop=self.side)
        shape = (len(self.paths), self.side, self.side, 3)
        is_held = np.prod(shape) <= _find_max_pixel_bytes(listing)
        self._cached_pixels = np.empty(shape, np.uint8) if is_held else None
        self.is_readable = np.ones(len(self.paths), bool)
        self.sha256 = np.zeros((len(self.paths), 32), np.uint8)
        # Decode all now, held or not: an unreadable file must not stop an epoch later.
        reasons_by_row = self._decode_all(report)
        self.failures = {self.paths[row]: text for row, text in sorted(reasons_by_row.items())}
        self.is_readable[list(reasons_by_row)] = False

    def _decode_all(self, report: Report) -> dict[int, str]:
        """Read ahead as the source is best read, and decode on all cores; return what fails."""
        n_images, failures = len(self.paths), dict[int, str]()
        n_threads = min(usable_cores(), n_images)
        if not n_threads:
            return failures
        done: queue.SimpleQueue[tuple[int, int] | BaseException] = queue.SimpleQueue()
        read_ahead = ReadAhead(self.listing, np.arange(n_images), MAX_IMAGES_AHEAD, n_threads)

        def decode_loop() -> None:
            try:
                while taken := read_ahead.take():
                    for read, _ in taken:
                        done.put((read.row, self._decode_read(read)))
                    read_ahead.release(MAX_IMAGES_AHEAD, len(taken))
            except BaseException as error:  # raised again in the main thread
                done.put(error)

        with ThreadPoolExecutor(n_threads) as pool:
            try:
                for _ in range(n_threads):
                    pool.submit(decode_loop)
                for n_done in range(1, n_images + 1):
                    result = done.get()
                    if isinstance(result, BaseException):
                        raise result
                    row, reason = result
                    if reason != reasons.OK:
                        failures[row] = reasons.REASONS[reason]
                    report(Step("reading images", n_done, n_images))
            finally:
                read_ahead.close()
        return failures

    def _decode_read(self, read: ImageRead) -> int:
        """Decode an image that was read; return the reason why it cannot be, or `reasons.OK`."""
        row, image = read
        try:
            pixels = decoding.decode_image(_get_data(image), self.preprocess)
        except ImageUnreadableError as error:
            return error.reason
        self.sha256[row] = np.frombuffer(hash_bytes(_get_data(image)), np.uint8)
        if self._cached_pixels is not None:
            self._cached_pixels[row] = pixels
        return reasons.OK

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_in_memory(self) -> bool:
        """Whether the pixels are held in memory."""
        return self._cached_pixels is not None

    @property
    def allows_workers(self) -> bool:
        """Whether worker processes may load them; connections to a network survive no fork."""
        return self.is_in_memory or not self.listing.source.is_remote

    def __getitem__(self, i: int) -> np.ndarray:
        """Return image i, uint8 (side, side, 3)."""
        return self.select([i])[0]

    def select(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return some images; those that are not held are read together.

        Parameters
        ----------
        indices : sequence of int
            m positions.

        Returns
        -------
        list of uint8 array of shape (side, side, 3)
            m images, in the order given.

        Raises
        ------
        ImageUnreadableError
            If an image can no longer be read.
        """
        if self._cached_pixels is not None:
            return [np.asarray(self._cached_pixels[i]) for i in indices]
        reader, pixels = self._open_reader(), dict[int, np.ndarray]()
        for chunk in self.listing.source.split_rows(self.listing, np.unique(indices)):
            for row, image in reader.read(chunk):
                decoded = decoding.decode_image(_get_data(image), self.preprocess)
                pixels[row] = np.require(decoded, requirements="W")  # as tensors have to be
        return [pixels[i] for i in indices]

    def _open_reader(self) -> ImageReader:
        """Return the reader of this process; a forked one must not share files that are open."""
        pid, reader = self._reader or (0, None)
        if reader is None or pid != os.getpid():
            reader = self.listing.source.open_reader(self.listing)
            weakref.finalize(self, reader.close)
            self._reader = os.getpid(), reader
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def describe_rereading(self) -> str:
        """Describe what it costs that the images are not held; empty where it costs little."""
        if self.is_in_memory or isinstance(self.listing.source, FolderSource):
            return ""
        n_bytes = 3.0 * len(self) * self.side**2
        return (
            f"{len(self):,} decoded images take {format_bytes(n_bytes)} and do not fit into "
            f"memory: each epoch reads them again from {self.listing.root}, which may take most "
            "of the time. A copy of them in a folder of this machine is quicker"
        )


def _find_max_pixel_bytes(listing: ImageListing) -> int:
    """Limit the pixels held: more where an image by itself is slow to read again."""
    if isinstance(listing.source, FolderSource):
        return MAX_PIXEL_BYTES
    share = MAX_MEMORY_SHARE / count_local_processes()  # each holds all images
    return max(MAX_PIXEL_BYTES, int(share * read_available_bytes()))


def _get_data(image: ImageFile | ImageUnreadableError) -> bytes:
    if isinstance(image, ImageUnreadableError):
        raise image
    return image.data


class ImageDataset(Dataset[tuple[Tensor, ItemLabel]]):
    """Images with labels, augmented differently in each epoch.

    The item index includes the epoch: image i of n in epoch e is item e n + i. The augmentation of
    an item depends on its index and the seed alone. So it is the same with any number of workers,
    and in a training that was interrupted and resumed.

    Parameters
    ----------
    pixels : DecodedImages
        The images.
    y : int array of shape (n,), or float64 array of shape (n, T)
        The class number of each item, or its labels, number or grade.
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

    def __getitem__(self, item: int) -> tuple[Tensor, ItemLabel]:
        """Return an image, uint8 (3, crop, crop), and its label."""
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[tuple[Tensor, ItemLabel]]:
        """Return a batch of items, whose images are read together."""
        numbers = [item % len(self.y) for item in items]
        images = self.images.select([int(self.indices[i]) for i in numbers])
        return [
            (self._transform_pixels(pixels, item), get_label(self.y, i))
            for item, i, pixels in zip(items, numbers, images, strict=True)
        ]

    def _transform_pixels(self, pixels: np.ndarray, item: int) -> Tensor:
        # A decoder's pixels may not be written to, of which torch would warn.
        image = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)
        if not self.is_random:
            transformed: Tensor = self.transform(image)
            return transformed
        with torch.random.fork_rng(devices=[]):
            # Not that of the GPUs, from which dropout is drawn.
            torch.default_generator.manual_seed(hash((self.seed, item)) & 0x7FFFFFFF)
            transformed = self.transform(image)
        return transformed

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
    images: SourceImages,
    paths: np.ndarray,
    y: np.ndarray,
    masks: Sequence[np.ndarray],
    *,
    check_readable: LabelCheck,
    preprocess: Preprocess,
    augment: str,
    seed: int,
    report: Report,
) -> list[ImageDataset]:
    """Decode the images to train on and those to validate by.

    Images that cannot be read are left out. Only the training images are augmented.

    Parameters
    ----------
    images : SourceImages
    paths : array of str of shape (n,)
        Their keys.
    y : int array of shape (n,), or float64 array of shape (n, T)
        Their labels.
    masks : pair of bool arrays of shape (n,)
        Training images and validation images.
    check_readable : callable
        `classify.finetuning.objectives.objective.Objective.check_readable`.
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
        As `check_readable` does.
    """
    datasets = []
    for mask, purpose in zip(masks, ("train on", "validate by"), strict=True):
        mode = augment if purpose == "train on" else "none"
        listing = images.locate(paths[mask].tolist())
        dataset = _read_image_dataset(listing, y[mask], preprocess, mode, seed, report)
        check_readable(y[mask], dataset.y, purpose, dataset.images.failures)
        datasets.append(dataset)
    return datasets


def _read_image_dataset(
    listing: ImageListing,
    y: np.ndarray,
    preprocess: Preprocess,
    augment: str,
    seed: int,
    report: Report,
) -> ImageDataset:
    uncropped = augment != "none"
    images = DecodedImages(listing, preprocess, uncropped=uncropped, report=report)
    readable = np.flatnonzero(images.is_readable)
    return ImageDataset(images, y[readable], preprocess.crop, augment, seed, indices=readable)

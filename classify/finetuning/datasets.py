"""What a network is tuned on: images, augmented in every epoch, or cached activations."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from classify.data.features import find_rows
from classify.errors import HeadMismatchError
from featurize.backbones.backbone import Backbone
from featurize.backbones.families import parse_layers
from featurize.backbones.partition import find_boundary_layer
from featurize.cache.format import Extractor
from featurize.cache.reader import FeatureCache
from featurize.errors import BackboneError, ImageUnreadableError, UnknownLayerError
from featurize.files import hash_bytes
from featurize.images import decoding, reading, reasons
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec
from featurize.progress import Report, Step, ignore
from featurize.sources import folder
from featurize.text import format_bytes

ADD_IMAGES = "Add them with `featurize run`"

MAX_PIXEL_BYTES = 2 << 30
"""Bytes of decoded pixels that are held; beyond, images are decoded anew each time."""
MIN_CROP_AREA = 0.35  # share of an image's area that a random crop keeps at least


class DecodedImages:
    """Decoded images, held in memory where they fit.

    Parameters
    ----------
    root : path
        The image folder.
    paths : sequence of str
        Relative to it.
    preprocess : Preprocess
        That of the backbone.
    whole : bool
        True gives all of the resized image's central square, to crop at random; False what the
        recipe crops, to the bit as `featurize` has it.
    report : callable
        Called with the `featurize.progress.Progress` of decoding.

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
        with ThreadPoolExecutor(cpu_count()) as pool:
            # Looked at once even where they are not held: a broken file must not end an epoch.
            for i, error in enumerate(pool.map(self._decode_image, range(len(paths)))):
                if error is not None:
                    self.is_readable[i] = False
                    self.failures[self.paths[i]] = reasons.REASONS[error.reason]
                report(Step("reading images", i + 1, len(paths)))

    def _decode_image(self, i: int) -> ImageUnreadableError | None:
        try:
            data = reading.read_image_file(folder.join_path(self.root, self.paths[i])).data
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
        """Whether they are held."""
        return self._cached_pixels is not None

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i: uint8 (side, side, 3)."""
        if self._cached_pixels is not None:
            return np.asarray(self._cached_pixels[i])
        data = reading.read_image_file(folder.join_path(self.root, self.paths[i])).data
        return decoding.decode_image(data, self.preprocess)


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


def read_image_dataset(
    root: str | os.PathLike[str],
    paths: np.ndarray,
    y: np.ndarray,
    preprocess: Preprocess,
    augment: str,
    seed: int,
    report: Report,
) -> ImageDataset:
    """Decode labelled images; those that cannot be read are left out. See `ImageDataset`."""
    uncropped = augment != "none"
    images = DecodedImages(root, paths.tolist(), preprocess, uncropped=uncropped, report=report)
    readable = np.flatnonzero(images.is_readable)
    return ImageDataset(images, y[readable], preprocess.crop, augment, seed, indices=readable)


class ActivationDataset(Dataset[tuple[Tensor, int]]):
    """Cached activations with labels: what enters the tuned part, read where it lies.

    Parameters
    ----------
    memmap : float array of shape (N, C H W)
        Memory map of the cache's layer.
    rows : int array of shape (n,)
        The row of each image in it.
    shape : tuple of int
        Of one image's activation, as the network has it.
    paths : list of str
    sha256 : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    y : int array of shape (n,)
        The class number of each image.
    """

    def __init__(
        self,
        memmap: np.ndarray,
        rows: np.ndarray,
        shape: tuple[int, ...],
        paths: list[str],
        sha256: np.ndarray,
        y: np.ndarray,
    ) -> None:
        self.memmap, self.rows, self.shape = memmap, rows, shape
        self.paths, self.sha256, self.y = paths, sha256, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """An activation, float32, and its class number."""
        i = item % len(self.y)
        row = np.array(self.memmap[self.rows[i]], np.float32)
        return torch.from_numpy(row.reshape(self.shape)), int(self.y[i])

    def subset(self, positions: np.ndarray) -> "ActivationDataset":
        """Select images by position, or by a mask."""
        rows, sha256, y = (x[positions] for x in (self.rows, self.sha256, self.y))
        paths = np.array(self.paths, object)[positions].tolist()
        return ActivationDataset(self.memmap, rows, self.shape, paths, sha256, y)

    def without_augmentation(self, positions: np.ndarray) -> "ActivationDataset":
        """Select images; activations are never augmented."""
        return self.subset(positions)


def find_activations(
    backbone: Backbone,
    tune: str,
    cache: FeatureCache | None,
    paths: Sequence[str],
    y: np.ndarray,
    say: Callable[[str], None],
) -> ActivationDataset | None:
    """Find the cached activations that enter the tuned part, so that the rest need not run.

    Parameters
    ----------
    tune : str
        The layer that tuning begins at.
    cache : FeatureCache, optional
    paths : sequence of str
        The images.
    y : int array of shape (n,)
        Their class numbers.
    say : callable
        Called with a sentence: which layer is used, or which to cache and what that takes.

    Returns
    -------
    ActivationDataset, or None
        None where there is no cache, or it has the last layer alone, which serves to start from.

    Raises
    ------
    UnknownLayerError
        If the cache has neither.
    BackboneError
        If more than one tensor enters, and the cache has no last layer either.
    HeadMismatchError
        If the cache was made by another network.
    UnknownPathError, RowNotReadyError
        If it lacks an image.
    """
    if cache is not None:
        _check_same_backbone(backbone, cache)
    (last,) = parse_layers("last", None, backbone.name)
    startable = cache is not None and last.key in cache.layers
    if tune == "all":
        if cache is not None and not startable:
            raise UnknownLayerError(_format_missing_layer(cache, "to start from", last.option))
        return None
    try:
        boundary = find_boundary_layer(backbone.network, tune)
    except BackboneError as error:
        if cache is not None and not startable:
            raise
        if cache is not None:
            say(f"the part before {tune} runs in every epoch: {error}")
        return None
    wanted = LayerSpec(boundary.name, "none")
    number = int(np.prod(boundary.map_shape))
    takes = f"{format_bytes(4.0 * number * len(paths))} for {len(paths):,} images"
    if cache is None or wanted.key not in cache.layers:
        if cache is not None and not startable:
            raise UnknownLayerError(
                _format_missing_layer(cache, f"that enters {tune}, {takes}", wanted.option)
            )
        say(
            f"the part before {tune} runs again in every epoch; it need not, without crops and "
            f"flips: featurize run ... --layers {wanted.option} ({takes}), then --cache"
        )
        return None
    info = cache.layer(wanted.key)
    say(f"training from the cached maps of {info.name}: the part before {tune} is not run")
    rows = find_rows(cache, paths, ADD_IMAGES)
    cache.check_ready(rows)
    sha256 = cache.column("sha256")[rows]
    memmap = cache.mapped(info.name)
    return ActivationDataset(memmap, rows, boundary.map_shape, list(paths), sha256, y)


def _check_same_backbone(backbone: Backbone, cache: FeatureCache) -> None:
    made = cache.extractor
    differences = made.differences(describe_extractor(backbone, made))
    if differences:
        raise HeadMismatchError(
            f"{cache.path} was made with another {', '.join(differences)} ({made.backbone}, "
            f"{made.weights}) than what is tuned ({backbone.name}, {backbone.weights}); give its "
            "--backbone, --weights and --preprocess, or leave --cache out"
        )


def describe_extractor(backbone: Backbone, like: Extractor) -> Extractor:
    """Describe a backbone as an extractor that is `like` another in all but the backbone."""
    return replace(
        like,
        backbone=backbone.name,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        preprocess=backbone.preprocess,
    )


def _format_missing_layer(cache: FeatureCache, what: str, layer: str) -> str:
    return (
        f"{cache.path} has {', '.join(cache.layers)}, not the layer {what}; add it with "
        f"`featurize run IMAGES -o {cache.path} --layers {layer}`"
    )

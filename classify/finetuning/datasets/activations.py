"""Cached activations that enter the tuned part of a network, as a dataset."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from classify.data.features import find_rows
from classify.errors import HeadMismatchError
from classify.finetuning.datasets.item_labels import ItemLabel, get_label
from classify.finetuning.tuned_part.stages import find_last_layer
from featurize.backbones.backbone import Backbone
from featurize.cache.format import Extractor
from featurize.cache.parts.stacked_rows import StackedRows
from featurize.cache.reader import FeatureCache
from featurize.errors import BackboneError, UnknownLayerError
from featurize.layer_spec import LayerSpec
from featurize.layers.partition import find_boundary_layer
from featurize.progress import Say
from featurize.text import format_bytes

ADD_IMAGES = "Add them with `featurize run`"


class ActivationDataset(Dataset[tuple[Tensor, ItemLabel]]):
    """Cached activations with labels, read where they lie.

    Parameters
    ----------
    memmap : float array or StackedRows of shape (N, C H W)
        The cache's layer, which has N rows: a memory map, or read from its parts.
    rows : int array of shape (n,)
        The cache row of each image.
    shape : tuple of int
        Shape of one image's activation in the network.
    paths : list of str
        The n image paths.
    sha256 : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    y : int array of shape (n,), or float64 array of shape (n, T)
        The class number of each image, or its labels, number or grade.
    """

    def __init__(
        self,
        memmap: np.ndarray | StackedRows,
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

    def __getitem__(self, item: int) -> tuple[Tensor, ItemLabel]:
        """Return an activation, float32, and its label."""
        i = item % len(self.y)
        row = np.array(self.memmap[self.rows[i]], np.float32)
        return torch.from_numpy(row.reshape(self.shape)), get_label(self.y, i)

    def subset(self, positions: np.ndarray) -> "ActivationDataset":
        """Select images by position or by mask.

        Parameters
        ----------
        positions : int array, or bool array of shape (n,)
            The images to select.

        Returns
        -------
        ActivationDataset
            The selected images, on the same memory map.
        """
        rows, sha256, y = (array[positions] for array in (self.rows, self.sha256, self.y))
        paths = np.array(self.paths, object)[positions].tolist()
        return ActivationDataset(self.memmap, rows, self.shape, paths, sha256, y)

    def without_augmentation(self, positions: np.ndarray) -> "ActivationDataset":
        """Select images by position or by mask. Activations are never augmented.

        Parameters
        ----------
        positions : int array, or bool array of shape (n,)
            The images to select.

        Returns
        -------
        ActivationDataset
            The selected images, on the same memory map.
        """
        return self.subset(positions)


def find_activations(
    backbone: Backbone,
    tune: str,
    cache: FeatureCache | None,
    paths: Sequence[str],
    y: np.ndarray,
    say: Say,
) -> ActivationDataset | None:
    """Find the cached activations that enter the tuned part.

    Training from them does not run the frozen part of the network.

    Parameters
    ----------
    backbone : Backbone
        The network to tune.
    tune : str
        The first layer to tune, or ``all``.
    cache : FeatureCache, optional
        A cache of the same images.
    paths : sequence of str
        The n image paths.
    y : int array of shape (n,), or float64 array of shape (n, T)
        The label of each image.
    say : callable
        Called with a sentence: which layer is used, or which to cache and how many bytes it takes.

    Returns
    -------
    ActivationDataset, or None
        None without a cache, with `tune` ``all``, or if the cache has only the last layer. The
        last layer still serves to initialise the classifier.

    Raises
    ------
    UnknownLayerError
        If the cache has neither the entering layer nor the last one.
    BackboneError
        If more than one tensor enters the tuned part and the cache lacks the last layer.
    HeadMismatchError
        If the cache was made by another network.
    UnknownPathError
        If the cache lacks an image.
    RowNotReadyError
        If an image of the cache has no features.
    """
    if cache is not None:
        _check_same_backbone(backbone, cache)
    last_layer = find_last_layer(backbone)
    has_last_layer = cache is not None and last_layer.key in cache.layers
    if tune == "all":
        if cache is not None and not has_last_layer:
            raise UnknownLayerError(
                _format_missing_layer(cache, "to start from", last_layer.option)
            )
        return None
    try:
        boundary = find_boundary_layer(backbone.network, tune)
    except BackboneError as error:
        if cache is not None and not has_last_layer:
            raise
        if cache is not None:
            say(f"the part before {tune} runs in every epoch: {error}")
        return None
    boundary_spec = LayerSpec(boundary.name, "none")
    n_values = int(np.prod(boundary.map_shape))
    storage = f"{format_bytes(4.0 * n_values * len(paths))} for {len(paths):,} images"
    if cache is None or boundary_spec.key not in cache.layers:
        if cache is not None and not has_last_layer:
            raise UnknownLayerError(
                _format_missing_layer(cache, f"that enters {tune}, {storage}", boundary_spec.option)
            )
        say(
            f"the part before {tune} runs again in every epoch; it need not, without crops and "
            f"flips: featurize run ... --layers {boundary_spec.option} ({storage}), then --cache"
        )
        return None
    layer = cache.layer(boundary_spec.key)
    say(f"training from the cached maps of {layer.name}: the part before {tune} is not run")
    rows = find_rows(cache, paths, ADD_IMAGES)
    cache.check_ready(rows)
    sha256 = cache.column("sha256", rows)
    memmap = cache.mapped(layer.name)
    return ActivationDataset(memmap, rows, boundary.map_shape, list(paths), sha256, y)


def _check_same_backbone(backbone: Backbone, cache: FeatureCache) -> None:
    extractor = cache.extractor
    differences = extractor.differences(describe_extractor(backbone, extractor))
    if differences:
        raise HeadMismatchError(
            f"{cache.path} was made with another {', '.join(differences)} ({extractor.backbone}, "
            f"{extractor.weights}) than what is tuned ({backbone.name}, {backbone.weights}); give "
            "its --backbone, --weights and --preprocess, or leave --cache out"
        )


def describe_extractor(backbone: Backbone, like: Extractor) -> Extractor:
    """Describe a backbone as an extractor, to compare it with that of a cache or a head.

    Parameters
    ----------
    backbone : Backbone
        Gives name, weights and preprocessing.
    like : Extractor
        Gives everything else.

    Returns
    -------
    Extractor
    """
    return replace(
        like,
        backbone=backbone.name,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        preprocess=backbone.preprocess,
    )


def _format_missing_layer(cache: FeatureCache, description: str, layer: str) -> str:
    return (
        f"{cache.path} has {', '.join(cache.layers)}, not the layer {description}; add it with "
        f"`featurize run IMAGES -o {cache.path} --layers {layer}`"
    )

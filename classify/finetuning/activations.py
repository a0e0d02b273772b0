"""Cached maps that enter the tuned part of a network: the frozen part need not run again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from classify.data.features import find_rows
from classify.errors import HeadMismatchError
from featurize.backbones.backbone import Backbone
from featurize.backbones.families import parse_layers
from featurize.backbones.partition import find_boundary_layer
from featurize.cache.format import Extractor
from featurize.cache.reader import FeatureCache
from featurize.errors import BackboneError, UnknownLayerError
from featurize.layer_spec import LayerSpec
from featurize.text import format_bytes

ADD_IMAGES = "Add them with `featurize run`"


@dataclass(frozen=True, eq=False)
class CachedActivations:
    """The maps of some images.

    Attributes
    ----------
    mapped : float array of shape (N, C H W)
        Memory map of the cache's layer.
    rows : int array of shape (n,)
        The row of each image.
    shape : tuple of int
        Of one map, as the network has it.
    paths : list of str
    contents : uint8 array of shape (n, 32)
        SHA-256 of each image's bytes.
    """

    memmap: np.ndarray
    rows: np.ndarray
    shape: tuple[int, ...]
    paths: list[str]
    sha256: np.ndarray

    def subset(self, positions: np.ndarray) -> "CachedActivations":
        """Some of them: positions, or a mask."""
        paths = np.array(self.paths, object)[positions].tolist()
        rows, contents = self.rows[positions], self.sha256[positions]
        return CachedActivations(self.memmap, rows, self.shape, paths, contents)


def find_activations(
    backbone: Backbone,
    tune: str,
    cache: FeatureCache | None,
    paths: Sequence[str],
    say: Callable[[str], None],
) -> CachedActivations | None:
    """The maps to train on, if the cache has them.

    Parameters
    ----------
    tune : str
        The layer that tuning begins at.
    cache : FeatureCache, optional
    paths : sequence of str
        The images.
    say : callable
        Told which layer to cache, and what that takes, where it is not there.

    Returns
    -------
    Entering, or None
        None where there is no cache, or it has the last layer alone, which serves to start from.

    Raises
    ------
    UnknownLayer
        If the cache has neither.
    BackboneError
        If more than one tensor enters, and the cache has no last layer either.
    HeadMismatch
        If the cache was made by another network.
    UnknownPath, RowNotReady
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
        door = find_boundary_layer(backbone.network, tune)
    except BackboneError as error:
        if cache is not None and not startable:
            raise
        if cache is not None:
            say(f"the part before {tune} runs in every epoch: {error}")
        return None
    wanted = LayerSpec(door.name, "none")
    number = int(np.prod(door.map_shape))
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
    contents = cache.column("sha256")[rows]
    return CachedActivations(cache.mapped(info.name), rows, door.map_shape, list(paths), contents)


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
    """Describe a backbone, to be compared with `like`: what is not the backbone's is taken over."""
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

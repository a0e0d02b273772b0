"""Embed the images that a head is used on, or open their cache."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from classify.data.features import open_cache
from classify.errors import CallError, HeadMismatchError
from classify.heads.source import FeatureSource
from featurize.backbones.names import is_file_path
from featurize.cache.parts.index import has_index
from featurize.cache.reader import FeatureCache
from featurize.errors import CallError as SourceError
from featurize.errors import RunInterruptedError, UnknownWeightsError
from featurize.progress import Say
from featurize.sources.folder import IMAGE_SUFFIXES
from featurize.sources.opening import open_source
from featurize.sources.stores.addresses import is_address
from featurize.system import signals

HDF5_SIGNATURE, CACHE_SUFFIXES = b"\x89HDF\r\n\x1a\n", (".h5", ".hdf5")
USUAL_SIDE, LARGE_SIDE = 224, 1024  # pixels along a side; above the second a message is shown


class EmbeddingHead(Protocol):
    """What heads of all kinds of labels know of the features they take."""

    @property
    def source(self) -> FeatureSource:
        """The backbone, and the layers."""

    @property
    def network(self) -> Path | None:
        """File that also holds the network."""

    def trained_on(self, contents: np.ndarray) -> np.ndarray:
        """Find the images that the head was trained on."""


@contextmanager
def embed_or_open(
    head: EmbeddingHead, images: str, weights: str | None, say: Say, report: Callable[[Any], None]
) -> Iterator[FeatureCache]:
    """Open a cache, or embed images of any source into one that is removed in the end.

    Parameters
    ----------
    head : FittedHead or FittedTargets
    images : str
        As in `predict_classes`.
    weights : str, optional
    say, report : callable

    Yields
    ------
    FeatureCache

    Raises
    ------
    HeadMismatchError, CallError, FileNotFoundError, FeaturizeError
        As `predict_classes` does.
    """
    path = Path(images)
    is_file = path.is_file()
    is_image = is_file and path.suffix.lower() in IMAGE_SUFFIXES
    if has_index(path) or (is_file and not is_image and _looks_like_cache(path)):
        yield open_cache(path)
        return
    if not is_image:
        _check_source(images)
    signals.import_uninterrupted("torchvision")  # slow, so only when it is needed
    from featurize import load_backbone, run

    source = head.source
    weights = weights or (None if head.network is None else str(head.network))
    missing_weights = CallError(
        f"this head's backbone, {source.backbone}, came from the weights file {source.weights}: "
        "give it with --weights"
    )
    if weights is None and is_file_path(source.weights):
        raise missing_weights  # a file of that name here need not be the same file
    if source.weights == "own":
        raise CallError(
            f"this head's backbone was a network of its own ({source.backbone}): embed the images "
            "in Python, featurize.run(..., backbone=Backbone(...)), and predict from that cache"
        )
    with tempfile.TemporaryDirectory(prefix="headgraft-") as temporary:
        try:
            backbone = load_backbone(
                source.backbone, weights or source.weights, preprocess=source.preprocess
            )
        except UnknownWeightsError:
            raise missing_weights from None
        if backbone.weights_sha256 != source.weights_sha256:
            raise HeadMismatchError(
                f"the weights {weights or source.weights} of {source.backbone} are not those that "
                f"this head was trained on (digest {backbone.weights_sha256[:12]}..., the head's "
                f"{source.weights_sha256[:12]}...); give the right file with --weights"
            )
        crop = backbone.preprocess.crop
        if crop > LARGE_SIDE:
            say(
                f"this head takes images of {crop:,} x {crop:,} pixels, which is "
                f"{(crop / USUAL_SIDE) ** 2:,.0f} times the work of the usual "
                f"{USUAL_SIDE} x {USUAL_SIDE}"
            )
        if is_image:
            folder = Path(temporary) / "image"
            folder.mkdir()
            (folder / path.name).symlink_to(path.absolute())
            images = str(folder)

        def say_of_images(sentence: str) -> None:
            if temporary not in sentence:  # what is written there is for this once
                say(sentence)

        layers = ",".join(layer.spec.option for layer in source.layers)
        try:
            run(
                images,
                Path(temporary) / "images.h5",
                backbone=backbone,
                layers=layers,
                dtype={"<f4": "float32", "<f2": "float16"}[source.layers[0].dtype],
                precision=source.precision,
                follow=is_image,  # the image is behind our own symlink
                say=say_of_images,
                report=report,
            )
        except RunInterruptedError as error:
            raise RunInterruptedError(
                "interrupted, and nothing is kept: the images' features were for this once. A "
                "cache made by `featurize run` is kept, and `predict` takes it too"
            ) from error
        yield FeatureCache(Path(temporary) / "images.h5")


def _check_source(images: str) -> None:
    """Refuse what is no source of images, before torch is imported."""
    try:
        open_source(images)
    except SourceError as error:
        if is_address(images) or Path(images).exists():
            raise
        raise FileNotFoundError(f"{error}; or give a cache") from None


def _looks_like_cache(path: Path) -> bool:
    """Tell whether a file is HDF5, or is called so: then the cache's own error says what it is."""
    if path.suffix.lower() in CACHE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError:
        return True

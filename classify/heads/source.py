"""Where the features of a head come from: backbone, preprocessing and layers."""

from dataclasses import dataclass
from typing import Any

from classify.errors import HeadMismatchError
from featurize.cache.format import Extractor
from featurize.cache.reader import FeatureCache
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec


@dataclass(frozen=True)
class HeadLayer:
    """A layer that a head reads, as its cache described it.

    Attributes
    ----------
    name : str
        Name of the layer in the cache.
    layer, pool : str
        Layer of the backbone, and the pooling of its output.
    dtype : str
        Stored type of the features: ``<f4`` or ``<f2``.
    dim : int
        Number of features.
    fingerprint : str
        Hash of everything that determines the features.
    """

    name: str
    layer: str
    pool: str
    dtype: str
    dim: int
    fingerprint: str

    @property
    def spec(self) -> LayerSpec:
        """The layer and its pool."""
        return LayerSpec(self.layer, self.pool)


@dataclass(frozen=True)
class FeatureSource:
    """The backbone, preprocessing and layers that the features of a head come from.

    Attributes
    ----------
    backbone, weights : str
        Names of the backbone and of its weights, or the path of a weights file.
    weights_sha256 : str
        SHA-256 of the weights, hexadecimal.
    preprocess : Preprocess
        Resizing, cropping and normalisation of the images.
    precision : str
        Numeric precision of the backbone's forward pass.
    layers : tuple of HeadLayer
        Layers whose features are joined, in order.
    licence : str
        Licence of the weights, as published; empty if it is not known.
    """

    backbone: str
    weights: str
    weights_sha256: str
    preprocess: Preprocess
    precision: str
    layers: tuple[HeadLayer, ...]
    licence: str = ""

    @property
    def extractor(self) -> Extractor:
        """The extractor: everything but the layers."""
        fields = (self.backbone, self.weights, self.weights_sha256, self.preprocess, self.precision)
        return Extractor(*fields, environment={})

    @classmethod
    def from_cache(cls, cache: FeatureCache, layers: tuple[str, ...]) -> "FeatureSource":
        """Read the source of some layers from a cache.

        Parameters
        ----------
        cache : FeatureCache
            The cache.
        layers : tuple of str
            Names of layers in the cache.

        Returns
        -------
        FeatureSource
            Its layers are in the given order.
        """
        extractor, infos = cache.extractor, [cache.layer(name) for name in layers]
        return cls(
            backbone=extractor.backbone,
            weights=extractor.weights,
            weights_sha256=extractor.weights_sha256,
            preprocess=extractor.preprocess,
            precision=extractor.precision,
            layers=tuple(
                HeadLayer(i.name, i.layer, i.pool, i.dtype, i.dim, i.fingerprint) for i in infos
            ),
            licence=str(extractor.environment.get("licence", "")),
        )

    def check_against(self, cache: FeatureCache) -> None:
        """Check that a cache has the features of this source.

        Parameters
        ----------
        cache : FeatureCache
            The cache to predict or evaluate on.

        Raises
        ------
        HeadMismatchError
            If a fingerprint differs; the message names the fields.
        UnknownLayerError
            If the cache lacks a layer.
        """
        theirs = FeatureSource.from_cache(cache, tuple(layer.name for layer in self.layers))
        pairs = list(zip(self.layers, theirs.layers, strict=True))
        if all(our.fingerprint == their.fingerprint for our, their in pairs):
            return
        differences = self.extractor.differences(cache.extractor)
        for our, their in pairs:
            differences |= _find_layer_differences(our, their)
        differing = [
            f"{name} is {_shorten(our)} in the head, {_shorten(their)} in the cache"
            for name, (our, their) in differences.items()
        ]
        raise HeadMismatchError(
            f"this head was trained on other features than those in {cache.path}: "
            f"{'; '.join(differing)}. Train it again on this cache with `classify fit`, or give "
            "the cache it was made from"
        )


def _find_layer_differences(ours: HeadLayer, theirs: HeadLayer) -> dict[str, tuple[Any, Any]]:
    if ours.fingerprint == theirs.fingerprint:
        return {}
    pairs = {key: (getattr(ours, key), getattr(theirs, key)) for key in ("dtype", "dim")}
    pairs["fingerprint"] = ours.fingerprint, theirs.fingerprint
    return {f"{ours.name} {key}": pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "..."

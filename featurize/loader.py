"""Load what computes features, only when there is something to compute."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from featurize import signals
from featurize.cache import FeatureCache
from featurize.engines import Engine, check_device, open_engine
from featurize.engines.choice import Choice
from featurize.errors import CallError
from featurize.fingerprint import fingerprint
from featurize.layout import Extractor, LayerInfo
from featurize.names import is_file
from featurize.plan import DTYPES, Wanted, check_extractor, file_sha256

if TYPE_CHECKING:
    from featurize.backbones import Backbone


class Loader:
    """The backbone, extractor and engines of one run, made when first needed.

    Parameters
    ----------
    wanted : Wanted
    own : Backbone, optional
        A backbone made in Python, instead of one by name.
    cache : FeatureCache, optional
        What it makes has to agree with this.
    say : callable
        Told what was chosen.
    """

    def __init__(
        self,
        wanted: Wanted,
        own: "Backbone | None",
        cache: FeatureCache | None,
        say: Callable[[str], None],
        *,
        frozen_weights: bool = True,
    ) -> None:
        self.frozen_weights = frozen_weights
        self.wanted, self.own, self.cache, self.say = wanted, own, cache, say

    def without_weights(self) -> "Loader":
        """The same with the network as it is initialised, for looking at and timing."""
        return Loader(self.wanted, self.own, None, lambda _: None, frozen_weights=False)

    @cached_property
    def backbone(self) -> "Backbone":
        """The backbone; loading it takes seconds, and perhaps a download.

        Raises
        ------
        BackboneError
            If it cannot be had.
        FingerprintMismatch
            If it is another than the cache's.
        """
        check_device(self.wanted.device, self.wanted.precision)
        backbone = self.own or self._load()
        recipe = backbone.preprocess
        self.say(
            f"{backbone.name}, weights {backbone.weights}; each image: shorter side to "
            f"{recipe['resize']}, centre {recipe['crop']} x {recipe['crop']}, "
            f"{recipe['interpolation']}"
        )
        if self.cache is not None:
            made = self._extractor_of(backbone)
            check_extractor(self.cache, made, self.wanted.dtype)
        return backbone

    def _load(self) -> "Backbone":
        signals.load("torchvision")
        from featurize.backbones import load_backbone

        wanted = self.wanted
        if wanted.weights == "own":
            raise CallError(
                f"the cache was made with a network of its own ({wanted.backbone}); "
                "continue it from Python: featurize.run(..., backbone=Backbone(...))"
            )
        if wanted.weights and is_file(wanted.weights) and not Path(wanted.weights).is_file():
            raise CallError(
                f"the weights file {wanted.weights} is gone; say where it is with --weights FILE"
            )
        return load_backbone(
            wanted.backbone,
            wanted.weights,
            preprocess=wanted.preprocess,
            decode=wanted.decode,
            frozen_weights=self.frozen_weights,
        )

    @property
    def extractor(self) -> Extractor:
        """What goes into the cache about it."""
        return self._extractor_of(self.backbone)

    def _extractor_of(self, backbone: "Backbone") -> Extractor:
        from featurize.backbones import versions

        environment = versions()
        file = self._weights_file
        if file is not None:
            environment |= {"weights_file": file, "weights_file_sha256": file_sha256(file)}
        return Extractor(
            backbone=backbone.name,
            weights=backbone.weights,
            weights_sha256=backbone.weights_sha256,
            preprocess=backbone.preprocess,
            precision=self.wanted.precision,
            environment=environment,
        )

    @property
    def _weights_file(self) -> str | None:
        for name in (self.wanted.weights, self.wanted.backbone):
            if self.own is None and name is not None and is_file(name):
                return str(Path(name).resolve())
        return None

    def infos(self, layers: Sequence[tuple[str, str]]) -> list[LayerInfo]:
        """Describe layers as the cache does, shallowest first.

        Raises
        ------
        UnknownLayer, BackboneError
            If one does not exist or cannot be pooled so; also if the weights do not fit.
        """
        from featurize.pools import width

        network, extractor = self.backbone.network, self.extractor
        found = sorted((network.layer(name).depth, name, pool) for name, pool in layers)
        infos = []
        for _, name, pool in found:
            layer = network.layer(name)
            infos.append(
                LayerInfo(
                    layer=name,
                    pool=pool,
                    dim=width(layer.kind, pool, layer.map_shape),
                    dtype=DTYPES[self.wanted.dtype],
                    map_shape=layer.map_shape,
                    fingerprint=self._fingerprint(extractor, name, pool),
                )
            )
        self.backbone.cut(layers)  # weights that do not fit are refused before a file is made
        return infos

    def _fingerprint(self, extractor: Extractor, layer: str, pool: str) -> str:
        return fingerprint(
            backbone=extractor.backbone,
            weights_sha256=extractor.weights_sha256,
            preprocess=extractor.preprocess,
            layer=layer,
            pool=pool,
            precision=extractor.precision,
            dtype=DTYPES[self.wanted.dtype],
        )

    def choice(self, layers: Sequence[LayerInfo]) -> Choice:
        """The choice of an engine for these layers, by the number of images."""
        wanted, pairs = self.wanted, [(info.layer, info.pool) for info in layers]

        def opened(name: str) -> Engine:
            return open_engine(
                self.backbone,
                pairs,
                name=name,
                device=wanted.device,
                precision=wanted.precision,
            )

        return Choice(wanted.engine, wanted.precision, opened, self.say)

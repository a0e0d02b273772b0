"""Load the backbone and the engine of a run when they are first needed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from featurize.backbones.licences import find_licence_warning
from featurize.backbones.names import CONFIG_FILE, find_weights_file, is_file_path
from featurize.cache.format import Extractor, LayerInfo
from featurize.cache.reader import FeatureCache
from featurize.engines.auto import EngineSelector
from featurize.engines.base import Engine
from featurize.engines.factory import (
    choose_gpu,
    describe_untested_gpu,
    open_engine,
    resolve_engine_device,
)
from featurize.errors import CallError
from featurize.extraction.cluster.actor import NetworkPlan
from featurize.extraction.options import DTYPES, ResolvedOptions, check_extractor
from featurize.files import hash_file
from featurize.fingerprint import compute_fingerprint
from featurize.layer_spec import LayerSpec
from featurize.progress import ignore
from featurize.system import signals

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone


def count_none() -> int:
    """Count no image: the default of `ExtractionSetup.count_elsewhere`.

    Returns
    -------
    int
        0.
    """
    return 0


class ExtractionSetup:
    """Backbone, extractor and engines of one run, loaded on first use.

    Parameters
    ----------
    resolved : ResolvedOptions
    custom_backbone : Backbone, optional
        A backbone made in Python, instead of a named one.
    cache : FeatureCache, optional
        The extractor has to match this cache.
    say : callable
        Receives a sentence about each choice made.
    frozen_weights : bool
        Whether to load the weights; else the network keeps its initial ones.
    local_rank : int, optional
        Of several processes on this machine: which one this is. Each takes a GPU of its own, where
        no device is asked for.
    computes_here : bool
        Whether this process runs the network; else it need not have the device.

    Attributes
    ----------
    count_elsewhere : callable
        Counts images that later jobs are to run, about; `--engine auto` reckons with them.
    """

    def __init__(
        self,
        resolved: ResolvedOptions,
        custom_backbone: "Backbone | None",
        cache: FeatureCache | None,
        say: Callable[[str], None] = ignore,
        *,
        frozen_weights: bool = True,
        local_rank: int | None = None,
        computes_here: bool = True,
    ) -> None:
        self.computes_here = computes_here
        self.resolved, self.custom_backbone, self.cache = resolved, custom_backbone, cache
        self.say, self.frozen_weights = say, frozen_weights
        self.local_rank = local_rank
        self.count_elsewhere: Callable[[], int] = count_none
        self._selectors: dict[tuple[LayerSpec, ...], EngineSelector] = {}

    def with_initial_weights(self) -> "ExtractionSetup":
        """Return a copy whose network has its initial weights, for shapes and timing.

        Returns
        -------
        ExtractionSetup
        """
        return ExtractionSetup(
            self.resolved,
            self.custom_backbone,
            None,
            frozen_weights=False,
            local_rank=self.local_rank,
        )

    @cached_property
    def device(self) -> str:
        """Device that the network runs on.

        Raises
        ------
        CallError
            If there is no such device, or it cannot run the engine or the precision.
        """
        resolved = self.resolved
        device = resolve_engine_device(resolved.engine, resolved.device, resolved.precision)
        if untested := describe_untested_gpu(device):
            self.say(untested)
        if device == "cuda" and resolved.device == "auto" and self.local_rank is not None:
            return choose_gpu(self.local_rank)
        return device

    @cached_property
    def backbone(self) -> "Backbone":
        """The backbone; loading it takes seconds, and perhaps a download.

        Raises
        ------
        BackboneError
            If it cannot be loaded.
        FingerprintMismatchError
            If the cache has another extractor.
        """
        if self.computes_here:
            _ = self.device  # raises before anything is loaded
        backbone = self.custom_backbone or self._load_backbone()
        self._say_what_it_is(backbone)
        if self.cache is not None:
            extractor = self._make_extractor(backbone)
            check_extractor(self.cache, extractor, self.resolved.dtype)
        return backbone

    def _say_what_it_is(self, backbone: "Backbone") -> None:
        preprocess, licence = backbone.preprocess, backbone.facts.get("licence")
        self.say(
            f"{backbone.name}, weights {backbone.weights}{f', {licence}' if licence else ''}; "
            f"each image: {preprocess.describe()}"
        )
        warning = find_licence_warning(licence, backbone.weights) if licence else ""
        if warning and self.frozen_weights:
            self.say(warning)

    @cached_property
    def layers(self) -> list[LayerSpec]:
        """Layers of the run; where only the network knows them, it is loaded.

        Raises
        ------
        UnknownLayerError
            If the network has no known stages.
        """
        known = self.resolved.layers
        return self.resolved.find_layers(self.backbone.family) if known is None else known

    def add_layers(self, specs: Sequence[LayerSpec]) -> None:
        """Add layers that the cache has been found to have.

        Parameters
        ----------
        specs : sequence of LayerSpec
        """
        self.resolved = self.resolved.with_cached_layers(specs)
        for name in ("layers", "extractor"):
            self.__dict__.pop(name, None)

    def _load_backbone(self) -> "Backbone":
        signals.import_uninterrupted("torchvision")
        from featurize.backbones.load import load_backbone

        resolved = self.resolved
        if resolved.weights == "own":
            raise CallError(
                f"the cache was made with a network of its own ({resolved.backbone}); "
                "continue it from Python: featurize.run(..., backbone=Backbone(...))"
            )
        if (
            resolved.weights
            and is_file_path(resolved.weights)
            and not Path(resolved.weights).exists()
        ):
            raise CallError(
                f"the weights file {resolved.weights} is gone; say where it is with --weights FILE"
            )
        return load_backbone(
            resolved.backbone,
            resolved.weights,
            preprocess=resolved.preprocess,
            decode=resolved.decode,
            size=resolved.size,
            frozen_weights=self.frozen_weights,
        )

    @cached_property
    def extractor(self) -> Extractor:
        """Extractor metadata for the cache."""
        from featurize.backbones.profiling import count_macs

        macs = count_macs(self.backbone, {spec.layer for spec in self.layers})
        extractor = self._make_extractor(self.backbone)
        environment = {**extractor.environment, "gmacs": macs} if macs else extractor.environment
        return replace(extractor, environment=environment)

    def _make_extractor(self, backbone: "Backbone") -> Extractor:
        from featurize.backbones.backbone import collect_versions

        environment = {**collect_versions(), **backbone.facts}
        origin = self._weights_file
        if origin is not None:
            environment |= {
                "weights_file": str(origin),
                "weights_file_sha256": hash_file(find_weights_file(origin)).hex(),
            }
        if origin is not None and origin.is_dir():
            environment["config_sha256"] = hash_file(origin / CONFIG_FILE).hex()
        return Extractor(
            backbone=backbone.name,
            weights=backbone.weights,
            weights_sha256=backbone.weights_sha256,
            preprocess=backbone.preprocess,
            precision=self.resolved.precision,
            environment=environment,
        )

    @property
    def _weights_file(self) -> Path | None:
        for name in (self.resolved.weights, self.resolved.backbone):
            if self.custom_backbone is None and name is not None and is_file_path(name):
                return Path(name).resolve()
        return None

    def describe_layers(self, layers: Sequence[LayerSpec]) -> list[LayerInfo]:
        """Compute the metadata of layers.

        Parameters
        ----------
        layers : sequence of LayerSpec

        Returns
        -------
        list of LayerInfo
            Shallowest first.

        Raises
        ------
        UnknownLayerError, BackboneError
            If a layer does not exist or cannot be pooled so, or the weights do not fit.
        """
        network, extractor = self.backbone.network, self.extractor
        infos = []
        for spec in sorted(layers, key=lambda spec: (network.layer(spec.layer).depth, spec)):
            layer = network.layer(spec.layer)
            infos.append(
                LayerInfo(
                    layer=spec.layer,
                    pool=spec.pool,
                    dim=layer.dim(spec.pool),
                    dtype=DTYPES[self.resolved.dtype],
                    map_shape=layer.map_shape,
                    fingerprint=self._compute_fingerprint(extractor, spec),
                )
            )
        self.backbone.cut(layers)  # raises for weights that do not fit, before a file is made
        return infos

    def _compute_fingerprint(self, extractor: Extractor, spec: LayerSpec) -> str:
        return compute_fingerprint(
            backbone=extractor.backbone,
            weights_sha256=extractor.weights_sha256,
            preprocess=extractor.preprocess,
            layer=spec.layer,
            pool=spec.pool,
            precision=extractor.precision,
            dtype=DTYPES[self.resolved.dtype],
        )

    def make_engine_selector(self, layers: Sequence[LayerInfo]) -> EngineSelector:
        """Make the selector of an engine for some layers, or return the one made before.

        Nothing is loaded yet.

        Parameters
        ----------
        layers : sequence of LayerInfo

        Returns
        -------
        EngineSelector
        """
        specs = tuple(info.spec for info in layers)
        if specs not in self._selectors:
            self._selectors[specs] = EngineSelector(
                self.resolved.engine,
                self.resolved.precision,
                partial(self._open_engine, specs),
                self.say,
            )
        selector = self._selectors[specs]
        selector.n_elsewhere = self.count_elsewhere()
        return selector

    def plan_network(self, layers: Sequence[LayerInfo]) -> NetworkPlan:
        """Say what other processes are to run.

        Parameters
        ----------
        layers : sequence of LayerInfo

        Returns
        -------
        NetworkPlan
        """
        return NetworkPlan(
            [info.spec for info in layers],
            {info.name: info.dtype for info in layers},
            self.resolved.engine,
            self.resolved.precision,
            self.backbone.weights_sha256,
        )

    def _open_engine(self, layers: Sequence[LayerSpec], name: str) -> Engine:
        return open_engine(
            self.backbone,
            layers,
            name=name,
            device=self.device,
            precision=self.resolved.precision,
        )

"""Backbones: a frozen network with its weights and preprocessing, which can be cut at layers."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models import get_model_builder, get_model_weights, list_models

from featurize.backbones import weights as weights_files
from featurize.backbones.families import (
    DEFAULT_WEIGHTS,
    find_family,
    is_file_path,
    read_backbone_name,
)
from featurize.backbones.graph import Layer, LayerGraph
from featurize.errors import BackboneError, CallError, UnknownWeightsError
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec
from featurize.system import memory
from featurize.text import did_you_mean

SEEDLING = "seedling"
SEEDLING_WEIGHTS_PATH = Path(__file__).with_name("seedling") / "seedling.safetensors"


class Backbone:
    """A frozen network together with its weights and its preprocessing.

    `load_backbone` creates one by name; this constructor takes a network of your own.

    Parameters
    ----------
    network : nn.Module
        Takes a float batch (B, 3, H, W). It is copied; the original is not changed.
    name : str
        Its name in a cache. It is part of the fingerprint.
    preprocess : Preprocess or mapping
        A mapping has the parameters of `Preprocess` as keys.

    Attributes
    ----------
    name : str
        As the parameter.
    network : LayerGraph
        The network as a graph of layers.
    preprocess : Preprocess
        The checked preprocessing.
    weights : str
        Where the weights came from: a name, a file name, or ``own``.

    Raises
    ------
    BackboneError
        If the network cannot be cut anywhere.
    CallError
        If the preprocessing is incomplete.

    Examples
    --------
    >>> preprocess = dict(resize=64, crop=64, mean=[0.5] * 3, std=[0.5] * 3)
    >>> Backbone(network, name="mine", preprocess=preprocess)
    """

    def __init__(self, network: nn.Module, *, name: str, preprocess: Mapping[str, Any]) -> None:
        # The tensors of the copy: later changes of the caller's network must not reach the cache.
        copied = copy.deepcopy(network)
        self._set_up(copied, name, preprocess, "own", dict(copied.state_dict()))

    def _set_up(
        self,
        network: nn.Module,
        name: str,
        preprocess: Mapping[str, Any],
        weights: str,
        tensors: dict[str, Tensor] | None,
    ) -> None:
        memory.retain_freed_memory()
        self.name = name
        self.preprocess = Preprocess.from_dict(preprocess)
        self.weights = weights
        self._tensors = tensors
        self._weights_sha256 = ""
        network.requires_grad_(False).eval()
        self.network = LayerGraph(network, self.preprocess.crop, find_family(name))

    @classmethod
    def _from_parts(cls, *parts: Any) -> "Backbone":
        backbone = cls.__new__(cls)
        backbone._set_up(*parts)
        return backbone

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, weights={self.weights!r})"

    @property
    def weights_sha256(self) -> str:
        """SHA-256 digest of the weights (`hash_weight_arrays`); empty if they were not loaded."""
        if not self._weights_sha256 and self._tensors is not None:
            self._weights_sha256 = weights_files.hash_state_dict(self._tensors)
        return self._weights_sha256

    @property
    def layers(self) -> dict[str, Layer]:
        """All layers at which the network can be cut, by name, shallowest first."""
        return {name: layer for name, layer in self.network.layers.items() if layer.usable}

    def cut(self, layers: Sequence[tuple[str, str]]) -> fx.GraphModule:
        """Extract the part of the network that computes some layers, with its weights loaded.

        Parameters
        ----------
        layers : sequence of LayerSpec, or of (layer, pool)
            The layers to compute.

        Returns
        -------
        fx.GraphModule
            Maps a normalised float batch (B, 3, crop, crop) to a tuple of (B, D), one per layer.

        Raises
        ------
        UnknownLayerError
            If the network has no such layer.
        BackboneError
            If a layer cannot be pooled, or the weights do not fit.
        """
        module = self.network.cut([LayerSpec(*layer) for layer in layers])
        if self._tensors is not None:
            tensor_names = set(self.network.module.state_dict())
            weights_files.load_into(
                module, self._tensors, tensor_names, f"the weights {self.weights}"
            )
        return module


def list_backbones() -> list[str]:
    """List the names of all known backbones.

    Returns
    -------
    list of str
        ``seedling`` and torchvision's classification networks.
    """
    return [SEEDLING, *list_models(module=torchvision.models)]


def load_backbone(
    name: str,
    weights: str | None = None,
    *,
    preprocess: str | Mapping[str, Any] | None = None,
    decode: str | None = None,
    frozen_weights: bool = True,
) -> Backbone:
    """Load a backbone by name.

    Parameters
    ----------
    name : str
        A torchvision classification network, or ``seedling``; or a ``.safetensors`` file whose
        metadata names its ``backbone``.
    weights : str, optional
        A name torchvision knows (``IMAGENET1K_V1``, the default) or a local ``.safetensors`` or
        ``.pth`` file.
    preprocess : str, Preprocess or mapping, optional
        The name of weights whose preprocessing to use, a `Preprocess`, or its parameters as a
        mapping or the name of a JSON file. By default it comes with the weights; for a file
        without metadata it is that of the network's ``IMAGENET1K_V1``.
    decode : {"exact", "fast"}, optional
        Replaces the decode mode of the preprocessing, which is ``exact`` by default.
    frozen_weights : bool
        Whether to load weights by name. Without them the network keeps its initial weights, which
        is enough to inspect its layers.

    Returns
    -------
    Backbone
        The network, frozen, with weights and preprocessing.

    Raises
    ------
    BackboneError
        If there is no such network, or its weights cannot be loaded.
    CallError
        If the preprocessing cannot be read.
    """
    metadata: dict[str, str] = {}
    if is_file_path(name):
        if weights is not None:
            raise CallError("--backbone names a file; then --weights has no place")
        weights, name = name, read_backbone_name(weights_files.read_weights(Path(name))[1])
        if not name:
            raise BackboneError(
                f"{weights} does not say which network it is for; "
                f"use --backbone NAME --weights {weights}"
            )
    if name not in list_backbones():
        raise BackboneError(
            f"no backbone {name!r}{did_you_mean(name, list_backbones())}; "
            "`featurize backbones` lists them"
        )
    tensors: dict[str, Tensor] | None = None
    if weights is not None and is_file_path(weights):
        tensors, metadata = weights_files.read_weights(Path(weights))
        label = Path(weights).name
        if preprocess is None:
            stored = weights_files.read_preprocess(metadata)
            preprocess = stored or get_default_weights(name)
    else:
        label = weights or get_default_weights(name)
        entry = _get_weights_entry(name, label)
        if frozen_weights and name == SEEDLING:
            tensors, _ = weights_files.read_weights(SEEDLING_WEIGHTS_PATH)
        elif frozen_weights:
            tensors = weights_files.fetch_weights(entry)
        if preprocess is None:
            preprocess = label
    resolved = _resolve_preprocess(name, preprocess)
    network = _build_network(name, resolved.crop)
    resolved = replace(resolved, decode=decode or resolved.decode)
    return Backbone._from_parts(network, name, resolved, label, tensors)


def get_default_weights(name: str) -> str:
    """Return the name of the weights that a backbone gets by default.

    Parameters
    ----------
    name : str
        Name of a known backbone.

    Returns
    -------
    str
        ``IMAGENET1K_V1`` if the backbone has it.
    """
    if name == SEEDLING:
        return "V1"
    names = [entry.name for entry in get_model_weights(name)]
    return DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in names else names[0]


def list_weights(name: str) -> list[str]:
    """List the names of a backbone's weights.

    Parameters
    ----------
    name : str
        Name of a known backbone.

    Returns
    -------
    list of str
        As torchvision names them; ``V1`` for seedling.
    """
    return ["V1"] if name == SEEDLING else [entry.name for entry in get_model_weights(name)]


def _get_weights_entry(name: str, label: str) -> Any:
    if label not in list_weights(name):
        raise UnknownWeightsError(
            f"{name} has no weights {label!r}{did_you_mean(label, list_weights(name))}; it has "
            f"{', '.join(list_weights(name))}, or give a .safetensors or .pth file"
        )
    return None if name == SEEDLING else get_model_weights(name)[label]


def _build_network(name: str, size: int) -> nn.Module:
    if name == SEEDLING:
        from featurize.backbones.seedling.network import Seedling

        return Seedling()
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect the re-normalisation that `transform_input` turns on.
        options = {"transform_input": True, "init_weights": False, "aux_logits": False}
    if name.startswith("vit_"):
        options = {"image_size": size}  # they have one position embedding per patch
    network: nn.Module = get_model_builder(name)(weights=None, **options)
    return network


def _resolve_preprocess(name: str, preprocess: str | Mapping[str, Any]) -> Preprocess:
    if not isinstance(preprocess, str):
        return Preprocess.from_dict(preprocess)
    if preprocess.endswith(".json"):
        try:
            values = json.loads(Path(preprocess).read_text())
        except (OSError, ValueError) as error:
            raise CallError(f"--preprocess {preprocess} cannot be read: {error}") from error
        return Preprocess.from_dict(values)
    if name == SEEDLING:
        from featurize.backbones.seedling.network import PREPROCESS

        return PREPROCESS
    published = _get_weights_entry(name, preprocess).transforms()
    return Preprocess(
        resize=published.resize_size[0],
        crop=published.crop_size[0],
        interpolation=published.interpolation.value,
        mean=tuple(published.mean),
        std=tuple(published.std),
    )


def collect_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute features, for the cache's record.

    Returns
    -------
    dict of str to str
        Version by the name of the library.
    """
    return {"torch": torch.__version__, "torchvision": torchvision.__version__}

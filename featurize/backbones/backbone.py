"""Backbones: a frozen network with its weights and preprocessing, which can be cut at layers."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import fx, nn

from featurize.backbones import weights as weights_files
from featurize.backbones.families import Family, find_family
from featurize.backbones.pretrained.loaded import LoadedNetwork
from featurize.backbones.pretrained.user_modules import describe_user_module
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec
from featurize.layers.graph import Layer, LayerGraph
from featurize.layers.tracing import is_of_timm
from featurize.system import memory


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
    family : Family or None
        Its stages, if they are known.
    facts : dict of str to str
        What a cache records beside: licence, source, versions.
    projection : Tensor of shape (E, D), or None
        Of a network trained beside a text tower: the projection of ``pre_logits`` (D) to the space
        shared with it (E).

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
        self._set_up(describe_user_module(copied, name, Preprocess.from_dict(preprocess)))

    def _set_up(self, loaded: LoadedNetwork) -> None:
        memory.retain_freed_memory()
        self.name = loaded.name
        self.preprocess = loaded.preprocess
        self.weights = loaded.weights
        self.projection = loaded.projection
        self._tensors = loaded.tensors
        self._weights_sha256 = ""
        module = loaded.module.requires_grad_(False).eval()
        self.network = LayerGraph(
            module, self.preprocess.crop, loaded.build, classifier=loaded.classifier
        )
        self.family: Family | None = loaded.family or find_family(loaded.name)
        self.facts = dict(loaded.facts)
        if self.family is None and is_of_timm(module):
            from featurize.backbones.pretrained import timm_models

            self.family = timm_models.find_family(module, self.network)
            self.facts |= self.family.to_facts() if self.family is not None else {}

    @classmethod
    def from_loaded(cls, loaded: LoadedNetwork) -> "Backbone":
        """Create an instance from what a loader gives.

        Parameters
        ----------
        loaded : LoadedNetwork
            It is not copied.

        Returns
        -------
        Backbone
            The backbone.
        """
        backbone = cls.__new__(cls)
        backbone._set_up(loaded)
        return backbone

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backbone":
        return self  # it is frozen, and scikit-learn copies what it clones

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
        return module.eval()  # torch.fx makes new containers, in training mode


def collect_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute features, for the cache's record.

    Returns
    -------
    dict of str to str
        Version by the name of the library.
    """
    return {"torch": torch.__version__, "torchvision": torchvision.__version__}

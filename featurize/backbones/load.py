"""Load a backbone by name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurize.backbones import weights as weights_files
from featurize.backbones.backbone import Backbone
from featurize.backbones.names import (
    HUB,
    TIMM,
    is_file_path,
    is_pretrained_folder,
    read_backbone_name,
    split_name,
)
from featurize.backbones.pretrained.torchvision_models import load_torchvision
from featurize.errors import BackboneError, CallError


def load_backbone(
    name: str,
    weights: str | None = None,
    *,
    preprocess: str | Mapping[str, Any] | None = None,
    decode: str | None = None,
    size: int | None = None,
    frozen_weights: bool = True,
) -> Backbone:
    """Load a backbone by name.

    Parameters
    ----------
    name : str
        ``seedling``, ``lite0``, a torchvision classification network, ``timm:ARCH[.TAG]``,
        ``hf-hub:ORG/NAME[@REVISION]``, a folder with a ``config.json`` and a ``model.safetensors``
        in timm's layout, or a ``.safetensors`` file whose metadata names its ``backbone``.
    weights : str, optional
        A name torchvision knows (``IMAGENET1K_V1``, the default), a tag of timm's, or a local
        ``.safetensors``, ``.pth`` or ``.bin`` file.
    preprocess : str, Preprocess or mapping, optional
        The name of torchvision's weights whose preprocessing to use, a `Preprocess`, or its
        parameters as a mapping or the name of a JSON file. By default it comes with the weights;
        for a file without metadata it is that of the network's default weights.
    decode : {"exact", "quick", "fast", "fastest"}, optional
        Replaces the decode mode of the preprocessing, which is ``exact`` by default.
    size : int, optional
        Height and width of the images in pixels, in place of those of the preprocessing.
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
    if is_file_path(name) and not is_pretrained_folder(name):
        if weights is not None:
            raise CallError("--backbone names a file; then --weights has no place")
        weights, name = name, read_backbone_name(weights_files.read_weights(Path(name))[1])
        if not name:
            raise BackboneError(
                f"{weights} does not say which network it is for; "
                f"use --backbone NAME --weights {weights}"
            )
    name, weights = split_name(name, weights)
    options: dict[str, Any] = {
        "preprocess": preprocess,
        "size": size,
        "frozen_weights": frozen_weights,
    }
    if name.startswith((TIMM, HUB)) or is_pretrained_folder(name):
        from featurize.backbones.pretrained.timm_sources import load_timm

        loaded = load_timm(name, weights, **options)
    else:
        loaded = load_torchvision(name, weights, **options)
    chosen = loaded.preprocess
    loaded = replace(loaded, preprocess=replace(chosen, decode=decode or chosen.decode))
    return Backbone.from_loaded(loaded)

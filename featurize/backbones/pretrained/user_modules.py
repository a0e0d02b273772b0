"""What can be found out of a network that a user hands in as a module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from featurize.backbones.pretrained.loaded import LoadedNetwork
from featurize.images.preprocess import Preprocess
from featurize.layers.tracing import is_of_timm


def describe_user_module(module: nn.Module, name: str, preprocess: Preprocess) -> LoadedNetwork:
    """Describe a network of the user's own.

    Parameters
    ----------
    module : nn.Module
        The network, with its weights.
    name : str
        What the user calls it.
    preprocess : Preprocess
        Its preprocessing.

    Returns
    -------
    LoadedNetwork
        A network of timm is described further: its classifier, how to build it for another size.
    """
    from_timm = is_of_timm(module)
    return LoadedNetwork(
        module=module,
        name=name,
        preprocess=preprocess,
        weights="own",
        tensors=dict(module.state_dict()),
        build=_make_builder(module) if from_timm else None,
        classifier=_find_classifier(module) if from_timm else None,
    )


def _find_classifier(module: Any) -> str | None:
    """Find the name of the classifying layer of a network of timm; empty if it has none."""
    try:
        classifier = module.get_classifier()
    except (AttributeError, NotImplementedError):
        return None
    # Distilled networks have two classifiers.
    classifiers = classifier if isinstance(classifier, tuple) else (classifier,)
    if all(each is None or isinstance(each, nn.Identity) for each in classifiers):
        return ""
    names = [name for name, submodule in module.named_modules() if submodule is classifier]
    return names[0] if names else None


def _make_builder(module: Any) -> Callable[[int], nn.Module] | None:
    """Make a function that builds the same architecture for another size."""
    architecture = getattr(module, "pretrained_cfg", {}).get("architecture")
    if not architecture:
        return None
    n_classes = int(getattr(module, "num_classes", 0) or 0)

    def build(size: int) -> nn.Module:
        import timm

        with torch.device("meta"):
            network: nn.Module = timm.create_model(
                architecture, num_classes=n_classes, img_size=size
            )
        return network.eval()

    return build

"""Families of networks, as data: the ends of their stages, and the layer that `last` means.

This module does not import torch, so that a finished cache is recognised without it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurize.backbones.names import LITE
from featurize.errors import BackboneError, CallError, UnknownLayerError
from featurize.layer_spec import DEFAULT_POOL, POOLS, LayerSpec
from featurize.text import did_you_mean

DEFAULT_BACKBONE = "resnet50"
DEFAULT_WEIGHTS = "IMAGENET1K_V1"


@dataclass(frozen=True)
class Family:
    """A family of networks with the same layer names.

    Attributes
    ----------
    stages : tuple of str
        The last layer of each stage, from shallow to deep. The deepest one is what `last` means:
        it computes the input of the final classifying layer (apart from pooling and dropout).
    last_pool : str
        The default pool of `last`.
    """

    stages: tuple[str, ...]
    last_pool: str = "avg"

    @property
    def last(self) -> str:
        """The deepest stage."""
        return self.stages[-1]

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Family | None":
        """Read a family from the facts that a cache records of its backbone.

        Parameters
        ----------
        facts : mapping of str to object
            As `to_facts` returns them, among others; not checked, as files of strangers have any.

        Returns
        -------
        Family or None
            None if the facts name no stages.
        """
        stages, last_pool = facts.get("stages"), facts.get("last_pool")
        if not isinstance(stages, str) or not stages.split() or last_pool not in POOLS:
            return None
        return cls(tuple(stages.split()), str(last_pool))

    def to_facts(self) -> dict[str, str]:
        """Return the family as facts to record in a cache.

        Returns
        -------
        dict of str to str
            Texts by key.
        """
        return {"stages": " ".join(self.stages), "last_pool": self.last_pool}


def _make_family(stages: str) -> Family:
    return Family(tuple(stages.split()))


def _make_features_family(numbers: str, last: str = "") -> Family:
    stages = [f"features.{number}" for number in numbers.split()]
    return Family((*stages, last) if last else tuple(stages))


def _make_vit_family(depth: int) -> Family:
    quarters = [f"encoder.layers.encoder_layer_{depth * k // 4 - 1}" for k in (1, 2, 3, 4)]
    return Family((*quarters, "encoder.ln"), last_pool="token")


# By a pattern for the whole name of a network; the first match applies.
FAMILIES: dict[str, Family] = {
    "seedling": _make_family("stage1 stage2 stage3 stage4"),
    "alexnet": _make_features_family("2 5 12", "classifier.5"),
    "convnext_.*": _make_features_family("1 3 5 7", "classifier.0"),
    "densenet.*": _make_family(
        "features.denseblock1 features.denseblock2 features.denseblock3 relu"
    ),
    "efficientnet_b.*": _make_features_family("2 3 5 7 8"),
    "efficientnet_v2_s": _make_features_family("2 3 5 6 7"),
    "efficientnet_v2_.*": _make_features_family("2 3 5 7 8"),
    "googlenet": _make_family("maxpool2 inception3b inception4e inception5b"),
    "inception_v3": _make_family("maxpool2 Mixed_5d Mixed_6e Mixed_7c"),
    "maxvit_t": _make_family("blocks.0 blocks.1 blocks.2 blocks.3 classifier.4"),
    "mnasnet.*": _make_family("layers.8 layers.9 layers.11 layers.13 layers.16"),
    "mobilenet_v2": _make_features_family("3 6 13 17 18"),
    "mobilenet_v3_large": _make_features_family("3 6 12 16", "classifier.1"),
    "mobilenet_v3_small": _make_features_family("1 3 8 12", "classifier.1"),
    "regnet_.*": _make_family(
        "trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output.block4"
    ),
    "(resnet|resnext|wide_resnet).*": _make_family("layer1 layer2 layer3 layer4"),
    "shufflenet_v2_.*": _make_family("stage2 stage3 stage4 conv5"),
    "squeezenet1_0": _make_features_family("2 5 8 10 12"),
    "squeezenet1_1": _make_features_family("2 4 7 9 10 11 12"),
    "swin_.*": _make_features_family("1 3 5 7", "norm"),
    "vgg11": _make_features_family("2 5 10 15 20", "classifier.4"),
    "vgg11_bn": _make_features_family("3 7 14 21 28", "classifier.4"),
    "vgg13": _make_features_family("4 9 14 19 24", "classifier.4"),
    "vgg13_bn": _make_features_family("6 13 20 27 34", "classifier.4"),
    "vgg16": _make_features_family("4 9 16 23 30", "classifier.4"),
    "vgg16_bn": _make_features_family("6 13 23 33 43", "classifier.4"),
    "vgg19": _make_features_family("4 9 18 27 36", "classifier.4"),
    "vgg19_bn": _make_features_family("6 13 26 39 52", "classifier.4"),
    "vit_b_.*": _make_vit_family(12),
    "vit_l_.*": _make_vit_family(24),
    "vit_h_.*": _make_vit_family(32),
}


# Length of the embedding of `last`, so that backbones can be listed without building them.
_NAMES_BY_DIM = {
    400: "regnet_x_400mf",
    440: "regnet_y_400mf",
    512: "seedling maxvit_t resnet18 resnet34 squeezenet1_0 squeezenet1_1",
    672: "regnet_x_800mf",
    768: "convnext_small convnext_tiny swin_s swin_t swin_v2_s swin_v2_t vit_b_16 vit_b_32",
    784: "regnet_y_800mf",
    888: "regnet_y_1_6gf",
    912: "regnet_x_1_6gf",
    1008: "regnet_x_3_2gf",
    1024: (
        "convnext_base densenet121 googlenet mobilenet_v3_small shufflenet_v2_x0_5 "
        "shufflenet_v2_x1_0 shufflenet_v2_x1_5 swin_b swin_v2_b vit_l_16 vit_l_32"
    ),
    1280: (
        "efficientnet_b0 efficientnet_b1 efficientnet_v2_l efficientnet_v2_m "
        "efficientnet_v2_s mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 "
        "mobilenet_v3_large vit_h_14"
    ),
    1408: "efficientnet_b2",
    1512: "regnet_y_3_2gf",
    1536: "convnext_large efficientnet_b3",
    1664: "densenet169",
    1792: "efficientnet_b4",
    1920: "densenet201 regnet_x_8gf",
    2016: "regnet_y_8gf",
    2048: (
        "efficientnet_b5 inception_v3 regnet_x_16gf resnet101 resnet152 resnet50 "
        "resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x2_0 "
        "wide_resnet101_2 wide_resnet50_2"
    ),
    2208: "densenet161",
    2304: "efficientnet_b6",
    2520: "regnet_x_32gf",
    2560: "efficientnet_b7",
    3024: "regnet_y_16gf",
    3712: "regnet_y_32gf",
    4096: "alexnet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
    7392: "regnet_y_128gf",
}
EMBEDDING_DIMS = {name: dim for dim, names in _NAMES_BY_DIM.items() for name in names.split()}


def names_family(text: str) -> bool:
    """Tell whether the option ``--layers`` names layers that only a family knows.

    Parameters
    ----------
    text : str
        Value of the option.

    Returns
    -------
    bool
        Whether ``last`` or ``auto`` is among them.
    """
    return any(re.split("[:@]", word.strip())[0] in ("last", "auto") for word in text.split(","))


def find_source_size(backbone: str, facts: Mapping[str, Any]) -> int | None:
    """Find the size of the images that a backbone's weights are meant for.

    Parameters
    ----------
    backbone : str
        Name of the backbone.
    facts : mapping of str to object
        What a cache records of it.

    Returns
    -------
    int or None
        Height and width in pixels; None if it is not known.
    """
    recorded = str(facts.get("source_size", ""))
    if recorded.isdecimal():
        return int(recorded)
    # Caches of earlier releases recorded none. torchvision's weights saw 176 pixels or more.
    return 224 if backbone in EMBEDDING_DIMS and backbone != "seedling" else None


def find_family(backbone: str) -> Family | None:
    """Find the family of a backbone.

    Parameters
    ----------
    backbone : str
        Name of the backbone.

    Returns
    -------
    Family or None
        None if the name is unknown.
    """
    return next(
        (family for pattern, family in FAMILIES.items() if re.fullmatch(pattern, backbone)), None
    )


def parse_layers(
    text: str, pool: str | None, backbone: str, family: Family | None = None
) -> list[LayerSpec]:
    """Parse the option ``--layers`` into layers and their pools.

    Parameters
    ----------
    text : str
        ``last``, ``auto`` (all stages of the family) or names, separated by commas, each with an
        optional ``:POOL``.
    pool : str or None
        The pool of layers without one. By default it is ``avg``; for `last` of torchvision's vision
        transformers it is ``token``, the class token.
    backbone : str
        Name of the backbone.
    family : Family, optional
        Of the backbone; by default that of its name.

    Returns
    -------
    list of LayerSpec
        In the order given, without repetitions.

    Raises
    ------
    CallError
        If a pool is unknown, or a name is empty.
    BackboneError
        If `last` or `auto` is requested and the backbone seems to be misspelt.
    UnknownLayerError
        If `last` or `auto` is requested of a network of no known family.
    """
    family = family or find_family(backbone)
    specs: dict[LayerSpec, None] = {}
    for word in text.split(","):
        if not word.strip():
            raise CallError(f"--layers {text!r} has an empty name in it")
        spec = LayerSpec.parse(word, pool or DEFAULT_POOL)
        if spec.layer not in ("last", "auto"):
            specs[spec] = None
            continue
        hint = did_you_mean(backbone, [*EMBEDDING_DIMS, LITE])
        if family is None and hint:
            raise BackboneError(f"no backbone {backbone!r}{hint}")
        if family is None:
            raise UnknownLayerError(
                f"{spec.layer!r} is not known of the network {backbone!r}; name its layers instead"
            )
        for stage in family.stages if spec.layer == "auto" else (family.last,):
            default = family.last_pool if stage == family.last else DEFAULT_POOL
            specs[LayerSpec(stage, LayerSpec.parse(word, pool or default).pool)] = None
    return list(specs)

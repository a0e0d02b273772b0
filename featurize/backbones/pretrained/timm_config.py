"""The configuration of a network of timm: architecture, arguments, preprocessing, licence.

It comes from timm's own registry, or from the ``config.json`` of a folder or of the hub. The latter
is a stranger's: what it may ask for is listed here, and nothing in it is run.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurize.backbones.names import TimmName
from featurize.errors import BackboneError, UnknownWeightsError
from featurize.images.preprocess import MAX_SIDE, Preprocess
from featurize.text import did_you_mean, to_printable

MAX_CONFIG_BYTES = 1 << 20
FIT_BY_CROP_MODE = {"center": "crop", "squash": "squash", "border": "border"}

# Arguments that say nothing of features: the classifier is left out, images have three channels.
_IGNORED_ARGUMENTS = {"num_classes", "pretrained", "drop_rate", "drop_path_rate", "img_size"}
_IGNORED_ARGUMENTS |= {"proj_drop_rate", "attn_drop_rate", "patch_drop_rate", "pos_drop_rate"}
_IGNORED_ARGUMENTS |= {"label_smoothing", "cache_dir", "scriptable", "exportable"}
# Numbers by the largest that any published network comes near.
_COUNTS = {
    "depth": 256,
    "embed_dim": 16_384,
    "num_heads": 256,
    "patch_size": 64,
    "reg_tokens": 64,
    "num_features": 32_768,
    "stem_size": 4_096,
    "output_stride": 32,
    "window_size": 128,
}
_SIZES = {"mlp_ratio": 64.0, "init_values": 1e6, "ls_init_value": 1e6, "layer_scale": 1e6}
_FLAGS = {
    "no_embed_class", "dynamic_img_size", "dynamic_img_pad", "class_token", "qkv_bias", "qk_norm",
    "pre_norm", "final_norm", "fc_norm", "use_fc_norm", "norm_pre", "strict_img_size",
    "use_rot_pos_emb", "use_post_norm", "swiglu_mlp", "scale_mlp", "use_abs_pos_emb", "reg_first",
    "use_layer_scale", "conv_bias", "always_partition",
}  # fmt: skip
_CHOICES = {
    "pad_type": ("", "same", "valid"),
    "global_pool": ("", "avg", "max", "avgmax", "catavgmax", "token", "map", "fast"),
    "pos_embed": ("", "none", "learn"),
    "act_layer": (
        "relu", "relu6", "leaky_relu", "elu", "gelu", "gelu_tanh", "quick_gelu", "silu", "swish",
        "mish", "hard_swish", "hard_sigmoid", "tanh", "sigmoid",
    ),
    "norm_layer": ("batchnorm2d", "layernorm", "layernorm2d", "groupnorm", "rmsnorm"),
    "mlp_layer": ("Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked"),
}  # fmt: skip
# How classes are written by those who publish networks, by the name of timm's registry.
_ACTIVATION_ALIASES = {"SiLU": "silu", "GELU": "gelu", "ReLU": "relu", "QuickGELU": "quick_gelu"}
_ACTIVATION_ALIASES |= {"swish": "silu"}
MAX_TOKENS = 16_384  # 1,792 pixels in patches of 14


@dataclass(frozen=True)
class TimmConfig:
    """What is known of a network of timm before it is built.

    Attributes
    ----------
    architecture : str
        As timm has it.
    arguments : tuple of (str, object)
        Those that differ from the architecture's own, sorted.
    weights : str
        Name of the weights.
    preprocess : Preprocess
        That of the weights.
    fixed_size : bool
        Whether the network is built for one size of images.
    licence : str
        As published; ``unknown`` if nothing was.
    source : str
        What the weights were trained on, as far as their name or configuration says.
    """

    architecture: str
    weights: str
    preprocess: Preprocess
    arguments: tuple[tuple[str, Any], ...] = ()
    fixed_size: bool = False
    licence: str = "unknown"
    source: str = ""

    @property
    def name(self) -> str:
        """The backbone's name in a cache."""
        return str(TimmName(self.architecture, "", self.arguments))


def read_registry(name: TimmName, tag: str) -> tuple[TimmConfig, Any]:
    """Read the configuration of published weights from timm's registry.

    Parameters
    ----------
    name : TimmName
        Architecture and arguments.
    tag : str
        Of the weights; empty for timm's default.

    Returns
    -------
    config : TimmConfig
        The configuration.
    published : timm.models.PretrainedCfg
        timm's own, which says where the weights are.

    Raises
    ------
    BackboneError
        If timm has no such network or no such weights, or its images are not square.
    """
    from timm.models import get_pretrained_cfg

    check_architecture(name.architecture)
    tags = list_tags(name.architecture)
    if tag and tag not in tags:
        raise UnknownWeightsError(
            f"timm:{name.architecture} has no weights {tag!r}{did_you_mean(tag, tags)}; it has "
            f"{', '.join(tags) or 'none'}"
        )
    chosen = tag or (tags[0] if tags else "")
    published = get_pretrained_cfg(f"{name.architecture}.{chosen}" if chosen else name.architecture)
    values = published.to_dict() if published is not None else {}
    arguments = check_arguments(dict(name.arguments), str(name))
    return _make_config(name.architecture, arguments, chosen, values), published


def list_tags(architecture: str) -> list[str]:
    """List the published weights of an architecture, timm's default first.

    Parameters
    ----------
    architecture : str
        As timm has it.

    Returns
    -------
    list of str
        Tags.
    """
    from timm.models import get_pretrained_cfg, list_pretrained

    names = list_pretrained(f"{architecture}.*") + list_pretrained(architecture)
    tags = list(dict.fromkeys(name.partition(".")[2] for name in names))
    default = get_pretrained_cfg(architecture)
    first = default.tag if default is not None and default.tag in tags else None
    return [first, *(tag for tag in tags if tag != first)] if first else tags


def check_architecture(architecture: str) -> None:
    """Check that timm has an architecture.

    Parameters
    ----------
    architecture : str
        Its name.

    Raises
    ------
    BackboneError
        If not; the message suggests a name.
    """
    from timm import is_model, list_models

    if not is_model(architecture):
        raise BackboneError(
            f"timm has no network {to_printable(architecture)!r}"
            f"{did_you_mean(architecture, list_models())}; `featurize backbones 'timm:*NAME*'` "
            "searches"
        )


def read_folder_config(path: Path, weights: str) -> TimmConfig:
    """Read a ``config.json`` in timm's layout.

    Parameters
    ----------
    path : Path
        The file.
    weights : str
        Name of the weights, if the file has none.

    Returns
    -------
    TimmConfig
        The checked configuration.

    Raises
    ------
    BackboneError
        If it cannot be read, is not for timm, or asks for more than networks need.
    """
    source = str(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{source} cannot be read: {error}") from error
    architecture = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(architecture, str):
        hint = "; it is in the layout of transformers" if _is_of_transformers(content) else ""
        raise BackboneError(
            f"{source} names no architecture of timm{hint}. Load the network yourself, and pass it "
            "as featurize.Backbone(network, ...)"
        )
    check_architecture(architecture)
    arguments = content.get("model_args") or {}
    # In the older layout everything about the weights is at the top.
    values = content.get("pretrained_cfg", content)
    if not isinstance(arguments, dict) or not isinstance(values, dict):
        raise BackboneError(f"{source}: model_args and pretrained_cfg are tables of values")
    return _make_config(
        architecture,
        check_arguments(arguments, source),
        str(values.get("tag") or weights),
        values,
        fixed_size=bool(values.get("fixed_input_size")),
        size=arguments.get("img_size"),
    )


def _is_of_transformers(content: Any) -> bool:
    return isinstance(content, dict) and bool({"auto_map", "model_type"} & content.keys())


def check_arguments(arguments: Mapping[str, Any], source: str) -> tuple[tuple[str, Any], ...]:
    """Check the arguments that a network is to be built with.

    Parameters
    ----------
    arguments : mapping
        Of the network's constructor.
    source : str
        Where they stand, for the message.

    Returns
    -------
    tuple of (str, object)
        Those that matter for features, sorted, with plain values.

    Raises
    ------
    BackboneError
        If one is unknown, or has a value that no network has.
    """
    checked = {}
    for key, value in arguments.items():
        if key in _IGNORED_ARGUMENTS or value is None or (key == "in_chans" and value == 3):
            continue
        if isinstance(value, str):
            value = _ACTIVATION_ALIASES.get(value, value)
        if not _is_allowed(key, value):
            raise BackboneError(
                f"{source}: the argument {to_printable(str(key))} = "
                f"{to_printable(json.dumps(value))[:60]} is not one that may come from a file. If "
                "you trust it, build the network yourself and pass it as "
                "featurize.Backbone(network, ...)"
            )
        checked[key] = float(value) if key in _SIZES else value
    return tuple(sorted(checked.items()))


def _is_allowed(key: str, value: Any) -> bool:
    if key in _FLAGS:
        return isinstance(value, bool)
    if key in _CHOICES:
        return value in _CHOICES[key]
    if key in _COUNTS:
        return type(value) is int and 0 <= value <= _COUNTS[key]
    if key in _SIZES:
        return type(value) in (int, float) and 0 <= value <= _SIZES[key]
    return False


def _make_config(
    architecture: str,
    arguments: tuple[tuple[str, Any], ...],
    weights: str,
    values: Mapping[str, Any],
    *,
    fixed_size: bool | None = None,
    size: Any = None,
) -> TimmConfig:
    input_size = values.get("input_size") or (3, 224, 224)
    if isinstance(size, int):
        input_size = (3, size, size)
    channels, height, width = _check_size(architecture, input_size)
    if channels != 3 or height != width:
        raise BackboneError(
            f"timm:{architecture}, weights {weights}, takes images of {channels} x {height} x "
            f"{width}; only square ones of three channels are supported"
        )
    patch = dict(arguments).get("patch_size")
    if patch is not None and (height // max(patch, 1)) ** 2 > MAX_TOKENS:
        raise BackboneError(f"timm:{architecture}: patches of {patch} pixels are too many")
    mode = values.get("crop_mode") or "center"
    if not isinstance(mode, str) or mode not in FIT_BY_CROP_MODE:
        raise BackboneError(
            f"timm:{architecture}, weights {weights}: crop mode {mode!r} is unknown"
        )
    crop_pct = values.get("crop_pct") or 0.875
    if not isinstance(crop_pct, (int, float)) or not 0.05 < crop_pct <= 1:
        raise BackboneError(f"timm:{architecture}, weights {weights}: crop_pct is {crop_pct!r}")
    preprocess = Preprocess.from_dict(
        {
            "resize": math.floor(height / crop_pct),
            "crop": height,
            "interpolation": values.get("interpolation") or "bicubic",
            "mean": list(values.get("mean") or (0.485, 0.456, 0.406)),
            "std": list(values.get("std") or (0.229, 0.224, 0.225)),
            **({"fit": FIT_BY_CROP_MODE[mode]} if mode != "center" else {}),
        }
    )
    return TimmConfig(
        architecture=architecture,
        weights=to_printable(weights),
        preprocess=preprocess,
        arguments=arguments,
        fixed_size=bool(values.get("fixed_input_size")) if fixed_size is None else fixed_size,
        licence=to_printable(str(values.get("license") or "unknown"))[:80],
        source=to_printable(str(values.get("tag") or weights))[:80],
    )


def _check_size(architecture: str, input_size: Any) -> tuple[int, int, int]:
    is_size = isinstance(input_size, (list, tuple)) and len(input_size) == 3
    if not is_size or not all(
        type(length) is int and 1 <= length <= MAX_SIDE for length in input_size
    ):
        raise BackboneError(f"timm:{architecture}: its images have the size {input_size!r}")
    channels, height, width = input_size
    return channels, height, width

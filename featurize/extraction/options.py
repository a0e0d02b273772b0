"""What a run has to do: options settled against the cache, images compared with its rows.

No torch here: an unchanged collection is recognised without it.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from featurize.backbones.families import (
    DEFAULT_BACKBONE,
    is_file_path,
    parse_layers,
    read_backbone_name,
)
from featurize.cache.format import Extractor
from featurize.cache.reader import FeatureCache
from featurize.engines.base import PRECISIONS, check_engine
from featurize.errors import CallError, FingerprintMismatchError
from featurize.files import hash_file
from featurize.images.preprocess import DECODE_MODES
from featurize.layer_spec import LayerSpec

DTYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True)
class Options:
    """What was asked for; None means: as in the cache, or the default of a new one.

    Raises
    ------
    CallError
        If a value cannot be, whatever the cache; nothing is loaded to say so.
    """

    backbone: str | None = None
    weights: str | None = None
    layers: str | None = None
    pool: str | None = None
    dtype: str | None = None
    precision: str | None = None
    decode: str | None = None
    preprocess: str | None = None
    engine: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, tuple(DTYPES)),
            ("precision", self.precision, PRECISIONS),
            ("decode", self.decode, DECODE_MODES),
        ):
            if value is not None and value not in known:
                raise CallError(f"--{name} is one of {', '.join(known)}, not {value!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise CallError(f"no device {self.device!r}; use auto, cpu, cuda or cuda:1")
        check_engine(self.engine, self.device, self.precision or "float32")
        for name, value in (("backbone", self.backbone), ("weights", self.weights)):
            if value is not None and is_file_path(value) and not Path(value).is_file():
                raise CallError(f"--{name}: there is no file {value}")


@dataclass(frozen=True)
class ResolvedOptions:
    """Options with nothing left open."""

    backbone: str
    weights: str | None
    layers: list[LayerSpec]
    dtype: str
    precision: str
    decode: str
    preprocess: str | None
    engine: str
    device: str


def resolve_options(
    options: Options, cache: FeatureCache | None, own_name: str | None = None
) -> ResolvedOptions:
    """Complete the options from the cache, or from the defaults where there is none.

    Parameters
    ----------
    own_name : str, optional
        The name of a network passed in from Python.
    """
    common = {"preprocess": options.preprocess, "engine": options.engine, "device": options.device}
    if cache is None:
        backbone = own_name or options.backbone or DEFAULT_BACKBONE
        return ResolvedOptions(
            backbone=backbone,
            weights=options.weights,
            layers=parse_layers(
                options.layers or "last", options.pool, _resolve_backbone_name(backbone)
            ),
            dtype=options.dtype or "float32",
            precision=options.precision or "float32",
            decode=options.decode or "exact",
            **common,  # type: ignore[arg-type]
        )
    made = cache.extractor
    backbone = own_name or options.backbone or made.backbone
    there = [info.spec for info in cache.layers.values()]
    asked = (
        parse_layers(options.layers, options.pool, _resolve_backbone_name(backbone))
        if options.layers
        else []
    )
    weights = options.weights
    if weights is None and backbone == made.backbone:
        weights = made.environment.get("weights_file") or made.weights
    return ResolvedOptions(
        backbone=backbone,
        weights=weights,
        layers=[*there, *(spec for spec in asked if spec not in there)],
        dtype=options.dtype or _find_dtype(cache),
        precision=options.precision or made.precision,
        decode=options.decode or made.preprocess.decode,
        **common,  # type: ignore[arg-type]
    )


def _resolve_backbone_name(backbone: str) -> str:
    """The network's name, where a file stands for it."""
    if not is_file_path(backbone):
        return backbone
    try:
        with safe_open(backbone, "np") as file:
            return read_backbone_name(file.metadata() or {})
    except (OSError, SafetensorError):
        return Path(backbone).stem


def _find_dtype(cache: FeatureCache) -> str:
    return next(n for n, code in DTYPES.items() if code == cache.layer().dtype)


def is_same_extractor(resolved: ResolvedOptions, options: Options, cache: FeatureCache) -> bool:
    """Whether the cache is known, without loading anything, to be of the extractor wanted.

    Raises
    ------
    FingerprintMismatch
        If it is known to be of another.
    """
    made = cache.extractor
    names_file = is_file_path(resolved.backbone)  # then the file names the backbone
    asked = replace(
        made,
        backbone=made.backbone if names_file else resolved.backbone,
        preprocess=replace(made.preprocess, decode=resolved.decode),
        precision=resolved.precision,
    )
    check_extractor(cache, asked, resolved.dtype)
    if options.preprocess is not None or names_file:
        return False
    if options.weights is None:
        return True
    if is_file_path(options.weights):
        return hash_file(options.weights).hex() == made.environment.get("weights_file_sha256")
    return options.weights == made.weights


def check_extractor(cache: FeatureCache, extractor: Extractor, dtype: str) -> None:
    """Refuse to mix features of two extractors in one cache.

    Raises
    ------
    FingerprintMismatch
        Naming the fields that differ.
    """
    differences = cache.extractor.differences(extractor)
    if _find_dtype(cache) != dtype:
        differences["dtype"] = _find_dtype(cache), dtype
    if differences:
        described = "; ".join(
            _describe_difference(name, *differences[name]) for name in differences
        )
        raise FingerprintMismatchError(
            f"{cache.path} was made otherwise than asked for: {described}. "
            "Leave the option out to go on with the cache as it is, or give another -o"
        )


def _describe_difference(name: str, there: Any, here: Any) -> str:
    if name == "weights_sha256":
        there, here = f"{there[:12]}...", f"{here[:12]}..."
    return f"{name} is {there!r}, asked for {here!r}"

"""Options of a run, completed from the cache and checked against it.

This module does not import torch, so a run with nothing to compute starts without it.
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
    """Requested options; None means as in the cache, or the default for a new cache.

    Attributes
    ----------
    backbone, weights, layers, pool, dtype, precision, decode, preprocess : str, optional
        As in `featurize.extraction.run.run`.
    engine, device : str
        Also as there; ``auto`` by default.

    Raises
    ------
    CallError
        If a value is invalid for any cache; nothing is loaded to find out.
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
        for name, value, choices in (
            ("dtype", self.dtype, tuple(DTYPES)),
            ("precision", self.precision, PRECISIONS),
            ("decode", self.decode, DECODE_MODES),
        ):
            if value is not None and value not in choices:
                raise CallError(f"--{name} is one of {', '.join(choices)}, not {value!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise CallError(f"no device {self.device!r}; use auto, cpu, cuda or cuda:1")
        check_engine(self.engine, self.device, self.precision or "float32")
        for name, value in (("backbone", self.backbone), ("weights", self.weights)):
            if value is not None and is_file_path(value) and not Path(value).is_file():
                raise CallError(f"--{name}: there is no file {value}")


@dataclass(frozen=True)
class ResolvedOptions:
    """Options of a run, completed from the cache or the defaults.

    Attributes
    ----------
    backbone : str
        Name, or path of a weights file that names the network.
    weights : str, optional
        Name or path; None for the backbone's default.
    layers : list of LayerSpec
        Those of the cache first, then the new ones.
    dtype : str
        One of `DTYPES`.
    precision, decode, engine, device : str
    preprocess : str, optional
        None for that of the weights.
    """

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
    """Complete the options from the cache, or from the defaults without one.

    Parameters
    ----------
    options : Options
    cache : FeatureCache or None
    own_name : str, optional
        Name of a backbone made in Python.

    Returns
    -------
    ResolvedOptions

    Raises
    ------
    CallError, BackboneError
        If the layers are invalid.
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
    extractor = cache.extractor
    backbone = own_name or options.backbone or extractor.backbone
    cached_specs = [info.spec for info in cache.layers.values()]
    requested_specs = (
        parse_layers(options.layers, options.pool, _resolve_backbone_name(backbone))
        if options.layers
        else []
    )
    weights = options.weights
    if weights is None and backbone == extractor.backbone:
        weights = extractor.environment.get("weights_file") or extractor.weights
    return ResolvedOptions(
        backbone=backbone,
        weights=weights,
        layers=[*cached_specs, *(spec for spec in requested_specs if spec not in cached_specs)],
        dtype=options.dtype or _find_dtype(cache),
        precision=options.precision or extractor.precision,
        decode=options.decode or extractor.preprocess.decode,
        **common,  # type: ignore[arg-type]
    )


def _resolve_backbone_name(backbone: str) -> str:
    """Return the backbone's name, read from the file if a file is given."""
    if not is_file_path(backbone):
        return backbone
    try:
        with safe_open(backbone, "np") as file:
            return read_backbone_name(file.metadata() or {})
    except (OSError, SafetensorError):
        return Path(backbone).stem


def _find_dtype(cache: FeatureCache) -> str:
    return next(name for name, code in DTYPES.items() if code == cache.layer().dtype)


def is_same_extractor(resolved: ResolvedOptions, options: Options, cache: FeatureCache) -> bool:
    """Return whether a cache is known to have the requested extractor; load no network.

    Parameters
    ----------
    resolved : ResolvedOptions
    options : Options
        As requested.
    cache : FeatureCache

    Returns
    -------
    bool
        False if the network must be loaded to find out.

    Raises
    ------
    FingerprintMismatchError
        If the cache is known to have another extractor.
    """
    cached = cache.extractor
    names_file = is_file_path(resolved.backbone)  # then the file names the backbone
    requested = replace(
        cached,
        backbone=cached.backbone if names_file else resolved.backbone,
        preprocess=replace(cached.preprocess, decode=resolved.decode),
        precision=resolved.precision,
    )
    check_extractor(cache, requested, resolved.dtype)
    if options.preprocess is not None or names_file:
        return False
    if options.weights is None:
        return True
    if is_file_path(options.weights):
        return hash_file(options.weights).hex() == cached.environment.get("weights_file_sha256")
    return options.weights == cached.weights


def check_extractor(cache: FeatureCache, extractor: Extractor, dtype: str) -> None:
    """Check that a cache has a given extractor and dtype.

    Parameters
    ----------
    cache : FeatureCache
    extractor : Extractor
    dtype : str
        One of `DTYPES`.

    Raises
    ------
    FingerprintMismatchError
        If not; the message names the fields that differ.
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


def _describe_difference(name: str, cached: Any, requested: Any) -> str:
    if name == "weights_sha256":
        cached, requested = f"{cached[:12]}...", f"{requested[:12]}..."
    return f"{name} is {cached!r}, asked for {requested!r}"

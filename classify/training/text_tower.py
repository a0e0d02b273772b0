"""The text tower of a CLIP-like network, by open_clip: class names in, embeddings out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from classify.errors import TextTowerError
from featurize.backbones import weights as weights_files
from featurize.text import did_you_mean

FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
HUB_FILE_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEXTS_PER_BATCH = 256
TEXT_PREFIX = "text."
# open_clip builds both towers. Ours is in the cache, so the other one is as small as can be.
_SMALLEST_VISION = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}


@dataclass(frozen=True, eq=False)
class ClassEmbeddings:
    """Classes in the space that a network shares between images and texts.

    Attributes
    ----------
    texts : float32 array of shape (K, E)
        A row of length 1 for each class.
    scale, bias : float
        What the network was trained with: logit = scale * cosine + bias.
    uses_quick_gelu : bool
        Whether the tower has the activation of OpenAI's networks.
    """

    texts: np.ndarray
    scale: float
    bias: float
    uses_quick_gelu: bool


def find_text_weights(text: str, text_model: str) -> Path:
    """Find the file of a checkpoint, without downloading anything.

    Parameters
    ----------
    text : str
        A file, or a tag of open_clip whose weights are in the local cache of the hub.
    text_model : str
        Name of the architecture in open_clip.

    Returns
    -------
    Path
        The file. Whether it can be read is not checked.

    Raises
    ------
    TextTowerError
        If the architecture or the tag is unknown, or the tag's weights are not there.
    """
    _get_config(text_model)
    if text.endswith(FILE_SUFFIXES) or Path(text).is_file():
        return Path(text)
    tags = open_clip.list_pretrained_tags_by_model(text_model)
    if text not in tags:
        raise TextTowerError(
            f"{text_model} has no weights {text!r}{did_you_mean(text, tags)}; give a file, or one "
            f"of {', '.join(tags) or 'none'}"
        )
    place = PurePosixPath(open_clip.get_pretrained_cfg(text_model, text).get("hf_hub", ""))
    repository = str(place)
    names: tuple[str, ...] = HUB_FILE_NAMES
    if place.suffix in FILE_SUFFIXES:
        repository, names = str(place.parent), (place.name,)
    if repository != ".":
        for name in names:
            if isinstance(path := try_to_load_from_cache(repository, name), str):
                return Path(path)
    raise TextTowerError(
        f"the weights {text} of {text_model} are not in the local cache of the hub, and nothing is "
        f"downloaded unasked: fetch {repository} from the hub, or give a file with --text"
    )


def embed_classes(
    path: Path, text_model: str, classes: Sequence[str], prompts: Sequence[str]
) -> ClassEmbeddings:
    """Embed class names: the mean over prompts of unit embeddings, normalised again.

    As in A. Radford et al. (2021), "Learning transferable visual models from natural language
    supervision", ICML, section 3.1.4.

    Parameters
    ----------
    path : Path
        A checkpoint of open_clip: ``.safetensors``, or tensors by name saved by torch. No code in
        it is run.
    text_model : str
        Name of its architecture in open_clip.
    classes : sequence of str
        K names. An underscore is read as a space.
    prompts : sequence of str
        Templates, each with ``{}`` for the name.

    Returns
    -------
    ClassEmbeddings

    Raises
    ------
    TextTowerError
        If architecture or tokenizer are not there, or the file does not fit them.
    BackboneError
        If the file cannot be read as weights.
    """
    config = _get_config(text_model)
    tokenizer = _open_tokenizer(text_model, config["text_cfg"])
    tensors = convert_to_custom_text_state_dict(weights_files.read_weights(path)[0])
    tower = _load_tower(path, text_model, config, tensors)
    names = [name.replace("_", " ") for name in classes]
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    embeddings = []
    with torch.inference_mode():
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            batch = tower(tokenizer(texts[start : start + TEXTS_PER_BATCH]))
            embeddings.append(nn.functional.normalize(batch, dim=-1))
        by_class = torch.cat(embeddings).unflatten(0, (len(classes), len(prompts)))
        means = nn.functional.normalize(by_class.mean(dim=1), dim=-1).numpy()
    scale = float(np.exp(_read_number(path, tensors, "logit_scale")))
    bias = _read_number(path, tensors, "logit_bias") if "logit_bias" in tensors else 0.0
    if not (np.isfinite(means).all() and math.isfinite(scale)):
        raise TextTowerError(f"{path}: its text embeddings are not finite numbers; is it damaged?")
    return ClassEmbeddings(means, scale, bias, bool(config.get("quick_gelu", False)))


def _get_config(text_model: str) -> dict[str, Any]:
    models = open_clip.list_models()
    if text_model not in models:  # open_clip would take `hf-hub:NAME` and fetch it
        raise TextTowerError(
            f"open_clip has no architecture {text_model!r}{did_you_mean(text_model, models)}; "
            "--text-model is one of `open_clip.list_models()`, as ViT-B-32"
        )
    config: dict[str, Any] = open_clip.get_model_config(text_model)
    if "hf_model_name" in config["text_cfg"]:
        raise TextTowerError(
            f"the text tower of {text_model} is built by transformers from a file of the hub, "
            "which is not supported"
        )
    if "multimodal_cfg" in config:
        raise TextTowerError(
            f"{text_model} writes captions too (CoCa), and its text tower is of another "
            "kind, which is not supported"
        )
    return config


def _open_tokenizer(text_model: str, text_config: dict[str, Any]) -> Any:
    """Return the tokenizer. CLIP's is part of open_clip, SigLIP's lies on the hub."""
    place = text_config.get("hf_tokenizer_name", "")
    if not place and "siglip" not in text_model.lower():
        return open_clip.get_tokenizer(text_model)
    try:
        if not place:  # open_clip would fetch a file
            raise OSError("it has no place on the hub")
        return open_clip.get_tokenizer(text_model, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise TextTowerError(
            f"the tokenizer of {text_model} is not part of open_clip. It needs the package "
            f"transformers and {place or 'a file'} in the local cache of the hub, and nothing is "
            f"downloaded unasked: fetch it once with `hf download {place}`"
        ) from error


def _load_tower(
    path: Path, text_model: str, config: dict[str, Any], tensors: dict[str, Tensor]
) -> nn.Module:
    network = open_clip.CustomTextCLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=_SMALLEST_VISION,
        text_cfg=config["text_cfg"],
        quick_gelu=config.get("quick_gelu", False),
    )
    tower: nn.Module = network.text
    given = {
        name.removeprefix(TEXT_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(TEXT_PREFIX)
    }
    if not given:
        raise TextTowerError(f"{path} has no text tower: no tensors by the names of open_clip")
    names = set(tower.state_dict())
    weights_files.load_into(tower, given, names, f"the text tower in {path}")
    if unknown := sorted(set(given) - names - {"attn_mask"}):
        raise TextTowerError(
            f"{path} is not of the architecture {text_model}: it has more in its text tower, as "
            f"{unknown[0]}; give the right --text-model"
        )
    return tower.eval()


def _read_number(path: Path, tensors: dict[str, Tensor], name: str) -> float:
    number = tensors.get(name)
    is_number = number is not None and number.numel() == 1 and number.is_floating_point()
    if number is None or not is_number or not math.isfinite(number.item()):
        raise TextTowerError(f"{path}: {name} is missing or no number; is it of open_clip?")
    return float(number.item())

"""A linear head from class names alone, by the text tower of the network that made a cache.

A CLIP-like network is trained on images and their captions: both towers end in one space, in which
an image lies near the texts that describe it (A. Radford et al., 2021, "Learning transferable
visual models from natural language supervision", ICML). The image's embedding is a linear function
P z of what the cache holds, so that the scores of all classes are linear too: a linear head.

CLIP divides P z by its length. A linear head does not: that multiplies all scores of an image by
one number, so the order of the classes is CLIP's, but the softmax is not CLIP's probabilities.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from classify.data.preparation import STANDARDISE
from classify.errors import CallError, HeadMismatchError, TextTowerError
from classify.heads.fitted import FittedHead
from classify.heads.models import LinearModel
from classify.heads.source import FeatureSource
from featurize.cache.reader import FeatureCache
from featurize.system import signals

if TYPE_CHECKING:
    from classify.training.text_tower import ClassEmbeddings

ZERO_SHOT = "zero-shot"
IMAGE_LAYER = "pre_logits"  # what the projection to the shared space takes
PROMPTS = (
    "a photo of a {}.",
    "a close-up photo of a {}.",
    "a photo of one {}.",
    "a bright photo of the {}.",
    "a drawing of a {}.",
    "an image of the {}.",
    "{}.",
)
_NO_HASHES = np.zeros(0, np.uint64)


def build_zero_shot_head(
    cache: FeatureCache,
    classes: Sequence[str],
    *,
    text: str | os.PathLike[str],
    text_model: str,
    prompts: Sequence[str] = PROMPTS,
) -> FittedHead:
    """Build the head of some class names. It has scores, and no probabilities.

    Parameters
    ----------
    cache : FeatureCache
    classes : sequence of str
        Names, two or more.
    text, text_model, prompts
        As in `classify.make_zero_shot_head`.

    Returns
    -------
    FittedHead
        Its task is unnamed, its record empty.

    Raises
    ------
    TextTowerError
        If the text tower cannot be read, or is not of the network that made the cache.
    HeadMismatchError
        If the cache lacks the layer.
    CallError
        If open_clip is not installed, or classes or prompts are invalid.
    FeaturizeError, FileNotFoundError
        If the checkpoint cannot be read.
    """
    _check_prompts(prompts)
    _check_classes(classes)
    embeddings, projection, notices = _read_towers(cache, text, text_model, classes, prompts)
    layers = (_find_image_layer(cache, projection.shape[1]),)
    return _build_head(cache, layers, classes, embeddings, projection, notices)


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """Read templates from a text file, one a line; empty lines are left out.

    Parameters
    ----------
    path : path
        Of UTF-8 text.

    Returns
    -------
    list of str

    Raises
    ------
    CallError
        If it is not text.
    FileNotFoundError
        If there is no such file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CallError(f"{path} is not a text file of prompts, one a line: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def _read_towers(
    cache: FeatureCache,
    text: str | os.PathLike[str],
    text_model: str,
    classes: Sequence[str],
    prompts: Sequence[str],
) -> tuple["ClassEmbeddings", np.ndarray, list[str]]:
    """Return the classes' embeddings, the image projection (E, D), and notices."""
    signals.import_uninterrupted("torchvision")  # slow, so only when it is needed
    try:
        from classify.training import text_tower
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("open_clip", "huggingface_hub"):
            raise
        raise CallError(
            "a zero-shot head needs open_clip: pip install 'headgraft[openclip]'"
        ) from error
    from featurize import load_backbone

    path = text_tower.find_text_weights(str(text), text_model)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --text is a checkpoint of open_clip")
    extractor = cache.extractor
    backbone = load_backbone(extractor.backbone, weights=str(path), preprocess=extractor.preprocess)
    check_same_network(backbone.weights_sha256, cache, path)
    embeddings = text_tower.embed_classes(path, text_model, classes, prompts)
    width = embeddings.texts.shape[1]
    # Without a projection the features themselves are in the shared space, as in SigLIP.
    tensor = getattr(backbone, "projection", None)
    projection = np.eye(width) if tensor is None else tensor.numpy().astype(np.float64)
    if projection.shape[0] != width:
        raise TextTowerError(
            f"{path}: images have {projection.shape[0]} numbers and texts of {text_model} have "
            f"{width}; give the right --text-model"
        )
    notices = []
    if embeddings.uses_quick_gelu != ("quickgelu" in extractor.backbone):
        notices.append(
            f"{text_model} has {_name_gelu(embeddings.uses_quick_gelu)} and {extractor.backbone} "
            f"has {_name_gelu(not embeddings.uses_quick_gelu)}: a network was trained with one of "
            "them, and with the other one its embeddings are worse"
        )
    return embeddings, projection, notices


def _name_gelu(quick: bool) -> str:
    return "QuickGELU" if quick else "GELU"


def check_same_network(weights_sha256: str, cache: FeatureCache, path: Path) -> None:
    """Refuse a text tower whose image tower did not make the cache: their spaces have no relation.

    Parameters
    ----------
    weights_sha256 : str
        Digest of the image tower in the file of the text tower, in the names of the cache's
        backbone.
    cache : FeatureCache
    path : Path
        The file.

    Raises
    ------
    TextTowerError
        If the digest is not that of the cache.
    """
    extractor = cache.extractor
    if weights_sha256 != extractor.weights_sha256:
        raise TextTowerError(
            f"the images in {cache.path} were embedded by other weights of {extractor.backbone} "
            f"(digest {extractor.weights_sha256[:12]}...) than those in {path} "
            f"({weights_sha256[:12]}...), and texts of one network say nothing of another's "
            "images; give the checkpoint that the cache was made with"
        )


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not prompts or not all("{}" in prompt for prompt in prompts):
        raise CallError(
            "prompts are templates, each with {} where the class name goes: 'a photo of a {}.'"
        )


def _check_classes(classes: Sequence[str]) -> None:
    names = [] if isinstance(classes, str) else list(classes)
    if len(names) < 2 or len(set(names)) < len(names) or not all(n.strip() for n in names):
        raise CallError(f"class names are two or more, each once, not {classes!r}")


def _find_image_layer(cache: FeatureCache, dim: int) -> str:
    for info in cache.layers.values():
        if info.layer == IMAGE_LAYER and info.dim == dim:
            return info.name
    raise HeadMismatchError(
        f"{cache.path} has no layer {IMAGE_LAYER} of {dim} numbers, which the image projection of "
        f"{cache.extractor.backbone} takes; add it with `featurize run IMAGES -o {cache.path} "
        f"--layers {IMAGE_LAYER}`"
    )


def _build_head(
    cache: FeatureCache,
    layers: tuple[str, ...],
    classes: Sequence[str],
    embeddings: "ClassEmbeddings",
    projection: np.ndarray,
    notices: list[str],
) -> FittedHead:
    dim = projection.shape[1]
    coef = embeddings.scale * (embeddings.texts.astype(np.float64) @ projection)
    intercept = np.full(len(classes), embeddings.bias)
    return FittedHead(
        head=ZERO_SHOT,
        classes=list(classes),
        prepare=STANDARDISE,
        scorer=LinearModel(np.zeros(dim), np.ones(dim), coef, intercept),
        probabilistic=False,
        temperature=None,
        settings={},
        task="",
        source=FeatureSource.from_cache(cache, layers),
        record={},
        seen=_NO_HASHES,
        notices=tuple(notices),
    )

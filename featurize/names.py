"""What a name given for a backbone or for weights means, and help where it was mistyped."""

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)``, or nothing where nothing known is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def is_file_path(text: str) -> bool:
    """Whether what was given for a backbone or for weights means a local file."""
    return text.endswith(WEIGHTS_SUFFIXES) or "/" in text or os.path.isfile(text)


def read_backbone_name(metadata: Mapping[str, str]) -> str:
    """The network that a weights file is for, by its metadata; empty where it does not say."""
    return metadata.get("backbone", "").strip('"')  # a fine-tuned head's metadata are JSON

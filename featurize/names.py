"""What a name given for a backbone or for weights means, and help where it was mistyped."""

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

SUFFIXES = (".safetensors", ".pth", ".pt")


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)``, or nothing where nothing known is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def is_file(text: str) -> bool:
    """Whether what was given for a backbone or for weights means a local file."""
    return text.endswith(SUFFIXES) or "/" in text or os.path.isfile(text)


def recorded_backbone(metadata: Mapping[str, str]) -> str:
    """The network that a weights file is for, by its metadata; empty where it does not say."""
    return metadata.get("backbone", "").strip('"')  # a fine-tuned head's metadata are JSON
